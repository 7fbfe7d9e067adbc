//! The inference plan against diffusers' outputs and against the plain path.

#[path = "support/golden.rs"]
mod golden;

use diffusion::checkpoint::unet_from_json;
use diffusion::unet::{DiffusionModel, InferencePlan, Parameters, UnetConfig};
use golden::{difference, formula_parameters, tensor, Golden};
use tch::{Device, Kind, Tensor};

const TOLERANCE: f64 = 2e-5;
const INPUT_STREAM: u32 = 100_000;

#[test]
fn outputs_are_those_of_diffusers_for_every_configuration_that_has_a_plan() {
    let _no_grad = tch::no_grad_guard();
    let (mut worst, mut covered): (f64, usize) = (0.0, 0);
    for (name, golden) in Golden::group("unet") {
        let config = unet_from_json(&golden.description["config"], &golden.path).unwrap();
        let shape = golden.integers("input_shape");
        let model = DiffusionModel::new(&config, &formula_parameters(&config)).unwrap();
        let Some(mut plan) = InferencePlan::new(&model, shape[2] as usize, shape[3] as usize).unwrap() else {
            println!("{name:20} has no plan");
            continue;
        };
        let x = tensor(INPUT_STREAM, &shape, 2.0, 0.0);
        assert!(plan.fits(&x.size()), "{name}");
        let timesteps = Vec::<f64>::try_from(golden.array("timesteps").to_kind(Kind::Double)).unwrap();
        let output = plan.forward(&model, &x, &timesteps).unwrap();
        let found = difference(&output, golden.array("output"));
        println!("{name:20} {found:.1e}, {} MB", plan.bytes() >> 20);
        worst = worst.max(found);
        covered += 1;
    }
    assert!(covered >= 14, "{covered} plans");
    assert!(worst < TOLERANCE, "{worst:e}");
}
