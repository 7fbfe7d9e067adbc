//! The weights of a network: an ordered list of named tensors, with diffusers' names in diffusers' order.
//!
//! This is what an optimizer steps, what EMA keeps a second copy of and what a checkpoint stores. A
//! [`DiffusionModel`](super::DiffusionModel) is a view of it.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use super::config::UnetConfig;
use super::scope::Source;
use crate::error::{Error, Result};
use crate::noise::{Domain, Stream};

/// How PyTorch's layers start their parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in ±bound.
    Uniform(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
}

impl Init {
    /// `kaiming_uniform_(a = √5)`, PyTorch's default for weight and bias alike (He et al. 2015, arXiv 1502.01852):
    /// uniform in ±1/√fan_in.
    pub(super) fn fan_in(fan_in: usize) -> Self {
        Init::Uniform(1.0 / (fan_in.max(1) as f64).sqrt())
    }
}

/// One parameter of an architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Diffusers' name, such as `down_blocks.0.resnets.1.conv1.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// How it starts.
    pub init: Init,
    /// Whether training changes it. Only the weights of Fourier features stay.
    pub trainable: bool,
}

impl ParameterSpec {
    /// How many numbers it holds.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// One named tensor.
#[derive(Debug)]
struct Parameter {
    name: String,
    tensor: Tensor,
    trainable: bool,
}

/// The weights of a network, ordered and named as in diffusers' state_dict.
#[derive(Debug)]
pub struct Parameters {
    entries: Vec<Parameter>,
    index: HashMap<String, usize>,
}

impl Parameters {
    /// Fresh weights as PyTorch's layers draw them, from the library's own counter-based generator: the same on every
    /// device, and libtorch's generators are not touched. Parameter i is drawn from stream (Init, seed, i).
    ///
    /// # Errors
    /// `InvalidArgument` where the config is not valid; `OutOfMemory` where the device is too small.
    pub fn init(config: &UnetConfig, seed: u64, device: Device) -> Result<Self> {
        let mut entries = Vec::new();
        for (i, spec) in config.parameter_specs()?.into_iter().enumerate() {
            let values = draw(&spec, &Stream::new(Domain::Init, seed, i as u64))?;
            let tensor = values.f_view_(&spec.shape)?.f_to_device(device)?;
            entries.push(Parameter { name: spec.name, tensor, trainable: spec.trainable });
        }
        Ok(Self::from_entries(entries))
    }

