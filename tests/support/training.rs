//! Runs the training that a golden file describes, and compares every loss, the weights and their average.

use diffusion::checkpoint::unet_from_json;
use diffusion::schedule::Prediction;
use diffusion::training::trainer::{StepContext, Trainer};
use diffusion::training::{Optimizer, TrainingConfig};
use diffusion::unet::Parameters;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::golden::{
    difference, digest, digest_differences, formula_parameters, report, schedule, tensor, Golden,
};

/// Of the losses, relative to the largest.
const TOLERANCE: f64 = 2e-6;
/// Of the weights, relative to the largest of a tensor. Adam divides a gradient by its own size, so that the rounding of
/// f32 is seen where an element's gradient is small. A step that is wrong in an element moves it by some 4e-3.
const WEIGHTS_TOLERANCE: f64 = 1e-4;
/// The stream of the images of call 0.
const BATCHES: u32 = 300_000;

/// The fields of TrainingConfig that a golden describes.
pub fn training_config(training: &Value) -> TrainingConfig {
    let number = |name: &str| training[name].as_f64().unwrap();
    TrainingConfig {
        optimizer: match training["optimizer"].as_str().unwrap() {
            "adam" => Optimizer::Adam,
            "adamw" => Optimizer::AdamW,
            other => panic!("no optimizer is called {other}"),
        },
        learning_rate: number("learning_rate"),
        weight_decay: number("weight_decay"),
        gradient_clip: number("gradient_clip"),
        ema_decay: number("ema_decay"),
        ..TrainingConfig::default()
    }
}

/// Trains as the golden describes with `config`, prints the largest differences, and says whether one is too large.
pub fn compare_training(name: &str, golden: &Golden, config: &TrainingConfig) -> bool {
    let unet = unet_from_json(&golden.description["config"], &golden.path).unwrap();
    let schedule = schedule(&golden.description["schedule"]);
    let context = StepContext {
        config,
        schedule: &schedule,
        prediction: match golden.description["training"]["prediction"].as_str().unwrap() {
            "epsilon" => Prediction::Epsilon,
            "sample" => Prediction::Sample,
            "v_prediction" => Prediction::Velocity,
            other => panic!("no prediction is called {other}"),
        },
        seed: golden.description["seed"].as_u64().unwrap(),
        want_loss: true,
        class_labels: None,
        cancelled: &|| false,
    };
    let mut trainer = Trainer::new(&unet, formula_parameters(&unet), config, Device::Cpu).unwrap();
    let want = golden.array("losses");
    let calls = want.size()[0] as u32;
    let losses: Vec<f32> = (0..calls)
        .map(|call| {
            let images = tensor(BATCHES + call, &golden.integers("batch"), 1.0, 0.0);
            trainer.train_step(&images, &context).unwrap().unwrap()
        })
        .collect();
    let found = difference(&Tensor::from_slice(&losses).to_kind(Kind::Double), want);
    let mut failed = report(&format!("{name} {calls} losses"), found, TOLERANCE);
    failed |= report(
        &format!("{name} weights"),
        weights(&trainer.parameters, golden, "weights"),
        WEIGHTS_TOLERANCE,
    );
    assert_eq!(trainer.ema.is_some(), golden.arrays.contains_key("ema"), "{name}");
    if let Some(ema) = &trainer.ema {
        failed |= report(&format!("{name} EMA"), weights(ema, golden, "ema"), WEIGHTS_TOLERANCE);
    }
    failed
}

/// The largest difference of the weights. The bias of the keys cancels in the softmax and changes nothing: its gradient
/// is rounding alone, which Adam makes as large as any other, so it is left out.
fn weights(parameters: &Parameters, golden: &Golden, array: &str) -> f64 {
    let (names, tensors): (Vec<_>, Vec<_>) = parameters.trainable().unzip();
    let differences = digest_differences(&digest(tensors.into_iter()), golden.array(array));
    assert_eq!(differences.len(), names.len());
    let counted = names.iter().zip(differences).filter(|(name, _)| !name.ends_with("to_k.bias"));
    counted.map(|(_, difference)| difference).fold(0.0, f64::max)
}
