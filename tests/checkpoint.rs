//! Checkpoints: what diffusers wrote is read, what is written is read back, what is malformed is refused with the
//! file's name, and a crash at any moment leaves the old checkpoint or the new one.

#[path = "support/golden.rs"]
mod golden;

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use diffusion::checkpoint::{
    read, scheduler_from_json, scheduler_to_json, unet_to_json, write, write_to, Checkpoint, CheckpointRef,
    Disk, Operation, SchedulerConfig, TrainingState, WeightType,
};
use diffusion::sampler::{Spacing, Variance};
use diffusion::schedule::{BetaSchedule, NoiseSchedule, Prediction, ScheduleConfig};
use diffusion::unet::{DiffusionModel, Parameters, UnetConfig};
use diffusion::Error;
use golden::{difference, tensor, Golden};
use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};

fn tiny() -> UnetConfig {
    UnetConfig::from_hidden_dims(8, 1, &[8]).unwrap()
}

fn training(step: u64) -> TrainingState {
    TrainingState {
        tensors: vec![
            ("moment.conv_in.weight".into(), Tensor::from_slice(&[1.5f32, -2.0]).view_([1, 2])),
            ("counter".into(), Tensor::from_slice(&[step as i64])),
            ("flags".into(), Tensor::from_slice(&[1u8, 0, 1])),
        ],
        meta: json!({"step": step, "loss": 0.1 + 0.2, "name": "läuft"}),
    }
}

/// A checkpoint in memory whose weights follow from a seed.
struct Made {
    unet: UnetConfig,
    parameters: Parameters,
    scheduler: SchedulerConfig,
    training: Option<TrainingState>,
}

impl Made {
    fn new(seed: u64) -> Made {
        let unet = tiny();
        let parameters = Parameters::init(&unet, seed, Device::Cpu).unwrap();
        Made { unet, parameters, scheduler: SchedulerConfig::default(), training: Some(training(seed)) }
    }

    fn parts(&self) -> CheckpointRef<'_> {
        CheckpointRef {
            unet: &self.unet,
            parameters: &self.parameters,
            scheduler: &self.scheduler,
            training: self.training.as_ref(),
        }
    }

    fn write(&self, path: &Path) {
        write(path, &self.parts(), WeightType::F32).unwrap();
    }

    fn is(&self, read: &Checkpoint) -> bool {
        let same = |((name, a), (other, b)): ((&str, &Tensor), (&str, &Tensor))| name == other && a.equal(b);
        let step = |training: &Option<TrainingState>| training.as_ref().map(|state| state.meta.clone());
        read.parameters.len() == self.parameters.len()
            && self.parameters.iter().zip(read.parameters.iter()).all(same)
            && step(&self.training) == step(&read.training)
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    (folder, path)
}

