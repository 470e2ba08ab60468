// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts a folder of files in its place in one move: filled under another name, synced, then renamed. A build that ends
//! early leaves nothing that looks like a result, and what was there before stays until then.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, RenameFlags};
use tempfile::TempDir;

use super::place::folder as parent_of;
use crate::error::Failure;

/// Start of the names of folders under way.
const PARTIAL: &str = ".imgbuild-folder-";

/// A folder under way.
#[derive(Debug)]
pub(super) struct PlacedFolder {
    folder: TempDir,
    /// Locked as long as the folder is under way, so that nobody sweeps it.
    _lock: File,
    target: PathBuf,
}

impl PlacedFolder {
    /// An empty folder for `target`, beside it. Only its owner can look into it.
    pub(super) fn new(target: &Path) -> Result<Self> {
        let parent = parent_of(target);
        let creating = |error| Failure::io(format!("creating a folder in {}", parent.display()), error);
        fs::create_dir_all(parent).map_err(creating)?;
        sweep(parent);
        let own = fs::Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().prefix(PARTIAL).permissions(own).tempdir_in(parent).map_err(creating)?;
        let lock = File::open(folder.path()).map_err(creating)?;
        lock.try_lock().context("locking a folder under way")?;
        Ok(Self { folder, _lock: lock, target: target.to_owned() })
    }

    /// A new file in the folder, with the folders it lies in.
    pub(super) fn create(&self, path: &str, mode: u32) -> Result<File> {
        let full = self.folder.path().join(path);
        let creating = |error| Failure::io(format!("creating {path} for {}", self.target.display()), error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent_of(&full)).map_err(creating)?;
        let mut options = File::options();
        Ok(options.read(true).write(true).create_new(true).mode(mode).open(&full).map_err(creating)?)
    }

    /// A new file with these bytes.
    pub(super) fn write(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mut file = self.create(path, mode)?;
        file.write_all(bytes).map_err(|e| Failure::io(format!("writing {path} for {}", self.target.display()), e))?;
        Ok(())
    }

    /// Syncs everything and puts the folder in its place. A folder that was there is replaced if it holds nothing but
    /// what the new one has, too, and `known` names: else it is not ours.
    pub(super) fn finish(self, known: &[&str]) -> Result<()> {
        let Self { folder, target, .. } = self;
        let doing = |error| Failure::io(format!("writing {}", target.display()), error);
        sync(folder.path()).map_err(doing)?;
        if target.symlink_metadata().is_ok() {
            let (old, new) = (names(&target).map_err(doing)?, names(folder.path()).map_err(doing)?);
            let foreign = |name: &&OsString| !known.iter().any(|known| **name == **known);
            if let Some(other) = old.difference(&new).find(foreign) {
                let message = format!("{} holds {}, which no build puts there", target.display(), other.display());
                return Err(Failure::user(message).hint("move it away, or name another folder with --out").into());
            }
            // Both change places, and the old one goes with the temporary name.
            match rustix::fs::renameat_with(CWD, folder.path(), CWD, &target, RenameFlags::EXCHANGE) {
                Ok(()) => folder.close().map_err(doing)?,
                // A filesystem that cannot: for a moment there is none.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                    fs::remove_dir_all(&target).map_err(doing)?;
                    fs::rename(folder.keep(), &target).map_err(doing)?;
                }
                Err(error) => return Err(doing(error.into()).into()),
            }
        } else {
            fs::rename(folder.path(), &target).map_err(doing)?;
            // Its name is gone; nothing is left to remove.
            _ = folder.keep();
        }
        File::open(parent_of(&target)).and_then(|parent| parent.sync_all()).map_err(doing)?;
        Ok(())
    }
}

/// Names in a folder; an error if it is no folder.
fn names(folder: &Path) -> std::io::Result<BTreeSet<OsString>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn sync(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

/// Removes what builds that were killed have left: nobody holds its lock. Whatever fails here is no reason not to
/// build.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PARTIAL)) {
        if File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::error::{hint, kind};

    fn listed(folder: &Path) -> Vec<String> {
        names(folder).unwrap().into_iter().map(|name| name.into_string().unwrap()).collect()
    }

    fn place(target: &Path, files: &[(&str, &str)]) -> Result<()> {
        let placed = PlacedFolder::new(target)?;
        for (path, text) in files {
            placed.write(path, text.as_bytes(), 0o600)?;
        }
        placed.finish(&["maybe"])
    }

    #[test]
    fn a_folder_appears_whole_and_replaces_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let (out, target) = (dir.path().join("out"), dir.path().join("out/a"));
        place(&target, &[("one", "1"), ("sub/two", "2"), ("maybe", "")]).unwrap();
        place(&target, &[("one", "11"), ("sub/three", "3"), ("four", "4")]).unwrap();
        assert_eq!(listed(&target), ["four", "one", "sub"]);
        assert_eq!(listed(&target.join("sub")), ["three"]);
        assert_eq!(fs::read_to_string(target.join("one")).unwrap(), "11");
        assert_eq!(listed(&out), ["a"]);
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("thesis.txt"), "years").unwrap();
        let error = place(&target, &[("one", "1")]).unwrap_err();
        assert_eq!(kind(&error).exit_code(), 1);
        assert!(error.to_string().ends_with("a holds thesis.txt, which no build puts there"), "{error}");
        assert!(hint(&error).unwrap().contains("--out"));
        assert_eq!(listed(dir.path()), ["a"]);
        fs::remove_dir_all(&target).unwrap();
        fs::write(&target, "a file").unwrap();
        assert!(place(&target, &[("one", "1")]).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "a file");
        assert_eq!(listed(dir.path()), ["a"]);
    }

    #[test]
    fn nothing_stays_of_a_folder_that_is_dropped_and_dead_ones_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(format!("{PARTIAL}dead"))).unwrap();
        let alive = PlacedFolder::new(&dir.path().join("a")).unwrap();
        alive.write("x", b"1", 0o600).unwrap();
        let other = PlacedFolder::new(&dir.path().join("b")).unwrap();
        assert_eq!(listed(dir.path()).len(), 2);
        drop((alive, other));
        assert_eq!(listed(dir.path()), [""; 0]);
    }
}
