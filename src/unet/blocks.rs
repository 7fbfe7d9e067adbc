//! The three kinds of place in a U-Net: a level on the way down, the middle, a level on the way up.
//! Diffusers has a class for each kind of block; here the kinds are data.

use tch::Tensor;

use super::attention::{Attention, AttentionShape};
use super::config::{BlockKind, Resample, TimeScaleShift, UnetConfig};
use super::layers::Conv2d;
use super::resnet::{double, Conditioning, Resnet, Scale};
use super::scope::Scope;
use crate::error::{Error, Result};

/// How a level on the way down halves the image.
#[derive(Debug)]
pub(crate) enum Downsampler {
    /// A 3×3 convolution with stride 2; `pad_end`: one row and column of zeros at the right and the bottom only.
    Conv {
        conv: Conv2d,
        pad_end: bool,
    },
    Resnet(Box<Resnet>),
}

/// How a level on the way up doubles the image.
#[derive(Debug)]
pub(crate) enum Upsampler {
    Conv(Conv2d),
    Resnet(Box<Resnet>),
}

/// A level on the way down.
#[derive(Debug)]
pub(crate) struct DownBlock {
    pub(crate) resnets: Vec<Resnet>,
    /// One after each resnet, or none at all.
    pub(crate) attentions: Vec<Attention>,
    /// None at the deepest level.
    pub(crate) downsampler: Option<Downsampler>,
}

/// The middle.
#[derive(Debug)]
pub(crate) struct MidBlock {
    pub(crate) first: Resnet,
    pub(crate) attention: Option<Attention>,
    pub(crate) second: Resnet,
}

/// A level on the way up.
#[derive(Debug)]
pub(crate) struct UpBlock {
    pub(crate) resnets: Vec<Resnet>,
    pub(crate) attentions: Vec<Attention>,
    pub(crate) upsampler: Option<Upsampler>,
}

/// The attention layers of a block come before its resnets in a state_dict, so they are built first.
fn attentions(scope: &Scope, config: &UnetConfig, count: usize, channels: usize) -> Result<Vec<Attention>> {
    let shape = AttentionShape {
        channels,
        head_dim: config.attention_head_dim,
        groups: Some(config.norm_num_groups),
        eps: config.norm_eps,
        output_scale_factor: 1.0,
    };
    (0..count).map(|i| Attention::build(&scope.nth("attentions", i), &shape)).collect()
}

/// Whether a block of `kind` changes the size of the image by a resnet, not by a convolution.
fn by_resnet(kind: BlockKind, chosen: Resample) -> bool {
    match kind {
        // Diffusers' plain blocks do not look at downsample_type and upsample_type.
        BlockKind::Plain => false,
        BlockKind::Attention => chosen == Resample::Resnet,
        BlockKind::Resnet => true,
    }
}

impl DownBlock {
    pub(super) fn build(
        scope: &Scope,
        config: &UnetConfig,
        kind: BlockKind,
        inputs: usize,
        outputs: usize,
        last: bool,
    ) -> Result<Self> {
        let layers = config.layers_per_block;
        let count = if kind == BlockKind::Attention { layers } else { 0 };
        let attentions = attentions(scope, config, count, outputs)?;
        let resnets = (0..layers)
            .map(|i| {
                let inputs = if i == 0 { inputs } else { outputs };
                Resnet::build(&scope.nth("resnets", i), config, inputs, outputs, Scale::Keep, 1.0)
            })
            .collect::<Result<_>>()?;
        let place = scope.at("downsamplers.0");
        let downsampler = if last {
            None
        } else if by_resnet(kind, config.downsample_type) {
            let resnet = Resnet::build(&place, config, outputs, outputs, Scale::Halve, 1.0)?;
            Some(Downsampler::Resnet(Box::new(resnet)))
        } else {
            let padding = config.downsample_padding;
            let conv = Conv2d::build(&place.at("conv"), outputs, outputs, 3, 2, padding)?;
            Some(Downsampler::Conv { conv, pad_end: padding == 0 })
        };
        Ok(DownBlock { resnets, attentions, downsampler })
    }

