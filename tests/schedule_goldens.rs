//! The beta schedules, and adding noise by them, against goldens: the papers' formulas in extended precision, which
//! scripts/goldens/schedules.py has held against diffusers' f32 tables wherever diffusers has the schedule.

#[path = "support/golden.rs"]
mod golden;

use diffusion::schedule::{NoiseSchedule, ScheduleTable};
use golden::{cases, difference, report, schedule, tensor, Golden, IMAGES_STREAM, NOISE_STREAM};
use tch::{Kind, Tensor};

/// Of the f32 tables, whose values are at most 1, so that this is half a unit in the last place of 1 and a little.
const TABLE_TOLERANCE: f64 = 1e-7;
/// Of the f64 tables behind them.
const EXACT_TOLERANCE: f64 = 1e-12;
/// Of what is computed from them in f32.
const TOLERANCE: f64 = 2e-5;

#[test]
fn tables_are_the_formulas_for_every_schedule() {
    type InF64 = fn(&NoiseSchedule) -> &Vec<f64>;
    let tables: [(&str, ScheduleTable, InF64); 5] = [
        ("betas", ScheduleTable::Betas, |s| &s.beta_schedule),
        ("alphas", ScheduleTable::Alphas, |s| &s.alphas),
        ("alpha_cumprod", ScheduleTable::AlphaCumprod, |s| &s.alpha_cumprod),
        ("sqrt_alpha_cumprod", ScheduleTable::SqrtAlphaCumprod, |s| &s.sqrt_alpha_cumprod),
        ("sqrt_one_minus_alpha_cumprod", ScheduleTable::SqrtOneMinusAlphaCumprod, |s| {
            &s.sqrt_one_minus_alpha_cumprod
        }),
    ];
    let (mut failed, mut compared) = (false, 0);
    for (_, golden) in Golden::group("schedules") {
        for (name, case) in cases(&golden) {
            let ours = schedule(&case);
            let (mut rounded, mut exact): (f64, f64) = (0.0, 0.0);
            for (table, which, in_f64) in tables {
                let want = match table {
                    "alphas" => 1.0 - golden.array(&format!("{name}.betas")),
                    _ => golden.array(&format!("{name}.{table}")).shallow_clone(),
                };
                let apart = |got: Tensor| (got - &want).abs().max().double_value(&[]);
                exact = exact.max(apart(Tensor::from_slice(in_f64(&ours))));
                rounded = rounded.max(apart(Tensor::from_slice(&ours.table(which)).to_kind(Kind::Double)));
                // max() passes over NaN.
                assert!(ours.table(which).iter().all(|value| value.is_finite()), "{name}.{table}");
            }
            failed |= report(&format!("schedule {name}"), rounded, TABLE_TOLERANCE);
            failed |= report(&format!("schedule {name} in f64"), exact, EXACT_TOLERANCE);
            compared += 1;
        }
    }
    assert!(!failed && compared >= 50, "{compared} schedules");
}

#[test]
fn noise_is_added_as_in_diffusers() {
    let mut failed = false;
    let goldens = Golden::group("add_noise");
    assert!(goldens.len() >= 5);
    for (name, golden) in goldens {
        let ours = schedule(&golden.description["schedule"]);
        let shape = golden.integers("shape");
        let images = tensor(IMAGES_STREAM, &shape, 1.0, 0.0);
        let noise = tensor(NOISE_STREAM, &shape, 3f64.sqrt(), 0.0);
        let timesteps = Vec::<i64>::try_from(golden.array("timesteps")).unwrap();
        let noisy = ours.add_noise(&images, &noise, &timesteps).unwrap();
        let velocity = ours.velocity(&images, &noise, &timesteps).unwrap();
        failed |= report(&format!("add_noise {name}"), difference(&noisy, golden.array("noisy")), TOLERANCE);
        let found = difference(&velocity, golden.array("velocity"));
        failed |= report(&format!("velocity {name}"), found, TOLERANCE);
    }
    assert!(!failed);
}
