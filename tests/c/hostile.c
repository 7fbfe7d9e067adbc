/*
 * Checkpoints from a stranger: whatever their files say, loading them takes memory in proportion to their
 * bytes, and no name in them leads out of their folder. docs/SECURITY.md promises it. Memory is what this
 * program's own malloc gives out, at its highest. (checkpoints.c damages checkpoints; here they lie on
 * purpose.)
 */
#include "check.h"

#include <dirent.h>
#include <malloc.h>

/* What docs/SECURITY.md says. */
enum { BYTES_A_BYTE = 32, BASE = 16 << 20 };

static char folder[256], good[300], bad[300];
static int cases;

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
static volatile long now, highest;

static void *count_in(void *block) {
    long after = __sync_add_and_fetch(&now, (long)malloc_usable_size(block)), seen;
    while (after > (seen = highest) && !__sync_bool_compare_and_swap(&highest, seen, after)) {
    }
    return block;
}

void *malloc(size_t bytes) {
    return count_in(__libc_malloc(bytes));
}
void *calloc(size_t count, size_t bytes) {
    return count_in(__libc_calloc(count, bytes));
}
void *realloc(void *block, size_t bytes) {
    long before = (long)malloc_usable_size(block);
    void *moved = __libc_realloc(block, bytes);
    if (moved != NULL || bytes == 0) {
        __sync_sub_and_fetch(&now, before);
        count_in(moved);
    }
    return moved;
}
void *memalign(size_t alignment, size_t bytes) {
    return count_in(__libc_memalign(alignment, bytes));
}
void *aligned_alloc(size_t alignment, size_t bytes) {
    return count_in(__libc_memalign(alignment, bytes));
}
int posix_memalign(void **block, size_t alignment, size_t bytes) {
    *block = count_in(__libc_memalign(alignment, bytes));
    return *block != NULL ? 0 : ENOMEM;
}
void free(void *block) {
    __sync_sub_and_fetch(&now, (long)malloc_usable_size(block));
    __libc_free(block);
}

/* Bytes of the regular files below path; a link counts for nothing. */
static double bytes_of(const char *path) {
    double sum = 0;
    DIR *dir = opendir(path);
    struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        char below[1024];
        struct stat status;
        snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.' && lstat(below, &status) == 0) {
            sum += S_ISDIR(status.st_mode)   ? bytes_of(below)
                   : S_ISREG(status.st_mode) ? (double)status.st_size
                                             : 0;
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return sum;
}

/* Loads what lies at `bad`: refused as `want` (or loaded, if that is OK), and never more memory than its
 * bytes warrant. */
static void load_bad(const char *what, int32_t want, const char *named) {
    diffusion_process *p = NULL;
    double bytes = bytes_of(bad), taken;
    long before = now;
    int32_t got;
    highest = now;
    got = diffusion_load(bad, NULL, &p);
    taken = (double)(highest - before);
    cases++;
    check_that(got == want, __FILE__, __LINE__, "%s: is \"%s\", should be \"%s\"; message: %s", what,
               diffusion_status_string(got), diffusion_status_string(want), diffusion_last_error_message());
    check_that(named == NULL || strstr(diffusion_last_error_message(), named) != NULL, __FILE__, __LINE__,
               "%s: the message does not name %s: %s", what, named == NULL ? "" : named,
               diffusion_last_error_message());
    check_that(taken <= bytes * BYTES_A_BYTE + BASE, __FILE__, __LINE__,
               "%s: %.0f bytes of files made it take %.0f bytes of memory", what, bytes, taken);
    printf("    %-58s %9.0f bytes of files, %10.0f of memory\n", what, bytes, taken);
    fflush(stdout);
    if (got == DIFFUSION_OK) {
        OK(diffusion_destroy(p));
    }
}

static void fresh(void) {
    must_shell("rm -rf '%s' && cp -a '%s' '%s'", bad, good, bad);
}

/* Writes a file below `bad`. */
static FILE *open_bad(const char *name) {
    char path[400];
    FILE *file;
    snprintf(path, sizeof path, "%s/%s", bad, name);
    file = fopen(path, "wb");
    if (file == NULL) {
        printf("%s: %s\n", path, strerror(errno));
        exit(2);
    }
    return file;
}

