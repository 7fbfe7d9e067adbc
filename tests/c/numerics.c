/*
 * The numbers: schedules against their formulas in double precision, add_noise against its own, the noise
 * against the normal distribution, the samplers against their papers' update written out here with
 * predict_noise as the network, and the rules of randomness: image i depends on (seed, i) and on nothing
 * else.
 */
#include "check.h"

#include <fenv.h>
#include <float.h>

#define PI 3.14159265358979323846

/* Two computations of the same image in batches of different sizes: other kernels, the same mathematics. */
#define SAME_IMAGE 1e-4

/* ------------------------------------------------------------------------------------------------- schedules
 * --- */

typedef struct schedule {
    int32_t kind, prediction;
    double start, end;
    int steps, rescale;
} schedule;

/* beta[steps] by the formulas of the papers. */
static void expected_betas(const schedule *s, double *beta) {
    int t, n = s->steps;
    for (t = 0; t < n; t++) {
        double u = n > 1 ? (double)t / (n - 1) : 0;
        double a = cos(((double)t / n + 0.008) / 1.008 * PI / 2),
               b = cos(((double)(t + 1) / n + 0.008) / 1.008 * PI / 2);
        double root = sqrt(s->start) + (sqrt(s->end) - sqrt(s->start)) * u;
        switch (s->kind) {
            case DIFFUSION_SCHEDULE_COSINE:
                beta[t] = fmin(fmax(1 - (b * b) / (a * a), s->start), s->end);
                break;
            case DIFFUSION_SCHEDULE_LINEAR:
                beta[t] = s->start + (s->end - s->start) * u;
                break;
            case DIFFUSION_SCHEDULE_COSINE_RAMP:
                beta[t] = s->start + (s->end - s->start) / 2 * (1 - cos(PI * u));
                break;
            case DIFFUSION_SCHEDULE_SCALED_LINEAR:
                beta[t] = root * root;
                break;
            default: /* sigmoid, over [-6, 6] as in diffusers */
                beta[t] = s->start + (s->end - s->start) / (1 + exp(-(-6 + 12 * u)));
                break;
        }
    }
}

/* Zero terminal SNR (arXiv 2305.08891, algorithm 1): sqrt(abar) shifted to end at 0 and scaled to begin as it
 * did. */
static void rescale(double *beta, int n) {
    double *root = must_alloc((size_t)n * sizeof *root), product = 1, first, last;
    int t;
    for (t = 0; t < n; t++) {
        root[t] = sqrt(product *= 1 - beta[t]);
    }
    first = root[0];
    last = root[n - 1];
    for (t = 0; t < n; t++) {
        root[t] = (root[t] - last) * first / (first - last);
    }
    for (t = n - 1; t > 0; t--) {
        beta[t] = 1 - (root[t] * root[t]) / (root[t - 1] * root[t - 1]);
    }
    beta[0] = 1 - root[0] * root[0];
    free(root);
}

/* Every table against the given betas: one rounding to float, 6e-8 of the value. */
static void check_tables(diffusion_process *process, const double *beta, int n, const char *name) {
    static const char *const tables[] = {"beta", "alpha", "alpha_cumprod", "sqrt_alpha_cumprod",
                                         "sqrt_one_minus_alpha_cumprod"};
    float *got = must_guard((size_t)n * sizeof *got);
    int32_t table;
    for (table = 0; table < 5; table++) {
        double product = 1, worst = 0;
        int t, at = 0;
        if (!OK(diffusion_get_schedule(process, table, got, (size_t)n))) {
            continue;
        }
        for (t = 0; t < n; t++) {
            double want, off;
            product *= 1 - beta[t];
            want = table == 0   ? beta[t]
                   : table == 1 ? 1 - beta[t]
                   : table == 2 ? product
                   : table == 3 ? sqrt(product)
                                : sqrt(1 - product);
            off = fabs(got[t] - want) / (fabs(want) > 1e-30 ? fabs(want) : 1e-30);
            if (want == 0) {
                off = got[t] == 0 ? 0 : HUGE_VAL;
            }
            if (!(off <= worst)) {
                worst = off;
                at = t;
            }
        }
        check_that(worst < 1e-7, __FILE__, __LINE__, "%s, %d steps: %s[%d] is %.9g, off by %.3g of its value",
                   name, n, tables[table], at, got[at], worst);
    }
}

static void test_schedules(void) {
    static const char *const names[] = {"cosine", "linear", "cosine ramp", "scaled linear", "sigmoid"};
    static const int lengths[] = {1, 2, 3, 7, 50, 1000};
    static const double ends[][2] = {{1e-4, 0.02}, {1e-4, 0.999}, {0.00085, 0.012}, {0.3, 0.5}};
    double *beta = must_alloc(1000 * sizeof *beta);
    diffusion_config config = tiny_config();
    diffusion_process *process;
    float table[50];
    size_t l, e;
    int32_t kind;
    int t;
    SECTION("schedules");
    config.hidden_dims_len = 1;
    config.layers_per_block = 1;
    config.attention_levels = 0;
    for (kind = DIFFUSION_SCHEDULE_COSINE; kind <= DIFFUSION_SCHEDULE_SIGMOID; kind++) {
        for (l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            for (e = 0; e < sizeof ends / sizeof *ends; e++) {
                schedule s = {0, 0, 0, 0, 0, 0};
                s.kind = kind;
                s.start = config.beta_start = ends[e][0];
                s.end = config.beta_end = ends[e][1];
                s.steps = config.noise_steps = lengths[l];
                config.beta_schedule = kind;
                if (e > 0 && l % 2 == 1) {
                    continue; /* the corner cases of one, the lengths of the other: not all pairs */
                }
                if (OK(diffusion_create(&config, &process))) {
                    expected_betas(&s, beta);
                    check_tables(process, beta, s.steps, names[kind]);
                    OK(diffusion_destroy(process));
                }
            }
        }
    }
    /* The clip: with 0.02 most of the cosine's betas are above it, with 0.05 all of the first below. */
    config.noise_steps = 50;
    config.beta_schedule = DIFFUSION_SCHEDULE_COSINE;
    config.beta_start = 0.05;
    config.beta_end = 0.1;
    process = must_create(&config);
    OK(diffusion_get_schedule(process, DIFFUSION_TABLE_BETA, table, 50));
    CHECK(table[0] == 0.05f && table[49] == 0.1f);
    OK(diffusion_destroy(process));

    /* A table of betas: taken as it is, not sorted, 1 at the end allowed. */
    for (t = 0; t < 50; t++) {
        beta[t] = 0.001 + 0.01 * ((t * 7) % 50) / 50.0;
    }
    beta[49] = 1;
    OK(diffusion_create_with_betas(&config, beta, 50, &process));
    check_tables(process, beta, 50, "given");
    OK(diffusion_get_schedule(process, DIFFUSION_TABLE_ALPHA_CUMPROD, table, 50));
    CHECK(table[49] == 0);
    config.struct_size = sizeof config;
    OK(diffusion_get_config(process, &config));
    CHECK_INT(config.beta_schedule, ==, DIFFUSION_SCHEDULE_GIVEN);
    OK(diffusion_destroy(process));

    for (kind = DIFFUSION_SCHEDULE_COSINE; kind <= DIFFUSION_SCHEDULE_SIGMOID; kind++) {
        schedule s = {0, 0, 1e-4, 0.02, 50, 1};
        s.kind = kind;
        config = tiny_config();
        config.beta_schedule = kind;
        config.beta_start = s.start;
        config.beta_end = s.end;
        config.prediction_type = DIFFUSION_PREDICTION_VELOCITY;
        config.rescale_betas_zero_snr = 1;
        if (OK(diffusion_create(&config, &process))) {
            expected_betas(&s, beta);
            rescale(beta, 50);
            OK(diffusion_get_schedule(process, DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD, table, 50));
            CHECK(table[49] == 0);
            OK(diffusion_get_schedule(process, DIFFUSION_TABLE_SQRT_ONE_MINUS_ALPHA_CUMPROD, table, 50));
            CHECK(table[49] == 1);
            OK(diffusion_get_schedule(process, DIFFUSION_TABLE_BETA, table, 50));
            for (t = 0; t < 50; t++) {
                CHECK_NEAR(table[t], beta[t], 1e-6);
            }
            OK(diffusion_destroy(process));
        }
    }
    free(beta);
}

