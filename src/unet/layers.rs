//! The three layers with weights, each a few lines over libtorch's own operator.
//!
//! The fields are visible to the crate, since an inference plan is made by reading a network's layers.

use tch::{Device, Kind, Tensor};

use super::config::Activation;
use super::parameters::Init;
use super::scope::Scope;
use crate::error::Result;
use crate::torch::{self, training};

/// A 2-d convolution: `weight` [out, in, k, k], `bias` [out].
#[derive(Debug)]
pub(crate) struct Conv2d {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) stride: i64,
    pub(crate) padding: i64,
}

impl Conv2d {
    /// A `k`×`k` convolution with stride 1 that keeps height and width (`k` is odd).
    pub(super) fn same(scope: &Scope, inputs: usize, outputs: usize, k: usize) -> Result<Self> {
        Self::build(scope, inputs, outputs, k, 1, k / 2)
    }

    /// A `k`×`k` convolution with any stride and zero padding on all four sides.
    pub(super) fn build(
        scope: &Scope,
        inputs: usize,
        outputs: usize,
        k: usize,
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        let init = Init::fan_in(inputs * k * k);
        Ok(Conv2d {
            weight: scope.parameter("weight", &[outputs, inputs, k, k], init)?,
            bias: scope.parameter("bias", &[outputs], init)?,
            stride: stride as i64,
            padding: padding as i64,
        })
    }

    /// [B, in, H, W] -> [B, out, H', W']
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_plus(x, None, None)
    }

    /// [`Self::forward`] plus `added` [B, out] plus `residual` [B, out, H', W']
    pub(crate) fn forward_plus(
        &self,
        x: &Tensor,
        added: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        if training::convolves(x, &self.weight, self.stride, self.padding) {
            return training::convolve(x, &self.weight, &self.bias, added, residual);
        }
        let mut out = self.plain(x)?;
        if let Some(added) = added {
            out = out.f_add(&added.f_unsqueeze(-1)?.f_unsqueeze(-1)?)?;
        }
        match residual {
            Some(residual) => Ok(residual.f_add(&out)?),
            None => Ok(out),
        }
    }

    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        // Below 16 images on one thread conv2d prefers im2col, which is slower and rounds otherwise than oneDNN does for
        // 16: an image would depend on the batch it is in. In training conv2d stays, which autocast knows.
        if x.device() == Device::Cpu && x.kind() == Kind::Float && !torch::is_recording() {
            return Ok(x.f_mkldnn_convolution(&self.weight, Some(&self.bias), padding, stride, [1, 1], 1)?);
        }
        if x.device().is_cuda() && !torch::is_recording() {
            // conv2d with its options spelled out, which are the host's to set otherwise: no trials of kernels, the same
            // result each time, and f32 means f32, where libtorch lets cuDNN round to TF32 (10 bits) unless told.
            let (benchmark, deterministic, cudnn, tf32) = (false, true, true, false);
            return Ok(x.f_internal_convolution(
                &self.weight,
                Some(&self.bias),
                stride,
                padding,
                [1, 1],
                false,
                [0, 0],
                1,
                benchmark,
                deterministic,
                cudnn,
                tf32,
            )?);
        }
        Ok(x.f_conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], 1)?)
    }
}

/// Rows of a matrix product are filled up to a multiple of this.
const ROW_TILE: i64 = 16;

/// x · weightᵀ + bias: `weight` [out, in], `bias` [out].
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

impl Linear {
    pub(super) fn build(scope: &Scope, inputs: usize, outputs: usize) -> Result<Self> {
        let init = Init::fan_in(inputs);
        Ok(Linear {
            weight: scope.parameter("weight", &[outputs, inputs], init)?,
            bias: scope.parameter("bias", &[outputs], init)?,
        })
    }

    /// [rows, in] -> [rows, out], or [batch, rows, in] -> [batch, rows, out]
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.device() != Device::Cpu || torch::is_recording() {
            return Ok(x.f_linear(&self.weight, Some(&self.bias))?);
        }
        // Matrix products round a row by its place among the rows of their kernels' tiles and by how many rows there
        // are. So that a row is the same in any batch, a matrix has whole tiles of rows, and a batch of matrices is
        // one product for each. libtorch's linear chooses between many and one by the strides of x and by whether
        // the weights are being trained.
        if let &[batch, _, _] = x.size().as_slice() {
            let weight = self.weight.f_transpose(0, 1)?.f_unsqueeze(0)?.f_expand([batch, -1, -1], false)?;
            return Ok(self.bias.f_baddbmm(x, &weight, 1.0, 1.0)?);
        }
        let rows = x.size().first().copied().unwrap_or(0);
        let missing = (ROW_TILE - rows % ROW_TILE) % ROW_TILE;
        let padded = x.f_constant_pad_nd([0, 0, 0, missing])?;
        Ok(padded.f_linear(&self.weight, Some(&self.bias))?.f_narrow(0, 0, rows)?)
    }
}

