//! `unet/config.json`: [`UnetConfig`] as diffusers writes it, both ways.
//!
//! Where a field is missing, `UNet2DModel`'s own default stands, which is not the library's.

use std::path::Path;

use serde_json::{json, Value};

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::unet::{
    Activation, BlockKind, ClassEmbedding, Resample, TimeEmbedding, TimeScaleShift, UnetConfig,
};

/// The version of diffusers whose config format is written.
pub(super) const DIFFUSERS_VERSION: &str = "0.42.1";

use BlockKind::{Attention, Plain, Resnet};

/// The names with UNetRes are those of 2022's checkpoints, which diffusers still reads.
const DOWN_BLOCKS: [(&str, BlockKind); 6] = [
    ("DownBlock2D", Plain),
    ("AttnDownBlock2D", Attention),
    ("ResnetDownsampleBlock2D", Resnet),
    ("UNetResDownBlock2D", Plain),
    ("UNetResAttnDownBlock2D", Attention),
    ("UNetResResnetDownsampleBlock2D", Resnet),
];
const UP_BLOCKS: [(&str, BlockKind); 6] = [
    ("UpBlock2D", Plain),
    ("AttnUpBlock2D", Attention),
    ("ResnetUpsampleBlock2D", Resnet),
    ("UNetResUpBlock2D", Plain),
    ("UNetResAttnUpBlock2D", Attention),
    ("UNetResResnetUpsampleBlock2D", Resnet),
];
const RESAMPLES: [(&str, Resample); 2] = [("conv", Resample::Conv), ("resnet", Resample::Resnet)];
const ACTIVATIONS: [(&str, Activation); 5] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("mish", Activation::Mish),
    ("gelu", Activation::Gelu),
    ("relu", Activation::Relu),
];
const TIME_EMBEDDINGS: [(&str, TimeEmbedding); 2] =
    [("positional", TimeEmbedding::Positional), ("fourier", TimeEmbedding::Fourier)];
const TIME_SCALE_SHIFTS: [(&str, TimeScaleShift); 2] =
    [("default", TimeScaleShift::Default), ("scale_shift", TimeScaleShift::ScaleShift)];