/* What was asked for and what the defaults became. */
static void test_config_read_back(void) {
    diffusion_config config = tiny_config(), got;
    diffusion_process *process;
    SECTION("the config read back");
    config.dropout = 0.25;
    config.ema_decay = 0.5;
    config.seed = UINT64_MAX;
    config.optimizer = DIFFUSION_OPTIMIZER_ADAMW;
    config.learning_rate = 3e-4;
    config.weight_decay = 0.125;
    config.gradient_clip = 2;
    config.adam_beta1 = 0.8;
    config.adam_beta2 = 0.99;
    config.adam_epsilon = 1e-7;
    config.max_batch = 5;
    config.num_threads = 1;
    config.norm_num_groups = 4;
    config.attention_levels = 3;
    config.attention_head_dim = 4;
    config.layers_per_block = 1;
    config.beta_schedule = DIFFUSION_SCHEDULE_SIGMOID;
    config.prediction_type = DIFFUSION_PREDICTION_SAMPLE;
    process = must_create(&config);
    memset(&got, 0, sizeof got);
    got.struct_size = sizeof got;
    OK(diffusion_get_config(process, &got));
#define SAME(field) CHECK_NEAR((double)got.field, (double)config.field, 0)
    SAME(struct_size);
    SAME(image_size);
    SAME(channels);
    SAME(hidden_dims_len);
    SAME(hidden_dims[0]);
    SAME(hidden_dims[1]);
    SAME(beta_start);
    SAME(beta_end);
    SAME(noise_steps);
    SAME(beta_schedule);
    SAME(prediction_type);
    SAME(rescale_betas_zero_snr);
    SAME(device);
    SAME(device_index);
    SAME(num_threads);
    SAME(max_batch);
    SAME(layers_per_block);
    SAME(attention_levels);
    SAME(attention_head_dim);
    SAME(norm_num_groups);
    SAME(dropout);
    SAME(optimizer);
    SAME(mixed_precision);
    SAME(learning_rate);
    SAME(adam_beta1);
    SAME(adam_beta2);
    SAME(adam_epsilon);
    SAME(weight_decay);
    SAME(gradient_clip);
    SAME(ema_decay);
#undef SAME
    CHECK(got.seed == config.seed);
    OK(diffusion_destroy(process));

    config = tiny_config();
    config.device = DIFFUSION_DEVICE_AUTO;
    process = must_create(&config);
    OK(diffusion_get_config(process, &got));
    CHECK(got.device == DIFFUSION_DEVICE_CPU || got.device == DIFFUSION_DEVICE_CUDA);
    CHECK_INT(got.norm_num_groups, ==, 2);  /* four channels a group of the first level's 8 */
    CHECK_INT(got.attention_levels, ==, 1); /* 8x8 is the first level of at most 16x16 */
    CHECK_INT(got.num_threads, >, 0);
    CHECK_INT(got.max_batch, >, 0);
    OK(diffusion_destroy(process));
}

/* ------------------------------------------------------------------------------------------------------
 * noise --- */

static void test_add_noise(void) {
    enum { BATCH = 9 };
    diffusion_config config = tiny_config();
    diffusion_process *process = must_create(&config), *other;
    static float images[BATCH * TINY_IMAGE], noisy[BATCH * TINY_IMAGE], noise[BATCH * TINY_IMAGE];
    static float again[BATCH * TINY_IMAGE], again_noise[BATCH * TINY_IMAGE];
    static const int64_t timesteps[BATCH] = {0, 1, 24, 25, 48, 49, 49, 0, 0};
    float a[TINY_STEPS], s[TINY_STEPS];
    double worst = 0;
    size_t i, j, n = BATCH * TINY_IMAGE;
    SECTION("add_noise: its formula, and what the noise depends on");
    fill_random(images, n, 5);
    OK(diffusion_get_schedule(process, DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD, a, TINY_STEPS));
    OK(diffusion_get_schedule(process, DIFFUSION_TABLE_SQRT_ONE_MINUS_ALPHA_CUMPROD, s, TINY_STEPS));
    OK(diffusion_add_noise(process, images, n, timesteps, BATCH, 42, noisy, n, noise, n));
    for (i = 0; i < BATCH; i++) {
        for (j = i * TINY_IMAGE; j < (i + 1) * TINY_IMAGE; j++) {
            double want = (double)a[timesteps[i]] * images[j] + (double)s[timesteps[i]] * noise[j];
            worst = fmax(worst, fabs(noisy[j] - want));
        }
    }
    CHECK_BELOW(worst, 1e-6);

    /* The noise of image i is (seed, i)'s: whatever the images, the timesteps, the batch, the process. */
    for (i = 1; i < BATCH; i += 3) {
        static const int64_t other_times[BATCH] = {3, 3, 3, 3, 3, 3, 3, 3, 3};
        OK(diffusion_add_noise(process, noisy, i * TINY_IMAGE, other_times, i, 42, again, i * TINY_IMAGE,
                               again_noise, i * TINY_IMAGE));
        CHECK(same_bits(again_noise, noise, i * TINY_IMAGE * sizeof(float)));
    }
    config.seed = 99;
    config.noise_steps = 60;
    config.hidden_dims[1] = 24;
    other = must_create(&config);
    OK(diffusion_add_noise(other, images, n, timesteps, BATCH, 42, again, n, again_noise, n));
    CHECK(same_bits(again_noise, noise, sizeof noise));
    OK(diffusion_destroy(other));
    OK(diffusion_add_noise(process, images, n, timesteps, BATCH, 43, again, n, again_noise, n));
    CHECK(max_difference(again_noise, noise, n) > 1);
    for (i = 1; i < BATCH; i++) {
        CHECK(max_difference(noise, noise + i * TINY_IMAGE, TINY_IMAGE) > 1);
        /* (43, i) is not (42, i + 1) either. */
        CHECK(max_difference(again_noise + (i - 1) * TINY_IMAGE, noise + i * TINY_IMAGE, TINY_IMAGE) > 1);
    }

    /* In place: noisy is images itself. */
    OK(diffusion_add_noise(process, images, n, timesteps, BATCH, 42, again, n, again_noise, n));
    CHECK(same_bits(again, noisy, sizeof noisy));
    OK(diffusion_add_noise(process, images, n, timesteps, BATCH, 42, images, n, again_noise, n));
    CHECK(same_bits(images, noisy, sizeof noisy) && same_bits(again_noise, noise, sizeof noise));
    OK(diffusion_destroy(process));
}

/* The distance of the values' distribution from N(0, 1)'s, times sqrt(n); above 2.5 once in a hundred
 * thousand. */
static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double kolmogorov(const float *values, size_t n) {
    float *sorted = must_alloc(n * sizeof *sorted);
    double largest = 0;
    size_t i;
    memcpy(sorted, values, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_value);
    for (i = 0; i < n; i++) {
        double normal = 0.5 * erfc(-sorted[i] / sqrt(2.0));
        largest = fmax(
            largest, fmax(fabs(normal - (double)i / (double)n), fabs((double)(i + 1) / (double)n - normal)));
    }
    free(sorted);
    return largest * sqrt((double)n);
}

/* The correlation of a[n] and b[n], times sqrt(n): beyond 5 once in two million where there is none. */
static double correlation(const float *a, const float *b, size_t n) {
    double sum = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        sum += (double)a[i] * b[i];
    }
    return sum / sqrt((double)n);
}

static void test_noise_statistics(void) {
    enum { SIZE = 32, IMAGE = 3 * SIZE * SIZE, BATCH = 64, N = BATCH * IMAGE };
    static const int64_t points[] = {0, 500, 999};
    static const uint64_t seeds[] = {0, 1, 12345, UINT64_MAX};
    diffusion_config config = tiny_config();
    diffusion_process *process;
    float *images = must_alloc(N * sizeof(float)), *noisy = must_alloc(N * sizeof(float));
    float *noise = must_alloc(N * sizeof(float)), *before = must_alloc(N * sizeof(float)), a[1000], s[1000];
    int64_t timesteps[BATCH];
    double root = sqrt((double)N);
    size_t p, i, k;
    SECTION("statistics of add_noise at the first, a middle and the last timestep; of the noise itself");
    config.image_size = SIZE;
    config.noise_steps = 1000;
    process = must_create(&config);
    OK(diffusion_get_schedule(process, DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD, a, 1000));
    OK(diffusion_get_schedule(process, DIFFUSION_TABLE_SQRT_ONE_MINUS_ALPHA_CUMPROD, s, 1000));
    for (i = 0; i < N; i++) {
        images[i] = 0.5f;
    }
    for (p = 0; p < 3; p++) {
        double mean = 0, square = 0;
        for (i = 0; i < BATCH; i++) {
            timesteps[i] = points[p];
        }
        OK(diffusion_add_noise(process, images, N, timesteps, BATCH, 7, noisy, N, noise, N));
        for (i = 0; i < N; i++) {
            mean += noisy[i];
        }
        mean /= N;
        for (i = 0; i < N; i++) {
            square += (noisy[i] - mean) * (noisy[i] - mean);
        }
        CHECK_NEAR(mean, 0.5 * a[points[p]], 5 * s[points[p]] / root);
        CHECK_NEAR(sqrt(square / N) / s[points[p]], 1, 5 / root / sqrt(2.0));
    }
    CHECK(s[0] < 0.05 && a[0] > 0.99 && a[999] < 0.01 && s[999] > 0.99);
    for (k = 0; k < sizeof seeds / sizeof *seeds; k++) {
        double moments[5] = {0, 0, 0, 0, 0}, largest = 0, power;
        int order;
        OK(diffusion_add_noise(process, images, N, timesteps, BATCH, seeds[k], noisy, N, noise, N));
        if (!CHECK(all_finite(noise, N))) {
            continue;
        }
        for (i = 0; i < N; i++) {
            for (order = 1, power = noise[i]; order < 5; order++, power *= noise[i]) {
                moments[order] += power / N;
            }
            largest = fmax(largest, fabs(noise[i]));
        }
        CHECK_NEAR(moments[1], 0, 5 * sqrt(1.0) / root);
        CHECK_NEAR(moments[2], 1, 5 * sqrt(2.0) / root);
        CHECK_NEAR(moments[3], 0, 5 * sqrt(15.0) / root);
        CHECK_NEAR(moments[4], 3, 5 * sqrt(96.0) / root);
        CHECK(largest > 3.8 && largest < 6.8);
        CHECK_BELOW(kolmogorov(noise, N), 2.5);
        /* Neighbours in a row, in a column, in channels, in images, in seeds. */
        CHECK_NEAR(correlation(noise, noise + 1, N - 1), 0, 5);
        CHECK_NEAR(correlation(noise, noise + 2, N - 2), 0, 5);
        CHECK_NEAR(correlation(noise, noise + SIZE, N - SIZE), 0, 5);
        CHECK_NEAR(correlation(noise, noise + SIZE * SIZE, N - SIZE * SIZE), 0, 5);
        CHECK_NEAR(correlation(noise, noise + IMAGE, N - IMAGE), 0, 5);
        if (k > 0) {
            CHECK_NEAR(correlation(noise, before, N), 0, 5);
        }
        memcpy(before, noise, N * sizeof *noise);
    }
    OK(diffusion_destroy(process));
    free(images);
    free(noisy);
    free(noise);
    free(before);
}

