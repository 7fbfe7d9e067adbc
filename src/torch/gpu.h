// What CUDA needs beyond libtorch's device-neutral interfaces: streams of our own, graphs, memory that the
// device copies from by itself. As in shim.h, each function returns NULL or the text of an error.
#pragma once

#include "shim.h"

#ifdef __cplusplus
extern "C" {
#endif

// Finds what is called below in libtorch_cuda.so and what that needs; `library` is its handle. To be called
// once, before the functions on streams and graphs.
char *diffusion_gpu_open(void *library);

// A CUDA stream that nobody else has; never destroyed.
char *diffusion_gpu_stream_new(int32_t device, void **stream);
// Makes it the calling thread's current one.
char *diffusion_gpu_stream_use(int32_t device, void *stream);
// The calling thread's current one.
char *diffusion_gpu_stream_current(int32_t device, void **stream);
// Waits until the calling thread's current stream has nothing to do.
char *diffusion_gpu_synchronize(int32_t device);

// A flat CPU tensor in page-locked memory, of the number type of `like`, not initialised.
char *diffusion_gpu_pinned(tensor like, int64_t numel, tensor *out);
// Copies without waiting.
char *diffusion_gpu_copy(tensor to, tensor from);

// Holds the host back: it may be one turn ahead of the device.
typedef struct diffusion_gpu_pace diffusion_gpu_pace;
char *diffusion_gpu_pace_new(diffusion_gpu_pace **pace);
// Ends a turn; waits for the end of the one before.
char *diffusion_gpu_pace_turn(diffusion_gpu_pace *pace, int32_t device);
void diffusion_gpu_pace_free(diffusion_gpu_pace *pace);

// Memory that the graphs of one network share, since they are replayed one after the other.
typedef struct diffusion_gpu_pool diffusion_gpu_pool;
typedef struct diffusion_gpu_graph diffusion_gpu_graph;
diffusion_gpu_pool *diffusion_gpu_pool_new(int32_t device);
void diffusion_gpu_pool_free(diffusion_gpu_pool *pool);
// Captures what `work` launches on the calling thread's current stream, which must be from
// diffusion_gpu_stream_new. `work` returns whether it succeeded and does not throw.
char *diffusion_gpu_capture(diffusion_gpu_pool *pool, bool (*work)(void *), void *context,
                            diffusion_gpu_graph **graph);
// Launches a graph on the stream that it was captured on.
char *diffusion_gpu_replay(const diffusion_gpu_graph *graph);
void diffusion_gpu_graph_free(diffusion_gpu_graph *graph);

#ifdef __cplusplus
}
#endif
