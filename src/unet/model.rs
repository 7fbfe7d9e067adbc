//! [`DiffusionModel`]: the way of a noisy image through the network.

use tch::{Device, Tensor};

use super::blocks::{DownBlock, MidBlock, UpBlock, UpWidths};
use super::config::{Activation, TimeEmbedding, UnetConfig};
use super::embedding::Embedding;
use super::layers::{Conv2d, GroupNorm};
use super::parameters::{ParameterSpec, Parameters};
use super::resnet::Conditioning;
use super::scope::{Recorder, Scope, Source};
use crate::error::{Error, Result};
use crate::torch::training;

/// Drops values of a tensor out with a probability and scales the rest up: `mask(x, p)` = x·m/(1−p).
///
/// The network does not draw random numbers itself, since libtorch's generators belong to the host. A
/// forward calls it once per residual block, in the same order each time.
pub type Dropout<'a> = dyn Fn(&Tensor, f64) -> Result<Tensor> + 'a;

/// The U-Net: noisy images and timesteps in, its prediction (noise, image or velocity) out.
///
/// A view of [`Parameters`]: it shares their storage, and follows every change made to them in place. It uses no
/// state of its own, so forwards may run one after another in any grad mode and under autocast.
#[derive(Debug)]
pub struct DiffusionModel {
    config: UnetConfig,
    pub(crate) conv_in: Conv2d,
    pub(crate) embedding: Embedding,
    pub(crate) down_blocks: Vec<DownBlock>,
    pub(crate) mid_block: Option<MidBlock>,
    pub(crate) up_blocks: Vec<UpBlock>,
    pub(crate) conv_norm_out: GroupNorm,
    pub(crate) conv_out: Conv2d,
}

impl DiffusionModel {
    /// The network of `config` on these parameters, on the device where they are.
    ///
    /// # Errors
    /// `InvalidArgument` where the config is not valid or the parameters are not those of the config.
    pub fn new(config: &UnetConfig, parameters: &Parameters) -> Result<Self> {
        config.validate()?;
        let model = Self::build(config, parameters, parameters.device())?;
        let expected = describe(config)?.len();
        if parameters.len() != expected {
            return Err(Error::argument("the number of parameter tensors", parameters.len(), expected));
        }
        Ok(model)
    }

