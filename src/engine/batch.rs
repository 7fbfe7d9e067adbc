//! Continuous batching: the images that are being denoised, whoever asked for them.
//!
//! Each image in flight has its own timestep, so requests join and leave at any denoising step, and one evaluation
//! of the network serves them all. Images that started together with equal parameters share one sampler and go in
//! lock step: a lane.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::job::Job;
use super::model::Batching;
use crate::memory;
use crate::noise::Stream;
use crate::process::{to_vec, DiffusionProcess};
use crate::sampler::{Sampler, SamplerParams};
use crate::torch::cuda::upload;
use crate::{Error, Result};

/// One image in flight.
struct Image {
    job: Arc<Job>,
    index: usize,
    stream: Stream,
}

/// Images in lock step.
struct Lane {
    sampler: Box<dyn Sampler>,
    images: Vec<Image>,
    /// `[images, channels, height, width]`
    x: Tensor,
    /// Draws that each image's stream has given.
    draws: u32,
}

/// A job of which some images have not started.
struct Waiting {
    job: Arc<Job>,
    next: usize,
    /// Whether [`Batch::warnings`] has looked at it.
    checked: bool,
}

/// All images in flight and those that wait for room.
pub struct Batch {
    lanes: Vec<Lane>,
    waiting: VecDeque<Waiting>,
    capacity: usize,
    /// The most images that have fitted into one evaluation since memory last ran out.
    chunk: usize,
    /// What [`Batch::warnings`] has said.
    said: HashSet<String>,
}

impl Batch {
    pub(super) fn new(capacity: usize) -> Self {
        Batch { lanes: Vec::new(), waiting: VecDeque::new(), capacity, chunk: capacity, said: HashSet::new() }
    }
}

impl Batching<DiffusionProcess> for Batch {
    fn is_empty(&self) -> bool {
        self.lanes.is_empty() && self.waiting.is_empty()
    }

    fn add(&mut self, job: Arc<Job>) {
        self.waiting.push_back(Waiting { job, next: 0, checked: false });
    }

    fn warnings(&mut self, process: &DiffusionProcess) -> Vec<String> {
        let mut lines = Vec::new();
        for waiting in self.waiting.iter_mut().filter(|waiting| !waiting.checked) {
            waiting.checked = true;
            let line = waiting.job.sampler.warning(process.schedule());
            lines.extend(line.filter(|line| self.said.insert(line.clone())));
        }
        lines
    }

    fn fail_all(&mut self, error: &Error) {
        let lanes = self.lanes.drain(..).flat_map(|lane| lane.images).map(|image| image.job);
        for job in lanes.chain(self.waiting.drain(..).map(|waiting| waiting.job)) {
            job.end(Err(error.clone()));
        }
    }

    /// One denoising step of everything in flight, after letting in what waits and dropping what has ended.
    fn step(&mut self, process: &DiffusionProcess) {
        let outcome = self.drop_ended().and_then(|()| {
            self.admit(process);
            if self.lanes.is_empty() {
                return Ok(());
            }
            self.denoise(process)
        });
        if let Err(error) = outcome {
            self.fail_all(&error);
        }
    }
}

impl Batch {
    fn drop_ended(&mut self) -> Result<()> {
        self.waiting.retain(|waiting| !waiting.job.has_ended());
        for lane in &mut self.lanes {
            let stays: Vec<bool> = lane.images.iter().map(|image| !image.job.has_ended()).collect();
            if stays.iter().all(|&stays| stays) {
                continue;
            }
            let rows: Vec<i64> =
                stays.iter().zip(0..).filter(|(&stays, _)| stays).map(|(_, row)| row).collect();
            let rows = upload(&rows, &[rows.len() as i64], lane.x.device())?;
            lane.x = lane.x.f_index_select(0, &rows)?;
            lane.sampler.keep_rows(&rows)?;
            let mut stays = stays.iter();
            lane.images.retain(|_| stays.next().is_some_and(|&stays| stays));
        }
        self.lanes.retain(|lane| !lane.images.is_empty());
        Ok(())
    }

    /// Starts as many waiting images as there is room for, one of each job in turn, so that a large request does not
    /// keep a small one waiting.
    fn admit(&mut self, process: &DiffusionProcess) {
        let mut room = self.capacity.saturating_sub(self.lanes.iter().map(|lane| lane.images.len()).sum());
        let mut arrived: Vec<(SamplerParams, Vec<Image>)> = Vec::new();
        while room > 0 {
            let Some(mut first) = self.waiting.pop_front() else { break };
            let (job, index) = (Arc::clone(&first.job), first.next);
            job.begin();
            let image = Image { stream: job.stream(index), index, job };
            match arrived.iter_mut().find(|(params, _)| *params == image.job.sampler) {
                Some((_, images)) => images.push(image),
                None => arrived.push((image.job.sampler, vec![image])),
            }
            first.next += 1;
            if first.next < first.job.num_samples {
                self.waiting.push_back(first);
            }
            room -= 1;
        }
        for (params, images) in arrived {
            let begun = params
                .build(process.schedule())
                .and_then(|sampler| Ok((sampler, initial_noise(process, &images)?)));
            match begun {
                Ok((sampler, x)) => self.lanes.push(Lane { sampler, images, x, draws: 0 }),
                // Those in flight are none the worse for it.
                Err(error) => images.iter().for_each(|image| image.job.end(Err(error.clone()))),
            }
        }
    }

