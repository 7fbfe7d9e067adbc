//! safetensors files in and out. The format is 8 bytes of length, a JSON header, and the numbers; the crate
//! `safetensors` checks that header and numbers agree.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use tch::{Device, Kind, Tensor};

use super::folder::PARSED;
use crate::error::{Error, Result};
use crate::memory;

/// The number type in which weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// As they are: 24 bits of precision.
    F32,
    /// Half the size: 11 bits of precision, nothing above 65504.
    F16,
    /// Half the size: 8 bits of precision, the range of f32.
    BF16,
}

impl WeightType {
    pub(super) fn kind(self) -> Kind {
        match self {
            WeightType::F32 => Kind::Float,
            WeightType::F16 => Kind::Half,
            WeightType::BF16 => Kind::BFloat16,
        }
    }
}

/// The types that both libtorch and safetensors know and that occur here.
const TYPES: [(Dtype, Kind); 8] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F64, Kind::Double),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

/// What a safetensors file holds.
pub(super) struct Contents {
    /// Name and tensor, on the CPU, in the order of the file.
    pub(super) tensors: Vec<(String, Tensor)>,
    /// The entries of `__metadata__`.
    pub(super) metadata: HashMap<String, String>,
}

/// The tensors in the bytes of `file`, each of one of `kinds`.
pub(super) fn parse(bytes: &[u8], file: &Path, kinds: &[Kind]) -> Result<Contents> {
    // The length of the header, which is parsed into several times as much.
    let claimed = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize);
    memory::ensure(claimed.min(bytes.len()).saturating_mul(PARSED))?;
    let malformed =
        |error: SafeTensorError| Error::format(file, format!("is not a valid safetensors file: {error}"));
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
    let views = SafeTensors::deserialize(bytes).map_err(malformed)?;
    let mut tensors = Vec::with_capacity(views.len());
    for name in header.offset_keys() {
        let view = views.tensor(&name).map_err(malformed)?;
        let kind = TYPES.iter().find(|(dtype, _)| *dtype == view.dtype()).map(|(_, kind)| *kind);
        let Some(kind) = kind.filter(|kind| kinds.contains(kind)) else {
            let known: Vec<String> = TYPES
                .iter()
                .filter(|(_, kind)| kinds.contains(kind))
                .map(|(dtype, _)| dtype.to_string())
                .collect();
            let reason = format!("tensor {name} is {}: must be one of {}", view.dtype(), known.join(", "));
            return Err(Error::format(file, reason));
        };
        tensors.push((name.clone(), tensor(view.data(), view.shape(), kind, file, &name)?));
    }
    Ok(Contents { tensors, metadata: header.metadata().clone().unwrap_or_default() })
}

/// A copy of the numbers at `data`.
fn tensor(data: &[u8], shape: &[usize], kind: Kind, file: &Path, name: &str) -> Result<Tensor> {
    let sizes: Option<Vec<i64>> = shape.iter().map(|&n| i64::try_from(n).ok()).collect();
    let bytes = shape.iter().try_fold(kind.elt_size_in_bytes(), |product, &n| product.checked_mul(n));
    // tch reads as many bytes as the shape says, whatever it is given.
    match (sizes, bytes) {
        (Some(sizes), Some(bytes)) if bytes == data.len() => {
            Ok(Tensor::f_from_data_size(data, &sizes, kind)?)
        }
        _ => Err(Error::format(file, format!("tensor {name} of shape {shape:?} has {} bytes", data.len()))),
    }
}

/// Writes a safetensors file: tensors in this order, converted to `kind` where one is given, from any device.
///
/// Tensor by tensor, so that a checkpoint does not need the network's memory a second time. `entry` is the one
/// entry of `__metadata__`; with several, the order of a hash map would make every file another.
pub(super) fn emit(
    out: &mut dyn Write,
    tensors: &[(&str, &Tensor)],
    kind: Option<Kind>,
    entry: (&str, &str),
    file: &Path,
) -> Result<()> {
    let internal = |error: &dyn std::fmt::Display| Error::Internal(format!("{}: {error}", file.display()));
    let mut infos = Vec::with_capacity(tensors.len());
    let mut offset = 0usize;
    for (name, tensor) in tensors {
        let stored = kind.map_or_else(|| tensor.f_kind(), Ok)?;
        let dtype = TYPES.iter().find(|(_, kind)| *kind == stored).map(|(dtype, _)| *dtype);
        let dtype = dtype.ok_or_else(|| internal(&format!("tensor {name} is {stored:?}")))?;
        let end = offset + tensor.numel() * stored.elt_size_in_bytes();
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        infos.push(((*name).to_owned(), TensorInfo { dtype, shape, data_offsets: (offset, end) }));
        offset = end;
    }
    let metadata = HashMap::from([(entry.0.to_owned(), entry.1.to_owned())]);
    let header = Metadata::new(Some(metadata), infos).map_err(|error| internal(&error))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| internal(&error))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let io = |error| Error::io(file, error);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(&header).map_err(io)?;
    for (name, tensor) in tensors {
        let stored = kind.map_or_else(|| tensor.f_kind(), Ok)?;
        let source = tensor.f_detach()?.f_to_device(Device::Cpu)?;
        let values = source.f_to_kind(stored)?.f_contiguous()?;
        if stored == Kind::Half && !is_finite(&values)? && is_finite(&source)? {
            return Err(Error::NonFinite(format!(
                "tensor {name} has values above 65504, which f16 cannot hold"
            )));
        }
        let count = values.numel();
        let mut bytes: Vec<u8> = memory::zeroed(count * stored.elt_size_in_bytes())?;
        values.f_copy_data_u8(&mut bytes, count)?;
        out.write_all(&bytes).map_err(io)?;
    }
    Ok(())
}

fn is_finite(tensor: &Tensor) -> Result<bool> {
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}
