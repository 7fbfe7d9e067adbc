//! Sampling in the background: submit, look, wait, fetch.

use std::ffi::c_void;
use std::time::Duration;

use super::boundary::{array, call, versioned, Need, Out, OutSlice};
use super::config::sample_request;
use super::handles;
use super::types::{
    diffusion_job, diffusion_process, diffusion_progress_fn, diffusion_sample_params,
    DIFFUSION_JOB_CANCELLED, DIFFUSION_JOB_DONE, DIFFUSION_JOB_FAILED, DIFFUSION_JOB_QUEUED,
    DIFFUSION_JOB_RUNNING,
};
use crate::engine::{Job, JobState};
use crate::{torch, Result};

/// Starts sampling and returns at once. Jobs of one process are computed together: each denoising step takes in
/// whatever has arrived meanwhile.
///
/// On success *job is a handle that must be given to diffusion_job_destroy. If params->progress is set it is called
/// by diffusion_job_wait, in its thread.
/// Errors: INVALID_HANDLE, INVALID_ARGUMENT (any field), NULL_POINTER, BUFFER_SIZE, NON_FINITE (initial_noise).
///
/// # Safety
/// `params` is NULL or points to params->struct_size readable bytes, its pointers being as its fields say; `job` is
/// NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_sample_submit(
    process: *mut diffusion_process,
    params: *const diffusion_sample_params,
    job: *mut *mut diffusion_job,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for the pointers, as the header says.
        let (out, mut request, params) = unsafe {
            let params = versioned("params", params)?;
            (Out::new("job", job)?, sample_request(engine.config(), &params)?, params)
        };
        if let Some(callback) = params.progress {
            let user_data = super::lifecycle::UserData(params.user_data);
            request.progress = Some(Box::new(move |done, total| {
                // SAFETY: the caller promised that the callback may be called until the job is destroyed.
                unsafe { torch::call_progress(callback, done, total, user_data.get()) }
            }));
        }
        out.set(handles::add_job(engine.submit(request)?));
        Ok(())
    })
}

/// Writes the job's state, one of DIFFUSION_JOB_*, and never waits.
///
/// Errors: INVALID_HANDLE, NULL_POINTER.
///
/// # Safety
/// `state` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_job_poll(job: *mut diffusion_job, state: *mut i32) -> i32 {
    call(|| {
        let job = handles::job(job)?;
        // SAFETY: the caller vouches for `state`, as the header says.
        let state = unsafe { Out::new("state", state) }?;
        state.set(match job.state() {
            JobState::Queued => DIFFUSION_JOB_QUEUED,
            JobState::Running => DIFFUSION_JOB_RUNNING,
            JobState::Done => DIFFUSION_JOB_DONE,
            JobState::Failed => DIFFUSION_JOB_FAILED,
            JobState::Cancelled => DIFFUSION_JOB_CANCELLED,
        });
        Ok(())
    })
}

/// Waits until the job has ended, at most timeout_ms milliseconds (0: only looks; negative: without limit), and
/// returns how it ended: DIFFUSION_OK if the images are ready, else the job's error.
///
/// DIFFUSION_ERROR_TIMEOUT with the job still in state QUEUED or RUNNING means that the wait is over, not the job.
/// Calls the job's progress callback from this thread; if several threads wait, one of them.
/// Errors: INVALID_HANDLE, TIMEOUT, CANCELLED, and whatever diffusion_sample_with returns.
#[no_mangle]
pub extern "C" fn diffusion_job_wait(job: *mut diffusion_job, timeout_ms: i64) -> i32 {
    call(|| {
        let job = handles::job(job)?;
        let limit = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        job.wait(limit)
    })
}

/// Writes how far the job is, in denoising steps of images, and never waits. Either pointer may be NULL.
///
/// Errors: INVALID_HANDLE.
///
/// # Safety
/// `done` and `total` are each NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_job_progress(
    job: *mut diffusion_job,
    done: *mut u64,
    total: *mut u64,
) -> i32 {
    call(|| {
        let job = handles::job(job)?;
        for (pointer, value) in [(done, job.done()), (total, job.total())] {
            if !pointer.is_null() {
                // SAFETY: not NULL, and the caller vouches for the rest, as the header says.
                unsafe { Out::new("done", pointer) }?.set(value);
            }
        }
        Ok(())
    })
}