/// Group normalisation (Wu and He 2018, arXiv 1803.08494): `weight` [C], `bias` [C].
#[derive(Debug)]
pub(crate) struct GroupNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) groups: i64,
    pub(crate) eps: f64,
}

impl GroupNorm {
    pub(super) fn build(scope: &Scope, channels: usize, groups: usize, eps: f64) -> Result<Self> {
        Ok(GroupNorm {
            weight: scope.parameter("weight", &[channels], Init::Ones)?,
            bias: scope.parameter("bias", &[channels], Init::Zeros)?,
            groups: groups as i64,
            eps,
        })
    }

    /// [B, C, H, W] -> the same shape
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if training::normalises(x, &self.weight) {
            return training::normalise(x, &self.weight, &self.bias, self.groups, self.eps, false);
        }
        if x.device().is_cuda() && x.kind() != Kind::Float && !torch::is_recording() {
            return self.channels_last(x);
        }
        Ok(x.f_group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }

    /// The norm, then an activation: [B, C, H, W] -> the same shape
    pub(crate) fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        if activation == Activation::Silu && training::normalises(x, &self.weight) {
            return training::normalise(x, &self.weight, &self.bias, self.groups, self.eps, true);
        }
        activation.forward(&self.forward(x)?)
    }

    /// The same for images with their channels last, which libtorch's CUDA kernel would copy to channels first, so that
    /// the next convolution copied them back. Sums and factors are f32 whatever x is.
    fn channels_last(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.size4()?;
        let (pixels, each) = (height * width, channels / self.groups);
        let grouped = x.f_permute([0, 2, 3, 1])?.f_reshape([batch, pixels, self.groups, each])?;
        let mean = grouped.f_mean_dim(&[1i64, 3][..], true, Kind::Float)?; // [B, 1, G, 1]
        let norm = grouped.f_norm_scalaropt_dim_dtype(2.0, [1i64, 3], true, Kind::Float)?;
        let square = norm.f_square()?.f_div_scalar((pixels * each) as f64)?;
        let variance = square.f_sub(&mean.f_square()?)?.f_clamp_min(0.0)?;
        let affine = |t: &Tensor| t.f_to_kind(Kind::Float)?.f_view([1, 1, self.groups, each]);
        let scale = variance.f_add_scalar(self.eps)?.f_rsqrt()?.f_mul(&affine(&self.weight)?)?; // [B, 1, G, C/G]
        let shift = affine(&self.bias)?.f_sub(&mean.f_mul(&scale)?)?;
        let (scale, shift) = (scale.f_view([batch, channels, 1, 1])?, shift.f_view([batch, channels, 1, 1])?);
        Ok(shift.f_addcmul_out(&x.f_empty_like()?, x, &scale)?)
    }
}

impl Activation {
    /// The function, element by element.
    pub(crate) fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::Silu => x.f_silu(),
            Activation::Mish => x.f_mish(),
            Activation::Gelu => x.f_gelu("none"),
            Activation::Relu => x.f_relu(),
        }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against libtorch's own in f64, for images whose mean is far from 0 too.
    #[test]
    fn group_norm_of_channels_last_is_group_norm() {
        let _no_grad = tch::no_grad_guard();
        let mut compared = 0;
        for (batch, channels, side, groups) in [(1, 8, 4, 2), (3, 32, 8, 32), (2, 48, 5, 4), (2, 12, 1, 3)] {
            for mean in [0.0, 3.0, 40.0] {
                let count = batch * channels * side * side;
                let values =
                    Tensor::arange(count, (Kind::Double, Device::Cpu)).f_mul_scalar(0.7).unwrap().sin();
                let x = (values * 1.5 + mean).view([batch, side, side, channels]).permute([0, 3, 1, 2]);
                let weight = Tensor::linspace(0.5, 2.0, channels, (Kind::Double, Device::Cpu));
                let bias = Tensor::linspace(-1.0, 1.0, channels, (Kind::Double, Device::Cpu));
                for (kind, tolerance) in [(Kind::Float, 2e-4), (Kind::BFloat16, 4e-2), (Kind::Half, 5e-3)] {
                    if kind == Kind::Float && mean > 10.0 {
                        // There the squares cancel more than f32 can spare; its images take libtorch's own.
                        continue;
                    }
                    let layer = GroupNorm {
                        weight: weight.to_kind(kind),
                        bias: bias.to_kind(kind),
                        groups,
                        eps: 1e-5,
                    };
                    let x = x.to_kind(kind);
                    let found = layer.channels_last(&x).unwrap();
                    assert_eq!((found.kind(), found.stride()), (kind, x.stride()));
                    let double = |t: &Tensor| Some(t.to_kind(Kind::Double));
                    let wanted = x.to_kind(Kind::Double).group_norm(
                        groups,
                        double(&layer.weight),
                        double(&layer.bias),
                        1e-5,
                        false,
                    );
                    let worst = (found.to_kind(Kind::Double) - wanted).abs().max().double_value(&[]);
                    assert!(worst < tolerance, "{channels} channels around {mean}, {kind:?}: {worst:e}");
                    compared += 1;
                }
            }
        }
        println!("{compared} cases");
    }
}
