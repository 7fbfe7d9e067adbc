//! Samplers against what is known without a network: the papers' formulas, step by step, and data whose best
//! denoiser can be written down. For x0 ~ N(mu, s^2) the noise in x that is to be expected is eps*(x) =
//! sqrt(1-abar) (x - sqrt(abar) mu) / (abar s^2 + 1 - abar), and the probability flow keeps (x - sqrt(abar) mu)
//! / sqrt(abar s^2 + 1 - abar) as it is. All in f64, so that the order of a solver can be seen.

use diffusion::sampler::{Method, Sampler, SamplerParams, Spacing, Variance};
use diffusion::schedule::{BetaSchedule, NoiseSchedule, Prediction, ScheduleConfig};
use diffusion::{Error, Result};
use tch::{Device, Kind, Tensor};

const METHODS: [Method; 7] = [
    Method::Ddpm,
    Method::Ddim,
    Method::DpmSolverPp2M,
    Method::DpmSolverPp2MSde,
    Method::UniPc,
    Method::Euler,
    Method::Heun,
];
const SPACINGS: [Spacing; 4] = [Spacing::Leading, Spacing::Trailing, Spacing::Linspace, Spacing::Karras];
const PREDICTIONS: [Prediction; 3] = [Prediction::Epsilon, Prediction::Sample, Prediction::Velocity];

const MU: f64 = 0.1;
const S: f64 = 0.3;

fn schedule(kind: BetaSchedule, beta_end: f64, noise_steps: usize, zero_snr: bool) -> NoiseSchedule {
    let config =
        ScheduleConfig { kind, beta_start: 1e-4, beta_end, noise_steps, rescale_zero_terminal_snr: zero_snr };
    NoiseSchedule::new(&config).expect("a valid schedule")
}

fn linear() -> NoiseSchedule {
    schedule(BetaSchedule::Linear, 0.02, 1000, false)
}

/// The parameters of most tests here: nothing is clipped, so that everything is linear.
fn plain(method: Method, steps: usize, spacing: Spacing) -> SamplerParams {
    SamplerParams { spacing, clip_sample: false, ..SamplerParams::new(method, steps) }
}

fn row(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).view([1, 1, 1, values.len() as i64])
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).expect("numbers")
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

fn brief(errors: &[f64]) -> String {
    errors.iter().map(|error| format!("{error:.1e} ")).collect()
}

fn no_noise() -> Result<Tensor> {
    Err(Error::Internal("a deterministic sampler drew noise".to_owned()))
}

/// The variance of x at `abar`, for the Gaussian data.
fn variance(abar: f64) -> f64 {
    abar * S * S + 1.0 - abar
}

/// The best possible network for the Gaussian data, saying what `prediction` wants.
fn gaussian(x: &Tensor, abar: f64, prediction: Prediction) -> Tensor {
    let (alpha, sigma) = (abar.sqrt(), (1.0 - abar).sqrt());
    let centred = (x - alpha * MU) / variance(abar);
    let (eps, x0) = (&centred * sigma, centred * (alpha * S * S) + MU);
    match prediction {
        Prediction::Epsilon => eps,
        Prediction::Sample => x0,
        Prediction::Velocity => eps * alpha - x0 * sigma,
    }
}

/// Samples the Gaussian data from `x` to the end.
fn sample(
    params: &SamplerParams,
    schedule: &NoiseSchedule,
    x: &Tensor,
    noise: &mut dyn FnMut() -> Result<Tensor>,
) -> Tensor {
    let mut sampler = params.build(schedule).expect("a sampler");
    let mut x = x.shallow_clone();
    let mut evaluations = 0;
    while let Some(timestep) = sampler.timestep() {
        let abar = schedule.alpha_cumprod_at(timestep).expect("a timestep of the schedule");
        x = sampler.step(&x, &gaussian(&x, abar, params.prediction), noise).expect("a step");
        evaluations += 1;
    }
    assert_eq!(evaluations, sampler.evaluations());
    x
}

/// The timesteps at which the network is asked.
fn timesteps(params: &SamplerParams, schedule: &NoiseSchedule) -> Vec<f64> {
    let mut sampler = params.build(schedule).expect("a sampler");
    let mut x = row(&[0.5]);
    let mut list = Vec::new();
    while let Some(timestep) = sampler.timestep() {
        list.push(timestep);
        x = sampler.step(&x, &(&x * 0.5), &mut || Ok(row(&[0.25]))).expect("a step");
    }
    list
}

