//! The folder layout of diffusers, in and out.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};

use super::atomic::{locate, replace, Disk, Draft, Rules};
use super::fields::Fields;
use super::folder::Folder;
use super::scheduler_json::{scheduler_from_json, scheduler_to_json, SchedulerConfig};
use super::training_state::{self, TrainingState};
use super::unet_json::{unet_from_json, unet_to_json, DIFFUSERS_VERSION};
use super::weights::{self, WeightType};
use crate::error::{Error, Result};
use crate::unet::{Parameters, UnetConfig};

const INDEX: &str = "model_index.json";
const UNET_CONFIG: &str = "unet/config.json";
const SCHEDULER_CONFIG: &str = "scheduler/scheduler_config.json";
const WEIGHTS: &str = "diffusion_pytorch_model";

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub unet: UnetConfig,
    /// The weights, f32.
    pub parameters: Parameters,
    /// The noise schedule, and how the network's output is read.
    pub scheduler: SchedulerConfig,
    /// How the training went on; `None` where the checkpoint is for sampling only.
    pub training: Option<TrainingState>,
}

/// What is to be written: a [`Checkpoint`] whose parts belong to others.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointRef<'a> {
    /// The architecture.
    pub unet: &'a UnetConfig,
    /// The weights that someone who loads the checkpoint samples with: EMA's, where there are any.
    pub parameters: &'a Parameters,
    /// The noise schedule, and how the network's output is read.
    pub scheduler: &'a SchedulerConfig,
    /// What a training run needs to go on.
    pub training: Option<&'a TrainingState>,
}

/// Reads the checkpoint at `path`, with the weights as f32 on `device`.
///
/// That is a `DDPMPipeline` or `DDIMPipeline` folder, or a `UNet2DModel` folder alone (`config.json` and weights at its
/// top), whose scheduler is then [`SchedulerConfig::default`]. Weights may be f32, f16 or bf16, in one safetensors
/// file or several, and with the attention names of 2022. Symbolic links are followed, as the hub's cache needs it.
///
/// # Errors
/// `Io` where a file cannot be read; `Format`, naming file, field and value, where one is not what it must be or
/// asks for something that is not supported.
pub fn read(path: &Path, device: Device) -> Result<Checkpoint> {
    // Whoever replaces a checkpoint then removes the old one's files, of which some may be missing. More than once
    // in a row only a writer without pause can do that.
    const ATTEMPTS: usize = 20;
    for _ in 0..ATTEMPTS {
        let place = locate(path);
        let folder = match Folder::open(&place) {
            // It was moved aside just now.
            Err(_) if locate(path) != place => continue,
            folder => folder?,
        };
        let result = read_folder(&folder, device);
        if !folder.was_replaced() {
            return result;
        }
    }
    Err(Error::io(path, std::io::Error::other("is replaced over and over while it is read")))
}

fn read_folder(folder: &Folder, device: Device) -> Result<Checkpoint> {
    let index = folder.json(INDEX)?;
    if let Some(index) = &index {
        check_index(index, &folder.path_of(INDEX))?;
    }
    let is_pipeline = index.is_some() || folder.has(UNET_CONFIG);
    let (place, config) = if is_pipeline { ("unet/", UNET_CONFIG) } else { ("", "config.json") };
    let Some(value) = folder.json(config)? else {
        let reason = match is_pipeline {
            true => format!("{UNET_CONFIG} is missing"),
            false => format!("is no checkpoint: it has neither {INDEX} nor config.json"),
        };
        return Err(Error::format(folder.path(), reason));
    };
    let unet = unet_from_json(&value, &folder.path_of(config))?;
    let scheduler = match folder.json(SCHEDULER_CONFIG)? {
        Some(value) => scheduler_from_json(&value, &folder.path_of(SCHEDULER_CONFIG))?,
        None if index.is_some() => return Err(Error::format(folder.path_of(SCHEDULER_CONFIG), "is missing")),
        None => SchedulerConfig::default(),
    };
    let parameters = read_weights(folder, place, &unet, device)?;
    let training = match folder.bytes(training_state::FILE)? {
        Some(bytes) => Some(TrainingState::parse(&bytes, &folder.path_of(training_state::FILE))?),
        None => None,
    };
    Ok(Checkpoint { unet, parameters, scheduler, training })
}