    /// The config that the network was made from.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.conv_in.weight.device()
    }

    /// The order is that of diffusers' state_dict, where the middle comes after the way up.
    fn build(config: &UnetConfig, source: &dyn Source, device: Device) -> Result<Self> {
        let root = Scope::root(source);
        let widths = &config.block_out_channels;
        let (first, deepest) = (config.first_width(), config.deepest_width());
        let levels = widths.len();

        let conv_in = Conv2d::same(&root.at("conv_in"), config.in_channels, first, 3)?;
        let embedding = Embedding::build(&root, config, device)?;

        let inputs = std::iter::once(&first).chain(widths);
        let down_blocks = (config.down_blocks.iter().zip(inputs).zip(widths).enumerate())
            .map(|(i, ((&kind, &inputs), &outputs))| {
                DownBlock::build(&root.nth("down_blocks", i), config, kind, inputs, outputs, i + 1 == levels)
            })
            .collect::<Result<_>>()?;

        let upwards = || widths.iter().rev();
        let below = std::iter::once(&deepest).chain(upwards());
        let last_skips = upwards().skip(1).chain(std::iter::once(&first));
        let up_blocks = (config.up_blocks.iter().zip(below).zip(upwards()).zip(last_skips).enumerate())
            .map(|(i, (((&kind, &below), &own), &last_skip))| {
                let widths = UpWidths { below, own, last_skip };
                UpBlock::build(&root.nth("up_blocks", i), config, kind, &widths, i + 1 == levels)
            })
            .collect::<Result<_>>()?;

        let mid_block = match config.mid_block {
            true => Some(MidBlock::build(&root.at("mid_block"), config, deepest)?),
            false => None,
        };
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let conv_norm_out = GroupNorm::build(&root.at("conv_norm_out"), first, groups, eps)?;
        let conv_out = Conv2d::same(&root.at("conv_out"), first, config.out_channels, 3)?;
        let config = config.clone();
        Ok(DiffusionModel {
            config,
            conv_in,
            embedding,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out,
            conv_out,
        })
    }

    /// The prediction for noisy images `x` [batch, in_channels, height, width] at `timesteps` [batch] (any number
    /// type, fractions allowed): [batch, out_channels, height, width].
    ///
    /// Height and width may be any multiple of 2^(levels − 1), not only the config's. `class_labels` is needed
    /// where the config has a class embedding, and must be absent where not. `dropout` is for training;
    /// without it nothing is dropped. With a Fourier time embedding the timesteps must be above 0: the network
    /// takes their logarithm and divides by them.
    ///
    /// # Errors
    /// `InvalidArgument` where a shape does not fit, else libtorch's own (out of memory, another device).
    pub fn forward(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        class_labels: Option<&Tensor>,
        dropout: Option<&Dropout<'_>>,
    ) -> Result<Tensor> {
        self.check(x, timesteps, class_labels)?;
        let centred = match self.config.center_input_sample {
            true => Some(x.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?),
            false => None,
        };
        let embedding = self.embed(timesteps, class_labels)?;
        let given = Conditioning { embedding: &embedding, dropout };

        let x = centred.as_ref().unwrap_or(x);
        // What follows keeps the layout.
        let mut h = match training::applies(x) {
            true => self.conv_in.forward(&training::channels_last(x)?)?,
            false => self.conv_in.forward(x)?,
        };
        let mut skips = vec![h.shallow_clone()];
        for block in &self.down_blocks {
            h = block.forward(h, &given, &mut skips)?;
        }
        if let Some(block) = &self.mid_block {
            h = block.forward(h, &given)?;
        }
        for block in &self.up_blocks {
            h = block.forward(h, &given, &mut skips)?;
        }
        // SiLU here whatever the blocks use, as in diffusers.
        let h = self.conv_norm_out.forward_activated(&h, Activation::Silu)?;
        let out = self.conv_out.forward(&h)?;
        match self.config.time_embedding {
            TimeEmbedding::Positional => Ok(out),
            TimeEmbedding::Fourier => Ok(out.f_div(&timesteps.f_reshape([-1, 1, 1, 1])?)?),
        }
    }

    /// The activated embedding of timesteps [B] and labels, which all residual blocks read: [B, E].
    pub(super) fn embed(&self, timesteps: &Tensor, class_labels: Option<&Tensor>) -> Result<Tensor> {
        self.config.act.forward(&self.embedding.forward(timesteps, class_labels)?)
    }

    fn check(&self, x: &Tensor, timesteps: &Tensor, labels: Option<&Tensor>) -> Result<()> {
        let shape = x.size();
        let step = 1i64 << (self.config.block_out_channels.len() - 1);
        let fits = match shape.as_slice() {
            &[batch, channels, height, width] => {
                let sides = [height, width];
                batch > 0
                    && channels == self.config.in_channels as i64
                    && sides.iter().all(|&side| side > 0 && side % step == 0)
            }
            _ => false,
        };
        if !fits {
            let channels = self.config.in_channels;
            let allowed =
                format!("[batch, {channels}, height, width] with height and width multiples of {step}");
            return Err(Error::argument("the shape of the images", format!("{shape:?}"), allowed));
        }
        if timesteps.size().as_slice() != shape.get(..1).unwrap_or_default() {
            let allowed = format!("{:?}: one timestep per image", shape.get(..1).unwrap_or_default());
            return Err(Error::argument(
                "the shape of the timesteps",
                format!("{:?}", timesteps.size()),
                allowed,
            ));
        }
        let labelled = labels.map(Tensor::size);
        if let Some(size) = labelled.filter(|size| size.first() != shape.first()) {
            let allowed = format!("of shape {:?}..: one label per image", shape.get(..1).unwrap_or_default());
            return Err(Error::argument("class_labels", format!("of shape {size:?}"), allowed));
        }
        Ok(())
    }
}

/// Which parameters the network of a valid config has, in the order of diffusers' state_dict.
pub(super) fn describe(config: &UnetConfig) -> Result<Vec<ParameterSpec>> {
    let recorder = Recorder::default();
    DiffusionModel::build(config, &recorder, Device::Cpu)?;
    Ok(recorder.into_specs())
}
