//! DiffusionProcess: the schedule, the network, its training state and the device they live on, as a plain Rust API.
//!
//! A process belongs to one thread at a time. [`crate::engine`] gives each a thread of its own and batches sampling
//! requests; used directly, a process does one thing after the other.

use std::cell::RefCell;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{self, CheckpointRef, SchedulerConfig, TrainingState, WeightType};
use crate::memory;
use crate::noise::{self, Domain, Stream};
use crate::pixels::Format;
use crate::sampler::SamplerParams;
use crate::schedule::NoiseSchedule;
use crate::torch::cuda::{self, CudaCapture};
use crate::torch::{self, GradGuard, LowPrecision};
use crate::training::grad_scaler::{self, GradScaler};
use crate::training::trainer::{Accumulated, StepContext, Trainer};
use crate::training::{check_learning_rate, Precision, TrainingConfig};
use crate::unet::{
    Batches, ClassEmbedding, DiffusionModel, GpuModel, InferencePlan, Parameters, PlanWeights, UnetConfig,
};
use crate::{Error, Result};

/// The most levels that a process's U-Net may have.
pub const MAX_LEVELS: usize = 8;

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CUDA device with this index if it can be used, else the CPU.
    Auto(i32),
    /// The CPU.
    Cpu,
    /// The CUDA device with this index.
    Cuda(i32),
}

impl DeviceChoice {
    /// The device itself.
    pub fn resolve(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(index) => torch::cuda_device(index),
            DeviceChoice::Auto(_) if torch::cuda_device_count() == 0 => Ok(Device::Cpu),
            DeviceChoice::Auto(index) => torch::cuda_device(index),
        }
    }
}

/// What the network is evaluated in when sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InferencePrecision {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE half precision; CUDA only.
    F16,
    /// On CUDA bfloat16; on the CPU weights in bfloat16 and arithmetic in 32 bits.
    Bf16,
    /// The fastest that differs from [`InferencePrecision::F32`] by at most 0.05 of a prediction's largest value.
    Auto,
}

/// What a process is.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessConfig {
    /// The network.
    pub unet: UnetConfig,
    /// The noise schedule and what sampling does by default.
    pub scheduler: SchedulerConfig,
    /// How to train.
    pub training: TrainingConfig,
    /// Where to compute.
    pub device: DeviceChoice,
    /// CPU threads to compute with; 0: libtorch's choice.
    pub num_threads: usize,
    /// Most images in one evaluation of the network when sampling; 0: 64 on the CPU, where larger batches only make
    /// everyone wait, and 256 on CUDA, which wants to be filled.
    pub max_batch: usize,
    /// Determines the initial weights and all randomness of training.
    pub seed: u64,
    /// What sampling and predicting compute in.
    pub inference_precision: InferencePrecision,
    /// Whether an image is the same bit for bit in any batch on CUDA too; on the CPU it always is.
    pub deterministic: bool,
}