/// Names in the folder that holds the checkpoint, sorted.
fn beside(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path.parent().unwrap()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// In and out

#[test]
fn what_is_written_is_read_back_bit_by_bit() {
    let (_keep, path) = folder();
    let made = Made::new(3);
    made.write(&path);
    let read = read(&path, Device::Cpu).unwrap();
    assert!(made.is(&read));
    assert_eq!(read.unet, made.unet);
    assert_eq!(read.scheduler, made.scheduler);
    let training = read.training.unwrap();
    assert_eq!(training.meta, json!({"step": 3, "loss": 0.1 + 0.2, "name": "läuft"}));
    for (name, wanted) in &made.training.as_ref().unwrap().tensors {
        let (_, found) = training.tensors.iter().find(|(found, _)| found == name).unwrap();
        assert!(found.kind() == wanted.kind() && found.equal(wanted), "{name}");
    }
    assert_eq!(beside(&path), ["model"]);
}

#[test]
fn a_checkpoint_is_the_same_file_each_time() {
    let (_keep, path) = folder();
    let weights = path.join("unet/diffusion_pytorch_model.safetensors");
    Made::new(3).write(&path);
    let first = (fs::read(&weights).unwrap(), fs::read(path.join("training_state.safetensors")).unwrap());
    Made::new(3).write(&path);
    assert!(
        first == (fs::read(&weights).unwrap(), fs::read(path.join("training_state.safetensors")).unwrap())
    );
}

#[test]
fn half_precision_is_right_to_its_precision() {
    let made = Made::new(5);
    for (weight_type, precision) in [(WeightType::F16, 2f64.powi(-11)), (WeightType::BF16, 2f64.powi(-8))] {
        let (_keep, path) = folder();
        write(&path, &made.parts(), weight_type).unwrap();
        let read = read(&path, Device::Cpu).unwrap();
        for ((name, wanted), (_, found)) in made.parameters.iter().zip(read.parameters.iter()) {
            assert_eq!(found.kind(), Kind::Float);
            // Below 6e-5 f16 has fewer bits; 6e-8 is its smallest step.
            let allowed = wanted.abs() * precision + 6e-8;
            assert!(((found - wanted).abs() - allowed).max().double_value(&[]) <= 0.0, "{name}");
        }
    }
}

#[test]
fn weights_that_f16_cannot_hold_are_not_written_as_f16() {
    let (_keep, path) = folder();
    let made = Made::new(5);
    made.write(&path);
    let large = Made::new(6);
    large.parameters.write("conv_out.bias", &[70000.0]).unwrap();
    let error = write(&path, &large.parts(), WeightType::F16).unwrap_err();
    assert!(matches!(&error, Error::NonFinite(text) if text.contains("conv_out.bias")), "{error}");
    assert!(made.is(&read(&path, Device::Cpu).unwrap()));
    assert_eq!(beside(&path), ["model"]);
}

#[test]
fn folders_of_diffusers_own_making_are_read() {
    let cases = Golden::group("checkpoint");
    assert_eq!(cases.len(), 3);
    for (name, golden) in cases {
        let read = read(&golden.path.with_extension(""), Device::Cpu).unwrap();
        let model = DiffusionModel::new(&read.unet, &read.parameters).unwrap();
        let x = tensor(100_000, &golden.integers("input_shape"), 2.0, 0.0);
        let labels = golden.arrays.get("class_labels");
        let output = tch::no_grad(|| model.forward(&x, golden.array("timesteps"), labels, None)).unwrap();
        let found = difference(&output, golden.array("output"));
        assert!(found < 2e-5, "{name}: {found:e}");
        if let Some(betas) = golden.arrays.get("betas") {
            let schedule = NoiseSchedule::new(&read.scheduler.schedule).unwrap();
            let own = Tensor::from_slice(&schedule.beta_schedule).to_kind(Kind::Float);
            assert!(difference(&own, betas) < 1e-6, "{name}");
        }
        match name.as_str() {
            "pipeline" => {
                assert_eq!(read.scheduler.variance, Variance::FixedLarge);
                assert_eq!(read.scheduler.clip_sample_range, 2.0);
                assert_eq!(read.scheduler.schedule.noise_steps, 200);
            }
            "sharded_fp16" => assert_eq!(read.scheduler.prediction, Prediction::Velocity),
            "unet_alone" => assert_eq!(read.scheduler, SchedulerConfig::default()),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn attention_names_and_shapes_of_2022_are_read() {
    let (_keep, path) = folder();
    let made = Made::new(9);
    made.write(&path);
    let old = |name: &str| {
        let renamed = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        renamed.iter().fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
    };
    let tensors = made.parameters.iter().map(|(name, value)| {
        let value = match (name.contains("attentions"), value.size().as_slice()) {
            (true, &[a, b]) => value.view_([a, b, 1, 1]),
            _ => value.shallow_clone(),
        };
        (old(name), value)
    });
    let tensors: Vec<(String, Tensor)> = tensors.collect();
    assert!(tensors.iter().any(|(name, _)| name == "mid_block.attentions.0.proj_attn.weight"));
    Tensor::write_safetensors(&tensors, path.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(made.is(&read(&path, Device::Cpu).unwrap()));
}

#[test]
fn links_are_followed_as_in_the_hubs_cache() {
    let (keep, path) = folder();
    let made = Made::new(9);
    made.write(&path);
    let blobs = keep.path().join("blobs");
    fs::create_dir(&blobs).unwrap();
    for name in ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"] {
        let blob = blobs.join(name.replace('/', "-"));
        fs::rename(path.join(name), &blob).unwrap();
        std::os::unix::fs::symlink(&blob, path.join(name)).unwrap();
    }
    let link = keep.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(made.is(&read(&link, Device::Cpu).unwrap()));
    // A link to the checkpoint is still one after a write through it.
    let new = Made::new(10);
    new.write(&link);
    assert!(new.is(&read(&path, Device::Cpu).unwrap()));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

// The scheduler

fn scheduler(schedule: ScheduleConfig) -> SchedulerConfig {
    SchedulerConfig { schedule, ..SchedulerConfig::default() }
}

#[test]
fn every_schedule_is_read_back_and_named_only_where_both_of_diffusers_schedulers_name_it() {
    let config = |kind, beta_start, beta_end| ScheduleConfig {
        kind,
        beta_start,
        beta_end,
        noise_steps: 50,
        rescale_zero_terminal_snr: false,
    };
    let cases = [
        (config(BetaSchedule::Linear, 1e-4, 0.02), Some("linear")),
        (config(BetaSchedule::ScaledLinear, 1e-4, 0.02), Some("scaled_linear")),
        (config(BetaSchedule::Sigmoid, 1e-4, 0.02), None),
        (config(BetaSchedule::Cosine, 1e-4, 0.999), Some("squaredcos_cap_v2")),
        (config(BetaSchedule::Cosine, 1e-4, 0.9), None),
        (config(BetaSchedule::Cosine, 0.01, 0.999), None),
        (config(BetaSchedule::CosineRamp, 1e-4, 0.02), None),
        (config(BetaSchedule::Given((1..=50).map(|i| f64::from(i) / 300.0).collect()), 1e-4, 0.02), None),
    ];
    for (schedule, name) in cases {
        for rescale in [false, true] {
            let schedule = ScheduleConfig { rescale_zero_terminal_snr: rescale, ..schedule.clone() };
            let value = scheduler_to_json(&scheduler(schedule.clone())).unwrap();
            assert_eq!(value["trained_betas"].is_null(), name.is_some(), "{schedule:?}");
            if let Some(name) = name {
                assert_eq!(value["beta_schedule"], name);
            }
            let text = value.to_string();
            let value: Value = serde_json::from_str(&text).unwrap();
            let read = scheduler_from_json(&value, Path::new("x.json")).unwrap();
            let betas = |config| NoiseSchedule::new(config).unwrap().beta_schedule;
            assert_eq!(betas(&read.schedule), betas(&schedule));
            // squaredcos_cap_v2 has no beta_start and beta_end of its own.
            if name != Some("squaredcos_cap_v2") {
                assert_eq!(read.schedule, schedule);
            }
        }
    }
}

#[test]
fn the_default_cosine_is_written_as_betas_since_its_lower_clip_bites() {
    let value = scheduler_to_json(&scheduler(ScheduleConfig::default())).unwrap();
    assert_eq!(value["trained_betas"].as_array().unwrap().len(), 1000);
    let read = scheduler_from_json(&value, Path::new("x.json")).unwrap();
    assert_eq!(read.schedule, ScheduleConfig::default());
    // Someone has edited the betas: then they hold, not our note.
    let mut edited = value;
    edited["trained_betas"][7] = json!(0.5);
    let read = scheduler_from_json(&edited, Path::new("x.json")).unwrap();
    assert!(matches!(read.schedule.kind, BetaSchedule::Given(betas) if betas[7] == 0.5));
}

#[test]
fn every_sampling_option_is_read_back() {
    let base = SchedulerConfig::default();
    let cases = [
        SchedulerConfig { prediction: Prediction::Velocity, ..base.clone() },
        SchedulerConfig { prediction: Prediction::Sample, clip_sample: false, ..base.clone() },
        SchedulerConfig { clip_sample_range: 2.5, variance: Variance::FixedLarge, ..base.clone() },
        SchedulerConfig { spacing: Spacing::Trailing, ..base.clone() },
        SchedulerConfig { spacing: Spacing::Linspace, ..base.clone() },
        SchedulerConfig { steps_offset: 1, dynamic_thresholding: Some(0.98), ..base.clone() },
    ];
    for config in cases {
        let value = scheduler_to_json(&config).unwrap();
        assert_eq!(scheduler_from_json(&value, Path::new("x.json")).unwrap(), config);
    }
    let karras = SchedulerConfig { spacing: Spacing::Karras, ..base };
    let error = scheduler_to_json(&karras).unwrap_err().to_string();
    assert_eq!(error, "timestep_spacing is Karras: must be leading, trailing or linspace in a checkpoint");
}

#[test]
fn what_a_scheduler_config_asks_for_and_is_not_supported_is_named() {
    let message = |field: &str, value: Value| {
        let mut config = scheduler_to_json(&SchedulerConfig::default()).unwrap();
        config[field] = value;
        scheduler_from_json(&config, Path::new("dir/x.json")).map_err(|error| error.to_string())
    };
    for (field, value, text) in [
        (
            "_class_name",
            json!("PNDMScheduler"),
            "_class_name is \"PNDMScheduler\": must be one of \"DDPMScheduler\"",
        ),
        ("variance_type", json!("fixed_large_log"), "variance_type is \"fixed_large_log\""),
        ("variance_type", json!("learned_range"), "variance_type is \"learned_range\""),
        ("beta_schedule", json!("laplace"), "beta_schedule is \"laplace\""),
        ("prediction_type", json!("flow"), "prediction_type is \"flow\""),
        ("timestep_spacing", json!(3), "timestep_spacing is 3"),
        ("set_alpha_to_one", json!(false), "set_alpha_to_one is false: must be true"),
        ("use_karras_sigmas", json!(true), "use_karras_sigmas is true: must be absent"),
        ("clip_sample_range", json!(0), "clip_sample_range is 0"),
        ("clip_sample", json!("yes"), "clip_sample is \"yes\": must be true or false"),
        ("num_train_timesteps", json!(1.5), "num_train_timesteps is 1.5"),
        ("num_train_timesteps", json!(0), "noise_steps is 0"),
        ("beta_end", json!(1e-9), "beta_"),
        ("trained_betas", json!([0.1, 0.2]), ""),
        ("trained_betas", json!([0.1, "x"]), "trained_betas is \"x\": must be a list of numbers"),
    ] {
        let error = message(field, value).unwrap_err();
        assert!(error.starts_with(&format!("dir/x.json: {text}")), "{field}: {error}");
    }
    for (field, value) in [
        ("_anything", json!({"at": "all"})),
        ("new_field", Value::Null),
        ("tensor_format", json!("pt")),
        ("variance_type", json!("fixed_small_log")),
        ("_class_name", json!("DDIMScheduler")),
    ] {
        assert!(message(field, value.clone()).is_ok(), "{field} {value}");
    }
    // Thresholding with diffusers' default limit of 1 is a clamp, and one in between is not supported.
    let mut config = scheduler_to_json(&SchedulerConfig::default()).unwrap();
    config["thresholding"] = json!(true);
    config["clip_sample"] = json!(false);
    let read = scheduler_from_json(&config, Path::new("x")).unwrap();
    assert!(read.clip_sample && read.dynamic_thresholding.is_none());
    config["sample_max_value"] = json!(1.5);
    assert!(scheduler_from_json(&config, Path::new("x"))
        .unwrap_err()
        .to_string()
        .contains("sample_max_value is 1.5"));
}

// Malformed folders

/// Changes one file of a good checkpoint; says what reading it then says.
fn spoil(name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
    let (_keep, path) = folder();
    Made::new(1).write(&path);
    let file = path.join(name);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, change(bytes)).unwrap();
    refused(&path)
}

/// The message of the Format error that reading gives, which must name a file in the folder.
fn refused(path: &Path) -> String {
    match read(path, Device::Cpu) {
        Err(Error::Format { path: file, reason }) => {
            assert!(file.starts_with(path), "{}", file.display());
            format!("{}: {reason}", file.strip_prefix(path).unwrap().display())
        }
        other => panic!("{other:?}"),
    }
}

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

/// A safetensors file of these tensors.
fn safetensors(change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> Vec<u8> {
    let parameters = Parameters::init(&tiny(), 1, Device::Cpu).unwrap();
    let mut tensors =
        parameters.iter().map(|(name, value)| (name.to_owned(), value.shallow_clone())).collect();
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    Tensor::write_safetensors(&tensors, &path).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn malformed_weights_are_refused() {
    let whole = safetensors(|_| {});
    for length in [0, 4, 8, 9, 500, whole.len() / 2, whole.len() - 1] {
        let message = spoil(WEIGHTS, |bytes| bytes[..length.min(bytes.len() - 1)].to_vec());
        assert!(
            message.starts_with(&format!("{WEIGHTS}: is not a valid safetensors file")),
            "{length}: {message}"
        );
    }
    let message = spoil(WEIGHTS, |mut bytes| {
        bytes.extend([0; 4]);
        bytes
    });
    assert!(message.contains("not a valid safetensors file"), "{message}");
    // A length that promises more than memory holds.
    for length in [u64::MAX, 1 << 62, 99 << 20] {
        let message = spoil(WEIGHTS, |mut bytes| {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            bytes
        });
        assert!(message.contains("not a valid safetensors file"), "{message}");
    }
    // A shape that does.
    let text =
        r#"{"conv_in.weight":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,0]}}"#;
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    assert!(spoil(WEIGHTS, |_| bytes).contains("not a valid safetensors file"));
    assert!(spoil(WEIGHTS, |_| b"PK\x03\x04 a pickle, for instance".to_vec()).contains("not a valid"));

    let message = spoil(WEIGHTS, |_| safetensors(|tensors| drop(tensors.remove(0))));
    assert!(message.starts_with(&format!("{WEIGHTS}: tensor conv_in.weight is missing")), "{message}");
    let message = spoil(WEIGHTS, |_| safetensors(|tensors| tensors.push(("more".into(), Tensor::from(1.0)))));
    assert!(message.contains("tensor more is"), "{message}");
    let message =
        spoil(WEIGHTS, |_| safetensors(|tensors| tensors[0].1 = tensors[0].1.transpose(0, 1).contiguous()));
    assert!(
        message.contains("the shape of tensor conv_in.weight is [1, 8, 3, 3]: must be [8, 1, 3, 3]"),
        "{message}"
    );
    let message =
        spoil(WEIGHTS, |_| safetensors(|tensors| tensors[0].1 = tensors[0].1.to_kind(Kind::Double)));
    assert!(message.contains("tensor conv_in.weight is F64: must be one of F32, F16, BF16"), "{message}");
    let message = spoil(WEIGHTS, |_| safetensors(|tensors| tensors[1].1 = tensors[1].1.to_kind(Kind::Int64)));
    assert!(message.contains("is I64"), "{message}");
}

#[test]
fn malformed_json_is_refused() {
    for name in ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"] {
        for text in ["", "{", "[1, 2", "nonsense", "{\"a\": NaN}", "\u{0}", "{\"a\": 1e999}"] {
            let message = spoil(name, |_| text.as_bytes().to_vec());
            assert!(message.starts_with(&format!("{name}: is not valid JSON")), "{text}: {message}");
        }
        let deep = "[".repeat(100_000);
        assert!(spoil(name, |_| deep.into_bytes()).contains("recursion limit"));
        assert!(spoil(name, |_| vec![0xff, 0xfe]).contains("is not valid JSON"));
        assert!(spoil(name, |_| b"[]".to_vec()).contains("must be a JSON object"));
        assert!(spoil(name, |_| b"7".to_vec()).contains("must be a JSON object"));
        assert!(spoil(name, |_| vec![b' '; 17 << 20]).contains("must be at most"));
    }
    let message = spoil("model_index.json", |_| br#"{"_class_name": "StableDiffusionPipeline"}"#.to_vec());
    assert!(
        message.contains("_class_name is \"StableDiffusionPipeline\": must be one of \"DDPMPipeline\""),
        "{message}"
    );
    let message =
        spoil("model_index.json", |_| br#"{"_class_name": "DDPMPipeline", "vqvae": ["a", "b"]}"#.to_vec());
    assert!(message.contains("vqvae is"), "{message}");
}

#[test]
fn what_a_network_config_asks_for_and_is_not_supported_is_named() {
    let message = |field: &str, value: Value| {
        spoil("unet/config.json", |_| {
            let mut config = unet_to_json(&tiny());
            config[field] = value;
            config.to_string().into_bytes()
        })
    };
    for (field, value, text) in [
        (
            "down_block_types",
            json!(["SkipDownBlock2D"]),
            "down_block_types is \"SkipDownBlock2D\": must be one of",
        ),
        ("up_block_types", json!(["CrossAttnUpBlock2D"]), "up_block_types is \"CrossAttnUpBlock2D\""),
        (
            "down_block_types",
            json!(["DownBlock2D", "DownBlock2D"]),
            "the number of down_block_types is 2: must be 1",
        ),
        ("time_embedding_type", json!("learned"), "time_embedding_type is \"learned\""),
        ("class_embed_type", json!("projection"), "class_embed_type is \"projection\""),
        ("resnet_time_scale_shift", json!("spatial"), "resnet_time_scale_shift is \"spatial\""),
        ("_class_name", json!("UNet2DConditionModel"), "_class_name is \"UNet2DConditionModel\""),
        ("act_fn", json!("tanh"), "act_fn is \"tanh\""),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn"), "mid_block_type is \"UNetMidBlock2DCrossAttn\""),
        ("downsample_padding", json!(2), "downsample_padding is 2: must be in 0..=1"),
        ("norm_num_groups", json!(3), "hidden_dims[0] is 8: must be a multiple of norm_num_groups (3)"),
        ("norm_num_groups", Value::Null, "norm_num_groups is null"),
        ("sample_size", Value::Null, "sample_size is null"),
        ("sample_size", json!([8, 16]), "sample_size is [8,16]"),
        ("layers_per_block", json!(4_000_000_000u64), "layers_per_block is 4000000000: must be in 1..=64"),
        ("layers_per_block", json!(-1), "layers_per_block is -1"),
        ("block_out_channels", json!([1e300]), "block_out_channels is"),
        ("block_out_channels", json!([u64::MAX]), "hidden_dims[0] is 18446744073709551615"),
        ("block_out_channels", json!(vec![8; 100_000]), "the number of hidden_dims is 100000"),
        ("dropout", json!("much"), "dropout is \"much\": must be a number"),
        ("encoder_hid_dim", json!(768), "encoder_hid_dim is 768: must be absent"),
    ] {
        let found = message(field, value);
        assert!(found.starts_with(&format!("unet/config.json: {text}")), "{field}: {found}");
    }
}

#[test]
fn harmless_fields_and_old_names_of_a_network_config_are_read() {
    for (field, value) in [
        ("_name_or_path", json!("google/ddpm-cifar10-32")),
        ("not_known_yet", Value::Null),
        ("num_train_timesteps", json!(1000)),
        ("act_fn", json!("SiLU")),
        ("sample_size", json!([8, 8])),
        ("down_block_types", json!(["UNetResAttnDownBlock2D"])),
        ("freq_shift", json!(1.0)),
    ] {
        let (_keep, path) = folder();
        let made = Made::new(1);
        made.write(&path);
        let mut config = unet_to_json(&made.unet);
        config[field] = value;
        fs::write(path.join("unet/config.json"), config.to_string()).unwrap();
        let read = read(&path, Device::Cpu).unwrap_or_else(|error| panic!("{field}: {error}"));
        assert!(made.is(&read) && read.unet == made.unet, "{field}");
    }
}

#[test]
fn missing_and_foreign_things_are_named() {
    let (keep, path) = folder();
    assert!(matches!(read(&path, Device::Cpu), Err(Error::Io { path: found, .. }) if found == path));
    fs::create_dir(&path).unwrap();
    assert!(refused(&path).contains("is no checkpoint: it has neither model_index.json nor config.json"));
    let file = keep.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(read(&file, Device::Cpu)
        .unwrap_err()
        .to_string()
        .ends_with("is a file: must be a checkpoint folder"));

    let without = |name: &str| {
        let (_keep, path) = folder();
        Made::new(1).write(&path);
        fs::remove_file(path.join(name)).unwrap();
        refused(&path)
    };
    assert!(without("unet/config.json").contains("unet/config.json is missing"));
    assert!(
        without("scheduler/scheduler_config.json").contains("scheduler/scheduler_config.json: is missing")
    );
    assert!(without(WEIGHTS).contains("has no diffusion_pytorch_model.safetensors"));

    let (_keep, path) = folder();
    Made::new(1).write(&path);
    fs::rename(path.join(WEIGHTS), path.join("unet/diffusion_pytorch_model.bin")).unwrap();
    assert!(refused(&path).contains("safe_serialization=True"));

    let (_keep, path) = folder();
    Made::new(1).write(&path);
    fs::remove_file(path.join(WEIGHTS)).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(path.join(WEIGHTS)).status().unwrap();
    assert!(pipe.success());
    assert!(refused(&path).contains("is not a regular file"));
}

#[test]
fn names_in_an_index_of_shards_cannot_leave_the_folder() {
    let (keep, path) = folder();
    let made = Made::new(1);
    made.write(&path);
    let shard = path.join("unet/diffusion_pytorch_model-00001-of-00001.safetensors");
    fs::rename(path.join(WEIGHTS), &shard).unwrap();
    fs::copy(&shard, keep.path().join("outside.safetensors")).unwrap();
    fs::create_dir(path.join("unet/sub")).unwrap();
    fs::copy(&shard, path.join("unet/sub/x.safetensors")).unwrap();
    let index = path.join("unet/diffusion_pytorch_model.safetensors.index.json");
    let with =
        |name: Value| fs::write(&index, json!({"weight_map": {"conv_in.weight": name}}).to_string()).unwrap();
    with(json!("diffusion_pytorch_model-00001-of-00001.safetensors"));
    assert!(made.is(&read(&path, Device::Cpu).unwrap()));
    let absolute = keep.path().join("outside.safetensors").to_str().unwrap().to_owned();
    for name in [
        "../../outside.safetensors",
        &absolute,
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "./x.safetensors",
        "a\\b",
    ] {
        with(json!(name));
        assert!(refused(&path).contains("must be the plain name"), "{name}");
    }
    with(json!(7));
    assert!(refused(&path).contains("weight_map[\"conv_in.weight\"] is 7"));
    with(json!("absent.safetensors"));
    assert!(refused(&path).contains("unet/absent.safetensors: is missing"));
    for text in ["{}", "{\"weight_map\": {}}", "{\"weight_map\": []}"] {
        fs::write(&index, text).unwrap();
        assert!(refused(&path).contains("weight_map is"), "{text}");
    }
    // The same tensor in two shards.
    fs::copy(&shard, path.join("unet/again.safetensors")).unwrap();
    let map = json!({"a": "again.safetensors", "b": "diffusion_pytorch_model-00001-of-00001.safetensors"});
    fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    assert!(refused(&path).contains("is given twice"));
}

#[test]
fn malformed_training_states_are_refused() {
    const STATE: &str = "training_state.safetensors";
    assert!(spoil(STATE, |bytes| bytes[..bytes.len() - 1].to_vec())
        .starts_with("training_state.safetensors: is not"));
    assert!(spoil(STATE, |_| safetensors(|_| {})).contains("has no metadata entry \"training\""));
    let text = r#"{"__metadata__":{"training":"{"}}"#;
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    assert!(spoil(STATE, |_| bytes).contains("metadata entry \"training\" is not valid JSON"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(150))]
    #[test]
    fn no_change_of_bytes_makes_the_reader_panic(
        file in 0usize..5, at in 0.0f64..1.0, head in proptest::bool::ANY, byte: u8, cut in proptest::bool::weighted(0.2),
    ) {
        let names =
            ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", WEIGHTS, "training_state.safetensors"];
        let (_keep, path) = folder();
        Made::new(1).write(&path);
        let name = path.join(names[file]);
        let mut bytes = fs::read(&name).unwrap();
        // The start of a file is where its structure is.
        let place = (at * if head { bytes.len().min(2000) } else { bytes.len() } as f64) as usize;
        bytes[place] = byte;
        if cut {
            bytes.truncate(place);
        }
        fs::write(&name, bytes).unwrap();
        match read(&path, Device::Cpu) {
            Ok(_) => {}
            Err(Error::Format { path: file, .. }) => assert!(file.starts_with(&path)),
            Err(other) => panic!("{other:?}"),
        }
    }
}

// Crashes

#[test]
fn what_is_no_checkpoint_is_not_replaced() {
    let (keep, path) = folder();
    let made = Made::new(1);
    fs::create_dir(&path).unwrap();
    made.write(&path);
    fs::remove_file(path.join("model_index.json")).unwrap();
    let error = write(&path, &made.parts(), WeightType::F32).unwrap_err().to_string();
    assert!(error.contains("a folder that holds something else than a checkpoint"), "{error}");
    assert!(path.join(WEIGHTS).exists());
    let file = keep.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = write(&file, &made.parts(), WeightType::F32).unwrap_err().to_string();
    assert!(error.contains("file, a file: must be a new folder"), "{error}");
    for odd in ["/", "..", "", "."] {
        assert!(write(Path::new(odd), &made.parts(), WeightType::F32).is_err(), "{odd:?}");
    }
    let nowhere = keep.path().join("absent/model");
    assert!(matches!(write(&nowhere, &made.parts(), WeightType::F32), Err(Error::Io { .. })));
    assert_eq!(beside(&path), ["file", "model"]);
}

#[test]
fn files_that_are_not_the_checkpoints_are_kept_and_old_weights_are_not() {
    let (_keep, path) = folder();
    Made::new(1).write(&path);
    fs::create_dir_all(path.join("samples/late")).unwrap();
    for (name, text) in [("README.md", "read"), ("samples/late/1.png", "picture"), ("unet/notes.txt", "note")]
    {
        fs::write(path.join(name), text).unwrap();
    }
    std::os::unix::fs::symlink("README.md", path.join("link")).unwrap();
    fs::write(path.join("unet/diffusion_pytorch_model.fp16.safetensors"), "old weights").unwrap();
    fs::write(path.join("unet/diffusion_pytorch_model.safetensors.index.json"), "{}").unwrap();
    let mode =
        |path: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o750)).unwrap();
    let before = mode(&path);

    let mut new = Made::new(2);
    new.training = None;
    new.write(&path);
    let read = read(&path, Device::Cpu).unwrap();
    assert!(new.is(&read) && read.training.is_none());
    assert_eq!(fs::read_to_string(path.join("README.md")).unwrap(), "read");
    assert_eq!(fs::read_to_string(path.join("link")).unwrap(), "read");
    assert_eq!(fs::read_to_string(path.join("samples/late/1.png")).unwrap(), "picture");
    assert_eq!(fs::read_to_string(path.join("unet/notes.txt")).unwrap(), "note");
    assert!(!path.join("unet/diffusion_pytorch_model.fp16.safetensors").exists());
    assert!(!path.join("unet/diffusion_pytorch_model.safetensors.index.json").exists());
    assert!(!path.join("training_state.safetensors").exists());
    assert_eq!(mode(&path), before);
    assert_eq!(beside(&path), ["model"]);
}

/// What happens to the disk at one of the changes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The change fails; those after it do not.
    Error,
    /// The machine stops: nothing more is changed.
    Crash,
}

/// Replaces a checkpoint while the `nth` change to the disk fails; false where there are fewer changes.
fn replace_with_fault(path: &Path, new: &Made, nth: usize, fault: Fault, exchange: bool) -> bool {
    let count = Cell::new(0);
    let gate = |operation: Operation, _: &Path| {
        if operation == Operation::Exchange && !exchange {
            return Err(io::Error::from_raw_os_error(22)); // EINVAL, as of a file system that cannot
        }
        let this = count.replace(count.get() + 1);
        let fails = if fault == Fault::Crash { this >= nth } else { this == nth };
        match fails {
            true => Err(io::Error::other("no space left, say")),
            false => Ok(()),
        }
    };
    let result = write_to(&Disk::with_gate(&gate), path, &new.parts(), WeightType::F32);
    let reached = count.get() > nth;
    if let Err(error) = &result {
        assert!(reached && matches!(error, Error::Io { .. }), "{error}");
    }
    reached
}

#[test]
fn a_fault_at_any_change_to_the_disk_leaves_the_old_or_the_new_checkpoint() {
    let (old, new, third) = (Made::new(1), Made::new(2), Made::new(3));
    for exchange in [true, false] {
        for fault in [Fault::Error, Fault::Crash] {
            for nth in 0.. {
                let (_keep, path) = folder();
                old.write(&path);
                fs::write(path.join("README.md"), "kept").unwrap();
                let reached = replace_with_fault(&path, &new, nth, fault, exchange);
                let found =
                    read(&path, Device::Cpu).unwrap_or_else(|e| panic!("{exchange} {fault:?} {nth}: {e}"));
                assert!(old.is(&found) || new.is(&found), "{exchange} {fault:?} {nth}");
                assert_eq!(new.is(&found) && !reached, !reached);
                if fault == Fault::Error && !reached {
                    assert_eq!(beside(&path), ["model"]);
                }
                // The next write works, and cleans up.
                third.write(&path);
                assert!(third.is(&read(&path, Device::Cpu).unwrap()));
                assert_eq!(fs::read_to_string(path.join("README.md")).unwrap(), "kept");
                assert_eq!(beside(&path), ["model"], "{exchange} {fault:?} {nth}");
                if !reached {
                    assert!(nth > 15, "only {nth} changes");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_fault_while_the_first_checkpoint_is_written_leaves_none_or_the_whole() {
    let new = Made::new(2);
    for fault in [Fault::Error, Fault::Crash] {
        for nth in 0.. {
            let (_keep, path) = folder();
            let reached = replace_with_fault(&path, &new, nth, fault, true);
            match read(&path, Device::Cpu) {
                Ok(found) => assert!(new.is(&found)),
                Err(error) => assert!(reached && matches!(error, Error::Io { .. }), "{error}"),
            }
            new.write(&path);
            assert_eq!(beside(&path), ["model"]);
            if !reached {
                break;
            }
        }
    }
}

#[test]
fn an_unfinished_folder_of_a_living_writer_is_left_alone() {
    let (_keep, path) = folder();
    let (one, two) = (Made::new(1), Made::new(2));
    one.write(&path);
    let seen = RefCell::new(Vec::new());
    let gate = |operation: Operation, _: &Path| {
        if operation == Operation::Exchange && seen.borrow().is_empty() {
            // In the middle of one write, another one, to the same place.
            two.write(&path);
            seen.borrow_mut().extend(beside(&path));
        }
        Ok(())
    };
    let three = Made::new(3);
    write_to(&Disk::with_gate(&gate), &path, &three.parts(), WeightType::F32).unwrap();
    assert_eq!(seen.borrow().len(), 2, "{seen:?}");
    assert!(three.is(&read(&path, Device::Cpu).unwrap()));
    assert_eq!(beside(&path), ["model"]);
}

#[test]
fn writers_to_the_same_place_do_not_disturb_each_other() {
    let (_keep, path) = folder();
    Made::new(0).write(&path);
    fs::write(path.join("README.md"), "kept").unwrap();
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let path = &path;
            scope.spawn(move || {
                let made = Made::new(seed);
                (0..25).for_each(|_| made.write(path));
            });
        }
    });
    let found = read(&path, Device::Cpu).unwrap();
    assert!((0..3).any(|seed| Made::new(seed).is(&found)));
    assert_eq!(fs::read_to_string(path.join("README.md")).unwrap(), "kept");
    // What the last ones left to each other goes away with the next write.
    Made::new(0).write(&path);
    assert_eq!(beside(&path), ["model"]);
}

#[test]
fn readers_never_see_a_part_of_two_checkpoints() {
    let (_keep, path) = folder();
    let checkpoints: Vec<Made> = (0..4).map(Made::new).collect();
    checkpoints[0].write(&path);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Tensors are not Sync: the writer has checkpoints of its own.
            let checkpoints: Vec<Made> = (0..4).map(Made::new).collect();
            for i in 0..60 {
                checkpoints[i % 4].write(&path);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut reads = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let found = read(&path, Device::Cpu).unwrap();
            assert!(checkpoints.iter().any(|made| made.is(&found)));
            reads += 1;
        }
        assert!(reads > 0);
    });
}

/// Writes one checkpoint for every schedule and many networks, and has Python compare what it loads.
#[test]
#[ignore = "needs Python with diffusers: DIFFUSION_PYTHON=python cargo test --release --test checkpoint -- --ignored"]
fn diffusers_reads_what_is_written() {
    let python =
        std::env::var("DIFFUSION_PYTHON").expect("DIFFUSION_PYTHON names a Python that has diffusers");
    let folder = tempfile::tempdir().unwrap();
    let kinds = [
        BetaSchedule::Linear,
        BetaSchedule::ScaledLinear,
        BetaSchedule::Sigmoid,
        BetaSchedule::Cosine,
        BetaSchedule::CosineRamp,
        BetaSchedule::Given((1..=100).map(|i| f64::from(i) / 300.0).collect()),
    ];
    let goldens = Golden::group("unet");
    let networks = goldens.iter().filter(|(name, _)| name != "ddpm_cifar10_32");
    for (i, (name, golden)) in networks.enumerate() {
        let unet =
            diffusion::checkpoint::unet_from_json(&golden.description["config"], &golden.path).unwrap();
        let parameters = golden::formula_parameters(&unet);
        let kind = kinds[i % kinds.len()].clone();
        let beta_end = if kind == BetaSchedule::Cosine { 0.999 } else { 0.02 };
        let schedule = ScheduleConfig {
            kind,
            beta_start: 1e-4,
            beta_end,
            noise_steps: 100,
            rescale_zero_terminal_snr: i % 4 == 3,
        };
        let betas = NoiseSchedule::new(&schedule).unwrap().beta_schedule;
        let scheduler = scheduler(schedule);
        let parts =
            CheckpointRef { unet: &unet, parameters: &parameters, scheduler: &scheduler, training: None };
        let path = folder.path().join(name);
        write(&path, &parts, WeightType::F32).unwrap();
        let output = golden.array("output").shallow_clone();
        let mut expected = vec![
            ("x".to_owned(), tensor(100_000, &golden.integers("input_shape"), 2.0, 0.0)),
            ("timesteps".to_owned(), golden.array("timesteps").shallow_clone()),
            ("output".to_owned(), output),
            ("betas".to_owned(), Tensor::from_slice(&betas)),
        ];
        if let Some(labels) = golden.arrays.get("class_labels") {
            expected.push(("class_labels".to_owned(), labels.shallow_clone()));
        }
        Tensor::write_safetensors(&expected, path.join("expected.safetensors")).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check_in_diffusers.py");
    let status = std::process::Command::new(python).arg(script).arg(folder.path()).status().unwrap();
    assert!(status.success());
}
