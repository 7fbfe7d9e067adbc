//! All that libtorch has and tch lacks, behind safe functions: CUDA discovery, fused optimizer steps, scoped modes.
//!
//! One of the two places with `unsafe`. The C++ side is `shim.cpp`; its exceptions arrive here as [`Error`]s.

pub mod cuda;
pub mod plan;
pub mod training;

use std::ffi::{c_char, c_void, CStr, CString};
use std::path::PathBuf;

use once_cell::sync::OnceCell;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::{Error, Result};

#[repr(C)]
#[derive(Default)]
struct SavedAutocast {
    device_type: i8,
    dtype: i8,
    enabled: bool,
}

extern "C" {
    fn diffusion_shim_free(text: *mut c_char);
    fn diffusion_shim_prepare();
    fn diffusion_shim_torch_version() -> *const c_char;
    fn diffusion_shim_torch_address() -> *const c_void;
    fn diffusion_shim_cuda(devices: *mut i32, runtime_version: *mut i64) -> *mut c_char;
    fn diffusion_shim_default_floating_point();
    fn diffusion_shim_grad_enabled() -> bool;
    fn diffusion_shim_adam(
        parameters: *const *mut C_tensor,
        gradients: *const *mut C_tensor,
        exp_avg: *const *mut C_tensor,
        exp_avg_sq: *const *mut C_tensor,
        count: usize,
        step: *mut C_tensor,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        decoupled: bool,
        found_inf: *mut C_tensor,
    ) -> *mut c_char;
    fn diffusion_shim_unscale(
        gradients: *const *mut C_tensor,
        count: usize,
        found_inf: *mut C_tensor,
        inverse_scale: *mut C_tensor,
    ) -> *mut c_char;
    fn diffusion_shim_update_scale(
        scale: *mut C_tensor,
        growth_tracker: *mut C_tensor,
        found_inf: *mut C_tensor,
        growth: f64,
        backoff: f64,
        interval: i64,
    ) -> *mut c_char;
    fn diffusion_shim_lerp(
        averages: *const *mut C_tensor,
        values: *const *mut C_tensor,
        count: usize,
        weight: f64,
    ) -> *mut c_char;
    fn diffusion_shim_add(
        sums: *const *mut C_tensor,
        values: *const *mut C_tensor,
        count: usize,
    ) -> *mut c_char;
    fn diffusion_shim_clip(
        gradients: *const *mut C_tensor,
        count: usize,
        max_norm: f64,
        norm: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn diffusion_shim_bernoulli(out: *mut C_tensor, keep: f64, seed: u64) -> *mut c_char;
    fn diffusion_shim_autocast_enter(cuda: bool, half: bool, before: *mut SavedAutocast) -> *mut c_char;
    fn diffusion_shim_autocast_leave(before: *const SavedAutocast);
    fn diffusion_shim_call_progress(
        callback: ProgressFn,
        done: u64,
        total: u64,
        user_data: *mut c_void,
        answer: *mut i32,
    ) -> *mut c_char;
    fn diffusion_shim_call_log(
        callback: LogFn,
        level: i32,
        message: *const c_char,
        user_data: *mut c_void,
    ) -> *mut c_char;
}

/// A host's progress callback.
pub type ProgressFn = unsafe extern "C" fn(done: u64, total: u64, user_data: *mut c_void) -> i32;

/// A host's log callback.
pub type LogFn = unsafe extern "C" fn(level: i32, message: *const c_char, user_data: *mut c_void);

/// The error behind what a shim function returned.
fn check(text: *mut c_char) -> Result<()> {
    // SAFETY: what a shim function returned, used once.
    match unsafe { text_of(text) } {
        None => Ok(()),
        Some(text) => Err(Error::from_torch(&text)),
    }
}

/// Takes over what a shim function returned: NULL, or the text of an exception.
///
/// # Safety
/// `text` was returned by a shim function and is used here only.
unsafe fn text_of(text: *mut c_char) -> Option<String> {
    // SAFETY: the shim returns NULL or a NUL-terminated string that is ours until it is freed, once, here.
    (!text.is_null()).then(|| unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        diffusion_shim_free(text);
        copy
    })
}

