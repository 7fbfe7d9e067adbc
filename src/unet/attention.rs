//! Self-attention over the H·W pixels of a feature map, with group norm before it and a residual around it
//! (Vaswani et al. 2017, arXiv 1706.03762; in a U-Net: Ho et al. 2020, arXiv 2006.11239).

use tch::{Device, Kind, Tensor};

use super::layers::{GroupNorm, Linear};
use super::resnet::rescale;
use super::scope::Scope;
use crate::error::Result;

/// Up to this many attention weights, 16-bit attention on the CPU is done by plain matrix products.
const PLAIN_LIMIT: i64 = 8 << 20;

/// One attention layer: [B, C, H, W] -> the same shape.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) group_norm: Option<GroupNorm>,
    pub(crate) to_q: Linear,
    pub(crate) to_k: Linear,
    pub(crate) to_v: Linear,
    pub(crate) to_out: Linear,
    pub(crate) heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) output_scale_factor: f64,
}

/// The numbers that make an attention layer.
pub(super) struct AttentionShape {
    pub(super) channels: usize,
    /// `None`: one head over all channels.
    pub(super) head_dim: Option<usize>,
    /// `None`: no norm.
    pub(super) groups: Option<usize>,
    pub(super) eps: f64,
    pub(super) output_scale_factor: f64,
}

impl Attention {
    pub(super) fn build(scope: &Scope, shape: &AttentionShape) -> Result<Self> {
        let channels = shape.channels;
        let head_dim = shape.head_dim.unwrap_or(channels).max(1);
        // Where head_dim does not divide the channels, the heads cover less than all of them, as in diffusers.
        let heads = channels / head_dim;
        let inner = heads * head_dim;
        Ok(Attention {
            group_norm: match shape.groups {
                Some(groups) => Some(GroupNorm::build(&scope.at("group_norm"), channels, groups, shape.eps)?),
                None => None,
            },
            to_q: Linear::build(&scope.at("to_q"), channels, inner)?,
            to_k: Linear::build(&scope.at("to_k"), channels, inner)?,
            to_v: Linear::build(&scope.at("to_v"), channels, inner)?,
            to_out: Linear::build(&scope.at("to_out.0"), inner, channels)?,
            heads: heads as i64,
            head_dim: head_dim as i64,
            output_scale_factor: shape.output_scale_factor,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.size4()?;
        let tokens = height * width;
        let normed = match &self.group_norm {
            Some(norm) => norm.forward(x)?,
            None => x.shallow_clone(),
        };
        // [B, C, H, W] -> [B, H·W, C], which costs nothing in channels-last.
        let h = normed.f_permute([0, 2, 3, 1])?.f_reshape([batch, tokens, channels])?;
        let split = |t: Tensor| -> Result<Tensor> {
            Ok(t.f_reshape([batch, tokens, self.heads, self.head_dim])?.f_transpose(1, 2)?)
        };
        let q = split(self.to_q.forward(&h)?)?; // [B, heads, H·W, head_dim]
        let k = split(self.to_k.forward(&h)?)?;
        let v = split(self.to_v.forward(&h)?)?;
        let mixed = self.attend(&q, &k, &v)?; // [B, heads, H·W, head_dim]
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([batch, tokens, self.heads * self.head_dim])?;
        let out = self.to_out.forward(&mixed)?; // [B, H·W, C]
        let out = out.f_reshape([batch, height, width, channels])?.f_permute([0, 3, 1, 2])?;
        rescale(x.f_add(&out)?, self.output_scale_factor)
    }

    /// softmax(q·kᵀ/√head_dim)·v
    ///
    /// libtorch's own operator, but for bf16 and f16 on the CPU, where two matrix products and a softmax are twice
    /// as fast as its flash attention. In f32 they are not, for any shape tried: 16 to 4096 tokens, 1 to 32 heads.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (batch, heads, tokens, head_dim) = q.size4()?;
        let weights = batch.saturating_mul(heads).saturating_mul(tokens.saturating_mul(tokens));
        if q.device() != Device::Cpu || q.f_kind()? == Kind::Float || weights > PLAIN_LIMIT {
            return Ok(Tensor::f_scaled_dot_product_attention(
                q,
                k,
                v,
                None::<Tensor>,
                0.0,
                false,
                None,
                false,
            )?);
        }
        let flat = |t: &Tensor| t.f_reshape([batch * heads, tokens, head_dim]);
        let scores =
            flat(q)?.f_mul_scalar((head_dim as f64).powf(-0.5))?.f_bmm(&flat(k)?.f_transpose(1, 2)?)?;
        let mixed = scores.f_softmax(-1, None)?.f_bmm(&flat(v)?)?;
        Ok(mixed.f_reshape([batch, heads, tokens, head_dim])?)
    }
}
