//! A sampling job: what was asked for, how far it is, and what came of it.
//!
//! A job ends exactly once, by whoever comes first: the worker with images or an error, a cancel, a deadline. The
//! worker notices that a job has ended and drops its images at the next denoising step.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::noise::{Domain, Stream};
use crate::pixels::Format;
use crate::sampler::SamplerParams;
use crate::{memory, Error, Result};

/// Told of progress as (done, total); an error ends the job with it.
pub type Progress = Box<dyn FnMut(u64, u64) -> Result<()> + Send>;

/// What to sample.
pub struct SampleRequest {
    /// How.
    pub sampler: SamplerParams,
    /// How many images.
    pub num_samples: usize,
    /// Image i is determined by (seed, i).
    pub seed: u64,
    /// Or, where not empty, by (seeds\[i\], 0).
    pub seeds: Vec<u64>,
    /// The class of each image; empty where the network has no classes.
    pub class_labels: Vec<i64>,
    /// The noise to start from in place of the seeds', `[num_samples, channels, height, width]`.
    pub initial_noise: Option<Vec<f32>>,
    /// The format of the result.
    pub format: Format,
    /// Ends the job after this long.
    pub timeout: Option<Duration>,
    /// Called by those who wait.
    pub progress: Option<Progress>,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Not begun.
    Queued,
    /// Being computed.
    Running,
    /// The images are there.
    Done,
    /// Ended with an error.
    Failed,
    /// Ended by a cancel, a deadline or the end of its process.
    Cancelled,
}

struct Inner {
    running: bool,
    /// `[num_samples, channels, height, width]`, filled image by image.
    images: Vec<f32>,
    images_left: usize,
    /// The latest estimates of the images, once somebody has asked for them.
    preview: Option<Preview>,
    outcome: Option<Result<()>>,
}

struct Preview {
    /// `[num_samples, channels, height, width]`; 0, mid-gray, where an image has not begun.
    images: Vec<f32>,
    /// Whether `images` has changed since `done` was counted.
    fresh: bool,
    /// Denoising steps of the job that `images` stems from.
    done: u64,
}

