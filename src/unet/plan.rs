//! The network as an inference plan: the same layers, read once, their weights laid out for the kernels of
//! `src/kernels`. A plan holds copies: it must be made anew when the weights have changed.
//!
//! What a plan does not cover (see [`InferencePlan::new`]) is computed by [`DiffusionModel::forward`].

use tch::{Device, Kind, Tensor};

use super::attention::Attention;
use super::blocks::{DownBlock, Downsampler, MidBlock, UpBlock, Upsampler};
use super::config::{Activation, ClassEmbedding, TimeEmbedding, TimeScaleShift};
use super::layers::{Conv2d, GroupNorm};
use super::model::DiffusionModel;
use super::resnet::{Resnet, Scale};
use crate::error::Result;
use crate::torch::plan::{Buffer, Builder, Conv, Norm, Plan};

/// A network's weights and steps, laid out for sampling on the CPU in f32.
pub struct InferencePlan(Plan);

/// What a plan holds the weights of its convolutions in. It computes in f32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanWeights {
    /// As they are.
    F32,
    /// Rounded to bfloat16 after they were transformed: half as much to read, for each prediction an error of 0.01 to
    /// 0.02 of its largest value.
    Bf16,
}

/// One image, or two side by side.
#[derive(Clone, Copy)]
struct Images {
    first: Buffer,
    second: Option<Buffer>,
}

impl From<Buffer> for Images {
    fn from(first: Buffer) -> Self {
        Images { first, second: None }
    }
}

impl InferencePlan {
    /// The plan of a network for images of this height and width, with the weights as they are now.
    ///
    /// `None` where there is none: for CUDA, weights that are not f32, activations other than SiLU, residual blocks
    /// that halve or double, Fourier time embeddings, classes that are given as embeddings.
    pub fn new(
        model: &DiffusionModel,
        height: usize,
        width: usize,
        weights: PlanWeights,
    ) -> Result<Option<Self>> {
        if !covers(model) {
            return Ok(None);
        }
        let config = model.config();
        let mut b = Builder::new(config.embedding_width() as i64, weights == PlanWeights::Bf16)?;
        let x = b.input(config.in_channels as i64, height as i64, width as i64)?;
        let mut h = b.conv(&conv(x.into(), &model.conv_in))?;
        let mut skips = vec![h];
        for block in &model.down_blocks {
            h = down(&mut b, block, h, &mut skips)?;
        }
        if let Some(block) = &model.mid_block {
            h = mid(&mut b, block, h)?;
        }
        for block in &model.up_blocks {
            h = up(&mut b, block, h, &mut skips)?;
        }
        let h = b.norm(&Norm { silu: true, ..norm(h.into(), &model.conv_norm_out) })?;
        let out = b.conv(&conv(h.into(), &model.conv_out))?;
        Ok(Some(InferencePlan(b.finish(out)?)))
    }

    /// Whether the plan is for images of this shape, [batch, channels, height, width].
    pub fn fits(&self, shape: &[i64]) -> bool {
        matches!(shape, [batch, image @ ..] if *batch > 0 && *image == self.0.input())
    }

    /// Bytes that the plan holds.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// As [`DiffusionModel::forward`], for the model that the plan was made of; `x` is f32 and [`Self::fits`]. A
    /// timestep for each image, and a class label where the network has classes.
    pub fn forward(
        &mut self,
        model: &DiffusionModel,
        x: &Tensor,
        timesteps: &[f64],
        class_labels: Option<&[i64]>,
    ) -> Result<Tensor> {
        // Images in lock step share their timestep: what follows from it is computed once.
        let mut different: Vec<(f64, Option<i64>)> = Vec::new();
        let mut row = Vec::with_capacity(timesteps.len());
        for (i, &t) in timesteps.iter().enumerate() {
            let told = (t, class_labels.and_then(|labels| labels.get(i).copied()));
            let found = different.iter().position(|&other| other == told).unwrap_or_else(|| {
                different.push(told);
                different.len() - 1
            });
            row.push(found as i32);
        }
        let (times, labels): (Vec<f64>, Vec<Option<i64>>) = different.into_iter().unzip();
        let labels: Option<Vec<i64>> = labels.into_iter().collect();
        let labels = labels.as_deref().map(Tensor::f_from_slice).transpose()?;
        let embedding =
            model.embed(&Tensor::f_from_slice(&times)?.f_to_kind(Kind::Float)?, labels.as_ref())?;
        match model.config().center_input_sample {
            true => self.0.run(&x.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?, &embedding, &row),
            false => self.0.run(x, &embedding, &row),
        }
    }
}