/// abar at the first and the last timestep that the network is asked about.
fn ends(params: &SamplerParams, schedule: &NoiseSchedule) -> (f64, f64) {
    let list = timesteps(params, schedule);
    let abar = |timestep: Option<&f64>| schedule.alpha_cumprod_at(*timestep.expect("one")).expect("in range");
    (abar(list.first()), abar(list.last()))
}

#[test]
fn ddpm_is_its_formula_at_every_step() {
    for (steps, spacing) in [(1000, Spacing::Leading), (30, Spacing::Trailing), (7, Spacing::Linspace)] {
        for variance in [Variance::FixedSmall, Variance::FixedLarge] {
            let schedule = linear();
            let params = SamplerParams { variance, clip_sample: true, ..plain(Method::Ddpm, steps, spacing) };
            let list = timesteps(&params, &schedule);
            let mut sampler = params.build(&schedule).expect("a sampler");
            for (i, &t) in list.iter().enumerate() {
                let (x, eps, z) = (0.7, -0.4 + 1e-3 * i as f64, 1.3);
                let abar_t = schedule.alpha_cumprod[t as usize];
                let abar_p = list.get(i + 1).map_or(1.0, |&p| schedule.alpha_cumprod[p as usize]);
                let (a, x0) = (abar_t / abar_p, (x - (1.0 - abar_t).sqrt() * eps) / abar_t.sqrt());
                let x0 = x0.clamp(-1.0, 1.0);
                let b = 1.0 - a;
                let mean =
                    abar_p.sqrt() * b / (1.0 - abar_t) * x0 + a.sqrt() * (1.0 - abar_p) / (1.0 - abar_t) * x;
                let spread = match variance {
                    Variance::FixedSmall => (1.0 - abar_p) / (1.0 - abar_t) * b,
                    Variance::FixedLarge => b,
                };
                let last = i + 1 == list.len();
                let wanted = if last { x0 } else { mean + spread.sqrt() * z };
                let mut draws = 0;
                let mut noise = || {
                    draws += 1;
                    Ok(row(&[z]))
                };
                let got = values(&sampler.step(&row(&[x]), &row(&[eps]), &mut noise).expect("a step"))[0];
                assert!((got - wanted).abs() < 1e-9, "t {t}: {got} is not {wanted}");
                assert_eq!(draws, usize::from(!last), "noise at every step but the last");
            }
        }
    }
}

#[test]
fn ddim_is_its_formula_at_every_step() {
    let schedule = linear();
    for (steps, spacing) in [(50, Spacing::Leading), (30, Spacing::Trailing), (48, Spacing::Linspace)] {
        for (eta, clip_sample, use_clipped_model_output) in [
            (0.0, true, false),
            (0.0, false, false),
            (0.3, true, true),
            (1.0, true, false),
            (1.0, false, true),
        ] {
            let plain = plain(Method::Ddim, steps, spacing);
            let params = SamplerParams { eta, clip_sample, use_clipped_model_output, ..plain };
            let list = timesteps(&params, &schedule);
            let mut sampler = params.build(&schedule).expect("a sampler");
            for (i, &t) in list.iter().enumerate() {
                let (x, mut eps, z) = (0.7, -0.9 + 0.04 * i as f64, 1.3);
                let abar_t = schedule.alpha_cumprod[t as usize];
                let abar_p = list.get(i + 1).map_or(1.0, |&p| schedule.alpha_cumprod[p as usize]);
                let mut x0 = (x - (1.0 - abar_t).sqrt() * eps) / abar_t.sqrt();
                if clip_sample {
                    x0 = x0.clamp(-1.0, 1.0);
                }
                if use_clipped_model_output {
                    eps = (x - abar_t.sqrt() * x0) / (1.0 - abar_t).sqrt();
                }
                let sigma = eta * ((1.0 - abar_p) / (1.0 - abar_t) * (1.0 - abar_t / abar_p)).sqrt();
                let mut wanted = abar_p.sqrt() * x0 + (1.0 - abar_p - sigma * sigma).sqrt() * eps + sigma * z;
                if i + 1 == list.len() {
                    wanted = wanted.clamp(-1.0, 1.0);
                }
                let told = row(&[-0.9 + 0.04 * i as f64]);
                let mut noise = || if eta > 0.0 { Ok(row(&[z])) } else { no_noise() };
                let got = values(&sampler.step(&row(&[x]), &told, &mut noise).expect("a step"))[0];
                assert!((got - wanted).abs() < 1e-8, "t {t}, eta {eta}: {got} is not {wanted}");
            }
        }
    }
}

