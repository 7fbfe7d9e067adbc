//! STUB
#![allow(missing_docs)]
use tch::Tensor; use crate::Result; use crate::schedule::*;
pub trait Sampler: Send { fn evaluations(&self)->usize; fn timestep(&self)->Option<f64>; fn step(&mut self, x:&Tensor, output:&Tensor, noise:&mut dyn FnMut()->Result<Tensor>)->Result<Tensor>; fn last_x0(&self)->Option<&Tensor>; fn keep_rows(&mut self, rows:&Tensor)->Result<()>; }
#[derive(Clone,Copy,Debug,PartialEq,Eq)] pub enum Method { Ddpm, Ddim, DpmSolverPp2M, DpmSolverPp2MSde, UniPc, Euler, Heun }
#[derive(Clone,Copy,Debug,PartialEq,Eq)] pub enum Spacing { Leading, Trailing, Linspace, Karras }
#[derive(Clone,Copy,Debug,PartialEq,Eq)] pub enum Variance { FixedSmall, FixedLarge }
#[derive(Clone, PartialEq, Debug)] pub struct SamplerParams { pub method: Method, pub steps: usize, pub eta: f64, pub spacing: Spacing, pub variance: Variance, pub clip_sample: bool, pub clip_sample_range: f64, pub use_clipped_model_output: bool, pub dynamic_thresholding: Option<f64>, pub prediction: Prediction, pub steps_offset: usize }
impl SamplerParams { pub fn build(&self, _s:&NoiseSchedule)->Result<Box<dyn Sampler>>{ todo!() } }
