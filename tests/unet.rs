//! The U-Net against diffusers: names, outputs and gradients of many configurations, from golden files.

#[path = "support/golden.rs"]
mod golden;

use diffusion::checkpoint::{unet_from_json, unet_to_json};
use diffusion::unet::{DiffusionModel, Parameters, UnetConfig};
use golden::{
    difference, digest, digest_differences, formula_parameters, report, tensor, Golden, INPUT_STREAM,
    LABEL_STREAM, TARGET_STREAM,
};
use tch::{Device, Kind, Tensor};

/// Outputs and gradients agree with PyTorch's to this part of their largest value.
const TOLERANCE: f64 = 2e-5;

/// A case's network and what goes into it.
struct Case {
    config: UnetConfig,
    parameters: Parameters,
    model: DiffusionModel,
    x: Tensor,
    timesteps: Tensor,
    labels: Option<Tensor>,
}

impl Case {
    fn new(golden: &Golden) -> Case {
        let config = unet_from_json(&golden.description["config"], &golden.path).unwrap();
        let parameters = formula_parameters(&config);
        let model = DiffusionModel::new(&config, &parameters).unwrap();
        let x = tensor(INPUT_STREAM, &golden.integers("input_shape"), 2.0, 0.0);
        let timesteps = golden.array("timesteps").shallow_clone();
        let labels = golden.arrays.get("class_labels").map(Tensor::shallow_clone);
        Case { config, parameters, model, x, timesteps, labels }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.model.forward(x, &self.timesteps, self.labels.as_ref(), None).unwrap()
    }
}

#[test]
fn outputs_are_those_of_diffusers_for_every_configuration() {
    let cases = Golden::group("unet");
    assert!(cases.len() >= 26, "only {} golden files", cases.len());
    let mut worst: f64 = 0.0;
    for (name, golden) in cases {
        let case = Case::new(&golden);
        let output = tch::no_grad(|| case.forward(&case.x));
        let found = difference(&output, golden.array("output"));
        let last =
            tch::no_grad(|| difference(&case.forward(&channels_last(&case.x)), golden.array("output")));
        println!("{name:20} {found:.1e}, channels-last {last:.1e}");
        worst = worst.max(found).max(last);
    }
    assert!(worst < TOLERANCE, "{worst:e}");
}

/// The same values in channels-last memory.
fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

#[test]
fn parameters_have_the_names_order_and_number_of_diffusers() {
    for (name, golden) in Golden::group("unet") {
        let config = unet_from_json(&golden.description["config"], &golden.path).unwrap();
        let names: Vec<String> = serde_json::from_value(golden.description["names"].clone()).unwrap();
        let specs = config.parameter_specs().unwrap();
        assert_eq!(specs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>(), names, "{name}");
        assert_eq!(
            config.num_parameters().unwrap(),
            golden.description["num_parameters"].as_u64().unwrap(),
            "{name}"
        );
    }
    let full = Golden::read("unet_ddpm_cifar10_32");
    let config = unet_from_json(&full.description["config"], &full.path).unwrap();
    assert_eq!(config.num_parameters().unwrap(), 35_746_307);
    assert_eq!(config.parameter_specs().unwrap().len(), 328);
    let own = UnetConfig::from_hidden_dims(32, 3, &[128, 256, 256, 256]).unwrap();
    assert_eq!(own, config, "the library's own architecture for these widths is google/ddpm-cifar10-32's");
}

