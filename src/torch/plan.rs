//! The inference plan of `src/kernels/plan.h`, behind safe functions: what is built here step by step runs on the CPU
//! with kernels of the library's own.

use std::ffi::{c_char, c_void};
use std::ptr::NonNull;

use tch::{Device, Kind, Tensor};

use super::check;
use crate::{Error, Result};

/// The number of a buffer of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer(i32);

/// The number of a linear map of the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection(i32);

/// A convolution of one buffer, or of two side by side.
pub struct Conv<'a> {
    /// What it reads.
    pub source: Buffer,
    /// The channels after those of `source`.
    pub second: Option<Buffer>,
    /// [out, in, k, k], k being 1 or 3.
    pub weight: &'a Tensor,
    /// [out].
    pub bias: &'a Tensor,
    /// Of the window.
    pub stride: i64,
    /// Rows and columns of zeros at the top and left, and at the bottom and right.
    pub padding: (i64, i64),
    /// Whether every pixel counts four times.
    pub doubled: bool,
    /// What is added to every pixel, [out].
    pub projection: Option<Projection>,
    /// What is added then.
    pub residual: Option<Buffer>,
    /// What the sum is multiplied with.
    pub scale: f64,
}

/// Group norm of one buffer, or of two side by side.
pub struct Norm<'a> {
    /// What it reads.
    pub source: Buffer,
    /// The channels after those of `source`.
    pub second: Option<Buffer>,
    /// [C].
    pub weight: &'a Tensor,
    /// [C].
    pub bias: &'a Tensor,
    /// Of channels.
    pub groups: i64,
    /// Added to the variance.
    pub eps: f64,
    /// Whether x·sigmoid(x) follows.
    pub silu: bool,
    /// Scale and shift of the result, [2C].
    pub projection: Option<Projection>,
}

#[repr(C)]
struct RawConv {
    source: i32,
    second: i32,
    weight: *const f32,
    bias: *const f32,
    outputs: i32,
    kernel: i32,
    stride: i32,
    pad_begin: i32,
    pad_end: i32,
    doubled: bool,
    projection: i32,
    residual: i32,
    scale: f32,
}

#[repr(C)]
struct RawNorm {
    source: i32,
    second: i32,
    weight: *const f32,
    bias: *const f32,
    groups: i32,
    eps: f64,
    silu: bool,
    projection: i32,
}

extern "C" {
    fn diffusion_plan_new(embedding_width: i32, bf16: bool, plan: *mut *mut c_void) -> *mut c_char;
    fn diffusion_plan_free(plan: *mut c_void);
    fn diffusion_plan_input(
        plan: *mut c_void,
        channels: i32,
        height: i32,
        width: i32,
        out: *mut i32,
    ) -> *mut c_char;
    fn diffusion_plan_projection(
        plan: *mut c_void,
        weight: *const f32,
        bias: *const f32,
        parts: i32,
        outputs: i32,
        projection: *mut i32,
    ) -> *mut c_char;
    fn diffusion_plan_conv(plan: *mut c_void, conv: *const RawConv, out: *mut i32) -> *mut c_char;
    fn diffusion_plan_norm(plan: *mut c_void, norm: *const RawNorm, out: *mut i32) -> *mut c_char;
    fn diffusion_plan_attention(
        plan: *mut c_void,
        qkv: i32,
        heads: i32,
        head_dim: i32,
        out: *mut i32,
    ) -> *mut c_char;
    fn diffusion_plan_finish(plan: *mut c_void, result: i32) -> *mut c_char;
    fn diffusion_plan_run(
        plan: *mut c_void,
        x: *const f32,
        batch: i32,
        embedding: *const f32,
        rows: i32,
        row: *const i32,
        out: *mut f32,
    ) -> *mut c_char;
    fn diffusion_plan_floats(plan: *const c_void) -> usize;
}

/// A plan being made.
pub struct Builder {
    plan: Handle,
    embedding_width: i64,
    channels: Vec<i64>,
    input: Option<[i64; 3]>,
}

