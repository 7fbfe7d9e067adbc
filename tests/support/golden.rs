//! Reads the golden files that scripts/make_goldens.py makes, and repeats the integer formula by which both
//! sides make weights and inputs, so that neither has to be stored.
#![allow(dead_code)] // every test file uses its own part of this

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use diffusion::schedule::{BetaSchedule, NoiseSchedule, ScheduleConfig};
use diffusion::unet::{ParameterSpec, Parameters, UnetConfig};
use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

// make_goldens.py's streams of formula values; those below are the numbers of parameters.
pub const INPUT_STREAM: u32 = 100_000;
pub const TARGET_STREAM: u32 = 100_001;
pub const LABEL_STREAM: u32 = 100_002;
pub const IMAGES_STREAM: u32 = 100_003;
pub const MODES_STREAM: u32 = 100_004;
pub const NOISE_STREAM: u32 = 200_000;

/// One golden file.
pub struct Golden {
    pub path: PathBuf,
    pub arrays: HashMap<String, Tensor>,
    pub description: serde_json::Value,
}

impl Golden {
    /// The file tests/goldens/`name`.safetensors.
    pub fn read(name: &str) -> Golden {
        let path = folder().join(format!("{name}.safetensors"));
        let bytes =
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}: run make goldens", path.display()));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let text = metadata.metadata().as_ref().and_then(|entries| entries.get("golden")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let arrays = tensors.iter().map(|(key, view)| {
            let size: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::F64 => Kind::Double,
                Dtype::I64 => Kind::Int64,
                other => panic!("{key} is {other:?}"),
            };
            (key.to_owned(), Tensor::from_data_size(view.data(), &size, kind))
        });
        Golden {
            arrays: arrays.collect(),
            description: serde_json::from_str(text).unwrap(),
            path: path.clone(),
        }
    }

    /// All golden files of a group, as (case, file), sorted.
    pub fn group(group: &str) -> Vec<(String, Golden)> {
        let prefix = format!("{group}_");
        let mut cases: Vec<String> = std::fs::read_dir(folder())
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_prefix(&prefix)?.strip_suffix(".safetensors")?.to_owned()))
            .collect();
        cases.sort();
        cases.into_iter().map(|case| (case.clone(), Golden::read(&format!("{prefix}{case}")))).collect()
    }

    /// An array of the file.
    pub fn array(&self, name: &str) -> &Tensor {
        self.arrays.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.path.display()))
    }

    /// A list of integers of the description.
    pub fn integers(&self, name: &str) -> Vec<i64> {
        serde_json::from_value(self.description[name].clone()).unwrap()
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// The hash of make_goldens.py: value `index` of `stream`, in [-1, 1).
pub fn formula(stream: u32, index: u32) -> f32 {
    let mut x = index.wrapping_add(stream.wrapping_mul(0x9E37_79B1));
    for (shift, factor) in [(16, 0x7FEB_352D_u32), (15, 0x846C_A68B)] {
        x ^= x >> shift;
        x = x.wrapping_mul(factor);
    }
    x ^= x >> 16;
    (x >> 8) as f32 * 2f32.powi(-23) - 1.0
}

/// A tensor of formula values times a scale, plus an offset.
pub fn tensor(stream: u32, shape: &[i64], scale: f64, offset: f32) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f32> = (0..count as u32).map(|i| formula(stream, i) * scale as f32 + offset).collect();
    Tensor::from_slice(&values).view_(shape)
}

/// make_goldens.py's weights for the `index`-th parameter.
fn formula_parameter(index: usize, spec: &ParameterSpec) -> Tensor {
    let stream = index as u32;
    let shape = &spec.shape;
    if spec.name == "time_proj.weight" {
        tensor(stream, shape, 16.0, 0.0)
    } else if shape.len() == 1 && spec.name.contains("norm") && spec.name.ends_with("weight") {
        tensor(stream, shape, 0.25, 1.0)
    } else if shape.len() == 1 {
        tensor(stream, shape, 0.25, 0.0)
    } else {
        let fan_in: i64 = shape[1..].iter().product();
        tensor(stream, shape, 1.0 / (fan_in as f64).sqrt(), 0.0)
    }
}

