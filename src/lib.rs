//! libdiffusion: train and sample image diffusion models inside any process.
//!
//! Most users meet this crate as `libdiffusion.so` through the C ABI in `include/diffusion.h` ([`capi`]). The same
//! thing is a plain Rust API: [`process::DiffusionProcess`] is the object, and the modules below are its parts.
//! Data goes one way:
//!
//! ```text
//! host thread                                 the process's own thread
//! capi   validate, copy in   ->  engine  job queue  ->  process  ->  sampler | training  ->  unet  ->  torch
//! host buffer  <- capi copies out  <-  finished job  <-----------------'
//! ```
//!
//! `unsafe` and `extern "C"` live in [`capi`] and [`torch`] only; `capi` knows no tensor and `unet` no handle.
#![deny(missing_docs)]
#![deny(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::undocumented_unsafe_blocks)]

#[allow(unsafe_code)]
pub mod capi;
pub mod checkpoint;
pub mod engine;
pub mod error;
pub mod graphs;
mod memory;
pub mod noise;
mod panics;
pub mod pixels;
pub mod process;
pub mod sampler;
pub mod schedule;
#[allow(unsafe_code)]
pub mod torch;
pub mod training;
pub mod unet;

pub use error::{Error, Result};

/// Compiles the Rust program in docs/INSTALL.md, which is not part of the package.
#[cfg(doctest)]
#[doc = include_str!("../docs/INSTALL.md")]
struct InstallGuide;
