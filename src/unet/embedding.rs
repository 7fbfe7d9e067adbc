//! What the network is told besides the image: the timestep, and a class label where it was trained with one.
//! Both become one vector per image, which every residual block reads.

use tch::{Device, Kind, Tensor};

use super::config::{Activation, ClassEmbedding, TimeEmbedding, UnetConfig};
use super::layers::Linear;
use super::parameters::Init;
use super::scope::Scope;
use crate::error::{Error, Result};

/// Width of the random Fourier features: the 16 of Song et al. 2020 (arXiv 2011.13456), appendix C.
const FOURIER_SCALE: f64 = 16.0;

/// Scalars -> features that a linear map can tell apart.
#[derive(Debug)]
enum Features {
    /// Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, as DDPM uses it. `frequencies`: [C/2], f32.
    Positional { frequencies: Tensor, cos_first: bool, odd: bool },
    /// sin and cos of 2π·W·ln t with fixed random W: [C], after Tancik et al. 2020 (arXiv 2006.10739).
    Fourier { weight: Tensor },
}

impl Features {
    fn build(scope: &Scope, config: &UnetConfig) -> Result<Self> {
        let width = config.first_width();
        Ok(match config.time_embedding {
            TimeEmbedding::Positional => Features::Positional {
                frequencies: frequencies(width / 2, config.freq_shift)?,
                cos_first: config.flip_sin_to_cos,
                odd: width % 2 == 1,
            },
            TimeEmbedding::Fourier => {
                Features::Fourier { weight: scope.constant("weight", &[width], Init::Normal(FOURIER_SCALE))? }
            }
        })
    }

    /// Values [B] -> features [B, C] (Fourier: [B, 2C]), f32.
    fn forward(&self, values: &Tensor) -> Result<Tensor> {
        let column = values.f_to_kind(Kind::Float)?.f_unsqueeze(1)?; // [B, 1]
        match self {
            Features::Positional { frequencies, cos_first, odd } => {
                let angle = column.f_mul(frequencies)?; // [B, C/2]
                let (sin, cos) = (angle.f_sin()?, angle.f_cos()?);
                let pair = if *cos_first { [cos, sin] } else { [sin, cos] };
                let features = Tensor::f_cat(&pair, 1)?;
                Ok(if *odd { features.f_constant_pad_nd([0, 1])? } else { features })
            }
            Features::Fourier { weight } => {
                // The order of the products is diffusers': these angles are large, and another order of f32
                // roundings is another sine.
                let angle =
                    column.f_log()?.f_mul(weight)?.f_mul_scalar(2.0)?.f_mul_scalar(std::f64::consts::PI)?;
                Ok(Tensor::f_cat(&[angle.f_sin()?, angle.f_cos()?], 1)?)
            }
        }
    }

    /// The same on another device. Only what is not a parameter has to be moved.
    fn on(self, device: Device) -> Result<Self> {
        Ok(match self {
            Features::Positional { frequencies, cos_first, odd } => {
                Features::Positional { frequencies: frequencies.f_to_device(device)?, cos_first, odd }
            }
            parameter => parameter,
        })
    }
}

/// exp(−ln(10000)·i / (half − shift)) for i in 0..half: [half].
///
/// In f32 by libtorch's own operators, always on the CPU. An angle is up to 1000 radians, so that a frequency
/// which is right to more digits than diffusers' would give sines that differ from diffusers' by 1e-4.
fn frequencies(half: usize, shift: f64) -> Result<Tensor> {
    let index = Tensor::f_arange(half as i64, (Kind::Float, Device::Cpu))?;
    let exponent = index.f_mul_scalar(-(10_000f64.ln()))?.f_div_scalar(half as f64 - shift)?;
    Ok(exponent.f_exp()?)
}

/// Linear, SiLU, linear. Always SiLU, whatever the rest of the network uses.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) linear_1: Linear,
    pub(crate) linear_2: Linear,
}

