//! Ten training steps against goldens: PyTorch's UNet2DModel and torch.optim, in f64, from the same weights and images.
//! Timesteps and noise are the library's own random numbers, which scripts/goldens/formulas.py makes a second time.

#[path = "support/golden.rs"]
mod golden;
#[path = "support/training.rs"]
mod training;

use diffusion::noise::{Domain, Stream};
use golden::{report, Golden};
use tch::{Kind, Tensor};
use training::{compare_training, training_config};

#[test]
fn losses_and_weights_of_ten_steps_are_pytorchs() {
    let goldens = Golden::group("training");
    assert!(goldens.len() >= 5);
    let mut failed = false;
    for (name, golden) in goldens {
        let config = training_config(&golden.description["training"]);
        failed |= compare_training(&format!("training {name}"), &golden, &config);
    }
    assert!(!failed);
}

#[test]
fn random_numbers_of_training_are_philox_and_box_muller() {
    let golden = Golden::read("noise_training");
    let names: Vec<(u64, u64, u32)> = serde_json::from_value(golden.description["names"].clone()).unwrap();
    let mut worst: f64 = 0.0;
    for (row, (seed, image, draw)) in names.into_iter().enumerate() {
        let stream = Stream::new(Domain::Train, seed, image);
        let want = golden.array("normals").get(row as i64);
        let mut normals = vec![0.0; want.numel()];
        stream.fill_normal(draw, &mut normals);
        worst = worst.max((Tensor::from_slice(&normals) - want).abs().max().double_value(&[]));
        assert!(normals.iter().all(|value| value.is_finite()));
        let timesteps = [1, 50, 1000].map(|count| stream.below(draw, count) as i64);
        let want = golden.array("timesteps").get(row as i64);
        assert_eq!(want.kind(), Kind::Int64);
        assert_eq!(timesteps[..], Vec::<i64>::try_from(want).unwrap());
    }
    assert!(!report("training noise", worst, 1e-6));
}
