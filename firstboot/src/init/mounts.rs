// SPDX-License-Identifier: MIT OR Apache-2.0
//! The mounts of the initramfs.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::MountFlags;

use super::SYSROOT;

/// One mount; the target directory is made if it is missing.
pub(super) fn mount(
    source: &Path,
    target: &Path,
    filesystem: &str,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<()> {
    if !target.is_dir() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755);
        builder.create(target).with_context(|| format!("creating {}", target.display()))?;
    }
    rustix::mount::mount(source, target, filesystem, flags, data)
        .with_context(|| format!("mounting {} at {} as {filesystem}", source.display(), target.display()))
}

/// Shows `source` at `target` too.
pub(super) fn bind(source: &Path, target: &Path) -> Result<()> {
    rustix::mount::mount_bind(source, target)
        .with_context(|| format!("binding {} to {}", source.display(), target.display()))
}

/// A path of the root that is being built.
pub(super) fn in_sysroot(absolute: &str) -> PathBuf {
    Path::new(SYSROOT).join(absolute.trim_start_matches('/'))
}

/// `/proc`, `/sys`, `/dev` and `/run`, with the flags systemd would give them.
pub fn kernel_filesystems() -> Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mounts: [(&str, &str, MountFlags, Option<&CStr>); 4] = [
        ("/proc", "proc", safe, None),
        ("/sys", "sysfs", safe, None),
        ("/dev", "devtmpfs", MountFlags::NOSUID, Some(c"mode=0755")),
        ("/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755")),
    ];
    for (target, filesystem, flags, data) in mounts {
        mount(Path::new(filesystem), Path::new(target), filesystem, flags, data)?;
    }
    Ok(())
}

/// The root and, inside it, the payload: both squashfs, both read-only.
pub fn read_only_root(root: &Path, payload: &Path) -> Result<()> {
    mount(root, Path::new(SYSROOT), "squashfs", MountFlags::RDONLY, None)
        .context("the root is no squashfs that this kernel can read")?;
    mount(payload, &in_sysroot("/opt/imgbuild"), "squashfs", MountFlags::RDONLY | MountFlags::NODEV, None)
        .context("the payload is no squashfs that this kernel can read")
}

/// What programs of the root need as long as we run them with `/sysroot` as their root.
pub fn bind_kernel_filesystems() -> Result<()> {
    ["/dev", "/proc", "/sys"].iter().try_for_each(|path| bind(Path::new(path), &in_sysroot(path)))
}