/// The errors of `params` against the exact solution of the probability flow, for each number of steps.
fn errors(method: Method, spacing: Spacing, numbers: &[usize]) -> Vec<f64> {
    let schedule = linear();
    let x = row(&[-1.5, -0.3, 0.4, 1.1, 2.0]);
    let error = |&steps: &usize| {
        let params = plain(method, steps, spacing);
        let (first, last) = ends(&params, &schedule);
        // The flow, exactly, to the last level at which the network is asked; from there every solver jumps to x0.
        let unit = (&x - first.sqrt() * MU) / variance(first).sqrt();
        let exact = gaussian(&(unit * variance(last).sqrt() + last.sqrt() * MU), last, Prediction::Sample);
        distance(&sample(&params, &schedule, &x, &mut no_noise), &exact)
    };
    numbers.iter().map(error).collect()
}

#[test]
fn solvers_converge_at_their_order() {
    for (method, order) in [
        (Method::Ddim, 1.0),
        (Method::Euler, 1.0),
        (Method::DpmSolverPp2M, 2.0),
        (Method::UniPc, 2.0),
        (Method::Heun, 2.0),
    ] {
        let errors = errors(method, Spacing::Karras, &[20, 40, 80, 160, 320]);
        let measured: Vec<f64> = errors.windows(2).map(|pair| (pair[0] / pair[1]).log2()).collect();
        println!("{method:?}: errors {}, orders {measured:.2?}", brief(&errors));
        let last = measured.last().copied().expect("orders");
        assert!(last > order - 0.1, "{method:?} converges at order {last}, not {order}");
    }
}

/// Whole timesteps cannot be halved for long, and the last of them moves with their number: no order shows, but
/// the error must go.
#[test]
fn solvers_converge_on_every_spacing() {
    for spacing in SPACINGS {
        for method in [Method::Ddim, Method::Euler, Method::DpmSolverPp2M, Method::UniPc, Method::Heun] {
            let errors = errors(method, spacing, &[10, 25, 60, 150, 333]);
            println!("{method:?} {spacing:?}: {}", brief(&errors));
            let largest = errors.iter().copied().fold(0.0, f64::max);
            assert!(errors[4] < largest / 4.0 && errors[4] < 0.01, "{method:?} {spacing:?}: {errors:?}");
        }
    }
}

/// Mean and variance of a stochastic sampler's results for the Gaussian data, exactly: all is linear, so each
/// noise value that is drawn gets a pixel of its own, in which nothing else is drawn, and shows its share
/// there.
fn moments(params: &SamplerParams, schedule: &NoiseSchedule) -> (f64, f64) {
    let count = params.steps;
    let (first, _) = ends(params, schedule);
    let unit = |pixel: usize, size: f64| {
        let mut values = vec![0.0; count + 1];
        values[pixel] = size;
        row(&values)
    };
    let mut draws = 0;
    // Pixel 0 shows the mean, pixel 1 the starting noise.
    let start = unit(1, variance(first).sqrt()) + first.sqrt() * MU;
    let result = values(&sample(params, schedule, &start, &mut || {
        draws += 1;
        Ok(unit(draws + 1, 1.0))
    }));
    (result[0], result[1..].iter().map(|value| (value - result[0]).powi(2)).sum())
}

#[test]
fn stochastic_samplers_have_the_right_moments() {
    let schedule = linear();
    let ddim = |eta| SamplerParams { eta, ..plain(Method::Ddim, 1, Spacing::Trailing) };
    for (name, params) in [
        ("DDPM", plain(Method::Ddpm, 1, Spacing::Trailing)),
        ("DDIM, eta 0.5", ddim(0.5)),
        ("DDIM, eta 1", ddim(1.0)),
        ("Euler ancestral", SamplerParams { eta: 1.0, ..plain(Method::Euler, 1, Spacing::Karras) }),
        ("2M SDE", plain(Method::DpmSolverPp2MSde, 1, Spacing::Karras)),
    ] {
        let error = |steps| {
            let params = SamplerParams { steps, ..params };
            let (mean, var) = moments(&params, &schedule);
            let (_, last) = ends(&params, &schedule);
            // The last step gives the mean of x0 given x, which varies less than x0.
            let exact = last * S.powi(4) / variance(last);
            // The mean is exact but for rounding: the denoiser is linear.
            assert!((mean - MU).abs() < 1e-12, "{name}: the mean is {mean}");
            (var / exact - 1.0).abs()
        };
        let errors = [50, 100, 200, 400].map(error);
        println!("{name}: errors of the variance {}", brief(&errors));
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0] / 1.5), "{name}: {errors:?}");
        assert!(errors[3] < 0.06, "{name}: {errors:?}");
    }
}

