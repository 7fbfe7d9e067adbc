//! STUB
#![allow(missing_docs)]
use crate::sampler::*;
use crate::schedule::*;
use crate::unet::*;
use crate::Result;
use std::path::Path;
use tch::{Device, Kind, Tensor};
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    pub schedule: ScheduleConfig,
    pub prediction: Prediction,
    pub clip_sample: bool,
    pub clip_sample_range: f64,
    pub variance: Variance,
    pub spacing: Spacing,
    pub steps_offset: usize,
    pub dynamic_thresholding: Option<f64>,
}
impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            schedule: Default::default(),
            prediction: Prediction::Epsilon,
            clip_sample: true,
            clip_sample_range: 1.0,
            variance: Variance::FixedSmall,
            spacing: Spacing::Leading,
            steps_offset: 0,
            dynamic_thresholding: None,
        }
    }
}
pub struct TrainingState {
    pub tensors: Vec<(String, Tensor)>,
    pub meta: serde_json::Value,
}
pub struct Checkpoint {
    pub unet: UnetConfig,
    pub parameters: Parameters,
    pub scheduler: SchedulerConfig,
    pub training: Option<TrainingState>,
}
pub fn read(_path: &Path, _d: Device) -> Result<Checkpoint> {
    todo!()
}
pub fn write(
    _path: &Path,
    _u: &UnetConfig,
    _p: &Parameters,
    _s: &SchedulerConfig,
    _t: Option<&TrainingState>,
    _k: Kind,
) -> Result<()> {
    todo!()
}
