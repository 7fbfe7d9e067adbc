// CUDA streams, graphs and pinned memory; see gpu.h.
//
// libtorch_cuda.so is opened, not linked, so that nothing here may refer to a symbol of it. First choice are
// libtorch's device-neutral interfaces, in libc10 and libtorch_cpu. Where there is none, C functions of the
// CUDA runtime and of libtorch are found by dlsym below libtorch_cuda.so: plain names, which do not change
// with a compiler. The third way is the caching allocator's virtual functions, through its public header: a
// capture's memory must not be given to anyone else while the graph lives, and only the allocator can see to
// that. The header wants the names of a few CUDA types, which cuda_names/ declares.
//
// Why not at::cuda::CUDAGraph, found by its mangled names: its capture_begin puts the default CUDA generator
// into capture mode (2.11.0: getDefaultCUDAGenerator, register_graph, capture_prologue), so that a thread of
// the host's that draws random numbers meanwhile runs into an assertion. A captured step draws none.

#include "gpu.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <dlfcn.h>

#include <atomic>
#include <exception>
#include <memory>
#include <string>

#include "guarded.h"

namespace {

// What dlsym finds. Every function but the last two is the CUDA runtime's.
struct Runtime {
    decltype(&cudaStreamCreateWithFlags) stream_create;
    decltype(&cudaStreamSynchronize) stream_synchronize;
    decltype(&cudaStreamBeginCapture) begin_capture;
    decltype(&cudaStreamEndCapture) end_capture;
    decltype(&cudaGraphInstantiateWithFlags) instantiate;
    decltype(&cudaGraphLaunch) launch;
    decltype(&cudaGraphDestroy) graph_destroy;
    decltype(&cudaGraphExecDestroy) exec_destroy;
    decltype(&cudaGetErrorString) error_string;
    decltype(&cudaGetLastError) last_error;
    int32_t (*set_current_stream)(void *stream, int32_t device);
    int32_t (*current_stream)(int32_t device, void **stream);
};

std::atomic<const Runtime *> opened{nullptr};

template <typename Function>
void find(void *library, const char *name, Function &function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    TORCH_CHECK(function != nullptr, "libtorch_cuda.so and what it needs have no ", name);
}

const Runtime &runtime() {
    const Runtime *found = opened.load();
    TORCH_CHECK(found != nullptr, "the CUDA runtime was not opened");
    return *found;
}

void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    const Runtime &cuda = runtime();
    // Else the host's next CUDA call would report it.
    cuda.last_error();
    TORCH_CHECK(false, "CUDA error: ", cuda.error_string(error), " (", what, ")");
}

c10::impl::VirtualGuardImpl guard() {
    return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA);
}

c10::Device cuda_device(int32_t index) {
    return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
}

cudaStream_t current_stream(int32_t device) {
    void *stream = nullptr;
    const int32_t failed = runtime().current_stream(device, &stream);
    TORCH_CHECK(failed == 0, "libtorch cannot say which CUDA stream is current");
    return static_cast<cudaStream_t>(stream);
}

c10::cuda::CUDACachingAllocator::CUDAAllocator &allocator() {
    // Whatever allocates for CUDA is one of these.
    return *static_cast<c10::cuda::CUDACachingAllocator::CUDAAllocator *>(
        c10::getDeviceAllocator(c10::DeviceType::CUDA));
}

// The allocator's name for the memory of graphs, and how many graphs have it.
struct Pool {
    c10::DeviceIndex device;
    c10::MempoolId_t id{0, 0};
    size_t users = 0;

    void enter(cudaStream_t stream) {
        // The allocator counts its own names from 1. One that nobody has any more must not be used again.
        static std::atomic<c10::CaptureId_t> next{c10::CaptureId_t{1} << 62};
        if (users == 0) id = {next++, 0};
        allocator().beginAllocateToPool(device, id, [stream](cudaStream_t other) { return other == stream; });
        users++;
    }

    void leave() {
        users--;
        allocator().releasePool(device, id);
    }
};

}  // namespace

struct diffusion_gpu_pace {
    c10::Event turns[2] = {c10::Event(c10::DeviceType::CUDA), c10::Event(c10::DeviceType::CUDA)};
    size_t turn = 0;
};

struct diffusion_gpu_pool {
    std::shared_ptr<Pool> shared;
};

struct diffusion_gpu_graph {
    std::shared_ptr<Pool> pool;
    cudaStream_t stream;
    cudaGraphExec_t exec;
};

