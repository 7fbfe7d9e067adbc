//! The table behind the handles. A handle is a generational key that only looks like a pointer: a stale, foreign
//! or wrong one is not found, whatever its bits.

use std::sync::{Arc, PoisonError, RwLock};

use once_cell::sync::Lazy;
use slotmap::{DefaultKey, Key, KeyData, SlotMap};

use super::types::{diffusion_job, diffusion_process};
use crate::engine::{Engine, Job};
use crate::{Error, Result};

/// What a handle can stand for. One table for both, so that one kind's key can never be the other's.
enum Entry {
    Process(Arc<Engine>),
    Job(Arc<Job>),
}

static TABLE: Lazy<RwLock<SlotMap<DefaultKey, Entry>>> = Lazy::new(Default::default);

const _: () = assert!(usize::BITS == 64, "a handle holds a 64-bit key in a pointer");

/// The key in a handle, unless no key has these bits.
fn key(handle: *const ()) -> Option<DefaultKey> {
    let bits = handle.addr() as u64;
    // slotmap repairs bits that it never gave out; such a handle must not become somebody else's.
    let key = KeyData::from_ffi(bits);
    (key.as_ffi() == bits).then(|| key.into())
}

fn insert(entry: Entry) -> usize {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    table.insert(entry).data().as_ffi() as usize
}

/// Looks a handle up, or takes it out of the table, as `action` does.
fn find<T>(kind: &str, handle: *const (), action: impl FnOnce(DefaultKey) -> Option<T>) -> Result<T> {
    if handle.is_null() {
        return Err(Error::InvalidHandle(format!("{kind} is NULL: must be a live handle of a {kind}")));
    }
    key(handle).and_then(action).ok_or_else(|| {
        Error::InvalidHandle(format!(
            "{kind} is {handle:p}: must be a live handle of a {kind}, but this one was destroyed, is of another \
             type, or never was a handle"
        ))
    })
}

/// Gives a process its handle.
pub(super) fn add_process(engine: Engine) -> *mut diffusion_process {
    std::ptr::without_provenance_mut(insert(Entry::Process(Arc::new(engine))))
}

/// Gives a job its handle.
pub(super) fn add_job(job: Arc<Job>) -> *mut diffusion_job {
    std::ptr::without_provenance_mut(insert(Entry::Job(job)))
}

/// The process behind a handle.
pub(super) fn process(handle: *const diffusion_process) -> Result<Arc<Engine>> {
    find("process", handle.cast(), |key| {
        let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
        match table.get(key) {
            Some(Entry::Process(engine)) => Some(Arc::clone(engine)),
            _ => None,
        }
    })
}

/// The job behind a handle.
pub(super) fn job(handle: *const diffusion_job) -> Result<Arc<Job>> {
    find("job", handle.cast(), |key| {
        let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
        match table.get(key) {
            Some(Entry::Job(job)) => Some(Arc::clone(job)),
            _ => None,
        }
    })
}

/// Ends a process's handle and gives the process back to be stopped.
pub(super) fn take_process(handle: *const diffusion_process) -> Result<Arc<Engine>> {
    find("process", handle.cast(), |key| {
        let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
        match table.get(key) {
            Some(Entry::Process(_)) => match table.remove(key) {
                Some(Entry::Process(engine)) => Some(engine),
                _ => None,
            },
            _ => None,
        }
    })
}

/// Ends a job's handle and gives the job back to be cancelled.
pub(super) fn take_job(handle: *const diffusion_job) -> Result<Arc<Job>> {
    find("job", handle.cast(), |key| {
        let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
        match table.get(key) {
            Some(Entry::Job(_)) => match table.remove(key) {
                Some(Entry::Job(job)) => Some(job),
                _ => None,
            },
            _ => None,
        }
    })
}