/// make_goldens.py's weights for a whole network.
pub fn formula_parameters(config: &UnetConfig) -> Parameters {
    let specs = config.parameter_specs().unwrap();
    let tensors = specs.iter().enumerate().map(|(i, spec)| (spec.name.clone(), formula_parameter(i, spec)));
    Parameters::from_tensors(config, tensors.collect()).unwrap()
}

/// The schedule that scripts/goldens/schedules.py describes so.
pub fn schedule(description: &serde_json::Value) -> NoiseSchedule {
    let number = |name: &str| description[name].as_f64().unwrap();
    let noise_steps = description["noise_steps"].as_u64().unwrap() as usize;
    let kind = match description["kind"].as_str().unwrap() {
        "linear" => BetaSchedule::Linear,
        "scaled_linear" => BetaSchedule::ScaledLinear,
        "sigmoid" => BetaSchedule::Sigmoid,
        "cosine" => BetaSchedule::Cosine,
        "cosine_ramp" => BetaSchedule::CosineRamp,
        "given" => {
            let u = |t: usize| t as f64 / noise_steps as f64;
            let beta = |t: usize| 0.01 + 0.009 * (9.0 * u(t)).sin() + 0.01 * u(t);
            BetaSchedule::Given((0..noise_steps).map(beta).collect())
        }
        other => panic!("no schedule is called {other}"),
    };
    let config = ScheduleConfig {
        kind,
        beta_start: number("beta_start"),
        beta_end: number("beta_end"),
        noise_steps,
        rescale_zero_terminal_snr: description["rescale_zero_terminal_snr"].as_bool().unwrap(),
    };
    NoiseSchedule::new(&config).unwrap()
}

/// The cases that a file of several describes, as (name, description), sorted.
pub fn cases(golden: &Golden) -> Vec<(String, serde_json::Value)> {
    let cases = golden.description["cases"].as_object().unwrap();
    cases.iter().map(|(name, case)| (name.clone(), case.clone())).collect()
}

/// make_goldens.py's digest of tensors, [number of tensors, 19].
pub fn digest<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Tensor {
    let row = |tensor: &Tensor| {
        let flat = tensor.detach().to_kind(Kind::Double).flatten(0, -1);
        let count = flat.numel() as i64;
        let picked: Vec<i64> = (0..16).map(|i| i * count / 16).collect();
        let direction = self::tensor(TARGET_STREAM, &[count], 1.0, 0.0).to_kind(Kind::Double);
        let whole = Tensor::stack(&[flat.abs().max(), flat.norm(), flat.dot(&direction)], 0);
        Tensor::cat(&[flat.index_select(0, &Tensor::from_slice(&picked)), whole], 0)
    };
    Tensor::stack(&tensors.map(row).collect::<Vec<_>>(), 0)
}

/// The largest difference of each tensor's digest: of values relative to the largest, of norm and projection relative
/// to the norm.
pub fn digest_differences(got: &Tensor, want: &Tensor) -> Vec<f64> {
    assert_eq!(got.size(), want.size());
    let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
    let apart = (got - &want).abs();
    let worst = |from: i64, to: i64, scale: i64| {
        apart.slice(1, from, to, 1).amax([1i64], false) / want.select(1, scale).clamp_min(f64::MIN_POSITIVE)
    };
    let both = worst(0, 17, 16).maximum(&worst(17, 19, 17));
    // NaN must not pass for a small difference.
    Vec::<f64>::try_from(both.nan_to_num(f64::INFINITY, f64::INFINITY, f64::INFINITY)).unwrap()
}

/// Prints a line of the table of differences, and says whether it is one too large.
pub fn report(name: &str, found: f64, tolerance: f64) -> bool {
    let good = found < tolerance;
    println!("{name:44} {found:.1e}{}", if good { "" } else { "  TOO LARGE" });
    !good
}

/// The largest difference, relative to the largest value of `want`.
pub fn difference(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size());
    let (got, want) = (got.detach().to_kind(Kind::Double), want.to_kind(Kind::Double));
    let largest = want.abs().max().double_value(&[]);
    // NaN must not pass for a small difference.
    let worst = (got - &want).abs().max().double_value(&[]) / largest.max(f64::MIN_POSITIVE);
    if worst.is_nan() {
        f64::INFINITY
    } else {
        worst
    }
}
