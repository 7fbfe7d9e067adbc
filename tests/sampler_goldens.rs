//! Sampler loops with handed-in noise, against goldens: the papers' formulas in f64, which
//! scripts/goldens/samplers.py has held against diffusers' schedulers, step by step.
//!
//! Where diffusers is wrong the golden is what is right, and the case says what diffusers does instead: see the field
//! `peer`.

#[path = "support/golden.rs"]
mod golden;

use diffusion::checkpoint::unet_from_json;
use diffusion::sampler::{Method, SamplerParams, Spacing, Variance};
use diffusion::schedule::{NoiseSchedule, Prediction};
use diffusion::unet::DiffusionModel;
use golden::{
    cases, difference, formula_parameters, report, schedule, tensor, Golden, IMAGES_STREAM, MODES_STREAM,
    NOISE_STREAM,
};
use serde_json::Value;
use tch::{Kind, Tensor};

/// Of x in f32.
const TOLERANCE: f64 = 2e-5;
/// Of x in f64: what is left is the order of operations.
const EXACT_TOLERANCE: f64 = 1e-9;

fn params(case: &Value) -> SamplerParams {
    let text = |name: &str| case[name].as_str().unwrap();
    let number = |name: &str| case[name].as_f64().unwrap();
    let flag = |name: &str| case[name].as_bool().unwrap();
    SamplerParams {
        method: match text("method") {
            "ddpm" => Method::Ddpm,
            "ddim" => Method::Ddim,
            "dpmpp_2m" => Method::DpmSolverPp2M,
            "dpmpp_2m_sde" => Method::DpmSolverPp2MSde,
            "unipc" => Method::UniPc,
            "euler" => Method::Euler,
            "heun" => Method::Heun,
            other => panic!("no method is called {other}"),
        },
        steps: case["steps"].as_u64().unwrap() as usize,
        eta: number("eta"),
        spacing: match text("spacing") {
            "leading" => Spacing::Leading,
            "trailing" => Spacing::Trailing,
            "linspace" => Spacing::Linspace,
            "karras" => Spacing::Karras,
            other => panic!("no spacing is called {other}"),
        },
        variance: match text("variance") {
            "fixed_small" => Variance::FixedSmall,
            "fixed_large" => Variance::FixedLarge,
            other => panic!("no variance is called {other}"),
        },
        clip_sample: flag("clip_sample"),
        clip_sample_range: number("clip_sample_range"),
        use_clipped_model_output: flag("use_clipped_model_output"),
        dynamic_thresholding: case["dynamic_thresholding"].as_f64(),
        prediction: match text("prediction") {
            "epsilon" => Prediction::Epsilon,
            "sample" => Prediction::Sample,
            "v_prediction" => Prediction::Velocity,
            other => panic!("no prediction is called {other}"),
        },
        steps_offset: case["steps_offset"].as_u64().unwrap() as usize,
    }
}

/// samplers.py's denoiser: the exact one of data whose pixels are near plus or minus `mode`, plus an error. In f64.
fn denoiser(x: &Tensor, timestep: f64, schedule: &NoiseSchedule, prediction: Prediction) -> Tensor {
    const SPREAD: f64 = 0.3;
    let abar = schedule.alpha_cumprod_at(timestep).unwrap();
    let (alpha, sigma) = (abar.sqrt(), (1.0 - abar).sqrt());
    let mode = tensor(MODES_STREAM, &x.size()[1..], 1.0, 0.0).to_kind(Kind::Double);
    let variance = (alpha * SPREAD).powi(2) + sigma * sigma;
    let side = (&mode * x * (alpha / variance)).tanh() * &mode;
    let eps = (x - &side * alpha) * (sigma / variance);
    let x0 = (x * (alpha * SPREAD * SPREAD) + &side * (sigma * sigma)) / variance;
    let exact = match prediction {
        Prediction::Epsilon => eps,
        Prediction::Sample => x0,
        Prediction::Velocity => eps * alpha - x0 * sigma,
    };
    exact + (x * 3.0 + 0.01 * timestep).sin() * 0.1
}

