//! Replaces a whole folder so that a crash at any moment leaves the old one or the new one.
//!
//! The new folder is made beside the old one, as `.<name>.tmp-<pid>-<n>`, and everything in it is on the disk before
//! the two change places in one step (renameat2 with RENAME_EXCHANGE). A file system that cannot do that gets two
//! renames, the first of which moves the old folder to `.<name>.old-<pid>-<n>`; a crash between them leaves no
//! folder of the name, and [`locate`] finds the old one.
//!
//! Files of the old folder that are none of a checkpoint's (a README, pictures) are in the new one too, as hard
//! links. What a writer that died has left behind goes away at the next write: a living writer holds a lock
//! (flock) on its unfinished folder, which ends with it however it ends.
//!
//! Every change to the disk goes through [`Disk`], so that a test can make each of them fail.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use rustix::fs::{flock, renameat_with, FlockOperation, RenameFlags, CWD};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// A change to the disk that is about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A folder is made.
    CreateFolder,
    /// A file is made.
    CreateFile,
    /// So many bytes are written to a file.
    Write(usize),
    /// A file or folder is made to last a loss of power.
    Sync,
    /// A file that is none of ours is linked, or copied, into the new folder.
    Carry,
    /// Two folders change places.
    Exchange,
    /// A folder gets another name.
    Rename,
    /// A folder is removed with everything in it.
    Remove,
}

/// What is asked before every change to the disk, and may refuse it.
type Gate<'a> = dyn Fn(Operation, &Path) -> io::Result<()> + 'a;

/// The disk that checkpoints are written to.
#[derive(Default)]
pub struct Disk<'a> {
    gate: Option<&'a Gate<'a>>,
}

impl<'a> Disk<'a> {
    /// The disk as it is.
    pub fn new() -> Self {
        Disk::default()
    }

    /// A disk for tests: `gate` is asked before each change, which is not made where it returns an error.
    pub fn with_gate(gate: &'a Gate<'a>) -> Self {
        Disk { gate: Some(gate) }
    }

    /// Makes a change, if the gate lets it through.
    fn change<T>(
        &self,
        operation: Operation,
        path: &Path,
        make: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.gate.map_or(Ok(()), |gate| gate(operation, path))?;
        make()
    }

    fn create_folder(&self, path: &Path) -> Result<()> {
        self.change(Operation::CreateFolder, path, || fs::create_dir(path))
            .map_err(|error| Error::io(path, error))
    }

    fn sync(&self, path: &Path) -> Result<()> {
        let sync = || fs::File::open(path)?.sync_all();
        self.change(Operation::Sync, path, sync).map_err(|error| Error::io(path, error))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change(Operation::Rename, from, || fs::rename(from, to)).map_err(|error| Error::io(from, error))
    }

    /// Gives up in silence: what stays behind is removed by the next write.
    fn remove(&self, path: &Path) {
        let _stays = self.change(Operation::Remove, path, || fs::remove_dir_all(path));
    }
}

/// A file that is being written through a gate.
struct Gated<'a> {
    disk: &'a Disk<'a>,
    file: fs::File,
    path: &'a Path,
}

impl Write for Gated<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.change(Operation::Write(bytes.len()), self.path, || self.file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The new folder, while it is being filled.
pub(super) struct Draft<'a> {
    disk: &'a Disk<'a>,
    root: PathBuf,
}

impl Draft<'_> {
    /// Makes a folder in it.
    pub(super) fn folder(&self, name: &str) -> Result<()> {
        self.disk.create_folder(&self.root.join(name))
    }

    /// Makes a file in it, and has it on the disk when this returns.
    pub(super) fn file(
        &self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write, &Path) -> Result<()>,
    ) -> Result<()> {
        let path = self.root.join(name);
        let io = |error| Error::io(&path, error);
        let create = || fs::File::create_new(&path);
        let file = self.disk.change(Operation::CreateFile, &path, create).map_err(io)?;
        let mut out = BufWriter::with_capacity(1 << 16, Gated { disk: self.disk, file, path: &path });
        fill(&mut out, &path)?;
        out.flush().map_err(io)?;
        drop(out);
        self.disk.sync(&path)
    }
}

/// What is at a path that is to be replaced, and what of it belongs to the thing that replaces it.
pub(super) struct Rules {
    /// Whether a folder that is not empty may be replaced; if not, why.
    pub(super) may_replace: fn(&Path) -> std::result::Result<(), String>,
    /// Whether a name at this place in the old folder (such as `unet/config.json`) is ours, so that it is not to be
    /// carried over.
    pub(super) is_ours: fn(&Path) -> bool,
}