impl ProcessConfig {
    /// Checks everything that can be checked without a device.
    pub fn validate(&self) -> Result<()> {
        self.unet.validate()?;
        self.training.validate()?;
        let noise_free_end = self.scheduler.schedule.rescale_zero_terminal_snr;
        if noise_free_end && self.scheduler.prediction == crate::schedule::Prediction::Epsilon {
            return Err(Error::InvalidArgument(
                "rescale_betas_zero_snr is 1 and prediction_type is EPSILON: must be SAMPLE or VELOCITY, since noise \
                 cannot be told from pure noise"
                    .into(),
            ));
        }
        if self.training.mixed_precision == Precision::F16 && self.device == DeviceChoice::Cpu {
            return Err(Error::InvalidArgument(
                "mixed_precision is F16 and device is CPU: must be F32 or BF16 there; F16 needs CUDA".into(),
            ));
        }
        if self.inference_precision == InferencePrecision::F16 && self.device == DeviceChoice::Cpu {
            return Err(Error::InvalidArgument(
                "inference_precision is F16 and device is CPU: must be F32, BF16 or AUTO there; F16 needs CUDA"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Replaces what was left open by what was chosen.
    fn resolve(&mut self, device: Device) {
        self.device = match device {
            Device::Cuda(index) => DeviceChoice::Cuda(index as i32),
            _ => DeviceChoice::Cpu,
        };
        if self.num_threads == 0 {
            self.num_threads = tch::get_num_threads().max(1) as usize;
        }
        if self.max_batch == 0 {
            self.max_batch = if device.is_cuda() { 256 } else { 64 };
        }
        if self.inference_precision == InferencePrecision::Auto {
            self.inference_precision = InferencePrecision::Bf16;
        }
    }

    /// Height and width of the images.
    pub fn image_size(&self) -> usize {
        self.unet.sample_size
    }

    /// Channels of the images.
    pub fn channels(&self) -> usize {
        self.unet.in_channels
    }

    /// Floats of one image.
    pub fn image_len(&self) -> usize {
        self.channels() * self.image_size() * self.image_size()
    }

    /// Bytes of a number of images in a format, overflow-checked.
    /// `name` is the argument that `count` came in, for the message.
    pub fn result_bytes(&self, name: &str, format: Format, count: usize) -> Result<usize> {
        let plane = self.image_size() * self.image_size();
        let each = plane * format.bytes_per_pixel(self.channels())?;
        let most = isize::MAX as usize / each;
        if !(1..=most).contains(&count) {
            return Err(Error::argument(name, count, format!("in 1..={most}")));
        }
        Ok(count * each)
    }

    /// The shape of one image in a format, for messages.
    pub fn shape_text(&self, format: Format) -> String {
        let (channels, size) = (self.channels(), self.image_size());
        match format {
            Format::F32 => format!("{channels}x{size}x{size} floats"),
            Format::F16 => format!("{channels}x{size}x{size} halves of 2 bytes"),
            Format::Rgb8 => format!("{size}x{size}x3 bytes"),
            Format::Rgba8 => format!("{size}x{size}x4 bytes"),
        }
    }

    /// Checks that there are class labels where the network has classes, that there are none where not, and that each
    /// is one of them.
    pub fn check_class_labels(&self, labels: Option<&[i64]>) -> Result<()> {
        match (classes(&self.unet), labels) {
            (None, None) => Ok(()),
            (None, Some(_)) => {
                Err(Error::argument("class_labels", "given", "NULL: this network has no classes"))
            }
            (Some(_), None) => {
                Err(Error::NullPointer("class_labels", "the class of each image, which this network needs"))
            }
            (Some(classes), Some(labels)) => {
                match labels.iter().enumerate().find(|(_, l)| !classes.contains(l)) {
                    None => Ok(()),
                    Some((i, label)) => {
                        let allowed = format!("in {}..={}", classes.start(), classes.end());
                        Err(Error::argument(&format!("class_labels[{i}]"), label, allowed))
                    }
                }
            }
        }
    }

    /// Checks that each timestep exists.
    pub fn check_timesteps(&self, timesteps: &[i64]) -> Result<()> {
        let steps = self.scheduler.schedule.noise_steps;
        match timesteps.iter().position(|&t| usize::try_from(t).map_or(true, |t| t >= steps)) {
            None => Ok(()),
            Some(i) => {
                let value = timesteps.get(i).copied().unwrap_or_default();
                Err(Error::argument(&format!("timesteps[{i}]"), value, format!("in 0..{steps}")))
            }
        }
    }
}

/// The classes that a network knows.
fn classes(unet: &UnetConfig) -> Option<std::ops::RangeInclusive<i64>> {
    match unet.class_embedding {
        ClassEmbedding::None => None,
        ClassEmbedding::Table(classes) => Some(0..=classes as i64 - 1),
        // Embedded like a timestep, in f32: whole up to here.
        ClassEmbedding::Timestep | ClassEmbedding::Identity => Some(0..=1 << 24),
    }
}

/// Checks that values are finite.
pub fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    // The sum of 0 * x is 0 exactly where every x is finite, and is computed without a branch per value.
    if values.iter().map(|x| x * 0.0).sum::<f32>() == 0.0 {
        return Ok(());
    }
    let at = values.iter().position(|x| !x.is_finite()).unwrap_or_default();
    let value = values.get(at).copied().unwrap_or(f32::NAN);
    Err(Error::NonFinite(format!("{name}[{at}] is {value}: must be finite")))
}

/// Noised images and the noise that was added.
pub struct Noised {
    /// `[batch, channels, height, width]`.
    pub noisy: Vec<f32>,
    /// The same shape.
    pub noise: Vec<f32>,
}

/// Which of the two sets of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Those that the optimizer trains.
    Trained,
    /// Their moving average, where there is one.
    Ema,
}

/// Name and shape of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterInfo {
    /// diffusers' name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<i64>,
}

impl ParameterInfo {
    /// How many values it has.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }
}

/// The part of the training state that is not tensors, as it stands in a checkpoint.
#[derive(Serialize, Deserialize)]
struct TrainingMeta {
    step: u64,
    calls: u64,
    accumulated_calls: u64,
    seed: u64,
    learning_rate: f64,
    gradient_scale: Option<f64>,
    growth_tracker: Option<i64>,
    config: TrainingConfig,
}

/// What is known of the inference plan of the weights as they are.
enum Planned {
    /// Not made since the weights changed.
    Not,
    /// This network, or this machine, has none.
    Never,
    Made(Box<InferencePlan>),
}

/// A diffusion model: its schedule, U-Net, optimizer and device.
pub struct DiffusionProcess {
    config: ProcessConfig,
    schedule: NoiseSchedule,
    /// The weights to sample with.
    parameters: Parameters,
    /// A view of them.
    model: DiffusionModel,
    /// Made when training begins or a checkpoint goes on with it: who only samples does not pay for it in memory.
    trainer: Option<Trainer>,
    /// Those weights laid out for sampling: made when first needed, dropped when they change.
    plan: RefCell<Planned>,
    /// What samples on CUDA.
    gpu: Option<RefCell<GpuModel<CudaCapture>>>,
    device: Device,
    log: Vec<String>,
}

impl DiffusionProcess {
    /// A process with fresh weights, determined by `config.seed`.
    pub fn new(config: ProcessConfig) -> Result<Self> {
        config.validate()?;
        let device = prepare_device(&config)?;
        let _no_grad = GradGuard::set(false);
        let parameters = Parameters::init(&config.unet, config.seed, device)?;
        Self::assemble(config, parameters, device)
    }

