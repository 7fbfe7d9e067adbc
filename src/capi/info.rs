//! Questions that need no process: versions, the last error, devices.

use std::ffi::{c_char, CString};

use once_cell::sync::Lazy;

use super::boundary::{self, call, Out};
use super::types::{DIFFUSION_ABI_VERSION, DIFFUSION_DEVICE_CPU, DIFFUSION_DEVICE_CUDA};
use crate::{torch, Error};

/// The interface version of the loaded library, to be compared with DIFFUSION_ABI_VERSION of the header.
#[no_mangle]
pub extern "C" fn diffusion_abi_version() -> u32 {
    DIFFUSION_ABI_VERSION
}

/// The versions of the library, libtorch and CUDA (or "no CUDA"), for logs: "libdiffusion 0.1.0, libtorch 2.11.0,
/// CUDA 13.0". Never NULL, never freed, valid for ever.
#[no_mangle]
pub extern "C" fn diffusion_version() -> *const c_char {
    static TEXT: Lazy<CString> = Lazy::new(|| {
        let text = format!("libdiffusion {}, {}", env!("CARGO_PKG_VERSION"), torch::version());
        CString::new(text).unwrap_or_default()
    });
    TEXT.as_ptr()
}

/// Why the last function that returned an error on this thread did: one line of UTF-8 that names the argument, its
/// value and what it may be. "" if none did. Never NULL; valid until the next call of this library that fails on this
/// thread, or the thread's end.
#[no_mangle]
pub extern "C" fn diffusion_last_error_message() -> *const c_char {
    boundary::last_error_message()
}

/// Writes how many devices of a kind can be used: for DIFFUSION_DEVICE_CPU 1; for DIFFUSION_DEVICE_CUDA the number
/// of CUDA devices, 0 where there are none or libtorch's CUDA libraries are missing.
///
/// Errors: INVALID_ARGUMENT (device), NULL_POINTER.
///
/// # Safety
/// `count` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_device_count(device: i32, count: *mut i32) -> i32 {
    call(|| {
        // SAFETY: the caller vouches for `count`, as the header says.
        let count = unsafe { Out::new("count", count) }?;
        count.set(match device {
            DIFFUSION_DEVICE_CPU => 1,
            DIFFUSION_DEVICE_CUDA => torch::cuda_device_count(),
            other => {
                return Err(Error::argument(
                    "device",
                    other,
                    "DIFFUSION_DEVICE_CPU (1) or DIFFUSION_DEVICE_CUDA (2)",
                ))
            }
        });
        Ok(())
    })
}
