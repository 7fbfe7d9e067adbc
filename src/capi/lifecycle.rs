//! The life of a process: create, load, save, destroy, and what it is.

use std::ffi::{c_char, c_void, CStr};
use std::path::PathBuf;

use super::boundary::{array, call, input, text, versioned, write_versioned, Need, Out, OutSlice};
use super::config::{self, Overrides};
use super::handles;
use super::types::{diffusion_config, diffusion_log_fn, diffusion_process};
use crate::engine::{Engine, LogSink};
use crate::process::DiffusionProcess;
use crate::schedule::{BetaSchedule, ScheduleTable};
use crate::{torch, Error, Result};

/// Fills a config with the defaults that the fields' comments name.
///
/// Writes sizeof(diffusion_config) bytes as this header has it; later versions of the library write no more.
/// Errors: NULL_POINTER.
///
/// # Safety
/// `config` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_config_init(config: *mut diffusion_config) -> i32 {
    call(|| {
        // SAFETY: the caller vouches for `config`, as the header says.
        unsafe { Out::new("config", config) }?.set(config::defaults());
        Ok(())
    })
}

/// Fills a config with DDPM's CIFAR-10 set-up: 32x32 RGB, hidden_dims 128, 256, 256, 256 with attention at 16x16
/// (the 35.7 million parameters of google/ddpm-cifar10-32), linear schedule 0.0001..0.02, AdamW at 0.0002 with weight
/// decay 0.00001, gradient_clip 1, ema_decay 0.999, dropout 0.1.
///
/// Errors: NULL_POINTER.
///
/// # Safety
/// `config` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_config_init_cifar10(config: *mut diffusion_config) -> i32 {
    call(|| {
        // SAFETY: the caller vouches for `config`, as the header says.
        unsafe { Out::new("config", config) }?.set(config::cifar10());
        Ok(())
    })
}

/// Makes a process with fresh weights, determined by config->seed.
///
/// On success *process is a handle that must be given to diffusion_destroy. On failure it is not written.
/// Errors: INVALID_ARGUMENT (any field), NULL_POINTER, DEVICE_UNAVAILABLE, OUT_OF_MEMORY, TORCH.
///
/// # Safety
/// `config` is NULL or points to config->struct_size readable bytes; `process` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_create(
    config: *const diffusion_config,
    process: *mut *mut diffusion_process,
) -> i32 {
    call(|| {
        // SAFETY: the caller vouches for both pointers, as the header says.
        let (process, config) = unsafe { (Out::new("process", process)?, versioned("config", config)?) };
        create(process, config, None)
    })
}

/// As diffusion_create, with a table of betas in place of a formula: betas[t] in (0, 1] is the variance of the noise
/// that step t adds. config->noise_steps must be betas_len; beta_start, beta_end and beta_schedule are ignored.
///
/// Errors: as diffusion_create, and BUFFER_SIZE (betas_len is not noise_steps).
///
/// # Safety
/// As diffusion_create; `betas` is NULL or points to betas_len readable doubles.
#[no_mangle]
pub unsafe extern "C" fn diffusion_create_with_betas(
    config: *const diffusion_config,
    betas: *const f64,
    betas_len: usize,
    process: *mut *mut diffusion_process,
) -> i32 {
    call(|| {
        // SAFETY: the caller vouches for all three pointers, as the header says.
        unsafe {
            let (process, config) = (Out::new("process", process)?, versioned("config", config)?);
            let steps = config::noise_steps(&config)?;
            let betas = input(array!(betas, betas_len), &Need::new(steps, "noise_steps"))?;
            create(process, config, Some(BetaSchedule::Given(betas)))
        }
    })
}

fn create(
    process: Out<*mut diffusion_process>,
    config: diffusion_config,
    betas: Option<BetaSchedule>,
) -> Result<()> {
    let config = config::to_process_config(&config, betas)?;
    let engine = Engine::start(move || DiffusionProcess::new(config))?;
    process.set(handles::add_process(engine));
    Ok(())
}

