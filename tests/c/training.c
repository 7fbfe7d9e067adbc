/*
 * Training: that it learns (one image until DDIM gives it back), that each knob of the optimizer does what
 * its paper says, that the same seed gives the same bits, and that a checkpoint carries on exactly where it
 * was, also in another program and after a crash in the middle of a save.
 */
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

enum { BATCH = 4 };

static float batch[BATCH * TINY_IMAGE];
static char folder[256];

/* All weights of a process, one tensor after the other in the library's order; the caller frees them. */
static float *read_weights(diffusion_process *process, int32_t which, size_t *len) {
    diffusion_parameter p;
    size_t count = 0, i;
    float *all = NULL;
    *len = 0;
    OK(diffusion_parameter_count(process, &count));
    for (i = 0; i < count; i++) {
        p.struct_size = sizeof p;
        if (!OK(diffusion_parameter_describe(process, i, &p)) ||
            (all = realloc(all, (*len + p.len) * sizeof *all)) == NULL) {
            exit(2);
        }
        OK(diffusion_parameter_read(process, which, p.name, all + *len, p.len));
        *len += p.len;
    }
    return all;
}

static int same_weights(diffusion_process *a, diffusion_process *b) {
    int32_t which;
    int same = 1;
    for (which = DIFFUSION_WEIGHTS_TRAINED; which <= DIFFUSION_WEIGHTS_EMA; which++) {
        size_t n, m;
        float *x = read_weights(a, which, &n), *y = read_weights(b, which, &m);
        same = same && n == m && same_bits(x, y, n * sizeof *x);
        free(x);
        free(y);
    }
    return same;
}

static void train(diffusion_process *process, int steps, float *losses) {
    int i;
    for (i = 0; i < steps; i++) {
        OK(diffusion_train_step(process, batch, BATCH * TINY_IMAGE, BATCH,
                                losses == NULL ? NULL : losses + i));
    }
}

/* Everything that has a state of its own: AdamW, average, dropout, clipping. */
static diffusion_config rich_config(void) {
    diffusion_config config = tiny_config();
    config.optimizer = DIFFUSION_OPTIMIZER_ADAMW;
    config.weight_decay = 0.01;
    config.gradient_clip = 1;
    config.ema_decay = 0.9;
    config.dropout = 0.2;
    config.learning_rate = 1e-3;
    config.seed = 21;
    return config;
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static double mean_difference(const float *a, const float *b, size_t n) {
    double sum = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        sum += fabs((double)a[i] - b[i]);
    }
    return sum / (double)n;
}

