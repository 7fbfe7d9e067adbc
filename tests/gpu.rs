//! The GPU's way of sampling, on the CPU: the same code without a device. What needs one is in tests/cuda.rs.

#[path = "support/golden.rs"]
mod golden;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use diffusion::checkpoint::unet_from_json;
use diffusion::graphs::{Capture, NoCapture};
use diffusion::torch::LowPrecision;
use diffusion::unet::{
    Batches, ClassEmbedding, DiffusionModel, GpuModel, Parameters, UnetConfig, MAX_GRAPHS,
};
use diffusion::{Error, Result};
use golden::{difference, formula_parameters, tensor, Golden};
use tch::{Device, Kind, Tensor};

const INPUT_STREAM: u32 = 100_000;

#[test]
fn every_configuration_is_computed_in_every_precision() {
    let _no_grad = tch::no_grad_guard();
    let (mut compared, mut worst) = (0, [0f64; 3]);
    for (name, golden) in Golden::group("unet") {
        let config = unet_from_json(&golden.description["config"], &golden.path).unwrap();
        if config.class_embedding == ClassEmbedding::Identity {
            // No process has it: classes are whole numbers.
            continue;
        }
        let parameters = formula_parameters(&config);
        let shape = golden.integers("input_shape");
        let x = tensor(INPUT_STREAM, &shape, 2.0, 0.0);
        let timesteps = Vec::<f64>::try_from(golden.array("timesteps").to_kind(Kind::Double)).unwrap();
        let labels = match config.class_embedding {
            ClassEmbedding::None => None,
            _ => Some(Vec::<i64>::try_from(golden.array("class_labels").to_kind(Kind::Int64)).unwrap()),
        };
        let given = labels.as_deref().map(Tensor::from_slice);
        let plain = DiffusionModel::new(&config, &parameters).unwrap();
        let given_timesteps = Tensor::from_slice(&timesteps).to_kind(Kind::Float);
        let plain = plain.forward(&x, &given_timesteps, given.as_ref(), None).unwrap();
        // bf16 has 8 bits, f16 11: some tens of roundings one after the other.
        let precisions = [(None, 0.0), (Some(LowPrecision::Bf16), 4e-2), (Some(LowPrecision::F16), 5e-3)];
        for (i, (precision, tolerance)) in precisions.into_iter().enumerate() {
            let mut gpu =
                GpuModel::new(&config, Device::Cpu, precision, Batches::UpTo(64), None::<NoCapture>).unwrap();
            let found = gpu.forward(&parameters, &x, &timesteps, labels.as_deref()).unwrap();
            assert_eq!((found.kind(), found.size()), (Kind::Float, plain.size()), "{name}");
            let found = difference(&found, &plain);
            assert!(found <= tolerance, "{name} in {precision:?}: {found:e}");
            worst[i] = worst[i].max(found);
            compared += 1;
        }
    }
    assert!(compared >= 3 * 15, "only {compared}");
    println!("{compared} cases; the worst in f32, bf16, f16: {worst:?}");
}

#[test]
fn full_batches_make_an_image_the_same_bit_for_bit_in_any_batch() {
    let _no_grad = tch::no_grad_guard();
    let config = UnetConfig::from_hidden_dims(8, 3, &[16, 16]).unwrap();
    let parameters = formula_parameters(&config);
    let mut gpu = GpuModel::new(&config, Device::Cpu, None, Batches::Full(12), None::<NoCapture>).unwrap();
    let x = tensor(INPUT_STREAM, &[12, 3, 8, 8], 2.0, 0.0);
    let timesteps: Vec<f64> = (0..12).map(|i| (i * 80) as f64).collect();
    let whole = gpu.forward(&parameters, &x, &timesteps, None).unwrap();
    for batch in 1..12 {
        let part =
            gpu.forward(&parameters, &x.narrow(0, 0, batch), &timesteps[..batch as usize], None).unwrap();
        assert_eq!(part.size(), [batch, 3, 8, 8]);
        assert!(part.equal(&whole.narrow(0, 0, batch)), "the first {batch} of 12");
    }
}

/// Pretends: what is recorded was computed once, and a replay leaves the memory as it is.
#[derive(Default)]
struct Pretence {
    captures: Rc<Cell<usize>>,
    replays: Rc<Cell<usize>>,
    alive: Rc<Cell<usize>>,
    /// What the next capture or replay ends with.
    failure: Rc<RefCell<Option<Error>>>,
}

struct Recording(Rc<Cell<usize>>);

impl Drop for Recording {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Capture for Pretence {
    type Graph = Recording;

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Recording> {
        self.captures.set(self.captures.get() + 1);
        work()?;
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        self.alive.set(self.alive.get() + 1);
        Ok(Recording(Rc::clone(&self.alive)))
    }

