/*
 * What a host can do wrong on purpose, to prove that the sanitizers watch: each mode but "good" must end in a
 * report.
 *
 *   proof good|write|read|leak
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "diffusion.h"

enum { IMAGE = 3 * 8 * 8 };

static int need(int32_t status) {
    if (status != DIFFUSION_OK) {
        fprintf(stderr, "%s\n", diffusion_last_error_message());
        exit(2);
    }
    return 1;
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    diffusion_config config;
    diffusion_process *process;
    /* One float less than the library is told. */
    float *images = calloc(IMAGE - (strcmp(mode, "read") == 0), sizeof *images);
    float *out = calloc(IMAGE - (strcmp(mode, "write") == 0), sizeof *out);
    char folder[] = "/tmp/diffusion-proof-XXXXXX", path[64];
    need(diffusion_config_init(&config));
    config.image_size = 8;
    config.hidden_dims_len = 2;
    config.hidden_dims[0] = config.hidden_dims[1] = 8;
    config.noise_steps = 10;
    config.device = DIFFUSION_DEVICE_CPU;
    if (images == NULL || out == NULL || mkdtemp(folder) == NULL) {
        return 2;
    }
    snprintf(path, sizeof path, "%s/model", folder);
    need(diffusion_create(&config, &process));
    need(diffusion_train_step(process, images, IMAGE, 1, NULL));
    need(diffusion_sample_ddim(process, 1, 3, 0, 0, out, IMAGE));
    need(diffusion_save(process, path));
    need(diffusion_destroy(process));
    need(diffusion_load(path, NULL, &process));
    need(diffusion_sample(process, 1, 0, out, IMAGE));
    need(diffusion_destroy(process));
    snprintf(path, sizeof path, "rm -r %s", folder);
    if (system(path) != 0) {
        return 2;
    }
    if (strcmp(mode, "leak") == 0) {
        out = NULL; /* nobody knows where it is any more */
    }
    free(images);
    free(out);
    return 0;
}
