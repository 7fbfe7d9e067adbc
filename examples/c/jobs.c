/* Samples three images as jobs while this thread does something else, shows one as it comes to be, cancels
 * another, and writes the first two as jobs.ppm: libdiffusion from C99. Usage: jobs [folder of a model,
 * default models/textures] */
#include <diffusion.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call) \
    if ((call) != DIFFUSION_OK) return fprintf(stderr, "%s: %s\n", #call, diffusion_last_error_message()), 1

enum { JOBS = 3, CANCELLED = 2 };

/* The mean of the bytes' distances from one another: how far a preview still is from the image. */
static double distance(const unsigned char *a, const unsigned char *b, size_t bytes) {
    double sum = 0;
    for (size_t i = 0; i < bytes; i++)
        sum += abs(a[i] - b[i]);
    return sum / (double)bytes;
}

int main(int argc, char **argv) {
    diffusion_config config;
    diffusion_sample_params params;
    diffusion_process *process;
    diffusion_job *jobs[JOBS];
    size_t bytes;
    int32_t state = DIFFUSION_JOB_QUEUED;
    CHECK(diffusion_config_init(&config));
    config.num_threads = 1; /* leaves the other cores to the program */
    CHECK(diffusion_load(argc > 1 ? argv[1] : "models/textures", &config, &process));
    CHECK(diffusion_get_config(process, &config));

    CHECK(diffusion_sample_params_init(&params));
    params.steps = 30;
    params.format = DIFFUSION_FORMAT_RGB8;
    for (int i = 0; i < JOBS; i++) { /* each returns at once; all three are computed together */
        params.seed = (uint64_t)i;
        CHECK(diffusion_sample_submit(process, &params, &jobs[i]));
    }
    CHECK(diffusion_sample_size(process, &params, &bytes));
    CHECK(diffusion_job_cancel(jobs[CANCELLED]));

    unsigned char *pixels = malloc(3 * bytes), *preview = pixels + 2 * bytes;
    uint64_t done = 0, total = 0, shown = 0, preview_done = 0;
    if (pixels == NULL) return perror("malloc"), 1;
    do { /* a program with frames to draw would draw one here, in place of the wait */
        int32_t status = diffusion_job_wait(jobs[0], 10);
        if (status != DIFFUSION_OK && status != DIFFUSION_ERROR_TIMEOUT) CHECK(status);
        CHECK(diffusion_job_poll(jobs[0], &state));
        CHECK(diffusion_job_progress(jobs[0], &done, &total));
        CHECK(diffusion_job_preview(jobs[0], preview, bytes,
                                    state == DIFFUSION_JOB_DONE ? NULL : &preview_done));
        if (done != shown) printf("step %u of %u\n", (unsigned)(shown = done), (unsigned)total);
    } while (state == DIFFUSION_JOB_QUEUED || state == DIFFUSION_JOB_RUNNING);

    for (int i = 0; i < CANCELLED; i++) {
        CHECK(diffusion_job_wait(jobs[i], -1));
        CHECK(diffusion_job_fetch(jobs[i], pixels + (size_t)i * bytes, bytes));
    }
    if (diffusion_job_wait(jobs[CANCELLED], -1) != DIFFUSION_ERROR_CANCELLED)
        return fputs("not cancelled\n", stderr), 1;
    printf("the third was cancelled; a finished job's preview is its image: distance %g\n",
           distance(preview, pixels, bytes));
    for (int i = 0; i < JOBS; i++)
        CHECK(diffusion_job_destroy(jobs[i]));

    FILE *file = fopen("jobs.ppm", "wb"); /* one above the other */
    if (file == NULL) return perror("jobs.ppm"), 1;
    fprintf(file, "P6 %d %d 255\n", (int)config.image_size, 2 * (int)config.image_size);
    fwrite(pixels, 1, 2 * bytes, file);
    if (fclose(file) != 0) return perror("jobs.ppm"), 1;
    puts("open jobs.ppm");
    free(pixels);
    CHECK(diffusion_destroy(process));
    return 0;
}