/// The gradients of every configuration, each parameter's in nineteen numbers, against PyTorch's in f64.
#[test]
fn gradients_are_those_of_pytorch_for_every_configuration() {
    let mut failed = false;
    for (name, golden) in Golden::group("unet") {
        let case = Case::new(&golden);
        case.parameters.set_requires_grad(true).unwrap();
        let x = case.x.set_requires_grad(true);
        let output = case.forward(&x);
        let target = tensor(TARGET_STREAM, &output.size(), 1.0, 0.0);
        let loss = output.mse_loss(&target, tch::Reduction::Mean);
        loss.backward();
        let mut worst = difference(&loss, golden.array("loss"));
        worst = worst.max(difference(&x.grad(), golden.array("grad_input")));
        let gradients: Vec<(&str, Tensor)> =
            case.parameters.trainable().map(|(key, parameter)| (key, parameter.grad())).collect();
        let got = digest(gradients.iter().map(|(_, gradient)| gradient));
        let differences = digest_differences(&got, golden.array("gradients"));
        assert_eq!(differences.len(), gradients.len(), "{name}");
        for ((key, gradient), found) in gradients.iter().zip(differences) {
            // The bias of the keys cancels in the softmax: its gradient is exactly zero, and rounding alone in f32.
            if key.ends_with("to_k.bias") {
                assert!(gradient.abs().max().double_value(&[]) < 1e-6, "{name}: {key}");
            } else {
                worst = worst.max(found);
            }
        }
        failed |= report(&format!("gradients {name}"), worst, TOLERANCE);
    }
    assert!(!failed);
}

#[test]
fn gradients_are_those_of_pytorch_for_every_parameter() {
    let cases = Golden::group("gradients");
    assert!(cases.len() >= 3);
    for (name, golden) in cases {
        let case = Case::new(&golden);
        case.parameters.set_requires_grad(true).unwrap();
        let x = case.x.set_requires_grad(true);
        let output = case.forward(&x);
        let target = tensor(TARGET_STREAM, &output.size(), 1.0, 0.0);
        let loss = output.mse_loss(&target, tch::Reduction::Mean);
        loss.backward();
        let mut worst = difference(&loss, golden.array("loss"));
        worst = worst.max(difference(&x.grad(), golden.array("grad_input")));
        let mut compared = 0;
        for (key, parameter) in case.parameters.iter() {
            let found = difference(&parameter.grad(), golden.array(&format!("grad.{key}")));
            // What a gradient should be exactly zero in is rounding alone: keys' biases cancel in the softmax.
            let scale = golden.array(&format!("grad.{key}")).abs().max().double_value(&[]);
            assert!(
                found < TOLERANCE || (key.ends_with("to_k.bias") && scale < 1e-6),
                "{name}: {key}: {found:e}"
            );
            if !key.ends_with("to_k.bias") {
                worst = worst.max(found);
            }
            compared += 1;
        }
        println!("{name:20} {compared} gradients, worst {worst:.1e}");
        assert!(worst < TOLERANCE, "{name}: {worst:e}");
    }
}

#[test]
fn config_json_is_read_back_as_it_was_written() {
    for (name, golden) in Golden::group("unet") {
        let config = unet_from_json(&golden.description["config"], &golden.path).unwrap();
        assert_eq!(unet_from_json(&unet_to_json(&config), &golden.path).unwrap(), config, "{name}");
    }
}

#[test]
fn fresh_weights_depend_on_the_seed_alone_and_have_pytorchs_spread() {
    let config = UnetConfig::from_hidden_dims(16, 3, &[32, 64]).unwrap();
    tch::manual_seed(1);
    let one = Parameters::init(&config, 7, Device::Cpu).unwrap();
    tch::manual_seed(2);
    let same = Parameters::init(&config, 7, Device::Cpu).unwrap();
    let other = Parameters::init(&config, 8, Device::Cpu).unwrap();
    let mut different = 0;
    for (((name, a), (_, b)), (_, c)) in one.iter().zip(same.iter()).zip(other.iter()) {
        assert!(a.equal(b), "{name}");
        different += usize::from(!a.equal(c));
    }
    assert!(different > one.len() / 2);

    let weight = one.get("mid_block.resnets.0.conv1.weight").unwrap();
    let bound = 1.0 / (64.0 * 9.0f64).sqrt();
    let largest = weight.abs().max().double_value(&[]);
    assert!(largest <= bound * 1.000001 && largest > 0.99 * bound, "{largest} {bound}");
    assert!((weight.std(true).double_value(&[]) / (bound / 3f64.sqrt()) - 1.0).abs() < 0.02);
    assert!(weight.mean(Kind::Float).double_value(&[]).abs() < 0.02 * bound);
    assert!(one.get("conv_norm_out.weight").unwrap().equal(&Tensor::ones([32], (Kind::Float, Device::Cpu))));
}

