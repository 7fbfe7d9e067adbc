//! One evaluation of google/ddpm-cifar10-32's network: the plain path and the inference plan, alternately.

use std::time::{Duration, Instant};

use diffusion::unet::{DiffusionModel, InferencePlan, Parameters, UnetConfig};
use tch::{Device, Kind, Tensor};

fn main() {
    let _no_grad = tch::no_grad_guard();
    let rounds: usize = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let mut config = UnetConfig::from_hidden_dims(32, 3, &[128, 256, 256, 256]).expect("widths");
    config.sample_size = 32;
    let parameters = Parameters::init(&config, 1, Device::Cpu).expect("weights");
    let model = DiffusionModel::new(&config, &parameters).expect("a model");
    let begin = Instant::now();
    let mut plan = InferencePlan::new(&model, 32, 32).expect("a plan").expect("a network that is covered");
    println!("the plan was made in {:.0} ms, {} MB", ms(begin.elapsed()), plan.bytes() >> 20);
    for batch in [1i64, 8] {
        let x = Tensor::randn([batch, 3, 32, 32], (Kind::Float, Device::Cpu));
        let timesteps = vec![500.0; batch as usize];
        let tensor = Tensor::from_slice(&timesteps).to_kind(Kind::Float);
        let (mut plain, mut planned) = (Vec::new(), Vec::new());
        let mut difference = 0f64;
        for _ in 0..rounds {
            let begin = Instant::now();
            let a = model.forward(&x, &tensor, None, None).expect("an output");
            plain.push(ms(begin.elapsed()));
            let begin = Instant::now();
            let b = plan.forward(&model, &x, &timesteps).expect("an output");
            planned.push(ms(begin.elapsed()));
            let largest = a.abs().max().double_value(&[]);
            difference = difference.max((a - b).abs().max().double_value(&[]) / largest);
        }
        println!("batch {batch}: plain {}, plan {}, difference {difference:.1e}", text(plain), text(planned));
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn text(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    format!("{:.1} ms (median {:.1})", times[0], times[times.len() / 2])
}