fn covers(model: &DiffusionModel) -> bool {
    let config = model.config();
    let float = model.conv_in.weight.kind() == Kind::Float;
    // After Fourier features a network's output is divided by its timestep.
    let plain = config.act == Activation::Silu
        && config.class_embedding != ClassEmbedding::Identity
        && config.time_embedding == TimeEmbedding::Positional;
    let down = |block: &DownBlock| !matches!(block.downsampler, Some(Downsampler::Resnet(_)));
    let up = |block: &UpBlock| {
        !matches!(block.upsampler, Some(Upsampler::Resnet(_)))
            && block.resnets.iter().all(|r| r.conv_shortcut.is_some())
    };
    model.device() == Device::Cpu
        && float
        && plain
        && model.down_blocks.iter().all(down)
        && model.up_blocks.iter().all(up)
}

fn conv(x: Images, conv: &Conv2d) -> Conv<'_> {
    Conv {
        source: x.first,
        second: x.second,
        weight: &conv.weight,
        bias: &conv.bias,
        stride: conv.stride,
        padding: (conv.padding, conv.padding),
        doubled: false,
        projection: None,
        residual: None,
        scale: 1.0,
    }
}

fn norm(x: Images, norm: &GroupNorm) -> Norm<'_> {
    Norm {
        source: x.first,
        second: x.second,
        weight: &norm.weight,
        bias: &norm.bias,
        groups: norm.groups,
        eps: norm.eps,
        silu: false,
        projection: None,
    }
}

fn resnet(b: &mut Builder, block: &Resnet, x: Images) -> Result<Buffer> {
    debug_assert_eq!(block.scale, Scale::Keep, "other blocks are not covered");
    let time = &block.time_emb_proj;
    let (before, after) = match block.time_scale_shift {
        TimeScaleShift::Default => (Some(b.projection(&time.weight, &time.bias, 1)?), None),
        TimeScaleShift::ScaleShift => (None, Some(b.projection(&time.weight, &time.bias, 2)?)),
    };
    let h = b.norm(&Norm { silu: true, ..norm(x, &block.norm1) })?;
    let h = b.conv(&Conv { projection: before, ..conv(h.into(), &block.conv1) })?;
    let h = b.norm(&Norm { silu: true, projection: after, ..norm(h.into(), &block.norm2) })?;
    let shortcut = match &block.conv_shortcut {
        Some(layer) => b.conv(&conv(x, layer))?,
        None => x.first,
    };
    let scale = 1.0 / block.output_scale_factor;
    b.conv(&Conv { residual: Some(shortcut), scale, ..conv(h.into(), &block.conv2) })
}

fn attention(b: &mut Builder, layer: &Attention, x: Buffer) -> Result<Buffer> {
    let normed = match &layer.group_norm {
        Some(group_norm) => b.norm(&norm(x.into(), group_norm))?,
        None => x,
    };
    let three = [&layer.to_q, &layer.to_k, &layer.to_v];
    let weight = Tensor::f_cat(&three.map(|linear| &linear.weight), 0)?.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
    let bias = Tensor::f_cat(&three.map(|linear| &linear.bias), 0)?;
    let linear = |source, weight, bias| Conv {
        source,
        second: None,
        weight,
        bias,
        stride: 1,
        padding: (0, 0),
        doubled: false,
        projection: None,
        residual: None,
        scale: 1.0,
    };
    let qkv = b.conv(&linear(normed, &weight, &bias))?;
    let mixed = b.attention(qkv, layer.heads, layer.head_dim)?;
    let weight = layer.to_out.weight.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
    let scale = 1.0 / layer.output_scale_factor;
    b.conv(&Conv { residual: Some(x), scale, ..linear(mixed, &weight, &layer.to_out.bias) })
}

fn down(b: &mut Builder, block: &DownBlock, mut h: Buffer, skips: &mut Vec<Buffer>) -> Result<Buffer> {
    for (i, layer) in block.resnets.iter().enumerate() {
        h = resnet(b, layer, h.into())?;
        if let Some(layer) = block.attentions.get(i) {
            h = attention(b, layer, h)?;
        }
        skips.push(h);
    }
    if let Some(Downsampler::Conv { conv: layer, pad_end }) = &block.downsampler {
        let begin = layer.padding;
        let end = if *pad_end { begin + 1 } else { begin };
        h = b.conv(&Conv { padding: (begin, end), ..conv(h.into(), layer) })?;
        skips.push(h);
    }
    Ok(h)
}

fn mid(b: &mut Builder, block: &MidBlock, h: Buffer) -> Result<Buffer> {
    let mut h = resnet(b, &block.first, h.into())?;
    if let Some(layer) = &block.attention {
        h = attention(b, layer, h)?;
    }
    resnet(b, &block.second, h.into())
}

fn up(b: &mut Builder, block: &UpBlock, mut h: Buffer, skips: &mut Vec<Buffer>) -> Result<Buffer> {
    for (i, layer) in block.resnets.iter().enumerate() {
        h = resnet(b, layer, Images { first: h, second: skips.pop() })?;
        if let Some(layer) = block.attentions.get(i) {
            h = attention(b, layer, h)?;
        }
    }
    match &block.upsampler {
        Some(Upsampler::Conv(layer)) => b.conv(&Conv { doubled: true, ..conv(h.into(), layer) }),
        _ => Ok(h),
    }
}
