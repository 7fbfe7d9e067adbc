//! An image does not depend on the batch that it is computed in: on the CPU bit for bit, for one thread and for two.
//! Continuous batching rests on this: whom a request is merged with must not show.
//!
//! tests/plan.rs has the same of the inference plan alone.

use diffusion::checkpoint::SchedulerConfig;
use diffusion::process::{DeviceChoice, DiffusionProcess, InferencePrecision, ProcessConfig};
use diffusion::training::TrainingConfig;
use diffusion::unet::{Activation, ClassEmbedding, UnetConfig};
use tch::{Device, Kind, Tensor};

fn process(unet: UnetConfig, num_threads: usize) -> DiffusionProcess {
    let config = ProcessConfig {
        unet,
        scheduler: SchedulerConfig::default(),
        training: TrainingConfig::default(),
        device: DeviceChoice::Cpu,
        num_threads,
        max_batch: 0,
        seed: 1,
        inference_precision: InferencePrecision::F32,
        deterministic: false,
    };
    DiffusionProcess::new(config).unwrap()
}

#[test]
fn an_image_is_the_same_in_any_batch() {
    let mut compared = 0;
    for threads in [1, 2] {
        // The last size has 4 tokens and one token where it has attention. SiLU networks have an inference plan, the
        // others have not.
        for (size, dims) in [(8, vec![8, 16]), (16, vec![32, 64, 64]), (4, vec![16, 16, 16])] {
            for (act, classes) in [(Activation::Silu, 0), (Activation::Relu, 0), (Activation::Silu, 3)] {
                let mut unet = UnetConfig::from_hidden_dims(size, 3, &dims).unwrap();
                unet.act = act;
                if classes > 0 {
                    unet.class_embedding = ClassEmbedding::Table(classes);
                }
                let process = process(unet, threads);
                let all = 35;
                let shape = [all, 3, size as i64, size as i64];
                let count = shape.iter().product::<i64>();
                let x = Tensor::arange(count, (Kind::Float, Device::Cpu)).sin().view(shape);
                let timesteps: Vec<f64> = (0..all).map(|i| (i * 25) as f64).collect();
                let labels: Vec<i64> = (0..all).map(|i| i % 3).collect();
                let denoise = |first: i64| {
                    let labels = (classes > 0).then(|| &labels[first as usize..]);
                    let part = x.narrow(0, first, all - first);
                    process.denoise(&part, &timesteps[first as usize..], labels).unwrap()
                };
                let whole = denoise(0);
                for batch in [1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 32] {
                    let part = denoise(all - batch);
                    let difference =
                        (whole.narrow(0, all - batch, batch) - part).abs().max().double_value(&[]);
                    let what = format!("{dims:?}, {act:?}, {classes} classes, {threads} threads");
                    assert_eq!(difference, 0.0, "{what}, the last {batch} images alone");
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} batches compared with a larger one");
}
