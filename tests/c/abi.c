/*
 * Programs that were compiled against an older header: every size that a struct ever had, and every size
 * between, given to this library with an unreadable page behind it. What the caller knows is honoured, what
 * it does not know has its default, and not a byte more is written. layout.c holds the header itself against
 * what was released.
 */
#include "check.h"

/* By name, so that a function that is gone does not link. */
#define FUNCTION(result, name, parameters) {#name, (void (*)(void))name},
static const struct {
    const char *name;
    void (*function)(void);
} functions[] = {
#include "functions.def"
};

enum {
    N = TINY_IMAGE,
    /* The sizes of the first released structs, and the least that is taken: up to the last field without
     * which the struct says nothing. */
    CONFIG_LEAST = 104,
    CONFIG_RELEASED = 248,
    PARAMS_LEAST = 24,
    PARAMS_RELEASED = 136,
    PARAMETER_RELEASED = 176
};

static void test_functions(void) {
    size_t i;
    SECTION("every released function is there");
    for (i = 0; i < sizeof functions / sizeof *functions; i++) {
        CHECK(functions[i].function != NULL);
    }
    CHECK_INT(sizeof functions / sizeof *functions, >=, 43);
    CHECK_INT(diffusion_abi_version(), ==, DIFFUSION_ABI_VERSION);
}

/* No field at its default, and valid however many of them an older caller knows. */
static diffusion_config unusual_config(void) {
    diffusion_config c = tiny_config();
    c.layers_per_block = 1;
    c.attention_levels = 2;
    c.attention_head_dim = 4;
    c.norm_num_groups = 4;
    c.dropout = 0.1;
    c.optimizer = DIFFUSION_OPTIMIZER_ADAMW;
    c.mixed_precision = DIFFUSION_PRECISION_BF16;
    c.learning_rate = 0.01;
    c.adam_beta1 = 0.8;
    c.adam_beta2 = 0.9;
    c.adam_epsilon = 1e-6;
    c.weight_decay = 0.1;
    c.gradient_clip = 2;
    c.ema_decay = 0.5;
    c.loss = DIFFUSION_LOSS_HUBER;
    c.num_class_embeds = 3;
    c.huber_delta = 0.5;
    c.min_snr_gamma = 5;
    c.warmup_steps = 2;
    c.decay_steps = 100;
    c.accumulation_steps = 2;
    c.inference_precision = DIFFUSION_PRECISION_BF16;
    c.deterministic = 1;
    return c;
}

static void test_configs(void) {
    diffusion_config unusual = unusual_config(), before, *edge;
    size_t size, sizes = 0, differ = 0;
    SECTION("configs of every size");
    edge = must_guard(CONFIG_RELEASED);
    OK(diffusion_config_init(edge)); /* writes no more than was released */
    OK(diffusion_config_init_cifar10(edge));
    memset(&before, 0, sizeof before);
    for (size = CONFIG_LEAST; size <= sizeof(diffusion_config); size += 8, sizes++) {
        /* What is expected: the defaults with the first `size` bytes of the caller's. */
        diffusion_config expected, whole, full;
        diffusion_process *old = NULL, *new = NULL;
        unsigned char *small = must_guard(size), *prefix = must_guard(size);
        uint32_t told = (uint32_t)size;
        OK(diffusion_config_init(&expected));
        memcpy(&expected, &unusual, size);
        expected.struct_size = sizeof expected;
        memcpy(small, &unusual, size);
        memcpy(small, &told, sizeof told);
        if (!OK(diffusion_create((diffusion_config *)(void *)small, &old)) ||
            !OK(diffusion_create(&expected, &new))) {
            continue;
        }
        whole.struct_size = full.struct_size = sizeof(diffusion_config);
        OK(diffusion_get_config(old, &whole));
        OK(diffusion_get_config(new, &full));
        check_that(same_bits(&whole, &full, sizeof whole), __FILE__, __LINE__,
                   "a config of %zu bytes makes another process than its fields with defaults for the rest",
                   size);
        differ += !same_bits(&whole, &before, sizeof whole);
        before = whole;
        memset(prefix, 0, size);
        memcpy(prefix, &told, sizeof told);
        OK(diffusion_get_config(new, (diffusion_config *)(void *)prefix));
        CHECK(same_bits(prefix + 4, (unsigned char *)&full + 4, size - 4));
        CHECK(same_bits(prefix, &told, sizeof told));
        OK(diffusion_destroy(old));
        OK(diffusion_destroy(new));
    }
    CHECK_INT(differ, ==, sizes); /* each 8 bytes more said something more */
    printf("    %zu sizes, %d..%zu\n", sizes, CONFIG_LEAST, sizeof(diffusion_config));
}

static void test_params(void) {
    diffusion_config config = tiny_config();
    diffusion_process *p = must_create(&config);
    diffusion_sample_params unusual = sample_params(2, 9, 5), *edge;
    size_t size, sizes = 0;
    SECTION("sampling parameters of every size");
    edge = must_guard(PARAMS_RELEASED);
    OK(diffusion_sample_params_init(edge));
    unusual.method = DIFFUSION_METHOD_DDIM;
    unusual.spacing = DIFFUSION_SPACING_LINSPACE;
    unusual.eta = 0.5;
    unusual.variance = DIFFUSION_VARIANCE_FIXED_LARGE;
    unusual.clip_sample = 0;
    unusual.format = DIFFUSION_FORMAT_RGB8;
    unusual.timeout_ms = INT64_MAX;
    for (size = PARAMS_LEAST; size <= sizeof(diffusion_sample_params); size += 8, sizes++) {
        diffusion_sample_params expected;
        unsigned char *small = must_guard(size);
        uint32_t told = (uint32_t)size;
        size_t bytes = 0, expected_bytes = 0;
        static unsigned char out[2 * N * sizeof(float)], want[2 * N * sizeof(float)];
        diffusion_job *job = NULL;
        OK(diffusion_sample_params_init(&expected));
        memcpy(&expected, &unusual, size);
        expected.struct_size = sizeof expected;
        memcpy(small, &unusual, size);
        memcpy(small, &told, sizeof told);
        edge = (diffusion_sample_params *)(void *)small;
        OK(diffusion_sample_size(p, edge, &bytes));
        OK(diffusion_sample_size(p, &expected, &expected_bytes));
        CHECK_INT(bytes, ==, expected_bytes);
        if (bytes > sizeof out || !OK(diffusion_sample_with(p, edge, out, bytes)) ||
            !OK(diffusion_sample_with(p, &expected, want, bytes))) {
            continue;
        }
        check_that(same_bits(out, want, bytes), __FILE__, __LINE__,
                   "parameters of %zu bytes sample otherwise than their fields with defaults for the rest",
                   size);
        OK(diffusion_sample_submit(p, edge, &job));
        OK(diffusion_job_wait(job, -1));
        OK(diffusion_job_fetch(job, out, bytes));
        CHECK(same_bits(out, want, bytes));
        OK(diffusion_job_destroy(job));
    }
    printf("    %zu sizes, %d..%zu\n", sizes, PARAMS_LEAST, sizeof(diffusion_sample_params));
    {
        diffusion_parameter *parameter = must_guard(PARAMETER_RELEASED);
        parameter->struct_size = PARAMETER_RELEASED;
        OK(diffusion_parameter_describe(p, 0, parameter));
        CHECK(strcmp(parameter->name, "conv_in.weight") == 0 && parameter->rank == 4);
    }
    OK(diffusion_destroy(p));
}

int main(void) {
    test_functions();
    test_configs();
    test_params();
    return check_done("abi");
}
