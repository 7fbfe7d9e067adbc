//! The engine with a process that has no tensors: a "weight" in place of a network, an image of which every value is the
//! weight that it was sampled with. So the queue, the jobs and the ways to end them run under Miri, which finds data races and
//! deadlocks over many schedules (`make test-miri`), and under the thread sanitizer (`make sanitize`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::model::{Batching, Facts, Model};
use super::turn::Turn;
use super::{Engine, Job, JobState, SampleRequest};
use crate::checkpoint::SchedulerConfig;
use crate::pixels::Format;
use crate::process::{DeviceChoice, InferencePrecision, ProcessConfig};
use crate::sampler::SamplerParams;
use crate::schedule::{BetaSchedule, NoiseSchedule, ScheduleConfig};
use crate::training::TrainingConfig;
use crate::unet::UnetConfig;
use crate::{Error, Result};

const STEPS: usize = 3;
const IMAGE: usize = 4;

/// The seed that makes a step panic.
const POISON: u64 = 13;

struct Weight(u64);

#[derive(Default)]
struct Images {
    waiting: Vec<Arc<Job>>,
    /// Job, index, steps left, the weight at the first step.
    going: Vec<(Arc<Job>, usize, usize, u64)>,
}

impl Model for Weight {
    type Batch = Images;

    fn facts(&self) -> Facts {
        let schedule = ScheduleConfig {
            kind: BetaSchedule::Linear,
            beta_start: 1e-4,
            beta_end: 0.02,
            noise_steps: STEPS,
            rescale_zero_terminal_snr: false,
        };
        Facts {
            schedule: NoiseSchedule::new(&schedule).expect("a valid schedule"),
            config: ProcessConfig {
                unet: UnetConfig::from_hidden_dims(2, 1, &[8]).expect("a valid network"),
                scheduler: SchedulerConfig { schedule, ..SchedulerConfig::default() },
                training: TrainingConfig::default(),
                device: DeviceChoice::Cpu,
                num_threads: 1,
                max_batch: 2,
                seed: 0,
                inference_precision: InferencePrecision::F32,
                deterministic: false,
            },
            parameters: Vec::new(),
        }
    }

    fn take_log(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn is_on_cpu(&self) -> bool {
        true
    }

    fn new_batch(&self) -> Images {
        Images::default()
    }

    fn prepare_thread() {}

    // What the tests make they end.
    fn at_exit(_: extern "C" fn()) {}
}

impl Batching<Weight> for Images {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.going.is_empty()
    }

    fn add(&mut self, job: Arc<Job>) {
        self.waiting.push(job);
    }

    fn fail_all(&mut self, error: &Error) {
        let going = self.going.drain(..).map(|(job, ..)| job);
        self.waiting.drain(..).chain(going).for_each(|job| job.end(Err(error.clone())));
    }

    fn step(&mut self, model: &Weight) {
        for job in std::mem::take(&mut self.waiting) {
            assert!(
                job.stream(0) != crate::noise::Stream::new(crate::noise::Domain::Sample, POISON, 0),
                "poison"
            );
            job.begin();
            self.going.extend((0..job.num_samples).map(|index| (Arc::clone(&job), index, STEPS, model.0)));
        }
        self.going.retain(|(job, ..)| !job.has_ended());
        for (job, index, left, weight) in &mut self.going {
            assert_eq!(*weight, model.0, "a job sees one set of weights");
            if job.wants_preview() {
                job.put_preview(*index, &[0.5; IMAGE]);
            }
            *left -= 1;
            job.advance(1);
            if *left == 0 {
                job.put_image(*index, &[*weight as f32; IMAGE]);
            }
        }
        self.going.retain(|(_, _, left, _)| *left > 0);
    }
}

fn engine(weight: u64) -> Engine<Weight> {
    Engine::start(move || Ok(Weight(weight))).expect("an engine")
}

fn request(num_samples: usize, seed: u64) -> SampleRequest {
    SampleRequest {
        sampler: SamplerParams::ddpm(STEPS),
        num_samples,
        seed,
        seeds: Vec::new(),
        class_labels: Vec::new(),
        initial_noise: None,
        format: Format::F32,
        timeout: None,
        progress: None,
    }
}

/// A job that no engine works on.
pub(crate) fn lone_job() -> Arc<Job> {
    Job::new(request(1, 0), 1, 2, STEPS).expect("a job")
}

/// The weight that a finished job's images were sampled with.
fn weight_of(job: &Job) -> u64 {
    let bytes = job.encoded().expect("images");
    let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let first = values.next().expect("a value");
    assert!(values.all(|value| value == first), "one set of weights");
    first as u64
}

fn is_cancelled<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Cancelled(_)))
}

#[test]
fn jobs_and_calls_of_several_threads() {
    let engine = engine(1);
    thread::scope(|scope| {
        for i in 0..2 {
            let engine = &engine;
            scope.spawn(move || {
                let job = engine.submit(request(1 + i, 0)).expect("a job");
                assert_eq!(engine.run_shared(|weight, _| Ok(weight.0 > 0)), Ok(true));
                job.preview().expect("gray, or images");
                job.wait(None).expect("images");
                assert_eq!(
                    (job.done(), job.total(), job.state()),
                    (job.total(), job.total(), JobState::Done)
                );
                assert_eq!(weight_of(&job), 1);
            });
        }
    });
}