#[test]
fn half_precision_weights_give_nearly_the_same() {
    // Both ways of attention on the CPU: bf16 takes the plain one.
    for name in ["unet_ddpm", "unet_uneven_heads"] {
        let golden = Golden::read(name);
        let case = Case::new(&golden);
        let rounded = |kind: Kind| -> Vec<(String, Tensor)> {
            case.parameters.iter().map(|(name, value)| (name.to_owned(), value.to_kind(kind))).collect()
        };
        for (kind, tolerance) in [(Kind::BFloat16, 0.05), (Kind::Half, 0.01)] {
            let parameters = Parameters::from_tensors(&case.config, rounded(kind)).unwrap();
            let model = DiffusionModel::new(&case.config, &parameters).unwrap();
            let output =
                tch::no_grad(|| model.forward(&case.x.to_kind(kind), &case.timesteps, None, None).unwrap());
            assert_eq!(output.kind(), kind);
            let found = difference(&output, golden.array("output"));
            assert!(found < tolerance, "{name} in {kind:?}: {found:e}");
        }
    }
}

#[test]
fn a_model_is_a_view_of_its_parameters() {
    let config = UnetConfig::from_hidden_dims(8, 1, &[8, 16]).unwrap();
    let parameters = Parameters::init(&config, 1, Device::Cpu).unwrap();
    let copy = parameters.deep_copy().unwrap();
    let model = DiffusionModel::new(&config, &parameters).unwrap();
    let still = DiffusionModel::new(&config, &copy).unwrap();
    let x = tensor(INPUT_STREAM, &[1, 1, 8, 8], 1.0, 0.0);
    let t = Tensor::from_slice(&[5i64]);
    let run = |model: &DiffusionModel| tch::no_grad(|| model.forward(&x, &t, None, None).unwrap());
    let before = run(&model);
    assert!(before.equal(&run(&still)));
    parameters.write("conv_out.bias", &[1000.0]).unwrap();
    assert!(run(&model).min().double_value(&[]) > 900.0);
    assert!(before.equal(&run(&still)));
    parameters.copy_from(&copy).unwrap();
    assert!(before.equal(&run(&model)));
    let mut bias = [0.0];
    parameters.read("conv_out.bias", &mut bias).unwrap();
    assert!(bias[0].abs() <= 1.0);
}

#[test]
fn dropout_is_asked_of_the_caller_once_per_residual_block() {
    let mut config = UnetConfig::from_hidden_dims(8, 1, &[8, 16]).unwrap();
    config.dropout = 0.25;
    let parameters = Parameters::init(&config, 1, Device::Cpu).unwrap();
    let model = DiffusionModel::new(&config, &parameters).unwrap();
    let x = tensor(INPUT_STREAM, &[2, 1, 8, 8], 1.0, 0.0);
    let t = Tensor::from_slice(&[5.0f32, 6.0]);
    let calls = std::cell::Cell::new(0);
    let drop = |h: &Tensor, p: f64| {
        assert_eq!(p, 0.25);
        calls.set(calls.get() + 1);
        Ok(h.f_mul_scalar(0.0)?)
    };
    let dropped = model.forward(&x, &t, None, Some(&drop)).unwrap();
    assert_eq!(calls.get(), 2 * 2 + 2 + 2 * 3);
    assert!(!dropped.equal(&model.forward(&x, &t, None, None).unwrap()));
}

