//! The network as a GPU wants it: the weights in the format that it computes in, channels last, and its steps
//! captured as graphs ([`crate::graphs`]).
//!
//! Nothing here is CUDA's alone: without graphs the same code runs on the CPU, which is how it is tested.

use tch::{Device, Kind, Tensor};

use super::config::UnetConfig;
use super::model::DiffusionModel;
use super::parameters::Parameters;
use crate::graphs::{bucket, Capture, GraphCache, Plan};
use crate::torch::cuda::{upload, Pace};
use crate::torch::LowPrecision;
use crate::{Error, Result};

/// Graphs that one network keeps; a service with requests that come and go sees about so many sizes at a time.
pub const MAX_GRAPHS: usize = 8;

/// How many rows an evaluation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batches {
    /// About as many as there are images, and at most so many.
    UpTo(usize),
    /// Always so many, those without an image being computed for nothing: then the same kernels make an image, in the
    /// same order, whatever the batch.
    Full(usize),
}

/// Of a network on a GPU, all that sampling needs.
pub struct GpuModel<C: Capture> {
    config: UnetConfig,
    /// What to compute in; `None`: f32.
    precision: Option<LowPrecision>,
    device: Device,
    batches: Batches,
    /// The network with the weights of now: made when first needed.
    model: Option<DiffusionModel>,
    /// Before `capture`, whose memory they share.
    graphs: GraphCache<Step<C::Graph>>,
    capture: Option<C>,
    pace: Option<Pace>,
    notes: Vec<String>,
}

/// What a graph reads and writes.
struct Slots {
    /// [size, channels, height, width], f32.
    x: Tensor,
    /// [size], f32.
    timesteps: Tensor,
    /// [size], int64, where the network has classes.
    labels: Option<Tensor>,
}

/// A captured step.
struct Step<G> {
    graph: G,
    slots: Slots,
    /// [size, channels, height, width], in what the network computes in.
    output: Tensor,
}

impl<C: Capture> GpuModel<C> {
    /// A network on this device. Without `capture`, every step is computed as it comes.
    pub fn new(
        config: &UnetConfig,
        device: Device,
        precision: Option<LowPrecision>,
        batches: Batches,
        capture: Option<C>,
    ) -> Result<Self> {
        Ok(GpuModel {
            config: config.clone(),
            precision,
            device,
            batches,
            model: None,
            graphs: GraphCache::new(if capture.is_some() { MAX_GRAPHS } else { 0 }),
            capture,
            pace: Pace::new(device)?,
            notes: Vec::new(),
        })
    }

    /// Forgets the weights: to be called when they have changed. The graphs have their addresses and go too.
    pub fn weights_changed(&mut self) {
        self.graphs.clear();
        self.model = None;
    }

    /// How many graphs there are.
    pub fn graphs(&self) -> usize {
        self.graphs.len()
    }

    /// What there was to say since the last call.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// As [`DiffusionModel::forward`] with these weights: `x` [batch, channels, height, width], f32, on the device; a
    /// timestep and, where the network has classes, a label for each image. The answer is f32.
    pub fn forward(
        &mut self,
        parameters: &Parameters,
        x: &Tensor,
        timesteps: &[f64],
        labels: Option<&[i64]>,
    ) -> Result<Tensor> {
        let outcome = match self.step(parameters, x, timesteps, labels) {
            // What the graphs hold may be what is missing.
            Err(Error::OutOfMemory(_)) if self.graphs.clear() => self.eager(parameters, x, timesteps, labels),
            other => other,
        };
        if let Some(pace) = &mut self.pace {
            pace.turn()?;
        }
        outcome
    }

    fn step(
        &mut self,
        parameters: &Parameters,
        x: &Tensor,
        timesteps: &[f64],
        labels: Option<&[i64]>,
    ) -> Result<Tensor> {
        let batch = timesteps.len();
        let size = self.rows(batch);
        match (self.graphs.plan(size), &self.capture) {
            (Plan::Replay(step), Some(capture)) => {
                step.slots.fill(x, timesteps, labels)?;
                capture.replay(&step.graph)?;
                first_rows(&step.output, batch)
            }
            (Plan::Capture, Some(_)) => self.capture(parameters, size, x, timesteps, labels),
            _ => self.eager(parameters, x, timesteps, labels),
        }
    }

    fn rows(&self, batch: usize) -> usize {
        match self.batches {
            Batches::UpTo(most) => bucket(batch, most),
            Batches::Full(rows) => rows.max(batch),
        }
    }

