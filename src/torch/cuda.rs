//! A CUDA device as this library uses it: a stream for each thread, copies that nobody waits for, graphs.
//!
//! See `gpu.cpp` for what is called and why. Without CUDA, copies are plain copies and the rest is never reached.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use tch::kind::Element;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::{check, raw};
use crate::graphs::Capture;
use crate::{Error, Result};

extern "C" {
    fn diffusion_gpu_open(library: *mut c_void) -> *mut c_char;
    fn diffusion_gpu_stream_new(device: i32, stream: *mut *mut c_void) -> *mut c_char;
    fn diffusion_gpu_stream_use(device: i32, stream: *mut c_void) -> *mut c_char;
    fn diffusion_gpu_stream_current(device: i32, stream: *mut *mut c_void) -> *mut c_char;
    fn diffusion_gpu_synchronize(device: i32) -> *mut c_char;
    fn diffusion_gpu_pinned(like: *mut C_tensor, numel: i64, out: *mut *mut C_tensor) -> *mut c_char;
    fn diffusion_gpu_copy(to: *mut C_tensor, from: *mut C_tensor) -> *mut c_char;
    fn diffusion_gpu_pace_new(pace: *mut *mut c_void) -> *mut c_char;
    fn diffusion_gpu_pace_turn(pace: *mut c_void, device: i32) -> *mut c_char;
    fn diffusion_gpu_pace_free(pace: *mut c_void);
    fn diffusion_gpu_pool_new(device: i32) -> *mut c_void;
    fn diffusion_gpu_pool_free(pool: *mut c_void);
    fn diffusion_gpu_capture(
        pool: *mut c_void,
        work: extern "C" fn(*mut c_void) -> bool,
        context: *mut c_void,
        graph: *mut *mut c_void,
    ) -> *mut c_char;
    fn diffusion_gpu_replay(graph: *const c_void) -> *mut c_char;
    fn diffusion_gpu_graph_free(graph: *mut c_void);
}

/// Makes streams and graphs possible, where `library` is the handle of libtorch_cuda.so.
pub(super) fn open(library: *mut c_void) -> Result<()> {
    // SAFETY: a handle that dlopen returned and nobody closes.
    check(unsafe { diffusion_gpu_open(library) })
}

/// Streams that are lent to no thread, by device. They are kept, since libtorch keeps memory and workspaces for each
/// stream that it has met.
static FREE_STREAMS: Mutex<Vec<(i32, usize)>> = Mutex::new(Vec::new());

/// A stream that this thread alone uses, until the thread ends.
struct Lease {
    device: i32,
    stream: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut free = FREE_STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
        free.push((self.device, self.stream));
    }
}

thread_local! {
    static LEASES: RefCell<Vec<Lease>> = const { RefCell::new(Vec::new()) };
}

/// Makes a stream that no other thread has the calling thread's current one, until the thread ends.
///
/// Not one of libtorch's own 32: those are handed out in turn to whoever asks, the host included, and what another
/// thread launched on one of them during a capture would become part of the graph.
pub(super) fn use_own_stream(device: i32) -> Result<()> {
    LEASES.with_borrow_mut(|leases| {
        let stream = match leases.iter().find(|lease| lease.device == device) {
            Some(lease) => lease.stream,
            None => {
                let stream = match take_free_stream(device) {
                    Some(stream) => stream,
                    None => new_stream(device)?,
                };
                leases.push(Lease { device, stream });
                stream
            }
        };
        // SAFETY: a stream of this device, which is never destroyed.
        check(unsafe { diffusion_gpu_stream_use(device, stream as *mut c_void) })
    })
}

fn take_free_stream(device: i32) -> Option<usize> {
    let mut free = FREE_STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = free.iter().position(|(other, _)| *other == device)?;
    Some(free.swap_remove(found).1)
}

fn new_stream(device: i32) -> Result<usize> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: `stream` is valid for a write.
    check(unsafe { diffusion_gpu_stream_new(device, &mut stream) })?;
    Ok(stream as usize)
}

/// The number of the calling thread's current CUDA stream: two threads with different numbers do not share one.
pub fn current_stream(device: i32) -> Result<usize> {
    super::cuda_device(device)?;
    let mut stream = std::ptr::null_mut();
    // SAFETY: `stream` is valid for a write.
    check(unsafe { diffusion_gpu_stream_current(device, &mut stream) })?;
    Ok(stream as usize)
}

/// Whether steps can be captured: on a thread with a stream of its own.
fn can_capture(device: i32) -> bool {
    LEASES.with_borrow(|leases| leases.iter().any(|lease| lease.device == device))
}

