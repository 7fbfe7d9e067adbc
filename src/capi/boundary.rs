//! The wall between C and Rust: every call passes through [`call`], every pointer through [`input`], [`Out`] or
//! [`OutSlice`].

use std::cell::RefCell;
use std::ffi::{c_char, CStr, CString};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicI32, Ordering};

use once_cell::sync::Lazy;

use super::status::{status_of, DIFFUSION_OK};
use crate::{engine, Error, Result};

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::new(CString::default());
}

/// The system process that this library was first used in; 0 before that.
static OWNER_PID: AtomicI32 = AtomicI32::new(0);

/// Runs the body of an ABI function and turns what comes of it into a status and a message.
pub(crate) fn call(body: impl FnOnce() -> Result<()>) -> i32 {
    static QUIET: Lazy<()> = Lazy::new(crate::panics::install_quiet_hook);
    Lazy::force(&QUIET);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        check_fork()?;
        if engine::is_engine_thread() {
            return Err(Error::InvalidArgument(
                "this function was called from a log callback: it must not call the library".into(),
            ));
        }
        body()
    }));
    let error = match outcome {
        Ok(Ok(())) => return DIFFUSION_OK,
        Ok(Err(error)) => error,
        Err(payload) => crate::panics::to_error(payload),
    };
    remember(&error)
}

/// Keeps an error's message for this thread and returns its status.
fn remember(error: &Error) -> i32 {
    let text = one_line(&error.to_string());
    // A thread that is being torn down has no place for a message; the status alone must do then.
    let _ = LAST_ERROR.try_with(|slot| *slot.borrow_mut() = CString::new(text).unwrap_or_default());
    status_of(error)
}

/// A text whose control characters stand there as escapes: names out of files and paths may hold anything.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

/// The pointer behind `diffusion_last_error_message`.
pub(crate) fn last_error_message() -> *const c_char {
    LAST_ERROR.try_with(|slot| slot.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Threads do not survive a fork and locks may be held for ever in the child, so a child is told at once.
fn check_fork() -> Result<()> {
    // SAFETY: getpid has no preconditions and cannot fail.
    let pid = unsafe { libc::getpid() };
    match OWNER_PID.compare_exchange(0, pid, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Ok(()),
        Err(owner) if owner == pid => Ok(()),
        Err(owner) => Err(Error::InvalidHandle(format!(
            "this process was forked from process {owner}, which had already used libdiffusion: its threads and \
             handles do not survive fork(); fork before the first call, or call exec() in the child"
        ))),
    }
}

/// The length that an array must have, and what it is the length of.
#[derive(Clone)]
pub(crate) struct Need {
    /// Overflow-checked: an array of that many values can exist.
    pub(crate) len: usize,
    pub(crate) why: String,
}

impl Need {
    pub(crate) fn new(len: usize, why: impl Into<String>) -> Self {
        Need { len, why: why.into() }
    }

    fn check<T>(&self, array: &Array<T>) -> Result<()> {
        let Array { name, pointer, length, len } = *array;
        if pointer.is_null() {
            return Err(Error::NullPointer(name, "the array"));
        }
        if len != self.len {
            return Err(Error::BufferSize { name: length, got: len, need: self.len, why: self.why.clone() });
        }
        if !pointer.is_aligned() {
            let align = align_of::<T>();
            return Err(Error::argument(name, format!("{pointer:p}"), format!("a multiple of {align}")));
        }
        Ok(())
    }
}

/// A caller's array as it comes: pointer and length, and what the header calls the two.
pub(crate) struct Array<T> {
    pub(crate) name: &'static str,
    pub(crate) pointer: *const T,
    pub(crate) length: &'static str,
    pub(crate) len: usize,
}

/// `array!(images, images_len)`: an [`Array`] named as its arguments are.
macro_rules! array {
    ($pointer:ident, $len:ident) => {
        $crate::capi::boundary::Array {
            name: stringify!($pointer),
            pointer: $pointer,
            length: stringify!($len),
            len: $len,
        }
    };
}
pub(crate) use array;

/// A caller's array, copied.
///
/// # Safety
/// The pointer is NULL or valid for reads of the length, which nobody changes during the call.
pub(crate) unsafe fn input<T: Copy>(array: Array<T>, need: &Need) -> Result<Vec<T>> {
    need.check(&array)?;
    // SAFETY: not NULL, aligned and of a possible size, as just checked; the caller vouches for the rest.
    crate::memory::copied(unsafe { std::slice::from_raw_parts(array.pointer, array.len) })
}

/// A caller's single value, to be written once on success.
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// `pointer` is NULL or valid for a write until the call returns.
    pub(crate) unsafe fn new(name: &'static str, pointer: *mut T) -> Result<Self> {
        if pointer.is_null() {
            return Err(Error::NullPointer(name, "where the result is to be written"));
        }
        Ok(Out(pointer))
    }

    pub(crate) fn set(self, value: T) {
        // SAFETY: valid for a write by `new`'s contract; unaligned, since C does not promise more.
        unsafe { self.0.write_unaligned(value) }
    }
}

/// A caller's array, to be written whole on success and not at all on failure.
pub(crate) struct OutSlice<T> {
    pointer: *mut T,
    len: usize,
}

impl<T: Copy> OutSlice<T> {
    /// # Safety
    /// The pointer is NULL or was made from a mutable one that is valid for writes of the length until the call
    /// returns, and nobody else reads or writes there meanwhile.
    pub(crate) unsafe fn new(array: Array<T>, need: &Need) -> Result<Self> {
        need.check(&array)?;
        Ok(OutSlice { pointer: array.pointer.cast_mut(), len: array.len })
    }

    /// Copies `values`, which has exactly the length that `new` was told to need.
    pub(crate) fn write(self, values: &[T]) {
        debug_assert_eq!(values.len(), self.len);
        let len = self.len.min(values.len());
        // SAFETY: valid for `len` writes by `new`'s contract; `values` is a Rust slice, so it cannot overlap memory
        // that the caller promised to be nobody else's.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.pointer, len) }
    }

    /// Copies values of another type, bit by bit.
    pub(crate) fn write_bytes(self, bytes: &[u8]) {
        debug_assert_eq!(bytes.len(), self.len * size_of::<T>());
        let len = (self.len * size_of::<T>()).min(bytes.len());
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer.cast::<u8>(), len) }
    }
}

