//! The status codes: their numbers, their names, and which error has which.

use std::ffi::{c_char, CStr};

use crate::Error;

/// The call did what was asked.
pub const DIFFUSION_OK: i32 = 0;
/// An argument's value is not allowed; the message names it, its value and what it may be.
pub const DIFFUSION_ERROR_INVALID_ARGUMENT: i32 = 1;
/// A pointer that must not be NULL is.
pub const DIFFUSION_ERROR_NULL_POINTER: i32 = 2;
/// A handle is NULL, ended, of another type, or from before a fork().
pub const DIFFUSION_ERROR_INVALID_HANDLE: i32 = 3;
/// A buffer has not exactly the length that the call needs; the message says which length that is.
pub const DIFFUSION_ERROR_BUFFER_SIZE: i32 = 4;
/// Not enough memory on the host or the device. The process works on.
pub const DIFFUSION_ERROR_OUT_OF_MEMORY: i32 = 5;
/// The device is not there, or this libtorch cannot use it.
pub const DIFFUSION_ERROR_DEVICE_UNAVAILABLE: i32 = 6;
/// The operating system refused to read or write a file.
pub const DIFFUSION_ERROR_IO: i32 = 7;
/// A file is damaged, or uses something that this library does not support.
pub const DIFFUSION_ERROR_FORMAT: i32 = 8;
/// The call or job was cancelled, or its process destroyed.
pub const DIFFUSION_ERROR_CANCELLED: i32 = 9;
/// The given time ran out.
pub const DIFFUSION_ERROR_TIMEOUT: i32 = 10;
/// NaN or infinity in an input, in the training loss or in the images that came out.
pub const DIFFUSION_ERROR_NON_FINITE: i32 = 11;
/// libtorch reported an error that none of the others describes.
pub const DIFFUSION_ERROR_TORCH: i32 = 12;
/// A bug in this library; the message says where.
pub const DIFFUSION_ERROR_INTERNAL: i32 = 13;

/// The status of an error.
pub(crate) fn status_of(error: &Error) -> i32 {
    match error {
        Error::InvalidArgument(_) => DIFFUSION_ERROR_INVALID_ARGUMENT,
        Error::NullPointer(..) => DIFFUSION_ERROR_NULL_POINTER,
        Error::InvalidHandle(_) => DIFFUSION_ERROR_INVALID_HANDLE,
        Error::BufferSize { .. } => DIFFUSION_ERROR_BUFFER_SIZE,
        Error::OutOfMemory(_) => DIFFUSION_ERROR_OUT_OF_MEMORY,
        Error::DeviceUnavailable(_) => DIFFUSION_ERROR_DEVICE_UNAVAILABLE,
        Error::Io { .. } => DIFFUSION_ERROR_IO,
        Error::Format { .. } => DIFFUSION_ERROR_FORMAT,
        Error::Cancelled(_) => DIFFUSION_ERROR_CANCELLED,
        Error::Timeout(_) => DIFFUSION_ERROR_TIMEOUT,
        Error::NonFinite(_) => DIFFUSION_ERROR_NON_FINITE,
        Error::Torch(_) => DIFFUSION_ERROR_TORCH,
        Error::Internal(_) => DIFFUSION_ERROR_INTERNAL,
    }
}

fn name_of(status: i32) -> &'static CStr {
    match status {
        DIFFUSION_OK => c"ok",
        DIFFUSION_ERROR_INVALID_ARGUMENT => c"invalid argument",
        DIFFUSION_ERROR_NULL_POINTER => c"null pointer",
        DIFFUSION_ERROR_INVALID_HANDLE => c"invalid handle",
        DIFFUSION_ERROR_BUFFER_SIZE => c"wrong buffer size",
        DIFFUSION_ERROR_OUT_OF_MEMORY => c"out of memory",
        DIFFUSION_ERROR_DEVICE_UNAVAILABLE => c"device unavailable",
        DIFFUSION_ERROR_IO => c"input or output error",
        DIFFUSION_ERROR_FORMAT => c"bad file format",
        DIFFUSION_ERROR_CANCELLED => c"cancelled",
        DIFFUSION_ERROR_TIMEOUT => c"timeout",
        DIFFUSION_ERROR_NON_FINITE => c"not finite",
        DIFFUSION_ERROR_TORCH => c"libtorch error",
        DIFFUSION_ERROR_INTERNAL => c"internal error",
        _ => c"unknown status",
    }
}

/// A short lower-case English name of a status, e.g. "invalid handle"; "unknown status" for any other number. Never
/// NULL, never freed, valid for ever.
#[no_mangle]
pub extern "C" fn diffusion_status_string(status: i32) -> *const c_char {
    name_of(status).as_ptr()
}