/// One writer of this process at a time is between making its folder and locking it.
static MAKING: Mutex<()> = Mutex::new(());
/// Tells the writers of this process apart.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Replaces the folder at `path`, or makes it, with what `fill` makes.
///
/// # Errors
/// `InvalidArgument` where `path` is not one for a folder, or holds one that may not be replaced; `Io` where the disk
/// fails. The old folder is then still there, except where the very last sync fails: the new one may be there
/// then.
pub(super) fn replace(
    disk: &Disk,
    path: &Path,
    rules: &Rules,
    fill: impl FnOnce(&Draft) -> Result<()>,
) -> Result<()> {
    let target = Target::resolve(path)?;
    target.put_back(disk)?;
    let old = target.existing(rules)?;
    let (root, _lock) = target.make(disk)?;
    let result = fill(&Draft { disk, root: root.clone() })
        .and_then(|()| old.as_ref().map_or(Ok(()), |old| target.inherit(disk, rules, &root, old)))
        .and_then(|()| sync_folders(disk, &root))
        .and_then(|()| target.commit(disk, &root, old.is_some()));
    match result {
        Ok(leftover) => {
            disk.sync(&target.parent)?;
            if let Some(leftover) = leftover {
                // A file that came into the old folder while the new one was made is not lost either.
                let late = carry(disk, rules, &leftover, &target.path(), Path::new(""));
                if late.is_ok() {
                    disk.remove(&leftover);
                }
            }
            Ok(())
        }
        Err(error) => {
            disk.remove(&root);
            Err(error)
        }
    }
}

/// Where a checkpoint at `path` is to be read from: there, but for the moment between two renames.
pub(super) fn locate(path: &Path) -> PathBuf {
    if fs::symlink_metadata(path).is_ok() {
        return path.to_path_buf();
    }
    let aside = Target::resolve(path).ok().and_then(|target| target.aside());
    aside.unwrap_or_else(|| path.to_path_buf())
}

/// The folder to be replaced, by its parent and its name.
struct Target {
    parent: PathBuf,
    name: OsString,
}

impl Target {
    fn resolve(path: &Path) -> Result<Self> {
        // A link to a checkpoint stays, and what it leads to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let name = path.file_name().ok_or_else(|| {
            Error::argument(
                "path",
                format!("{:?}", path.display().to_string()),
                "the name of a folder in another one",
            )
        })?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let parent = fs::canonicalize(parent).map_err(|error| Error::io(parent, error))?;
        Ok(Target { parent, name: name.to_owned() })
    }

    fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// `.<name>.<kind>-`: what the names of our helper folders begin with.
    fn prefix(&self, kind: &str) -> OsString {
        let mut prefix = OsString::from(".");
        prefix.push(&self.name);
        prefix.push(format!(".{kind}-"));
        prefix
    }

    fn helper(&self, kind: &str) -> PathBuf {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut name = self.prefix(kind);
        name.push(format!("{}-{count}", std::process::id()));
        self.parent.join(name)
    }

    /// Helper folders of that kind that are there, whosever they are.
    fn helpers(&self, kind: &str) -> Vec<PathBuf> {
        let prefix = self.prefix(kind);
        let ours = |name: &OsStr| name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        let entries = fs::read_dir(&self.parent).into_iter().flatten().flatten();
        entries.filter(|entry| ours(&entry.file_name())).map(|entry| entry.path()).collect()
    }

    /// The folder that a writer had moved aside when it died; the latest, should there be several.
    fn aside(&self) -> Option<PathBuf> {
        let time = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        self.helpers("old").into_iter().max_by_key(time)
    }

    /// Ends what a writer that died between its two renames had begun, by going back.
    fn put_back(&self, disk: &Disk) -> Result<()> {
        if fs::symlink_metadata(self.path()).is_ok() {
            return Ok(());
        }
        self.aside().map_or(Ok(()), |aside| disk.rename(&aside, &self.path()))
    }

    /// The metadata of the folder that is there, if one is; an error where it must not be replaced.
    fn existing(&self, rules: &Rules) -> Result<Option<fs::Metadata>> {
        let path = self.path();
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path, error)),
        };
        let refuse = |what: String| {
            let allowed = "a new folder, an empty one, or a checkpoint to be replaced";
            Err(Error::argument("path", format!("{}, {what}", path.display()), allowed))
        };
        if !metadata.is_dir() {
            return refuse("a file".into());
        }
        let mut entries = fs::read_dir(&path).map_err(|error| Error::io(&path, error))?;
        match entries.next().map(|_| (rules.may_replace)(&path)) {
            Some(Err(why)) => refuse(why),
            _ => Ok(Some(metadata)),
        }
    }

    /// A new helper folder and the lock on it, after those of dead writers have been removed.
    fn make(&self, disk: &Disk) -> Result<(PathBuf, fs::File)> {
        let _one = MAKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for leftover in self.helpers("tmp") {
            if lock(&leftover).is_some() {
                disk.remove(&leftover);
            }
        }
        if fs::symlink_metadata(self.path()).is_ok() {
            // With the folder in its place, what was moved aside is of no use any more.
            self.helpers("old").iter().for_each(|leftover| disk.remove(leftover));
        }
        let root = self.helper("tmp");
        disk.create_folder(&root)?;
        match lock(&root) {
            Some(lock) => Ok((root, lock)),
            None => Err(Error::io(&root, io::Error::from(io::ErrorKind::WouldBlock))),
        }
    }

    /// Gives the new folder the files of the old one that are not ours, and the old one's permissions.
    fn inherit(&self, disk: &Disk, rules: &Rules, root: &Path, old: &fs::Metadata) -> Result<()> {
        carry(disk, rules, &self.path(), root, Path::new(""))
            .and_then(|()| fs::set_permissions(root, old.permissions()))
            .map_err(|error| Error::io(self.path(), error))
    }

    /// Puts the new folder into its place; returns where the old one is now.
    fn commit(&self, disk: &Disk, root: &Path, replaces: bool) -> Result<Option<PathBuf>> {
        let path = self.path();
        if !replaces {
            disk.rename(root, &path)?;
            return Ok(None);
        }
        let exchange = || Ok(renameat_with(CWD, root, CWD, &path, RenameFlags::EXCHANGE)?);
        let error = match disk.change(Operation::Exchange, &path, exchange) {
            Ok(()) => return Ok(Some(root.to_path_buf())),
            Err(error) => error,
        };
        let unsupported = [Errno::NOSYS, Errno::INVAL, Errno::OPNOTSUPP];
        if !Errno::from_io_error(&error).is_some_and(|errno| unsupported.contains(&errno)) {
            return Err(Error::io(path, error));
        }
        let aside = self.helper("old");
        disk.rename(&path, &aside)?;
        match disk.rename(root, &path) {
            Ok(()) => Ok(Some(aside)),
            Err(error) => {
                disk.rename(&aside, &path)?;
                Err(error)
            }
        }
    }
}

