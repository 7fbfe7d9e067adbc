//! What the network is: the fields of diffusers' `UNet2DModel` config, what each may be, and the architecture
//! that the library chooses where a user gives widths only.
//!
//! Error messages use the names of the library's own users: `image_size` for `sample_size`, `channels` for
//! `in_channels`, `hidden_dims` for `block_out_channels`.

use super::model::describe;
use super::parameters::ParameterSpec;
use crate::error::{Error, Result};

/// What a level of the U-Net is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Residual blocks: `DownBlock2D`, `UpBlock2D`.
    Plain,
    /// Residual blocks with self-attention after each: `AttnDownBlock2D`, `AttnUpBlock2D`.
    Attention,
    /// Residual blocks, and one more of them that halves or doubles: `ResnetDownsampleBlock2D`,
    /// `ResnetUpsampleBlock2D`.
    Resnet,
}

/// How the levels of kind [`BlockKind::Attention`] halve and double the image. The other kinds ignore it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// A strided convolution down; nearest-neighbour, then a convolution, up.
    Conv,
    /// A residual block with pooling or nearest-neighbour inside.
    Resnet,
}

/// The nonlinearity of the residual blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x·sigmoid(x), also called swish (arXiv 1702.03118).
    Silu,
    /// x·tanh(softplus(x)) (arXiv 1908.08681).
    Mish,
    /// x·Φ(x) with the exact Φ (arXiv 1606.08415).
    Gelu,
    /// max(x, 0).
    Relu,
}

/// How a timestep becomes features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeEmbedding {
    /// Sines and cosines of fixed frequencies, as in DDPM.
    Positional,
    /// Sines and cosines of random multiples of ln t, for networks whose timestep is a noise level > 0 (NCSN++,
    /// arXiv 2011.13456). The prediction is divided by the timestep.
    Fourier,
}

/// How a residual block takes the timestep in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeScaleShift {
    /// It is added before the second norm.
    Default,
    /// It scales and shifts what comes out of the second norm (adaptive group norm, arXiv 2105.05233).
    ScaleShift,
}

/// How a class label is embedded, if the network has classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassEmbedding {
    /// No classes.
    None,
    /// The label goes through sines, cosines and a small network, as a timestep does.
    Timestep,
    /// The caller hands in vectors that are added as they are.
    Identity,
    /// One learned vector for each of so many classes.
    Table(usize),
}

/// The architecture of a [`DiffusionModel`](super::DiffusionModel): diffusers' `UNet2DModel` config.
///
/// Fields have diffusers' names where nothing is said. Make one with [`UnetConfig::from_hidden_dims`], or read it
/// from a checkpoint; [`UnetConfig::validate`] says whether it can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct UnetConfig {
    /// Height and width of the images (`image_size`).
    pub sample_size: usize,
    /// Channels of the images that go in (`channels`).
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Width of each level, from the full image downwards (`hidden_dims`).
    pub block_out_channels: Vec<usize>,
    /// Kind of each level on the way down (`down_block_types`).
    pub down_blocks: Vec<BlockKind>,
    /// Kind of each level on the way up, deepest first (`up_block_types`).
    pub up_blocks: Vec<BlockKind>,
    /// Residual blocks of a level on the way down; the way up has one more.
    pub layers_per_block: usize,
    /// Zeros around the image before a strided convolution: 1 on all sides, or 0, which means one row and column at
    /// the right and the bottom only.
    pub downsample_padding: usize,
    /// How attention levels halve.
    pub downsample_type: Resample,
    /// How attention levels double.
    pub upsample_type: Resample,
    /// Whether there is a middle at all (`mid_block_type` is not null).
    pub mid_block: bool,
    /// What the middle's residual sums are divided by.
    pub mid_block_scale_factor: f64,
    /// Whether the middle has attention.
    pub add_attention: bool,
    /// Channels of one attention head; `None` is one head over all channels.
    pub attention_head_dim: Option<usize>,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Groups of the middle attention's norm, where they are not the usual ones.
    pub attn_norm_num_groups: Option<usize>,
    /// What every group norm adds to the variance.
    pub norm_eps: f64,
    /// Nonlinearity of the residual blocks (`act_fn`).
    pub act: Activation,
    /// How the residual blocks take the timestep in.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// How a timestep becomes features (`time_embedding_type`).
    pub time_embedding: TimeEmbedding,
    /// Width of the embedding; `None` is 4 × the first level's width.
    pub time_embedding_dim: Option<usize>,
    /// Whether the cosines come before the sines.
    pub flip_sin_to_cos: bool,
    /// The frequencies are 10000^(−i/(half − freq_shift)).
    pub freq_shift: f64,
    /// How class labels are embedded (`class_embed_type`, `num_class_embeds`).
    pub class_embedding: ClassEmbedding,
    /// Probability with which a residual block drops a value in training.
    pub dropout: f64,
    /// Whether the network maps its input from [0, 1] to [−1, 1] itself.
    pub center_input_sample: bool,
}