/* ----------------------------------------------------------------------------------------------------
 * network --- */

static void test_predict_noise(void) {
    enum { BATCH = 7 };
    diffusion_config config = tiny_config();
    diffusion_process *process = must_create(&config), *same, *other;
    static float images[BATCH * TINY_IMAGE], all[BATCH * TINY_IMAGE], out[BATCH * TINY_IMAGE],
        swapped[2 * TINY_IMAGE];
    int64_t timesteps[BATCH] = {0, 10, 20, 30, 40, 49, 49}, order[2];
    size_t i, n = BATCH * TINY_IMAGE;
    SECTION("predict_noise");
    fill_random(images, n, 11);
    OK(diffusion_predict_noise(process, images, n, timesteps, BATCH, all, n));
    CHECK(all_finite(all, n));
    CHECK(max_difference(all, images, n) > 1e-3);
    OK(diffusion_predict_noise(process, images, n, timesteps, BATCH, out, n));
    CHECK(same_bits(out, all, sizeof all));
    for (i = 0; i < BATCH; i++) {
        OK(diffusion_predict_noise(process, images + i * TINY_IMAGE, TINY_IMAGE, timesteps + i, 1, out,
                                   TINY_IMAGE));
        CHECK_BELOW(max_difference(out, all + i * TINY_IMAGE, TINY_IMAGE), SAME_IMAGE);
    }
    /* The two of a batch in the other order; then the same image at another timestep. */
    memcpy(swapped, images + 3 * TINY_IMAGE, TINY_IMAGE * sizeof(float));
    memcpy(swapped + TINY_IMAGE, images + 2 * TINY_IMAGE, TINY_IMAGE * sizeof(float));
    order[0] = timesteps[3];
    order[1] = timesteps[2];
    OK(diffusion_predict_noise(process, swapped, 2 * TINY_IMAGE, order, 2, out, 2 * TINY_IMAGE));
    CHECK_BELOW(max_difference(out, all + 3 * TINY_IMAGE, TINY_IMAGE), SAME_IMAGE);
    CHECK_BELOW(max_difference(out + TINY_IMAGE, all + 2 * TINY_IMAGE, TINY_IMAGE), SAME_IMAGE);
    order[0] = 0;
    OK(diffusion_predict_noise(process, swapped, TINY_IMAGE, order, 1, out, TINY_IMAGE));
    CHECK(max_difference(out, all + 3 * TINY_IMAGE, TINY_IMAGE) > 1e-3);
    /* Out may be where the images are: nothing is written before all is read. */
    memcpy(out, images, sizeof images);
    OK(diffusion_predict_noise(process, out, n, timesteps, BATCH, out, n));
    CHECK(same_bits(out, all, sizeof all));

    /* Weights are config.seed's. Dropout is for training alone. */
    config.dropout = 0.5;
    same = must_create(&config);
    OK(diffusion_predict_noise(same, images, n, timesteps, BATCH, out, n));
    CHECK(same_bits(out, all, sizeof all));
    config.seed++;
    other = must_create(&config);
    OK(diffusion_predict_noise(other, images, n, timesteps, BATCH, out, n));
    CHECK(max_difference(out, all, n) > 1e-3);
    OK(diffusion_destroy(process));
    OK(diffusion_destroy(same));
    OK(diffusion_destroy(other));
}

/* -------------------------------------------------------------------------------------------------
 * parameters --- */

/* The names that diffusers' UNet2DModel gives, with the shapes, for a small net; the order is the library's.
 */
typedef struct tensor {
    char name[128];
    int64_t shape[4];
} tensor;
static tensor expected[512];
static size_t expected_len;

static void expect(int64_t a, int64_t b, int64_t c, int64_t d, const char *format, ...) {
    va_list arguments;
    tensor *t = &expected[expected_len++];
    va_start(arguments, format);
    vsnprintf(t->name, sizeof t->name, format, arguments);
    va_end(arguments);
    t->shape[0] = a;
    t->shape[1] = b;
    t->shape[2] = c;
    t->shape[3] = d;
}

static void expect_resnet(const char *at, int index, int in, int out, int time) {
    expect(in, 1, 1, 1, "%s.resnets.%d.norm1.weight", at, index);
    expect(in, 1, 1, 1, "%s.resnets.%d.norm1.bias", at, index);
    expect(out, in, 3, 3, "%s.resnets.%d.conv1.weight", at, index);
    expect(out, 1, 1, 1, "%s.resnets.%d.conv1.bias", at, index);
    expect(out, time, 1, 1, "%s.resnets.%d.time_emb_proj.weight", at, index);
    expect(out, 1, 1, 1, "%s.resnets.%d.time_emb_proj.bias", at, index);
    expect(out, 1, 1, 1, "%s.resnets.%d.norm2.weight", at, index);
    expect(out, 1, 1, 1, "%s.resnets.%d.norm2.bias", at, index);
    expect(out, out, 3, 3, "%s.resnets.%d.conv2.weight", at, index);
    expect(out, 1, 1, 1, "%s.resnets.%d.conv2.bias", at, index);
    if (in != out) {
        expect(out, in, 1, 1, "%s.resnets.%d.conv_shortcut.weight", at, index);
        expect(out, 1, 1, 1, "%s.resnets.%d.conv_shortcut.bias", at, index);
    }
}

static void expect_attention(const char *at, int index, int width) {
    static const char *const linear[] = {"to_q", "to_k", "to_v", "to_out.0"};
    int i;
    expect(width, 1, 1, 1, "%s.attentions.%d.group_norm.weight", at, index);
    expect(width, 1, 1, 1, "%s.attentions.%d.group_norm.bias", at, index);
    for (i = 0; i < 4; i++) {
        expect(width, width, 1, 1, "%s.attentions.%d.%s.weight", at, index, linear[i]);
        expect(width, 1, 1, 1, "%s.attentions.%d.%s.bias", at, index, linear[i]);
    }
}

/* The whole net: `levels` widths, attention where the mask has a bit, and in the middle. Fills `expected`. */
static void expect_unet(int channels, const int32_t *widths, int levels, int layers, int mask, int middle) {
    int time = 4 * widths[0], i, j, width = widths[0], skips[64], n = 0;
    char at[64];
    expected_len = 0;
    expect(widths[0], channels, 3, 3, "conv_in.weight");
    expect(widths[0], 1, 1, 1, "conv_in.bias");
    expect(time, widths[0], 1, 1, "time_embedding.linear_1.weight");
    expect(time, 1, 1, 1, "time_embedding.linear_1.bias");
    expect(time, time, 1, 1, "time_embedding.linear_2.weight");
    expect(time, 1, 1, 1, "time_embedding.linear_2.bias");
    skips[n++] = width;
    for (i = 0; i < levels; i++) {
        snprintf(at, sizeof at, "down_blocks.%d", i);
        for (j = 0; j < layers; j++) {
            expect_resnet(at, j, width, widths[i], time);
            width = widths[i];
            skips[n++] = width;
            if (mask >> i & 1) {
                expect_attention(at, j, width);
            }
        }
        if (i + 1 < levels) {
            expect(width, width, 3, 3, "%s.downsamplers.0.conv.weight", at);
            expect(width, 1, 1, 1, "%s.downsamplers.0.conv.bias", at);
            skips[n++] = width;
        }
    }
    expect_resnet("mid_block", 0, width, width, time);
    expect_resnet("mid_block", 1, width, width, time);
    if (middle) {
        expect_attention("mid_block", 0, width);
    }
    for (i = 0; i < levels; i++) {
        int level = levels - 1 - i;
        snprintf(at, sizeof at, "up_blocks.%d", i);
        for (j = 0; j <= layers; j++) {
            expect_resnet(at, j, width + skips[--n], widths[level], time);
            width = widths[level];
            if (mask >> level & 1) {
                expect_attention(at, j, width);
            }
        }
        if (i + 1 < levels) {
            expect(width, width, 3, 3, "%s.upsamplers.0.conv.weight", at);
            expect(width, 1, 1, 1, "%s.upsamplers.0.conv.bias", at);
        }
    }
    expect(width, 1, 1, 1, "conv_norm_out.weight");
    expect(width, 1, 1, 1, "conv_norm_out.bias");
    expect(channels, width, 3, 3, "conv_out.weight");
    expect(channels, 1, 1, 1, "conv_out.bias");
}