/// fixed_large is right for data that is N(0, I), whatever the number of steps (arXiv 2006.11239, section 3.2).
#[test]
fn fixed_large_is_exact_for_unit_gaussian_data() {
    let schedule = linear();
    let params =
        SamplerParams { variance: Variance::FixedLarge, ..plain(Method::Ddpm, 10, Spacing::Trailing) };
    let mut sampler = params.build(&schedule).expect("a sampler");
    let mut x = row(&[1.0, 0.0]);
    let mut total = 0.0;
    while let Some(timestep) = sampler.timestep() {
        // eps*(x) = sqrt(1 - abar) x. The variance of x must stay 1 at every step.
        let output = &x * (1.0 - schedule.alpha_cumprod[timestep as usize]).sqrt();
        let before = values(&x);
        x = sampler.step(&x, &output, &mut || Ok(row(&[0.0, 1.0]))).expect("a step");
        let after = values(&x);
        if sampler.timestep().is_some() {
            total = (after[0] / before[0]).powi(2) + after[1].powi(2);
            assert!((total - 1.0).abs() < 1e-9, "{total}");
            x = row(&[after[0], 0.0]);
        }
    }
    assert!(total > 0.0);
}

#[test]
fn every_list_of_timesteps_is_sound() {
    let check = |params: SamplerParams, schedule: &NoiseSchedule| {
        let list = timesteps(&params, schedule);
        let twice = usize::from(params.method == Method::Heun);
        let levels: Vec<f64> =
            if twice == 1 { list.iter().step_by(2).copied().collect() } else { list.clone() };
        assert!(!levels.is_empty() && levels.len() <= params.steps, "{params:?}");
        assert!(levels.windows(2).all(|pair| pair[0] > pair[1]), "{params:?}: {levels:?}");
        assert!(
            list.iter().all(|t| (0.0..schedule.noise_steps() as f64).contains(t)),
            "{params:?}: {list:?}"
        );
        if matches!(params.method, Method::Ddpm | Method::Ddim) && params.spacing != Spacing::Karras {
            assert_eq!(levels.len(), params.steps, "{params:?}");
            assert!(levels.iter().all(|t| t.fract() == 0.0));
        }
    };
    for noise_steps in [1, 2, 3, 10, 37] {
        for (kind, beta_end) in [(BetaSchedule::Linear, 0.5), (BetaSchedule::Cosine, 0.999)] {
            for zero_snr in [false, true] {
                let schedule = schedule(kind.clone(), beta_end, noise_steps, zero_snr);
                for steps in 1..=noise_steps {
                    for (method, spacing) in METHODS.iter().flat_map(|m| SPACINGS.map(|s| (*m, s))) {
                        check(plain(method, steps, spacing), &schedule);
                    }
                }
            }
        }
    }
    for schedule in [linear(), schedule(BetaSchedule::Cosine, 0.999, 1000, false)] {
        for steps in [1, 7, 30, 501, 1000] {
            for (method, spacing) in METHODS.iter().flat_map(|m| SPACINGS.map(|s| (*m, s))) {
                check(plain(method, steps, spacing), &schedule);
            }
        }
    }
}

