/*
 * Checkpoints that are not, or not any more: every file of a good one truncated, emptied, removed, replaced,
 * its JSON broken or foreign, its tensors lying, random bytes changed. Each is a status with the file's name,
 * never a crash.
 */
#include "refused.h"

#include <dirent.h>

/* The paths, below root, of all regular files there. */
static size_t list_files(const char *root, const char *below, char (*paths)[256], size_t room) {
    char path[1024];
    struct dirent *entry;
    size_t count = 0;
    DIR *dir;
    snprintf(path, sizeof path, "%s/%s", root, below);
    dir = opendir(path);
    while (dir != NULL && (entry = readdir(dir)) != NULL && count < room) {
        struct stat info;
        char sub[512];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            continue;
        }
        snprintf(sub, sizeof sub, "%s%s%s", below, below[0] ? "/" : "", entry->d_name);
        snprintf(path, sizeof path, "%s/%s", root, sub);
        if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
            count += list_files(root, sub, paths + count, room - count);
        } else {
            snprintf(paths[count++], 256, "%.255s", sub);
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return count;
}

/* A load that must be refused, leaving nothing behind. Where the file is unreadable rather than wrong, IO is
 * right. */
static void refuse_load(const char *path, const char *what, const char *named) {
    int32_t got;
    memcpy(&o_before, &o, sizeof o);
    got = diffusion_load(path, NULL, &o.process);
    check_that(got == DIFFUSION_ERROR_FORMAT || got == DIFFUSION_ERROR_IO, __FILE__, __LINE__,
               "load of %s: is \"%s\"; message: %s", what, diffusion_status_string(got),
               got == DIFFUSION_OK ? "" : diffusion_last_error_message());
    if (got == DIFFUSION_OK) {
        diffusion_destroy(o.process);
        o.process = o_before.process;
        return;
    }
    check_message(__FILE__, __LINE__, what, named, NULL, NULL);
    check_that(memcmp(&o, &o_before, sizeof o) == 0, __FILE__, __LINE__, "load of %s wrote to an output",
               what);
    CHECK(alive());
}

/* As refuse_load, and the status is FORMAT: what the header says of damaged files. */
static void refuse_format(const char *path, const char *what, const char *named) {
    refuse_load(path, what, named);
    check_that(diffusion_load(path, NULL, &o.process) == DIFFUSION_ERROR_FORMAT, __FILE__, __LINE__,
               "load of %s: should be \"%s\"; message: %s", what,
               diffusion_status_string(DIFFUSION_ERROR_FORMAT), diffusion_last_error_message());
}

/* Replaces the value of a key in a JSON file where the key stands once. */
static void set_json(const char *path, const char *key, const char *value) {
    size_t bytes, start, end;
    char *content = (char *)get_file(path, &bytes), quoted[128], *at, *changed;
    int depth = 0;
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    at = strstr(content, quoted);
    if (!check_that(at != NULL && (at = strchr(at + strlen(quoted), ':')) != NULL, __FILE__, __LINE__,
                    "%s has no field %s", path, key)) {
        free(content);
        return;
    }
    start = (size_t)(at + 1 - content);
    for (end = start; end < bytes; end++) {
        char c = content[end];
        if (depth == 0 && (c == ',' || c == '}')) {
            break;
        }
        depth += c == '[' || c == '{';
        depth -= c == ']' || c == '}';
    }
    changed = must_alloc(bytes + strlen(value) + 2);
    memcpy(changed, content, start);
    changed[start] = ' ';
    memcpy(changed + start + 1, value, strlen(value));
    memcpy(changed + start + 1 + strlen(value), content + end, bytes - end);
    put_file(path, changed, start + 1 + strlen(value) + bytes - end);
    free(content);
    free(changed);
}

