//! The residual block of DDPM's U-Net (Ho et al. 2020, arXiv 2006.11239, appendix B):
//! norm, activation, convolution, the timestep, norm, activation, dropout, convolution, plus a shortcut.
//!
//! It also halves or doubles the image where a config asks for resnet down- or upsampling (BigGAN's way,
//! Dhariwal and Nichol 2021, arXiv 2105.05233).

use tch::Tensor;

use super::config::{Activation, TimeScaleShift, UnetConfig};
use super::layers::{Conv2d, GroupNorm, Linear};
use super::model::Dropout;
use super::scope::Scope;
use crate::error::Result;

/// What a block does to height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Keep,
    Halve,
    Double,
}

/// What every residual block of a forward pass is given beside the image.
pub(crate) struct Conditioning<'a> {
    /// The activated embedding, [B, E]: all blocks use the same activation, so it is applied once.
    pub(crate) embedding: &'a Tensor,
    /// How to drop values out; `None` when sampling.
    pub(crate) dropout: Option<&'a Dropout<'a>>,
}

/// One residual block: [B, in, H, W] -> [B, out, H', W'].
#[derive(Debug)]
pub(crate) struct Resnet {
    pub(crate) norm1: GroupNorm,
    pub(crate) conv1: Conv2d,
    pub(crate) time_emb_proj: Linear,
    pub(crate) norm2: GroupNorm,
    pub(crate) conv2: Conv2d,
    /// Where in ≠ out.
    pub(crate) conv_shortcut: Option<Conv2d>,
    pub(crate) act: Activation,
    pub(crate) time_scale_shift: TimeScaleShift,
    pub(crate) scale: Scale,
    /// The sum is divided by this; 1 everywhere but in the middle.
    pub(crate) output_scale_factor: f64,
    pub(crate) dropout: f64,
}

impl Resnet {
    pub(super) fn build(
        scope: &Scope,
        config: &UnetConfig,
        inputs: usize,
        outputs: usize,
        scale: Scale,
        output_scale_factor: f64,
    ) -> Result<Self> {
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let projected = match config.resnet_time_scale_shift {
            TimeScaleShift::Default => outputs,
            TimeScaleShift::ScaleShift => 2 * outputs,
        };
        Ok(Resnet {
            norm1: GroupNorm::build(&scope.at("norm1"), inputs, groups, eps)?,
            conv1: Conv2d::same(&scope.at("conv1"), inputs, outputs, 3)?,
            time_emb_proj: Linear::build(&scope.at("time_emb_proj"), config.embedding_width(), projected)?,
            norm2: GroupNorm::build(&scope.at("norm2"), outputs, groups, eps)?,
            conv2: Conv2d::same(&scope.at("conv2"), outputs, outputs, 3)?,
            conv_shortcut: match inputs == outputs {
                true => None,
                false => Some(Conv2d::same(&scope.at("conv_shortcut"), inputs, outputs, 1)?),
            },
            act: config.act,
            time_scale_shift: config.resnet_time_scale_shift,
            scale,
            output_scale_factor,
            dropout: config.dropout,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, given: &Conditioning) -> Result<Tensor> {
        let h = self.norm1.forward_activated(x, self.act)?;
        let (h, x) = match self.scale {
            Scale::Keep => (h, x.shallow_clone()),
            Scale::Halve => (halve(&h)?, halve(x)?),
            Scale::Double => (double(&h)?, double(x)?),
        };
        let h = self.convolve_with_time(&h, given.embedding)?;
        let h = match given.dropout {
            Some(dropout) if self.dropout > 0.0 => dropout(&h, self.dropout)?,
            _ => h,
        };
        let x = match &self.conv_shortcut {
            Some(conv) => conv.forward(&x)?,
            None => x,
        };
        rescale(self.conv2.forward_plus(&h, None, Some(&x))?, self.output_scale_factor)
    }

    /// The first convolution and the second norm with its activation. The timestep is added between the two, or scales
    /// and shifts what is normalised (adaptive group norm, arXiv 2105.05233).
    fn convolve_with_time(&self, h: &Tensor, embedding: &Tensor) -> Result<Tensor> {
        let time = self.time_emb_proj.forward(embedding)?; // [B, C or 2C]
        match self.time_scale_shift {
            TimeScaleShift::Default => {
                self.norm2.forward_activated(&self.conv1.forward_plus(h, Some(&time), None)?, self.act)
            }
            TimeScaleShift::ScaleShift => {
                let width = self.norm2.weight.size().first().copied().unwrap_or(0);
                let time = time.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
                let (scale, shift) = (time.f_narrow(1, 0, width)?, time.f_narrow(1, width, width)?);
                let normed = self.norm2.forward(&self.conv1.forward(h)?)?;
                self.act.forward(&normed.f_mul(&scale.f_add_scalar(1.0)?)?.f_add(&shift)?)
            }
        }
    }
}

/// x / factor, sparing the pass over memory where that is nothing.
pub(crate) fn rescale(x: Tensor, factor: f64) -> Result<Tensor> {
    Ok(if factor == 1.0 { x } else { x.f_div_scalar(factor)? })
}

/// Means of 2×2 squares: [B, C, H, W] -> [B, C, H/2, W/2].
fn halve(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None)?)
}

/// Every pixel four times: [B, C, H, W] -> [B, C, 2H, 2W].
pub(crate) fn double(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.size4()?;
    // libtorch's channels-last kernel counts in 32 bits (pytorch issue 141831).
    let large = x.numel() > (1 << 31) / 4;
    let x = if large { x.f_contiguous()? } else { x.shallow_clone() };
    Ok(x.f_upsample_nearest2d([2 * height, 2 * width], None, None)?)
}