/// Every combination, on the schedules where something divides by zero if it can: one timestep, zero terminal
/// SNR, abar that underflows, a beta of 1.
#[test]
fn results_are_images_whatever_the_schedule() {
    let config = |kind, beta_end, noise_steps, rescale_zero_terminal_snr| ScheduleConfig {
        kind,
        beta_start: 1e-4,
        beta_end,
        noise_steps,
        rescale_zero_terminal_snr,
    };
    let configs = [
        config(BetaSchedule::Cosine, 0.999, 1, false),
        config(BetaSchedule::Linear, 0.02, 1, true),
        config(BetaSchedule::Linear, 0.02, 50, true),
        config(BetaSchedule::Cosine, 0.999, 20, true),
        config(BetaSchedule::Linear, 0.99, 400, false),
        config(BetaSchedule::Given(vec![0.5, 1.0, 1.0, 0.5]), 0.0, 4, false),
        config(BetaSchedule::Given(vec![1e-18; 6]), 0.0, 6, false),
    ];
    for config in configs {
        let schedule = NoiseSchedule::new(&config).expect("valid");
        let all = schedule.noise_steps();
        for steps in [1, 2, 3, all / 2, all] {
            let steps = steps.clamp(1, all);
            for (method, spacing) in METHODS.iter().flat_map(|m| SPACINGS.map(|s| (*m, s))) {
                for prediction in PREDICTIONS {
                    for (clip_sample, eta) in [(true, 0.0), (true, 1.0), (false, 0.0)] {
                        let params =
                            SamplerParams { prediction, clip_sample, eta, ..plain(method, steps, spacing) };
                        let mut sampler = params.build(&schedule).expect("a sampler");
                        let mut x = row(&[-1.7, 0.0, 0.9, 2.1]).to_kind(Kind::Float);
                        while sampler.timestep().is_some() {
                            let noise = || Ok(row(&[1.0, -2.0, 0.5, 0.0]).to_kind(Kind::Float));
                            x = sampler.step(&x, &(&x * 0.9).sin(), &mut { noise }).expect("a step");
                        }
                        let sound = values(&x).iter().all(|value| (-1.0..=1.0).contains(value));
                        assert!(sound, "{params:?} on {config:?}: {:?}", values(&x));
                    }
                }
            }
        }
    }
}

/// From the last timestep of a zero-terminal-SNR schedule, where x is pure noise and alpha is 0.
#[test]
fn zero_terminal_snr_samples_right_from_pure_noise() {
    let schedule = schedule(BetaSchedule::Linear, 0.02, 1000, true);
    assert_eq!(schedule.terminal_signal(), 0.0);
    let x = row(&[-1.0, 0.5, 2.0]);
    for prediction in [Prediction::Velocity, Prediction::Sample] {
        for (method, spacing) in [(Method::Ddim, Spacing::Trailing), (Method::Euler, Spacing::Linspace)] {
            let params = SamplerParams { prediction, ..plain(method, 250, spacing) };
            assert_eq!(timesteps(&params, &schedule)[0], 999.0);
            let got = sample(&params, &schedule, &x, &mut no_noise);
            assert!(distance(&got, &(&x * S + MU)) < 0.02, "{method:?} {prediction:?}: {:?}", values(&got));
        }
    }
}

#[test]
fn predictions_agree_when_the_network_does() {
    let schedule = schedule(BetaSchedule::Cosine, 0.999, 200, false);
    let x = row(&[-1.5, -0.3, 0.4, 1.1, 2.0]);
    for method in METHODS {
        for (clip_sample, use_clipped_model_output) in [(false, false), (true, false), (true, true)] {
            let results = PREDICTIONS.map(|prediction| {
                let mut draw = 0.0;
                let plain = plain(method, 20, Spacing::Trailing);
                let params = SamplerParams {
                    prediction,
                    clip_sample,
                    use_clipped_model_output,
                    clip_sample_range: 0.6,
                    eta: 0.5,
                    ..plain
                };
                sample(&params, &schedule, &x, &mut || {
                    draw += 1.0;
                    Ok((&x * draw).sin())
                })
            });
            assert!(distance(&results[0], &results[1]) < 1e-10, "{method:?}");
            assert!(distance(&results[0], &results[2]) < 1e-10, "{method:?}");
        }
    }
}

#[test]
fn one_step_is_the_estimate_of_x0_alone() {
    let schedule = linear();
    let x = row(&[0.3, -2.0, 0.9]);
    for (method, spacing) in METHODS.iter().flat_map(|m| SPACINGS.map(|s| (*m, s))) {
        let params = plain(method, 1, spacing);
        let mut sampler = params.build(&schedule).expect("a sampler");
        assert_eq!(sampler.evaluations(), 1);
        let abar = schedule.alpha_cumprod_at(sampler.timestep().expect("one")).expect("in range");
        let output = row(&[0.1, 0.2, 0.3]);
        let wanted = (&x - &output * (1.0 - abar).sqrt()) / abar.sqrt();
        let got = sampler.step(&x, &output, &mut no_noise).expect("a step");
        assert!(distance(&got, &wanted.clamp(-1.0, 1.0)) < 1e-9, "{method:?} {spacing:?}");
        assert!(distance(sampler.last_x0().expect("an estimate"), &wanted) < 1e-9);
        assert_eq!(sampler.timestep(), None);
        assert!(matches!(sampler.step(&x, &output, &mut no_noise), Err(Error::Internal(_))));
    }
}

