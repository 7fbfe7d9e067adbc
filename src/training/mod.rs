//! Training: the loss, the optimizer and its averages, one step at a time.
//!
//! - [`adam`]: Adam and AdamW over all parameters at once
//! - [`grad_scaler`]: keeps half-precision gradients representable
//! - [`trainer`]: the step itself: timesteps, noise, prediction, loss, backpropagation, update

pub mod adam;
pub mod grad_scaler;
pub mod trainer;

use crate::{Error, Result};

/// Which optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Adam (arXiv 1412.6980); weight decay is added to the gradient.
    Adam,
    /// AdamW (arXiv 1711.05101); weight decay shrinks the weights.
    AdamW,
}

/// How far a prediction is from its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The mean of squared differences (arXiv 2006.11239, equation 14).
    Mse,
    /// Huber's: half the square up to a difference of `huber_delta`, linear beyond (Huber 1964).
    Huber,
}

/// The arithmetic of the forward and backward pass. Weights, averages and the loss are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// Autocast to half precision with a gradient scaler; CUDA only.
    F16,
    /// Autocast to bfloat16.
    Bf16,
}

/// How to train.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct TrainingConfig {
    /// Which optimizer.
    pub optimizer: Optimizer,
    /// The arithmetic of the passes.
    pub mixed_precision: Precision,
    /// Step size, > 0.
    pub learning_rate: f64,
    /// Decay of the average of gradients, [0, 1).
    pub adam_beta1: f64,
    /// Decay of the average of squared gradients, [0, 1).
    pub adam_beta2: f64,
    /// Added to the optimizer's denominator, > 0.
    pub adam_epsilon: f64,
    /// Weight decay, >= 0.
    pub weight_decay: f64,
    /// The most that the norm of all gradients together may be; 0: no limit.
    pub gradient_clip: f64,
    /// Decay of the moving average of the weights, [0, 1); 0: no average.
    pub ema_decay: f64,
    /// What is minimised.
    pub loss: Loss,
    /// Where [`Loss::Huber`] becomes linear, > 0.
    pub huber_delta: f64,
    /// Weighs each image's loss by its timestep's signal-to-noise ratio, cut off here (Min-SNR, arXiv 2303.09556,
    /// 5 in the paper); 0: all timesteps weigh the same.
    pub min_snr_gamma: f64,
    /// Optimizer steps over which the learning rate rises linearly to its value.
    pub warmup_steps: u64,
    /// The optimizer step at which the learning rate has come down to 0 along half a cosine (arXiv 1608.03983,
    /// without restarts), counted from the first; 0: it stays.
    pub decay_steps: u64,
    /// Calls of `train_step` whose mean gradient makes one optimizer step, >= 1.
    pub accumulation_steps: u64,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        TrainingConfig {
            optimizer: Optimizer::Adam,
            mixed_precision: Precision::F32,
            learning_rate: 1e-4,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            gradient_clip: 0.0,
            ema_decay: 0.0,
            loss: Loss::Mse,
            huber_delta: 1.0,
            min_snr_gamma: 0.0,
            warmup_steps: 0,
            decay_steps: 0,
            accumulation_steps: 1,
        }
    }
}

impl TrainingConfig {
    /// Checks every number against its range.
    pub fn validate(&self) -> Result<()> {
        check_learning_rate(self.learning_rate)?;
        for (name, value) in
            [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2), ("ema_decay", self.ema_decay)]
        {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::argument(name, value, "in [0, 1)"));
            }
        }
        for (name, value) in [("adam_epsilon", self.adam_epsilon), ("huber_delta", self.huber_delta)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::argument(name, value, "finite and greater than 0"));
            }
        }
        if self.accumulation_steps == 0 {
            return Err(Error::argument("accumulation_steps", 0, "at least 1"));
        }
        if self.decay_steps != 0 && self.decay_steps <= self.warmup_steps {
            let allowed = format!("0 or more than warmup_steps ({})", self.warmup_steps);
            return Err(Error::argument("decay_steps", self.decay_steps, allowed));
        }
        for (name, value) in [
            ("weight_decay", self.weight_decay),
            ("gradient_clip", self.gradient_clip),
            ("min_snr_gamma", self.min_snr_gamma),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::argument(name, value, "finite and at least 0"));
            }
        }
        Ok(())
    }

    /// What the learning rate is multiplied by at an optimizer step, counted from 0: warm-up, then decay.
    pub fn learning_rate_factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        if self.decay_steps == 0 {
            return 1.0;
        }
        let (gone, all) = (step - self.warmup_steps, self.decay_steps.saturating_sub(self.warmup_steps));
        0.5 * (1.0 + (std::f64::consts::PI * (gone as f64 / all.max(1) as f64).min(1.0)).cos())
    }
}

/// Checks a learning rate.
pub fn check_learning_rate(value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::argument("learning_rate", value, "finite and greater than 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let config = TrainingConfig { warmup_steps: 4, decay_steps: 12, ..TrainingConfig::default() };
        let factors: Vec<f64> = (0..14).map(|step| config.learning_rate_factor(step)).collect();
        assert_eq!(factors[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((factors[8] - 0.5).abs() < 1e-15);
        assert_eq!(factors[12..], [0.0, 0.0]);
        assert!(factors[4..].windows(2).all(|pair| pair[1] <= pair[0]));
        assert_eq!(TrainingConfig::default().learning_rate_factor(7), 1.0);
    }
}
