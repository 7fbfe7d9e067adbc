//! The U-Net's parameters: how many, their names and shapes, reading and writing them.

use std::ffi::c_char;

use super::boundary::{array, call, input, text, write_versioned, Need, Out, OutSlice, Versioned};
use super::handles;
use super::types::{
    diffusion_parameter, diffusion_process, DIFFUSION_WEIGHTS_EMA, DIFFUSION_WEIGHTS_TRAINED,
};
use crate::process::{check_finite, Weights};
use crate::{Error, Result};

// SAFETY: repr(C), begins with a u32, and every field takes any bits.
unsafe impl Versioned for diffusion_parameter {
    const LEAST: usize = std::mem::size_of::<diffusion_parameter>();
    const NAME: &'static str = "diffusion_parameter";

    fn defaults() -> Self {
        let struct_size = std::mem::size_of::<Self>() as u32;
        diffusion_parameter { struct_size, rank: 0, shape: [1; 4], len: 0, name: [0; 128] }
    }
}

fn weights(value: i32) -> Result<Weights> {
    match value {
        DIFFUSION_WEIGHTS_TRAINED => Ok(Weights::Trained),
        DIFFUSION_WEIGHTS_EMA => Ok(Weights::Ema),
        other => Err(Error::argument(
            "weights",
            other,
            "DIFFUSION_WEIGHTS_TRAINED (0) or DIFFUSION_WEIGHTS_EMA (1)",
        )),
    }
}

/// Writes how many tensors the U-Net's parameters are. Never waits.
///
/// Errors: INVALID_HANDLE, NULL_POINTER.
///
/// # Safety
/// `count` is NULL or valid for a write.
#[no_mangle]
pub unsafe extern "C" fn diffusion_parameter_count(
    process: *mut diffusion_process,
    count: *mut usize,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        // SAFETY: the caller vouches for `count`, as the header says.
        unsafe { Out::new("count", count) }?.set(engine.parameters().len());
        Ok(())
    })
}

/// Writes the name and shape of the tensor at an index below diffusion_parameter_count, in diffusers' order. Set
/// parameter->struct_size first. Never waits.
///
/// Errors: INVALID_HANDLE, INVALID_ARGUMENT (index, struct_size), NULL_POINTER.
///
/// # Safety
/// `parameter` is NULL or points to parameter->struct_size writable bytes.
#[no_mangle]
pub unsafe extern "C" fn diffusion_parameter_describe(
    process: *mut diffusion_process,
    index: usize,
    parameter: *mut diffusion_parameter,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        let all = engine.parameters();
        let Some(found) = all.get(index) else {
            return Err(Error::argument("index", index, format!("in 0..{}", all.len())));
        };
        let mut value = diffusion_parameter::defaults();
        value.rank = found.shape.len() as i32;
        value.len = found.len();
        for (to, from) in value.shape.iter_mut().zip(&found.shape) {
            *to = *from;
        }
        // The last byte stays NUL.
        for (to, from) in value.name.iter_mut().take(127).zip(found.name.bytes()) {
            *to = from as c_char;
        }
        // SAFETY: the caller vouches for `parameter`, as the header says.
        unsafe { write_versioned("parameter", parameter, value) }
    })
}

/// Copies the values of the tensor called name out; out_len must be its diffusion_parameter.len. weights is one of
/// DIFFUSION_WEIGHTS_*.
///
/// Waits for training calls made before. Errors: INVALID_HANDLE, INVALID_ARGUMENT (weights, name), NULL_POINTER,
/// BUFFER_SIZE, CANCELLED.
///
/// # Safety
/// `name` is NULL or a NUL-terminated string; `out` is NULL or points to out_len writable floats.
#[no_mangle]
pub unsafe extern "C" fn diffusion_parameter_read(
    process: *mut diffusion_process,
    weights: i32,
    name: *const c_char,
    out: *mut f32,
    out_len: usize,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        let weights = self::weights(weights)?;
        // SAFETY: the caller vouches for `name`, as the header says.
        let name = unsafe { text("name", name) }?.to_owned();
        let need = Need::new(engine.parameter(&name)?.len(), format!("the values of {name}"));
        // SAFETY: the caller vouches for `out`, as the header says.
        let out = unsafe { OutSlice::new(array!(out, out_len), &need) }?;
        out.write(&engine.run_shared(move |process, _| process.read_parameter(weights, &name))?);
        Ok(())
    })
}

/// Replaces the values of the tensor called name; values_len must be its diffusion_parameter.len. weights is one of
/// DIFFUSION_WEIGHTS_*: to set both, call twice. The optimizer's averages stay.
///
/// Waits for the sampling jobs and training calls made before. Errors: as diffusion_parameter_read, and NON_FINITE.
///
/// # Safety
/// `name` is NULL or a NUL-terminated string; `values` is NULL or points to values_len readable floats.
#[no_mangle]
pub unsafe extern "C" fn diffusion_parameter_write(
    process: *mut diffusion_process,
    weights: i32,
    name: *const c_char,
    values: *const f32,
    values_len: usize,
) -> i32 {
    call(|| {
        let engine = handles::process(process)?;
        let weights = self::weights(weights)?;
        // SAFETY: the caller vouches for `name`, as the header says.
        let name = unsafe { text("name", name) }?.to_owned();
        let need = Need::new(engine.parameter(&name)?.len(), format!("the values of {name}"));
        // SAFETY: as above.
        let values = unsafe { input(array!(values, values_len), &need) }?;
        check_finite("values", &values)?;
        engine.run_exclusive(move |process, _| process.write_parameter(weights, &name, &values))
    })
}
