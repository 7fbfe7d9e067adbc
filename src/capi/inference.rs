//! Noising, predicting and sampling, each as one blocking call.

use super::boundary::{array, call, input, versioned, Array, Need, Out, OutSlice};
use super::config::sample_request;
use super::handles;
use super::jobs::wait_with_callback;
use super::types::{
    diffusion_process, diffusion_sample_params, DIFFUSION_METHOD_DDIM, DIFFUSION_METHOD_DDPM,
};
use crate::engine::Engine;
use crate::pixels::Format;
use crate::process::check_finite;
use crate::{Error, Result};

/// Fills sampling parameters with the defaults that the fields' comments name.
///
/// Writes sizeof(diffusion_sample_params) bytes as this header has it; later versions of the library write no more.
/// Errors: NULL_POINTER.
///
/// # Safety
/// `params` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_sample_params_init(params: *mut diffusion_sample_params) -> i32 {
    call(|| {
        // SAFETY: the caller vouches for `params`, as the header says.
        unsafe { Out::new("params", params) }?.set(super::config::sample_defaults());
        Ok(())
    })
}

/// Noises images to given timesteps: noisy = sqrt_alpha_cumprod[t] * image + sqrt_one_minus_alpha_cumprod[t] * noise,
/// with noise from N(0, 1) that is determined for image i by (seed, i).
///
/// images, noisy and noise: float [batch, channels, image_size, image_size]; all lengths must be exactly that.
/// timesteps: [batch], each in 0..noise_steps. noisy may be images itself; noise must not overlap either.
/// Errors: INVALID_HANDLE, INVALID_ARGUMENT (batch is 0, a timestep), NULL_POINTER, BUFFER_SIZE, NON_FINITE,
/// CANCELLED, OUT_OF_MEMORY.
///
/// # Safety
/// Each pointer is NULL or points to as many values as its length says (timesteps: batch), readable or, for noisy
/// and noise, writable.
#[no_mangle]
pub unsafe extern "C" fn diffusion_add_noise(
    process: *mut diffusion_process,
    images: *const f32,
    images_len: usize,
    timesteps: *const i64,
    batch: usize,
    seed: u64,
    noisy: *mut f32,
    noisy_len: usize,
    noise: *mut f32,
    noise_len: usize,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        let (need, one_each) = (batch_need(&engine, batch)?, Need::new(batch, "one for each image"));
        // SAFETY: the caller vouches for all pointers, as the header says.
        let (images, timesteps, noisy, noise) = unsafe {
            (
                input(array!(images, images_len), &need)?,
                input(array!(timesteps, batch), &one_each)?,
                OutSlice::new(array!(noisy, noisy_len), &need)?,
                OutSlice::new(array!(noise, noise_len), &need)?,
            )
        };
        check_finite("images", &images)?;
        engine.config().check_timesteps(&timesteps)?;
        let result = engine.run_shared(move |process, _| process.add_noise(&images, &timesteps, seed))?;
        noisy.write(&result.noisy);
        noise.write(&result.noise);
        Ok(())
    })
}

/// Evaluates the U-Net: what it predicts (by prediction_type: the noise, the clean image or the velocity) for noisy
/// images at given timesteps. With the moving average's weights where ema_decay is not 0.
///
/// images and out: float [batch, channels, image_size, image_size]; both lengths must be exactly that.
/// timesteps: [batch], each in 0..noise_steps. Waits for training calls made before; runs between the denoising steps
/// of sampling jobs.
/// Errors: as diffusion_add_noise.
///
/// # Safety
/// Each pointer is NULL or points to as many values as its length says (timesteps: batch), readable or, for out,
/// writable.
#[no_mangle]
pub unsafe extern "C" fn diffusion_predict_noise(
    process: *mut diffusion_process,
    images: *const f32,
    len: usize,
    timesteps: *const i64,
    batch: usize,
    out: *mut f32,
    out_len: usize,
) -> i32 {
    let (images, timesteps, out) = (array!(images, len), array!(timesteps, batch), array!(out, out_len));
    // SAFETY: the caller vouches for all pointers, as the header says.
    call(|| unsafe { predict_noise(process, images, timesteps, None, out) })
}

