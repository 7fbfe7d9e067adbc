//! The thread that owns a process: a queue of work, continuous batching, cancellation.
//!
//! Callers on any thread hand work in and wait; only the engine's own thread touches tensors. Three kinds of work:
//! sampling jobs, which are batched together ([`batch`]); shared work, which reads and is done between two denoising
//! steps; and exclusive work (training, new weights), a barrier: it starts when the jobs before it are done, and
//! what comes after it waits, so that a sampling job sees one set of weights.

mod batch;
mod exit;
mod job;
mod log;
mod model;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};

pub use self::job::{Job, JobState, Progress, SampleRequest};
use self::log::Log;
pub use self::log::LogSink;
pub use self::model::{Batching, Facts, Model};
#[cfg(test)]
pub(crate) use self::tests::lone_job;
use self::turn::Turn;
use crate::process::{unknown_parameter, DiffusionProcess, ParameterInfo, ProcessConfig};
use crate::schedule::NoiseSchedule;
use crate::{memory, Error, Result};

/// Bytes of stack of a process's thread.
const STACK: usize = 8 << 20;

/// Asked by work that is under way: has it been cancelled?
pub type Cancelled<'a> = &'a dyn Fn() -> bool;

/// A piece of work; called with nothing if it is cancelled before its turn.
type Task<M> = Box<dyn FnOnce(Option<(&mut M, Cancelled)>) + Send>;

enum Work<M> {
    Sample(Arc<Job>),
    Shared(Task<M>),
    Exclusive(Task<M>),
}

struct Queue<M> {
    work: VecDeque<Work<M>>,
    /// Jobs that were taken from the queue and may still be under way.
    jobs: Vec<Arc<Job>>,
    stopping: bool,
}

struct Shared<M> {
    queue: Mutex<Queue<M>>,
    arrived: Condvar,
    /// Set to cancel the task that is under way; the worker clears it before each.
    cancel_task: AtomicBool,
    log: Log,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<M> Shared<M> {
    fn new() -> Self {
        Shared {
            queue: Mutex::new(Queue { work: VecDeque::new(), jobs: Vec::new(), stopping: false }),
            arrived: Condvar::new(),
            cancel_task: AtomicBool::new(false),
            log: Log::default(),
            thread: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<M>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends everything that is queued or under way as cancelled.
    fn cancel_all(&self) {
        let mut queue = self.lock();
        let work = std::mem::take(&mut queue.work);
        self.cancel_task.store(true, Ordering::Relaxed);
        for job in queue.jobs.drain(..) {
            job.cancel();
        }
        drop(queue);
        for work in work {
            cancel(work);
        }
    }

    /// Cancels everything, ends the thread and waits for it. Again, or on that thread: no waiting.
    fn stop(&self) {
        self.lock().stopping = true;
        self.cancel_all();
        self.arrived.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            // A panic of the worker has been reported to whom it concerned.
            drop(thread.join());
        }
    }
}

/// A process on a thread of its own. Shared by reference; every method may be called from any thread.
pub struct Engine<M: Model = DiffusionProcess> {
    shared: Arc<Shared<M>>,
    facts: Facts,
}

/// Whether the library must not be called from here: inside a log callback.
pub fn is_engine_thread() -> bool {
    log::in_sink()
}

impl<M: Model> Engine<M> {
    /// Starts a thread and builds the process on it.
    pub fn start(build: impl FnOnce() -> Result<M> + Send + 'static) -> Result<Self> {
        // The thread needs as much. Asked for here, since the standard library ends the program where it gets no
        // memory for a new thread's handle.
        memory::ensure(STACK)?;
        let shared = Arc::new(Shared::new());
        let (ready, built) = mpsc::sync_channel(1);
        let worker = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("libdiffusion".into())
            .stack_size(STACK)
            .spawn(move || {
                M::prepare_thread();
                let process = quietly(|| {
                    let _turn = Turn::take();
                    build()
                });
                match process {
                    Err(error) => drop(ready.send(Err(error))),
                    Ok(mut process) => {
                        // Before the caller can set a callback, so that it hears all of it then.
                        log_news(&worker, &mut process);
                        drop(ready.send(Ok(process.facts())));
                        // Nobody is to wait for ever for a thread that is no more.
                        let lived = quietly(|| {
                            work(&worker, process);
                            Ok(())
                        });
                        if lived.is_err() {
                            worker.lock().stopping = true;
                            worker.cancel_all();
                        }
                    }
                }
            })
            .map_err(|error| {
                Error::OutOfMemory(format!("a thread for the process cannot be started: {error}"))
            })?;
        match built.recv() {
            Ok(Ok(facts)) => {
                *shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
                exit::watch(&shared);
                Ok(Engine { shared, facts })
            }
            Ok(Err(error)) => {
                // The thread is on its way out; after this nothing of it is left.
                drop(thread.join());
                Err(error)
            }
            Err(_) => Err(Error::Internal("the process's thread ended before it began".into())),
        }
    }

    /// What the process is.
    pub fn config(&self) -> &ProcessConfig {
        &self.facts.config
    }

    /// Its noise schedule.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.facts.schedule
    }

    /// Names and shapes of its parameters.
    pub fn parameters(&self) -> &[ParameterInfo] {
        &self.facts.parameters
    }

    /// One of them by name.
    pub fn parameter(&self, name: &str) -> Result<&ParameterInfo> {
        self.facts.parameters.iter().find(|found| found.name == name).ok_or_else(|| unknown_parameter(name))
    }

    /// Runs work that changes nothing that sampling depends on, between two denoising steps, and waits for it.
    pub fn run_shared<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut M, Cancelled) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(Work::Shared, body)
    }

    /// Runs work that changes weights, after the sampling jobs before it, and waits for it.
    pub fn run_exclusive<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut M, Cancelled) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(Work::Exclusive, body)
    }

    fn run<T: Send + 'static>(
        &self,
        kind: fn(Task<M>) -> Work<M>,
        body: impl FnOnce(&mut M, Cancelled) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, outcome) = mpsc::sync_channel(1);
        let task: Task<M> = Box::new(move |turn| {
            let result = match turn {
                Some((process, cancelled)) => quietly(|| body(process, cancelled)),
                None => Err(Error::Cancelled("the call was cancelled before its turn came".into())),
            };
            drop(done.send(result));
        });
        self.push(kind(task))?;
        outcome.recv().unwrap_or_else(|_| Err(Error::Internal("the process's thread lost a call".into())))
    }

    /// Queues a sampling job.
    pub fn submit(&self, request: SampleRequest) -> Result<Arc<Job>> {
        let config = self.config();
        let evaluations = request.sampler.build(self.schedule())?.evaluations();
        let job = Job::new(request, config.channels(), config.image_size(), evaluations)?;
        self.push(Work::Sample(Arc::clone(&job)))?;
        Ok(job)
    }

    fn push(&self, work: Work<M>) -> Result<()> {
        let mut queue = self.shared.lock();
        if queue.stopping {
            return Err(Error::Cancelled("the process is being destroyed".into()));
        }
        queue.work.push_back(work);
        self.shared.arrived.notify_one();
        Ok(())
    }

    /// Ends everything that is queued or under way as cancelled; the process works on.
    pub fn cancel_all(&self) {
        self.shared.cancel_all();
    }

    /// Sets who receives the log; what was logged unheard is delivered first.
    pub fn set_log(&self, sink: Option<LogSink>) {
        self.shared.log.set_sink(sink);
    }

    /// Cancels everything, ends the thread and waits for it. Again: nothing.
    pub fn stop(&self) {
        self.shared.stop();
    }
}