static void test_paths(const char *good) {
    char path[512], long_name[4200];
    diffusion_config overrides = tiny_config();
    struct stat info;
    size_t bytes;
    char *content;
    SECTION("paths");
    snprintf(path, sizeof path, "%s/missing", folder);
    REFUSED(diffusion_load(path, NULL, &o.process), DIFFUSION_ERROR_IO, "missing", NULL, NULL);
    REFUSED_EITHER(diffusion_load("", NULL, &o.process), DIFFUSION_ERROR_IO, INVALID, NULL, NULL, NULL);
    REFUSED_EITHER(diffusion_save(process, ""), INVALID, DIFFUSION_ERROR_IO, NULL, NULL, NULL);
    REFUSED(diffusion_load("\xFF\xFE", NULL, &o.process), INVALID, "path", NULL, "UTF-8");
    REFUSED(diffusion_save(process, "\xFF\xFE"), INVALID, "path", NULL, "UTF-8");
    memset(long_name, 'a', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    REFUSED(diffusion_load(long_name, NULL, &o.process), DIFFUSION_ERROR_IO, NULL, NULL, NULL);
    REFUSED(diffusion_save(process, long_name), DIFFUSION_ERROR_IO, NULL, NULL, NULL);

    snprintf(path, sizeof path, "%s/text", folder);
    put_file(path, "not a checkpoint\n", 17);
    refuse_load(path, "a text file", "text");
    REFUSED_EITHER(diffusion_save(process, path), INVALID, DIFFUSION_ERROR_IO, "text", NULL, NULL);
    content = (char *)get_file(path, &bytes);
    CHECK(bytes == 17 && memcmp(content, "not a checkpoint\n", 17) == 0);
    free(content);
    snprintf(path, sizeof path, "%s/text/below", folder);
    REFUSED(diffusion_save(process, path), DIFFUSION_ERROR_IO, "text", NULL, NULL);
    refuse_load(path, "a path through a file", "text");
    REFUSED(diffusion_save(process, "/proc/diffusion-test/checkpoint"), DIFFUSION_ERROR_IO, "/proc", NULL,
            NULL);

    snprintf(path, sizeof path, "%s/empty", folder);
    mkdir(path, 0777);
    refuse_load(path, "an empty folder", "empty");
    snprintf(path, sizeof path, "%s/photos", folder);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/photos/holiday.jpg", folder);
    put_file(path, "mine", 4);
    snprintf(path, sizeof path, "%s/photos", folder);
    refuse_load(path, "a folder of other things", "photos");
    REFUSED(diffusion_save(process, path), INVALID, "photos", NULL, NULL);
    snprintf(path, sizeof path, "%s/photos/holiday.jpg", folder);
    CHECK(stat(path, &info) == 0 && info.st_size == 4);
    snprintf(path, sizeof path, "%s/photos/unet", folder);
    CHECK(stat(path, &info) != 0);

    /* Export refuses what save refuses, and precisions that are none, before it writes anything. */
    snprintf(path, sizeof path, "%s/photos", folder);
    REFUSED(diffusion_export(process, path, DIFFUSION_PRECISION_F32), INVALID, "photos", NULL, NULL);
    snprintf(path, sizeof path, "%s/unwritten", folder);
    REFUSED(diffusion_export(process, path, -1), INVALID, "precision", "-1", NULL);
    REFUSED(diffusion_export(process, path, 3), INVALID, "precision", "3", NULL);
    REFUSED(diffusion_export(process, "/proc/diffusion-test/x", DIFFUSION_PRECISION_BF16), DIFFUSION_ERROR_IO,
            "/proc", NULL, NULL);
    CHECK(stat(path, &info) != 0);

    /* Overrides are a config like any other. */
    overrides.struct_size = 4;
    REFUSED(diffusion_load(good, &overrides, &o.process), INVALID, "struct_size", "4", NULL);
    OK(diffusion_config_init(&overrides));
    overrides.device = 77;
    REFUSED(diffusion_load(good, &overrides, &o.process), INVALID, "device", "77", NULL);
    OK(diffusion_config_init(&overrides));
    overrides.learning_rate = -1;
    REFUSED(diffusion_load(good, &overrides, &o.process), INVALID, "learning_rate", "-1", NULL);
    OK(diffusion_config_init(&overrides));
    overrides.device = DIFFUSION_DEVICE_CUDA;
    overrides.device_index = 1000;
    REFUSED(diffusion_load(good, &overrides, &o.process), DIFFUSION_ERROR_DEVICE_UNAVAILABLE, "device", NULL,
            NULL);
}

/* A fresh copy of the good checkpoint; returns its path. */
static const char *fresh_copy(const char *good) {
    static char copy[400];
    snprintf(copy, sizeof copy, "%s/copy", folder);
    must_shell("rm -rf '%s' && cp -R '%s' '%s'", copy, good, copy);
    return copy;
}

static void test_damaged(const char *good) {
    char paths[64][256], path[1024], what[400];
    size_t files, f;
    const char *copy;
    SECTION("checkpoints: every file truncated, emptied, removed, replaced by a folder");
    files = list_files(good, "", paths, 64);
    CHECK_INT(files, >=, 5);
    for (f = 0; f < files; f++) {
        size_t bytes, cuts[10], cut, i, n = 0;
        unsigned char *content;
        const char *base = strrchr(paths[f], '/') ? strrchr(paths[f], '/') + 1 : paths[f];
        snprintf(path, sizeof path, "%s/%s", good, paths[f]);
        content = get_file(path, &bytes);
        cuts[n++] = 0;
        cuts[n++] = 1;
        cuts[n++] = 7;
        cuts[n++] = 8;
        cuts[n++] = 9;
        cuts[n++] = bytes / 3;
        cuts[n++] = bytes / 2;
        cuts[n++] = bytes - 4;
        for (i = 0; i < n; i++) {
            cut = cuts[i];
            copy = fresh_copy(good);
            snprintf(path, sizeof path, "%s/%s", copy, paths[f]);
            put_file(path, content, cut);
            snprintf(what, sizeof what, "%s cut to %zu of %zu bytes", paths[f], cut, bytes);
            refuse_format(copy, what, base);
        }
        copy = fresh_copy(good);
        snprintf(path, sizeof path, "%s/%s", copy, paths[f]);
        put_file(path, "GIF89a, really", 14);
        snprintf(what, sizeof what, "%s with foreign content", paths[f]);
        refuse_format(copy, what, base);
        must_shell("rm '%s' && mkdir '%s'", path, path);
        snprintf(what, sizeof what, "%s as a folder", paths[f]);
        refuse_load(copy, what, base);
        must_shell("rmdir '%s' && ln -s '%s' '%s'", path, base, path);
        snprintf(what, sizeof what, "%s as a link to itself", paths[f]);
        refuse_load(copy, what, base);
        must_shell("rm '%s'", path);
        /* Without it the checkpoint may be one without training state, or it is none; but never a crash. */
        memcpy(&o_before, &o, sizeof o);
        if (diffusion_load(copy, NULL, &o.process) == DIFFUSION_OK) {
            CHECK(strstr(paths[f], "unet/") == NULL);
            OK(diffusion_destroy(o.process));
        } else {
            check_message(__FILE__, __LINE__, "load with a file missing", base, NULL, NULL);
        }
        free(content);
    }
}

/* Random bytes changed in random places: any status, no crash. The seed is fixed, so that a failure comes
 * again. */
static void test_fuzzed(const char *good) {
    char paths[64][256], path[1024];
    size_t files = list_files(good, "", paths, 64), f;
    uint64_t state = 99;
    long loaded = 0, refused = 0;
    SECTION("checkpoints: random bytes changed");
    for (f = 0; f < files; f++) {
        const char *copy = fresh_copy(good);
        size_t bytes, i, round;
        unsigned char *content;
        snprintf(path, sizeof path, "%s/%s", copy, paths[f]);
        content = get_file(path, &bytes);
        for (round = 0; round < 60; round++) {
            unsigned char *changed = must_alloc(bytes);
            int32_t got;
            /* Headers are where structure is: half the rounds change only the first kilobyte. */
            size_t reach = round % 2 == 0 && bytes > 1024 ? 1024 : bytes;
            memcpy(changed, content, bytes);
            for (i = 0; i <= next_random(&state) % 4; i++) {
                changed[next_random(&state) % reach] = (unsigned char)next_random(&state);
            }
            put_file(path, changed, bytes);
            got = diffusion_load(copy, NULL, &o.process);
            if (got == DIFFUSION_OK) {
                loaded++;
                OK(diffusion_destroy(o.process));
            } else {
                refused++;
                check_that(got == DIFFUSION_ERROR_FORMAT || got == DIFFUSION_ERROR_IO || got == INVALID ||
                               got == DIFFUSION_ERROR_NON_FINITE || got == DIFFUSION_ERROR_OUT_OF_MEMORY,
                           __FILE__, __LINE__, "load of a changed %s: is \"%s\"; message: %s", paths[f],
                           diffusion_status_string(got), diffusion_last_error_message());
            }
            free(changed);
        }
        free(content);
    }
    CHECK_INT(refused, >, 0);
    CHECK(alive());
    printf("    %ld changed checkpoints loaded, %ld were refused\n", loaded, refused);
}

static const char *known_as(const char *key) {
    static const char *const names[][2] = {
        {"sample_size", "sample_size|image_size"},
        {"in_channels", "in_channels|conv_in"},
        {"out_channels", "out_channels|conv_out"},
        {"block_out_channels", "block_out_channels|hidden_dims|image_size"},
        {"num_train_timesteps", "num_train_timesteps|noise_steps"}};
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(key, names[i][0]) == 0) {
            return names[i][1];
        }
    }
    return key;
}