#[test]
fn exclusive_work_is_a_barrier() {
    let engine = engine(1);
    let before = engine.submit(request(2, 0)).expect("a job");
    thread::scope(|scope| {
        scope.spawn(|| {
            engine
                .run_exclusive(|weight, _| {
                    weight.0 = 2;
                    Ok(())
                })
                .expect("new weights")
        });
        let meanwhile = engine.submit(request(1, 0)).expect("a job");
        meanwhile.wait(None).expect("images");
        assert!([1, 2].contains(&weight_of(&meanwhile)));
    });
    let after = engine.submit(request(1, 0)).expect("a job");
    after.wait(None).expect("images");
    before.wait(None).expect("images");
    assert_eq!((weight_of(&before), weight_of(&after)), (1, 2));
}

#[test]
fn cancel_ends_what_is_there_and_the_engine_works_on() {
    let engine = engine(1);
    thread::scope(|scope| {
        scope.spawn(|| engine.cancel_all());
        let job = engine.submit(request(2, 0)).expect("a job");
        let call = engine.run_exclusive(|_, cancelled| match cancelled() {
            true => Err(Error::Cancelled("seen".into())),
            false => Ok(()),
        });
        assert!(call.is_ok() || is_cancelled(&call), "{call:?}");
        let outcome = job.wait(None);
        assert!(outcome.is_ok() || is_cancelled(&outcome), "{outcome:?}");
    });
    let job = engine.submit(request(1, 0)).expect("a job");
    assert_eq!(job.wait(None), Ok(()));
}

#[test]
fn the_end_of_an_engine_ends_every_call() {
    let engine = engine(1);
    thread::scope(|scope| {
        scope.spawn(|| {
            let call = engine.run_shared(|_, _| Ok(()));
            assert!(call.is_ok() || is_cancelled(&call), "{call:?}");
        });
        scope.spawn(|| match engine.submit(request(1, 0)) {
            Ok(job) => {
                let outcome = job.wait(None);
                assert!(outcome.is_ok() || is_cancelled(&outcome), "{outcome:?}");
            }
            Err(error) => assert!(matches!(error, Error::Cancelled(_)), "{error}"),
        });
        engine.stop();
        engine.stop();
    });
    assert!(is_cancelled(&engine.run_shared(|_, _| Ok(()))));
}

#[test]
fn a_job_ends_once_whoever_comes_first() {
    let engine = engine(1);
    let job = engine.submit(request(1, 0)).expect("a job");
    let outcomes: Vec<_> = thread::scope(|scope| {
        let canceller = scope.spawn(|| {
            job.cancel();
            job.wait(None)
        });
        let waiter = scope.spawn(|| job.wait(None));
        [canceller, waiter].into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(outcomes[0], outcomes[1]);
    assert!(outcomes[0].is_ok() || is_cancelled(&outcomes[0]), "{outcomes:?}");
    assert_eq!(job.encoded().is_ok(), outcomes[0].is_ok());
}

#[test]
fn a_deadline_ends_a_job_in_the_queue_too() {
    let engine = engine(1);
    let job = engine.submit(SampleRequest { timeout: Some(Duration::ZERO), ..request(1, 0) }).expect("a job");
    assert!(matches!(job.wait(None), Err(Error::Timeout(_))));
    assert_eq!(job.state(), JobState::Cancelled);
}

#[test]
fn a_progress_function_can_cancel() {
    let engine = engine(1);
    let request = SampleRequest {
        progress: Some(Box::new(|_, _| Err(Error::Cancelled("enough".into())))),
        ..request(1, 0)
    };
    let job = engine.submit(request).expect("a job");
    let outcome = job.wait(None);
    // It is asked when there is progress to tell of, and the last step is some; the job may be done by then.
    assert!(is_cancelled(&outcome), "{outcome:?}");
    assert!(matches!(job.state(), JobState::Done | JobState::Cancelled));
}

#[test]
fn a_progress_function_that_cancels_is_answered_so_though_the_job_is_done() {
    let engine = engine(1);
    let job = engine.submit(request(1, 0)).expect("a job");
    job.wait(None).expect("an image");
    let outcome = job.wait_with(None, &mut |_, _| Err(Error::Cancelled("enough".into())));
    assert!(is_cancelled(&outcome), "{outcome:?}");
    assert_eq!(job.state(), JobState::Done);
}

/// Found by fuzzing: a panic took the batch's own list with it, and whoever waited for the jobs in it waited for ever.
#[test]
fn a_panic_in_a_step_ends_every_job_and_the_engine_works_on() {
    let engine = engine(1);
    let job = engine.submit(request(1, POISON)).expect("a job");
    let outcome = job.wait(None);
    assert!(matches!(&outcome, Err(Error::Internal(text)) if text.contains("poison")), "{outcome:?}");
    let job = engine.submit(request(1, 0)).expect("a job");
    assert_eq!(job.wait(None), Ok(()));
}

#[test]
fn a_panic_in_a_call_is_that_calls_error() {
    let engine = engine(1);
    let outcome: Result<()> = engine.run_exclusive(|_, _| panic!("a bug"));
    assert!(matches!(&outcome, Err(Error::Internal(text)) if text.contains("a bug")), "{outcome:?}");
    assert_eq!(engine.run_shared(|weight, _| Ok(weight.0)), Ok(1));
}

#[test]
fn one_at_a_time_has_the_turn() {
    let inside = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let _turn = Turn::take();
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                thread::yield_now();
                inside.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
}