/// A finished plan.
pub struct Plan {
    plan: Handle,
    embedding_width: i64,
    input: [i64; 3],
    outputs: i64,
}

struct Handle(NonNull<c_void>);

// SAFETY: a plan belongs to nobody's thread: it holds memory only.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: what `diffusion_plan_new` made, freed once.
        unsafe { diffusion_plan_free(self.0.as_ptr()) }
    }
}

/// The values of a tensor of that many, row by row in f32.
fn values(tensor: &Tensor, numel: i64) -> Result<Tensor> {
    if tensor.numel() as i64 != numel {
        let found = tensor.size();
        return Err(Error::Internal(format!("the inference plan: a tensor {found:?} of {numel} values")));
    }
    Ok(tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?)
}

fn pointer(tensor: &Tensor) -> *const f32 {
    tensor.data_ptr().cast_const().cast()
}

fn small(value: i64) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::Internal(format!("the inference plan: {value} is too large")))
}

impl Builder {
    /// An empty plan for embeddings of this width. `bf16`: the convolutions' weights are held in bf16; the arithmetic is
    /// f32's either way.
    pub fn new(embedding_width: i64, bf16: bool) -> Result<Self> {
        let mut plan = std::ptr::null_mut();
        // SAFETY: `plan` is valid for a write.
        check(unsafe { diffusion_plan_new(small(embedding_width)?, bf16, &mut plan) })?;
        let plan = NonNull::new(plan).ok_or_else(|| Error::Internal("no inference plan was made".into()))?;
        Ok(Builder { plan: Handle(plan), embedding_width, channels: Vec::new(), input: None })
    }

    fn raw(&self) -> *mut c_void {
        self.plan.0.as_ptr()
    }

    /// Notes a new buffer.
    fn noted(&mut self, buffer: i32, channels: i64) -> Buffer {
        self.channels.push(channels);
        debug_assert_eq!(buffer as usize + 1, self.channels.len(), "buffers are counted");
        Buffer(buffer)
    }

    fn channels(&self, buffer: Option<Buffer>) -> i64 {
        buffer.and_then(|b| self.channels.get(b.0 as usize)).copied().unwrap_or(0)
    }

    /// The images that come in.
    pub fn input(&mut self, channels: i64, height: i64, width: i64) -> Result<Buffer> {
        let mut out = -1;
        // SAFETY: a live plan; `out` is valid for a write.
        check(unsafe {
            diffusion_plan_input(self.raw(), small(channels)?, small(height)?, small(width)?, &mut out)
        })?;
        self.input = Some([channels, height, width]);
        Ok(self.noted(out, channels))
    }

    /// A linear map of the embedding with `parts` results: weight [parts·C, width], bias [parts·C].
    pub fn projection(&mut self, weight: &Tensor, bias: &Tensor, parts: i64) -> Result<Projection> {
        let rows = bias.numel() as i64;
        let (weight, bias) = (values(weight, rows * self.embedding_width)?, values(bias, rows)?);
        let mut out = -1;
        // SAFETY: a live plan; weight and bias have the lengths that were just checked and live until the end.
        check(unsafe {
            let (weight, bias) = (pointer(&weight), pointer(&bias));
            diffusion_plan_projection(self.raw(), weight, bias, small(parts)?, small(rows / parts)?, &mut out)
        })?;
        Ok(Projection(out))
    }

    /// A convolution.
    pub fn conv(&mut self, conv: &Conv) -> Result<Buffer> {
        let outputs = conv.bias.numel() as i64;
        let kernel = conv.weight.size().get(2).copied().unwrap_or(1);
        let inputs = self.channels(Some(conv.source)) + self.channels(conv.second);
        let weight = values(conv.weight, outputs * inputs * kernel * kernel)?;
        let bias = values(conv.bias, outputs)?;
        let raw = RawConv {
            source: conv.source.0,
            second: conv.second.map_or(-1, |b| b.0),
            weight: pointer(&weight),
            bias: pointer(&bias),
            outputs: small(outputs)?,
            kernel: small(kernel)?,
            stride: small(conv.stride)?,
            pad_begin: small(conv.padding.0)?,
            pad_end: small(conv.padding.1)?,
            doubled: conv.doubled,
            projection: conv.projection.map_or(-1, |p| p.0),
            residual: conv.residual.map_or(-1, |b| b.0),
            scale: conv.scale as f32,
        };
        let mut out = -1;
        // SAFETY: a live plan; weight and bias have the lengths that were just checked and live until the end.
        check(unsafe { diffusion_plan_conv(self.raw(), &raw, &mut out) })?;
        Ok(self.noted(out, outputs))
    }