/// Calls a host's progress callback; `Cancelled` where it cancels or throws a C++ exception.
///
/// # Safety
/// `callback` may be called with `user_data` now, from this thread.
pub unsafe fn call_progress(
    callback: ProgressFn,
    done: u64,
    total: u64,
    user_data: *mut c_void,
) -> Result<()> {
    let mut answer = 0;
    // SAFETY: by this function's contract; `answer` is valid for a write.
    let threw =
        unsafe { text_of(diffusion_shim_call_progress(callback, done, total, user_data, &mut answer)) };
    match (threw, answer) {
        (Some(text), _) => Err(Error::Cancelled(format!(
            "the progress callback threw an exception, which no callback may: {}",
            text.lines().next().unwrap_or_default()
        ))),
        (None, 0) => Ok(()),
        (None, _) => Err(Error::Cancelled("the progress callback cancelled the job".into())),
    }
}

/// Calls a host's log callback. There is nobody to tell of an exception, and nothing depends on the callback.
///
/// # Safety
/// As [`call_progress`].
pub unsafe fn call_log(callback: LogFn, level: i32, message: &CStr, user_data: *mut c_void) {
    // SAFETY: by this function's contract; the message is NUL-terminated.
    drop(unsafe { text_of(diffusion_shim_call_log(callback, level, message.as_ptr(), user_data)) });
}

/// Borrows a tensor for the shim. Tensors are reference counted handles: the shim changes what they refer to, as
/// every in-place operation of tch does through `&self`-like handles, never the handle.
fn raw(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

fn raw_list(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(raw).collect()
}

/// What CUDA there is: asked once, after libtorch_cuda.so was given its chance to be loaded.
struct Cuda {
    devices: i32,
    runtime_version: i64,
    why_not: String,
}

fn cuda() -> &'static Cuda {
    static CUDA: OnceCell<Cuda> = OnceCell::new();
    CUDA.get_or_init(|| {
        let loaded = load_torch_cuda();
        let (mut devices, mut runtime_version) = (0, 0);
        // SAFETY: both pointers are valid for a write.
        let asked = check(unsafe { diffusion_shim_cuda(&mut devices, &mut runtime_version) });
        let why_not = match (loaded, asked) {
            (Err(text), _) => text,
            (_, Err(error)) => error.to_string(),
            _ if devices == 0 => "no CUDA device was found".into(),
            _ => String::new(),
        };
        Cuda { devices, runtime_version, why_not }
    })
}

/// Opens libtorch_cuda.so, which registers CUDA's kernels with the libtorch that is already here. It is not linked,
/// so that one libdiffusion.so serves machines with and without CUDA.
fn load_torch_cuda() -> std::result::Result<(), String> {
    const NAME: &str = "libtorch_cuda.so";
    // SAFETY: the shim returns an address inside libtorch_cpu.so; dladdr fills `info`, whose strings live as long as
    // that library, which this one is linked to.
    let beside = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        (libc::dladdr(diffusion_shim_torch_address(), &mut info) != 0 && !info.dli_fname.is_null()).then(
            || {
                PathBuf::from(CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned())
                    .with_file_name(NAME)
            },
        )
    };
    let name = beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(NAME));
    let name = CString::new(name.to_string_lossy().into_owned()).map_err(|error| error.to_string())?;
    // SAFETY: a NUL-terminated name; libtorch_cuda's initialisers are made to be run like this, as Python does.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return cuda::open(handle).map_err(|error| error.to_string());
    }
    // SAFETY: after a failed dlopen, dlerror returns NULL or a string that is valid until the next dl call.
    let text = unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            String::from("unknown reason")
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    };
    Err(format!("libtorch's CUDA library cannot be loaded: {text}"))
}

/// How many CUDA devices can be used; 0 without CUDA.
pub fn cuda_device_count() -> i32 {
    cuda().devices
}