/// The largest difference of a loop in `kind`: of the x of the evaluations that the file holds, each relative to its
/// largest value, and of the last estimate of x0.
fn run(
    golden: &Golden,
    name: &str,
    case: &Value,
    kind: Kind,
    network: impl Fn(&Tensor, f64, &NoiseSchedule, Prediction) -> Tensor,
) -> f64 {
    let schedule = schedule(&case["schedule"]);
    let params = params(case);
    let mut sampler = params.build(&schedule).unwrap();
    let shape = golden.integers("shape");
    let timesteps = Vec::<f64>::try_from(golden.array(&format!("{name}.timesteps"))).unwrap();
    let rows = Vec::<i64>::try_from(golden.array(&format!("{name}.rows"))).unwrap();
    assert_eq!(sampler.evaluations(), timesteps.len(), "{name}");
    let mut x = tensor(IMAGES_STREAM, &shape, 3f64.sqrt(), 0.0).to_kind(kind);
    let mut worst: f64 = 0.0;
    for (evaluation, &wanted) in timesteps.iter().enumerate() {
        let timestep = sampler.timestep().unwrap();
        // Whole timesteps are exact; those of Karras levels follow from powers and logarithms.
        let slack = if wanted.fract() == 0.0 { 0.0 } else { 1e-9 * wanted };
        assert!((timestep - wanted).abs() <= slack, "{name}: timestep {timestep} is not {wanted}");
        if let Some(row) = rows.iter().position(|&row| row == evaluation as i64) {
            worst = worst.max(difference(&x, &golden.array(&format!("{name}.x")).get(row as i64)));
        }
        let output = network(&x, timestep, &schedule, params.prediction).to_kind(kind);
        let mut noise =
            || Ok(tensor(NOISE_STREAM + evaluation as u32, &shape, 3f64.sqrt(), 0.0).to_kind(kind));
        x = sampler.step(&x, &output, &mut noise).unwrap();
    }
    assert_eq!(sampler.timestep(), None);
    let x0 = sampler.last_x0().unwrap();
    assert!(x.equal(&x0.clamp(-1.0, 1.0)), "{name}: the images are not the clamped last estimate");
    worst.max(difference(x0, golden.array(&format!("{name}.x0"))))
}

#[test]
fn loops_are_those_of_the_papers_and_of_diffusers_where_it_is_right() {
    let (mut failed, mut compared, mut wrong) = (false, 0, 0);
    for (method, golden) in Golden::group("sampler") {
        if method.starts_with("unet_") {
            continue;
        }
        for (name, case) in cases(&golden) {
            let network = |x: &Tensor, timestep: f64, schedule: &NoiseSchedule, prediction| {
                denoiser(&x.to_kind(Kind::Double), timestep, schedule, prediction)
            };
            let single = run(&golden, &name, &case, Kind::Float, network);
            let double = run(&golden, &name, &case, Kind::Double, network);
            failed |= report(&format!("{method} {name}"), single, TOLERANCE);
            failed |= report(&format!("{method} {name} in f64"), double, EXACT_TOLERANCE);
            let peer = case["peer"].as_str().unwrap();
            if peer.starts_with("wrong") {
                println!("    where diffusers is {peer}");
                wrong += 1;
            }
            compared += 1;
        }
    }
    assert!(!failed && compared >= 100 && wrong >= 10, "{compared} loops, diffusers wrong in {wrong}");
}

#[test]
fn loops_with_a_real_network_are_those_of_diffusers() {
    let golden = Golden::read("sampler_unet_ddpm");
    let unet = Golden::read(golden.description["unet"].as_str().unwrap());
    let config = unet_from_json(&unet.description["config"], &unet.path).unwrap();
    let parameters = formula_parameters(&config);
    let model = DiffusionModel::new(&config, &parameters).unwrap();
    let mut failed = false;
    for (name, case) in cases(&golden) {
        let network = |x: &Tensor, timestep: f64, _: &NoiseSchedule, _: Prediction| {
            let timesteps = Tensor::full([x.size()[0]], timestep, (Kind::Float, x.device()));
            tch::no_grad(|| model.forward(x, &timesteps, None, None).unwrap())
        };
        failed |=
            report(&format!("U-Net {name}"), run(&golden, &name, &case, Kind::Float, network), TOLERANCE);
    }
    assert!(!failed);
}