/// Makes a process from a checkpoint folder: one that diffusion_save wrote, or a diffusers folder with a UNet2DModel
/// (a DDPMPipeline's or DDIMPipeline's, or the model's own).
///
/// overrides may be NULL. Otherwise each field of it that differs from what diffusion_config_init gives replaces the
/// checkpoint's value (device, max_batch, learning_rate, ...), and every other field keeps the checkpoint's. What
/// makes up the network and the noise schedule cannot be replaced: such a field that contradicts the checkpoint is
/// an INVALID_ARGUMENT. A checkpoint without training state starts training afresh, at step 0.
/// Nothing in a checkpoint is ever executed.
///
/// Errors: INVALID_ARGUMENT, NULL_POINTER, IO (unreadable), FORMAT (damaged, or uses a feature that is not
/// supported; the message names the file and what in it), DEVICE_UNAVAILABLE, OUT_OF_MEMORY.
///
/// # Safety
/// `path` is NULL or a NUL-terminated UTF-8 string; `overrides` is NULL or points to overrides->struct_size readable
/// bytes; `process` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_load(
    path: *const c_char,
    overrides: *const diffusion_config,
    process: *mut *mut diffusion_process,
) -> i32 {
    call(|| {
        // SAFETY: the caller vouches for all three pointers, as the header says.
        let (process, path) = unsafe { (Out::new("process", process)?, text("path", path)?) };
        let overrides = match overrides.is_null() {
            true => Overrides::none(),
            // SAFETY: as above, and not NULL.
            false => Overrides::new(unsafe { versioned("overrides", overrides) }?),
        };
        let path = PathBuf::from(path);
        let device = overrides.device()?;
        let engine =
            Engine::start(move || DiffusionProcess::load(&path, device, |config| overrides.apply(config)))?;
        process.set(handles::add_process(engine));
        Ok(())
    })
}

/// Writes a checkpoint folder: diffusers' layout, which DDPMPipeline.from_pretrained and DDIMPipeline.from_pretrained
/// open (with the moving average as its weights, where there is one), and beside it the training state, from which
/// training goes on exactly where it was.
///
/// A crash at any moment leaves the old checkpoint or the new one, whole. An existing folder is replaced if it is
/// empty or holds a checkpoint, whose other files stay; any other is refused. Waits for training calls made before;
/// runs between the denoising steps of sampling jobs.
///
/// Errors: INVALID_HANDLE, NULL_POINTER, INVALID_ARGUMENT (path is a folder with something else in it), IO,
/// CANCELLED.
///
/// # Safety
/// `path` is NULL or a NUL-terminated UTF-8 string.
#[no_mangle]
pub unsafe extern "C" fn diffusion_save(process: *mut diffusion_process, path: *const c_char) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for `path`, as the header says.
        let path = PathBuf::from(unsafe { text("path", path) }?);
        engine.run_shared(move |process, _| process.save(&path))
    })
}

/// Writes the model alone, to be shipped: the folder of diffusion_save with the weights that sampling uses in a
/// smaller format and without training state.
///
/// precision is one of DIFFUSION_PRECISION_*: F16 and BF16 halve the file; computing is done in 32 bits all the same.
/// Errors: as diffusion_save, and INVALID_ARGUMENT (precision), NON_FINITE (a weight is beyond what f16 can hold).
///
/// # Safety
/// `path` is NULL or a NUL-terminated UTF-8 string.
#[no_mangle]
pub unsafe extern "C" fn diffusion_export(
    process: *mut diffusion_process,
    path: *const c_char,
    precision: i32,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for `path`, as the header says.
        let path = PathBuf::from(unsafe { text("path", path) }?);
        let weight_type = config::weight_type(precision)?;
        engine.run_shared(move |process, _| process.export(&path, weight_type))
    })
}

/// Ends a process. Calls that are under way in other threads, and its jobs, end with DIFFUSION_ERROR_CANCELLED;
/// this call waits until its thread is gone and its memory is free, which can take as long as one step of denoising
/// or training. Job handles stay valid until diffusion_job_destroy.
///
/// Errors: INVALID_HANDLE (also for NULL and for a second call).
#[no_mangle]
pub extern "C" fn diffusion_destroy(process: *mut diffusion_process) -> i32 {
    call(|| {
        handles::take_process(process)?.stop();
        Ok(())
    })
}