#[test]
fn rows_that_stay_are_not_disturbed() {
    let schedule = linear();
    let starts = Tensor::linspace(-2.0, 2.0, 5 * 8, (Kind::Float, Device::Cpu)).view([5, 2, 2, 2]);
    let network = |x: &Tensor, timestep: f64| (x * 1.5 + timestep * 0.01).sin();
    let noise = |rows: &Tensor, draw: usize| Ok((starts.index_select(0, rows) * (3.0 + draw as f64)).cos());
    let all = Tensor::from_slice(&[0i64, 1, 2, 3, 4]);
    let kept = Tensor::from_slice(&[3i64, 0]);
    for method in METHODS {
        for leave_at in [0, 1, 2, 5, 6] {
            let params = SamplerParams { eta: 1.0, ..SamplerParams::new(method, 8) };
            let run = |from: &Tensor, then: Option<&Tensor>| {
                let mut sampler = params.build(&schedule).expect("a sampler");
                let (mut rows, mut x, mut evaluation) =
                    (from.shallow_clone(), starts.index_select(0, from), 0);
                while let Some(timestep) = sampler.timestep() {
                    if let (true, Some(then)) = (evaluation == leave_at, then) {
                        sampler.keep_rows(then).expect("rows");
                        (rows, x) = (rows.index_select(0, then), x.index_select(0, then));
                    }
                    let output = network(&x, timestep);
                    x = sampler.step(&x, &output, &mut || noise(&rows, evaluation)).expect("a step");
                    evaluation += 1;
                }
                let x0 = sampler.last_x0().expect("an estimate").shallow_clone();
                (x, x0)
            };
            let (alone, alone_x0) = run(&kept, None);
            let (left, left_x0) = run(&all, Some(&kept));
            assert_eq!(distance(&alone, &left), 0.0, "{method:?}, leaving at {leave_at}");
            assert_eq!(distance(&alone_x0, &left_x0), 0.0, "{method:?}, leaving at {leave_at}");
        }
    }
}

/// Imagen's rule by hand, on two images of which one needs it.
#[test]
fn dynamic_thresholding_scales_each_image_by_its_own_percentile() {
    let schedule = linear();
    let params = SamplerParams {
        dynamic_thresholding: Some(0.75),
        prediction: Prediction::Sample,
        ..SamplerParams::new(Method::Ddim, 1)
    };
    let x = Tensor::zeros([2, 1, 1, 6], (Kind::Double, Device::Cpu));
    let x0 = Tensor::from_slice(&[4.0, -3.0, 2.0, 1.0, -0.5, 0.0, 0.9, -1.2, 0.1, 0.2, 0.3, 0.4]);
    let mut sampler = params.build(&schedule).expect("a sampler");
    let got = values(&sampler.step(&x, &x0.view([2, 1, 1, 6]), &mut no_noise).expect("a step"));
    // |x0| sorted is 0, .5, 1, 2, 3, 4: rank .75 * 5 = 3.75 is 2.75.
    let first = [1.0, -1.0, 2.0 / 2.75, 1.0 / 2.75, -0.5 / 2.75, 0.0];
    // .1, .2, .3, .4, .9, 1.2: .4 + .75 * .5 = .775, which is below 1: a clamp.
    let second = [0.9, -1.0, 0.1, 0.2, 0.3, 0.4];
    for (got, wanted) in got.iter().zip(first.iter().chain(&second)) {
        assert!((got - wanted).abs() < 1e-12, "{got} is not {wanted}");
    }
    // The largest magnitude itself is a percentile too, and one pixel is an image.
    let params = SamplerParams { dynamic_thresholding: Some(1.0), ..params };
    for (x0, wanted) in [(row(&[8.0, -2.0]), vec![1.0, -0.25]), (row(&[8.0]), vec![1.0])] {
        let mut sampler = params.build(&schedule).expect("a sampler");
        assert_eq!(values(&sampler.step(&x0, &x0, &mut no_noise).expect("a step")), wanted);
    }
}

