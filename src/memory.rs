//! Allocations whose size a caller decides: running out is an error there, where `Vec` alone would end the host.

use crate::{Error, Result};

/// An empty vector with room for `len` values.
pub(crate) fn with_capacity<T>(len: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| {
        let bytes = len.saturating_mul(size_of::<T>());
        Error::OutOfMemory(format!("{bytes} bytes of host memory cannot be allocated"))
    })?;
    Ok(values)
}

/// `len` zeros.
pub(crate) fn zeroed<T: Clone + Default>(len: usize) -> Result<Vec<T>> {
    let mut values = with_capacity(len)?;
    values.resize(len, T::default());
    Ok(values)
}

/// That `bytes` can be had just now: to be asked before a parser makes many small things of them.
pub(crate) fn ensure(bytes: usize) -> Result<()> {
    with_capacity::<u8>(bytes).map(drop)
}

/// A copy of a slice.
pub(crate) fn copied<T: Copy>(from: &[T]) -> Result<Vec<T>> {
    let mut values = with_capacity(from.len())?;
    values.extend_from_slice(from);
    Ok(values)
}