    /// [B, in, H, W] -> [B, out, H/2, W/2]; every intermediate result is pushed onto `skips`.
    pub(crate) fn forward(
        &self,
        mut h: Tensor,
        given: &Conditioning,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            h = resnet.forward(&h, given)?;
            if let Some(attention) = self.attentions.get(i) {
                h = attention.forward(&h)?;
            }
            skips.push(h.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            h = match downsampler {
                Downsampler::Conv { conv, pad_end: false } => conv.forward(&h)?,
                Downsampler::Conv { conv, pad_end: true } => {
                    conv.forward(&h.f_constant_pad_nd([0, 1, 0, 1])?)?
                }
                Downsampler::Resnet(resnet) => resnet.forward(&h, given)?,
            };
            skips.push(h.shallow_clone());
        }
        Ok(h)
    }
}

impl MidBlock {
    pub(super) fn build(scope: &Scope, config: &UnetConfig, channels: usize) -> Result<Self> {
        let factor = config.mid_block_scale_factor;
        let shape = AttentionShape {
            channels,
            head_dim: config.attention_head_dim,
            // As in diffusers: with scale_shift the middle's attention has no norm unless it is asked for.
            groups: match (config.attn_norm_num_groups, config.resnet_time_scale_shift) {
                (Some(groups), _) => Some(groups),
                (None, TimeScaleShift::Default) => Some(config.norm_num_groups),
                (None, TimeScaleShift::ScaleShift) => None,
            },
            eps: config.norm_eps,
            output_scale_factor: factor,
        };
        let attention = match config.add_attention {
            true => Some(Attention::build(&scope.at("attentions.0"), &shape)?),
            false => None,
        };
        let resnet =
            |i| Resnet::build(&scope.nth("resnets", i), config, channels, channels, Scale::Keep, factor);
        Ok(MidBlock { first: resnet(0)?, second: resnet(1)?, attention })
    }

    /// [B, C, H, W] -> the same shape
    pub(crate) fn forward(&self, h: Tensor, given: &Conditioning) -> Result<Tensor> {
        let mut h = self.first.forward(&h, given)?;
        if let Some(attention) = &self.attention {
            h = attention.forward(&h)?;
        }
        self.second.forward(&h, given)
    }
}

/// The widths around a level on the way up.
pub(super) struct UpWidths {
    /// Of what comes from the level below.
    pub(super) below: usize,
    /// Of this level.
    pub(super) own: usize,
    /// Of the skip connection that the last resnet reads: it comes from the next level's side of the way down.
    pub(super) last_skip: usize,
}

impl UpBlock {
    pub(super) fn build(
        scope: &Scope,
        config: &UnetConfig,
        kind: BlockKind,
        widths: &UpWidths,
        last: bool,
    ) -> Result<Self> {
        let (own, layers) = (widths.own, config.layers_per_block + 1);
        let count = if kind == BlockKind::Attention { layers } else { 0 };
        let attentions = attentions(scope, config, count, own)?;
        let resnets = (0..layers)
            .map(|i| {
                let from_below = if i == 0 { widths.below } else { own };
                let skip = if i + 1 == layers { widths.last_skip } else { own };
                Resnet::build(&scope.nth("resnets", i), config, from_below + skip, own, Scale::Keep, 1.0)
            })
            .collect::<Result<_>>()?;
        let place = scope.at("upsamplers.0");
        let upsampler = if last {
            None
        } else if by_resnet(kind, config.upsample_type) {
            Some(Upsampler::Resnet(Box::new(Resnet::build(&place, config, own, own, Scale::Double, 1.0)?)))
        } else {
            Some(Upsampler::Conv(Conv2d::same(&place.at("conv"), own, own, 3)?))
        };
        Ok(UpBlock { resnets, attentions, upsampler })
    }

    /// [B, below, H, W] -> [B, own, 2H, 2W]; every resnet pops one of `skips`.
    pub(crate) fn forward(
        &self,
        mut h: Tensor,
        given: &Conditioning,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let skip =
                skips.pop().ok_or_else(|| Error::Internal("the U-Net ran out of skip connections".into()))?;
            h = resnet.forward(&Tensor::f_cat(&[h, skip], 1)?, given)?;
            if let Some(attention) = self.attentions.get(i) {
                h = attention.forward(&h)?;
            }
        }
        match &self.upsampler {
            None => Ok(h),
            Some(Upsampler::Conv(conv)) => conv.forward(&double(&h)?),
            Some(Upsampler::Resnet(resnet)) => resnet.forward(&h, given),
        }
    }
}
