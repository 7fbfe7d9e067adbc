//! The end of the host: its worker threads must be gone before libtorch's static objects are.
//!
//! A program may return from `main` while a job is being computed. The C library then destroys libtorch's globals under
//! a thread that is using them, unless someone stops that thread first: a handler that `exit` calls does. Handlers run in
//! the reverse order of their registration, so it is registered again once libtorch has computed something and made
//! the globals that it makes on first use.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

use super::{Model, Shared};

/// A worker that can be stopped.
trait Stop: Send + Sync {
    fn stop(&self);
}

impl<M: Model> Stop for Shared<M> {
    fn stop(&self) {
        Shared::stop(self);
    }
}

static LIVE: Mutex<Vec<Weak<dyn Stop>>> = Mutex::new(Vec::new());
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Has a new worker stopped before the host ends.
pub(super) fn watch<M: Model>(worker: &Arc<Shared<M>>) {
    static ARMED: Once = Once::new();
    ARMED.call_once(|| {
        OWNER.store(std::process::id(), Ordering::Relaxed);
        M::at_exit(stop_all);
    });
    let worker: Arc<dyn Stop> = worker.clone();
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    live.retain(|worker| worker.strong_count() > 0);
    live.push(Arc::downgrade(&worker));
}

/// To be called after the first denoising step and after the first task of all: see above.
pub(super) fn arm_again<M: Model>(once: &Once) {
    once.call_once(|| M::at_exit(stop_all));
}

extern "C" fn stop_all() {
    // A forked child has no worker threads, and would wait for them for ever.
    if OWNER.load(Ordering::Relaxed) != std::process::id() {
        return;
    }
    // Whoever holds the lock while the host ends is not coming back.
    let Ok(live) = LIVE.try_lock() else { return };
    let workers: Vec<Arc<dyn Stop>> = live.iter().filter_map(Weak::upgrade).collect();
    drop(live);
    for worker in workers {
        worker.stop();
    }
}
