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
    if let Some(thrown) = thrown_by_torch(&text) {
        return Error::from_torch(&thrown);
    }
    Error::Internal(match place {
        Some(place) => format!("{text} (at {place})"),
        None => text,
    })
}

/// What libtorch threw where tch has no fallible form, such as for a number that becomes an argument: tch unwraps it
/// there, and the first line stands, as `{:?}` writes it, in the panic's text.
fn thrown_by_torch(text: &str) -> Option<String> {
    let quoted =
        text.strip_prefix("called `Result::unwrap()` on an `Err` value: Torch(\"")?.strip_suffix("\")")?;
    let line = quoted.split("\\n").next().unwrap_or_default();
    Some(line.replace("\\\"", "\"").replace("\\'", "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unwrapped(text: &str) -> Error {
        let panic = std::panic::catch_unwind(|| {
            let failed: std::result::Result<(), _> = Err(tch::TchError::Torch(text.to_owned()));
            std::hint::black_box(failed).unwrap();
        });
        to_error(panic.unwrap_err())
    }

    #[test]
    fn what_tch_unwraps_is_libtorchs_error_and_anything_else_is_ours() {
        let torch = unwrapped("it said \"no\"\nException raised from f");
        assert_eq!(torch, Error::Torch("it said \"no\"".into()));
        assert!(matches!(unwrapped("std::bad_alloc"), Error::OutOfMemory(_)));
        let ours = to_error(std::panic::catch_unwind(|| panic!("a bug")).unwrap_err());
        // With its place, where a test beside this one has installed the hook.
        assert!(matches!(&ours, Error::Internal(text) if text.starts_with("a bug")), "{ours:?}");
    }
}
