/* Trains a tiny model on one made-up picture, samples it and writes sample.ppm: libdiffusion from C99. */
#include <diffusion.h>
#include <stdio.h>

#define SIZE 16
#define CHECK(call) \
    if ((call) != DIFFUSION_OK) return fprintf(stderr, "%s: %s\n", #call, diffusion_last_error_message()), 1

int main(void) {
    diffusion_config config;
    diffusion_process *process;
    float image[3][SIZE][SIZE], sample[3][SIZE][SIZE], loss = 0;
    CHECK(diffusion_config_init(&config));
    config.image_size = SIZE;
    config.hidden_dims_len = 2;
    config.hidden_dims[0] = 32;
    config.hidden_dims[1] = 64;
    config.prediction_type = DIFFUSION_PREDICTION_SAMPLE; /* learns a single picture fastest */
    config.learning_rate = 0.002;
    CHECK(diffusion_create(&config, &process));

    for (int y = 0; y < SIZE; y++) /* red grows to the right, green downwards, blue falls to the right */
        for (int x = 0; x < SIZE; x++) {
            image[0][y][x] = 2.0f * (float)x / (SIZE - 1) - 1.0f;
            image[1][y][x] = 2.0f * (float)y / (SIZE - 1) - 1.0f;
            image[2][y][x] = -image[0][y][x];
        }
    for (int step = 0; step < 200; step++)
        CHECK(diffusion_train_step(process, &image[0][0][0], 3 * SIZE * SIZE, 1, &loss));
    CHECK(diffusion_sample_ddim(process, 1, 20, 0.0f, 1, &sample[0][0][0], 3 * SIZE * SIZE));

    FILE *file = fopen("sample.ppm", "w");
    if (file == NULL) return perror("sample.ppm"), 1;
    fprintf(file, "P3 %d %d 255\n", SIZE, SIZE);
    for (int i = 0; i < SIZE * SIZE; i++)
        for (int c = 0; c < 3; c++)
            fprintf(file, "%d ", (int)((sample[c][i / SIZE][i % SIZE] + 1.0f) * 127.5f));
    if (fclose(file) != 0) return perror("sample.ppm"), 1;
    printf("loss %g; open sample.ppm\n", (double)loss);
    CHECK(diffusion_destroy(process));
    return 0;
}
