//! Ten optimizer steps with Min-SNR weights, the Huber loss, warm-up, cosine decay and gradient accumulation, against
//! goldens from PyTorch: see training_goldens.rs.

#[path = "support/golden.rs"]
mod golden;
#[path = "support/training.rs"]
mod training;

use diffusion::training::{Loss, TrainingConfig};
use golden::Golden;
use training::{compare_training, training_config};

#[test]
fn losses_and_weights_with_every_option_are_pytorchs() {
    let goldens = Golden::group("options_training");
    assert!(goldens.len() >= 8);
    let mut failed = false;
    for (name, golden) in goldens {
        let training = &golden.description["training"];
        let whole = |name: &str| training[name].as_u64().unwrap();
        let config = TrainingConfig {
            loss: match training["loss"].as_str().unwrap() {
                "mse" => Loss::Mse,
                "huber" => Loss::Huber,
                other => panic!("no loss is called {other}"),
            },
            huber_delta: training["huber_delta"].as_f64().unwrap(),
            min_snr_gamma: training["min_snr_gamma"].as_f64().unwrap(),
            warmup_steps: whole("warmup_steps"),
            decay_steps: whole("decay_steps"),
            accumulation_steps: whole("accumulation_steps"),
            ..training_config(training)
        };
        failed |= compare_training(&format!("options {name}"), &golden, &config);
    }
    assert!(!failed);
}
