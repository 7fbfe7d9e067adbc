//! Checkpoints: a network with its noise schedule, in the folder layout of diffusers, and optionally the state
//! of a training run beside it.
//!
//! ```text
//! my-checkpoint/
//!   model_index.json                              says that this is a DDPMPipeline
//!   unet/config.json                              unet_json.rs       UnetConfig
//!   unet/diffusion_pytorch_model.safetensors      weights.rs         Parameters
//!   scheduler/scheduler_config.json               scheduler_json.rs  SchedulerConfig
//!   training_state.safetensors                    training_state.rs  TrainingState, if any
//! ```
//!
//! diffusers.rs puts these together; atomic.rs sees to it that a crash at any moment leaves the old folder or
//! the new; folder.rs reads a folder that may be replaced meanwhile; fields.rs reads JSON and is strict about it.
//!
//! What is written opens in Python with `DDPMPipeline.from_pretrained` and `DDIMPipeline.from_pretrained`. What
//! diffusers writes can be read, and a file that is not understood in full is refused with a
//! [`Format`](crate::Error::Format) error that names the file, the field and its value.

mod atomic;
mod diffusers;
mod fields;
mod folder;
mod scheduler_json;
mod training_state;
mod unet_json;
mod weights;

pub use atomic::{Disk, Operation};
pub use diffusers::{read, write, write_to, Checkpoint, CheckpointRef};
pub use scheduler_json::{scheduler_from_json, scheduler_to_json, SchedulerConfig};
pub use training_state::TrainingState;
pub use unet_json::{unet_from_json, unet_to_json};
pub use weights::WeightType;