/// The CUDA device with this index, or why there is none.
pub fn cuda_device(index: i32) -> Result<Device> {
    let cuda = cuda();
    if cuda.devices == 0 {
        return Err(Error::DeviceUnavailable(format!(
            "device is CUDA, which is not available: {}",
            cuda.why_not
        )));
    }
    match usize::try_from(index) {
        Ok(found) if index < cuda.devices => Ok(Device::Cuda(found)),
        _ => Err(Error::DeviceUnavailable(format!(
            "device_index is {index}: must be in 0..{}, the number of CUDA devices",
            cuda.devices
        ))),
    }
}

/// "libtorch 2.11.0, CUDA 13.0", or "..., no CUDA".
pub fn version() -> String {
    // SAFETY: a constant string.
    let torch = unsafe { CStr::from_ptr(diffusion_shim_torch_version()) }.to_string_lossy();
    match cuda().runtime_version {
        0 => format!("libtorch {torch}, no CUDA"),
        v => format!("libtorch {torch}, CUDA {}.{}", v / 1000, v % 1000 / 10),
    }
}

/// Prepares a thread that will compute: the standard floating-point environment (rounding, denormals), whatever the
/// thread that started it had set, and no signals of the host's.
pub fn prepare_thread() {
    // SAFETY: sets this thread's own modes only; `set` is initialised by sigfillset.
    unsafe {
        diffusion_shim_default_floating_point();
        diffusion_shim_prepare();
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        // What a thread does to itself must stay deadly, and profilers may look.
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT, libc::SIGPROF]
        {
            libc::sigdelset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Has `handler` called when the program ends by `exit` or by returning from `main`.
pub fn at_exit(handler: extern "C" fn()) {
    // SAFETY: a function that lives as long as the program, since the library is never unloaded (`-z nodelete`). Where
    // there is no room for another handler, the program ends without it, as it would have before.
    let _ = unsafe { libc::atexit(handler) };
}

/// Gives the calling thread a CUDA stream of its own, so that it neither waits for the host's work nor holds it up.
pub fn use_own_stream(device_index: i32) -> Result<()> {
    cuda::use_own_stream(device_index)
}

/// The numbers of an Adam step (arXiv 1412.6980) or, decoupled, an AdamW step (arXiv 1711.05101).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the average of gradients.
    pub beta1: f64,
    /// Decay of the average of squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the decay shrinks the weights directly (AdamW) or is added to the gradient (Adam).
    pub decoupled: bool,
}

/// One fused optimizer step over all parameters, in place. `step` is a scalar f32 tensor, already counting this
/// step. Where `found_inf` is a non-zero scalar, nothing changes.
pub fn adam_step(
    parameters: &[Tensor],
    gradients: &[Tensor],
    exp_avg: &[Tensor],
    exp_avg_sq: &[Tensor],
    step: &Tensor,
    how: AdamStep,
    found_inf: Option<&Tensor>,
) -> Result<()> {
    let count = parameters.len();
    assert!([gradients.len(), exp_avg.len(), exp_avg_sq.len()] == [count; 3], "lists of one length");
    // SAFETY: four arrays of `count` live tensors each, which the shim copies handles of.
    check(unsafe {
        diffusion_shim_adam(
            raw_list(parameters).as_ptr(),
            raw_list(gradients).as_ptr(),
            raw_list(exp_avg).as_ptr(),
            raw_list(exp_avg_sq).as_ptr(),
            count,
            raw(step),
            how.learning_rate,
            how.beta1,
            how.beta2,
            how.weight_decay,
            how.epsilon,
            how.decoupled,
            found_inf.map_or(std::ptr::null_mut(), raw),
        )
    })
}

/// Multiplies gradients by `inverse_scale` in place and sets `found_inf` to 1 where any was not finite.
pub fn unscale(gradients: &[Tensor], found_inf: &Tensor, inverse_scale: &Tensor) -> Result<()> {
    let list = raw_list(gradients);
    // SAFETY: an array of live tensors and its length.
    check(unsafe { diffusion_shim_unscale(list.as_ptr(), list.len(), raw(found_inf), raw(inverse_scale)) })
}

/// Grows or shrinks a gradient scale after a step, in place.
pub fn update_scale(
    scale: &Tensor,
    growth_tracker: &Tensor,
    found_inf: &Tensor,
    growth: f64,
    backoff: f64,
    interval: i64,
) -> Result<()> {
    // SAFETY: three live tensors.
    check(unsafe {
        diffusion_shim_update_scale(
            raw(scale),
            raw(growth_tracker),
            raw(found_inf),
            growth,
            backoff,
            interval,
        )
    })
}

/// averages += weight * (values - averages), over whole lists, in place.
pub fn lerp(averages: &[Tensor], values: &[Tensor], weight: f64) -> Result<()> {
    assert_eq!(averages.len(), values.len(), "lists of one length");
    // SAFETY: two arrays of live tensors of the same length.
    check(unsafe {
        diffusion_shim_lerp(raw_list(averages).as_ptr(), raw_list(values).as_ptr(), averages.len(), weight)
    })
}

/// Adds each of `values` to its entry of `sums`, in place.
pub fn add(sums: &[Tensor], values: &[Tensor]) -> Result<()> {
    assert_eq!(sums.len(), values.len(), "lists of one length");
    // SAFETY: two arrays of live tensors of the same length.
    check(unsafe { diffusion_shim_add(raw_list(sums).as_ptr(), raw_list(values).as_ptr(), sums.len()) })
}

/// Scales gradients in place so that the norm of all together is at most `max_norm`; returns the norm before, as a
/// scalar tensor on their device.
pub fn clip_gradients(gradients: &[Tensor], max_norm: f64) -> Result<Tensor> {
    let mut norm = std::ptr::null_mut();
    let list = raw_list(gradients);
    // SAFETY: an array of live tensors and its length; on success `norm` is a new tensor, which becomes ours.
    unsafe {
        check(diffusion_shim_clip(list.as_ptr(), list.len(), max_norm, &mut norm))?;
        Ok(Tensor::from_ptr(norm))
    }
}

/// Fills a tensor with 1 (with probability `keep`) and 0, determined by `seed`; touches no global generator.
pub fn bernoulli(out: &Tensor, keep: f64, seed: u64) -> Result<()> {
    // SAFETY: a live tensor.
    check(unsafe { diffusion_shim_bernoulli(raw(out), keep, seed) })
}

/// A low-precision format of autocast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowPrecision {
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

/// Autocast on this thread until dropped, unwinding included.
pub struct AutocastGuard(SavedAutocast);

impl AutocastGuard {
    /// Switches autocast on for a device.
    pub fn enter(device: Device, precision: LowPrecision) -> Result<Self> {
        let mut before = SavedAutocast::default();
        let half = precision == LowPrecision::F16;
        // SAFETY: `before` is valid for a write.
        check(unsafe { diffusion_shim_autocast_enter(device.is_cuda(), half, &mut before) })?;
        Ok(AutocastGuard(before))
    }
}

impl Drop for AutocastGuard {
    fn drop(&mut self) {
        // SAFETY: what `enter` filled.
        unsafe { diffusion_shim_autocast_leave(&self.0) }
    }
}

/// Recording of gradients on or off on this thread until dropped, unwinding included.
pub struct GradGuard(bool);

impl GradGuard {
    /// Switches it on or off.
    pub fn set(enabled: bool) -> Self {
        // SAFETY: a thread-local flag of libtorch's; returns its old value.
        GradGuard(unsafe { torch_sys::at_grad_set_enabled(i32::from(enabled)) } != 0)
    }
}

/// Whether gradients are being recorded on this thread.
pub fn is_recording() -> bool {
    // SAFETY: reads a thread-local flag of libtorch's.
    unsafe { diffusion_shim_grad_enabled() }
}

impl Drop for GradGuard {
    fn drop(&mut self) {
        // SAFETY: as in `set`.
        unsafe { torch_sys::at_grad_set_enabled(i32::from(self.0)) };
    }
}