static void check_parameters(diffusion_process *process) {
    diffusion_parameter p;
    size_t count = 0, i, j, k;
    OK(diffusion_parameter_count(process, &count));
    CHECK_INT(count, ==, expected_len);
    for (i = 0; i < count; i++) {
        int64_t product = 1;
        memset(&p, 0xA5, sizeof p);
        p.struct_size = sizeof p;
        if (!OK(diffusion_parameter_describe(process, i, &p))) {
            return;
        }
        CHECK(p.rank >= 1 && p.rank <= 4 && memchr(p.name, 0, sizeof p.name) != NULL);
        for (j = 0; j < expected_len && strcmp(expected[j].name, p.name) != 0; j++) {
        }
        if (!check_that(j < expected_len, __FILE__, __LINE__, "a parameter %s that diffusers has not",
                        p.name)) {
            continue;
        }
        for (k = 0; k < 4; k++) {
            check_that(p.shape[k] == expected[j].shape[k], __FILE__, __LINE__,
                       "%s: shape[%d] is %lld, should be %lld", p.name, (int)k, (long long)p.shape[k],
                       (long long)expected[j].shape[k]);
            product *= p.shape[k];
        }
        check_that((int64_t)p.len == product, __FILE__, __LINE__, "%s: len is %lld", p.name,
                   (long long)p.len);
        expected[j].name[0] = '-'; /* each is there once */
    }
}

/* Sets a whole tensor to one value, in the weights that are trained and in those that sample. */
static void set_weights(diffusion_process *process, const char *name, size_t len, float value) {
    float *values = must_alloc(len * sizeof *values);
    size_t i;
    for (i = 0; i < len; i++) {
        values[i] = value;
    }
    OK(diffusion_parameter_write(process, DIFFUSION_WEIGHTS_TRAINED, name, values, len));
    OK(diffusion_parameter_write(process, DIFFUSION_WEIGHTS_EMA, name, values, len));
    free(values);
}

/* The network answers with bias[channel] everywhere, whatever it is asked. 8 is tiny_config's first width. */
static void set_constant(diffusion_process *process, const float *bias, size_t channels) {
    set_weights(process, "conv_out.weight", channels * 8 * 9, 0);
    OK(diffusion_parameter_write(process, DIFFUSION_WEIGHTS_TRAINED, "conv_out.bias", bias, channels));
    OK(diffusion_parameter_write(process, DIFFUSION_WEIGHTS_EMA, "conv_out.bias", bias, channels));
}

static void test_parameters(void) {
    static const float bias[TINY_CHANNELS] = {0.25f, -1.5f, 3.0f};
    static const struct {
        int size, levels, mask, middle;
    } choices[] = {{32, 3, 2, 1}, {16, 2, 1, 1}, {64, 2, 0, 1}, {64, 3, 4, 1}, {128, 2, 0, 0}, {32, 1, 0, 1}};
    diffusion_config config = tiny_config();
    diffusion_process *process = must_create(&config);
    diffusion_parameter p;
    float image[TINY_IMAGE], out[TINY_IMAGE], before[TINY_IMAGE], *values, *again;
    int64_t timestep = 7;
    size_t i, count = 0, total = 0;
    SECTION("parameters: names, shapes, read, write, effect");
    expect_unet(3, config.hidden_dims, 2, 2, 1, 1);
    check_parameters(process);
    p.struct_size = sizeof p;
    OK(diffusion_parameter_describe(process, 0, &p));
    CHECK(strcmp(p.name, "conv_in.weight") == 0);
    CHECK_INT(p.rank, ==, 4);
    OK(diffusion_parameter_describe(process, 1, &p));
    CHECK(strcmp(p.name, "conv_in.bias") == 0);
    CHECK_INT(p.rank, ==, 1);
    OK(diffusion_parameter_count(process, &count));
    OK(diffusion_parameter_describe(process, count - 1, &p));
    CHECK(strcmp(p.name, "conv_out.bias") == 0);

    fill_random(image, TINY_IMAGE, 1);
    OK(diffusion_predict_noise(process, image, TINY_IMAGE, &timestep, 1, before, TINY_IMAGE));
    for (i = 0; i < count; i++) {
        OK(diffusion_parameter_describe(process, i, &p));
        values = must_guard(p.len * sizeof *values);
        again = must_guard(p.len * sizeof *again);
        OK(diffusion_parameter_read(process, DIFFUSION_WEIGHTS_TRAINED, p.name, values, p.len));
        CHECK(all_finite(values, p.len));
        OK(diffusion_parameter_read(process, DIFFUSION_WEIGHTS_EMA, p.name, again, p.len));
        CHECK(same_bits(values, again, p.len * sizeof *values)); /* no average: the weights themselves */
        OK(diffusion_parameter_write(process, DIFFUSION_WEIGHTS_TRAINED, p.name, values, p.len));
        fill_random(again, p.len, i + 1);
        OK(diffusion_parameter_write(process, DIFFUSION_WEIGHTS_TRAINED, p.name, again, p.len));
        memset(again, 0, p.len * sizeof *again);
        OK(diffusion_parameter_read(process, DIFFUSION_WEIGHTS_TRAINED, p.name, again, p.len));
        fill_random(values, p.len, i + 1);
        CHECK(same_bits(values, again, p.len * sizeof *values));
        OK(diffusion_predict_noise(process, image, TINY_IMAGE, &timestep, 1, out, TINY_IMAGE));
        check_that(max_difference(out, before, TINY_IMAGE) > 0 || strstr(p.name, "to_k.bias") != NULL,
                   __FILE__, __LINE__, "other values of %s change nothing",
                   p.name); /* softmax does not see the keys' bias */
        memcpy(before, out, sizeof out);
    }
    set_constant(process, bias, TINY_CHANNELS);
    OK(diffusion_predict_noise(process, image, TINY_IMAGE, &timestep, 1, out, TINY_IMAGE));
    for (i = 0; i < TINY_IMAGE; i++) {
        CHECK_NEAR(out[i], bias[i / (TINY_SIZE * TINY_SIZE)], 0);
    }
    OK(diffusion_destroy(process));

    /* One level, three levels; other attention. */
    config.hidden_dims_len = 1;
    config.attention_levels = 1;
    config.layers_per_block = 1;
    process = must_create(&config);
    expect_unet(3, config.hidden_dims, 1, 1, 1, 1);
    check_parameters(process);
    OK(diffusion_predict_noise(process, image, TINY_IMAGE, &timestep, 1, out, TINY_IMAGE));
    CHECK(all_finite(out, TINY_IMAGE));
    OK(diffusion_destroy(process));
    config.hidden_dims_len = 4;
    config.hidden_dims[2] = 24;
    config.hidden_dims[3] = 8;
    config.attention_levels = 5;
    config.attention_head_dim = 4;
    config.layers_per_block = 3;
    process = must_create(&config);
    expect_unet(3, config.hidden_dims, 4, 3, 5, 1);
    check_parameters(process);
    OK(diffusion_predict_noise(process, image, TINY_IMAGE, &timestep, 1, out, TINY_IMAGE));
    CHECK(all_finite(out, TINY_IMAGE));
    OK(diffusion_destroy(process));

    /* The choice of attention by size: the first level of at most 16x16, the middle of at most 32x32. */
    for (i = 0; i < sizeof choices / sizeof *choices; i++) {
        config = tiny_config();
        config.image_size = choices[i].size;
        config.hidden_dims_len = choices[i].levels;
        config.hidden_dims[2] = 16;
        config.layers_per_block = 1;
        process = must_create(&config);
        expect_unet(3, config.hidden_dims, choices[i].levels, 1, choices[i].mask, choices[i].middle);
        check_parameters(process);
        OK(diffusion_destroy(process));
    }

    OK(diffusion_config_init_cifar10(&config));
    config.device = check_device();
    process = must_create(&config);
    expect_unet(3, config.hidden_dims, 4, 2, 2, 1);
    check_parameters(process);
    OK(diffusion_parameter_count(process, &count));
    CHECK_INT(count, ==, 328);
    for (i = 0; i < count; i++) {
        OK(diffusion_parameter_describe(process, i, &p));
        total += p.len;
    }
    CHECK_INT(total, ==, 35746307);
    OK(diffusion_destroy(process));
}

/* --------------------------------------------------------------------------------------------------
 * randomness --- */

static diffusion_process *shared;       /* tiny_config, used by the tests below and by their threads */
static float reference[8 * TINY_IMAGE]; /* its images of seed 77, by DDIM in 10 steps */