    /// A process from a checkpoint folder. `adjust` may change what the checkpoint says about training and
    /// computing before it is used.
    pub fn load(
        path: &Path,
        device: DeviceChoice,
        adjust: impl FnOnce(&mut ProcessConfig) -> Result<()>,
    ) -> Result<Self> {
        let found = checkpoint::read(path, Device::Cpu)?;
        check_supported(&found.unet).map_err(|reason| Error::format(path, reason))?;
        let meta = found.training.as_ref().map(|state| read_meta(path, state)).transpose()?;
        let mut config = ProcessConfig {
            unet: found.unet,
            scheduler: found.scheduler,
            training: meta.as_ref().map(|meta| meta.config.clone()).unwrap_or_default(),
            device,
            num_threads: 0,
            max_batch: 0,
            seed: meta.as_ref().map_or(0, |meta| meta.seed),
            inference_precision: InferencePrecision::default(),
            deterministic: false,
        };
        let saved = config.training.clone();
        if device == DeviceChoice::Cpu && config.training.mixed_precision == Precision::F16 {
            // Trained on a GPU, to be used on a CPU.
            config.training.mixed_precision = Precision::F32;
        }
        adjust(&mut config)?;
        config.validate()?;
        let device = prepare_device(&config)?;
        let _no_grad = GradGuard::set(false);
        let parameters = found.parameters.to(device)?;
        let mut process = Self::assemble(config, parameters, device)?;
        if let (Some(state), Some(meta)) = (found.training, meta) {
            process.restore(path, state, meta, &saved)?;
        }
        Ok(process)
    }