/// A lock on a folder that no other writer holds; it ends when the file is closed.
fn lock(folder: &Path) -> Option<fs::File> {
    let file = fs::File::open(folder).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

/// Links everything in `from` that is not ours, and is not there yet, into `to`. `place` is where that is in the
/// checkpoint.
///
/// What goes away meanwhile is passed over: another writer has replaced the folder, and has carried its files.
fn carry(disk: &Disk, rules: &Rules, from: &Path, to: &Path, place: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        match carry_one(disk, rules, &entry, to, &place.join(entry.file_name())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            result => result?,
        }
    }
    Ok(())
}

fn carry_one(disk: &Disk, rules: &Rules, entry: &fs::DirEntry, to: &Path, place: &Path) -> io::Result<()> {
    let (source, target) = (entry.path(), to.join(entry.file_name()));
    let there = fs::symlink_metadata(&target).is_ok();
    if entry.file_type()?.is_dir() {
        // Our own folders are there already, and others may have put something into them.
        if !there {
            disk.change(Operation::Carry, &target, || fs::create_dir(&target))?;
            fs::set_permissions(&target, fs::metadata(&source)?.permissions())?;
        }
        carry(disk, rules, &source, &target, place)
    } else if there || (rules.is_ours)(place) {
        Ok(())
    } else {
        disk.change(Operation::Carry, &target, || link(&source, &target))
    }
}

/// A second name for a file; a copy of it where the file system has no such thing.
fn link(source: &Path, target: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(source)?;
    if metadata.file_type().is_symlink() {
        return symlink(fs::read_link(source)?, target);
    }
    fs::hard_link(source, target).or_else(|error| match metadata.is_file() {
        true => fs::copy(source, target).and_then(|_| fs::File::open(target)?.sync_all()),
        false => Err(error),
    })
}

/// Has the names in a folder, and in all below it, on the disk.
fn sync_folders(disk: &Disk, root: &Path) -> Result<()> {
    let io = |error| Error::io(root, error);
    for entry in fs::read_dir(root).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_type().map_err(io)?.is_dir() {
            sync_folders(disk, &entry.path())?;
        }
    }
    disk.sync(root)
}
