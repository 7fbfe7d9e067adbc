//! The one file that diffusers does not know: what a training run needs to go on as if it had never stopped.
//!
//! What is in it is the training's business. Here it is named tensors of any type, and JSON.

use std::io::Write;
use std::path::Path;

use serde_json::Value;
use tch::{Kind, Tensor};

use super::weights;
use crate::error::{Error, Result};

/// The file's name in the checkpoint's folder.
pub(super) const FILE: &str = "training_state.safetensors";

/// The metadata entry that holds the JSON.
const ENTRY: &str = "training";

/// Everything of a training run beside the weights that the checkpoint offers for sampling.
#[derive(Debug)]
pub struct TrainingState {
    /// Named tensors of any number type. Read ones are on the CPU.
    pub tensors: Vec<(String, Tensor)>,
    /// Numbers and names. Every f64 comes back bit by bit.
    pub meta: Value,
}

impl TrainingState {
    pub(super) fn parse(bytes: &[u8], file: &Path) -> Result<Self> {
        const KINDS: [Kind; 8] = [
            Kind::Float,
            Kind::Half,
            Kind::BFloat16,
            Kind::Double,
            Kind::Int64,
            Kind::Int,
            Kind::Uint8,
            Kind::Bool,
        ];
        let contents = weights::parse(bytes, file, &KINDS)?;
        let Some(text) = contents.metadata.get(ENTRY) else {
            return Err(Error::format(file, format!("has no metadata entry {ENTRY:?}")));
        };
        let meta = serde_json::from_str(text).map_err(|error| {
            Error::format(file, format!("metadata entry {ENTRY:?} is not valid JSON: {error}"))
        })?;
        Ok(TrainingState { tensors: contents.tensors, meta })
    }

    pub(super) fn emit(&self, out: &mut dyn Write, file: &Path) -> Result<()> {
        let mut tensors: Vec<(&str, &Tensor)> =
            self.tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
        // Readers map the file and want numbers at multiples of their size: the largest types first.
        let size = |tensor: &Tensor| tensor.f_kind().map_or(0, |kind| kind.elt_size_in_bytes());
        tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(size(tensor)));
        weights::emit(out, &tensors, None, (ENTRY, &self.meta.to_string()), file)
    }
}