fn cuda_index(device: Device) -> Option<i32> {
    match device {
        Device::Cuda(index) => Some(index as i32),
        _ => None,
    }
}

/// A flat tensor in page-locked memory, which a device reads and writes by itself.
fn pinned<T: Element>(numel: usize) -> Result<Tensor> {
    let like = Tensor::f_empty([0], (T::KIND, Device::Cpu))?;
    let mut out = std::ptr::null_mut();
    // SAFETY: a live tensor; on success `out` is a new tensor, which becomes ours.
    unsafe {
        check(diffusion_gpu_pinned(raw(&like), numel as i64, &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Copies `from` to `to`, elsewhere, in the order of this thread's stream, without waiting.
fn copy(to: &Tensor, from: &Tensor) -> Result<()> {
    // SAFETY: two live tensors; libtorch checks their shapes, and keeps page-locked memory until the copy is done.
    check(unsafe { diffusion_gpu_copy(raw(to), raw(from)) })
}

/// A tensor of this shape on `device` with these values. CUDA fetches them in its own time: the host goes on.
pub fn upload<T: Element>(values: &[T], shape: &[i64], device: Device) -> Result<Tensor> {
    let fits = shape.iter().product::<i64>() == values.len() as i64;
    if !fits {
        return Err(Error::Internal(format!("{} values for a tensor of shape {shape:?}", values.len())));
    }
    if !device.is_cuda() || values.is_empty() {
        return Ok(Tensor::f_from_slice(values)?.f_view(shape)?.f_to_device(device)?);
    }
    let staged = pinned::<T>(values.len())?;
    // SAFETY: a flat tensor of as many values of this kind, in host memory that nobody else has.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), staged.data_ptr().cast::<T>(), values.len()) };
    let there = Tensor::f_empty(shape, (T::KIND, device))?;
    copy(&there, &staged.f_view(shape)?)?;
    Ok(there)
}

/// Copies the values of a CUDA tensor, row by row, to `out`, which has their number: one copy, and one wait for this
/// thread's stream.
pub fn download<T: Element>(tensor: &Tensor, out: &mut [T]) -> Result<()> {
    let Some(index) = cuda_index(tensor.device()) else {
        return Err(Error::Internal("download is for CUDA".into()));
    };
    if tensor.numel() != out.len() {
        return Err(Error::Internal(format!("{} values for {}", tensor.numel(), out.len())));
    }
    let tensor = tensor.f_detach()?.f_to_kind(T::KIND)?.f_contiguous()?;
    let staged = pinned::<T>(out.len())?;
    copy(&staged, &tensor.f_view(-1)?)?;
    // SAFETY: the copy into `staged`, which has as many values, is done when the stream is.
    unsafe {
        check(diffusion_gpu_synchronize(index))?;
        std::ptr::copy_nonoverlapping(staged.data_ptr().cast::<T>(), out.as_mut_ptr(), out.len());
    }
    Ok(())
}

/// Keeps the host one turn ahead of the device. Without it the host would ask for all steps of a job at once: a job
/// that came then would join behind them, and progress would be that of the asking.
pub struct Pace {
    events: NonNull<c_void>,
    device: i32,
}

// SAFETY: events belong to a device, not to a thread; the object is used by one thread at a time (`&mut self`).
unsafe impl Send for Pace {}

impl Pace {
    /// For a CUDA device; nothing on another, which computes while it is asked.
    pub fn new(device: Device) -> Result<Option<Self>> {
        let Some(device) = cuda_index(device) else { return Ok(None) };
        let mut events = std::ptr::null_mut();
        // SAFETY: `events` is valid for a write.
        check(unsafe { diffusion_gpu_pace_new(&mut events) })?;
        let events = NonNull::new(events).ok_or_else(|| Error::Internal("no events were made".into()))?;
        Ok(Some(Pace { events, device }))
    }

    /// Ends a turn; waits until the device has done the turn before.
    pub fn turn(&mut self) -> Result<()> {
        // SAFETY: what `new` made.
        check(unsafe { diffusion_gpu_pace_turn(self.events.as_ptr(), self.device) })
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        // SAFETY: what `new` made, freed once.
        unsafe { diffusion_gpu_pace_free(self.events.as_ptr()) }
    }
}

/// Captures graphs on the calling thread's own stream, in memory that they share: they must be replayed one after the
/// other, and a result must be copied before the next replay.
pub struct CudaCapture(NonNull<c_void>);

// SAFETY: a pool and its graphs belong to a device, not to a thread; `Capture`'s methods are called by the thread that
// owns the stream, since only a `DiffusionProcess`, which is not `Sync`, has one.
unsafe impl Send for CudaCapture {}

/// A captured graph.
pub struct CudaGraph(NonNull<c_void>);

// SAFETY: as for `CudaCapture`.
unsafe impl Send for CudaGraph {}

impl CudaCapture {
    /// For a CUDA device; `None` for another, or where this thread has no stream of its own there.
    pub fn new(device: Device) -> Option<Self> {
        let device = cuda_index(device).filter(|&device| can_capture(device))?;
        // SAFETY: a plain constructor.
        NonNull::new(unsafe { diffusion_gpu_pool_new(device) }).map(CudaCapture)
    }
}

/// What [`run_work`] is given.
struct Work<'a> {
    body: &'a mut dyn FnMut() -> Result<()>,
    outcome: Result<()>,
}

extern "C" fn run_work(context: *mut c_void) -> bool {
    // SAFETY: the `Work` that `capture` passes along, which outlives the call and is nobody else's meanwhile.
    let work = unsafe { &mut *context.cast::<Work>() };
    work.outcome = catch_unwind(AssertUnwindSafe(|| (work.body)()))
        .unwrap_or_else(|payload| Err(crate::panics::to_error(payload)));
    work.outcome.is_ok()
}

impl Capture for CudaCapture {
    type Graph = CudaGraph;

    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<CudaGraph> {
        let mut work = Work { body, outcome: Ok(()) };
        let mut graph = std::ptr::null_mut();
        // SAFETY: a live pool; `run_work` is called before this returns, with the `Work` that it expects, and never
        // unwinds; on success `graph` is a new graph.
        let captured = unsafe {
            let context: *mut Work = &mut work;
            check(diffusion_gpu_capture(self.0.as_ptr(), run_work, context.cast(), &mut graph))
        };
        // What went wrong first says more than that the capture ended badly.
        work.outcome?;
        captured?;
        NonNull::new(graph).map(CudaGraph).ok_or_else(|| Error::Internal("no graph was made".into()))
    }

    fn replay(&self, graph: &CudaGraph) -> Result<()> {
        // SAFETY: a live graph.
        check(unsafe { diffusion_gpu_replay(graph.0.as_ptr()) })
    }
}

impl Drop for CudaCapture {
    fn drop(&mut self) {
        // SAFETY: what `new` made, freed once; graphs hold on to what they share.
        unsafe { diffusion_gpu_pool_free(self.0.as_ptr()) }
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: what `capture` made, freed once.
        unsafe { diffusion_gpu_graph_free(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cuda_uploads_are_copies_and_the_rest_is_absent() {
        let values = [1.5f32, -2.0, 3.0, 4.0, 5.0, 6.0];
        let tensor = upload(&values, &[2, 3], Device::Cpu).unwrap();
        assert_eq!(tensor.size(), [2, 3]);
        assert_eq!(Vec::<f32>::try_from(tensor.view(-1)).unwrap(), values);
        assert_eq!(upload(&[7i64], &[1], Device::Cpu).unwrap().int64_value(&[0]), 7);
        assert!(upload(&values, &[7], Device::Cpu).is_err());
        assert!(download(&tensor, &mut [0f32; 6]).is_err());
        assert!(Pace::new(Device::Cpu).unwrap().is_none());
        assert!(CudaCapture::new(Device::Cpu).is_none());
    }

    /// What is asked of CUDA where it was not opened is an error, not a crash.
    #[test]
    fn without_cuda_every_function_of_the_shim_is_an_error() {
        if super::super::cuda_device_count() > 0 {
            println!("skipped: there is CUDA here");
            return;
        }
        assert!(use_own_stream(0).is_err());
        assert!(current_stream(0).is_err());
        // SAFETY: a plain constructor.
        let pool = CudaCapture(NonNull::new(unsafe { diffusion_gpu_pool_new(0) }).unwrap());
        let mut ran = false;
        let outcome = pool.capture(&mut || {
            ran = true;
            Ok(())
        });
        assert!(outcome.is_err() && !ran);
        // SAFETY: no pointers.
        assert!(check(unsafe { diffusion_gpu_synchronize(0) }).is_err());
        let mut events = std::ptr::null_mut();
        // SAFETY: `events` is valid for a write.
        assert!(check(unsafe { diffusion_gpu_pace_new(&mut events) }).is_err() || !events.is_null());
    }
}