/// Ends every call and job of the process that is waiting or under way with DIFFUSION_ERROR_CANCELLED and returns at
/// once. A training step that is under way ends as cancelled if it has not yet changed the weights, else it succeeds.
/// The process works on.
///
/// Errors: INVALID_HANDLE.
#[no_mangle]
pub extern "C" fn diffusion_cancel(process: *mut diffusion_process) -> i32 {
    call(|| {
        handles::process(process)?.cancel_all();
        Ok(())
    })
}

/// Writes what the process is: every field resolved, nothing left at AUTO or 0-for-default. Set config->struct_size
/// first (diffusion_config_init does); no more than that is written.
///
/// Errors: INVALID_HANDLE, NULL_POINTER, INVALID_ARGUMENT (struct_size).
///
/// # Safety
/// `config` is NULL or points to config->struct_size writable bytes.
#[no_mangle]
pub unsafe extern "C" fn diffusion_get_config(
    process: *mut diffusion_process,
    config: *mut diffusion_config,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        let value = config::from_process_config(engine.config());
        // SAFETY: the caller vouches for `config`, as the header says.
        unsafe { write_versioned("config", config, value) }
    })
}

/// Writes one of the schedule's tables, float [noise_steps]; out_len must be noise_steps. Never waits.
///
/// which_table is one of DIFFUSION_TABLE_*. Computed in double precision, stored as float.
/// Errors: INVALID_HANDLE, INVALID_ARGUMENT (which_table), NULL_POINTER, BUFFER_SIZE.
///
/// # Safety
/// `out` is NULL or points to out_len writable floats.
#[no_mangle]
pub unsafe extern "C" fn diffusion_get_schedule(
    process: *mut diffusion_process,
    which_table: i32,
    out: *mut f32,
    out_len: usize,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        let table = match which_table {
            0 => ScheduleTable::Betas,
            1 => ScheduleTable::Alphas,
            2 => ScheduleTable::AlphaCumprod,
            3 => ScheduleTable::SqrtAlphaCumprod,
            4 => ScheduleTable::SqrtOneMinusAlphaCumprod,
            other => return Err(Error::argument("which_table", other, "DIFFUSION_TABLE_*, 0..=4")),
        };
        let values = engine.schedule().table(table);
        // SAFETY: the caller vouches for `out`, as the header says.
        unsafe { OutSlice::new(array!(out, out_len), &Need::new(values.len(), "noise_steps")) }?
            .write(&values);
        Ok(())
    })
}

/// Sets who receives the process's log, in place of nobody or of an earlier callback; NULL ends it. What was logged
/// since the process was made and not delivered yet is delivered first, on this thread. When the function returns,
/// the earlier callback is not running and will not be called again.
///
/// Errors: INVALID_HANDLE.
///
/// # Safety
/// `callback` is NULL or callable, with `user_data`, from any thread until it is replaced or the process destroyed.
#[no_mangle]
pub unsafe extern "C" fn diffusion_set_log_callback(
    process: *mut diffusion_process,
    callback: diffusion_log_fn,
    user_data: *mut c_void,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        let user_data = UserData(user_data);
        engine.set_log(callback.map(|callback| {
            Box::new(move |level: i32, message: &CStr| {
                // SAFETY: the caller promised that the callback may be called with this data from any thread.
                unsafe { torch::call_log(callback, level, message, user_data.get()) }
            }) as LogSink
        }));
        Ok(())
    })
}

/// A caller's pointer on its way to another thread and back to the caller's own code.
#[derive(Clone, Copy)]
pub(super) struct UserData(pub(super) *mut c_void);

// SAFETY: never dereferenced here; the header makes the caller answer for its use on any thread.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

impl UserData {
    pub(super) fn get(self) -> *mut c_void {
        self.0
    }
}
