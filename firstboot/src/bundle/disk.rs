// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host's files. Every change goes through here: durable when it returns, and whole or not there when the power goes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::context::below;
use crate::files::{self, Owner};

/// The files below a root.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    /// Tests: how many more changes may be made before the power goes.
    #[cfg(test)]
    pub(crate) fuse: std::cell::Cell<Option<usize>>,
}

impl Disk {
    /// Those below `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            #[cfg(test)]
            fuse: std::cell::Cell::new(None),
        }
    }

    /// `/`, or a directory that plays the host in tests.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// An absolute path of the host.
    pub fn path(&self, absolute: &str) -> PathBuf {
        below(&self.root, absolute)
    }

    /// Owners matter on the host itself alone: tests are not root.
    pub(super) fn owner(&self, owner: Owner) -> Option<Owner> {
        (self.root == Path::new("/")).then_some(owner)
    }

    #[cfg(test)]
    fn change(&self) -> Result<()> {
        if let Some(left) = self.fuse.get() {
            anyhow::ensure!(left > 0, "the power went out");
            self.fuse.set(Some(left - 1));
        }
        Ok(())
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests cut the power here")]
    fn change(&self) -> Result<()> {
        Ok(())
    }

    /// Makes a change that others know how to make durable and whole.
    pub(super) fn apply<T>(&self, change: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        self.change()?;
        change(&self.root)
    }

    /// Whether anything is at the path, a link that leads nowhere included.
    pub(super) fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// Names in a directory, sorted; none if there is no directory.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Writes a file.
    pub(super) fn write(&self, path: &str, content: &[u8], mode: u32, owner: Owner) -> Result<()> {
        self.change()?;
        files::write_atomic(&self.path(path), content, mode, self.owner(owner))
    }

    /// Makes a symbolic link.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<()> {
        self.change()?;
        let path = self.path(path);
        files::link_atomic(&path, target)?;
        sync_parent(&path)
    }

    /// Makes a directory for root alone, if there is none.
    pub(super) fn private_dir(&self, path: &str) -> Result<()> {
        let path = self.path(path);
        if path.is_dir() {
            return Ok(());
        }
        self.change()?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("creating {}", path.display()))?;
        sync_parent(&path)
    }

    /// Changes the time at which a file was last modified.
    pub(super) fn set_modified(&self, path: &str, time: std::time::SystemTime) -> Result<()> {
        let path = self.path(path);
        let set = || {
            let file = File::options().write(true).open(&path)?;
            file.set_modified(time)?;
            file.sync_all()
        };
        set().with_context(|| format!("giving {} its time back", path.display()))
    }

    /// Removes a file or link; a directory only if it is empty. What is not there is fine.
    pub(super) fn remove(&self, path: &str) -> Result<()> {
        let real = self.path(path);
        let removed = match fs::symlink_metadata(&real) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error),
            Ok(meta) => {
                self.change()?;
                if meta.is_dir() { fs::remove_dir(&real) } else { fs::remove_file(&real) }
            }
        };
        match removed {
            // Somebody else put something there since.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
            other => other.with_context(|| format!("removing {}", real.display()))?,
        }
        sync_parent(&real)
    }

    /// Removes everything in a directory, and the directory unless `keep`. Never leaves its filesystem: what is mounted below
    /// may be somebody's data.
    pub(super) fn remove_all(&self, path: &str, keep: bool) -> Result<()> {
        let real = self.path(path);
        let meta = match fs::symlink_metadata(&real) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("looking at {}", real.display()))?,
        };
        if !meta.is_dir() {
            return self.remove(path);
        }
        self.change()?;
        empty(&real, meta.dev())?;
        if !keep {
            fs::remove_dir(&real).with_context(|| format!("removing {}", real.display()))?;
        }
        sync_parent(&real)
    }

    /// Copies files, relative path and source, into a new directory, which appears when all of it is on the disk. What has the
    /// name is replaced.
    pub(super) fn copy_all<'a>(&self, path: &str, sources: impl Iterator<Item = (&'a str, PathBuf)>) -> Result<()> {
        let target = self.path(path);
        let parent = target.parent().context("a directory has a parent")?;
        let name = target.file_name().context("a directory has a name")?.to_string_lossy();
        let new = parent.join(format!(".{name}.firstboot-new"));
        self.change()?;
        files::remove(&new)?;
        for (relative, source) in sources {
            let to = new.join(relative);
            let folder = to.parent().unwrap_or(&new);
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
            fs::copy(&source, &to).with_context(|| format!("copying {} to {}", source.display(), to.display()))?;
            // By the one bit that matters, whatever unpacking made of the rest.
            let mode = fs::metadata(&to).with_context(|| format!("looking at {}", to.display()))?.mode();
            let mode = if mode & 0o100 != 0 { 0o755 } else { 0o644 };
            fs::set_permissions(&to, fs::Permissions::from_mode(mode))
                .with_context(|| format!("setting the mode of {}", to.display()))?;
        }
        let dir = File::open(&new).with_context(|| format!("opening {}", new.display()))?;
        rustix::fs::syncfs(&dir).with_context(|| format!("syncing {}", new.display()))?;
        self.change()?;
        files::remove(&target)?;
        fs::rename(&new, &target).with_context(|| format!("renaming {} to {}", new.display(), target.display()))?;
        sync_parent(&target)
    }
}

/// The temporary name of [`Disk::copy_all`], which a power cut may leave.
pub(super) fn unfinished(path: &str) -> Option<String> {
    let (parent, name) = path.rsplit_once('/')?;
    Some(format!("{parent}/.{name}.firstboot-new"))
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a path has a parent")?;
    File::open(parent).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", parent.display()))
}

fn empty(dir: &Path, device: u64) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        let meta = fs::symlink_metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
        if meta.dev() != device {
            bail!("{} is on another filesystem than {}: unmount it first", path.display(), dir.display());
        }
        let removed = if meta.is_dir() {
            empty(&path, device)?;
            fs::remove_dir(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}