#[test]
fn wrong_inputs_are_named() {
    let config = UnetConfig::from_hidden_dims(8, 3, &[8, 16]).unwrap();
    let parameters = Parameters::init(&config, 1, Device::Cpu).unwrap();
    let model = DiffusionModel::new(&config, &parameters).unwrap();
    let cpu = (Kind::Float, Device::Cpu);
    let message = |x: &[i64], t: &[i64], labels: Option<&Tensor>| {
        model.forward(&Tensor::zeros(x, cpu), &Tensor::zeros(t, cpu), labels, None).unwrap_err().to_string()
    };
    assert!(message(&[2, 1, 8, 8], &[2], None)
        .starts_with("the shape of the images is [2, 1, 8, 8]: must be [batch, 3"));
    assert!(message(&[2, 3, 7, 8], &[2], None).contains("multiples of 2"));
    assert!(message(&[2, 3, 8], &[2], None).contains("[2, 3, 8]"));
    assert!(message(&[2, 3, 8, 8], &[1], None).starts_with("the shape of the timesteps is [1]: must be [2]"));
    let labels = Tensor::from_slice(&[1i64, 2]);
    assert!(message(&[2, 3, 8, 8], &[2], Some(&labels)).starts_with("class_labels is given: must be absent"));

    assert!(parameters.read("conv_out.bias", &mut [0.0; 2]).unwrap_err().to_string().contains("must be 3"));
    assert!(parameters.write("nonsense", &[0.0]).unwrap_err().to_string().contains("\"nonsense\""));
}

#[test]
fn tensors_that_do_not_fit_the_config_are_named() {
    let config = UnetConfig::from_hidden_dims(8, 3, &[8, 16]).unwrap();
    let parameters = Parameters::init(&config, 1, Device::Cpu).unwrap();
    let tensors = || -> Vec<(String, Tensor)> {
        parameters.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect()
    };
    let message = |tensors| Parameters::from_tensors(&config, tensors).unwrap_err().to_string();
    let mut reversed = tensors();
    reversed.reverse();
    let sorted = Parameters::from_tensors(&config, reversed).unwrap();
    assert!(sorted.names().eq(parameters.names()));

    let mut missing = tensors();
    missing.truncate(missing.len() - 1);
    assert!(message(missing).starts_with("tensor conv_out.bias is missing"));
    let mut extra = tensors();
    extra.push(("surplus".into(), Tensor::from_slice(&[1.0f32])));
    assert!(message(extra).starts_with("tensor surplus is none of this network's"));
    let mut twice = tensors();
    twice.push(("conv_in.bias".into(), Tensor::from_slice(&[1.0f32])));
    assert!(message(twice).starts_with("tensor conv_in.bias is given twice"));
    let mut wrong = tensors();
    wrong[1].1 = Tensor::from_slice(&[1.0f32]);
    assert!(message(wrong).starts_with("the shape of tensor conv_in.bias is [1]: must be [8]"));
}

#[test]
fn class_labels_are_used_and_their_shape_is_checked() {
    for (name, shape) in
        [("class_table", vec![2]), ("class_timestep", vec![2]), ("class_identity", vec![2, 64])]
    {
        let case = Case::new(&Golden::read(&format!("unet_{name}")));
        let labels = case.labels.as_ref().unwrap();
        assert_eq!(labels.size(), shape, "{name}");
        let absent = case.model.forward(&case.x, &case.timesteps, None, None);
        assert!(absent.unwrap_err().to_string().starts_with("class_labels is absent"));
        let wrong = Tensor::from_slice(&[1.0f32]);
        let error = case.model.forward(&case.x, &case.timesteps, Some(&wrong), None).unwrap_err().to_string();
        assert!(error.starts_with("class_labels is of shape [1]"), "{error}");
        if name == "class_identity" {
            assert!(tensor(LABEL_STREAM, &shape, 1.0, 0.0).equal(labels));
        }
        assert!(case.config.validate().is_ok());
    }
}