/// As diffusion_predict_noise, for a network with classes: class_labels [batch] has the class of each image, in
/// 0..num_class_embeds (any whole number up to 2^24 with DIFFUSION_CLASSES_AS_TIMESTEPS).
///
/// Errors: as diffusion_predict_noise, and INVALID_ARGUMENT (a label that does not exist, or the network has no
/// classes).
///
/// # Safety
/// As diffusion_predict_noise; `class_labels` is NULL or points to `batch` readable numbers.
#[no_mangle]
pub unsafe extern "C" fn diffusion_predict_noise_with_classes(
    process: *mut diffusion_process,
    images: *const f32,
    len: usize,
    timesteps: *const i64,
    class_labels: *const i64,
    batch: usize,
    out: *mut f32,
    out_len: usize,
) -> i32 {
    let (images, timesteps, out) = (array!(images, len), array!(timesteps, batch), array!(out, out_len));
    let labels = array!(class_labels, batch);
    // SAFETY: the caller vouches for all pointers, as the header says.
    call(|| unsafe { predict_noise(process, images, timesteps, Some(labels), out) })
}

/// # Safety
/// The arrays are as [`input`] and [`OutSlice::new`] want them.
unsafe fn predict_noise(
    process: *mut diffusion_process,
    images: Array<f32>,
    timesteps: Array<i64>,
    class_labels: Option<Array<i64>>,
    out: Array<f32>,
) -> Result<()> {
    let engine = handles::process(process)?;
    let batch = timesteps.len;
    let (need, one_each) = (batch_need(&engine, batch)?, Need::new(batch, "one for each image"));
    // SAFETY: passed on from the caller.
    let (images, timesteps, labels, out) = unsafe {
        (
            input(images, &need)?,
            input(timesteps, &one_each)?,
            one_label_each(&engine, class_labels, batch)?,
            OutSlice::new(out, &need)?,
        )
    };
    check_finite("images", &images)?;
    engine.config().check_timesteps(&timesteps)?;
    let answer =
        engine.run_shared(move |process, _| process.predict_noise(&images, &timesteps, labels.as_deref()))?;
    out.write(&answer);
    Ok(())
}

/// Samples images by DDPM ancestral sampling over all noise_steps.
///
/// out: float [num_samples, channels, image_size, image_size] in [-1, 1]; out_len must be exactly that. Image i is
/// determined by (seed, i), whatever it is computed together with.
/// Errors: INVALID_HANDLE, INVALID_ARGUMENT (num_samples), NULL_POINTER, BUFFER_SIZE, CANCELLED, OUT_OF_MEMORY,
/// NON_FINITE (the network's answer was NaN or infinite: its weights are broken).
///
/// # Safety
/// `out` is NULL or points to out_len writable floats.
#[no_mangle]
pub unsafe extern "C" fn diffusion_sample(
    process: *mut diffusion_process,
    num_samples: usize,
    seed: u64,
    out: *mut f32,
    out_len: usize,
) -> i32 {
    let mut params = super::config::sample_defaults();
    params.method = DIFFUSION_METHOD_DDPM;
    params.num_samples = num_samples;
    params.seed = seed;
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for `out`, as the header says; the parameters hold no pointers.
        unsafe { sample(&engine, &params, array!(out, out_len)) }
    })
}

/// Samples images by DDIM (arXiv 2010.02502) over ddim_steps of the noise_steps.
///
/// ddim_steps in 1..=noise_steps; eta in [0, 1]: 0 is deterministic from the starting noise, 1 is as random as DDPM.
/// Otherwise as diffusion_sample.
///
/// # Safety
/// `out` is NULL or points to out_len writable floats.
#[no_mangle]
pub unsafe extern "C" fn diffusion_sample_ddim(
    process: *mut diffusion_process,
    num_samples: usize,
    ddim_steps: i32,
    eta: f32,
    seed: u64,
    out: *mut f32,
    out_len: usize,
) -> i32 {
    let mut params = super::config::sample_defaults();
    params.method = DIFFUSION_METHOD_DDIM;
    params.num_samples = num_samples;
    params.seed = seed;
    params.eta = f64::from(eta);
    params.steps = ddim_steps;
    call(|| {
        let engine = handles::process(process)?;
        // Here and not by the sampler: in the parameters' struct 0 means "choose", and the name is another.
        let most = engine.schedule().noise_steps();
        if !usize::try_from(ddim_steps).is_ok_and(|steps| (1..=most).contains(&steps)) {
            return Err(Error::argument("ddim_steps", ddim_steps, format!("in 1..={most}")));
        }
        // SAFETY: the caller vouches for `out`, as the header says; the parameters hold no pointers.
        unsafe { sample(&engine, &params, array!(out, out_len)) }
    })
}

