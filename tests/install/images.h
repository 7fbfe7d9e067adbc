/* What the C and the C++ consumer check: that the library and all it needs were loaded from one place, and
 * that what it made are pictures. */
#ifndef IMAGES_H
#define IMAGES_H

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Says on stderr what of libdiffusion, libtorch or their company this program runs from outside of `prefix`,
 * and what it runs from inside of `checkout`. Returns the number of such things. Both are absolute, without
 * links. */
static int strangers(const char *prefix, const char *checkout) {
    static const char *const ours[] = {"libdiffusion", "libtorch",  "libc10",
                                       "libgomp",      "libcudart", "libcupti"};
    char line[8192], last[8192] = "";
    int found = 0, wrong = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    if (maps == NULL) return perror("/proc/self/maps"), 1;
    while (fgets(line, sizeof line, maps) != NULL) {
        char *path = strchr(line, '/');
        int is_ours = 0;
        if (path == NULL) continue;
        path[strcspn(path, "\n")] = '\0';
        if (strcmp(path, last) == 0) continue;
        strcpy(last, path);
        for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
            is_ours |= strncmp(strrchr(path, '/') + 1, ours[i], strlen(ours[i])) == 0;
        found += is_ours;
        if ((is_ours && strncmp(path, prefix, strlen(prefix)) != 0) ||
            strncmp(path, checkout, strlen(checkout)) == 0) {
            fprintf(stderr, "loaded from a strange place: %s\n", path);
            wrong++;
        }
        if (strstr(path, "libtorch_cuda.so") != NULL) puts("libtorch_cuda.so is loaded");
    }
    fclose(maps);
    if (found < 6) fprintf(stderr, "only %d of the 6 libraries are loaded\n", found);
    return wrong + (found < 6);
}

/* Whether `count` images of `len` values each are finite, not flat, and not all the same. */
static int are_pictures(const float *images, size_t count, size_t len) {
    for (size_t i = 0; i < count; i++) {
        double sum = 0, squares = 0, difference = 0;
        for (size_t k = 0; k < len; k++) {
            double value = (double)images[i * len + k];
            if (!isfinite(value)) return fprintf(stderr, "image %zu: value %zu is %f\n", i, k, value), 0;
            sum += value;
            squares += value * value;
            difference += fabs(value - (double)images[k]);
        }
        double deviation = sqrt(squares / (double)len - sum * sum / (double)len / (double)len);
        if (!(deviation > 0.02)) return fprintf(stderr, "image %zu is flat: deviation %f\n", i, deviation), 0;
        if (i > 0 && !(difference / (double)len > 0.02))
            return fprintf(stderr, "image %zu is image 0\n", i), 0;
    }
    return 1;
}

#endif
