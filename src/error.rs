//! The one error type of the library, and the status code that each variant has in the C ABI.
//!
//! Every message names the argument, the value it had and what it may be, since the person who reads it
//! holds a log line, not a debugger. Status codes never change their meaning once released.

use std::path::{Path, PathBuf};

use tch::TchError;

/// A `Result` with this library's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call did not do what was asked. After any of them the process is as it was before the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The fields of a variant are the parts of its message.
pub enum Error {
    /// A value is outside what is allowed.
    #[error("{0}")]
    InvalidArgument(String),
    /// A pointer that must point to something is NULL.
    #[error("{0} is NULL: must point to {1}")]
    NullPointer(&'static str, &'static str),
    /// A handle is NULL, was destroyed, is of another type, or never was one.
    #[error("{0}")]
    InvalidHandle(String),
    /// A caller's buffer has not exactly the length that the call needs.
    #[error("{name} is {got}: must be {need} ({why})")]
    BufferSize { name: &'static str, got: usize, need: usize, why: String },
    /// The host's or the device's memory does not suffice.
    #[error("{0}")]
    OutOfMemory(String),
    /// The device asked for is not to be had in this program on this machine.
    #[error("{0}")]
    DeviceUnavailable(String),
    /// The operating system refused a file operation.
    #[error("{}: {reason}", path.display())]
    Io { path: PathBuf, reason: String },
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    /// The call was cancelled, by a callback, a cancel function or the destruction of its process.
    #[error("{0}")]
    Cancelled(String),
    /// The time that the caller gave has run out.
    #[error("{0}")]
    Timeout(String),
    /// Not-a-number or infinity where a finite value is needed.
    #[error("{0}")]
    NonFinite(String),
    /// libtorch raised an error that has no status of its own; the first line of its text.
    #[error("libtorch: {0}")]
    Torch(String),
    /// A bug in this library.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// An [`Error::InvalidArgument`] in the house's form: "`name` is `value`: must be `allowed`".
    pub fn argument(name: &str, value: impl std::fmt::Display, allowed: impl std::fmt::Display) -> Self {
        Error::InvalidArgument(format!("{name} is {value}: must be {allowed}"))
    }

    /// An [`Error::Format`] of the file at `path`.
    pub fn format(path: impl AsRef<Path>, reason: impl std::fmt::Display) -> Self {
        Error::Format { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }

    /// An [`Error::Io`] of the file at `path`; `OutOfMemory` where that is what the system lacked.
    pub fn io(path: impl AsRef<Path>, error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::OutOfMemory {
            return Error::OutOfMemory(format!("{}: {error}", path.as_ref().display()));
        }
        Error::Io { path: path.as_ref().to_path_buf(), reason: error.to_string() }
    }
}

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        let text = match error {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        Error::from_torch(&text)
    }
}

/// What libtorch says where it had no memory for saying what is wrong.
const NO_TEXT: &str = "error computing error::what()";

impl Error {
    /// The error for a text that libtorch threw. What follows the first line is a C++ stack trace.
    pub fn from_torch(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default().trim();
        let lower = line.to_ascii_lowercase();
        if ["out of memory", "not enough memory", "can't allocate memory", "bad_alloc", NO_TEXT]
            .iter()
            .any(|sign| lower.contains(sign))
        {
            return Error::OutOfMemory(line.to_owned());
        }
        Error::Torch(line.to_owned())
    }
}