impl<M: Model> Drop for Engine<M> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn cancel<M>(work: Work<M>) {
    match work {
        Work::Sample(job) => job.cancel(),
        Work::Shared(task) | Work::Exclusive(task) => task(None),
    }
}

/// Runs a body and turns a panic into an error.
fn quietly<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|payload| Err(crate::panics::to_error(payload)))
}

static TASK_DONE: Once = Once::new();
static STEP_DONE: Once = Once::new();

/// The life of the thread.
fn work<M: Model>(shared: &Shared<M>, mut process: M) {
    let on_cpu = process.is_on_cpu();
    let mut batch = process.new_batch();
    loop {
        log_news(shared, &mut process);
        match next(shared, &mut batch) {
            Next::Stop => return batch.fail_all(&Error::Cancelled("the process was destroyed".into())),
            Next::Task(task) => {
                let _turn = on_cpu.then(Turn::take);
                task(Some((&mut process, &|| shared.cancel_task.load(Ordering::Relaxed))));
                exit::arm_again::<M>(&TASK_DONE);
            }
            Next::Step => {
                for line in batch.warnings(&process) {
                    shared.log.write(log::WARNING, &line);
                }
                let _turn = on_cpu.then(Turn::take);
                let stepped = quietly(|| {
                    batch.step(&process);
                    Ok(())
                });
                if let Err(error) = stepped {
                    batch.fail_all(&error);
                    // A panic may have taken the batch's own hold on some of them with it.
                    for job in std::mem::take(&mut shared.lock().jobs) {
                        job.end(Err(error.clone()));
                    }
                }
                exit::arm_again::<M>(&STEP_DONE);
            }
        }
    }
}

/// Passes on what the process has to say.
fn log_news<M: Model>(shared: &Shared<M>, process: &mut M) {
    for line in process.take_log() {
        shared.log.write(log::WARNING, &line);
    }
}

enum Next<M> {
    Stop,
    Task(Task<M>),
    Step,
}

/// Takes in what has arrived and decides what comes next. Work is taken in its order; exclusive work waits until
/// the batch is empty, and what is behind it waits too.
fn next<M: Model>(shared: &Shared<M>, batch: &mut M::Batch) -> Next<M> {
    let mut queue = shared.lock();
    loop {
        if queue.stopping {
            return Next::Stop;
        }
        queue.jobs.retain(|job| !job.has_ended());
        match queue.work.pop_front() {
            Some(Work::Sample(job)) => {
                queue.jobs.push(Arc::clone(&job));
                batch.add(job);
            }
            Some(Work::Exclusive(task)) if !batch.is_empty() => {
                queue.work.push_front(Work::Exclusive(task));
                return Next::Step;
            }
            Some(Work::Shared(task) | Work::Exclusive(task)) => {
                shared.cancel_task.store(false, Ordering::Relaxed);
                return Next::Task(task);
            }
            None if !batch.is_empty() => return Next::Step,
            None => queue = shared.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner),
        }
    }
}
