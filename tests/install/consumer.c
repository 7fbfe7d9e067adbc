/* A C99 program that uses an installed libdiffusion: consumer MODEL PREFIX CHECKOUT */
#include <diffusion.h>

#include "images.h"

#define COUNT 3
#define LEN (3 * 32 * 32)

int main(int argc, char **argv) {
    static float images[COUNT * LEN];
    diffusion_process *process;
    int32_t devices = -1;
    if (argc != 4) return fprintf(stderr, "usage: %s MODEL PREFIX CHECKOUT\n", argv[0]), 2;
    if (diffusion_load(argv[1], NULL, &process) != DIFFUSION_OK ||
        diffusion_sample_ddim(process, COUNT, 8, 0.0f, 7, images, COUNT * LEN) != DIFFUSION_OK ||
        diffusion_destroy(process) != DIFFUSION_OK ||
        diffusion_device_count(DIFFUSION_DEVICE_CUDA, &devices) !=
            DIFFUSION_OK) /* looks for libtorch_cuda.so */
        return fprintf(stderr, "%s\n", diffusion_last_error_message()), 1;
    if (!are_pictures(images, COUNT, LEN) || strangers(argv[2], argv[3]) != 0) return 1;
    printf("%s: %d pictures\n", diffusion_version(), COUNT);
    return 0;
}
