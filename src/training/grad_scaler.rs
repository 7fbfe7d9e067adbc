//! The gradient scaler of mixed-precision training (Micikevicius et al., arXiv 1710.03740).
//!
//! The loss is multiplied by a scale so that small gradients survive half precision. Where a gradient overflows,
//! the step is skipped and the scale halved; after many steps without overflow it is doubled. All of it happens on
//! the device, so that no step waits for the host.

use tch::{Device, Kind, Tensor};

use crate::{torch, Result};

/// The scale before the first step.
pub const INITIAL_SCALE: f64 = 65536.0;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
const GROWTH_INTERVAL: i64 = 2000;

/// The scale and how long it has held.
pub struct GradScaler {
    /// The factor on the loss: a scalar f32.
    pub scale: Tensor,
    /// Steps since the scale last changed: a scalar i32.
    pub growth_tracker: Tensor,
}

impl GradScaler {
    /// A scaler at its first scale, 65536.
    pub fn new(device: Device) -> Result<Self> {
        Self::restore(INITIAL_SCALE, 0, device)
    }

    /// A scaler as it was saved.
    pub fn restore(scale: f64, growth_tracker: i64, device: Device) -> Result<Self> {
        Ok(GradScaler {
            scale: Tensor::f_full([], scale, (Kind::Float, device))?,
            growth_tracker: Tensor::f_full([], growth_tracker, (Kind::Int, device))?,
        })
    }

    /// Divides gradients by the scale in place; the answer is 1 where any was not finite, else 0.
    pub fn unscale(&self, gradients: &[Tensor]) -> Result<Tensor> {
        let found_inf = self.scale.f_zeros_like()?;
        // In f64, so that the inverse of a power of two stays exact at any size.
        let inverse = self.scale.f_to_kind(Kind::Double)?.f_reciprocal()?.f_to_kind(Kind::Float)?;
        torch::unscale(gradients, &found_inf, &inverse)?;
        Ok(found_inf)
    }

    /// Shrinks the scale after an overflow, or lets it grow.
    pub fn update(&mut self, found_inf: &Tensor) -> Result<()> {
        torch::update_scale(&self.scale, &self.growth_tracker, found_inf, GROWTH, BACKOFF, GROWTH_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_is_found_and_shrinks_the_scale() {
        let mut scaler = GradScaler::new(Device::Cpu).unwrap();
        let fine = Tensor::from_slice(&[65536.0f32, -131072.0]);
        let found = scaler.unscale(&[fine.shallow_clone()]).unwrap();
        assert_eq!(Vec::<f32>::try_from(&fine).unwrap(), [1.0, -2.0]);
        assert_eq!(found.double_value(&[]), 0.0);
        scaler.update(&found).unwrap();
        assert_eq!(scaler.scale.double_value(&[]), INITIAL_SCALE);

        let found = scaler.unscale(&[Tensor::from_slice(&[1.0f32, f32::INFINITY])]).unwrap();
        assert_eq!(found.double_value(&[]), 1.0);
        scaler.update(&found).unwrap();
        assert_eq!(scaler.scale.double_value(&[]), INITIAL_SCALE * BACKOFF);
    }

    #[test]
    fn the_scale_grows_after_the_interval() {
        let mut scaler = GradScaler::restore(8.0, GROWTH_INTERVAL - 1, Device::Cpu).unwrap();
        let fine = scaler.scale.f_zeros_like().unwrap();
        scaler.update(&fine).unwrap();
        assert_eq!(scaler.scale.double_value(&[]), 16.0);
        assert_eq!(scaler.growth_tracker.int64_value(&[]), 0);
    }
}