static void *sample_in_thread(void *which) {
    size_t n = 1 + (size_t)(uintptr_t)which % 8, round;
    float *out = must_alloc(n * TINY_IMAGE * sizeof *out);
    fesetround(which == (void *)3 ? FE_UPWARD : FE_TONEAREST);
    for (round = 0; round < 4; round++) {
        memset(out, 0, n * TINY_IMAGE * sizeof *out);
        if (CHECK_STATUS(diffusion_sample_ddim(shared, n, 10, 0, 77, out, n * TINY_IMAGE), DIFFUSION_OK)) {
            CHECK_BELOW(max_difference(out, reference, n * TINY_IMAGE), SAME_IMAGE);
        }
    }
    free(out);
    return NULL;
}

/*
 * The noise that sampling starts from, of the first n images of a seed: a network that predicts the velocity
 * 0 and one step from abar = 0.01 make each image a tenth of it, which no clamp reaches.
 */
static void starting_noise(uint64_t seed, size_t n, float *noise) {
    static const float zero[TINY_CHANNELS];
    const double beta = 0.99;
    diffusion_config config = tiny_config();
    diffusion_process *process = NULL;
    size_t i;
    config.noise_steps = 1;
    config.prediction_type = DIFFUSION_PREDICTION_VELOCITY;
    if (!OK(diffusion_create_with_betas(&config, &beta, 1, &process))) {
        return;
    }
    set_constant(process, zero, TINY_CHANNELS);
    OK(diffusion_sample_ddim(process, n, 1, 0, seed, noise, n * TINY_IMAGE));
    for (i = 0; i < n * TINY_IMAGE; i++) {
        noise[i] *= 10;
    }
    OK(diffusion_destroy(process));
}

static void test_starting_noise(void) {
    enum { SEEDS = 256, M = SEEDS * TINY_IMAGE };
    float *noise = must_alloc(M * sizeof *noise), *other = must_alloc(M * sizeof *other);
    double mean = 0, square = 0;
    size_t i;
    SECTION("the noise that sampling starts from is normal");
    starting_noise(77, SEEDS, noise);
    for (i = 0; i < M; i++) {
        mean += noise[i] / M;
        square += (double)noise[i] * noise[i] / M;
    }
    CHECK_NEAR(mean, 0, 5 / sqrt((double)M));
    CHECK_NEAR(square, 1, 5 * sqrt(2.0 / M));
    CHECK_BELOW(kolmogorov(noise, M), 2.5);
    CHECK_NEAR(correlation(noise, noise + 1, M - 1), 0, 5);
    CHECK_NEAR(correlation(noise, noise + TINY_IMAGE, M - TINY_IMAGE), 0, 5);
    starting_noise(78, SEEDS, other);
    CHECK_NEAR(correlation(noise, other, M), 0, 5);
    free(noise);
    free(other);
}

static void test_ddim_is_determined(void) {
    static float out[8 * TINY_IMAGE], noise[8 * TINY_IMAGE], zeros[8 * TINY_IMAGE];
    static const int32_t batches[] = {1, 2, 3, 5, 8};
    uint64_t seeds[8] = {9, 8, 77, 6, 5, 77, 3, UINT64_MAX};
    diffusion_config config = tiny_config();
    diffusion_sample_params params;
    diffusion_process *other;
    pthread_t threads[8];
    size_t i, n = TINY_IMAGE;
    SECTION("DDIM: the same bits again, the same image in any batch, thread and company");
    OK(diffusion_sample_ddim(shared, 8, 10, 0, 77, reference, 8 * n));
    CHECK(all_in_range(reference, 8 * n));
    for (i = 1; i < 8; i++) {
        CHECK(max_difference(reference, reference + i * n, n) > 1e-2);
    }
    for (i = 0; i < 3; i++) {
        memset(out, 0, sizeof out);
        OK(diffusion_sample_ddim(shared, 8, 10, 0, 77, out, 8 * n));
        CHECK(same_bits(out, reference, sizeof out));
    }
    for (i = 1; i < 8; i++) {
        OK(diffusion_sample_ddim(shared, i, 10, 0, 77, out, i * n));
        CHECK_BELOW(max_difference(out, reference, i * n), SAME_IMAGE);
    }
    for (i = 0; i < sizeof batches / sizeof *batches; i++) {
        config.max_batch = batches[i];
        other = must_create(&config);
        OK(diffusion_sample_ddim(other, 8, 10, 0, 77, out, 8 * n));
        CHECK_BELOW(max_difference(out, reference, 8 * n), SAME_IMAGE);
        OK(diffusion_destroy(other));
    }
    config = tiny_config();
    config.num_threads = 1;
    other = must_create(&config);
    OK(diffusion_sample_ddim(other, 8, 10, 0, 77, out, 8 * n));
    CHECK_BELOW(max_difference(out, reference, 8 * n), SAME_IMAGE);
    OK(diffusion_destroy(other));
    for (i = 0; i < 8; i++) {
        CHECK(pthread_create(&threads[i], NULL, sample_in_thread, (void *)(uintptr_t)i) == 0);
    }
    for (i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
    }
    OK(diffusion_sample_ddim(shared, 8, 10, 0, 78, out, 8 * n));
    CHECK(max_difference(out, reference, n) > 1e-2);
    CHECK(max_difference(out, reference + n, n) > 1e-2);

    /* The long way is the same way. */
    params = sample_params(8, 10, 77);
    OK(diffusion_sample_with(shared, &params, out, sizeof out));
    CHECK(same_bits(out, reference, sizeof out));

    /* seeds[i] is what that seed gives as its image 0. */
    params.seeds = seeds;
    params.seeds_len = 8;
    params.seed = 1; /* of no effect */
    OK(diffusion_sample_with(shared, &params, out, sizeof out));
    CHECK_BELOW(max_difference(out + 2 * n, reference, n), SAME_IMAGE);
    CHECK_BELOW(max_difference(out + 5 * n, reference, n), SAME_IMAGE);
    OK(diffusion_sample_ddim(shared, 1, 10, 0, UINT64_MAX, noise, n));
    CHECK_BELOW(max_difference(out + 7 * n, noise, n), SAME_IMAGE);

    /* What the seed starts from, given as initial_noise, gives the same image; another seed then matters no
     * more. */
    starting_noise(77, 8, noise);
    params = sample_params(8, 10, 123);
    params.initial_noise = noise;
    params.initial_noise_len = 8 * n;
    OK(diffusion_sample_with(shared, &params, out, sizeof out));
    CHECK_BELOW(max_difference(out, reference, 8 * n), SAME_IMAGE);
    params.initial_noise = zeros;
    OK(diffusion_sample_with(shared, &params, out, sizeof out));
    CHECK(max_difference(out, reference, 8 * n) > 1e-2);
}

/* The host's rounding, its flushing of denormals and its traps are its own: the library computes as ever. */
static int traps_program(void) {
    diffusion_config config = tiny_config();
    diffusion_process *process = NULL;
    static float out[TINY_IMAGE];
    int64_t timestep = 3;
    feenableexcept(FE_DIVBYZERO | FE_INVALID |
                   FE_OVERFLOW); /* what debuggers, Delphi and some engines turn on */
    if (diffusion_create(&config, &process) != DIFFUSION_OK ||
        diffusion_add_noise(process, out, TINY_IMAGE, &timestep, 1, 0, out, TINY_IMAGE, out, TINY_IMAGE) ==
            DIFFUSION_ERROR_INTERNAL ||
        diffusion_sample(process, 1, 0, out, TINY_IMAGE) != DIFFUSION_OK ||
        diffusion_train_step(process, out, TINY_IMAGE, 1, NULL) != DIFFUSION_OK) {
        return 1;
    }
    return diffusion_destroy(process) != DIFFUSION_OK;
}

static void test_floating_point_modes(void) {
    static const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    static float out[8 * TINY_IMAGE], noise[TINY_IMAGE], plain[TINY_IMAGE], noisy[TINY_IMAGE],
        noisy_plain[TINY_IMAGE];
    diffusion_config config = tiny_config();
    float table[TINY_STEPS], table_plain[TINY_STEPS], loss, loss_plain;
    diffusion_process *other;
    int64_t timestep = 3;
    size_t i;
    int32_t which;
    SECTION("the caller's floating-point mode: of no effect, and left as it was");
    OK(diffusion_add_noise(shared, reference, TINY_IMAGE, &timestep, 1, 9, noisy_plain, TINY_IMAGE, plain,
                           TINY_IMAGE));
    other = must_create(&config);
    OK(diffusion_train_step(other, reference, 8 * TINY_IMAGE, 8, &loss_plain));
    OK(diffusion_destroy(other));
    for (i = 0; i < sizeof modes / sizeof *modes; i++) {
        fesetround(modes[i]);
        OK(diffusion_add_noise(shared, reference, TINY_IMAGE, &timestep, 1, 9, noisy, TINY_IMAGE, noise,
                               TINY_IMAGE));
        CHECK(same_bits(noise, plain, sizeof noise) && same_bits(noisy, noisy_plain, sizeof noisy));
        other = must_create(&config); /* and its thread must not inherit the mode */
        OK(diffusion_sample_ddim(other, 8, 10, 0, 77, out, 8 * TINY_IMAGE));
        CHECK(same_bits(out, reference, sizeof out));
        for (which = 0; which < 5; which++) {
            OK(diffusion_get_schedule(shared, which, table_plain, TINY_STEPS));
            OK(diffusion_get_schedule(other, which, table, TINY_STEPS));
            CHECK(same_bits(table, table_plain, sizeof table));
        }
        OK(diffusion_train_step(other, reference, 8 * TINY_IMAGE, 8, &loss));
        CHECK(same_bits(&loss, &loss_plain, sizeof loss));
        OK(diffusion_destroy(other));
        CHECK_INT(fegetround(), ==, modes[i]);
        fesetround(FE_TONEAREST);
    }
    CHECK_EXIT(run_self("traps", NULL, -1));
}

