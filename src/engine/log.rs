//! The log of a process: what is logged before anyone listens is kept and delivered when someone does.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};

/// Receives (level, message), one call at a time.
pub type LogSink = Box<dyn FnMut(i32, &CStr) + Send>;

/// How many records wait for a listener at most; the oldest go first.
const BACKLOG: usize = 64;

/// Level of what is likely to give poor results.
pub(super) const WARNING: i32 = 1;

thread_local! {
    static IN_SINK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a sink right now, from where the library must not be called.
pub(super) fn in_sink() -> bool {
    IN_SINK.with(Cell::get)
}

#[derive(Default)]
struct State {
    sink: Option<LogSink>,
    backlog: VecDeque<(i32, CString)>,
}

/// One process's log.
#[derive(Default)]
pub(super) struct Log(Mutex<State>);

impl Log {
    pub(super) fn write(&self, level: i32, message: &str) {
        let message = CString::new(message.replace('\0', "?")).unwrap_or_default();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.backlog.len() == BACKLOG {
            state.backlog.pop_front();
        }
        state.backlog.push_back((level, message));
        deliver(&mut state);
    }

    /// Replaces the sink; the old one is not running when this returns, and never runs again.
    pub(super) fn set_sink(&self, sink: Option<LogSink>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.sink = sink;
        deliver(&mut state);
    }
}

fn deliver(state: &mut State) {
    let Some(sink) = &mut state.sink else { return };
    IN_SINK.with(|flag| flag.set(true));
    for (level, message) in state.backlog.drain(..) {
        sink(level, &message);
    }
    IN_SINK.with(|flag| flag.set(false));
}