    fn assemble(mut config: ProcessConfig, parameters: Parameters, device: Device) -> Result<Self> {
        config.resolve(device);
        let schedule = NoiseSchedule::new(&config.scheduler.schedule)?;
        let model = DiffusionModel::new(&config.unet, &parameters)?;
        let log = schedule.warning().into_iter().collect();
        let plan = RefCell::new(Planned::Not);
        let gpu = match device.is_cuda() {
            true => Some(RefCell::new(GpuModel::new(
                &config.unet,
                device,
                gpu_precision(&config),
                if config.deterministic {
                    Batches::Full(config.max_batch)
                } else {
                    Batches::UpTo(config.max_batch)
                },
                CudaCapture::new(device),
            )?)),
            false => None,
        };
        let trainer = None;
        Ok(DiffusionProcess { config, schedule, parameters, model, trainer, plan, gpu, device, log })
    }

    fn trainer(&mut self) -> Result<&mut Trainer> {
        begun(&mut self.trainer, || new_trainer(&self.config, &self.parameters, self.device))
    }

    /// Writes a checkpoint folder; a crash leaves the old or the new one.
    pub fn save(&self, path: &Path) -> Result<()> {
        let _no_grad = GradGuard::set(false);
        let fresh;
        let trainer = match &self.trainer {
            Some(trainer) => trainer,
            None => {
                fresh = new_trainer(&self.config, &self.parameters, self.device)?;
                &fresh
            }
        };
        let mut tensors = Vec::new();
        if trainer.ema.is_some() {
            tensors.extend(
                trainer
                    .parameters
                    .trainable()
                    .map(|(name, t)| (format!("weights.{name}"), t.shallow_clone())),
            );
        }
        let averages = [("exp_avg", &trainer.adam.exp_avg), ("exp_avg_sq", &trainer.adam.exp_avg_sq)];
        for (kind, values) in averages {
            let named = trainer.parameters.trainable().zip(values);
            tensors.extend(named.map(|((name, _), value)| (format!("{kind}.{name}"), value.shallow_clone())));
        }
        tensors.push(("adam_step".into(), trainer.adam.step.shallow_clone()));
        if let Some(accumulated) = &trainer.accumulated {
            let named = trainer.parameters.trainable().zip(&accumulated.gradients);
            tensors
                .extend(named.map(|((name, _), sum)| (format!("accumulated.{name}"), sum.shallow_clone())));
            tensors.push(("accumulated_loss".into(), accumulated.loss.shallow_clone()));
        }
        let scaler = trainer.scaler.as_ref();
        let meta = TrainingMeta {
            step: trainer.step,
            calls: trainer.calls,
            accumulated_calls: trainer.accumulated.as_ref().map_or(0, |accumulated| accumulated.calls),
            seed: self.config.seed,
            learning_rate: trainer.adam.learning_rate,
            gradient_scale: scaler.map(|s| s.scale.f_double_value(&[])).transpose()?,
            growth_tracker: scaler.map(|s| s.growth_tracker.f_int64_value(&[])).transpose()?,
            config: self.config.training.clone(),
        };
        let meta = serde_json::to_value(meta).map_err(|error| Error::Internal(error.to_string()))?;
        self.write_checkpoint(path, Some(&TrainingState { tensors, meta }), WeightType::F32)
    }

    /// Writes the model alone: the weights that sampling uses, in the given type, and no training state.
    pub fn export(&self, path: &Path, weight_type: WeightType) -> Result<()> {
        self.write_checkpoint(path, None, weight_type)
    }

    fn write_checkpoint(
        &self,
        path: &Path,
        training: Option<&TrainingState>,
        weight_type: WeightType,
    ) -> Result<()> {
        let checkpoint = CheckpointRef {
            unet: &self.config.unet,
            parameters: &self.parameters,
            scheduler: &self.config.scheduler,
            training,
        };
        checkpoint::write(path, &checkpoint, weight_type)
    }

