//! Training: one step, and the optimizer's state.

use super::boundary::{array, call, input, Array, Out};
use super::handles;
use super::inference::{batch_need, one_label_each};
use super::types::diffusion_process;
use crate::process::check_finite;
use crate::Result;

/// One optimizer step on a batch of images: a random timestep for each, add_noise, the U-Net's prediction, the loss,
/// backpropagation, clipping, optimizer, moving average. With config.accumulation_steps above 1 so many calls make
/// one step: the earlier ones only add to its gradient.
///
/// images: float [batch, channels, image_size, image_size], meant to be in [-1, 1]; images_len must be exactly that.
/// loss, that of these images, may be NULL: on CUDA the call then need not wait for the device. Timesteps and noise are
/// determined by config.seed and the number of calls so far. Waits for the sampling jobs submitted before; those submitted later see the new
/// weights.
///
/// With f16, a step whose gradients overflow changes no weight, lowers the gradient scale and succeeds.
/// Errors: INVALID_HANDLE, INVALID_ARGUMENT (batch is 0), NULL_POINTER (also where the network has classes, which
/// diffusion_train_step_with_classes takes), BUFFER_SIZE, NON_FINITE (images, or with f32 and bf16 the loss: nothing has
/// changed), CANCELLED (nothing has changed), OUT_OF_MEMORY.
///
/// # Safety
/// `images` is NULL or points to images_len readable floats; `loss` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_train_step(
    process: *mut diffusion_process,
    images: *const f32,
    images_len: usize,
    batch: usize,
    loss: *mut f32,
) -> i32 {
    // SAFETY: the caller vouches for the pointers, as the header says.
    call(|| unsafe { train_step(process, array!(images, images_len), None, batch, loss) })
}

/// As diffusion_train_step, for a network with classes: class_labels [batch] has the class of each image, in
/// 0..num_class_embeds (any whole number up to 2^24 with DIFFUSION_CLASSES_AS_TIMESTEPS).
///
/// Errors: as diffusion_train_step, and INVALID_ARGUMENT (a label that does not exist, or the network has no classes).
///
/// # Safety
/// As diffusion_train_step; `class_labels` is NULL or points to `batch` readable numbers.
#[no_mangle]
pub unsafe extern "C" fn diffusion_train_step_with_classes(
    process: *mut diffusion_process,
    images: *const f32,
    images_len: usize,
    class_labels: *const i64,
    batch: usize,
    loss: *mut f32,
) -> i32 {
    let labels = array!(class_labels, batch);
    // SAFETY: the caller vouches for the pointers, as the header says.
    call(|| unsafe { train_step(process, array!(images, images_len), Some(labels), batch, loss) })
}

/// # Safety
/// `images` and `class_labels` are as [`input`] wants them; `loss` is NULL or valid for a write.
unsafe fn train_step(
    process: *mut diffusion_process,
    images: Array<f32>,
    class_labels: Option<Array<i64>>,
    batch: usize,
    loss: *mut f32,
) -> Result<()> {
    let engine = handles::process(process)?;
    let need = batch_need(&engine, batch)?;
    // SAFETY: passed on from the caller.
    let (images, labels) = unsafe { (input(images, &need)?, one_label_each(&engine, class_labels, batch)?) };
    check_finite("images", &images)?;
    let want_loss = !loss.is_null();
    let value = engine.run_exclusive(move |process, token| {
        process.train_step(&images, labels.as_deref(), want_loss, token)
    })?;
    if let (true, Some(value)) = (want_loss, value) {
        // SAFETY: not NULL, and the caller vouches for the rest.
        unsafe { Out::new("loss", loss) }?.set(value);
    }
    Ok(())
}

/// Writes how many optimizer steps have been taken since the weights were made, those before the last save included.
///
/// Errors: INVALID_HANDLE, NULL_POINTER.
///
/// # Safety
/// `steps` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_get_step_count(process: *mut diffusion_process, steps: *mut u64) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for `steps`, as the header says.
        let steps = unsafe { Out::new("steps", steps) }?;
        steps.set(engine.run_shared(|process, _| Ok(process.step_count()))?);
        Ok(())
    })
}

/// Writes the optimizer's learning rate, before warmup_steps and decay_steps.
///
/// Errors: INVALID_HANDLE, NULL_POINTER.
///
/// # Safety
/// `learning_rate` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_get_learning_rate(
    process: *mut diffusion_process,
    learning_rate: *mut f64,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for `learning_rate`, as the header says.
        let learning_rate = unsafe { Out::new("learning_rate", learning_rate) }?;
        learning_rate.set(engine.run_shared(|process, _| Ok(process.learning_rate()))?);
        Ok(())
    })
}

/// Sets the optimizer's learning rate, > 0, before warmup_steps and decay_steps, from the next training step on.
///
/// Errors: INVALID_HANDLE, INVALID_ARGUMENT (learning_rate).
#[no_mangle]
pub extern "C" fn diffusion_set_learning_rate(process: *mut diffusion_process, learning_rate: f64) -> i32 {
    call(|| handles::process(process)?.run_shared(move |process, _| process.set_learning_rate(learning_rate)))
}

/// Writes the factor by which the loss is scaled so that f16 gradients do not vanish; 1 unless mixed_precision is
/// F16.
///
/// Errors: INVALID_HANDLE, NULL_POINTER.
///
/// # Safety
/// `scale` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_get_gradient_scale(
    process: *mut diffusion_process,
    scale: *mut f64,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for `scale`, as the header says.
        let scale = unsafe { Out::new("scale", scale) }?;
        scale.set(engine.run_shared(|process, _| process.gradient_scale())?);
        Ok(())
    })
}
