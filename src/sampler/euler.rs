//! Euler's method on the probability flow: Karras, Aittala, Aila, Laine, "Elucidating the design space of
//! diffusion-based generative models", arXiv 2206.00364; its ancestral form is k-diffusion's.
//!
//! In Karras's frame, y = x / alpha and s = sigma / alpha, dy/ds = (y - x0) / s, and a step is y' = y + (s' -
//! s) (y - x0) / s = x0 + s' eps with eps = (y - x0) / s. Back in the U-Net's frame that is x' = alpha' x0 +
//! sigma' eps: DDIM with the noise taken from the limited x0. The ancestral step down to sqrt(s'^2 - u^2), then
//! noise of u = eta s' sqrt(1 - s'^2 / s^2), is DDIM's eta. So Euler is DDIM but for the timesteps, which need
//! not be whole, and has no formula of its own here. There is one gain: nothing is divided by alpha, so that
//! the last timestep may be pure noise.

use super::ddim::Ddim;

/// Euler's method; ancestral with `eta` above 0, and k-diffusion's Euler ancestral with `eta` 1.
pub(super) fn euler(eta: f64) -> Ddim {
    Ddim { eta, use_clipped_model_output: true }
}
