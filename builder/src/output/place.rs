// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts a large file in its place in one move: written without a name, synced, then named. A build that ends early, however it
//! ends, leaves nothing behind.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::error::Failure;

/// Start of the names of files under way, where the filesystem has no nameless ones.
const PARTIAL: &str = ".imgbuild-partial-";

/// A file under way.
#[derive(Debug)]
pub(super) struct Placed {
    file: File,
    target: PathBuf,
    named: Option<tempfile::TempPath>,
}

impl Placed {
    /// A new file for `target`, in the same folder, which is made if it is not there. Only its owner can read it.
    pub(super) fn new(target: &Path) -> Result<Self> {
        let folder = folder(target);
        std::fs::create_dir_all(folder).map_err(|e| Failure::io(format!("creating {}", folder.display()), e))?;
        sweep(folder);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let target = target.to_owned();
        if let Ok(file) = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
            return Ok(Self { file: file.into(), target, named: None });
        }
        // No nameless files here (NFS, some overlays): a name that the next build may sweep once nobody holds its lock.
        let named = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempfile_in(folder)
            .map_err(|e| Failure::io(format!("creating a file in {}", folder.display()), e))?;
        let (file, path) = named.into_parts();
        file.try_lock().context("locking a file under way")?;
        Ok(Self { file, target, named: Some(path) })
    }
    pub(super) fn file(&self) -> &File {
        &self.file
    }
    /// Syncs the file and gives it its name, in place of whatever had it.
    pub(super) fn finish(self) -> Result<()> {
        let Self { file, target, named } = self;
        let doing = || format!("writing {}", target.display());
        file.sync_all().map_err(|e| Failure::io(doing(), e))?;
        match named {
            Some(path) => path.persist(&target).map_err(|e| Failure::io(doing(), e.error))?,
            None => name(&file, &target)?,
        }
        let folder = folder(&target);
        File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Failure::io(doing(), e))?;
        Ok(())
    }
}

/// The folder a file lies in; that of a bare name is ".".
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Names a nameless file. A link cannot replace a file, so it gets a passing name first where one is in the way.
fn name(file: &File, target: &Path) -> Result<()> {
    let doing = || format!("writing {}", target.display());
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |to: &Path| rustix::fs::linkat(CWD, &nameless, CWD, to, AtFlags::SYMLINK_FOLLOW);
    match link(target) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(Failure::io(doing(), e.into()).into()),
    }
    file.try_lock().with_context(doing)?;
    let passing = folder(target).join(format!("{PARTIAL}{}-{}", std::process::id(), file.as_raw_fd()));
    let _ = std::fs::remove_file(&passing);
    link(&passing).map_err(|e| Failure::io(doing(), e.into()))?;
    if let Err(e) = std::fs::rename(&passing, target) {
        let _ = std::fs::remove_file(&passing);
        return Err(Failure::io(doing(), e).into());
    }
    Ok(())
}

/// Removes what builds that were killed have left: nobody holds its lock. Whatever fails here is no reason not to build.
fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PARTIAL)) {
        if File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_appears_whole_and_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out/a.img");
        for text in ["one", "two"] {
            let placed = Placed::new(&target).unwrap();
            placed.file().write_all(text.as_bytes()).unwrap();
            placed.finish().unwrap();
            assert_eq!(std::fs::read_to_string(&target).unwrap(), text);
            assert_eq!(names(&dir.path().join("out")), ["a.img"]);
        }
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_stays_of_a_file_that_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        Placed::new(&dir.path().join("a.img")).unwrap().file().write_all(b"x").unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn what_a_killed_build_left_is_swept_but_not_what_is_under_way() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{PARTIAL}dead")), "x").unwrap();
        let alive = File::create(dir.path().join(format!("{PARTIAL}alive"))).unwrap();
        alive.try_lock().unwrap();
        Placed::new(&dir.path().join("a.img")).unwrap();
        assert_eq!(names(dir.path()), [format!("{PARTIAL}alive")]);
    }
}
