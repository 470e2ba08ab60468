// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the initramfs into the root.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::UnmountFlags;

use super::SYSROOT;
use super::mounts::in_sysroot;

/// What becomes PID 1.
const INIT: &str = "/sbin/init";

/// Moves the mounts, gives back the memory of the initramfs, makes `/sysroot` the root, and becomes systemd, which starts
/// `unit` instead of its default one.
pub fn switch_root(unit: Option<&str>) -> Result<Infallible> {
    let init = fs::symlink_metadata(in_sysroot(INIT));
    init.with_context(|| format!("the root has no {INIT}"))?;
    for path in ["/dev", "/proc", "/sys"] {
        rustix::mount::unmount(in_sysroot(path), UnmountFlags::DETACH)
            .with_context(|| format!("releasing {}", in_sysroot(path).display()))?;
    }
    for path in ["/dev", "/proc", "/sys", "/run"] {
        rustix::mount::mount_move(path, in_sysroot(path)).with_context(|| format!("moving {path} into the root"))?;
    }
    rustix::process::chdir(SYSROOT).context("changing to the root")?;
    // The kernel keeps the initramfs in memory for ever; what is in it goes, mounts of other filesystems stay.
    if let Ok(meta) = fs::symlink_metadata("/")
        && is_in_memory(Path::new("/"))
    {
        empty(Path::new("/"), meta.dev());
    }
    rustix::mount::mount_move(".", "/").context("moving the root to /")?;
    rustix::process::chroot(".").context("changing the root")?;
    rustix::process::chdir("/").context("changing to the new root")?;
    let unit = unit.map(|unit| format!("--unit={unit}"));
    let error = Command::new(INIT).args(unit).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").exec();
    Err(error).with_context(|| format!("starting {INIT}"))
}

/// Only a filesystem that lives in memory is emptied, whatever went wrong before.
fn is_in_memory(path: &Path) -> bool {
    const RAMFS: i64 = 0x8584_58f6;
    const TMPFS: i64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|stat| matches!(stat.f_type, RAMFS | TMPFS))
}

/// Removes everything on the device `device` below `dir`. What cannot be removed costs memory, nothing more.
fn empty(dir: &Path, device: u64) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            empty(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empties_only_its_own_device() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("lib/modules")).unwrap();
        fs::write(dir.path().join("lib/modules/a.ko"), "").unwrap();
        let device = fs::metadata(dir.path()).unwrap().dev();
        empty(dir.path(), device + 1);
        assert!(dir.path().join("lib/modules/a.ko").exists());
        empty(dir.path(), device);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