/// The first name that a table has for a value.
pub(super) fn name_of<T: PartialEq>(table: &[(&'static str, T)], wanted: T) -> &'static str {
    table.iter().find(|(_, value)| *value == wanted).map_or("", |(name, _)| name)
}

/// The config in the JSON of `file`.
///
/// # Errors
/// `Format` that names the file, the field, its value and what is supported.
pub fn unet_from_json(value: &Value, file: &Path) -> Result<UnetConfig> {
    let fields = Fields::new(value, file)?;
    fields.choice("_class_name", (), &[("UNet2DModel", ())])?;
    let defaults = ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"].len();
    let kinds = |kinds: Option<Vec<BlockKind>>, plain: usize| {
        let default = (0..defaults).map(|i| if i == plain { Plain } else { Attention }).collect();
        kinds.unwrap_or(default)
    };
    let config = UnetConfig {
        sample_size: sample_size(&fields)?,
        in_channels: fields.size("in_channels", 3)?,
        out_channels: fields.size("out_channels", 3)?,
        block_out_channels: fields.sizes("block_out_channels")?.unwrap_or(vec![224, 448, 672, 896]),
        down_blocks: kinds(fields.choices("down_block_types", &DOWN_BLOCKS)?, 0),
        up_blocks: kinds(fields.choices("up_block_types", &UP_BLOCKS)?, defaults - 1),
        layers_per_block: fields.size("layers_per_block", 2)?,
        downsample_padding: fields.size("downsample_padding", 1)?,
        downsample_type: fields.choice("downsample_type", Resample::Conv, &RESAMPLES)?,
        upsample_type: fields.choice("upsample_type", Resample::Conv, &RESAMPLES)?,
        mid_block: mid_block(&fields)?,
        mid_block_scale_factor: fields.number("mid_block_scale_factor", 1.0)?,
        add_attention: fields.flag("add_attention", true)?,
        attention_head_dim: match fields.has("attention_head_dim") {
            true => fields.optional_size("attention_head_dim")?,
            false => Some(8),
        },
        norm_num_groups: norm_num_groups(&fields)?,
        attn_norm_num_groups: fields.optional_size("attn_norm_num_groups")?,
        norm_eps: fields.number("norm_eps", 1e-5)?,
        act: activation(&fields)?,
        resnet_time_scale_shift: fields.choice(
            "resnet_time_scale_shift",
            TimeScaleShift::Default,
            &TIME_SCALE_SHIFTS,
        )?,
        time_embedding: fields.choice("time_embedding_type", TimeEmbedding::Positional, &TIME_EMBEDDINGS)?,
        // Diffusers says `time_embedding_dim or 4 * width`: 0 is as good as null.
        time_embedding_dim: fields.optional_size("time_embedding_dim")?.filter(|&width| width > 0),
        flip_sin_to_cos: fields.flag("flip_sin_to_cos", true)?,
        freq_shift: fields.number("freq_shift", 0.0)?,
        class_embedding: class_embedding(&fields)?,
        dropout: fields.number("dropout", 0.0)?,
        center_input_sample: fields.flag("center_input_sample", false)?,
    };
    // Only a learned time embedding reads it, and that has been refused above.
    fields.ignore(&["num_train_timesteps"]);
    fields.finish()?;
    config.validate().map_err(|error| Error::format(file, error))?;
    Ok(config)
}

fn sample_size(fields: &Fields) -> Result<usize> {
    let allowed = "the height and width of square images";
    let Some(value) = fields.value("sample_size") else {
        return Err(fields.wrong("sample_size", &Value::Null, allowed));
    };
    match value {
        Value::Array(_) => match fields.sizes("sample_size")?.as_deref() {
            Some(&[height, width]) if height == width => Ok(height),
            _ => Err(fields.wrong("sample_size", value, allowed)),
        },
        _ => fields.size("sample_size", 0),
    }
}

fn mid_block(fields: &Fields) -> Result<bool> {
    match (fields.value("mid_block_type"), fields.has("mid_block_type")) {
        (Some(value), _) if value.as_str() == Some("UNetMidBlock2D") => Ok(true),
        (Some(value), _) => Err(fields.wrong("mid_block_type", value, "\"UNetMidBlock2D\" or null")),
        // Null is no middle; a missing field is the default one.
        (None, there) => Ok(!there),
    }
}

fn norm_num_groups(fields: &Fields) -> Result<usize> {
    if fields.has("norm_num_groups") && fields.value("norm_num_groups").is_none() {
        return Err(fields.wrong("norm_num_groups", &Value::Null, "a number to be supported here"));
    }
    fields.size("norm_num_groups", 32)
}

/// Diffusers does not mind the case of this one.
fn activation(fields: &Fields) -> Result<Activation> {
    let Some(value) = fields.value("act_fn") else { return Ok(Activation::Silu) };
    let lower = value.as_str().map(str::to_ascii_lowercase);
    let found = ACTIVATIONS.iter().find(|(name, _)| Some(*name) == lower.as_deref());
    found.map_or_else(|| fields.choice("act_fn", Activation::Silu, &ACTIVATIONS), |(_, act)| Ok(*act))
}

fn class_embedding(fields: &Fields) -> Result<ClassEmbedding> {
    let classes = fields.optional_size("num_class_embeds")?;
    let choices = [("timestep", ClassEmbedding::Timestep), ("identity", ClassEmbedding::Identity)];
    // Diffusers looks at the number of classes only where no type is given.
    let default = classes.map_or(ClassEmbedding::None, ClassEmbedding::Table);
    fields.choice("class_embed_type", default, &choices)
}

/// What diffusers' `UNet2DModel.from_pretrained` reads back as the same network.
pub fn unet_to_json(config: &UnetConfig) -> Value {
    let names = |table: &[(&'static str, BlockKind)], kinds: &[BlockKind]| -> Vec<&'static str> {
        kinds.iter().map(|&kind| name_of(table, kind)).collect()
    };
    let (class_embed_type, num_class_embeds) = match config.class_embedding {
        ClassEmbedding::None => (None, None),
        ClassEmbedding::Timestep => (Some("timestep"), None),
        ClassEmbedding::Identity => (Some("identity"), None),
        ClassEmbedding::Table(classes) => (None, Some(classes)),
    };
    json!({
        "_class_name": "UNet2DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": name_of(&ACTIVATIONS, config.act),
        "add_attention": config.add_attention,
        "attention_head_dim": config.attention_head_dim,
        "attn_norm_num_groups": config.attn_norm_num_groups,
        "block_out_channels": config.block_out_channels,
        "center_input_sample": config.center_input_sample,
        "class_embed_type": class_embed_type,
        "down_block_types": names(&DOWN_BLOCKS, &config.down_blocks),
        "downsample_padding": config.downsample_padding,
        "downsample_type": name_of(&RESAMPLES, config.downsample_type),
        "dropout": config.dropout,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "freq_shift": whole(config.freq_shift),
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_scale_factor": whole(config.mid_block_scale_factor),
        "mid_block_type": config.mid_block.then_some("UNetMidBlock2D"),
        "norm_eps": config.norm_eps,
        "norm_num_groups": config.norm_num_groups,
        "num_class_embeds": num_class_embeds,
        "num_train_timesteps": null,
        "out_channels": config.out_channels,
        "resnet_time_scale_shift": name_of(&TIME_SCALE_SHIFTS, config.resnet_time_scale_shift),
        "sample_size": config.sample_size,
        "time_embedding_dim": config.time_embedding_dim,
        "time_embedding_type": name_of(&TIME_EMBEDDINGS, config.time_embedding),
        "up_block_types": names(&UP_BLOCKS, &config.up_blocks),
        "upsample_type": name_of(&RESAMPLES, config.upsample_type),
    })
}

/// 1.0 as 1, which is how diffusers writes its own defaults.
fn whole(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 1e9 {
        true => json!(number as i64),
        false => json!(number),
    }
}
