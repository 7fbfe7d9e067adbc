//! Turns at the CPU: several processes on one machine compute one after the other, in the order in which they asked,
//! instead of all at once on twice the threads there are cores.

use std::sync::{Condvar, Mutex, PoisonError};

struct Turns {
    next: u64,
    serving: u64,
}

static TURNS: Mutex<Turns> = Mutex::new(Turns { next: 0, serving: 0 });
static MOVED: Condvar = Condvar::new();

/// The right to compute, until dropped.
pub(super) struct Turn(());

impl Turn {
    /// Waits for this thread's turn. First come, first served: a plain mutex would let a busy process starve others.
    pub(super) fn take() -> Self {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = turns.next;
        turns.next += 1;
        while turns.serving != mine {
            turns = MOVED.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        Turn(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURNS.lock().unwrap_or_else(PoisonError::into_inner).serving += 1;
        MOVED.notify_all();
    }
}