/// The most levels: 2^15 pixels a side would then be the smallest image.
const MAX_LEVELS: usize = 16;
/// The most channels of anything. With it no product of sizes below overflows 64 bits.
const MAX_WIDTH: usize = 65_536;
/// The most residual blocks per level, so that a hostile config does not describe for ever.
const MAX_LAYERS: usize = 64;
/// The most classes of a table.
const MAX_CLASSES: usize = 1 << 24;
/// Widths that the library itself makes are multiples of this: vector registers, and channels per norm group.
const WIDTH_STEP: usize = 8;

impl UnetConfig {
    /// The library's own architecture for square images: google/ddpm-cifar10-32's in everything but what follows
    /// from the arguments. For 32, 3 and [128, 256, 256, 256] it is that network exactly.
    ///
    /// Self-attention sits where DDPM (arXiv 2006.11239, appendix B) has it, at 16×16 pixels, or at the first
    /// level below that; and in the middle, unless more than 32×32 pixels are left there. The norms have as
    /// many groups as divide every width, at most 32, of at least four channels each: with one channel a group,
    /// as `UNet2DModel`'s fixed 32 groups give at a width of 32, the norm would take the timestep out again.
    ///
    /// # Errors
    /// `InvalidArgument` where [`UnetConfig::validate`] says so, or a width is not a multiple of 8.
    pub fn from_hidden_dims(image_size: usize, channels: usize, hidden_dims: &[usize]) -> Result<Self> {
        check_widths(hidden_dims)?;
        for (i, &width) in hidden_dims.iter().enumerate() {
            if width % WIDTH_STEP != 0 {
                let allowed = format!("a multiple of {WIDTH_STEP}, so that the norms can form groups");
                return Err(Error::argument(&format!("hidden_dims[{i}]"), width, allowed));
            }
        }
        let sides: Vec<usize> = (0..hidden_dims.len()).map(|level| image_size >> level).collect();
        let attentive = sides.iter().position(|&side| side <= 16);
        let kind = |level| if Some(level) == attentive { BlockKind::Attention } else { BlockKind::Plain };
        let down_blocks: Vec<BlockKind> = (0..hidden_dims.len()).map(kind).collect();
        let config = UnetConfig {
            sample_size: image_size,
            in_channels: channels,
            out_channels: channels,
            block_out_channels: hidden_dims.to_vec(),
            up_blocks: down_blocks.iter().rev().copied().collect(),
            down_blocks,
            layers_per_block: 2,
            downsample_padding: 0,
            downsample_type: Resample::Conv,
            upsample_type: Resample::Conv,
            mid_block: true,
            mid_block_scale_factor: 1.0,
            add_attention: sides.last().is_some_and(|&side| side <= 32),
            attention_head_dim: None,
            norm_num_groups: common_groups(hidden_dims),
            attn_norm_num_groups: None,
            norm_eps: 1e-6,
            act: Activation::Silu,
            resnet_time_scale_shift: TimeScaleShift::Default,
            time_embedding: TimeEmbedding::Positional,
            time_embedding_dim: None,
            flip_sin_to_cos: false,
            freq_shift: 1.0,
            class_embedding: ClassEmbedding::None,
            dropout: 0.0,
            center_input_sample: false,
        };
        config.validate()?;
        Ok(config)
    }