impl Mlp {
    fn build(scope: &Scope, inputs: usize, width: usize) -> Result<Self> {
        Ok(Mlp {
            linear_1: Linear::build(&scope.at("linear_1"), inputs, width)?,
            linear_2: Linear::build(&scope.at("linear_2"), width, width)?,
        })
    }

    /// [B, in] -> [B, width]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // The features are f32; weights loaded as bf16 want bf16.
        let x = x.f_to_kind(self.linear_1.weight.f_kind()?)?;
        self.linear_2.forward(&Activation::Silu.forward(&self.linear_1.forward(&x)?)?)
    }
}

#[derive(Debug)]
enum ClassLayer {
    None,
    /// A label is embedded as if it were a timestep, by weights of its own.
    Timestep(Mlp),
    /// The caller hands in the embedding itself.
    Identity,
    /// One learned vector per class: [classes, width].
    Table(Tensor),
}

/// Timesteps and labels -> the embedding that all residual blocks read.
#[derive(Debug)]
pub(crate) struct Embedding {
    features: Features,
    time: Mlp,
    class: ClassLayer,
    width: i64,
}

impl Embedding {
    pub(super) fn build(scope: &Scope, config: &UnetConfig, device: Device) -> Result<Self> {
        let width = config.embedding_width();
        let features = Features::build(&scope.at("time_proj"), config)?.on(device)?;
        let feature_width = match config.time_embedding {
            TimeEmbedding::Positional => config.first_width(),
            TimeEmbedding::Fourier => 2 * config.first_width(),
        };
        let time = Mlp::build(&scope.at("time_embedding"), feature_width, width)?;
        let place = scope.at("class_embedding");
        let class = match config.class_embedding {
            ClassEmbedding::None => ClassLayer::None,
            ClassEmbedding::Identity => ClassLayer::Identity,
            ClassEmbedding::Timestep => ClassLayer::Timestep(Mlp::build(&place, feature_width, width)?),
            ClassEmbedding::Table(classes) => {
                ClassLayer::Table(place.parameter("weight", &[classes, width], Init::Normal(1.0))?)
            }
        };
        Ok(Embedding { features, time, class, width: width as i64 })
    }

    /// Timesteps [B] and labels -> [B, width].
    ///
    /// Labels: int64 [B] for a table, any number [B] for `Timestep`, [B, width] for `Identity`. A label that is
    /// outside the table is libtorch's error on the CPU, and must not be let through to a CUDA device.
    pub(crate) fn forward(&self, timesteps: &Tensor, labels: Option<&Tensor>) -> Result<Tensor> {
        let time = self.time.forward(&self.features.forward(timesteps)?)?;
        let class = match (&self.class, labels) {
            (ClassLayer::None, None) => return Ok(time),
            (ClassLayer::None, Some(_)) => {
                return Err(Error::argument("class_labels", "given", "absent: this network has no classes"))
            }
            (_, None) => {
                return Err(Error::argument(
                    "class_labels",
                    "absent",
                    "given: this network was made with classes",
                ))
            }
            (ClassLayer::Timestep(mlp), Some(labels)) => {
                let labels = expect(labels, &[timesteps.size().first().copied().unwrap_or(0)])?;
                mlp.forward(&self.features.forward(labels)?)?
            }
            (ClassLayer::Identity, Some(labels)) => {
                let labels = expect(labels, &[timesteps.size().first().copied().unwrap_or(0), self.width])?;
                labels.f_to_kind(time.f_kind()?)?
            }
            (ClassLayer::Table(table), Some(labels)) => {
                let labels = expect(labels, &[timesteps.size().first().copied().unwrap_or(0)])?;
                Tensor::f_embedding(table, &labels.f_to_kind(Kind::Int64)?, -1, false, false)?
            }
        };
        Ok(time.f_add(&class)?)
    }
}

/// `labels` itself, where it has the shape that the network needs.
fn expect<'a>(labels: &'a Tensor, shape: &[i64]) -> Result<&'a Tensor> {
    if labels.size() == shape {
        return Ok(labels);
    }
    Err(Error::argument(
        "class_labels",
        format!("of shape {:?}", labels.size()),
        format!("of shape {shape:?}"),
    ))
}
