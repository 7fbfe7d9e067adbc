//! A folder that is held open while its files are read: should a writer replace it meanwhile, the files are
//! still those of one checkpoint, or are gone; never some of the old one and some of the new.
//!
//! Symbolic links are followed: the hub's own cache consists of them. A name that stands in a file is another
//! matter, and is checked where it is used (diffusers.rs).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{fstat, open, openat, stat, Mode, OFlags};
use rustix::io::Errno;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::memory;

/// The longest JSON file. A hundred thousand betas are 3 MB.
const JSON_LIMIT: u64 = 4 << 20;
/// How many times its length parsed JSON may take: `[0,0,...]` makes 32 bytes of two.
pub(super) const PARSED: usize = 16;

/// An open folder.
pub(super) struct Folder {
    handle: OwnedFd,
    path: PathBuf,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let handle = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| match error {
                Errno::NOTDIR => Error::format(path, "is a file: must be a checkpoint folder"),
                error => Error::io(path, error.into()),
            })?;
        Ok(Folder { handle, path: path.to_path_buf() })
    }

    /// The folder's path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file of the folder is, for messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether another folder is now at this one's path, so that files may have gone missing.
    pub(super) fn was_replaced(&self) -> bool {
        let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        match (fstat(&self.handle), stat(&self.path)) {
            (Ok(mine), Ok(current)) => identity(mine) != identity(current),
            _ => true,
        }
    }

    /// Whether there is something of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        rustix::fs::statat(&self.handle, name, rustix::fs::AtFlags::empty()).is_ok()
    }

    /// A file's whole content; `None` where there is no such file.
    pub(super) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path_of(name);
        // NONBLOCK: a pipe in the place of a file must not keep the caller waiting.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match openat(&self.handle, name, flags, Mode::empty()) {
            Ok(handle) => File::from(handle),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(Error::io(path, error.into())),
        };
        let metadata = file.metadata().map_err(|error| Error::io(&path, error))?;
        if !metadata.is_file() {
            return Err(Error::format(path, "is not a regular file"));
        }
        if name.ends_with(".json") && metadata.len() > JSON_LIMIT {
            let reason = format!("is {} bytes long: must be at most {JSON_LIMIT}", metadata.len());
            return Err(Error::format(path, reason));
        }
        let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length.saturating_add(1)).map_err(|_| {
            Error::OutOfMemory(format!("no memory for the {length} bytes of {}", path.display()))
        })?;
        // A file that grows while it is read is not read for ever.
        file.take(metadata.len().saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io(&path, error))?;
        Ok(Some(bytes))
    }

    /// A JSON file's content; `None` where there is no such file.
    pub(super) fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        memory::ensure(bytes.len().saturating_mul(PARSED))?;
        let parsed = serde_json::from_slice(&bytes);
        parsed
            .map(Some)
            .map_err(|error| Error::format(self.path_of(name), format!("is not valid JSON: {error}")))
    }
}