char *diffusion_gpu_open(void *library) {
    return guarded([&] {
        auto cuda = std::make_unique<Runtime>();
        find(library, "cudaStreamCreateWithFlags", cuda->stream_create);
        find(library, "cudaStreamSynchronize", cuda->stream_synchronize);
        find(library, "cudaStreamBeginCapture", cuda->begin_capture);
        find(library, "cudaStreamEndCapture", cuda->end_capture);
        find(library, "cudaGraphInstantiateWithFlags", cuda->instantiate);
        find(library, "cudaGraphLaunch", cuda->launch);
        find(library, "cudaGraphDestroy", cuda->graph_destroy);
        find(library, "cudaGraphExecDestroy", cuda->exec_destroy);
        find(library, "cudaGetErrorString", cuda->error_string);
        find(library, "cudaGetLastError", cuda->last_error);
        find(library, "torch_set_current_cuda_stream", cuda->set_current_stream);
        find(library, "aoti_torch_get_current_cuda_stream", cuda->current_stream);
        // Lives as long as the program.
        opened.store(cuda.release());
    });
}

char *diffusion_gpu_stream_new(int32_t device, void **stream) {
    return guarded([&] {
        guard().setDevice(cuda_device(device));
        cudaStream_t made = nullptr;
        check(runtime().stream_create(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        *stream = made;
    });
}

char *diffusion_gpu_stream_use(int32_t device, void *stream) {
    return guarded([&] {
        guard().setDevice(cuda_device(device));
        const int32_t failed = runtime().set_current_stream(stream, device);
        TORCH_CHECK(failed == 0 && current_stream(device) == stream,
                    "libtorch does not take a CUDA stream of ours");
    });
}

char *diffusion_gpu_stream_current(int32_t device, void **stream) {
    return guarded([&] { *stream = current_stream(device); });
}

char *diffusion_gpu_synchronize(int32_t device) {
    return guarded([&] {
        const auto impl = guard();
        impl.synchronizeStream(impl.getStream(cuda_device(device)));
    });
}

char *diffusion_gpu_pinned(tensor like, int64_t numel, tensor *out) {
    return guarded([&] { *out = new at::Tensor(at::empty({numel}, like->options().pinned_memory(true))); });
}

char *diffusion_gpu_copy(tensor to, tensor from) {
    return guarded([&] { to->copy_(*from, /*non_blocking=*/true); });
}

char *diffusion_gpu_pace_new(diffusion_gpu_pace **pace) {
    return guarded([&] { *pace = new diffusion_gpu_pace(); });
}

char *diffusion_gpu_pace_turn(diffusion_gpu_pace *pace, int32_t device) {
    return guarded([&] {
        pace->turns[pace->turn].record(guard().getStream(cuda_device(device)));
        pace->turn = 1 - pace->turn;
        pace->turns[pace->turn].synchronize();
    });
}

void diffusion_gpu_pace_free(diffusion_gpu_pace *pace) {
    delete pace;
}

diffusion_gpu_pool *diffusion_gpu_pool_new(int32_t device) {
    auto pool = std::make_shared<Pool>();
    pool->device = static_cast<c10::DeviceIndex>(device);
    return new diffusion_gpu_pool{std::move(pool)};
}

void diffusion_gpu_pool_free(diffusion_gpu_pool *pool) {
    delete pool;
}

char *diffusion_gpu_capture(diffusion_gpu_pool *handle, bool (*work)(void *), void *context,
                            diffusion_gpu_graph **out) {
    return guarded([&] {
        const Runtime &cuda = runtime();
        const std::shared_ptr<Pool> pool = handle->shared;
        const cudaStream_t stream = current_stream(pool->device);
        cudaGraph_t graph = nullptr;
        bool worked = false;
        pool->enter(stream);
        // Thread-local: other threads of the host may do what they like meanwhile.
        cudaError_t error = cuda.begin_capture(stream, cudaStreamCaptureModeThreadLocal);
        const char *what = "cudaStreamBeginCapture";
        if (error == cudaSuccess) {
            worked = work(context);
            error = cuda.end_capture(stream, &graph);
            what = "cudaStreamEndCapture";
        }
        allocator().endAllocateToPool(pool->device, pool->id);
        cudaGraphExec_t exec = nullptr;
        if (error == cudaSuccess && worked) {
            // The flag is for allocators that put their allocations into the graph.
            error = cuda.instantiate(&exec, graph, cudaGraphInstantiateFlagAutoFreeOnLaunch);
            what = "cudaGraphInstantiateWithFlags";
        }
        if (graph != nullptr) cuda.graph_destroy(graph);
        if (exec == nullptr) {
            pool->leave();
            check(error, what);
            TORCH_CHECK(false, "the work to be captured failed");
        }
        *out = new diffusion_gpu_graph{pool, stream, exec};
    });
}

char *diffusion_gpu_replay(const diffusion_gpu_graph *graph) {
    return guarded([&] { check(runtime().launch(graph->exec, graph->stream), "cudaGraphLaunch"); });
}

void diffusion_gpu_graph_free(diffusion_gpu_graph *graph) {
    char *error = guarded([&] {
        const Runtime &cuda = runtime();
        // It may be running still.
        cuda.stream_synchronize(graph->stream);
        cuda.exec_destroy(graph->exec);
        graph->pool->leave();
    });
    delete graph;
    if (error != nullptr) diffusion_shim_free(error);
}
