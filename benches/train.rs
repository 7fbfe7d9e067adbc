//! One training step (batch 32, AdamW, mean squared error) of the two networks that docs/BENCHMARKS.md speaks of, in f32 and
//! with bf16, and where its time goes. What is compared with it is PyTorch's step of the same network: `make bench`.
//!
//! NETS=cifar,textures, PRECISIONS=f32,bf16, ROUNDS and BATCH choose. The processor time of all threads is told beside
//! the wall's, since other programs on the machine disturb it less; it compares where OMP_NUM_THREADS is 1.

use std::time::Instant;

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

/// Time by the wall and by all of the process's threads.
struct Clock(Instant, f64);

impl Clock {
    fn start() -> Self {
        Clock(Instant::now(), busy_seconds())
    }

    fn seconds(&self) -> (f64, f64) {
        (self.0.elapsed().as_secs_f64(), busy_seconds() - self.1)
    }
}

fn busy_seconds() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let busy = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    busy.sum::<f64>() / 1e9
}

fn text(times: &[(f64, f64)]) -> String {
    let sorted = |which: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = times.iter().map(which).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (wall, busy) = (sorted(|t| t.0), sorted(|t| t.1));
    let middle = wall.len() / 2;
    format!("{:.3} s (median {:.3}; processor {:.3}, {:.3})", wall[0], wall[middle], busy[0], busy[middle])
}