/// Euler ancestral as k-diffusion writes it, in Karras's frame, against DDIM's formula that is used here.
#[test]
fn euler_ancestral_is_karras_frames_formula() {
    let schedule = linear();
    let params = SamplerParams { eta: 1.0, ..plain(Method::Euler, 9, Spacing::Linspace) };
    let list = timesteps(&params, &schedule);
    let mut sampler = params.build(&schedule).expect("a sampler");
    for pair in list.windows(2) {
        let abar = |t: f64| schedule.alpha_cumprod_at(t).expect("in range");
        let sigma = |t: f64| ((1.0 - abar(t)) / abar(t)).sqrt();
        let (from, to) = (sigma(pair[0]), sigma(pair[1]));
        let (x, eps, z) = (0.8, 0.3, -0.6);
        let y = x / abar(pair[0]).sqrt();
        let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
        let down = (to * to - up * up).sqrt();
        let wanted = (y + (down - from) * eps + up * z) * abar(pair[1]).sqrt();
        let got = values(&sampler.step(&row(&[x]), &row(&[eps]), &mut || Ok(row(&[z]))).expect("a step"))[0];
        assert!((got - wanted).abs() < 1e-8, "{got} is not {wanted}");
    }
}

#[test]
fn refusals_name_parameter_value_and_range() {
    let schedule = linear();
    let text = |params: SamplerParams| params.validate(&schedule).expect_err("invalid").to_string();
    assert_eq!(text(SamplerParams::ddim(0, 0.0)), "steps is 0: must be in 1..=1000");
    assert_eq!(text(SamplerParams::ddim(1001, 0.0)), "steps is 1001: must be in 1..=1000");
    assert_eq!(text(SamplerParams::new(Method::Heun, 0)), "steps is 0: must be in 1..=1000");
    assert_eq!(text(SamplerParams::ddim(10, 1.5)), "eta is 1.5: must be in [0, 1]");
    assert_eq!(text(SamplerParams::ddim(10, f64::NAN)), "eta is NaN: must be in [0, 1]");
    let ddim = SamplerParams::ddim(10, 0.0);
    let range = SamplerParams { clip_sample_range: f64::INFINITY, ..ddim };
    assert_eq!(text(range), "clip_sample_range is inf: must be above 0 and finite");
    let threshold = SamplerParams { dynamic_thresholding: Some(0.0), ..ddim };
    assert_eq!(text(threshold), "dynamic_thresholding is 0: must be in (0, 1]");
    let offset = SamplerParams { steps_offset: 100, ..ddim };
    assert_eq!(text(offset), "steps_offset is 100: must be in 0..=99 with 10 of 1000 timesteps");
    assert!(SamplerParams { steps_offset: 99, ..ddim }.validate(&schedule).is_ok());
    assert!(SamplerParams { steps_offset: usize::MAX, ..ddim }.build(&schedule).is_err());
    let mut sampler = ddim.build(&schedule).expect("a sampler");
    let refused = sampler.step(&row(&[1.0, 2.0]), &row(&[1.0]), &mut no_noise);
    assert!(matches!(refused, Err(Error::Internal(_))));
}

#[test]
fn a_start_off_the_data_is_reported() {
    let schedule = schedule(BetaSchedule::Cosine, 0.999, 1000, false);
    assert_eq!(SamplerParams::ddpm(1000).warning(&schedule), None);
    assert_eq!(SamplerParams::ddim(50, 0.0).warning(&schedule), None);
    let text = SamplerParams::ddim(600, 0.0).warning(&schedule).expect("leading starts at timestep 599");
    assert!(text.contains("timestep 599 of 1000"), "{text}");
    let trailing = SamplerParams { spacing: Spacing::Trailing, ..SamplerParams::ddim(600, 0.0) };
    assert_eq!(trailing.warning(&schedule), None);
}

#[test]
fn half_precision_answers_are_taken() {
    let schedule = linear();
    let mut sampler = SamplerParams::ddim(2, 0.0).build(&schedule).expect("a sampler");
    let x = row(&[0.5, -0.5]).to_kind(Kind::Float);
    let next = sampler.step(&x, &x.to_kind(Kind::BFloat16), &mut no_noise).expect("a step");
    assert_eq!(next.kind(), Kind::Float);
}

#[test]
fn samplers_move_between_threads() {
    fn is_send<T: Send + ?Sized>() {}
    is_send::<dyn Sampler>();
}
