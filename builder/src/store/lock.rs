// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who is at work in the store: file locks, temporary files, and sweeping up after the dead. A lock ends with the
//! process that holds it, however that ends, so nothing is ever locked by a crash.

use std::cell::Cell;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tempfile::{NamedTempFile, TempDir};

use super::Digest;
use crate::error::Failure;

/// Between making a temporary file and locking it, another process must not sweep it.
const GRACE: Duration = Duration::from_secs(60);
/// How long an abandoned download is kept to be continued.
const KEEP_PARTIAL: Duration = Duration::from_secs(14 * 24 * 3600);

/// The file that everybody who uses the store holds locked: shared, or alone to remove things that others may need.
const IN_USE: &str = "in-use";

/// The right to use the store, until dropped.
#[derive(Debug)]
pub(super) struct Presence {
    /// None where the store can only be read and nobody ever locked it.
    file: Option<File>,
}

impl Presence {
    /// Enters the store beside others. Waits while somebody is alone in it.
    pub(super) fn enter(root: &Path) -> io::Result<Self> {
        let path = root.join(IN_USE);
        let file = match File::options().read(true).write(true).create(true).truncate(false).open(&path) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
                match File::open(&path) {
                    Ok(file) => file,
                    Err(_) => return Ok(Self { file: None }),
                }
            }
            Err(e) => return Err(e),
        };
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => {
                tracing::info!("Waiting for another imgbuild that is clearing out the store {}.", root.display());
                file.lock_shared()?;
            }
        }
        Ok(Self { file: Some(file) })
    }

    /// Waits until nobody else is in the store, and keeps others out from then on.
    pub(super) fn alone(&self, root: &Path) -> io::Result<()> {
        let Some(file) = &self.file else { return Err(io::ErrorKind::ReadOnlyFilesystem.into()) };
        // The kernel gives up the one lock before it takes the other, too (flock(2)): nobody may rely on what they saw before.
        file.unlock()?;
        match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::Error(e)) => Err(e),
            Err(TryLockError::WouldBlock) => {
                tracing::info!("Waiting until no other imgbuild uses the store {}.", root.display());
                file.lock()
            }
        }
    }
}

/// A temporary file in the store, locked while it is open.
pub(super) fn temporary(root: &Path) -> io::Result<NamedTempFile> {
    let file = NamedTempFile::new_in(root.join("work"))?;
    file.as_file().try_lock().map_err(io::Error::from)?;
    Ok(file)
}

/// A scratch folder in the store, locked while in use and removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
    _lock: File,
}

impl Scratch {
    pub(super) fn new(root: &Path) -> Result<Self> {
        let making = |e| Failure::io(format!("making a scratch folder in the store {}", root.display()), e);
        let dir = TempDir::new_in(root.join("work")).map_err(making)?;
        let lock = File::open(dir.path()).map_err(making)?;
        lock.try_lock().map_err(|e| making(e.into()))?;
        Ok(Self { dir, _lock: lock })
    }
    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Opens the file at `path` and locks it, waiting for other holders. The file the lock is held on is the one at `path`:
/// holders may remove or rename theirs.
pub(super) fn open_locked(path: &Path, wait: Wait<'_>) -> io::Result<Option<File>> {
    loop {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => match wait {
                Wait::No => return Ok(None),
                Wait::For(what) => {
                    tracing::info!("Waiting for another imgbuild that is at {what}.");
                    file.lock()?;
                }
            },
        }
        if is_at(&file, path) {
            return Ok(Some(file));
        }
    }
}

/// Whether to wait for a lock, and what to say meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait<'a> {
    /// Give up at once.
    No,
    /// Wait, and say for what.
    For(&'a str),
}

/// Whether `path` still names the open file.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

thread_local! {
    /// How many steps this thread is in the middle of.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// The exclusive right to do a step, or the permission to do it twice.
///
/// The lock only saves work: doing a step twice gives the same objects. So a thread that already holds one does not
/// wait for a second, which rules out deadlocks between builds (and within one, where a waiting rayon worker may pick
/// up any job).
#[derive(Debug)]
pub(super) struct StepLock {
    held: Option<(File, PathBuf)>,
}

impl StepLock {
    pub(super) fn acquire(root: &Path, key: &Digest, what: &str) -> Result<Self> {
        let path = root.join("locks").join(key.to_string());
        let wait = if DEPTH.get() == 0 { Wait::For(what) } else { Wait::No };
        let file = open_locked(&path, wait)
            .map_err(|e| Failure::io(format!("locking {what} in the store {}", root.display()), e))
            .context("waiting for another build")?;
        DEPTH.set(DEPTH.get() + 1);
        Ok(Self { held: file.map(|file| (file, path)) })
    }
}

impl Drop for StepLock {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
        if let Some((_, path)) = &self.held {
            // While still locked, so that whoever waits sees that its file is gone and opens the new one.
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes temporary files and folders whose owner is gone, and downloads nobody has continued for long.
/// Does what it can: a store that may only be read is no error here.
pub(super) fn sweep(root: &Path) {
    for (dir, age) in [("work", GRACE), ("partial", KEEP_PARTIAL), ("locks", GRACE)] {
        for entry in fs::read_dir(root.join(dir)).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Err(e) = sweep_one(&path, age) {
                tracing::debug!("Not swept: {}: {e}", path.display());
            }
        }
    }
}

fn sweep_one(path: &Path, age: Duration) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    // A clock set back makes files from the future: leave them.
    if SystemTime::now().duration_since(meta.modified()?).unwrap_or_default() < age {
        return Ok(());
    }
    let file = File::open(path)?;
    if file.try_lock().is_err() {
        return Ok(());
    }
    if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}