/// That the index is one of the pipelines whose parts are read here.
fn check_index(index: &Value, file: &Path) -> Result<()> {
    let fields = Fields::new(index, file)?;
    fields.choice("_class_name", (), &[("DDPMPipeline", ()), ("DDIMPipeline", ())])?;
    // The parts say their classes themselves.
    fields.ignore(&["unet", "scheduler"]);
    fields.finish()
}

fn read_weights(folder: &Folder, place: &str, config: &UnetConfig, device: Device) -> Result<Parameters> {
    let files = weight_files(folder, place)?;
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for name in &files {
        let path = folder.path_of(name);
        let bytes = folder.bytes(name)?.ok_or_else(|| Error::format(&path, "is missing"))?;
        let contents = weights::parse(&bytes, &path, &[Kind::Float, Kind::Half, Kind::BFloat16])?;
        for (name, tensor) in contents.tensors {
            let name = current_name(&name);
            // At once, not when all are there: any number of shards may be links to one large file.
            if !seen.insert(name.clone()) {
                return Err(Error::format(&path, format!("tensor {name} is given twice")));
            }
            let tensor = as_linear(&name, tensor)?.f_to_kind(Kind::Float)?.f_to_device(device)?;
            tensors.push((name, tensor));
        }
    }
    let shown = match files.as_slice() {
        [only] => folder.path_of(only),
        _ => folder.path_of(place),
    };
    Parameters::from_tensors(config, tensors).map_err(|error| match error {
        Error::InvalidArgument(reason) => Error::format(shown, reason),
        other => other,
    })
}

/// The files that hold the weights, in the order in which diffusers looks for them.
fn weight_files(folder: &Folder, place: &str) -> Result<Vec<String>> {
    for variant in ["", ".fp32", ".fp16", ".bf16"] {
        let indices = [
            format!("{place}{WEIGHTS}.safetensors.index{variant}.json"),
            format!("{place}{WEIGHTS}{variant}.safetensors.index.json"),
        ];
        for index in indices {
            if let Some(value) = folder.json(&index)? {
                return shards(&value, place, &folder.path_of(&index));
            }
        }
        let single = format!("{place}{WEIGHTS}{variant}.safetensors");
        if folder.has(&single) {
            return Ok(vec![single]);
        }
    }
    let reason = match folder.has(&format!("{place}{WEIGHTS}.bin")) {
        true => {
            format!("has its weights as {WEIGHTS}.bin: save it again in Python with safe_serialization=True")
        }
        false => format!("has no {WEIGHTS}.safetensors"),
    };
    Err(Error::format(folder.path_of(place), reason))
}

/// The files that an index of shards names.
fn shards(index: &Value, place: &str, file: &Path) -> Result<Vec<String>> {
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::format(file, "weight_map is missing: must be an object"));
    };
    let mut names = BTreeSet::new();
    for (tensor, shard) in map {
        // Of a name that stands in a file, nothing may lead out of the folder.
        let plain = shard.as_str().filter(|name| {
            let mut parts = Path::new(name).components();
            let is_name = matches!(parts.next(), Some(std::path::Component::Normal(part)) if part == *name);
            is_name && !name.contains(['\\', '\0']) && name.ends_with(".safetensors")
        });
        let Some(plain) = plain else {
            let allowed = "the plain name of a .safetensors file in the same folder";
            return Err(Error::format(file, format!("weight_map[{tensor:?}] is {shard}: must be {allowed}")));
        };
        names.insert(format!("{place}{plain}"));
    }
    if names.is_empty() {
        return Err(Error::format(file, "weight_map is empty"));
    }
    Ok(names.into_iter().collect())
}