/* The message names the file, and the field or what this library calls it or the tensor that contradicts it.
 */
#define BAD_JSON(file, key, value)                                     \
    do {                                                               \
        char json_path[1024];                                          \
        copy = fresh_copy(good);                                       \
        snprintf(json_path, sizeof json_path, "%s/%s", copy, file);    \
        set_json(json_path, key, value);                               \
        refuse_format(copy, file ": " key " = " value, known_as(key)); \
    } while (0)

static void test_wrong_json(const char *good) {
    static const char *texts[] = {"{",
                                  "}",
                                  "[]",
                                  "null",
                                  "17",
                                  "\"x\"",
                                  "{}",
                                  "{\"a\":}",
                                  "{\"a\":1,}",
                                  "\xEF\xBB\xBF{",
                                  "{\"_class_name\": 3}"};
    const char *copy;
    char path[1024], what[200], *deep;
    size_t i;
    SECTION("checkpoints: JSON that is broken, foreign or unsupported");
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        copy = fresh_copy(good);
        snprintf(path, sizeof path, "%s/unet/config.json", copy);
        put_file(path, texts[i], strlen(texts[i]));
        snprintf(what, sizeof what, "unet/config.json with %s", texts[i]);
        refuse_format(copy, what, "config.json");
    }
    deep = must_alloc(1000000);
    memset(deep, '[', 1000000);
    copy = fresh_copy(good);
    snprintf(path, sizeof path, "%s/unet/config.json", copy);
    put_file(path, deep, 1000000);
    refuse_format(copy, "a million brackets", "config.json");
    free(deep);

    BAD_JSON("unet/config.json", "sample_size", "0");
    BAD_JSON("unet/config.json", "sample_size", "-8");
    BAD_JSON("unet/config.json", "sample_size", "9");
    BAD_JSON("unet/config.json", "sample_size", "99999999999999999999");
    BAD_JSON("unet/config.json", "sample_size", "\"8\"");
    BAD_JSON("unet/config.json", "sample_size", "[8, 16]");
    BAD_JSON("unet/config.json", "in_channels", "65");
    BAD_JSON("unet/config.json", "out_channels", "6");
    BAD_JSON("unet/config.json", "block_out_channels", "[]");
    BAD_JSON("unet/config.json", "block_out_channels", "[8, 16, 16, 16, 16, 16, 16, 16, 16]");
    BAD_JSON("unet/config.json", "block_out_channels", "[8, -16]");
    BAD_JSON("unet/config.json", "block_out_channels", "[8, 1e99]");
    BAD_JSON("unet/config.json", "layers_per_block", "0");
    BAD_JSON("unet/config.json", "layers_per_block", "2000000000");
    BAD_JSON("unet/config.json", "act_fn", "\"tanh\"");
    BAD_JSON("unet/config.json", "down_block_types", "[\"DownBlock2D\", \"SkipDownBlock2D\"]");
    BAD_JSON("unet/config.json", "down_block_types", "[\"DownBlock2D\"]");
    BAD_JSON("unet/config.json", "norm_num_groups", "0");
    BAD_JSON("unet/config.json", "norm_num_groups", "7");
    BAD_JSON("unet/config.json", "norm_eps", "-1");
    BAD_JSON("scheduler/scheduler_config.json", "num_train_timesteps", "0");
    BAD_JSON("scheduler/scheduler_config.json", "num_train_timesteps", "-50");
    BAD_JSON("scheduler/scheduler_config.json", "num_train_timesteps", "1e30");
    BAD_JSON("scheduler/scheduler_config.json", "num_train_timesteps", "\"50\"");
    BAD_JSON("scheduler/scheduler_config.json", "prediction_type", "\"flow\"");
    BAD_JSON("scheduler/scheduler_config.json", "beta_schedule", "\"cubic\"");

    /* Another net's config: the weights contradict it. */
    copy = fresh_copy(good);
    snprintf(path, sizeof path, "%s/unet/config.json", copy);
    set_json(path, "block_out_channels", "[8, 24]");
    refuse_format(copy, "another net's block_out_channels", NULL);
    copy = fresh_copy(good);
    snprintf(path, sizeof path, "%s/unet/config.json", copy);
    set_json(path, "layers_per_block", "1");
    refuse_format(copy, "another net's layers_per_block", NULL);
    copy = fresh_copy(good);
    snprintf(path, sizeof path, "%s/unet/config.json", copy);
    set_json(path, "layers_per_block", "3");
    refuse_format(copy, "another net's layers_per_block", NULL);
}

