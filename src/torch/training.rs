//! Training's own kernels (`src/kernels/training.h`) as operations that autograd knows.

use std::ffi::c_char;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::{check, is_recording, raw};
use crate::Result;

extern "C" {
    fn diffusion_shim_convolve(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        added: *mut C_tensor,
        residual: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn diffusion_shim_normalise(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        groups: i64,
        eps: f64,
        silu: bool,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn diffusion_shim_channels_last(x: *mut C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
}

/// What of channels [`convolve`] takes a multiple of.
const CONVOLVED_CHANNELS: i64 = 32;
/// What of channels [`normalise`] takes a multiple of.
const NORMALISED_CHANNELS: i64 = 16;

/// Whether gradients are being recorded for images of this kind and place: else the kernels are of no use.
pub fn applies(x: &Tensor) -> bool {
    x.device() == Device::Cpu && matches!(x.kind(), Kind::Float | Kind::BFloat16) && is_recording()
}

/// Whether [`convolve`] can do a convolution with this weight and these images.
pub fn convolves(x: &Tensor, weight: &Tensor, stride: i64, padding: i64) -> bool {
    let fits = match weight.size().as_slice() {
        &[outputs, inputs, 3, 3] => outputs % CONVOLVED_CHANNELS == 0 && inputs % CONVOLVED_CHANNELS == 0,
        _ => false,
    };
    fits && (stride, padding) == (1, 1) && weight.kind() == Kind::Float && x.numel() > 0 && applies(x)
}

/// Whether [`normalise`] can do a group norm of these images with this weight.
pub fn normalises(x: &Tensor, weight: &Tensor) -> bool {
    let fits = matches!(x.size().as_slice(), &[_, channels, _, _] if channels % NORMALISED_CHANNELS == 0);
    fits && weight.kind() == Kind::Float && x.numel() > 0 && applies(x)
}

fn new_tensor(make: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    check(make(&mut out))?;
    // SAFETY: on success `out` is a new tensor, which becomes ours.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// The 3×3 convolution with stride 1 and padding 1 of `x` [B, in, H, W], plus `bias` [out], plus `added` [B, out], plus
/// `residual` [B, out, H, W]: [B, out, H, W] in the kind of `x`. See [`convolves`].
pub fn convolve(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    added: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let added = added.map(|added| added.f_to_kind(Kind::Float)).transpose()?;
    let residual = residual.map(|residual| residual.f_to_kind(x.kind())).transpose()?;
    let maybe = |tensor: &Option<Tensor>| tensor.as_ref().map_or(std::ptr::null_mut(), raw);
    // SAFETY: live tensors or NULL where that is allowed; `out` is valid for a write.
    new_tensor(|out| unsafe {
        diffusion_shim_convolve(raw(x), raw(weight), raw(bias), maybe(&added), maybe(&residual), out)
    })
}

/// Group norm of `x` [B, C, H, W], then SiLU if `silu`: the same shape and kind. See [`normalises`].
pub fn normalise(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: i64,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    // SAFETY: live tensors; `out` is valid for a write.
    new_tensor(|out| unsafe {
        diffusion_shim_normalise(raw(x), raw(weight), raw(bias), groups, eps, silu, out)
    })
}

/// `x` [B, C, H, W] in channels-last memory.
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    // SAFETY: a live tensor; `out` is valid for a write.
    new_tensor(|out| unsafe { diffusion_shim_channels_last(raw(x), out) })
}