/// Attention's names of 2022 to today's.
fn current_name(name: &str) -> String {
    const RENAMED: [(&str, &str); 4] =
        [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    if let Some((path, leaf)) = name.rsplit_once('.') {
        if let Some((path, layer)) = path.rsplit_once('.') {
            let renamed = RENAMED.iter().find(|(old, _)| *old == layer);
            if let (true, Some((_, new))) = (path.contains("attentions."), renamed) {
                return format!("{path}.{new}.{leaf}");
            }
        }
    }
    name.to_owned()
}

/// Attention's maps were 1×1 convolutions once: [out, in, 1, 1] -> [out, in].
fn as_linear(name: &str, tensor: Tensor) -> Result<Tensor> {
    match tensor.size().as_slice() {
        &[outputs, inputs, 1, 1] if name.contains(".attentions.") => Ok(tensor.f_reshape([outputs, inputs])?),
        _ => Ok(tensor),
    }
}

/// Writes a checkpoint to the folder `path`: a new one, an empty one, or a checkpoint that is replaced.
///
/// A crash at any moment leaves the old checkpoint or the new one, and a reader never sees a part of either. Files in
/// the old folder that are not a checkpoint's are kept.
///
/// # Errors
/// `InvalidArgument` where another folder or a file is at `path`; `Io` where the disk fails. The old checkpoint is
/// still there.
pub fn write(path: &Path, checkpoint: &CheckpointRef, weight_type: WeightType) -> Result<()> {
    write_to(&Disk::new(), path, checkpoint, weight_type)
}

/// [`write`] to a disk that a test may make fail.
pub fn write_to(disk: &Disk, path: &Path, checkpoint: &CheckpointRef, weight_type: WeightType) -> Result<()> {
    let index = json!({
        "_class_name": "DDPMPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    });
    let scheduler = scheduler_to_json(checkpoint.scheduler)?;
    let unet = unet_to_json(checkpoint.unet);
    let tensors: Vec<(&str, &Tensor)> = checkpoint.parameters.iter().collect();
    replace(disk, path, &RULES, |draft| {
        json_file(draft, INDEX, &index)?;
        draft.folder("scheduler")?;
        json_file(draft, SCHEDULER_CONFIG, &scheduler)?;
        draft.folder("unet")?;
        json_file(draft, UNET_CONFIG, &unet)?;
        draft.file(&format!("unet/{WEIGHTS}.safetensors"), |out, file| {
            weights::emit(out, &tensors, Some(weight_type.kind()), ("format", "pt"), file)
        })?;
        match checkpoint.training {
            Some(training) => draft.file(training_state::FILE, |out, file| training.emit(out, file)),
            None => Ok(()),
        }
    })
}

fn json_file(draft: &Draft, name: &str, value: &Value) -> Result<()> {
    draft.file(name, |out, file| writeln!(out, "{value:#}").map_err(|error| Error::io(file, error)))
}

const RULES: Rules = Rules { may_replace, is_ours };

/// A folder may be replaced where it is a checkpoint as far as can be told without reading the weights.
fn may_replace(path: &Path) -> std::result::Result<(), String> {
    let has = |name: &str| path.join(name).is_file();
    match has(INDEX) && has(UNET_CONFIG) {
        true => Ok(()),
        false => Err(format!(
            "a folder that holds something else than a checkpoint (no {INDEX} and {UNET_CONFIG})"
        )),
    }
}

/// Whether a file of the old folder belongs to the checkpoint that is replaced. Weights in another number type, or in
/// shards, are the old network's too.
fn is_ours(place: &Path) -> bool {
    let named = [INDEX, UNET_CONFIG, SCHEDULER_CONFIG, training_state::FILE];
    if named.iter().any(|name| place == Path::new(name)) {
        return true;
    }
    let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    place.parent() == Some(&PathBuf::from("unet")) && name.starts_with(WEIGHTS)
}
