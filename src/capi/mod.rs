//! The C ABI and nothing else: what `include/diffusion.h` declares.
//!
//! Each function here checks its pointers and numbers, copies what the caller owns, hands the work to the
//! [`engine`](crate::engine) and copies the result out, inside the boundary that turns every error and panic into a
//! status ([`boundary`]). The doc comments of the functions are the header's text. One file per group:
//!
//! - [`status`], [`types`], [`info`]: numbers, structs, versions
//! - [`lifecycle`]: create, load, save, destroy, what a process is
//! - [`inference`]: noising, predicting, sampling; [`jobs`]: sampling in the background
//! - [`training`], [`parameters`]
//!
//! `reserve` is the shared library's allocator: what is left when memory ends.

pub(crate) mod boundary;
pub mod config;
mod handles;
pub mod inference;
pub mod info;
pub mod jobs;
pub mod lifecycle;
pub mod parameters;
#[cfg(feature = "reserve")]
mod reserve;
pub mod status;
#[cfg(test)]
mod tests;
pub mod training;
pub mod types;