    /// Whether the network can be built; if not, which field is wrong, its value, and what it may be.
    pub fn validate(&self) -> Result<()> {
        check_widths(&self.block_out_channels)?;
        self.check_image()?;
        self.check_levels()?;
        self.check_norms()?;
        self.check_attention()?;
        self.check_embeddings()?;
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::argument("dropout", self.dropout, "in [0, 1)"));
        }
        if !self.mid_block_scale_factor.is_finite() || self.mid_block_scale_factor == 0.0 {
            let allowed = "finite and not 0";
            return Err(Error::argument("mid_block_scale_factor", self.mid_block_scale_factor, allowed));
        }
        Ok(())
    }

    fn check_image(&self) -> Result<()> {
        between("channels", self.in_channels, 1, MAX_WIDTH)?;
        between("out_channels", self.out_channels, 1, MAX_WIDTH)?;
        between("image_size", self.sample_size, 1, MAX_WIDTH)?;
        let levels = self.block_out_channels.len();
        let step = 1usize << (levels - 1);
        if self.sample_size % step != 0 {
            let allowed = format!("a multiple of {step} (2^(levels - 1), with {levels} hidden_dims)");
            return Err(Error::argument("image_size", self.sample_size, allowed));
        }
        Ok(())
    }

    fn check_levels(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        for (name, blocks) in [("down_block_types", &self.down_blocks), ("up_block_types", &self.up_blocks)] {
            if blocks.len() != levels {
                let allowed = format!("{levels}, one for each of hidden_dims");
                return Err(Error::argument(&format!("the number of {name}"), blocks.len(), allowed));
            }
        }
        between("layers_per_block", self.layers_per_block, 1, MAX_LAYERS)?;
        between("downsample_padding", self.downsample_padding, 0, 1)
    }

    fn check_norms(&self) -> Result<()> {
        between("norm_num_groups", self.norm_num_groups, 1, MAX_WIDTH)?;
        for (i, &width) in self.block_out_channels.iter().enumerate() {
            if width % self.norm_num_groups != 0 {
                let allowed = format!("a multiple of norm_num_groups ({})", self.norm_num_groups);
                return Err(Error::argument(&format!("hidden_dims[{i}]"), width, allowed));
            }
        }
        if let Some(groups) = self.attn_norm_num_groups {
            let width = self.deepest_width();
            if groups == 0 || width % groups != 0 {
                let allowed = format!("a divisor of the last of hidden_dims ({width})");
                return Err(Error::argument("attn_norm_num_groups", groups, allowed));
            }
        }
        if !self.norm_eps.is_finite() || self.norm_eps < 0.0 {
            return Err(Error::argument("norm_eps", self.norm_eps, "finite and at least 0"));
        }
        Ok(())
    }

    fn check_attention(&self) -> Result<()> {
        let Some(head_dim) = self.attention_head_dim else { return Ok(()) };
        let attentive = |kind: &BlockKind| *kind == BlockKind::Attention;
        let widths = self.block_out_channels.iter();
        let downs = self.down_blocks.iter().zip(widths.clone());
        let ups = self.up_blocks.iter().zip(widths.rev());
        let middle = (self.mid_block && self.add_attention).then(|| self.deepest_width());
        let narrowest =
            downs.chain(ups).filter(|(kind, _)| attentive(kind)).map(|(_, &width)| width).chain(middle);
        match narrowest.min() {
            Some(width) => between("attention_head_dim", head_dim, 1, width),
            None => Ok(()),
        }
    }

    fn check_embeddings(&self) -> Result<()> {
        if let Some(width) = self.time_embedding_dim {
            between("time_embedding_dim", width, 1, 4 * MAX_WIDTH)?;
        }
        let half = self.first_width() / 2;
        if self.time_embedding == TimeEmbedding::Positional {
            if half == 0 {
                return Err(Error::argument("hidden_dims[0]", self.first_width(), "at least 2"));
            }
            if !(self.freq_shift.is_finite() && self.freq_shift < half as f64) {
                let allowed = format!("below half of hidden_dims[0] ({half})");
                return Err(Error::argument("freq_shift", self.freq_shift, allowed));
            }
        }
        match self.class_embedding {
            ClassEmbedding::Table(classes) => between("num_class_embeds", classes, 1, MAX_CLASSES),
            _ => Ok(()),
        }
    }

    /// Which parameters the network has, in the order of diffusers' state_dict.
    pub fn parameter_specs(&self) -> Result<Vec<ParameterSpec>> {
        self.validate()?;
        describe(self)
    }

    /// How many numbers the network's parameters are, all together.
    pub fn num_parameters(&self) -> Result<u64> {
        Ok(self.parameter_specs()?.iter().map(ParameterSpec::numel).sum())
    }

    /// The width of the first level. Of a valid config.
    pub(super) fn first_width(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or(0)
    }

    /// The width of the deepest level. Of a valid config.
    pub(super) fn deepest_width(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or(0)
    }

    /// The width of the embedding that residual blocks read.
    pub(super) fn embedding_width(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.first_width())
    }
}

fn check_widths(hidden_dims: &[usize]) -> Result<()> {
    between("the number of hidden_dims", hidden_dims.len(), 1, MAX_LEVELS)?;
    for (i, &width) in hidden_dims.iter().enumerate() {
        between(&format!("hidden_dims[{i}]"), width, 1, MAX_WIDTH)?;
    }
    Ok(())
}