    fn replay(&self, _: &Recording) -> Result<()> {
        self.replays.set(self.replays.get() + 1);
        self.failure.take().map_or(Ok(()), Err)
    }
}

struct Fixture {
    parameters: Parameters,
    model: DiffusionModel,
    gpu: GpuModel<Pretence>,
    captures: Rc<Cell<usize>>,
    replays: Rc<Cell<usize>>,
    alive: Rc<Cell<usize>>,
    failure: Rc<RefCell<Option<Error>>>,
}

impl Fixture {
    fn new(max_batch: usize) -> Self {
        let config = UnetConfig::from_hidden_dims(8, 3, &[8, 16]).unwrap();
        let parameters = Parameters::init(&config, 5, Device::Cpu).unwrap();
        let pretence = Pretence::default();
        let (captures, replays) = (Rc::clone(&pretence.captures), Rc::clone(&pretence.replays));
        let (alive, failure) = (Rc::clone(&pretence.alive), Rc::clone(&pretence.failure));
        let gpu =
            GpuModel::new(&config, Device::Cpu, None, Batches::UpTo(max_batch), Some(pretence)).unwrap();
        let model = DiffusionModel::new(&config, &parameters).unwrap();
        Fixture { parameters, model, gpu, captures, replays, alive, failure }
    }

    /// One step of a batch, checked against the plain network.
    fn step(&mut self, batch: usize) {
        let _no_grad = tch::no_grad_guard();
        let x = tensor(INPUT_STREAM, &[batch as i64, 3, 8, 8], 2.0, 0.0);
        let timesteps: Vec<f64> = (0..batch).map(|i| (i * 37 % 1000) as f64).collect();
        let found = self.gpu.forward(&self.parameters, &x, &timesteps, None).unwrap();
        let plain = self.model.forward(&x, &Tensor::from_slice(&timesteps), None, None).unwrap();
        assert_eq!(found.size(), plain.size());
        assert!(difference(&found, &plain) < 1e-5, "a step of {batch}");
    }

    fn counts(&self) -> [usize; 3] {
        [self.captures.get(), self.replays.get(), self.alive.get()]
    }
}

#[test]
fn a_step_is_captured_once_for_each_size_and_replayed_from_then_on() {
    let mut fixture = Fixture::new(64);
    fixture.step(6);
    assert_eq!(fixture.counts(), [0, 0, 0], "the first one is not worth a capture");
    fixture.step(6);
    assert_eq!(fixture.counts(), [1, 0, 1]);
    fixture.step(6);
    // 5 images go with those of 6, one row for nothing.
    fixture.step(5);
    assert_eq!(fixture.counts(), [1, 2, 1]);
    // Larger than max_batch was said to be: computed as what it is.
    fixture.step(65);
    assert_eq!(fixture.counts(), [1, 2, 1]);
    assert!(fixture.gpu.take_notes().is_empty());
}

#[test]
fn graphs_are_few_and_go_with_the_weights() {
    let mut fixture = Fixture::new(64);
    let sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48];
    assert!(sizes.len() > MAX_GRAPHS);
    for size in sizes {
        fixture.step(size);
        fixture.step(size);
        assert!(fixture.alive.get() <= MAX_GRAPHS);
    }
    assert_eq!(fixture.counts(), [sizes.len(), 0, MAX_GRAPHS]);
    fixture.gpu.weights_changed();
    assert_eq!(fixture.alive.get(), 0);
    // The answer is that of the new weights.
    let weights = fixture.parameters.get("conv_in.weight").unwrap();
    let mut values = vec![0f32; weights.numel()];
    fixture.parameters.read("conv_in.weight", &mut values).unwrap();
    values.iter_mut().for_each(|value| *value *= 1.5);
    fixture.parameters.write("conv_in.weight", &values).unwrap();
    fixture.step(48);
    assert_eq!(fixture.counts(), [sizes.len(), 0, 0]);
}

#[test]
fn a_capture_that_fails_is_said_once_and_not_tried_again() {
    let mut fixture = Fixture::new(64);
    fixture.step(4);
    *fixture.failure.borrow_mut() =
        Some(Error::Torch("operation not permitted when stream is capturing".into()));
    fixture.step(4);
    let notes = fixture.gpu.take_notes();
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("step of 4 images") && notes[0].contains("not permitted"), "{}", notes[0]);
    for _ in 0..3 {
        fixture.step(4);
    }
    fixture.gpu.weights_changed();
    for _ in 0..3 {
        fixture.step(4);
    }
    assert_eq!(fixture.counts(), [1, 0, 0]);
    assert!(fixture.gpu.take_notes().is_empty());
    // Another size is none the worse.
    fixture.step(2);
    fixture.step(2);
    assert_eq!(fixture.counts(), [2, 0, 1]);
}

#[test]
fn where_memory_runs_out_the_graphs_go_first() {
    let mut fixture = Fixture::new(64);
    for size in [2, 2, 3, 3] {
        fixture.step(size);
    }
    assert_eq!(fixture.counts(), [2, 0, 2]);
    *fixture.failure.borrow_mut() = Some(Error::OutOfMemory("CUDA out of memory".into()));
    fixture.step(3);
    assert_eq!(fixture.counts(), [2, 1, 0]);
}