static void test_overfit(void) {
    enum { SIZE = 8, N = SIZE * SIZE, COPIES = 16, STEPS = 450 };
    diffusion_config config = tiny_config();
    diffusion_process *process;
    float image[N], many[COPIES * N], out[4 * N], loss, first = 0, last = 0;
    size_t i;
    int step;
    uint64_t steps = 0;
    double before;
    SECTION("a two-level net learns one image until DDIM gives it back");
    config.image_size = SIZE;
    config.channels = 1;
    config.hidden_dims[0] = 16;
    config.hidden_dims[1] = 32;
    config.layers_per_block = 1;
    process = must_create(&config);
    /* A bright cross on a dark ground, off centre: no symmetry of the net gives it for free. */
    for (i = 0; i < N; i++) {
        size_t row = i / SIZE, column = i % SIZE;
        image[i] = row == 2 || column == 5 ? 0.8f : -0.6f;
    }
    for (i = 0; i < COPIES; i++) {
        memcpy(many + i * N, image, sizeof image);
    }
    OK(diffusion_sample_ddim(process, 4, 25, 0, 3, out, 4 * N));
    before = mean_difference(out, image, N);
    for (step = 0; step < STEPS; step++) {
        /* Fast at first, then finer: the last hundreds of steps settle what the large steps shake. */
        if (step % (STEPS / 3) == 0) {
            OK(diffusion_set_learning_rate(process, step == 0 ? 4e-3 : step == STEPS / 3 ? 2e-3 : 5e-4));
        }
        if (!OK(diffusion_train_step(process, many, COPIES * N, COPIES, &loss))) {
            break;
        }
        CHECK(isfinite(loss) && loss >= 0);
        first += step < 20 ? loss / 20 : 0;
        last += step >= STEPS - 20 ? loss / 20 : 0;
    }
    CHECK_BELOW(last, first / 4);
    OK(diffusion_sample_ddim(process, 4, 25, 0, 3, out, 4 * N));
    printf("    loss %.3f to %.3f; mean difference %.3f before,", first, last, before);
    for (i = 0; i < 4; i++) {
        double after = mean_difference(out + i * N, image, N);
        printf(" %.3f", after);
        CHECK_BELOW(after, 0.1);
    }
    OK(diffusion_sample(process, 1, 8, out, N));
    printf(" after, DDPM %.3f\n", mean_difference(out, image, N));
    CHECK_BELOW(mean_difference(out, image, N), 0.1);
    CHECK(before > 0.2);
    OK(diffusion_get_step_count(process, &steps));
    CHECK_INT(steps, ==, STEPS);
    OK(diffusion_destroy(process));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void test_knobs(void) {
    diffusion_config config = tiny_config();
    diffusion_process *process = must_create(&config);
    double rate = 0, scale = 0;
    uint64_t steps = 99;
    float loss = -1;
    SECTION("learning rate, step count, scale, loss NULL");
    OK(diffusion_get_learning_rate(process, &rate));
    CHECK_NEAR(rate, 1e-4, 0);
    OK(diffusion_set_learning_rate(process, 2e-3));
    OK(diffusion_get_learning_rate(process, &rate));
    CHECK_NEAR(rate, 2e-3, 0);
    OK(diffusion_set_learning_rate(process, 1e-300));
    OK(diffusion_get_learning_rate(process, &rate));
    CHECK_NEAR(rate, 1e-300, 0);
    OK(diffusion_get_gradient_scale(process, &scale));
    CHECK_NEAR(scale, 1, 0);
    OK(diffusion_get_step_count(process, &steps));
    CHECK_INT(steps, ==, 0);
    OK(diffusion_train_step(process, batch, TINY_IMAGE, 1, NULL));
    OK(diffusion_train_step(process, batch, BATCH * TINY_IMAGE, BATCH, &loss));
    CHECK(loss > 0 && loss < 100);
    OK(diffusion_get_step_count(process, &steps));
    CHECK_INT(steps, ==, 2);
    OK(diffusion_destroy(process));
}

/* With a network that answers a known constant the loss is known. */
static void test_loss(void) {
    enum { MANY = 64, N = MANY * TINY_IMAGE };
    static const float zero[TINY_CHANNELS], half[TINY_CHANNELS] = {0.5f, 0.5f, 0.5f};
    diffusion_config config = tiny_config();
    int32_t prediction;
    float *images = must_alloc(N * sizeof *images), *weight = calloc(TINY_CHANNELS * 8 * 9, sizeof *weight),
          loss = 0;
    size_t i;
    SECTION("the loss against its formula");
    for (i = 0; i < N; i++) {
        images[i] = 0.5f;
    }
    config.beta_schedule = DIFFUSION_SCHEDULE_LINEAR;
    config.beta_end = 0.1;
    for (prediction = DIFFUSION_PREDICTION_EPSILON; prediction <= DIFFUSION_PREDICTION_VELOCITY;
         prediction++) {
        diffusion_process *process;
        config.prediction_type = prediction;
        process = must_create(&config);
        OK(diffusion_parameter_write(process, 0, "conv_out.weight", weight, TINY_CHANNELS * 8 * 9));
        OK(diffusion_parameter_write(process, 0, "conv_out.bias", zero, TINY_CHANNELS));
        OK(diffusion_set_learning_rate(process, 1e-30));
        OK(diffusion_train_step(process, images, N, MANY, &loss));
        if (prediction == DIFFUSION_PREDICTION_EPSILON) {
            CHECK_NEAR(loss, 1, 5 * sqrt(2.0 / N)); /* mean of noise squared */
        } else if (prediction == DIFFUSION_PREDICTION_SAMPLE) {
            CHECK_NEAR(loss, 0.25, 1e-6); /* mean of the image squared, exactly */
            OK(diffusion_parameter_write(process, 0, "conv_out.bias", half, TINY_CHANNELS));
            OK(diffusion_train_step(process, images, N, MANY, &loss));
            CHECK_NEAR(loss, 0, 1e-6);
        } else {
            /* v = a noise - s image: its mean square is a^2 + s^2 / 4, between 1/4 and 1. */
            CHECK(loss > 0.3 && loss < 1.05);
        }
        OK(diffusion_destroy(process));
    }
    free(images);
    free(weight);
}

/* The first step of Adam moves each weight by lr, whatever the gradient; AdamW also shrinks it. */
static void test_first_step(void) {
    enum { ADAM, ADAM_DECAY, ADAMW, CLIPPED, EPSILON, CASES };
    diffusion_config config = tiny_config();
    int which;
    SECTION("the first step of Adam, AdamW and a clipped gradient");
    for (which = 0; which < CASES; which++) {
        diffusion_process *process;
        float before[8], after[8], *all_before, *all_after;
        size_t i, n, m, moved = 0;
        double largest = 0;
        config = tiny_config();
        config.learning_rate = 0.01;
        config.optimizer = which == ADAMW ? DIFFUSION_OPTIMIZER_ADAMW : DIFFUSION_OPTIMIZER_ADAM;
        config.weight_decay = which == ADAMW ? 0.5 : which == ADAM_DECAY ? 1000 : 0;
        config.gradient_clip = which == CLIPPED ? 1e-9 : 0;
        config.adam_epsilon = which == EPSILON ? 1e6 : 1e-8;
        process = must_create(&config);
        OK(diffusion_parameter_read(process, 0, "conv_norm_out.weight", before, 8));
        all_before = read_weights(process, 0, &n);
        train(process, 1, NULL);
        OK(diffusion_parameter_read(process, 0, "conv_norm_out.weight", after, 8));
        all_after = read_weights(process, 0, &m);
        for (i = 0; i < n; i++) {
            double by = fabs((double)all_after[i] - all_before[i]);
            largest = fmax(largest, by);
            moved += by > 0.009;
        }
        for (i = 0; i < 8; i++) {
            CHECK_NEAR(before[i], 1, 0); /* a fresh norm's weight */
        }
        if (which == ADAM) {
            CHECK_NEAR(largest, 0.01, 1e-5);
            CHECK(moved > n / 2);
        } else if (which == ADAM_DECAY) {
            /* The decay is in the gradient and outweighs it: every norm's weight goes down, by lr. */
            for (i = 0; i < 8; i++) {
                CHECK_NEAR(after[i], 0.99, 1e-4);
            }
            CHECK_NEAR(largest, 0.01, 1e-5);
        } else if (which == ADAMW) {
            /* First times (1 - lr weight_decay) = 0.995, then lr up or down. */
            for (i = 0; i < 8; i++) {
                CHECK_NEAR(fabs(after[i] - 0.995), 0.01, 1e-4);
            }
        } else {
            CHECK_BELOW(largest, 0.0011); /* far below adam_epsilon: no longer the gradient's sign alone */
            CHECK(largest > 0 || which == EPSILON);
        }
        free(all_before);
        free(all_after);
        OK(diffusion_destroy(process));
    }
}

static void test_average(void) {
    diffusion_config config = tiny_config();
    diffusion_process *process, *plain;
    float *start, *trained, *average, *before, out[TINY_IMAGE], other[TINY_IMAGE];
    int64_t timestep = 30;
    size_t n, m, i;
    double worst = 0, apart = 0;
    SECTION("the moving average: its formula, and that sampling uses it");
    config.ema_decay = 0.75;
    config.learning_rate = 0.01;
    process = must_create(&config);
    start = read_weights(process, DIFFUSION_WEIGHTS_TRAINED, &n);
    average = read_weights(process, DIFFUSION_WEIGHTS_EMA, &m);
    CHECK(n == m && same_bits(start, average, n * sizeof *start));
    free(average);
    before = start;
    for (i = 0; i < 3; i++) {
        size_t k;
        train(process, 1, NULL);
        trained = read_weights(process, DIFFUSION_WEIGHTS_TRAINED, &m);
        average = read_weights(process, DIFFUSION_WEIGHTS_EMA, &m);
        for (k = 0; k < n; k++) {
            double want = 0.75 * before[k] + 0.25 * trained[k];
            worst = fmax(worst, fabs(average[k] - want));
            apart = fmax(apart, fabs((double)average[k] - trained[k]));
        }
        free(before);
        free(trained);
        before = average;
    }
    CHECK_BELOW(worst, 1e-6);
    CHECK(apart > 1e-3);
    /* A process without average whose weights are these averages answers alike. */
    config.ema_decay = 0;
    plain = must_create(&config);
    {
        diffusion_parameter p;
        size_t count = 0, at = 0;
        OK(diffusion_parameter_count(plain, &count));
        for (i = 0; i < count; i++) {
            p.struct_size = sizeof p;
            OK(diffusion_parameter_describe(plain, i, &p));
            OK(diffusion_parameter_write(plain, DIFFUSION_WEIGHTS_TRAINED, p.name, before + at, p.len));
            at += p.len;
        }
    }
    OK(diffusion_predict_noise(process, batch, TINY_IMAGE, &timestep, 1, out, TINY_IMAGE));
    OK(diffusion_predict_noise(plain, batch, TINY_IMAGE, &timestep, 1, other, TINY_IMAGE));
    CHECK(same_bits(out, other, sizeof out));
    OK(diffusion_sample_ddim(process, 1, 5, 0, 2, out, TINY_IMAGE));
    OK(diffusion_sample_ddim(plain, 1, 5, 0, 2, other, TINY_IMAGE));
    CHECK(same_bits(out, other, sizeof out));
    free(before);
    OK(diffusion_destroy(process));
    OK(diffusion_destroy(plain));
}

static void test_same_seed_same_bits(void) {
    enum { STEPS = 12 };
    diffusion_config config = rich_config();
    diffusion_process *a = must_create(&config), *b = must_create(&config), *c;
    float first[STEPS], second[STEPS], third[STEPS], out[2 * TINY_IMAGE];
    int i;
    SECTION("the same seed, the same losses and weights");
    CHECK(same_weights(a, b));
    train(a, STEPS, first);
    for (i = 0; i < STEPS; i++) {
        train(b, 1, second + i);
        /* Sampling in between, and on another process, changes nothing. */
        OK(diffusion_sample(b, 2, (uint64_t)i, out, 2 * TINY_IMAGE));
    }
    CHECK(same_bits(first, second, sizeof first));
    CHECK(same_weights(a, b));
    for (i = 1; i < STEPS; i++) {
        CHECK(first[i] != first[i - 1]);
    }
    config.seed++;
    c = must_create(&config);
    train(c, STEPS, third);
    CHECK(!same_bits(first, third, sizeof first));
    OK(diffusion_destroy(b));
    OK(diffusion_destroy(c));
    config.seed--;
    config.dropout = 0;
    b = must_create(&config);
    train(b, STEPS, second);
    CHECK(first[0] != second[0]); /* dropout is applied */
    OK(diffusion_destroy(a));
    OK(diffusion_destroy(b));
}

static void test_precisions(void) {
    diffusion_config config = rich_config();
    diffusion_process *process = NULL, *plain;
    float losses[10], exact[10];
    double scale = 0;
    int i;
    SECTION("bf16; f16 where there is none");
    plain = must_create(&config);
    config.mixed_precision = DIFFUSION_PRECISION_BF16;
    if (OK(diffusion_create(&config, &process))) {
        train(process, 10, losses);
        train(plain, 10, exact);
        for (i = 0; i < 10; i++) {
            CHECK_NEAR(losses[i], exact[i], 0.05 * exact[i]);
        }
        CHECK(!same_bits(losses, exact, sizeof losses)); /* or nothing was computed in bf16 */
        OK(diffusion_get_gradient_scale(process, &scale));
        CHECK_NEAR(scale, 1, 0);
        OK(diffusion_destroy(process));
    }
    OK(diffusion_destroy(plain));
    config.mixed_precision = DIFFUSION_PRECISION_F16;
    process = (diffusion_process *)&config;
    if (check_device() == DIFFUSION_DEVICE_CPU) {
        CHECK_STATUS(diffusion_create(&config, &process), DIFFUSION_ERROR_INVALID_ARGUMENT);
        check_message(__FILE__, __LINE__, "f16 on the CPU", "mixed_precision", NULL, "CUDA");
        CHECK(process == (diffusion_process *)&config);
    } else if (OK(diffusion_create(&config, &process))) {
        train(process, 10, losses);
        OK(diffusion_get_gradient_scale(process, &scale));
        CHECK(scale > 1);
        OK(diffusion_destroy(process));
    }
}

/* Cancelled steps and failed steps leave no trace. */
static void test_failed_steps(void) {
    enum { STEPS = 4 };
    diffusion_config config = rich_config();
    diffusion_process *a = must_create(&config), *b = must_create(&config);
    float first[STEPS], second[STEPS], saved = batch[5];
    int i;
    SECTION("a step that fails leaves no trace");
    train(a, STEPS, first);
    for (i = 0; i < STEPS; i++) {
        batch[5] = NAN;
        CHECK_STATUS(diffusion_train_step(b, batch, BATCH * TINY_IMAGE, BATCH, second),
                     DIFFUSION_ERROR_NON_FINITE);
        batch[5] = saved;
        CHECK_STATUS(diffusion_train_step(b, batch, BATCH * TINY_IMAGE - 1, BATCH, second),
                     DIFFUSION_ERROR_BUFFER_SIZE);
        OK(diffusion_cancel(b)); /* nothing is under way: the next step is not cancelled */
        train(b, 1, second + i);
    }
    CHECK(same_bits(first, second, sizeof first));
    CHECK(same_weights(a, b));
    OK(diffusion_destroy(a));
    OK(diffusion_destroy(b));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

enum { BEFORE = 5, AFTER = 6 };

/* The child's half of the next test: loads, goes on, saves. */
static int continue_program(const char *path) {
    diffusion_process *process = NULL;
    char to[400];
    alarm(300);
    if (diffusion_load(path, NULL, &process) != DIFFUSION_OK) {
        printf("%s\n", diffusion_last_error_message());
        return 1;
    }
    train(process, AFTER, NULL);
    snprintf(to, sizeof to, "%s-continued", path);
    return diffusion_save(process, to) != DIFFUSION_OK || diffusion_destroy(process) != DIFFUSION_OK ||
           check_failed != 0;
}

static void test_resume(void) {
    diffusion_config config = rich_config(), got;
    diffusion_process *whole, *halved, *loaded = NULL;
    float losses[AFTER], again[AFTER], out[TINY_IMAGE], other[TINY_IMAGE];
    char path[300], continued[400];
    uint64_t steps = 0;
    double rate = 0;
    struct stat info;
    SECTION("save, load, go on: as if never stopped; here and in another program");
    snprintf(path, sizeof path, "%s/resumed", folder);
    whole = must_create(&config);
    halved = must_create(&config);
    OK(diffusion_set_learning_rate(whole, 3e-3));
    OK(diffusion_set_learning_rate(halved, 3e-3));
    train(whole, BEFORE, NULL);
    train(whole, AFTER, losses);
    train(halved, BEFORE, NULL);
    OK(diffusion_save(halved, path));
    train(halved, AFTER, again);
    CHECK(same_bits(losses, again, sizeof losses)); /* saving changes nothing */
    OK(diffusion_destroy(halved));

    if (!OK(diffusion_load(path, NULL, &loaded))) {
        OK(diffusion_destroy(whole));
        return;
    }
    OK(diffusion_get_step_count(loaded, &steps));
    CHECK_INT(steps, ==, BEFORE);
    OK(diffusion_get_learning_rate(loaded, &rate));
    CHECK_NEAR(rate, 3e-3, 0);
    got.struct_size = sizeof got;
    OK(diffusion_get_config(loaded, &got));
    CHECK_INT(got.image_size, ==, TINY_SIZE);
    CHECK_INT(got.hidden_dims[1], ==, 16);
    CHECK_INT(got.noise_steps, ==, TINY_STEPS);
    CHECK_INT(got.beta_schedule, ==, DIFFUSION_SCHEDULE_COSINE);
    CHECK_INT(got.optimizer, ==, DIFFUSION_OPTIMIZER_ADAMW);
    CHECK_NEAR(got.weight_decay, 0.01, 0);
    CHECK_NEAR(got.ema_decay, 0.9, 0);
    CHECK_NEAR(got.dropout, 0.2, 0);
    CHECK_NEAR(got.gradient_clip, 1, 0);
    CHECK_INT(got.seed, ==, 21);
    train(loaded, AFTER, again);
    CHECK(same_bits(losses, again, sizeof losses));
    CHECK(same_weights(whole, loaded));
    OK(diffusion_sample_ddim(whole, 1, 7, 0, 4, out, TINY_IMAGE));
    OK(diffusion_sample_ddim(loaded, 1, 7, 0, 4, other, TINY_IMAGE));
    CHECK(same_bits(out, other, sizeof out));
    OK(diffusion_destroy(loaded));

    CHECK_EXIT(run_self("continue", path, -1));
    snprintf(continued, sizeof continued, "%s-continued", path);
    if (OK(diffusion_load(continued, NULL, &loaded))) {
        CHECK(same_weights(whole, loaded));
        OK(diffusion_get_step_count(loaded, &steps));
        CHECK_INT(steps, ==, BEFORE + AFTER);
        OK(diffusion_destroy(loaded));
    }

    /* The layout, and that a save over a checkpoint keeps what others put beside it. */
    snprintf(continued, sizeof continued, "%s/model_index.json", path);
    CHECK(stat(continued, &info) == 0);
    snprintf(continued, sizeof continued, "%s/unet/config.json", path);
    CHECK(stat(continued, &info) == 0);
    snprintf(continued, sizeof continued, "%s/unet/diffusion_pytorch_model.safetensors", path);
    CHECK(stat(continued, &info) == 0);
    snprintf(continued, sizeof continued, "%s/scheduler/scheduler_config.json", path);
    CHECK(stat(continued, &info) == 0);
    must_shell("echo mine > '%s/README.md'", path);
    OK(diffusion_save(whole, path));
    snprintf(continued, sizeof continued, "%s/README.md", path);
    CHECK(stat(continued, &info) == 0 && info.st_size == 5);
    if (OK(diffusion_load(path, NULL, &loaded))) {
        CHECK(same_weights(whole, loaded));
        OK(diffusion_destroy(loaded));
    }
    /* Relative, with a slash at the end, through a link, into an empty folder: all folders. */
    must_shell("mkdir '%s/new' && ln -s '%s/new' '%s/link'", folder, folder, folder);
    snprintf(continued, sizeof continued, "%s/link/", folder);
    OK(diffusion_save(whole, continued));
    snprintf(continued, sizeof continued, "%s/new", folder);
    if (OK(diffusion_load(continued, NULL, &loaded))) {
        OK(diffusion_destroy(loaded));
    }
    if (CHECK(chdir(folder) == 0)) {
        OK(diffusion_save(whole, "relative"));
        CHECK(chdir("/") == 0);
        snprintf(continued, sizeof continued, "%s/relative", folder);
        if (OK(diffusion_load(continued, NULL, &loaded))) {
            CHECK(same_weights(whole, loaded));
            OK(diffusion_destroy(loaded));
        }
    }
    OK(diffusion_destroy(whole));
}

/* Cancels whatever its process is doing, again and again. */
typedef struct {
    diffusion_process *process;
    volatile int stop;
} canceller;

static void *keep_cancelling(void *data) {
    canceller *c = data;
    unsigned round = 0;
    while (!c->stop) {
        OK(diffusion_cancel(c->process));
        usleep((useconds_t)200 << (round++ % 11)); /* up to 0.2 s: on any machine some steps get through */
    }
    return NULL;
}

/* Trains so many steps, each tried until nobody cancels it; how many tries were cancelled. */
static int train_under_fire(diffusion_process *process, int steps, float *losses) {
    canceller c;
    pthread_t thread;
    int i, cancelled = 0, tries = 0;
    c.process = process;
    c.stop = 0;
    CHECK(pthread_create(&thread, NULL, keep_cancelling, &c) == 0);
    for (i = 0; i < steps;) {
        int32_t status = diffusion_train_step(process, batch, BATCH * TINY_IMAGE, BATCH, losses + i);
        CHECK(status == DIFFUSION_OK || status == DIFFUSION_ERROR_CANCELLED);
        i += status == DIFFUSION_OK;
        cancelled += status == DIFFUSION_ERROR_CANCELLED;
        if (++tries == 200) {
            c.stop = 1; /* a machine on which no step would ever get through */
        }
    }
    c.stop = 1;
    pthread_join(thread, NULL);
    return cancelled;
}

/* Every bit that a checkpoint holds: weights, average, moments, counters. */
static void same_checkpoint(const char *a, const char *b) {
    must_shell("diff -r '%s' '%s'", a, b);
}

static void test_exact_resume(void) {
    static const struct {
        const char *name;
        int64_t accumulation, warmup, decay;
        int32_t loss;
        double gamma;
    } variants[] = {
        {"every option off", 1, 0, 0, DIFFUSION_LOSS_MSE, 0},
        {"in the middle of an accumulated step", 3, 0, 0, DIFFUSION_LOSS_MSE, 0},
        {"accumulation, warm-up, decay, Huber, Min-SNR", 2, 2, 9, DIFFUSION_LOSS_HUBER, 5},
    };
    size_t v;
    int cancelled = 0;
    SECTION("2N steps, or N, save, load in a new program, N: the same checkpoint and samples, bit for bit");
    for (v = 0; v < sizeof variants / sizeof *variants; v++) {
        diffusion_config config = rich_config();
        diffusion_process *whole, *halved, *fired, *loaded = NULL;
        float losses[BEFORE + AFTER], again[BEFORE + AFTER], out[2 * TINY_IMAGE], other[2 * TINY_IMAGE];
        char path[300], continued[320], straight[320];
        uint64_t steps = 0;
        printf("    %s\n", variants[v].name);
        config.accumulation_steps = variants[v].accumulation;
        config.warmup_steps = variants[v].warmup;
        config.decay_steps = variants[v].decay;
        config.loss = variants[v].loss;
        config.huber_delta = 0.5;
        config.min_snr_gamma = variants[v].gamma;
        snprintf(path, sizeof path, "%s/exact-%d", folder, (int)v);
        snprintf(continued, sizeof continued, "%s-continued", path);
        snprintf(straight, sizeof straight, "%s-straight", path);
        whole = must_create(&config);
        train(whole, BEFORE + AFTER, losses);
        OK(diffusion_get_step_count(whole, &steps));
        CHECK_INT(steps, ==, (uint64_t)((BEFORE + AFTER) / variants[v].accumulation));
        OK(diffusion_save(whole, straight));

        halved = must_create(&config);
        train(halved, BEFORE, again);
        OK(diffusion_save(halved, path));
        train(halved, AFTER, again + BEFORE);
        CHECK(same_bits(losses, again, sizeof losses));
        CHECK_EXIT(run_self("continue", path, -1));
        same_checkpoint(straight, continued);
        if (OK(diffusion_load(continued, NULL, &loaded))) {
            OK(diffusion_sample(whole, 2, 4, out, 2 * TINY_IMAGE));
            OK(diffusion_sample(loaded, 2, 4, other, 2 * TINY_IMAGE));
            CHECK(same_bits(out, other, sizeof out));
            OK(diffusion_sample_ddim(whole, 2, 7, 0.5, 4, out, 2 * TINY_IMAGE));
            OK(diffusion_sample_ddim(loaded, 2, 7, 0.5, 4, other, 2 * TINY_IMAGE));
            CHECK(same_bits(out, other, sizeof out));
            OK(diffusion_destroy(loaded));
        }

        fired = must_create(&config);
        cancelled += train_under_fire(fired, BEFORE + AFTER, again);
        CHECK(same_bits(losses, again, sizeof losses));
        must_shell("rm -r '%s'", continued);
        OK(diffusion_save(fired, continued));
        same_checkpoint(straight, continued);
        OK(diffusion_destroy(fired));
        OK(diffusion_destroy(halved));
        OK(diffusion_destroy(whole));
    }
    printf("    %d steps were cancelled and taken again\n", cancelled);
    CHECK(cancelled > 0);
}

/* What a constant image's weight update says about each option: closed forms, no golden needed. */
static void test_options(void) {
    diffusion_config config = tiny_config();
    diffusion_process *a, *b;
    float loss = 0, first = 0, parts[2];
    float *before, *after, *other;
    size_t n, i;
    double moved = 0;
    SECTION("accumulation is the mean gradient; the learning rate warms up and decays; losses");
    /* Warm-up: Adam's first step moves each weight by the learning rate, here a quarter of it. */
    config.learning_rate = 1e-3;
    config.warmup_steps = 4;
    config.decay_steps = 6;
    a = must_create(&config);
    before = read_weights(a, DIFFUSION_WEIGHTS_TRAINED, &n);
    train(a, 1, &loss);
    after = read_weights(a, DIFFUSION_WEIGHTS_TRAINED, &n);
    for (i = 0; i < n; i++) {
        double step = fabs((double)after[i] - before[i]);
        moved = step > moved ? step : moved;
    }
    CHECK_NEAR(moved, 2.5e-4, 2e-6);
    free(before);
    /* Past the end of the decay nothing moves. */
    train(a, 5, NULL);
    before = read_weights(a, DIFFUSION_WEIGHTS_TRAINED, &n);
    CHECK(!same_bits(before, after, n * sizeof *before));
    train(a, 2, NULL);
    other = read_weights(a, DIFFUSION_WEIGHTS_TRAINED, &n);
    CHECK(same_bits(before, other, n * sizeof *before));
    free(before);
    free(after);
    free(other);
    OK(diffusion_destroy(a));

    /* Nothing moves before the last part of a step, and the parts' losses are their own. */
    config = tiny_config();
    config.accumulation_steps = 2;
    a = must_create(&config);
    before = read_weights(a, DIFFUSION_WEIGHTS_TRAINED, &n);
    train(a, 1, parts);
    after = read_weights(a, DIFFUSION_WEIGHTS_TRAINED, &n);
    CHECK(same_bits(before, after, n * sizeof *before));
    train(a, 1, parts + 1);
    other = read_weights(a, DIFFUSION_WEIGHTS_TRAINED, &n);
    CHECK(!same_bits(before, other, n * sizeof *before));
    CHECK(parts[0] > 0 && parts[1] > 0 && parts[0] != parts[1]);
    free(before);
    free(after);
    free(other);
    OK(diffusion_destroy(a));

    /* Huber with a wide delta is half the mean square; a narrow one is delta times the mean magnitude,
     * nearly. */
    config = tiny_config();
    a = must_create(&config);
    train(a, 1, &first);
    config.loss = DIFFUSION_LOSS_HUBER;
    config.huber_delta = 1e6;
    b = must_create(&config);
    train(b, 1, &loss);
    CHECK_NEAR(loss, first / 2, 1e-6 * first);
    OK(diffusion_destroy(b));
    config.huber_delta = 1e-6;
    b = must_create(&config);
    train(b, 1, &loss);
    CHECK(loss > 1e-7 && loss < 1e-6 * sqrt((double)first));
    OK(diffusion_destroy(b));
    /* Min-SNR with a gamma that cuts nothing off is 1 for EPSILON; with a tiny one nearly nothing is left. */
    config = tiny_config();
    config.min_snr_gamma = 1e12;
    b = must_create(&config);
    train(b, 1, &loss);
    CHECK_NEAR(loss, first, 1e-6 * first);
    OK(diffusion_destroy(b));
    config.min_snr_gamma = 1e-9;
    b = must_create(&config);
    train(b, 1, &loss);
    CHECK(loss > 0 && loss < 1e-2 * first);
    OK(diffusion_destroy(b));
    OK(diffusion_destroy(a));
}

/* A network with classes: labels are needed, checked, matter to their own image alone, and survive a save. */
static void test_classes(void) {
    static const int64_t labels[BATCH] = {0, 1, 2, 1}, times[BATCH] = {3, 3, 3, 3};
    static const int32_t kinds[] = {3, DIFFUSION_CLASSES_AS_TIMESTEPS};
    size_t k;
    SECTION("networks with classes");
    for (k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        diffusion_config config = tiny_config(), got;
        diffusion_process *process, *loaded = NULL;
        diffusion_sample_params params = sample_params(BATCH, 5, 9), one = sample_params(1, 5, 9);
        float first = 0, loss = 0, alone[TINY_IMAGE];
        float answer[BATCH * TINY_IMAGE], other[BATCH * TINY_IMAGE];
        int64_t changed[BATCH];
        char path[300];
        int i;
        config.num_class_embeds = kinds[k];
        config.learning_rate = 1e-2;
        process = must_create(&config);
        for (i = 0; i < 40; i++) {
            OK(diffusion_train_step_with_classes(process, batch, BATCH * TINY_IMAGE, labels, BATCH, &loss));
            first = i == 0 ? loss : first;
        }
        CHECK(loss < first);
        OK(diffusion_predict_noise_with_classes(process, batch, BATCH * TINY_IMAGE, times, labels, BATCH,
                                                answer, BATCH * TINY_IMAGE));
        memcpy(changed, labels, sizeof changed);
        changed[2] = 1;
        OK(diffusion_predict_noise_with_classes(process, batch, BATCH * TINY_IMAGE, times, changed, BATCH,
                                                other, BATCH * TINY_IMAGE));
        for (i = 0; i < BATCH; i++) {
            CHECK(same_bits(answer + i * TINY_IMAGE, other + i * TINY_IMAGE, sizeof alone) == (i != 2));
        }

        /* In any batch an image and its class go together. */
        params.class_labels = labels;
        params.class_labels_len = BATCH;
        OK(diffusion_sample_with(process, &params, answer, sizeof answer));
        one.class_labels = labels;
        one.class_labels_len = 1;
        OK(diffusion_sample_with(process, &one, alone, sizeof alone));
        CHECK(same_bits(answer, alone, sizeof alone));
        snprintf(path, sizeof path, "%s/classes-%d", folder, (int)k);
        OK(diffusion_save(process, path));
        if (OK(diffusion_load(path, NULL, &loaded))) {
            got.struct_size = sizeof got;
            OK(diffusion_get_config(loaded, &got));
            CHECK_INT(got.num_class_embeds, ==, kinds[k]);
            OK(diffusion_sample_with(loaded, &params, other, sizeof other));
            CHECK(same_bits(answer, other, sizeof answer));
            OK(diffusion_destroy(loaded));
        }
        config.num_class_embeds = 5;
        CHECK_STATUS(diffusion_load(path, &config, &loaded), DIFFUSION_ERROR_INVALID_ARGUMENT);
        check_message(__FILE__, __LINE__, "another number of classes", "num_class_embeds", NULL, NULL);

        changed[1] = -1;
        CHECK_STATUS(
            diffusion_train_step_with_classes(process, batch, BATCH * TINY_IMAGE, changed, BATCH, &loss),
            DIFFUSION_ERROR_INVALID_ARGUMENT);
        check_message(__FILE__, __LINE__, "a class that is none", "class_labels[1]", "-1", NULL);
        changed[1] = kinds[k] > 0 ? kinds[k] : (1 << 24) + 1;
        params.class_labels = changed;
        CHECK_STATUS(diffusion_sample_with(process, &params, other, sizeof other),
                     DIFFUSION_ERROR_INVALID_ARGUMENT);
        check_message(__FILE__, __LINE__, "a class too high", "class_labels[1]", NULL, NULL);
        params.class_labels_len = 1;
        CHECK_STATUS(diffusion_sample_with(process, &params, other, sizeof other),
                     DIFFUSION_ERROR_BUFFER_SIZE);
        CHECK_STATUS(diffusion_sample(process, 1, 0, alone, TINY_IMAGE), DIFFUSION_ERROR_NULL_POINTER);
        check_message(__FILE__, __LINE__, "sampling without classes", "class_labels", NULL, NULL);
        CHECK_STATUS(diffusion_train_step(process, batch, BATCH * TINY_IMAGE, BATCH, &loss),
                     DIFFUSION_ERROR_NULL_POINTER);
        CHECK_STATUS(
            diffusion_train_step_with_classes(process, batch, BATCH * TINY_IMAGE, NULL, BATCH, &loss),
            DIFFUSION_ERROR_NULL_POINTER);
        CHECK_STATUS(diffusion_predict_noise(process, batch, BATCH * TINY_IMAGE, times, BATCH, other,
                                             BATCH * TINY_IMAGE),
                     DIFFUSION_ERROR_NULL_POINTER);
        OK(diffusion_destroy(process));

        config.num_class_embeds = 0;
        process = must_create(&config);
        CHECK_STATUS(
            diffusion_train_step_with_classes(process, batch, BATCH * TINY_IMAGE, labels, BATCH, &loss),
            DIFFUSION_ERROR_INVALID_ARGUMENT);
        check_message(__FILE__, __LINE__, "a network without classes", "class_labels", NULL, NULL);
        OK(diffusion_destroy(process));
    }
}

static volatile sig_atomic_t signals;

static void count_signal(int number) {
    (void)number;
    signals++;
}

/* A host with a timer, a profiler or Go's scheduler: every wait and every read is interrupted all the time.
 */
static void test_signals(void) {
    diffusion_config config = rich_config();
    diffusion_process *process = must_create(&config), *loaded = NULL;
    struct itimerval every, never;
    struct sigaction action, old;
    float out[TINY_IMAGE];
    char path[300];
    int i;
    SECTION("signals that interrupt every system call");
    snprintf(path, sizeof path, "%s/interrupted", folder);
    memset(&action, 0, sizeof action);
    action.sa_handler = count_signal; /* without SA_RESTART */
    sigaction(SIGALRM, &action, &old);
    memset(&never, 0, sizeof never);
    memset(&every, 0, sizeof every);
    every.it_interval.tv_usec = every.it_value.tv_usec = 500;
    setitimer(ITIMER_REAL, &every, NULL);
    for (i = 0; i < 10; i++) {
        diffusion_sample_params params = sample_params(2, 5, 1);
        diffusion_job *job = NULL;
        train(process, 1, NULL);
        OK(diffusion_sample_ddim(process, 1, 5, 0, 1, out, TINY_IMAGE));
        OK(diffusion_sample_submit(process, &params, &job));
        OK(diffusion_job_wait(job, 1000 * 1000));
        OK(diffusion_job_destroy(job));
        OK(diffusion_save(process, path));
        if (OK(diffusion_load(path, NULL, &loaded))) {
            CHECK(same_weights(process, loaded));
            OK(diffusion_destroy(loaded));
        }
    }
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &old, NULL);
    CHECK(signals > 0);
    OK(diffusion_destroy(process));
}

static void test_schedules_survive(void) {
    int32_t kind;
    char path[300];
    SECTION("every schedule and prediction type survives a save, bit for bit");
    snprintf(path, sizeof path, "%s/schedule", folder);
    for (kind = DIFFUSION_SCHEDULE_COSINE; kind <= DIFFUSION_SCHEDULE_GIVEN; kind++) {
        diffusion_config config = tiny_config(), got;
        diffusion_process *process = NULL, *loaded = NULL;
        float before[TINY_STEPS], after[TINY_STEPS], out[TINY_IMAGE], other[TINY_IMAGE];
        double betas[TINY_STEPS];
        int i;
        int32_t table;
        for (i = 0; i < TINY_STEPS; i++) {
            betas[i] = 0.01 / 3 * (i % 7 + 1);
        }
        config.beta_schedule = kind;
        config.beta_start = 0.00123;
        config.beta_end = 0.0456;
        config.prediction_type = kind % 3;
        config.rescale_betas_zero_snr = kind % 3 == 0 || kind == DIFFUSION_SCHEDULE_GIVEN ? 0 : 1;
        config.attention_levels = 3;
        config.attention_head_dim = 4;
        config.norm_num_groups = 4;
        config.layers_per_block = 1;
        if (!OK(kind == DIFFUSION_SCHEDULE_GIVEN
                    ? diffusion_create_with_betas(&config, betas, TINY_STEPS, &process)
                    : diffusion_create(&config, &process))) {
            continue;
        }
        OK(diffusion_save(process, path));
        if (OK(diffusion_load(path, NULL, &loaded))) {
            got.struct_size = sizeof got;
            OK(diffusion_get_config(loaded, &got));
            CHECK_INT(got.beta_schedule, ==, kind);
            CHECK_INT(got.prediction_type, ==, kind % 3);
            CHECK_INT(got.rescale_betas_zero_snr, ==, config.rescale_betas_zero_snr);
            CHECK_INT(got.attention_levels, ==, 3);
            CHECK_INT(got.attention_head_dim, ==, 4);
            CHECK_INT(got.norm_num_groups, ==, 4);
            CHECK_INT(got.layers_per_block, ==, 1);
            for (table = 0; table < 5; table++) {
                OK(diffusion_get_schedule(process, table, before, TINY_STEPS));
                OK(diffusion_get_schedule(loaded, table, after, TINY_STEPS));
                CHECK(same_bits(before, after, sizeof before));
            }
            OK(diffusion_sample_ddim(process, 1, 7, 0.5f, 4, out, TINY_IMAGE));
            OK(diffusion_sample_ddim(loaded, 1, 7, 0.5f, 4, other, TINY_IMAGE));
            CHECK(same_bits(out, other, sizeof out));
            OK(diffusion_destroy(loaded));
        }
        OK(diffusion_destroy(process));
    }
}

static void test_overrides(void) {
    diffusion_config config = rich_config(), overrides, got;
    diffusion_process *process = must_create(&config), *loaded = NULL;
    char path[300];
    float out[TINY_IMAGE], other[TINY_IMAGE];
    double rate = 0;
    SECTION("load with overrides");
    snprintf(path, sizeof path, "%s/overridden", folder);
    train(process, 2, NULL);
    OK(diffusion_save(process, path));
    OK(diffusion_config_init(&overrides));
    overrides.device = check_device();
    overrides.learning_rate = 7e-3;
    overrides.weight_decay = 0.25;
    overrides.max_batch = 3;
    overrides.num_threads = 1;
    if (OK(diffusion_load(path, &overrides, &loaded))) {
        got.struct_size = sizeof got;
        OK(diffusion_get_config(loaded, &got));
        CHECK_NEAR(got.learning_rate, 7e-3, 0);
        CHECK_NEAR(got.weight_decay, 0.25, 0);
        CHECK_INT(got.max_batch, ==, 3);
        CHECK_INT(got.num_threads, ==, 1);
        CHECK_NEAR(got.gradient_clip, 1, 0);
        CHECK_NEAR(got.dropout, 0.2, 0);
        CHECK_INT(got.image_size, ==, TINY_SIZE);
        OK(diffusion_get_learning_rate(loaded, &rate));
        CHECK_NEAR(rate, 7e-3, 0);
        CHECK(same_weights(process, loaded));
        OK(diffusion_sample_ddim(process, 1, 7, 0, 4, out, TINY_IMAGE));
        OK(diffusion_sample_ddim(loaded, 1, 7, 0, 4, other, TINY_IMAGE));
        CHECK_BELOW(max_difference(out, other, TINY_IMAGE), 1e-4);
        train(loaded, 1, NULL);
        OK(diffusion_destroy(loaded));
    }
    /* What agrees with the checkpoint is no contradiction. */
    overrides = rich_config();
    if (OK(diffusion_load(path, &overrides, &loaded))) {
        OK(diffusion_destroy(loaded));
    }
    /* A default that differs from the checkpoint's is not an override. */
    OK(diffusion_config_init(&overrides));
    if (OK(diffusion_load(path, &overrides, &loaded))) {
        OK(diffusion_get_learning_rate(loaded, &rate));
        CHECK_NEAR(rate, 1e-3, 0);
        OK(diffusion_destroy(loaded));
    }
    loaded = (diffusion_process *)&config;
#define CONTRADICTS(change, named, value)                                                                \
    do {                                                                                                 \
        OK(diffusion_config_init(&overrides));                                                           \
        change;                                                                                          \
        if (CHECK_STATUS(diffusion_load(path, &overrides, &loaded), DIFFUSION_ERROR_INVALID_ARGUMENT)) { \
            check_message(__FILE__, __LINE__, #change, named, value, NULL);                              \
        }                                                                                                \
        CHECK(loaded == (diffusion_process *)&config);                                                   \
        loaded = (diffusion_process *)&config;                                                           \
    } while (0)
    CONTRADICTS(overrides.image_size = 16, "image_size", "16");
    CONTRADICTS(overrides.channels = 1, "channels", "1");
    CONTRADICTS(overrides.hidden_dims_len = 2; overrides.hidden_dims[0] = 16;
                overrides.hidden_dims[1] = 16, "hidden_dims", "16");
    CONTRADICTS(overrides.noise_steps = 49, "noise_steps", "49");
    CONTRADICTS(overrides.beta_start = 0.002, "beta_start", "0.002");
    CONTRADICTS(overrides.beta_end = 0.5, "beta_end", "0.5");
    CONTRADICTS(overrides.beta_schedule = DIFFUSION_SCHEDULE_LINEAR, "beta_schedule", NULL);
    CONTRADICTS(overrides.prediction_type = DIFFUSION_PREDICTION_VELOCITY, "prediction_type", NULL);
    CONTRADICTS(overrides.layers_per_block = 3, "layers_per_block", "3");
    CONTRADICTS(overrides.attention_levels = 3, "attention_levels", "3");
    CONTRADICTS(overrides.attention_levels = 0, "attention_levels", "0");
    CONTRADICTS(overrides.attention_head_dim = 8, "attention_head_dim", "8");
    CONTRADICTS(overrides.norm_num_groups = 1, "norm_num_groups", "1");
#undef CONTRADICTS
    OK(diffusion_destroy(process));
}

/* A model to be shipped: the weights that sample, rounded to the asked precision, and no training state. */
static void test_export(void) {
    /* The relative rounding of each precision: half a unit in the last of 24, 11 and 8 bits. */
    static const double rounding[] = {0, 1.0 / 2048, 1.0 / 256};
    diffusion_config config = rich_config();
    diffusion_process *process = must_create(&config), *loaded = NULL;
    float *average, *weights, huge[TINY_CHANNELS] = {1e6f, 0, 0};
    char path[512];
    struct stat info;
    long sizes[3] = {0, 0, 0};
    int32_t precision;
    uint64_t steps = 99;
    size_t n, m, i;
    SECTION("export");
    OK(diffusion_set_learning_rate(process, 0.01));
    train(process, 3, NULL);
    average = read_weights(process, DIFFUSION_WEIGHTS_EMA, &n);
    for (precision = DIFFUSION_PRECISION_F32; precision <= DIFFUSION_PRECISION_BF16; precision++) {
        double worst = 0;
        snprintf(path, sizeof path, "%s/exported%d", folder, (int)precision);
        OK(diffusion_export(process, path, precision));
        if (!OK(diffusion_load(path, NULL, &loaded))) {
            continue;
        }
        weights = read_weights(loaded, DIFFUSION_WEIGHTS_TRAINED, &m);
        CHECK(m == n);
        for (i = 0; i < n && i < m; i++) {
            /* Below 6e-5 f16 has fewer bits: there the step is fixed. */
            worst =
                fmax(worst, fabs((double)weights[i] - average[i]) - fabs(average[i]) * rounding[precision] -
                                (precision == DIFFUSION_PRECISION_F16 ? 3e-8 : 0));
        }
        CHECK(worst <= 0);
        OK(diffusion_get_step_count(loaded, &steps));
        CHECK_INT(steps, ==, 0);
        OK(diffusion_train_step(loaded, batch, TINY_IMAGE, 1, NULL));
        OK(diffusion_destroy(loaded));
        free(weights);
        snprintf(path, sizeof path, "%s/exported%d/unet/diffusion_pytorch_model.safetensors", folder,
                 (int)precision);
        CHECK(stat(path, &info) == 0);
        sizes[precision] = (long)info.st_size;
    }
    CHECK_INT(sizes[0], >=, 4 * (long)n);
    CHECK_INT(sizes[1], <, 3 * (long)n + 32768);
    CHECK_INT(sizes[1], <, sizes[0]);
    CHECK_INT(sizes[2], <, sizes[0]);
    free(average);
    /* What f16 cannot hold is refused, and nothing is written; bf16 holds it. */
    OK(diffusion_parameter_write(process, DIFFUSION_WEIGHTS_EMA, "conv_out.bias", huge, TINY_CHANNELS));
    snprintf(path, sizeof path, "%s/overflowed", folder);
    CHECK_STATUS(diffusion_export(process, path, DIFFUSION_PRECISION_F16), DIFFUSION_ERROR_NON_FINITE);
    check_message(__FILE__, __LINE__, "export", "conv_out.bias", NULL, NULL);
    CHECK(stat(path, &info) != 0);
    OK(diffusion_export(process, path, DIFFUSION_PRECISION_BF16));
    OK(diffusion_destroy(process));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

/* The victim of the next test: saves for ever to the same place. */
static int saver_program(const char *path) {
    diffusion_process *process = NULL;
    alarm(120); /* should its parent die first */
    if (diffusion_load(path, NULL, &process) != DIFFUSION_OK) {
        printf("%s\n", diffusion_last_error_message());
        return 1;
    }
    for (;;) {
        float loss;
        if (diffusion_train_step(process, batch, TINY_IMAGE, 1, &loss) != DIFFUSION_OK ||
            diffusion_save(process, path) != DIFFUSION_OK) {
            printf("%s\n", diffusion_last_error_message());
            return 1;
        }
        if (write(3, "x", 1) != 1) { /* one byte for each finished save */
            return 1;
        }
    }
}

static void test_crash_while_saving(void) {
    diffusion_config config = rich_config();
    diffusion_process *process = must_create(&config);
    char path[300];
    uint64_t state = 5, last = 0;
    int round;
    SECTION("killed while saving, again and again: always a whole checkpoint");
    snprintf(path, sizeof path, "%s/killed", folder);
    OK(diffusion_save(process, path));
    OK(diffusion_destroy(process));
    for (round = 0; round < 8; round++) {
        int pipes[2], status = 0;
        char byte;
        pid_t child;
        uint64_t steps = 0;
        struct timespec pause;
        if (pipe(pipes) != 0) {
            exit(2);
        }
        child = fork();
        if (child == 0) {
            dup2(pipes[1], 3);
            execl("/proc/self/exe", "self", "saver", path, (char *)NULL);
            _exit(127);
        }
        close(pipes[1]);
        CHECK(read(pipes[0], &byte, 1) == 1); /* it is saving; now anywhere in one of the next saves */
        pause.tv_sec = 0;
        pause.tv_nsec = (long)(next_random(&state) % 150000000);
        nanosleep(&pause, NULL);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        close(pipes[0]);
        process = NULL;
        if (OK(diffusion_load(path, NULL, &process))) {
            OK(diffusion_get_step_count(process, &steps));
            CHECK_INT(steps, >, last);
            last = steps;
            OK(diffusion_save(process, path)); /* what the dead one left is no obstacle */
            OK(diffusion_destroy(process));
        }
    }
    printf("    %llu saves survived 8 kills\n", (unsigned long long)last);
}

int main(int argc, char **argv) {
    fill_random(batch, BATCH * TINY_IMAGE, 8);
    if (argc > 2 && strcmp(argv[1], "continue") == 0) {
        return continue_program(argv[2]);
    }
    if (argc > 2 && strcmp(argv[1], "saver") == 0) {
        return saver_program(argv[2]);
    }
    must_tempdir(folder);
    test_knobs();
    test_loss();
    test_first_step();
    test_average();
    test_same_seed_same_bits();
    test_precisions();
    test_failed_steps();
    test_resume();
    test_exact_resume();
    test_options();
    test_classes();
    test_schedules_survive();
    test_overrides();
    test_signals();
    test_export();
    test_crash_while_saving();
    test_overfit();
    must_shell("rm -rf '%s'", folder);
    return check_done("training");
}
