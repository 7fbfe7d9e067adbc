//! One evaluation of google/ddpm-cifar10-32's network: libtorch's path for the whole batch, the same image by image, as
//! networks without a plan are evaluated so that an image does not depend on its batch, and the inference plan, alternately.
//!
//! With one thread (OMP_NUM_THREADS=1) the processor time is told as well, which other programs on the
//! machine disturb less.

mod clock;

use std::time::Instant;

use clock::{text, Clock};
use diffusion::unet::{DiffusionModel, InferencePlan, Parameters, PlanWeights, UnetConfig};
use tch::{Device, Kind, Tensor};

fn main() {
    let _no_grad = tch::no_grad_guard();
    let rounds: usize = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let mut config = UnetConfig::from_hidden_dims(32, 3, &[128, 256, 256, 256]).expect("widths");
    config.sample_size = 32;
    let parameters = Parameters::init(&config, 1, Device::Cpu).expect("weights");
    let model = DiffusionModel::new(&config, &parameters).expect("a model");
    let begin = Instant::now();
    let mut plan = InferencePlan::new(&model, 32, 32, PlanWeights::F32)
        .expect("a plan")
        .expect("a network that is covered");
    println!("the plan was made in {:.0} ms, {} MB", begin.elapsed().as_secs_f64() * 1e3, plan.bytes() >> 20);
    for batch in [1i64, 8] {
        let x = Tensor::randn([batch, 3, 32, 32], (Kind::Float, Device::Cpu));
        let timesteps = vec![500.0; batch as usize];
        let tensor = Tensor::from_slice(&timesteps).to_kind(Kind::Float);
        let (mut plain, mut alone, mut planned) = (Vec::new(), Vec::new(), Vec::new());
        let mut difference = 0f64;
        for _ in 0..rounds {
            let begin = Clock::start();
            let a = model.forward(&x, &tensor, None, None).expect("an output");
            plain.push(begin.seconds());
            let begin = Clock::start();
            for i in 0..batch {
                let _ = model
                    .forward(&x.narrow(0, i, 1), &tensor.narrow(0, i, 1), None, None)
                    .expect("an output");
            }
            alone.push(begin.seconds());
            let begin = Clock::start();
            let b = plan.forward(&model, &x, &timesteps, None).expect("an output");
            planned.push(begin.seconds());
            let largest = a.abs().max().double_value(&[]);
            difference = difference.max((a - b).abs().max().double_value(&[]) / largest);
        }
        println!("batch {batch}, difference {difference:.1e}");
        for (name, times) in [("libtorch", plain), ("image by image", alone), ("plan", planned)] {
            println!("  {name}: {}", text(&times));
        }
    }
}