/// A caller's C string.
///
/// # Safety
/// `pointer` is NULL or points to a NUL-terminated string that nobody changes during the call.
pub(crate) unsafe fn text<'a>(name: &'static str, pointer: *const c_char) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(Error::NullPointer(name, "a NUL-terminated UTF-8 string"));
    }
    // SAFETY: not NULL and NUL-terminated by the caller's word.
    let text = unsafe { CStr::from_ptr(pointer) };
    match text.to_str() {
        Ok("") => Err(Error::InvalidArgument(format!("{name} is empty: must be a name"))),
        Ok(text) => Ok(text),
        Err(_) => Err(Error::argument(name, format!("{text:?}"), "UTF-8")),
    }
}

/// A struct of the ABI that grows at its end, its first field being its size in the caller's eyes.
///
/// # Safety
/// Every bit pattern is a valid `Self`, `Self` is `repr(C)` and its first field is a `u32`.
pub(crate) unsafe trait Versioned: Copy {
    /// The size of the part that every caller must know: up to and including the last field without which the
    /// struct says nothing.
    const LEAST: usize;
    /// Its name in the header.
    const NAME: &'static str;
    /// What the fields that an older caller does not know are taken to be.
    fn defaults() -> Self;
}

/// Reads a caller's struct of any known or future size: fields that the caller lacks get their defaults, and fields
/// that this library lacks must be zero, since ignoring them would be a silent difference.
///
/// # Safety
/// `pointer` is NULL or valid for reads of as many bytes as its first field says.
pub(crate) unsafe fn versioned<T: Versioned>(name: &'static str, pointer: *const T) -> Result<T> {
    if pointer.is_null() {
        return Err(Error::NullPointer(name, T::NAME));
    }
    // SAFETY: at least the size field is readable by the caller's word; C may align it less than Rust would.
    let size = unsafe { pointer.cast::<u32>().read_unaligned() } as usize;
    let whole = std::mem::size_of::<T>();
    // A size that was never set is likely to be garbage and must not be followed into unreadable memory.
    const SANE: usize = 1 << 16;
    if size < T::LEAST || size > SANE || size % 8 != 0 {
        return Err(Error::argument(
            &format!("{name}.struct_size"),
            size,
            format!("sizeof({}) ({whole} in this version); call its init function first", T::NAME),
        ));
    }
    let mut value = T::defaults();
    // SAFETY: both sides are valid for the smaller of the two sizes, and `versioned`'s types take any bits.
    unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), (&raw mut value).cast::<u8>(), size.min(whole));
    }
    if size > whole {
        // SAFETY: the caller says that `size` bytes are there.
        let tail = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(whole), size - whole) };
        if let Some(at) = tail.iter().position(|&byte| byte != 0) {
            return Err(Error::InvalidArgument(format!(
                "{name} has a non-zero byte at offset {}: this version of the library knows {whole} bytes of {}",
                whole + at,
                T::NAME
            )));
        }
    }
    Ok(value)
}

/// Writes as much of a growing struct as the caller's `struct_size` says it has room for.
///
/// # Safety
/// `pointer` is NULL or valid for reads and writes of as many bytes as its first field says.
pub(crate) unsafe fn write_versioned<T: Versioned>(
    name: &'static str,
    pointer: *mut T,
    value: T,
) -> Result<()> {
    // SAFETY: readable by the caller's word; `versioned` checks the size.
    unsafe { versioned(name, pointer.cast_const()) }?;
    // SAFETY: as above.
    let size = unsafe { pointer.cast::<u32>().read_unaligned() } as usize;
    let first = std::mem::size_of::<u32>();
    let known = size.min(std::mem::size_of::<T>());
    // SAFETY: both sides are valid for `known` bytes; the size field stays the caller's own.
    unsafe {
        std::ptr::copy_nonoverlapping(
            (&raw const value).cast::<u8>().add(first),
            pointer.cast::<u8>().add(first),
            known - first,
        );
    }
    Ok(())
}
