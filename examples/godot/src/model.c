/* See model.h. */

#define _GNU_SOURCE
#include "model.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "errors.h"

struct model {
    model *next; /* in the list of those that can be shared */
    int users;
    model_state state;
    char *folder;
    int device, threads;
    diffusion_process *process;
    int image_size;
    int error;
    char message[1024];
};

/* One lock for all models, held for moments only; threads that load or destroy do so without it. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static model *models;
static int running_threads;

static bool refused(model *m, int32_t status) {
    if (status == DIFFUSION_OK) return false;
    m->error = godot_error_of(status);
    snprintf(m->message, sizeof m->message, "%s", diffusion.diffusion_last_error_message());
    return true;
}

static bool load(model *m) {
    diffusion_config config;
    if (!library_open(&m->error, m->message, sizeof m->message)) return false;
    if (refused(m, diffusion.diffusion_config_init(&config))) return false;
    config.device = m->device;
    config.num_threads = m->threads;
    if (refused(m, diffusion.diffusion_load(m->folder, &config, &m->process))) return false;
    if (refused(m, diffusion.diffusion_get_config(m->process, &config))) {
        diffusion.diffusion_destroy(m->process);
        return false;
    }
    m->image_size = config.image_size;
    return true;
}

static void leave_list(const model *m) {
    for (model **place = &models; *place != NULL; place = &(*place)->next) {
        if (*place == m) {
            *place = m->next;
            return;
        }
    }
}

/* Where cores are scarce, frames go first. On Linux the policy is a thread's own and handed on to the threads
 * that it starts: here, to all that compute. An idle-class thread leaves a core as soon as any other wants
 * it; a merely "nicer" one keeps it for milliseconds more, which is what makes a frame late. */
static void give_way(void) {
    const struct sched_param none = {0};
    sched_setscheduler(0, SCHED_IDLE, &none); /* may fail: then it is as it was */
}

static void *live(void *argument) {
    model *m = argument;
    give_way();
    bool loaded = load(m);
    pthread_mutex_lock(&mutex);
    m->state = loaded ? MODEL_READY : MODEL_FAILED;
    if (!loaded) leave_list(m); /* whoever asks next tries again */
    while (m->users > 0) {
        pthread_cond_wait(&changed, &mutex);
    }
    pthread_mutex_unlock(&mutex);
    if (loaded) diffusion.diffusion_destroy(m->process);
    free(m->folder);
    free(m);
    pthread_mutex_lock(&mutex);
    running_threads--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
    return NULL;
}

model *model_acquire(const char *folder, int device, int threads) {
    pthread_mutex_lock(&mutex);
    model *m = models;
    while (m != NULL && (strcmp(m->folder, folder) != 0 || m->device != device || m->threads != threads)) {
        m = m->next;
    }
    if (m == NULL && (m = calloc(1, sizeof *m)) != NULL) {
        pthread_t thread;
        m->folder = strdup(folder);
        m->device = device;
        m->threads = threads;
        m->next = models;
        models = m;
        if (pthread_create(&thread, NULL, live, m) == 0) {
            pthread_detach(thread);
            running_threads++;
        } else {
            leave_list(m);
            free(m->folder);
            free(m);
            m = NULL;
        }
    }
    if (m != NULL) m->users++;
    pthread_mutex_unlock(&mutex);
    return m;
}

void model_retain(model *m) {
    pthread_mutex_lock(&mutex);
    m->users++;
    pthread_mutex_unlock(&mutex);
}

void model_release(model *m) {
    pthread_mutex_lock(&mutex);
    if (--m->users == 0) {
        leave_list(m);
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&mutex);
}

model_state model_poll(model *m) {
    pthread_mutex_lock(&mutex);
    model_state state = m->state;
    pthread_mutex_unlock(&mutex);
    return state;
}

diffusion_process *model_process(const model *m) {
    return m->process;
}

int model_image_size(const model *m) {
    return m->image_size;
}

int model_error(const model *m) {
    return m->error;
}

const char *model_message(const model *m) {
    return m->message;
}

void models_join(void) {
    pthread_mutex_lock(&mutex);
    while (running_threads > 0) {
        pthread_cond_wait(&changed, &mutex);
    }
    pthread_mutex_unlock(&mutex);
}