    /// A group norm.
    pub fn norm(&mut self, norm: &Norm) -> Result<Buffer> {
        let channels = self.channels(Some(norm.source)) + self.channels(norm.second);
        let (weight, bias) = (values(norm.weight, channels)?, values(norm.bias, channels)?);
        let raw = RawNorm {
            source: norm.source.0,
            second: norm.second.map_or(-1, |b| b.0),
            weight: pointer(&weight),
            bias: pointer(&bias),
            groups: small(norm.groups)?,
            eps: norm.eps,
            silu: norm.silu,
            projection: norm.projection.map_or(-1, |p| p.0),
        };
        let mut out = -1;
        // SAFETY: as in `conv`.
        check(unsafe { diffusion_plan_norm(self.raw(), &raw, &mut out) })?;
        Ok(self.noted(out, channels))
    }

    /// softmax(q·kᵀ/√head_dim)·v over the pixels of a buffer that holds q, k and v, each [heads·head_dim].
    pub fn attention(&mut self, qkv: Buffer, heads: i64, head_dim: i64) -> Result<Buffer> {
        let mut out = -1;
        // SAFETY: a live plan; `out` is valid for a write.
        check(unsafe {
            diffusion_plan_attention(self.raw(), qkv.0, small(heads)?, small(head_dim)?, &mut out)
        })?;
        Ok(self.noted(out, heads * head_dim))
    }

    /// The plan that computes `result`, of the input's height and width.
    pub fn finish(self, result: Buffer) -> Result<Plan> {
        // SAFETY: a live plan.
        check(unsafe { diffusion_plan_finish(self.raw(), result.0) })?;
        let input = self.input.ok_or_else(|| Error::Internal("the inference plan has no input".into()))?;
        let outputs = self.channels(Some(result));
        Ok(Plan { plan: self.plan, embedding_width: self.embedding_width, input, outputs })
    }
}

impl Plan {
    /// Channels, height and width of the images that the plan is for.
    pub fn input(&self) -> [i64; 3] {
        self.input
    }

    /// Bytes that the plan holds.
    pub fn bytes(&self) -> usize {
        // SAFETY: a live plan.
        unsafe { diffusion_plan_floats(self.plan.0.as_ptr()) * size_of::<f32>() }
    }

    /// `x` [batch, channels, height, width] and activated embeddings [rows, width], of which image i has row `row[i]`.
    pub fn run(&mut self, x: &Tensor, embedding: &Tensor, row: &[i32]) -> Result<Tensor> {
        let [channels, height, width] = self.input;
        let batch = row.len() as i64;
        let rows = embedding.size().first().copied().unwrap_or(0);
        if !row.iter().all(|&r| (0..rows).contains(&i64::from(r))) {
            return Err(Error::Internal(format!("the inference plan: rows {row:?} of {rows}")));
        }
        let x = values(x, batch * channels * height * width)?;
        let embedding = values(embedding, rows * self.embedding_width)?;
        let out = Tensor::f_empty([batch, self.outputs, height, width], (Kind::Float, Device::Cpu))?;
        // SAFETY: a live plan that nobody else runs (`&mut self`); the tensors have the lengths that it wants and live
        // until the end; every row exists.
        check(unsafe {
            diffusion_plan_run(
                self.plan.0.as_ptr(),
                pointer(&x),
                small(batch)?,
                pointer(&embedding),
                small(rows)?,
                row.as_ptr(),
                out.data_ptr().cast(),
            )
        })?;
        Ok(out)
    }
}