static void test_random_samplers_are_determined(void) {
    static float all[6 * TINY_IMAGE], out[6 * TINY_IMAGE];
    uint64_t seeds[6] = {4, 77, 4, 1, 77, 0};
    diffusion_sample_params params;
    size_t i, n = TINY_IMAGE;
    int32_t method;
    SECTION("DDPM and the other methods: repeatable, in range, the same image in any batch");
    OK(diffusion_sample(shared, 6, 77, all, 6 * n));
    CHECK(all_in_range(all, 6 * n));
    OK(diffusion_sample(shared, 6, 77, out, 6 * n));
    CHECK(same_bits(out, all, sizeof all));
    OK(diffusion_sample(shared, 2, 77, out, 2 * n));
    CHECK_BELOW(max_difference(out, all, 2 * n), SAME_IMAGE);
    OK(diffusion_sample(shared, 6, 78, out, 6 * n));
    CHECK(max_difference(out, all, n) > 1e-2);
    params = sample_params(6, 0, 77);
    params.method = DIFFUSION_METHOD_DDPM;
    OK(diffusion_sample_with(shared, &params, out, sizeof out));
    CHECK_BELOW(max_difference(out, all, 6 * n), SAME_IMAGE);
    for (method = DIFFUSION_METHOD_DDPM; method <= DIFFUSION_METHOD_HEUN; method++) {
        int32_t spacing;
        for (spacing = DIFFUSION_DEFAULT; spacing <= DIFFUSION_SPACING_KARRAS; spacing++) {
            params = sample_params(6, 9, 77);
            params.method = method;
            params.spacing = spacing;
            params.eta = 0.75;
            if (diffusion_sample_with(shared, &params, all, sizeof all) != DIFFUSION_OK) {
                /* Not every method has Karras' levels: then it says so, and no more. */
                check_that(spacing == DIFFUSION_SPACING_KARRAS, __FILE__, __LINE__,
                           "method %d, spacing %d: %s", (int)method, (int)spacing,
                           diffusion_last_error_message());
                check_message(__FILE__, __LINE__, "sample_with", "spacing", "3", NULL);
                continue;
            }
            check_that(all_in_range(all, 6 * n), __FILE__, __LINE__, "method %d, spacing %d: out of range",
                       (int)method, (int)spacing);
            OK(diffusion_sample_with(shared, &params, out, sizeof out));
            check_that(same_bits(out, all, sizeof all), __FILE__, __LINE__,
                       "method %d, spacing %d: other bits", (int)method, (int)spacing);
            params.num_samples = 2;
            OK(diffusion_sample_with(shared, &params, out, 2 * n * sizeof(float)));
            check_that(max_difference(out, all, 2 * n) < SAME_IMAGE, __FILE__, __LINE__,
                       "method %d, spacing %d: another image in a smaller batch: off by %g", (int)method,
                       (int)spacing, max_difference(out, all, 2 * n));
            params.num_samples = 6;
            params.seeds = seeds;
            params.seeds_len = 6;
            OK(diffusion_sample_with(shared, &params, out, sizeof out));
            for (i = 0; i < 6; i++) {
                if (seeds[i] == 77) {
                    check_that(max_difference(out + i * n, all, n) < SAME_IMAGE, __FILE__, __LINE__,
                               "method %d, spacing %d: seeds[%d] = 77 is not seed 77's image 0", (int)method,
                               (int)spacing, (int)i);
                }
            }
            check_that(max_difference(out, all, n) > 1e-3, __FILE__, __LINE__,
                       "method %d, spacing %d: seeds ignored", (int)method, (int)spacing);
        }
    }
}

/* ---------------------------------------------------------------------------------------------------
 * samplers --- */

/* The timesteps that a spacing chooses, from the noisiest, as the header says and, where it can be right,
 * diffusers. */
static void spaced(int32_t spacing, int noise_steps, int steps, int64_t *times) {
    int i;
    for (i = 0; i < steps; i++) {
        double ratio = (double)noise_steps / steps;
        int64_t t;
        if (spacing == DIFFUSION_SPACING_TRAILING ||
            spacing == DIFFUSION_DEFAULT) { /* a new process's default */
            t = (int64_t)nearbyint(noise_steps - i * ratio) - 1;
        } else if (spacing == DIFFUSION_SPACING_LINSPACE) {
            /* one step: from pure noise, where numpy's linspace would begin, and end, at 0 */
            t = steps == 1 ? noise_steps - 1
                           : (int64_t)nearbyint((double)(steps - 1 - i) * (noise_steps - 1) / (steps - 1));
        } else {
            t = (int64_t)(noise_steps / steps) * (steps - 1 - i);
        }
        times[i] = t;
    }
}

/* The clean image and the noise in x[n] at a noise level, from the network's answer m[n]. */
static void split(int32_t prediction, double a, double s, const double *x, const float *m, size_t n,
                  double *x0, double *eps) {
    size_t i;
    for (i = 0; i < n; i++) {
        if (prediction == DIFFUSION_PREDICTION_EPSILON) {
            eps[i] = m[i];
            x0[i] = (x[i] - s * m[i]) / a;
        } else if (prediction == DIFFUSION_PREDICTION_SAMPLE) {
            x0[i] = m[i];
            eps[i] = (x[i] - a * m[i]) / s;
        } else {
            x0[i] = a * x[i] - s * m[i];
            eps[i] = a * m[i] + s * x[i];
        }
    }
}

/* DDIM with eta 0 (arXiv 2010.02502, equation 12) in double precision, the network being predict_noise. */
static void ddim_by_hand(diffusion_process *process, int32_t prediction, const double *abar, int32_t spacing,
                         int noise_steps, int steps, int clip, int again, const float *start, size_t n,
                         float *out) {
    double *x = must_alloc(n * sizeof *x), *x0 = must_alloc(n * sizeof *x0),
           *eps = must_alloc(n * sizeof *eps);
    float *in = must_alloc(n * sizeof *in), *answer = must_alloc(n * sizeof *answer);
    int64_t *times = must_alloc((size_t)steps * sizeof *times);
    size_t i;
    int k;
    spaced(spacing, noise_steps, steps, times);
    for (i = 0; i < n; i++) {
        x[i] = start[i];
    }
    for (k = 0; k < steps; k++) {
        double now = abar[times[k]], next = k + 1 < steps ? abar[times[k + 1]] : 1;
        double a = sqrt(now), s = sqrt(1 - now);
        for (i = 0; i < n; i++) {
            in[i] = (float)x[i];
        }
        OK(diffusion_predict_noise(process, in, n, times + k, 1, answer, n));
        split(prediction, a, s, x, answer, n, x0, eps);
        for (i = 0; i < n; i++) {
            if (clip) {
                x0[i] = fmin(fmax(x0[i], -1), 1);
            }
            if (again) {
                eps[i] = (x[i] - a * x0[i]) / s;
            }
            x[i] = sqrt(next) * x0[i] + sqrt(1 - next) * eps[i];
        }
    }
    for (i = 0; i < n; i++) {
        out[i] = (float)fmin(fmax(x[i], -1), 1);
    }
    free(x);
    free(x0);
    free(eps);
    free(in);
    free(answer);
    free(times);
}