/// A sampling job.
pub struct Job {
    pub(super) sampler: SamplerParams,
    pub(super) num_samples: usize,
    seed: u64,
    seeds: Vec<u64>,
    class_labels: Vec<i64>,
    initial_noise: Option<Vec<f32>>,
    format: Format,
    channels: usize,
    image_size: usize,
    deadline: Option<Instant>,
    total: u64,
    done: AtomicU64,
    wants_preview: AtomicBool,
    progress: Mutex<Option<Progress>>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Job {
    /// A job for images of this shape, each of which takes `evaluations` of the network.
    pub(super) fn new(
        request: SampleRequest,
        channels: usize,
        image_size: usize,
        evaluations: usize,
    ) -> Result<Arc<Self>> {
        let len = request.num_samples * channels * image_size * image_size;
        let images = memory::with_capacity(len)?;
        Ok(Arc::new(Job {
            total: request.num_samples as u64 * evaluations as u64,
            done: AtomicU64::new(0),
            wants_preview: AtomicBool::new(false),
            deadline: request.timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            inner: Mutex::new(Inner {
                running: false,
                images,
                images_left: request.num_samples,
                preview: None,
                outcome: None,
            }),
            changed: Condvar::new(),
            progress: Mutex::new(request.progress),
            sampler: request.sampler,
            num_samples: request.num_samples,
            seed: request.seed,
            seeds: request.seeds,
            class_labels: request.class_labels,
            initial_noise: request.initial_noise,
            format: request.format,
            channels,
            image_size,
        }))
    }

    /// The source of all randomness of image `index`.
    pub(super) fn stream(&self, index: usize) -> Stream {
        match self.seeds.get(index) {
            Some(&seed) => Stream::new(Domain::Sample, seed, 0),
            None => Stream::new(Domain::Sample, self.seed, index as u64),
        }
    }

    /// The class of image `index`, where the network has classes.
    pub(super) fn class_label(&self, index: usize) -> Option<i64> {
        self.class_labels.get(index).copied()
    }

    /// The noise that image `index` starts from, where the caller gave it.
    pub(super) fn initial_noise(&self, index: usize) -> Option<&[f32]> {
        let len = self.image_len();
        self.initial_noise.as_ref()?.get(index * len..(index + 1) * len)
    }

    fn image_len(&self) -> usize {
        self.channels * self.image_size * self.image_size
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has ended; a deadline that has passed ends it.
    pub(super) fn has_ended(&self) -> bool {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.end(Err(Error::Timeout("timeout_ms ran out before the images were done".into())));
        }
        self.lock().outcome.is_some()
    }

    pub(super) fn begin(&self) {
        self.lock().running = true;
    }

    /// Counts denoising steps of images.
    pub(super) fn advance(&self, steps: u64) {
        // Under the lock, so that a waiter cannot miss it between looking and sleeping.
        let mut inner = self.lock();
        let done = self.done.fetch_add(steps, Ordering::Relaxed) + steps;
        if let Some(preview) = inner.preview.as_mut().filter(|preview| preview.fresh) {
            preview.done = done;
            preview.fresh = false;
        }
        self.changed.notify_all();
    }

    /// Whether anybody has asked for a preview.
    pub(super) fn wants_preview(&self) -> bool {
        self.wants_preview.load(Ordering::Relaxed)
    }

    /// Takes the estimate of one image; [`Self::advance`] counts the step that it stems from.
    pub(super) fn put_preview(&self, index: usize, image: &[f32]) {
        let len = self.image_len();
        if let Some(preview) = &mut self.lock().preview {
            if let Some(slot) = preview.images.get_mut(index * len..(index + 1) * len) {
                slot.copy_from_slice(image);
                preview.fresh = true;
            }
        }
    }

    /// Takes one finished image; the last one ends the job.
    pub(super) fn put_image(&self, index: usize, image: &[f32]) {
        let len = self.image_len();
        let mut inner = self.lock();
        if inner.outcome.is_some() {
            return;
        }
        let whole = self.num_samples * len;
        if inner.images.len() < whole {
            // Within the capacity that `new` reserved.
            inner.images.resize(whole, 0.0);
        }
        if let Some(slot) = inner.images.get_mut(index * len..(index + 1) * len) {
            slot.copy_from_slice(image);
        }
        inner.images_left -= 1;
        if inner.images_left == 0 {
            inner.outcome = Some(Ok(()));
            self.changed.notify_all();
        }
    }

    /// Ends the job, if nothing has yet.
    pub(super) fn end(&self, outcome: Result<()>) {
        let mut inner = self.lock();
        if inner.outcome.is_none() {
            inner.images = Vec::new();
            inner.outcome = Some(outcome);
            self.changed.notify_all();
        }
    }

    /// Ends the job as cancelled, if it has not ended.
    pub fn cancel(&self) {
        self.end(Err(Error::Cancelled("the job was cancelled".into())));
    }

    /// Where the job stands.
    pub fn state(&self) -> JobState {
        if self.has_ended() {
            return match &self.lock().outcome {
                Some(Ok(())) => JobState::Done,
                Some(Err(Error::Cancelled(_) | Error::Timeout(_))) => JobState::Cancelled,
                _ => JobState::Failed,
            };
        }
        match self.lock().running {
            true => JobState::Running,
            false => JobState::Queued,
        }
    }

    /// Denoising steps done, over all images.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Denoising steps in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Waits until the job has ended and says how, calling the request's own progress function.
    pub fn wait(&self, limit: Option<Duration>) -> Result<()> {
        // Another waiter that has it reports the progress.
        let Ok(mut progress) = self.progress.try_lock() else {
            return self.wait_with(limit, &mut |_, _| Ok(()));
        };
        match progress.as_mut() {
            Some(progress) => self.wait_with(limit, progress),
            None => {
                drop(progress);
                self.wait_with(limit, &mut |_, _| Ok(()))
            }
        }
    }

    /// Waits until the job has ended and says how, or for `limit`; `progress` is called with no lock held, and its error
    /// ends the job and the wait.
    pub fn wait_with(
        &self,
        limit: Option<Duration>,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let wake = [until, self.deadline].into_iter().flatten().min();
        let mut reported = 0;
        loop {
            // Of a job that ended without its images there is no progress to tell.
            let failed = self.has_ended() && self.state() != JobState::Done;
            let done = self.done();
            if done != reported && !failed {
                reported = done;
                if let Err(error) = progress(done, self.total) {
                    self.end(Err(error.clone()));
                    return Err(error);
                }
                continue;
            }
            let inner = self.lock();
            if let Some(outcome) = &inner.outcome {
                return outcome.clone();
            }
            if self.done() != done {
                continue;
            }
            let Some(wake) = wake else {
                drop(self.changed.wait(inner));
                continue;
            };
            let now = Instant::now();
            if until.is_some_and(|until| now >= until) {
                return Err(Error::Timeout("timeout_ms ran out: the job goes on".into()));
            }
            drop(self.changed.wait_timeout(inner, wake.saturating_duration_since(now)));
        }
    }

    /// The images of a job that is done, `[num_samples, channels, height, width]`, in its format.
    pub fn encoded(&self) -> Result<Vec<u8>> {
        let inner = self.lock();
        match &inner.outcome {
            Some(Ok(())) => self.encode(&inner.images),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::InvalidArgument(
                "job has not ended: call diffusion_job_wait or diffusion_job_poll first".into(),
            )),
        }
    }

    /// The images as they are now estimated to become, in the job's format, and how many denoising steps that
    /// estimate stems from. Never waits: the first call says that estimates are wanted, and is answered with gray.
    pub fn preview(&self) -> Result<(Vec<u8>, u64)> {
        let blank = match self.wants_preview() {
            true => None,
            false => Some(memory::zeroed(self.num_samples * self.image_len())?),
        };
        let mut inner = self.lock();
        match &inner.outcome {
            Some(Ok(())) => return Ok((self.encode(&inner.images)?, self.total)),
            Some(Err(error)) => return Err(error.clone()),
            None => {}
        }
        if let (None, Some(images)) = (&inner.preview, blank) {
            inner.preview = Some(Preview { images, fresh: false, done: 0 });
            self.wants_preview.store(true, Ordering::Relaxed);
        }
        match &inner.preview {
            Some(preview) => Ok((self.encode(&preview.images)?, preview.done)),
            None => Err(Error::Internal("a preview was asked for and is not there".into())),
        }
    }

    fn encode(&self, images: &[f32]) -> Result<Vec<u8>> {
        self.format.encode(images, self.channels, self.image_size)
    }

    /// Bytes of the result in its format.
    pub fn result_bytes(&self) -> usize {
        let per_pixel = self.format.bytes_per_pixel(self.channels).unwrap_or(0);
        self.num_samples * self.image_size * self.image_size * per_pixel
    }
}