/// Samples images with every choice there is, and waits for them; see diffusion_sample_params.
///
/// out has the format of params->format; out_bytes must be exactly what diffusion_sample_size says. If
/// params->progress is set it is called from this thread. Any number of threads may sample from one process at a
/// time: their images are computed together.
/// Errors: as diffusion_sample, any field of params, and TIMEOUT.
///
/// # Safety
/// `params` is NULL or points to params->struct_size readable bytes, its pointers being as its fields say; `out` is
/// NULL or points to out_bytes writable bytes.
#[no_mangle]
pub unsafe extern "C" fn diffusion_sample_with(
    process: *mut diffusion_process,
    params: *const diffusion_sample_params,
    out: *mut std::ffi::c_void,
    out_bytes: usize,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for `params` and `out`, as the header says.
        unsafe {
            let params = versioned("params", params)?;
            let out = out.cast::<u8>();
            sample(&engine, &params, array!(out, out_bytes))
        }
    })
}

/// Writes how many bytes diffusion_sample_with and diffusion_job_fetch write for these parameters. Never waits.
///
/// Errors: INVALID_HANDLE, NULL_POINTER, INVALID_ARGUMENT (num_samples, or a format that does not fit the channels).
///
/// # Safety
/// `params` is NULL or points to params->struct_size readable bytes; `bytes` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_sample_size(
    process: *mut diffusion_process,
    params: *const diffusion_sample_params,
    bytes: *mut usize,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for `params` and `bytes`, as the header says.
        let (params, bytes) = unsafe { (versioned("params", params)?, Out::new("bytes", bytes)?) };
        let (format, num_samples) = super::config::format_and_count(&params)?;
        bytes.set(engine.config().result_bytes("num_samples", format, num_samples)?);
        Ok(())
    })
}

/// The one way in which all three blocking calls sample. `T` is `f32` or `u8`, in which the length of `out` counts.
///
/// # Safety
/// `out` is as [`OutSlice::new`] wants it; the pointers in `params` are as its fields say.
unsafe fn sample<T: Copy>(engine: &Engine, params: &diffusion_sample_params, out: Array<T>) -> Result<()> {
    // SAFETY: passed on from the caller.
    let request = unsafe { sample_request(engine.config(), params) }?;
    let bytes = engine.config().result_bytes("num_samples", request.format, request.num_samples)?;
    let why = format!("{} images of {}", request.num_samples, engine.config().shape_text(request.format));
    // SAFETY: passed on from the caller.
    let out = unsafe { OutSlice::new(out, &Need::new(bytes / size_of::<T>(), why))? };
    let job = engine.submit(request)?;
    wait_with_callback(&job, params.progress, params.user_data)?;
    out.write_bytes(&job.encoded()?);
    Ok(())
}

/// Reads class labels, one for each image, and checks them against the network.
///
/// # Safety
/// `labels` is as [`input`] wants it.
pub(super) unsafe fn one_label_each(
    engine: &Engine,
    labels: Option<Array<i64>>,
    batch: usize,
) -> Result<Option<Vec<i64>>> {
    let need = Need::new(batch, "one for each image");
    // SAFETY: passed on from the caller.
    let labels = labels.map(|labels| unsafe { input(labels, &need) }).transpose()?;
    engine.config().check_class_labels(labels.as_deref())?;
    Ok(labels)
}

/// The number of floats in a batch, overflow-checked.
pub(super) fn batch_need(engine: &Engine, batch: usize) -> Result<Need> {
    let config = engine.config();
    let floats = config.result_bytes("batch", Format::F32, batch)? / size_of::<f32>();
    Ok(Need::new(floats, format!("{batch} images of {}", config.shape_text(Format::F32))))
}