/// Ends the job, if it has not ended already, with DIFFUSION_ERROR_CANCELLED, and returns at once. Whoever waits for
/// it wakes; the other jobs of its process go on.
///
/// Errors: INVALID_HANDLE.
#[no_mangle]
pub extern "C" fn diffusion_job_cancel(job: *mut diffusion_job) -> i32 {
    call(|| {
        handles::job(job)?.cancel();
        Ok(())
    })
}

/// Copies the images of a finished job out, in the format that its parameters named. May be called again.
///
/// bytes must be exactly what diffusion_sample_size says for its parameters. Never waits.
/// Errors: INVALID_HANDLE, INVALID_ARGUMENT (the job has not ended), NULL_POINTER, BUFFER_SIZE, or the error that the
/// job ended with.
///
/// # Safety
/// `out` is NULL or points to `bytes` writable bytes.
#[no_mangle]
pub unsafe extern "C" fn diffusion_job_fetch(job: *mut diffusion_job, out: *mut c_void, bytes: usize) -> i32 {
    call(|| {
        let job = handles::job(job)?;
        let need = Need::new(job.result_bytes(), "the job's images in its format");
        let out = out.cast::<u8>();
        // SAFETY: the caller vouches for `out`, as the header says.
        let out = unsafe { OutSlice::new(array!(out, bytes), &need) }?;
        out.write(&job.encoded()?);
        Ok(())
    })
}

/// Writes the images of a job as they are now estimated to become (each sampler's x0), in the job's own format, and in
/// *done how many denoising steps of the job the estimate stems from, counted as in diffusion_job_progress.
///
/// May be called at any time and never waits. Estimates are kept from the first call on, so that jobs that nobody looks
/// at pay nothing: that call, and any before the next denoising step, get mid-gray images and a *done of 0; an image
/// of the job that has not begun is mid-gray too. Of a finished job it gives what diffusion_job_fetch gives.
/// bytes must be exactly what diffusion_sample_size says for the job's parameters; done may be NULL.
/// Errors: INVALID_HANDLE, NULL_POINTER, BUFFER_SIZE, OUT_OF_MEMORY, or the error that the job ended with.
///
/// # Safety
/// `out` is NULL or points to `bytes` writable bytes; `done` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_job_preview(
    job: *mut diffusion_job,
    out: *mut c_void,
    bytes: usize,
    done: *mut u64,
) -> i32 {
    call(|| {
        let job = handles::job(job)?;
        let need = Need::new(job.result_bytes(), "the job's images in its format");
        let out = out.cast::<u8>();
        // SAFETY: the caller vouches for `out`, as the header says.
        let out = unsafe { OutSlice::new(array!(out, bytes), &need) }?;
        let (images, steps) = job.preview()?;
        out.write(&images);
        if !done.is_null() {
            // SAFETY: not NULL, and the caller vouches for the rest, as the header says.
            unsafe { Out::new("done", done) }?.set(steps);
        }
        Ok(())
    })
}

/// Ends the handle, and with it the job if it is still under way. The images of a finished job are freed.
///
/// Threads that wait for the job return DIFFUSION_ERROR_CANCELLED. Errors: INVALID_HANDLE (also for NULL and for a
/// second call).
#[no_mangle]
pub extern "C" fn diffusion_job_destroy(job: *mut diffusion_job) -> i32 {
    call(|| {
        handles::take_job(job)?.cancel();
        Ok(())
    })
}

/// Waits for a job of a blocking call, telling the caller's callback of its progress.
pub(super) fn wait_with_callback(
    job: &Job,
    callback: diffusion_progress_fn,
    user_data: *mut c_void,
) -> Result<()> {
    let Some(callback) = callback else { return job.wait(None) };
    job.wait_with(None, &mut |done, total| {
        // SAFETY: the caller promised that the callback may be called during the call.
        unsafe { torch::call_progress(callback, done, total, user_data) }
    })
}
