// SPDX-License-Identifier: MIT OR Apache-2.0
//! First content of the writable directories: a copy of what the read-only root has there, complete or absent.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use anyhow::{Context, Result};

/// Makes `to` a copy of `from` if it does not exist. A power cut leaves nothing under the final name.
pub fn seed_once(from: &Path, to: &Path) -> Result<bool> {
    if to.exists() {
        return Ok(false);
    }
    let new = to.with_extension("new");
    crate::files::remove(&new)?;
    copy(from, &new).with_context(|| format!("copying {} to {}", from.display(), new.display()))?;
    let parent = to.parent().context("a directory to seed has a parent")?;
    let dir = File::open(parent).with_context(|| format!("opening {}", parent.display()))?;
    rustix::fs::syncfs(&dir).with_context(|| format!("syncing {}", parent.display()))?;
    fs::rename(&new, to).with_context(|| format!("renaming {} to {}", new.display(), to.display()))?;
    dir.sync_all().with_context(|| format!("syncing {}", parent.display()))?;
    Ok(true)
}

/// Copies a tree with modes, owners and modification times of directories and files. Devices, sockets and extended
/// attributes do not occur in what is copied here.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    let kind = meta.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return own(to, &meta);
    }
    if kind.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if kind.is_file() {
        fs::copy(from, to)?;
    } else {
        return Ok(());
    }
    own(to, &meta)?;
    // After the owner: a change of owner clears the set-user-ID bit.
    fs::set_permissions(to, Permissions::from_mode(meta.mode() & 0o7777))?;
    File::open(to)?.set_modified(meta.modified()?)
}

fn own(path: &Path, meta: &fs::Metadata) -> io::Result<()> {
    match lchown(path, Some(meta.uid()), Some(meta.gid())) {
        // Tests are not root.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() => {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_once_and_completely() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("var"));
        fs::create_dir_all(from.join("lib/empty")).unwrap();
        fs::write(from.join("lib/file"), "text").unwrap();
        fs::set_permissions(from.join("lib/file"), Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(from.join("lib/empty"), Permissions::from_mode(0o1777)).unwrap();
        symlink("/run", from.join("run")).unwrap();
        // What a power cut left.
        fs::create_dir(dir.path().join("var.new")).unwrap();
        fs::write(dir.path().join("var.new/torn"), "").unwrap();

        assert!(seed_once(&from, &to).unwrap());
        assert_eq!(fs::read(to.join("lib/file")).unwrap(), b"text");
        assert_eq!(fs::metadata(to.join("lib/file")).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(to.join("lib/empty")).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read_link(to.join("run")).unwrap(), Path::new("/run"));
        assert!(!to.join("torn").exists() && !dir.path().join("var.new").exists());

        fs::write(to.join("lib/file"), "changed").unwrap();
        assert!(!seed_once(&from, &to).unwrap());
        assert_eq!(fs::read(to.join("lib/file")).unwrap(), b"changed");
    }
}