/* The header of a safetensors file replaced by text; its data stays. */
static void put_safetensors(const char *path, const char *header, uint64_t claimed, const unsigned char *data,
                            size_t data_bytes) {
    size_t length = strlen(header);
    unsigned char *content = must_alloc(8 + length + data_bytes);
    int i;
    for (i = 0; i < 8; i++) {
        content[i] = (unsigned char)(claimed >> (8 * i));
    }
    memcpy(content + 8, header, length);
    if (data_bytes != 0) {
        memcpy(content + 8 + length, data, data_bytes);
    }
    put_file(path, content, 8 + length + data_bytes);
    free(content);
}

static void test_wrong_safetensors(const char *good) {
    static const uint64_t claims[] = {
        0, 1, 100, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 40, (uint64_t)1 << 63};
    const char *copy = fresh_copy(good);
    char path[1024], what[200], *header;
    unsigned char *content;
    size_t bytes, i, length, data_bytes;
    SECTION("checkpoints: safetensors that lie");
    snprintf(path, sizeof path, "%s/unet/diffusion_pytorch_model.safetensors", copy);
    content = get_file(path, &bytes);
    for (length = 0, i = 0; i < 8; i++) {
        length |= (size_t)content[i] << (8 * i);
    }
    if (!CHECK(length < bytes)) {
        return;
    }
    header = must_alloc(length + 1);
    memcpy(header, content + 8, length);
    header[length] = 0;
    data_bytes = bytes - 8 - length;
    for (i = 0; i < sizeof claims / sizeof *claims; i++) {
        put_safetensors(path, header, claims[i], content + 8 + length, data_bytes);
        snprintf(what, sizeof what, "a header length of %llu", (unsigned long long)claims[i]);
        refuse_format(copy, what, "diffusion_pytorch_model.safetensors");
    }
    put_safetensors(path, "{}", 2, NULL, 0);
    refuse_format(copy, "no tensors", "diffusion_pytorch_model.safetensors");
    put_safetensors(path, "[1,2]", 5, NULL, 0);
    refuse_format(copy, "a header that is a list", "diffusion_pytorch_model.safetensors");
    {
        static const struct {
            const char *from, *to, *what;
        } lies[] = {
            {"conv_in.weight", "conv_in.height", "a tensor of another name"},
            {"[8,3,3,3]", "[8,3,9,1]", "a tensor of another shape"},
            {"[8,3,3,3]", "[9,3,3,3]", "a shape that its bytes contradict"},
            {"\"F32\"", "\"I32\"", "a tensor of integers"},
            {"\"F32\"", "\"F99\"", "a type that does not exist"},
            {"\"data_offsets\":[", "\"data_offsets\":-", "offsets that are no list"},
            {"\"shape\"", "\"shapf\"", "a tensor without a shape"},
        };
        for (i = 0; i < sizeof lies / sizeof *lies; i++) {
            char *changed = must_alloc(length + 1), *at;
            memcpy(changed, header, length + 1);
            at = strstr(changed, lies[i].from);
            if (check_that(at != NULL, __FILE__, __LINE__, "the header of the weights does not hold %s",
                           lies[i].from)) {
                memcpy(at, lies[i].to, strlen(lies[i].to));
                put_safetensors(path, changed, length, content + 8 + length, data_bytes);
                refuse_format(copy, lies[i].what, "diffusion_pytorch_model.safetensors");
            }
            free(changed);
        }
    }
    /* More data than the header describes. */
    content = realloc(content, bytes + 16);
    if (content != NULL) {
        memset(content + bytes, 0, 16);
        put_file(path, content, bytes + 16);
        refuse_format(copy, "bytes after the last tensor", "diffusion_pytorch_model.safetensors");
    }

    /* A pickle in its place is named as what it is, and not opened. */
    must_shell("rm '%s' && printf '\\200\\002cposix\\nsystem\\nq' > '%s/unet/diffusion_pytorch_model.bin'",
               path, copy);
    refuse_load(copy, "a pickle", "diffusion_pytorch_model.bin");
    free(content);
    free(header);
}

static void test_checkpoints(void) {
    char good[300];
    diffusion_process *loaded = NULL;
    snprintf(good, sizeof good, "%s/good", folder);
    if (!OK(diffusion_save(process, good)) || !OK(diffusion_load(good, NULL, &loaded))) {
        return;
    }
    OK(diffusion_destroy(loaded));
    test_paths(good);
    test_damaged(good);
    test_wrong_json(good);
    test_wrong_safetensors(good);
    test_fuzzed(good);
    OK(diffusion_load(good, NULL, &loaded));
    OK(diffusion_destroy(loaded));
}

int main(void) {
    make_fixture();
    test_checkpoints();
    end_fixture();
    return check_done("checkpoints");
}