    /// Takes over the training state of a checkpoint whose sampling weights are in place already.
    fn restore(
        &mut self,
        path: &Path,
        state: TrainingState,
        meta: TrainingMeta,
        saved: &TrainingConfig,
    ) -> Result<()> {
        let (device, wanted_rate) = (self.device, self.config.training.learning_rate);
        let trainer = self.trainer()?;
        let mut found: std::collections::HashMap<String, Tensor> = state.tensors.into_iter().collect();
        let names: Vec<String> = trainer.parameters.trainable().map(|(name, _)| name.to_owned()).collect();
        let mut take_into = |kind: &str, name: &str, into: &Tensor| -> Result<()> {
            let key = format!("{kind}.{name}");
            let Some(value) = found.remove(&key) else {
                return Err(Error::format(path, format!("the training state lacks the tensor {key}")));
            };
            if value.size() != into.size() {
                let (got, need) = (value.size(), into.size());
                return Err(Error::format(
                    path,
                    format!("{key} of the training state is {got:?}: must be {need:?}"),
                ));
            }
            into.shallow_clone().f_copy_(&value)?;
            Ok(())
        };
        let mut sums = Vec::new();
        for (i, name) in names.iter().enumerate() {
            if let (true, Some(weights)) = (saved.ema_decay > 0.0, trainer.parameters.get(name)) {
                take_into("weights", name, weights)?;
            }
            if let (Some(first), Some(second)) = (trainer.adam.exp_avg.get(i), trainer.adam.exp_avg_sq.get(i))
            {
                take_into("exp_avg", name, first)?;
                take_into("exp_avg_sq", name, second)?;
                if meta.accumulated_calls > 0 {
                    let sum = first.f_empty_like()?;
                    take_into("accumulated", name, &sum)?;
                    sums.push(sum);
                }
            }
        }
        let mut take_scalar = |name: &str| -> Result<Tensor> {
            let value = found.remove(name).filter(|value| value.numel() == 1).ok_or_else(|| {
                Error::format(path, format!("the training state has no tensor {name} of one number"))
            })?;
            Ok(value.f_view([])?.f_to_kind(Kind::Float)?.f_to_device(device)?)
        };
        trainer.adam.step = take_scalar("adam_step")?;
        if meta.accumulated_calls > 0 {
            trainer.accumulated = Some(Accumulated {
                gradients: sums,
                loss: take_scalar("accumulated_loss")?,
                calls: meta.accumulated_calls,
            });
        }
        if let (Some(scaler), Some(scale)) = (&mut trainer.scaler, meta.gradient_scale) {
            *scaler = GradScaler::restore(scale, meta.growth_tracker.unwrap_or(0), device)?;
        }
        // A learning rate that was set during training is a state; one that the caller now asks for wins.
        if wanted_rate == saved.learning_rate {
            trainer.adam.learning_rate = meta.learning_rate;
        }
        trainer.step = meta.step;
        trainer.calls = meta.calls;
        self.weights_changed();
        Ok(())
    }

    /// What the process is.
    pub fn config(&self) -> &ProcessConfig {
        &self.config
    }

    /// Its noise schedule.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Names and shapes of the U-Net's parameters, in diffusers' order.
    pub fn parameter_infos(&self) -> Vec<ParameterInfo> {
        self.parameters
            .iter()
            .map(|(name, value)| ParameterInfo { name: name.to_owned(), shape: value.size() })
            .collect()
    }

    /// Warnings since the last call.
    pub fn take_log(&mut self) -> Vec<String> {
        if let Some(gpu) = &mut self.gpu {
            self.log.append(&mut gpu.get_mut().take_notes());
        }
        std::mem::take(&mut self.log)
    }

    /// Noises `images` `[batch, channels, height, width]` to `timesteps` `[batch]`; the noise of image i is
    /// determined by (seed, i).
    pub fn add_noise(&self, images: &[f32], timesteps: &[i64], seed: u64) -> Result<Noised> {
        self.config.check_timesteps(timesteps)?;
        let images = self.to_tensor(images)?;
        let streams: Vec<Stream> =
            (0..timesteps.len() as u64).map(|i| Stream::new(Domain::Sample, seed, i)).collect();
        let noise = self.normal(&streams, 0)?;
        let noisy = self.schedule.add_noise(&images, &noise, timesteps)?;
        Ok(Noised { noisy: to_vec(&noisy)?, noise: to_vec(&noise)? })
    }