    /// The given tensors, in any order, as the weights of `config`'s network. They are taken as they are, not copied.
    ///
    /// # Errors
    /// `InvalidArgument` that names the tensor which is missing, is there twice, is none of the network's, or
    /// has another shape.
    pub fn from_tensors(config: &UnetConfig, tensors: Vec<(String, Tensor)>) -> Result<Self> {
        let specs = config.parameter_specs()?;
        let mut given = HashMap::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            if let Some((name, _)) = given.remove_entry(&name) {
                return Err(Error::InvalidArgument(format!("tensor {name} is given twice")));
            }
            given.insert(name, tensor);
        }
        let mut entries = Vec::with_capacity(specs.len());
        for spec in specs {
            let tensor = given.remove(&spec.name).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "tensor {} is missing: it must have shape {:?}",
                    spec.name, spec.shape
                ))
            })?;
            if tensor.size() != spec.shape {
                let allowed = format!("{:?}", spec.shape);
                let name = format!("the shape of tensor {}", spec.name);
                return Err(Error::argument(&name, format!("{:?}", tensor.size()), allowed));
            }
            entries.push(Parameter { name: spec.name, tensor, trainable: spec.trainable });
        }
        // The least one, so that the message is the same each time.
        match given.into_keys().min() {
            Some(name) => Err(Error::InvalidArgument(format!("tensor {name} is none of this network's"))),
            None => Ok(Self::from_entries(entries)),
        }
    }

    fn from_entries(entries: Vec<Parameter>) -> Self {
        let index = entries.iter().enumerate().map(|(i, entry)| (entry.name.clone(), i)).collect();
        Parameters { entries, index }
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none, which no network has.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many numbers the tensors hold, all together.
    pub fn numel(&self) -> u64 {
        self.iter().map(|(_, tensor)| tensor.numel() as u64).sum()
    }

    /// Names and tensors, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> + DoubleEndedIterator {
        self.entries.iter().map(|entry| (entry.name.as_str(), &entry.tensor))
    }

    /// Names and tensors of those that training changes, in order.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let trainable = self.entries.iter().filter(|entry| entry.trainable);
        trainable.map(|entry| (entry.name.as_str(), &entry.tensor))
    }

    /// Names, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Names and shapes, in order.
    pub fn shapes(&self) -> impl ExactSizeIterator<Item = (&str, Vec<i64>)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), entry.tensor.size()))
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).and_then(|&i| self.entries.get(i)).map(|entry| &entry.tensor)
    }

    /// The name and tensor at a place in the order.
    pub fn nth(&self, i: usize) -> Option<(&str, &Tensor)> {
        self.entries.get(i).map(|entry| (entry.name.as_str(), &entry.tensor))
    }

    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.entries.first().map_or(Device::Cpu, |entry| entry.tensor.device())
    }

    /// Copies the values of the tensor of that name, row by row, to `out`.
    ///
    /// # Errors
    /// `InvalidArgument` where there is no such tensor; `BufferSize` where `out` has not exactly its length.
    pub fn read(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let tensor = self.sized(name, out.len())?;
        let values = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        Ok(values.f_copy_data(out, out.len())?)
    }

    /// Overwrites the values of the tensor of that name, row by row, in place: models that view it follow.
    ///
    /// # Errors
    /// As for [`Parameters::read`].
    pub fn write(&self, name: &str, values: &[f32]) -> Result<()> {
        let tensor = self.sized(name, values.len())?;
        let values = Tensor::f_from_slice(values)?.f_view_(tensor.size())?;
        // A detached alias: to autograd, writing to a leaf would be an error.
        Ok(tensor.f_detach()?.f_copy_(&values)?)
    }

    fn sized(&self, name: &str, got: usize) -> Result<&Tensor> {
        let tensor = self.get(name).ok_or_else(|| {
            Error::argument(
                "parameter name",
                format!("{name:?}"),
                "one of the network's, such as conv_in.weight",
            )
        })?;
        let need = tensor.numel();
        if got != need {
            let why = format!("{name} has shape {:?}", tensor.size());
            return Err(Error::BufferSize { name: "values_len", got, need, why });
        }
        Ok(tensor)
    }

    /// Overwrites every tensor with its namesake in `other`, in place.
    ///
    /// # Errors
    /// `InvalidArgument` where a name or shape differs; nothing has been written then.
    pub fn copy_from(&self, other: &Parameters) -> Result<()> {
        if !self.shapes().eq(other.shapes()) {
            return Err(Error::InvalidArgument("the parameters of another network cannot be copied".into()));
        }
        for ((_, mine), (_, theirs)) in self.iter().zip(other.iter()) {
            mine.f_detach()?.f_copy_(&theirs.f_detach()?)?;
        }
        Ok(())
    }

    /// The same tensors once more.
    pub fn share(&self) -> Self {
        let entries = self.entries.iter().map(|entry| Parameter {
            name: entry.name.clone(),
            tensor: entry.tensor.shallow_clone(),
            trainable: entry.trainable,
        });
        Self::from_entries(entries.collect())
    }

    /// A copy that shares nothing with this one and needs no gradients.
    pub fn deep_copy(&self) -> Result<Self> {
        self.map(|tensor| {
            let source = tensor.f_detach()?;
            let mut copy = source.f_empty_like()?;
            copy.f_copy_(&source)?;
            Ok(copy)
        })
    }

    /// These on that device, where they may be already.
    pub fn to(self, device: Device) -> Result<Self> {
        if device == self.device() {
            return Ok(self);
        }
        self.map(|tensor| Ok(tensor.f_detach()?.f_to_device(device)?))
    }

    /// Whether autograd follows what is computed with those tensors that training changes.
    pub fn set_requires_grad(&self, required: bool) -> Result<()> {
        for (_, tensor) in self.trainable() {
            let _same = tensor.f_set_requires_grad(required)?;
        }
        Ok(())
    }

    /// The same names with other tensors.
    pub(crate) fn map(&self, mut make: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let entries = (self.entries.iter())
            .map(|Parameter { name, tensor, trainable }| {
                Ok(Parameter { name: name.clone(), tensor: make(tensor)?, trainable: *trainable })
            })
            .collect::<Result<_>>()?;
        Ok(Self::from_entries(entries))
    }

    /// The same with other tensors in place of those that training changes.
    pub(crate) fn map_trainable(&self, mut make: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let entries = (self.entries.iter())
            .map(|Parameter { name, tensor, trainable }| {
                let tensor = if *trainable { make(tensor)? } else { tensor.shallow_clone() };
                Ok(Parameter { name: name.clone(), tensor, trainable: *trainable })
            })
            .collect::<Result<_>>()?;
        Ok(Self::from_entries(entries))
    }
}

impl Source for Parameters {
    fn tensor(&self, spec: ParameterSpec) -> Result<Tensor> {
        let tensor = self.get(&spec.name).ok_or_else(|| {
            Error::InvalidArgument(format!("tensor {} is missing from the parameters", spec.name))
        })?;
        if tensor.size() != spec.shape {
            let name = format!("the shape of tensor {}", spec.name);
            return Err(Error::argument(&name, format!("{:?}", tensor.size()), format!("{:?}", spec.shape)));
        }
        Ok(tensor.shallow_clone())
    }
}

/// The first values of a parameter, flat and on the CPU: [numel].
fn draw(spec: &ParameterSpec, stream: &Stream) -> Result<Tensor> {
    let numel = spec.numel();
    let options = (Kind::Float, Device::Cpu);
    let random = |fill: &dyn Fn(&mut [f32]), shape: f32, shift: f32| -> Result<Tensor> {
        let mut values: Vec<f32> = Vec::new();
        values
            .try_reserve_exact(numel as usize)
            .map_err(|_| Error::OutOfMemory(format!("no memory for the {numel} values of {}", spec.name)))?;
        values.resize(numel as usize, 0.0);
        fill(&mut values);
        values.iter_mut().for_each(|value| *value = (*value - shift) * shape);
        Ok(Tensor::f_from_slice(&values)?)
    };
    match spec.init {
        Init::Zeros => Ok(Tensor::f_zeros([numel as i64], options)?),
        Init::Ones => Ok(Tensor::f_ones([numel as i64], options)?),
        // u in [0, 1) -> (u − ½)·2·bound
        Init::Uniform(bound) => random(&|out| stream.fill_uniform(0, out), 2.0 * bound as f32, 0.5),
        Init::Normal(std) => random(&|out| stream.fill_normal(0, out), std as f32, 0.0),
    }
}