static void put_text(const char *name, const char *text) {
    FILE *file = open_bad(name);
    fputs(text, file);
    fclose(file);
}

/* A safetensors file of this header, and `data` zeros behind it. */
static void put_safetensors(const char *name, const char *header, uint64_t claimed, size_t data) {
    FILE *file = open_bad(name);
    int i;
    for (i = 0; i < 8; i++) {
        fputc((int)(claimed >> (8 * i) & 255), file);
    }
    fputs(header, file);
    while (data-- > 0) {
        fputc(0, file);
    }
    fclose(file);
}

#define WEIGHTS "unet/diffusion_pytorch_model.safetensors"
#define INDEX "unet/diffusion_pytorch_model.safetensors.index.json"

static void test_sizes(void) {
    static const char *const shapes[] = {"[1152921504606846976]", "[4294967296,4294967296]",
                                         "[0,9223372036854775807]", "[18446744073709551615]",
                                         "[65536,65536,3,3]"};
    char *text, header[400];
    size_t i;
    SECTION("counts, shapes and offsets that promise more than there is");
    fresh();
    load_bad("as it was saved", DIFFUSION_OK, NULL);
    for (i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        fresh();
        snprintf(header, sizeof header,
                 "{\"conv_in.weight\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[0,8]}}", shapes[i]);
        put_safetensors(WEIGHTS, header, strlen(header), 8);
        load_bad(shapes[i], DIFFUSION_ERROR_FORMAT, "safetensors");
    }
    fresh();
    put_safetensors(WEIGHTS, "{}", (uint64_t)99 << 20, 0);
    load_bad("a header said to be 99 MB long", DIFFUSION_ERROR_FORMAT, "safetensors");
    fresh();
    put_text(
        "unet/config.json",
        "{\"sample_size\":65536,\"in_channels\":65536,\"out_channels\":65536,\"layers_per_block\":64,\"norm_"
        "num_groups\":1,"
        "\"block_out_channels\":[65536,65536,65536,65536,65536,65536,65536,65536,65536,65536,65536,65536,"
        "65536,65536,"
        "65536,65536],\"down_block_types\":[\"AttnDownBlock2D\",\"AttnDownBlock2D\",\"AttnDownBlock2D\","
        "\"AttnDownBlock2D\",\"AttnDownBlock2D\",\"AttnDownBlock2D\",\"AttnDownBlock2D\",\"AttnDownBlock2D\","
        "\"AttnDownBlock2D\",\"AttnDownBlock2D\",\"AttnDownBlock2D\",\"AttnDownBlock2D\",\"AttnDownBlock2D\","
        "\"AttnDownBlock2D\",\"AttnDownBlock2D\",\"AttnDownBlock2D\"],\"up_block_types\":[\"AttnUpBlock2D\","
        "\"AttnUpBlock2D\",\"AttnUpBlock2D\",\"AttnUpBlock2D\",\"AttnUpBlock2D\",\"AttnUpBlock2D\","
        "\"AttnUpBlock2D\","
        "\"AttnUpBlock2D\",\"AttnUpBlock2D\",\"AttnUpBlock2D\",\"AttnUpBlock2D\",\"AttnUpBlock2D\","
        "\"AttnUpBlock2D\","
        "\"AttnUpBlock2D\",\"AttnUpBlock2D\",\"AttnUpBlock2D\"],\"num_class_embeds\":16777216}");
    load_bad("a config of the largest network there is", DIFFUSION_ERROR_FORMAT, "shape");
    fresh();
    put_text("scheduler/scheduler_config.json",
             "{\"num_train_timesteps\":1000000000,\"beta_schedule\":\"linear\"}");
    load_bad("a billion timesteps", DIFFUSION_ERROR_FORMAT, "noise_steps");

    /* Two bytes of JSON become 32 in memory. */
    text = must_alloc((4 << 20) + 1);
    memset(text, ',', 4 << 20);
    for (i = 0; i < 4 << 20; i += 2) {
        text[i] = '0';
    }
    text[0] = '[';
    memcpy(text + (4 << 20) - 2, "0]", 3);
    text[1] = ' ';
    text[2] = '0';
    fresh();
    put_text("unet/config.json", text);
    load_bad("4 MB of numbers as a config", DIFFUSION_ERROR_FORMAT, "config.json");
    free(text);

    /* As many tensors as a header holds. */
    {
        enum { TENSORS = 40000 };
        size_t length = 0;
        text = must_alloc((size_t)TENSORS * 64);
        for (i = 0; i < TENSORS; i++) {
            length += (size_t)sprintf(text + length,
                                      "%c\"%zx\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}",
                                      i == 0 ? '{' : ',', i);
        }
        strcpy(text + length, "}");
        fresh();
        put_safetensors(WEIGHTS, text, length + 1, 0);
        load_bad("40000 tensors of nothing", DIFFUSION_ERROR_FORMAT, "conv_in");
        fresh();
        put_safetensors("training_state.safetensors", text, length + 1, 0);
        load_bad("a training state of them", DIFFUSION_ERROR_FORMAT, "training");
        free(text);
    }
}