static void test_ddim_formula(void) {
    static const int steps[] = {1, 2, 5, 7, 10, 30, 49, 50};
    static const int32_t spacings[] = {DIFFUSION_DEFAULT, DIFFUSION_SPACING_LEADING,
                                       DIFFUSION_SPACING_TRAILING, DIFFUSION_SPACING_LINSPACE};
    diffusion_config config = tiny_config();
    diffusion_sample_params params;
    schedule s = {DIFFUSION_SCHEDULE_LINEAR, 0, 1e-3, 0.2, TINY_STEPS, 0};
    double abar[TINY_STEPS], product = 1;
    float start[TINY_IMAGE], got[TINY_IMAGE], want[TINY_IMAGE];
    size_t i, j, n = TINY_IMAGE;
    int32_t prediction;
    int t, variant;
    SECTION("DDIM by hand: every prediction type, spacing, and steps that do not divide noise_steps");
    config.beta_schedule = s.kind;
    config.beta_start = s.start;
    config.beta_end = s.end;
    expected_betas(&s, abar);
    for (t = 0; t < TINY_STEPS; t++) {
        abar[t] = product *= 1 - abar[t];
    }
    fill_random(start, n, 6);
    for (i = 0; i < n; i++) {
        start[i] *= 1.7f;
    }
    for (prediction = DIFFUSION_PREDICTION_EPSILON; prediction <= DIFFUSION_PREDICTION_VELOCITY;
         prediction++) {
        diffusion_process *process;
        config.prediction_type = prediction;
        process = must_create(&config);
        for (i = 0; i < sizeof steps / sizeof *steps; i++) {
            for (j = 0; j < sizeof spacings / sizeof *spacings; j++) {
                /* 0: clipped by default; 1: not clipped; 2: the noise recomputed from the clipped estimate.
                 */
                for (variant = 0; variant < 3; variant++) {
                    if (variant > 0 && steps[i] != 7 && steps[i] != 10) {
                        continue;
                    }
                    params = sample_params(1, steps[i], 5);
                    params.spacing = spacings[j];
                    params.initial_noise = start;
                    params.initial_noise_len = n;
                    params.clip_sample = variant == 1 ? 0 : variant == 2 ? 1 : DIFFUSION_DEFAULT;
                    params.use_clipped_model_output = variant == 2;
                    OK(diffusion_sample_with(process, &params, got, sizeof got));
                    ddim_by_hand(process, prediction, abar, spacings[j], TINY_STEPS, steps[i], variant != 1,
                                 variant == 2, start, n, want);
                    /* x0 = (x - s eps) / a multiplies float's rounding by 1 / a, here 14, at every early
                     * step. */
                    check_that(max_difference(got, want, n) < 5e-4, __FILE__, __LINE__,
                               "prediction %d, %d steps, spacing %d, variant %d: off by %g", (int)prediction,
                               steps[i], (int)spacings[j], variant, max_difference(got, want, n));
                }
            }
        }
        OK(diffusion_destroy(process));
    }
}

/* A network that knows the image: every method must end at it, from any noise. */
static void test_methods_reach_the_image(void) {
    static const float target[TINY_CHANNELS] = {0.25f, -0.75f, 0.5f};
    diffusion_config config = tiny_config();
    diffusion_process *process;
    diffusion_sample_params params;
    float out[2 * TINY_IMAGE];
    int32_t method;
    size_t i, k;
    static const int32_t steps[] = {1, 2, 7, 25, 50};
    SECTION("every method ends at the image that the network names");
    config.prediction_type = DIFFUSION_PREDICTION_SAMPLE;
    process = must_create(&config);
    set_constant(process, target, TINY_CHANNELS);
    for (method = DIFFUSION_METHOD_DDPM; method <= DIFFUSION_METHOD_HEUN; method++) {
        for (k = 0; k < sizeof steps / sizeof *steps; k++) {
            double worst = 0;
            params = sample_params(2, steps[k], 3);
            params.method = method;
            if (!OK(diffusion_sample_with(process, &params, out, sizeof out))) {
                continue;
            }
            for (i = 0; i < 2 * TINY_IMAGE; i++) {
                worst = fmax(worst, fabs(out[i] - target[i / (TINY_SIZE * TINY_SIZE) % TINY_CHANNELS]));
            }
            check_that(worst < 1e-5, __FILE__, __LINE__, "method %d in %d steps: off by %g", (int)method,
                       (int)steps[k], worst);
        }
    }
    OK(diffusion_destroy(process));
}

/* Schedules whose last step is pure noise, abar = 0: nothing may be divided by it. */
static void test_pure_noise_at_the_end(void) {
    double betas[TINY_STEPS];
    float out[2 * TINY_IMAGE];
    int i;
    int32_t method, prediction;
    SECTION("abar = 0 at the last timestep: every method and prediction type, finite and in range");
    for (i = 0; i < TINY_STEPS; i++) {
        betas[i] = i + 1 == TINY_STEPS ? 1 : 0.05;
    }
    for (prediction = DIFFUSION_PREDICTION_EPSILON; prediction <= DIFFUSION_PREDICTION_VELOCITY;
         prediction++) {
        diffusion_config config = tiny_config();
        diffusion_process *process = NULL;
        config.prediction_type = prediction;
        if (!OK(diffusion_create_with_betas(&config, betas, TINY_STEPS, &process))) {
            continue;
        }
        for (method = DIFFUSION_METHOD_DDPM; method <= DIFFUSION_METHOD_HEUN; method++) {
            int32_t clip;
            for (clip = 0; clip < 2; clip++) {
                diffusion_sample_params params = sample_params(2, 10, 3);
                params.method = method;
                params.clip_sample = clip;
                params.eta = 0.5;
                OK(diffusion_sample_with(process, &params, out, sizeof out));
                check_that(all_in_range(out, 2 * TINY_IMAGE), __FILE__, __LINE__,
                           "prediction %d, method %d, clip %d: out of range", (int)prediction, (int)method,
                           (int)clip);
            }
        }
        OK(diffusion_destroy(process));
    }
}

/*
 * Dynamic thresholding (arXiv 2205.11487): an estimate with channels 3, 1.5 and 0.3 has the percentile 3 and
 * becomes 1, 0.5 and 0.1; one whose magnitudes are below 1 stays as it is.
 */
static void test_dynamic_thresholding(void) {
    static const float wide[TINY_CHANNELS] = {3.0f, -1.5f, 0.3f},
                       narrow[TINY_CHANNELS] = {0.5f, -0.25f, 0.125f};
    diffusion_config config = tiny_config();
    diffusion_process *process;
    diffusion_sample_params params = sample_params(1, 5, 3);
    float out[TINY_IMAGE];
    size_t i, plane = TINY_SIZE * TINY_SIZE;
    SECTION("dynamic thresholding");
    config.prediction_type = DIFFUSION_PREDICTION_SAMPLE;
    process = must_create(&config);
    params.dynamic_thresholding = 0.95;
    set_constant(process, wide, TINY_CHANNELS);
    OK(diffusion_sample_with(process, &params, out, sizeof out));
    for (i = 0; i < TINY_IMAGE; i += 13) {
        CHECK_NEAR(out[i], wide[i / plane] / 3, 1e-5);
    }
    set_constant(process, narrow, TINY_CHANNELS);
    OK(diffusion_sample_with(process, &params, out, sizeof out));
    for (i = 0; i < TINY_IMAGE; i += 13) {
        CHECK_NEAR(out[i], narrow[i / plane], 1e-5);
    }
    OK(diffusion_destroy(process));
}

/*
 * How much noise the random methods add: with a network that answers 0 and a start of 0, each step is a
 * scaling and fresh noise, so that the variance of the result follows from the papers alone. The betas are so
 * small that the final clamp at 1 is eight deviations away.
 */
static void test_variances(void) {
    enum { SAMPLES = 256, STEPS = 20, N = SAMPLES * TINY_IMAGE };
    static const float zero[TINY_CHANNELS];
    static const int steps[] = {STEPS, 10, 6};
    diffusion_config config = tiny_config();
    diffusion_process *process;
    diffusion_sample_params params;
    schedule s = {DIFFUSION_SCHEDULE_LINEAR, 0, 4e-4, 1e-3, STEPS, 0};
    double abar[STEPS], product = 1;
    float *out = must_alloc(N * sizeof *out), *start = must_alloc(N * sizeof *start);
    int64_t times[STEPS];
    int t, k, variant;
    size_t i, c;
    SECTION("variance of DDPM, fixed_small and fixed_large, and of DDIM for eta");
    config.noise_steps = STEPS;
    config.beta_schedule = s.kind;
    config.beta_start = s.start;
    config.beta_end = s.end;
    config.max_batch = 64;
    process = must_create(&config);
    set_constant(process, zero, TINY_CHANNELS);
    memset(start, 0, N * sizeof *start);
    expected_betas(&s, abar);
    for (t = 0; t < STEPS; t++) {
        abar[t] = product *= 1 - abar[t];
    }
    for (c = 0; c < sizeof steps / sizeof *steps; c++) {
        spaced(DIFFUSION_SPACING_LEADING, STEPS, steps[c], times);
        for (variant = 0; variant < 5; variant++) { /* DDPM small, DDPM large, DDIM eta 1, 0.5, 0 */
            double want = 0, mean = 0, square = 0, eta = variant == 2 ? 1 : variant == 3 ? 0.5 : 0;
            for (k = 0; k < steps[c]; k++) {
                double now = abar[times[k]], next = k + 1 < steps[c] ? abar[times[k + 1]] : 1, a = now / next,
                       b = 1 - a;
                double small = (1 - next) / (1 - now) * b, scale, sigma2;
                if (variant < 2) {
                    scale = sqrt(next) * b / (1 - now) / sqrt(now) + sqrt(a) * (1 - next) / (1 - now);
                    sigma2 = k + 1 == steps[c] ? 0 : variant == 0 ? small : b;
                } else {
                    scale = sqrt(next / now);
                    sigma2 = eta * eta * small;
                }
                want = scale * scale * want + sigma2;
            }
            params = sample_params(SAMPLES, steps[c], 31);
            params.method = variant < 2 ? DIFFUSION_METHOD_DDPM : DIFFUSION_METHOD_DDIM;
            params.variance = variant == 1 ? DIFFUSION_VARIANCE_FIXED_LARGE : DIFFUSION_VARIANCE_FIXED_SMALL;
            params.eta = eta;
            params.spacing = DIFFUSION_SPACING_LEADING;
            params.initial_noise = start;
            params.initial_noise_len = N;
            if (!OK(diffusion_sample_with(process, &params, out, N * sizeof *out))) {
                continue;
            }
            for (i = 0; i < N; i++) {
                mean += out[i] / N;
                square += (double)out[i] * out[i] / N;
            }
            check_that(fabs(square - want) <= want * 5 * sqrt(2.0 / N), __FILE__, __LINE__,
                       "%d steps, variant %d: variance is %.6g, should be %.6g", steps[c], variant, square,
                       want);
            CHECK_NEAR(mean, 0, 5 * sqrt(want / N));
            if (want > 0) { /* the noise of one image and of one step is not that of another */
                CHECK_NEAR(correlation(out, out + TINY_IMAGE, N - TINY_IMAGE) / want, 0, 5);
                CHECK_NEAR(correlation(out, out + 1, N - 1) / want, 0, 5);
            }
        }
    }
    OK(diffusion_destroy(process));
    free(out);
    free(start);
}