    /// Computes a step, and captures it for the next time.
    fn capture(
        &mut self,
        parameters: &Parameters,
        size: usize,
        x: &Tensor,
        timesteps: &[f64],
        labels: Option<&[i64]>,
    ) -> Result<Tensor> {
        // Before memory is asked for.
        if self.graphs.is_full() {
            self.graphs.drop_oldest();
        }
        let slots = Slots::new(size, x, labels.is_some())?;
        slots.fill(x, timesteps, labels)?;
        let model = self.model(parameters)?;
        // Once as it comes: kernels are loaded, plans and workspaces made, which a capture must not do. What it answers
        // is the answer.
        let answer = first_rows(&slots.forward(model)?, timesteps.len())?;
        let mut output = None;
        let captured = match (&self.capture, &self.model) {
            (Some(capture), Some(model)) => capture.capture(&mut || {
                output = Some(slots.forward(model)?);
                Ok(())
            }),
            _ => Err(Error::Internal("there is nothing to capture with".into())),
        };
        match (captured, output) {
            (Ok(graph), Some(output)) => self.graphs.keep(size, Step { graph, slots, output }),
            (outcome, _) => {
                let reason = outcome.err().map_or("no output".into(), |error| error.to_string());
                self.graphs.refuse(size);
                self.notes.push(format!(
                    "a denoising step of {size} images cannot be captured as a CUDA graph and is launched kernel by \
                     kernel, more slowly: {reason}"
                ));
            }
        }
        Ok(answer)
    }

    fn eager(
        &mut self,
        parameters: &Parameters,
        x: &Tensor,
        timesteps: &[f64],
        labels: Option<&[i64]>,
    ) -> Result<Tensor> {
        let (device, rows) = (self.device, self.rows(timesteps.len()));
        let full = matches!(self.batches, Batches::Full(_));
        let model = self.model(parameters)?;
        if full {
            let slots = Slots::new(rows, x, labels.is_some())?;
            slots.fill(x, timesteps, labels)?;
            return first_rows(&slots.forward(model)?, timesteps.len());
        }
        let slots = Slots {
            x: x.shallow_clone(),
            timesteps: upload_timesteps(timesteps, device)?,
            labels: labels.map(|labels| upload(labels, &[labels.len() as i64], device)).transpose()?,
        };
        Ok(slots.forward(model)?.f_to_kind(Kind::Float)?)
    }

    /// The network with the weights of now.
    fn model(&mut self, parameters: &Parameters) -> Result<&DiffusionModel> {
        let made = match self.model.take() {
            Some(model) => model,
            None => match self.precision {
                None => DiffusionModel::new(&self.config, parameters)?,
                Some(precision) => {
                    let kind = match precision {
                        LowPrecision::Bf16 => Kind::BFloat16,
                        LowPrecision::F16 => Kind::Half,
                    };
                    let converted = parameters.map_trainable(|tensor| laid_out(tensor, kind))?;
                    DiffusionModel::new(&self.config, &converted)?
                }
            },
        };
        Ok(self.model.insert(made))
    }
}

impl Slots {
    fn new(size: usize, x: &Tensor, labelled: bool) -> Result<Self> {
        let (size, device) = (size as i64, x.device());
        let mut shape = x.size();
        if let Some(batch) = shape.first_mut() {
            *batch = size;
        }
        Ok(Slots {
            x: Tensor::f_zeros(shape, (Kind::Float, device))?,
            // Rows that are for nothing are computed all the same, and a Fourier embedding takes their logarithm.
            timesteps: Tensor::f_ones([size], (Kind::Float, device))?,
            labels: match labelled {
                true => Some(Tensor::f_zeros([size], (Kind::Int64, device))?),
                false => None,
            },
        })
    }

    /// Sets the first rows.
    fn fill(&self, x: &Tensor, timesteps: &[f64], labels: Option<&[i64]>) -> Result<()> {
        let (batch, device) = (timesteps.len() as i64, self.x.device());
        self.x.f_narrow(0, 0, batch)?.f_copy_(x)?;
        self.timesteps.f_narrow(0, 0, batch)?.f_copy_(&upload_timesteps(timesteps, device)?)?;
        if let (Some(slot), Some(labels)) = (&self.labels, labels) {
            slot.f_narrow(0, 0, batch)?.f_copy_(&upload(labels, &[batch], device)?)?;
        }
        Ok(())
    }

    /// The network's answer, in what it computes in.
    fn forward(&self, model: &DiffusionModel) -> Result<Tensor> {
        let kind = model.conv_in.weight.f_kind()?;
        let x = match kind {
            Kind::Float => self.x.shallow_clone(),
            _ => laid_out(&self.x, kind)?,
        };
        model.forward(&x, &self.timesteps, self.labels.as_ref(), None)
    }
}

fn upload_timesteps(timesteps: &[f64], device: Device) -> Result<Tensor> {
    let timesteps: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
    upload(&timesteps, &[timesteps.len() as i64], device)
}

/// A copy of the first rows in f32, which the next replay does not overwrite.
fn first_rows(output: &Tensor, rows: usize) -> Result<Tensor> {
    Ok(output.f_narrow(0, 0, rows as i64)?.f_internal_to_copy((Kind::Float, output.device()), false)?)
}

/// A tensor in another number type, images and convolutions with their channels last: what tensor cores want.
fn laid_out(tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    let tensor = tensor.f_detach()?.f_to_kind(kind)?;
    match tensor.dim() {
        4 => Ok(tensor.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?),
        _ => Ok(tensor),
    }
}