static void test_links(void) {
    enum { SHARDS = 1000 };
    char real[400], link_name[400];
    FILE *index;
    int i;
    SECTION("a thousand shards that are links to one large file");
    fresh();
    snprintf(real, sizeof real, "%s/unet/shard-0.safetensors", bad);
    must_shell("rm '%s/%s'", bad, WEIGHTS);
    {
        static const char header[] =
            "{\"conv_in.weight\":{\"dtype\":\"F32\",\"shape\":[1048576],\"data_offsets\":[0,4194304]}}";
        put_safetensors("unet/shard-0.safetensors", header, sizeof header - 1, 4 << 20);
    }
    index = open_bad(INDEX);
    fputs("{\"weight_map\":{", index);
    for (i = 0; i < SHARDS; i++) {
        if (i > 0) {
            snprintf(link_name, sizeof link_name, "%s/unet/shard-%d.safetensors", bad, i);
            CHECK(symlink(real, link_name) == 0);
        }
        fprintf(index, "%s\"%d\":\"shard-%d.safetensors\"", i == 0 ? "" : ",", i, i);
    }
    fputs("}}", index);
    fclose(index);
    load_bad("1000 links to a shard of 4 MB", DIFFUSION_ERROR_FORMAT, "given twice");
}

static void test_names(void) {
    static const char *const names[] = {"../../../secret.safetensors",
                                        "../secret.safetensors",
                                        "/etc/passwd",
                                        "//secret.safetensors",
                                        "./secret.safetensors",
                                        "sub/secret.safetensors",
                                        "..",
                                        "",
                                        "secret.bin",
                                        "..\\\\secret.safetensors",
                                        "a/../secret.safetensors",
                                        "secret\\u0000.safetensors",
                                        "~/secret.safetensors"};
    char text[300], what[200];
    size_t i;
    SECTION("names in an index that lead out of the folder");
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        fresh();
        /* They are all there, so that only the name can be the reason. */
        must_shell(
            "cd '%s'; mv '%s' '%s/secret.safetensors'; cp '%s/secret.safetensors' .; cp secret.safetensors "
            "unet; "
            "mkdir unet/sub; cp secret.safetensors unet/sub",
            bad, WEIGHTS, folder, folder);
        snprintf(text, sizeof text, "{\"weight_map\":{\"conv_in.weight\":\"%s\"}}", names[i]);
        put_text(INDEX, text);
        snprintf(what, sizeof what, "a shard called \"%s\"", names[i]);
        load_bad(what, DIFFUSION_ERROR_FORMAT, "plain name");
    }
}

int main(void) {
    diffusion_config config = tiny_config();
    diffusion_process *p;
    float images[TINY_IMAGE];
    must_tempdir(folder);
    snprintf(good, sizeof good, "%s/good", folder);
    snprintf(bad, sizeof bad, "%s/bad", folder);
    fill_random(images, TINY_IMAGE, 1);
    config.ema_decay = 0.5;
    p = must_create(&config);
    OK(diffusion_train_step(p, images, TINY_IMAGE, 1, NULL));
    OK(diffusion_save(p, good));
    test_sizes();
    test_links();
    test_names();
    OK(diffusion_destroy(p));
    must_shell("rm -rf '%s'", folder);
    printf("    %d checkpoints\n", cases);
    return check_done("hostile");
}