    fn denoise(&mut self, process: &DiffusionProcess) -> Result<()> {
        let outputs = self.evaluate(process)?;
        for (lane, output) in self.lanes.iter_mut().zip(&outputs) {
            let Lane { sampler, images, x, draws, .. } = lane;
            *x = sampler.step(x, output, &mut || {
                *draws += 1;
                let streams: Vec<Stream> = images.iter().map(|image| image.stream).collect();
                process.normal(&streams, *draws)
            })?;
        }
        let (finished, going): (Vec<Lane>, Vec<Lane>) =
            std::mem::take(&mut self.lanes).into_iter().partition(|lane| lane.sampler.timestep().is_none());
        self.lanes = going;
        self.lanes
            .iter()
            .chain(&finished)
            .try_for_each(|lane| preview(lane, process.config().image_len()))?;
        // Progress first: whoever waits sees the last step before the end.
        for lane in self.lanes.iter().chain(&finished) {
            report(&lane.images);
        }
        finished.iter().try_for_each(|lane| finish(lane, process.config().image_len()))
    }

    /// The network's answer for each lane, in as few evaluations as memory allows.
    fn evaluate(&mut self, process: &DiffusionProcess) -> Result<Vec<Tensor>> {
        let timesteps: Vec<f64> = self
            .lanes
            .iter()
            .flat_map(|lane| std::iter::repeat_n(lane.sampler.timestep().unwrap_or(0.0), lane.images.len()))
            .collect();
        let images = self.lanes.iter().flat_map(|lane| &lane.images);
        // All of them or none: the network has classes or has not.
        let labels: Option<Vec<i64>> = images.map(|image| image.job.class_label(image.index)).collect();
        let inputs: Vec<&Tensor> = self.lanes.iter().map(|lane| &lane.x).collect();
        let x = match inputs.as_slice() {
            [only] => only.shallow_clone(),
            many => Tensor::f_cat(many, 0)?,
        };
        let output = loop {
            match evaluate_chunked(process, &x, &timesteps, labels.as_deref(), self.chunk) {
                // Part of the memory may be the host's only for now; a smaller batch is slower, not wrong.
                Err(Error::OutOfMemory(_)) if self.chunk > 1 => {
                    self.chunk = self.chunk.min(timesteps.len()).div_ceil(2)
                }
                other => break other?,
            }
        };
        let mut row = 0;
        self.lanes
            .iter()
            .map(|lane| {
                let rows = lane.images.len() as i64;
                let part = output.f_narrow(0, row, rows)?;
                row += rows;
                Ok(part)
            })
            .collect()
    }
}

fn evaluate_chunked(
    process: &DiffusionProcess,
    x: &Tensor,
    timesteps: &[f64],
    labels: Option<&[i64]>,
    chunk: usize,
) -> Result<Tensor> {
    if timesteps.len() <= chunk {
        return process.denoise(x, timesteps, labels);
    }
    let mut row = 0;
    let parts = timesteps
        .chunks(chunk)
        .map(|timesteps| {
            let rows = row..row + timesteps.len();
            let x = x.f_narrow(0, row as i64, timesteps.len() as i64)?;
            let part = process.denoise(&x, timesteps, labels.and_then(|labels| labels.get(rows)))?;
            row += timesteps.len();
            Ok(part)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// `[images, channels, height, width]`: what each image starts from.
fn initial_noise(process: &DiffusionProcess, images: &[Image]) -> Result<Tensor> {
    if images.iter().all(|image| image.job.initial_noise(image.index).is_none()) {
        let streams: Vec<Stream> = images.iter().map(|image| image.stream).collect();
        return process.normal(&streams, 0);
    }
    let mut values = memory::zeroed(images.len() * process.config().image_len())?;
    for (image, slot) in images.iter().zip(values.chunks_exact_mut(process.config().image_len())) {
        match image.job.initial_noise(image.index) {
            Some(given) => slot.copy_from_slice(given),
            None => image.stream.fill_normal(0, slot),
        }
    }
    process.to_tensor(&values)
}

/// Hands estimates of a lane's images to the jobs that want them.
fn preview(lane: &Lane, image_len: usize) -> Result<()> {
    let (true, Some(x0)) =
        (lane.images.iter().any(|image| image.job.wants_preview()), lane.sampler.last_x0())
    else {
        return Ok(());
    };
    let values = to_vec(&x0.f_clamp(-1.0, 1.0)?)?;
    for (image, pixels) in lane.images.iter().zip(values.chunks_exact(image_len.max(1))) {
        image.job.put_preview(image.index, pixels);
    }
    Ok(())
}

/// Hands a finished lane's images to their jobs.
fn finish(lane: &Lane, image_len: usize) -> Result<()> {
    let values = to_vec(&lane.x.f_to_kind(Kind::Float)?)?;
    for (image, pixels) in lane.images.iter().zip(values.chunks_exact(image_len.max(1))) {
        if pixels.iter().all(|value| value.is_finite()) {
            image.job.put_image(image.index, pixels);
        } else {
            image.job.end(Err(Error::NonFinite(format!(
                "image {} came out as NaN or infinity: the weights are broken (diverged in training?)",
                image.index
            ))));
        }
    }
    Ok(())
}

/// Counts one step for each image, job by job.
fn report(images: &[Image]) {
    for run in images.chunk_by(|a, b| Arc::ptr_eq(&a.job, &b.job)) {
        if let Some(first) = run.first() {
            first.job.advance(run.len() as u64);
        }
    }
}
