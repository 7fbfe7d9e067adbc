/*
 * A host that loads the library as a plug-in loader does: opened and closed again and again, with processes
 * alive and jobs running when it is closed. Linked with nothing; argv[1] is the library's path.
 */
#include <dlfcn.h>

#include "check.h"

/* Of each function its type, taken from the header, and the one that dlsym found. */
#define FIND(library, name)                               \
    do {                                                  \
        void *found = dlsym(library, "diffusion_" #name); \
        CHECK(found != NULL);                             \
        memcpy(&name, &found, sizeof found);              \
    } while (0)

int main(int argc, char **argv) {
    int32_t (*config_init)(diffusion_config *) = NULL;
    int32_t (*create)(const diffusion_config *, diffusion_process **) = NULL;
    int32_t (*sample_ddim)(diffusion_process *, size_t, int32_t, float, uint64_t, float *, size_t) = NULL;
    int32_t (*sample_params_init)(diffusion_sample_params *) = NULL;
    int32_t (*sample_submit)(diffusion_process *, const diffusion_sample_params *, diffusion_job **) = NULL;
    int32_t (*destroy)(diffusion_process *) = NULL;
    uint32_t (*abi_version)(void) = NULL;
    float out[TINY_IMAGE], first[TINY_IMAGE];
    int round;
    if (argc != 2) {
        printf("dlopen: which library?\n");
        return 2;
    }
    memset(first, 0, sizeof first);
    SECTION("dlopen and dlclose, 40 times");
    for (round = 0; round < 40; round++) {
        diffusion_config config;
        diffusion_process *process = NULL;
        diffusion_sample_params params;
        diffusion_job *job = NULL;
        void *library = dlopen(argv[1], (round % 2 ? RTLD_NOW : RTLD_LAZY) | RTLD_LOCAL);
        if (!check_that(library != NULL, __FILE__, __LINE__, "dlopen: %s",
                        library == NULL ? dlerror() : "")) {
            break;
        }
        FIND(library, abi_version);
        FIND(library, config_init);
        FIND(library, create);
        FIND(library, sample_ddim);
        FIND(library, sample_params_init);
        FIND(library, sample_submit);
        FIND(library, destroy);
        if (check_failed != 0) {
            break;
        }
        CHECK_INT(abi_version(), ==, DIFFUSION_ABI_VERSION);
        CHECK_INT(config_init(&config), ==, DIFFUSION_OK);
        config.image_size = TINY_SIZE;
        config.hidden_dims_len = 2;
        config.hidden_dims[0] = 8;
        config.hidden_dims[1] = 16;
        config.noise_steps = TINY_STEPS;
        config.device = check_device();
        CHECK_INT(create(&config, &process), ==, DIFFUSION_OK);
        CHECK_INT(sample_ddim(process, 1, 3, 0, 9, out, TINY_IMAGE), ==, DIFFUSION_OK);
        if (round == 0) {
            memcpy(first, out, sizeof out);
        }
        CHECK(same_bits(first, out, sizeof out));
        if (round % 4 == 3) {
            /* Closed with a process alive and a job running: its thread must not lose its code. */
            CHECK_INT(sample_params_init(&params), ==, DIFFUSION_OK);
            params.num_samples = 64;
            params.steps = 50;
            CHECK_INT(sample_submit(process, &params, &job), ==, DIFFUSION_OK);
        } else {
            CHECK_INT(destroy(process), ==, DIFFUSION_OK);
        }
        CHECK_INT(dlclose(library), ==, 0);
    }
    return check_done("dlopen");
}
