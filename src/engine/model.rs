//! What an engine asks of the process that it runs. There is one such process; the tests have a second one without tensors,
//! which runs under Miri and the thread sanitizer, where libtorch cannot.

use std::sync::Arc;

use tch::Device;

use super::batch::Batch;
use super::Job;
use crate::process::{DiffusionProcess, ParameterInfo, ProcessConfig};
use crate::schedule::NoiseSchedule;
use crate::{torch, Error};

/// What never changes about a process, known without asking its thread.
pub struct Facts {
    pub(super) config: ProcessConfig,
    pub(super) schedule: NoiseSchedule,
    pub(super) parameters: Vec<ParameterInfo>,
}

/// A process that an engine can run. It lives on the engine's thread from its making to its end.
pub trait Model: Sized + 'static {
    /// The images that it is denoising.
    type Batch: Batching<Self>;

    /// What never changes about it.
    fn facts(&self) -> Facts;
    /// What it has to say since it was last asked.
    fn take_log(&mut self) -> Vec<String>;
    /// Whether it takes turns at the cores with other processes.
    fn is_on_cpu(&self) -> bool;
    /// A batch without images.
    fn new_batch(&self) -> Self::Batch;
    /// Called first on the thread that is to run it.
    fn prepare_thread();
    /// Has `handler` called when the program ends.
    fn at_exit(handler: extern "C" fn());
}

/// Images in flight, whoever asked for them, and those that wait for room.
pub trait Batching<M> {
    /// Whether there are none.
    fn is_empty(&self) -> bool;
    /// Takes in a job.
    fn add(&mut self, job: Arc<Job>);
    /// What is to be said about the jobs that have come since the last call: each thing once, since a service asks for
    /// the same again and again.
    fn warnings(&mut self, _model: &M) -> Vec<String> {
        Vec::new()
    }
    /// Ends every job in it with an error.
    fn fail_all(&mut self, error: &Error);
    /// One denoising step of everything in flight.
    fn step(&mut self, model: &M);
}

impl Model for DiffusionProcess {
    type Batch = Batch;

    fn facts(&self) -> Facts {
        Facts {
            config: self.config().clone(),
            schedule: self.schedule().clone(),
            parameters: self.parameter_infos(),
        }
    }

    fn take_log(&mut self) -> Vec<String> {
        DiffusionProcess::take_log(self)
    }

    fn is_on_cpu(&self) -> bool {
        self.device() == Device::Cpu
    }

    fn new_batch(&self) -> Batch {
        Batch::new(self.config().max_batch)
    }

    fn prepare_thread() {
        torch::prepare_thread();
    }

    fn at_exit(handler: extern "C" fn()) {
        torch::at_exit(handler);
    }
}