/* ----------------------------------------------------------------------------------------------------
 * formats --- */

/* IEEE half precision to float. */
static float from_half(uint16_t half) {
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    double value = exponent == 0 ? ldexp(mantissa, -24) : ldexp(mantissa + 1024, exponent - 25);
    return (float)(half >> 15 ? -value : value);
}

/* Whether a byte is round(127.5 (x + 1)), clamped; on the edge between two, either: arithmetic in float
 * decides. */
static int is_byte(unsigned char got, float x) {
    double exact = fmin(fmax(127.5 * ((double)x + 1), 0), 255);
    int edge = fabs(exact - floor(exact) - 0.5) < 1e-4;
    return got == floor(exact + 0.5) || (edge && (got == floor(exact) || got == ceil(exact)));
}

static void test_formats(void) {
    static const int channel_counts[] = {1, 2, 3, 4};
    size_t k;
    SECTION("formats against f32");
    for (k = 0; k < sizeof channel_counts / sizeof *channel_counts; k++) {
        enum { SAMPLES = 3, PIXELS = TINY_SIZE * TINY_SIZE };
        size_t channels = (size_t)channel_counts[k], n = SAMPLES * channels * PIXELS, bytes = 0, i, c,
               wrong = 0;
        diffusion_config config = tiny_config();
        diffusion_process *process;
        diffusion_sample_params params = sample_params(SAMPLES, 6, 4);
        float *plain = must_alloc(n * sizeof *plain);
        uint16_t *half = must_guard(n * sizeof *half);
        unsigned char *rgb = must_guard(SAMPLES * PIXELS * 3), *rgba = must_guard(SAMPLES * PIXELS * 4);
        config.channels = (int32_t)channels;
        process = must_create(&config);
        OK(diffusion_sample_size(process, &params, &bytes));
        CHECK_INT(bytes, ==, n * 4);
        OK(diffusion_sample_with(process, &params, plain, bytes));
        params.format = DIFFUSION_FORMAT_F16;
        OK(diffusion_sample_size(process, &params, &bytes));
        CHECK_INT(bytes, ==, n * 2);
        OK(diffusion_sample_with(process, &params, half, bytes));
        for (i = 0; i < n; i++) {
            /* Rounded to nearest: half a unit in the last of 11 bits, or of the subnormals' fixed place. */
            double unit = fmax(ldexp(1, (int)ceil(log2(fabs(plain[i]) + 1e-30)) - 11), ldexp(1, -24));
            wrong += !(fabs(from_half(half[i]) - plain[i]) <= unit / 2 * 1.0001);
        }
        CHECK_INT(wrong, ==, 0);
        if (channels != 2) {
            params.format = DIFFUSION_FORMAT_RGB8;
            OK(diffusion_sample_size(process, &params, &bytes));
            CHECK_INT(bytes, ==, SAMPLES * PIXELS * 3);
            OK(diffusion_sample_with(process, &params, rgb, bytes));
            params.format = DIFFUSION_FORMAT_RGBA8;
            OK(diffusion_sample_size(process, &params, &bytes));
            CHECK_INT(bytes, ==, SAMPLES * PIXELS * 4);
            OK(diffusion_sample_with(process, &params, rgba, bytes));
            for (i = 0; i < SAMPLES * PIXELS; i++) {
                size_t image = i / PIXELS, pixel = i % PIXELS;
                for (c = 0; c < 4; c++) {
                    float x = c < channels || channels == 1
                                  ? plain[(image * channels + (channels == 1 ? 0 : c)) * PIXELS + pixel]
                                  : 1;
                    if (c == 3 && channels != 4) {
                        x = 1; /* no alpha: opaque */
                    }
                    wrong += c < 3 && !is_byte(rgb[i * 3 + c], x);
                    wrong += !is_byte(rgba[i * 4 + c], x);
                }
            }
            CHECK_INT(wrong, ==, 0);
        }
        OK(diffusion_destroy(process));
        free(plain);
    }
    /* The ends and the middle, exactly. */
    {
        static const float values[TINY_CHANNELS] = {-1.0f, 0.0f, 1.0f};
        diffusion_config config = tiny_config();
        diffusion_process *process;
        diffusion_sample_params params = sample_params(1, 2, 4);
        unsigned char rgb[TINY_SIZE * TINY_SIZE * 3];
        config.prediction_type = DIFFUSION_PREDICTION_SAMPLE;
        process = must_create(&config);
        set_constant(process, values, TINY_CHANNELS);
        params.format = DIFFUSION_FORMAT_RGB8;
        OK(diffusion_sample_with(process, &params, rgb, sizeof rgb));
        CHECK_INT(rgb[0], ==, 0);
        CHECK(rgb[1] == 127 || rgb[1] == 128);
        CHECK_INT(rgb[2], ==, 255);
        OK(diffusion_destroy(process));
    }
}

/* Sizes and shapes of nets other than the tiny one, once each: finite and in range. */
static void test_other_nets(void) {
    static const struct {
        int32_t size, channels, levels, dims[4], layers, attention, head, groups, steps;
    } nets[] = {
        {8, 1, 1, {8, 0, 0, 0}, 1, 0, 0, 0, 20},   {16, 64, 2, {8, 16, 0, 0}, 1, 0, 0, 1, 20},
        {16, 4, 3, {8, 24, 40, 0}, 1, 7, 2, 2, 5}, {8, 3, 4, {8, 8, 8, 8}, 1, -1, 0, 0, 1},
        {40, 3, 3, {8, 8, 8, 0}, 8, -1, 0, 8, 2},  {1, 2, 1, {8, 0, 0, 0}, 1, 1, 0, 0, 3},
        {8, 3, 2, {8, 8, 0, 0}, 1, 3, 1, 8, 4},
    };
    size_t k;
    SECTION("other sizes of net");
    for (k = 0; k < sizeof nets / sizeof *nets; k++) {
        diffusion_config config = tiny_config();
        diffusion_process *process;
        size_t n = (size_t)(nets[k].size * nets[k].size * nets[k].channels);
        float *out = must_guard(n * sizeof *out);
        int i;
        config.image_size = nets[k].size;
        config.channels = nets[k].channels;
        config.hidden_dims_len = nets[k].levels;
        for (i = 0; i < 4; i++) {
            config.hidden_dims[i] = nets[k].dims[i];
        }
        config.layers_per_block = nets[k].layers;
        config.attention_levels = nets[k].attention;
        config.attention_head_dim = nets[k].head;
        config.norm_num_groups = nets[k].groups;
        config.noise_steps = nets[k].steps;
        printf("    net %d\n", (int)k);
        if (OK(diffusion_create(&config, &process))) {
            OK(diffusion_sample(process, 1, 0, out, n));
            CHECK(all_in_range(out, n));
            OK(diffusion_sample_ddim(process, 1, 1, 1, 0, out, n));
            CHECK(all_in_range(out, n));
            OK(diffusion_train_step(process, out, n, 1, NULL));
            OK(diffusion_destroy(process));
        }
    }
}

int main(int argc, char **argv) {
    diffusion_config config = tiny_config();
    if (argc > 1 && strcmp(argv[1], "traps") == 0) {
        return traps_program();
    }
    test_schedules();
    test_config_read_back();
    test_add_noise();
    test_noise_statistics();
    test_predict_noise();
    test_parameters();
    test_starting_noise();
    shared = must_create(&config);
    test_ddim_is_determined();
    test_floating_point_modes();
    test_random_samplers_are_determined();
    OK(diffusion_destroy(shared));
    test_ddim_formula();
    test_methods_reach_the_image();
    test_pure_noise_at_the_end();
    test_dynamic_thresholding();
    test_variances();
    test_formats();
    test_other_nets();
    return check_done("numerics");
}