fn between(name: &str, value: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::argument(name, value, format!("in {least}..={most}")))
}

/// The largest number of groups, at most 32, that divides every width into groups of at least four channels; of
/// fewer where a width is too small for that.
fn common_groups(hidden_dims: &[usize]) -> usize {
    let narrowest = hidden_dims.iter().copied().min().unwrap_or(1);
    let most = (narrowest / 4).clamp(1, 32);
    (1..=most).rev().find(|groups| hidden_dims.iter().all(|width| width % groups == 0)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<UnetConfig>) -> String {
        result.map(|config| format!("{config:?}")).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn the_cifar10_network_has_the_published_number_of_parameters() -> Result<()> {
        let config = UnetConfig::from_hidden_dims(32, 3, &[128, 256, 256, 256])?;
        assert_eq!(config.num_parameters()?, 35_746_307);
        assert_eq!(config.parameter_specs()?.len(), 328);
        assert_eq!(config.norm_num_groups, 32);
        use BlockKind::{Attention, Plain};
        assert_eq!(config.down_blocks, [Plain, Attention, Plain, Plain]);
        assert_eq!(config.up_blocks, [Plain, Plain, Attention, Plain]);
        Ok(())
    }

    #[test]
    fn norm_groups_divide_all_widths() {
        assert_eq!(common_groups(&[32, 64, 128]), 8);
        assert_eq!(common_groups(&[128, 256]), 32);
        assert_eq!(common_groups(&[24, 40]), 4);
        assert_eq!(common_groups(&[8]), 2);
        assert_eq!(common_groups(&[40, 80]), 10);
    }

    #[test]
    fn bad_arguments_are_named_with_their_value_and_range() {
        let of = |size, channels, dims: &[usize]| message(UnetConfig::from_hidden_dims(size, channels, dims));
        assert_eq!(of(32, 3, &[]), "the number of hidden_dims is 0: must be in 1..=16");
        assert_eq!(of(32, 3, &[0]), "hidden_dims[0] is 0: must be in 1..=65536");
        assert!(of(32, 3, &[32, 30]).starts_with("hidden_dims[1] is 30: must be a multiple of 8"));
        let text = "image_size is 30: must be a multiple of 4 (2^(levels - 1), with 3 hidden_dims)";
        assert_eq!(of(30, 3, &[32, 32, 32]), text);
        assert_eq!(of(0, 3, &[32]), "image_size is 0: must be in 1..=65536");
        assert_eq!(of(8, 0, &[32]), "channels is 0: must be in 1..=65536");
    }

    #[test]
    fn every_field_is_checked() -> Result<()> {
        let good = UnetConfig::from_hidden_dims(32, 3, &[32, 64])?;
        type Spoil = fn(&mut UnetConfig);
        let spoilt: [(&str, Spoil); 14] = [
            ("hidden_dims[1] is 30: must be a multiple of norm_num_groups (32)", |c| {
                c.norm_num_groups = 32;
                c.block_out_channels = vec![32, 30];
            }),
            ("norm_num_groups is 0", |c| c.norm_num_groups = 0),
            ("attn_norm_num_groups is 3", |c| c.attn_norm_num_groups = Some(3)),
            ("norm_eps is NaN", |c| c.norm_eps = f64::NAN),
            ("the number of down_block_types is 1", |c| c.down_blocks.truncate(1)),
            ("the number of up_block_types is 1", |c| c.up_blocks.truncate(1)),
            ("layers_per_block is 0", |c| c.layers_per_block = 0),
            ("downsample_padding is 2", |c| c.downsample_padding = 2),
            ("attention_head_dim is 128", |c| c.attention_head_dim = Some(128)),
            ("freq_shift is 16", |c| c.freq_shift = 16.0),
            ("num_class_embeds is 0", |c| c.class_embedding = ClassEmbedding::Table(0)),
            ("time_embedding_dim is 0", |c| c.time_embedding_dim = Some(0)),
            ("dropout is 1", |c| c.dropout = 1.0),
            ("mid_block_scale_factor is 0", |c| c.mid_block_scale_factor = 0.0),
        ];
        for (text, spoil) in spoilt {
            let mut config = good.clone();
            spoil(&mut config);
            let error = config.validate().map_err(|error| error.to_string());
            assert!(error.as_ref().is_err_and(|e| e.starts_with(text)), "{text}: {error:?}");
        }
        Ok(())
    }
}
