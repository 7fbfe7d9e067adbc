//! The inference plan against diffusers' outputs, against the plain path on networks of uneven shapes, and against
//! itself in other batches.

#[path = "support/golden.rs"]
mod golden;

use diffusion::checkpoint::unet_from_json;
use diffusion::unet::{BlockKind, DiffusionModel, InferencePlan, Parameters, PlanWeights, UnetConfig};
use golden::{difference, formula_parameters, tensor, Golden};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

/// To this part of the largest value.
const TOLERANCE: f64 = 2e-5;

/// What `diffusion_config.inference_precision` promises of bf16.
const BF16_TOLERANCE: f64 = 0.05;

const INPUT_STREAM: u32 = 100_000;

#[test]
fn outputs_are_those_of_diffusers_for_every_configuration_that_has_a_plan() {
    let _no_grad = tch::no_grad_guard();
    let (mut worst, mut without): ((f64, f64), Vec<String>) = ((0.0, 0.0), Vec::new());
    for (name, golden) in Golden::group("unet") {
        let config = unet_from_json(&golden.description["config"], &golden.path).unwrap();
        let shape = golden.integers("input_shape");
        let model = DiffusionModel::new(&config, &formula_parameters(&config)).unwrap();
        let plan =
            |weights| InferencePlan::new(&model, shape[2] as usize, shape[3] as usize, weights).unwrap();
        let Some(mut exact) = plan(PlanWeights::F32) else {
            without.push(name);
            continue;
        };
        let mut rounded = plan(PlanWeights::Bf16).expect("covered");
        let x = tensor(INPUT_STREAM, &shape, 2.0, 0.0);
        assert!(exact.fits(&x.size()), "{name}");
        let timesteps = Vec::<f64>::try_from(golden.array("timesteps").to_kind(Kind::Double)).unwrap();
        let labels = golden.arrays.get("class_labels").map(|labels| Vec::<i64>::try_from(labels).unwrap());
        let found = [&mut exact, &mut rounded].map(|plan| {
            let output = plan.forward(&model, &x, &timesteps, labels.as_deref()).unwrap();
            (difference(&output, golden.array("output")), plan.bytes() >> 20)
        });
        let [(difference, bytes), (difference_bf16, bytes_bf16)] = found;
        println!("{name:20} {difference:.1e}, {bytes} MB; in bf16 {difference_bf16:.1e}, {bytes_bf16} MB");
        worst = (worst.0.max(difference), worst.1.max(difference_bf16));
    }
    assert!(worst.0 < TOLERANCE && worst.1 < BF16_TOLERANCE, "{worst:?}");
    // Every other configuration is covered.
    let expected = [
        "class_identity",
        "fourier",
        "gelu",
        "mish",
        "relu",
        "resnet_levels",
        "resnet_resample",
        "resnet_scale_shift",
    ];
    assert_eq!(without, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Widths that no vector divides, odd sizes, narrow and uneven heads: the plan computes what the plain path does.
    #[test]
    fn a_plan_computes_what_the_plain_path_does(
        (groups, factors) in (1usize..7, prop::collection::vec(1usize..9, 1..4)),
        (height, width) in (1usize..9, 1usize..9),
        (channels, batch) in (1usize..5, 1i64..4),
        (layers, head_dim, pad) in (1usize..3, prop::option::of(1usize..12), 0usize..2),
        attention in prop::collection::vec(any::<bool>(), 3),
        middle in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let _no_grad = tch::no_grad_guard();
        let widths: Vec<usize> = factors.iter().map(|f| f * groups).collect();
        let levels = widths.len();
        let kind = |i: usize| if attention[i] { BlockKind::Attention } else { BlockKind::Plain };
        let mut config = UnetConfig::from_hidden_dims(8, channels, &[8, 8]).unwrap();
        config.block_out_channels = widths;
        config.norm_num_groups = groups;
        config.layers_per_block = layers;
        config.attention_head_dim = head_dim;
        config.downsample_padding = pad;
        config.mid_block = middle;
        config.down_blocks = (0..levels).map(kind).collect();
        config.up_blocks = (0..levels).rev().map(kind).collect();
        prop_assume!(config.validate().is_ok());
        let scale = 1 << (levels - 1);
        let shape = [batch, channels as i64, (height * scale) as i64, (width * scale) as i64];
        let parameters = Parameters::init(&config, seed, Device::Cpu).unwrap();
        let model = DiffusionModel::new(&config, &parameters).unwrap();
        let plan = |weights| InferencePlan::new(&model, height * scale, width * scale, weights).unwrap().expect("covered");
        let x = tensor(INPUT_STREAM, &shape, 2.0, 0.0);
        let timesteps: Vec<f64> = (0..batch).map(|i| (i / 2 * 311) as f64).collect();
        let plain = model.forward(&x, &Tensor::from_slice(&timesteps), None, None).unwrap();
        let found = difference(&plan(PlanWeights::F32).forward(&model, &x, &timesteps, None).unwrap(), &plain);
        prop_assert!(found < TOLERANCE, "{found:e} for {config:?}");
        let found = difference(&plan(PlanWeights::Bf16).forward(&model, &x, &timesteps, None).unwrap(), &plain);
        prop_assert!(found < BF16_TOLERANCE, "{found:e} in bf16 for {config:?}");
    }
}

#[test]
fn an_image_is_the_same_in_any_batch() {
    let _no_grad = tch::no_grad_guard();
    for threads in [1, 2, 3] {
        tch::set_num_threads(threads);
        let (small, large) = ((8, vec![8, 16]), (24, vec![32, 64, 64]));
        let cases = [
            (small.clone(), PlanWeights::F32),
            (large.clone(), PlanWeights::F32),
            (small, PlanWeights::Bf16),
            (large, PlanWeights::Bf16),
        ];
        for ((size, dims), weights) in cases {
            let config = UnetConfig::from_hidden_dims(size, 3, &dims).unwrap();
            let parameters = Parameters::init(&config, 1, Device::Cpu).unwrap();
            let model = DiffusionModel::new(&config, &parameters).unwrap();
            let mut plan = InferencePlan::new(&model, size, size, weights).unwrap().expect("covered");
            let all = 35;
            let shape = [all, 3, size as i64, size as i64];
            let x = tensor(INPUT_STREAM, &shape, 2.0, 0.0);
            let timesteps: Vec<f64> = (0..all).map(|i| (i / 3 * 25) as f64).collect();
            let whole = plan.forward(&model, &x, &timesteps, None).unwrap();
            for batch in [1, 2, 3, 5, 7, 8, 13, 17, 32] {
                let first = all - batch;
                let part = plan
                    .forward(&model, &x.narrow(0, first, batch), &timesteps[first as usize..], None)
                    .unwrap();
                let difference = (whole.narrow(0, first, batch) - part).abs().max().double_value(&[]);
                assert_eq!(
                    difference, 0.0,
                    "{dims:?} in {weights:?}, {threads} threads, the last {batch} images alone"
                );
            }
        }
    }
}
