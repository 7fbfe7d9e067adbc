//! One training step (batch 32, AdamW, mean squared error) of the two networks that docs/BENCHMARKS.md speaks of, in f32 and
//! with bf16, and where its time goes. What is compared with it is PyTorch's step of the same network: `make bench`.
//!
//! NETS=cifar,textures, PRECISIONS=f32,bf16, ROUNDS and BATCH choose. The processor time of all threads is told beside
//! the wall's, since other programs on the machine disturb it less; it compares where OMP_NUM_THREADS is 1.

mod clock;

use clock::{text, Clock};
use diffusion::schedule::{NoiseSchedule, Prediction, ScheduleConfig};
use diffusion::training::adam::Adam;
use diffusion::training::trainer::{StepContext, Trainer};
use diffusion::training::{Optimizer, Precision, TrainingConfig};
use diffusion::unet::{DiffusionModel, Parameters, UnetConfig};
use tch::{Device, Kind, Tensor};

fn main() {
    let choice = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let number = |name: &str, default: usize| choice(name, "").parse().unwrap_or(default);
    let (rounds, batch) = (number("ROUNDS", 5), number("BATCH", 32) as i64);
    for net in choice("NETS", "cifar,textures").split(',') {
        let (size, widths): (i64, &[usize]) = match net {
            "cifar" => (32, &[128, 256, 256, 256]),
            "textures" => (64, &[32, 64, 128]),
            other => panic!("NETS names {other}: it may name cifar and textures"),
        };
        for precision in choice("PRECISIONS", "f32,bf16").split(',') {
            let mixed_precision = match precision {
                "f32" => Precision::F32,
                "bf16" => Precision::Bf16,
                other => panic!("PRECISIONS names {other}: it may name f32 and bf16"),
            };
            let config = TrainingConfig {
                mixed_precision,
                optimizer: Optimizer::AdamW,
                ema_decay: if number("EMA", 0) == 1 { 0.999 } else { 0.0 },
                ..TrainingConfig::default()
            };
            measure(&format!("{net} {precision}"), size, widths, &config, batch, rounds);
        }
    }
}

fn measure(name: &str, size: i64, widths: &[usize], config: &TrainingConfig, batch: i64, rounds: usize) {
    let unet = UnetConfig::from_hidden_dims(size as usize, 3, widths).expect("widths");
    let parameters = Parameters::init(&unet, 1, Device::Cpu).expect("weights");
    let schedule = NoiseSchedule::new(&ScheduleConfig::default()).expect("a schedule");
    let mut trainer = Trainer::new(&unet, parameters, config, Device::Cpu).expect("a trainer");
    let context = StepContext {
        class_labels: None,
        config,
        schedule: &schedule,
        prediction: Prediction::Epsilon,
        seed: 1,
        want_loss: true,
        cancelled: &|| false,
    };
    let cpu = (Kind::Float, Device::Cpu);
    let images = Tensor::rand([batch, 3, size, size], cpu) * 2.0 - 1.0;
    let mut times = Vec::new();
    for _ in 0..rounds + 1 {
        let clock = Clock::start();
        trainer.train_step(&images, &context).expect("a loss");
        times.push(clock.seconds());
    }
    println!("{name}, batch {batch}: a step {}", text(&times[1..]));
    if config.mixed_precision == Precision::F32 {
        parts(&trainer, &unet, config, &images, rounds);
    }
}

/// The forward pass, and Adam, alone; the rest of a step is backpropagation.
fn parts(trainer: &Trainer, unet: &UnetConfig, config: &TrainingConfig, images: &Tensor, rounds: usize) {
    let model = DiffusionModel::new(unet, &trainer.parameters).expect("a model");
    let timesteps = Tensor::full([images.size()[0]], 500.0, (Kind::Float, Device::Cpu));
    let weights: Vec<Tensor> =
        trainer.parameters.trainable().map(|(_, tensor)| tensor.detach().copy()).collect();
    let mut adam = Adam::new(&weights, 1e-4, Device::Cpu).expect("an optimizer");
    let (mut forward, mut update) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let clock = Clock::start();
        let _ = model.forward(images, &timesteps, None, None).expect("an output");
        forward.push(clock.seconds());
        let gradients: Vec<Tensor> = weights.iter().map(|weight| weight.ones_like()).collect();
        let clock = Clock::start();
        adam.update(&weights, &gradients, config, 1.0, None).expect("an update");
        update.push(clock.seconds());
    }
    println!("  of it the forward pass {}", text(&forward));
    println!("  of it Adam {}", text(&update));
}