    /// The network's answer for noisy `images` at `timesteps`, with the weights that sampling uses.
    /// `class_labels`, one for each image, where the network has classes.
    pub fn predict_noise(
        &self,
        images: &[f32],
        timesteps: &[i64],
        class_labels: Option<&[i64]>,
    ) -> Result<Vec<f32>> {
        self.config.check_timesteps(timesteps)?;
        self.config.check_class_labels(class_labels)?;
        let timesteps: Vec<f64> = timesteps.iter().map(|&t| t as f64).collect();
        to_vec(&self.denoise(&self.to_tensor(images)?, &timesteps, class_labels)?)
    }

    /// [`Self::predict_noise`] on tensors: `x` `[batch, channels, height, width]`, a timestep for each, and a class
    /// label, which has been checked.
    pub fn denoise(&self, x: &Tensor, timesteps: &[f64], class_labels: Option<&[i64]>) -> Result<Tensor> {
        let _no_grad = GradGuard::set(false);
        if let Some(gpu) = &self.gpu {
            return gpu.borrow_mut().forward(&self.parameters, x, timesteps, class_labels);
        }
        if let Some(output) = self.denoise_planned(x, timesteps, class_labels)? {
            return Ok(output);
        }
        let timesteps = Tensor::f_from_slice(timesteps)?.f_to_kind(Kind::Float)?.f_to_device(self.device)?;
        let labels = class_labels.map(Tensor::f_from_slice).transpose()?;
        let labels = labels.map(|labels| labels.f_to_device(self.device)).transpose()?;
        // libtorch's kernels round an image by the batch that it is in: each is computed alone.
        let images = (0..timesteps.numel() as i64).map(|i| {
            let label = labels.as_ref().map(|labels| labels.f_narrow(0, i, 1)).transpose()?;
            self.model.forward(&x.f_narrow(0, i, 1)?, &timesteps.f_narrow(0, i, 1)?, label.as_ref(), None)
        });
        Ok(Tensor::f_cat(&images.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// [`Self::denoise`] by the inference plan, where the network has one.
    fn denoise_planned(
        &self,
        x: &Tensor,
        timesteps: &[f64],
        class_labels: Option<&[i64]>,
    ) -> Result<Option<Tensor>> {
        let mut plan = self.plan.borrow_mut();
        if matches!(*plan, Planned::Not) {
            let size = self.config.image_size();
            let made = InferencePlan::new(&self.model, size, size, self.plan_weights())?;
            *plan = made.map_or(Planned::Never, |plan| Planned::Made(Box::new(plan)));
        }
        match &mut *plan {
            Planned::Made(plan) if plan.fits(&x.size()) => {
                Ok(Some(plan.forward(&self.model, x, timesteps, class_labels)?))
            }
            _ => Ok(None),
        }
    }

    fn plan_weights(&self) -> PlanWeights {
        match self.config.inference_precision {
            InferencePrecision::Bf16 => PlanWeights::Bf16,
            _ => PlanWeights::F32,
        }
    }

    /// Has the plan made anew when it is next needed: to be called by whatever changes weights.
    fn weights_changed(&mut self) {
        let plan = self.plan.get_mut();
        if matches!(plan, Planned::Made(_)) {
            *plan = Planned::Not;
        }
        if let Some(gpu) = &mut self.gpu {
            gpu.get_mut().weights_changed();
        }
    }

    /// Samples one image for each stream, all in lock step; `[streams, channels, height, width]` in [-1, 1].
    pub fn sample(
        &self,
        params: &SamplerParams,
        streams: &[Stream],
        class_labels: Option<&[i64]>,
    ) -> Result<Vec<f32>> {
        self.config.check_class_labels(class_labels)?;
        let mut sampler = params.build(&self.schedule)?;
        let mut draw = 0;
        let mut x = self.normal(streams, draw)?;
        while let Some(t) = sampler.timestep() {
            let output = self.denoise(&x, &vec![t; streams.len()], class_labels)?;
            x = sampler.step(&x, &output, &mut || {
                draw += 1;
                self.normal(streams, draw)
            })?;
        }
        to_vec(&x)
    }

    /// Standard normal noise for each stream: draw number `draw` of its own; `[streams, channels, height, width]`.
    pub fn normal(&self, streams: &[Stream], draw: u32) -> Result<Tensor> {
        let (channels, size) = (self.config.channels() as i64, self.config.image_size() as i64);
        let each = self.config.image_len();
        let values = match self.config.deterministic {
            // Where noise is made depends on how much of it there is, and shows in the last bit.
            true => noise::device::normal_by_host(streams, draw, each, self.device)?,
            false => noise::device::normal(streams, draw, each, self.device)?,
        };
        Ok(values.f_view([-1, channels, size, size])?)
    }

    /// One training step, or one of the `accumulation_steps` parts of one, on `images`
    /// `[batch, channels, height, width]` with a class label for each where the network has classes; the loss, if
    /// wanted or free. `cancelled` is asked before anything changes.
    pub fn train_step(
        &mut self,
        images: &[f32],
        class_labels: Option<&[i64]>,
        want_loss: bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<f32>> {
        self.config.check_class_labels(class_labels)?;
        let images = self.to_tensor(images)?;
        let trainer = begun(&mut self.trainer, || new_trainer(&self.config, &self.parameters, self.device))?;
        let context = StepContext {
            class_labels,
            config: &self.config.training,
            schedule: &self.schedule,
            prediction: self.config.scheduler.prediction,
            seed: self.config.seed,
            want_loss,
            cancelled,
        };
        let before = trainer.step;
        let loss = trainer.train_step(&images, &context);
        // A call that only adds to the gradient leaves the plan as it is; of one that failed nobody knows.
        if loss.is_err() || trainer.step != before {
            self.weights_changed();
        }
        loss
    }

    /// Training steps taken.
    pub fn step_count(&self) -> u64 {
        self.trainer.as_ref().map_or(0, |trainer| trainer.step)
    }

    /// The optimizer's learning rate, before warm-up and decay.
    pub fn learning_rate(&self) -> f64 {
        self.trainer.as_ref().map_or(self.config.training.learning_rate, |trainer| trainer.adam.learning_rate)
    }

    /// Sets it, from the next step on.
    pub fn set_learning_rate(&mut self, value: f64) -> Result<()> {
        check_learning_rate(value)?;
        self.trainer()?.adam.learning_rate = value;
        Ok(())
    }

    /// The gradient scaler's scale; 1 without one.
    pub fn gradient_scale(&self) -> Result<f64> {
        match (&self.trainer, self.config.training.mixed_precision) {
            (Some(Trainer { scaler: Some(scaler), .. }), _) => Ok(scaler.scale.f_double_value(&[])?),
            (None, Precision::F16) => Ok(grad_scaler::INITIAL_SCALE),
            _ => Ok(1.0),
        }
    }

    /// The values of one parameter.
    pub fn read_parameter(&self, weights: Weights, name: &str) -> Result<Vec<f32>> {
        to_vec(&self.weight(weights, name)?.f_detach()?)
    }

    /// Replaces the values of one parameter.
    pub fn write_parameter(&mut self, weights: Weights, name: &str, values: &[f32]) -> Result<()> {
        let _no_grad = GradGuard::set(false);
        let numel = self.weight(weights, name)?.numel();
        if values.len() != numel {
            return Err(Error::argument("the number of values", values.len(), format!("{numel} for {name}")));
        }
        if self.config.training.ema_decay > 0.0 {
            // From here on the weights and their average differ.
            self.trainer()?;
        }
        let mut to = self.weight(weights, name)?.shallow_clone();
        to.f_copy_(&Tensor::f_from_slice(values)?.f_view(to.size().as_slice())?)?;
        self.weights_changed();
        Ok(())
    }

    fn weight(&self, weights: Weights, name: &str) -> Result<&Tensor> {
        let set = match weights {
            Weights::Trained => self.trainer.as_ref().map_or(&self.parameters, |trainer| &trainer.parameters),
            Weights::Ema => &self.parameters,
        };
        set.get(name).ok_or_else(|| unknown_parameter(name))
    }

    /// Images on the device, `[batch, channels, height, width]`.
    pub fn to_tensor(&self, images: &[f32]) -> Result<Tensor> {
        let (channels, size) = (self.config.channels() as i64, self.config.image_size() as i64);
        let count = (images.len() / self.config.image_len().max(1)) as i64;
        cuda::upload(images, &[count, channels, size, size], self.device)
    }
}

/// A trainer at step 0 of the weights to sample with; with EMA, of those that these are the moving average of.
fn new_trainer(config: &ProcessConfig, parameters: &Parameters, device: Device) -> Result<Trainer> {
    Trainer::new(&config.unet, parameters.share(), &config.training, device)
}

/// The trainer that is there, or a new one.
fn begun(trainer: &mut Option<Trainer>, new: impl FnOnce() -> Result<Trainer>) -> Result<&mut Trainer> {
    let begun = match trainer.take() {
        Some(trainer) => trainer,
        None => new()?,
    };
    Ok(trainer.insert(begun))
}

/// The error for a parameter that does not exist.
pub fn unknown_parameter(name: &str) -> Error {
    Error::argument("name", format!("{name:?}"), "the name of a parameter, such as \"conv_in.weight\"")
}

/// Copies a tensor to the host as f32.
pub fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    let mut values = memory::zeroed(tensor.numel())?;
    if tensor.device().is_cuda() {
        cuda::download(tensor, &mut values)?;
        return Ok(values);
    }
    let tensor = tensor.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

/// What to sample in on CUDA; `None`: f32.
fn gpu_precision(config: &ProcessConfig) -> Option<LowPrecision> {
    match config.inference_precision {
        InferencePrecision::F32 => None,
        InferencePrecision::F16 => Some(LowPrecision::F16),
        InferencePrecision::Bf16 | InferencePrecision::Auto => Some(LowPrecision::Bf16),
    }
}

/// What the network's own module can do and a process cannot, in diffusers' names, since it comes from a file.
fn check_supported(unet: &UnetConfig) -> std::result::Result<(), String> {
    let (inputs, outputs) = (unet.in_channels, unet.out_channels);
    if inputs != outputs {
        return Err(format!(
            "out_channels is {outputs}: must be in_channels ({inputs}); learned variances are not supported"
        ));
    }
    if unet.class_embedding == ClassEmbedding::Identity {
        return Err(
            "class_embed_type is \"identity\": must be null or \"timestep\"; classes are whole numbers"
                .into(),
        );
    }
    let (levels, most) = (unet.block_out_channels.len(), MAX_LEVELS);
    if levels > most {
        return Err(format!("block_out_channels has {levels} levels: must have at most {most}"));
    }
    Ok(())
}

fn read_meta(path: &Path, state: &TrainingState) -> Result<TrainingMeta> {
    let meta: TrainingMeta = serde_json::from_value(state.meta.clone())
        .map_err(|error| Error::format(path, format!("the training state's description: {error}")))?;
    meta.config
        .validate()
        .and_then(|()| check_learning_rate(meta.learning_rate))
        .map_err(|error| Error::format(path, format!("the training state's description: {error}")))?;
    Ok(meta)
}

/// Finds the device and prepares this thread to compute on it.
fn prepare_device(config: &ProcessConfig) -> Result<Device> {
    let device = config.device.resolve()?;
    match device {
        Device::Cuda(index) => torch::use_own_stream(index as i32)?,
        _ if config.num_threads > 0 => tch::set_num_threads(config.num_threads as i32),
        _ => {}
    }
    if config.training.mixed_precision == Precision::F16 && !device.is_cuda() {
        return Err(Error::InvalidArgument(
            "mixed_precision is F16 and device is AUTO, which is the CPU here: must be F32 or BF16; F16 needs CUDA".into(),
        ));
    }
    if config.inference_precision == InferencePrecision::F16 && !device.is_cuda() {
        return Err(Error::InvalidArgument(
            "inference_precision is F16 and device is AUTO, which is the CPU here: must be F32, BF16 or AUTO; F16 \
             needs CUDA"
                .into(),
        ));
    }
    Ok(device)
}
