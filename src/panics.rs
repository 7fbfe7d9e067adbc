//! What becomes of a panic: an [`Error::Internal`] with its text and place, and nothing printed.
//!
//! The hook is installed by the C ABI only. A Rust program that uses this crate keeps its own hook.

use std::any::Any;
use std::cell::RefCell;

use crate::Error;

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes panics of this library silent; their place is kept for [`to_error`].
pub(crate) fn install_quiet_hook() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
        let _ = PLACE.try_with(|slot| *slot.borrow_mut() = place);
    }));
}

/// The error for a caught panic.
pub(crate) fn to_error(payload: Box<dyn Any + Send>) -> Error {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic with an unknown payload".into());
    let place = PLACE.try_with(|slot| slot.borrow_mut().take()).ok().flatten();
    Error::Internal(match place {
        Some(place) => format!("{text} (at {place})"),
        None => text,
    })
}
