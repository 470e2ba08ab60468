// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds and mounts media on the running system.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags};

use super::{Sources, label};
use crate::context::RUN_DIR;
use crate::runner::{Command, Runner};

/// Block devices that never are a seed medium.
const NOT_MEDIA: [&str; 5] = ["loop", "ram", "zram", "nbd", "md"];

/// The node's block devices.
pub struct Devices<'a> {
    /// Loads filesystem modules.
    pub runner: &'a dyn Runner,
}

impl std::fmt::Debug for Devices<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Devices")
    }
}

impl Sources for Devices<'_> {
    fn media(&self) -> Result<Vec<PathBuf>> {
        let mut found = labelled(Path::new("/sys/class/block"), Path::new("/dev"))?;
        // A removable medium before the partition of our own disk: somebody put it there on purpose.
        found.sort_by_key(|path| (!is_removable(path), path.clone()));
        Ok(found)
    }

    fn with_mounted(&self, device: &Path, writable: bool, visit: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
        let mut file = File::open(device).with_context(|| format!("opening {}", device.display()))?;
        let found = label::read(&mut file).with_context(|| format!("reading {}", device.display()))?;
        drop(file);
        let (kind, _) = found.with_context(|| format!("{} is neither vfat nor iso9660", device.display()))?;
        if writable && kind == label::Kind::Iso9660 {
            anyhow::bail!("{} is an ISO image, which cannot be written", device.display());
        }
        // Built in or loaded already is as good; mount says so if one is missing.
        let modules: &[&str] = match kind {
            label::Kind::Vfat => &["nls_cp437", "nls_ascii", "nls_iso8859-1", "vfat"],
            label::Kind::Iso9660 => &["isofs"],
        };
        for module in modules {
            let _ = self.runner.run(&Command::new("modprobe", ["-q", module]), None, &mut |_| {});
        }
        mounted(device, kind.name(), writable, &Path::new(RUN_DIR).join("medium"), visit)
    }
}

/// Mounts `device` at `target`, calls `visit`, unmounts.
pub fn mounted(
    device: &Path,
    filesystem: &str,
    writable: bool,
    target: &Path,
    visit: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if !writable {
        flags |= MountFlags::RDONLY;
    }
    // Secrets are on it: while it is mounted, nobody but root looks in.
    let options = (filesystem == "vfat").then_some(c"umask=0077");
    rustix::mount::mount(device, target, filesystem, flags, options)
        .with_context(|| format!("mounting {} as {filesystem}", device.display()))?;
    let result = visit(target);
    if writable {
        File::open(target)
            .map_err(anyhow::Error::from)
            .and_then(|dir| Ok(rustix::fs::syncfs(&dir)?))
            .with_context(|| format!("syncing {}", device.display()))?;
    }
    let unmounted = rustix::mount::unmount(target, UnmountFlags::empty())
        .with_context(|| format!("unmounting {}", device.display()));
    result.and(unmounted)
}

/// Devices below `dev` whose filesystem has a seed's label.
fn labelled(class_block: &Path, dev: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(class_block).with_context(|| format!("reading {}", class_block.display()))?;
    for entry in entries {
        let name = entry.context("reading block devices")?.file_name().to_string_lossy().into_owned();
        if NOT_MEDIA.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        // A drive without a medium fails to open or to read: it has no label, that is all.
        let path = dev.join(name.replace('!', "/"));
        let Ok(mut file) = File::open(&path) else { continue };
        if let Ok(Some((_, labels))) = label::read(&mut file)
            && labels.iter().any(|label| label::is_seed(label))
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_removable(device: &Path) -> bool {
    let Some(name) = device.file_name() else { return false };
    let sys = Path::new("/sys/class/block").join(name);
    let yes = |path: PathBuf| fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
    // A partition's own directory is below its disk's.
    yes(sys.join("removable")) || fs::canonicalize(&sys).is_ok_and(|path| yes(path.join("../removable")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labelled_devices_count() {
        let dir = tempfile::tempdir().unwrap();
        let (class, dev) = (dir.path().join("class"), dir.path().join("dev"));
        fs::create_dir_all(&dev).unwrap();
        for name in ["vda", "vda6", "sr0", "loop0", "gone"] {
            fs::create_dir_all(class.join(name)).unwrap();
        }
        let mut descriptor = vec![0; 18 * 2048];
        descriptor[16 * 2048..16 * 2048 + 7].copy_from_slice(b"\x01CD001\x01");
        descriptor[16 * 2048 + 40..16 * 2048 + 72].fill(b' ');
        fs::write(dev.join("vda"), vec![0; 100_000]).unwrap();
        fs::write(dev.join("vda6"), &descriptor).unwrap();
        descriptor[16 * 2048 + 40..16 * 2048 + 46].copy_from_slice(b"cidata");
        fs::write(dev.join("sr0"), &descriptor).unwrap();
        fs::write(dev.join("loop0"), &descriptor).unwrap();
        assert_eq!(labelled(&class, &dev).unwrap(), [dev.join("sr0")]);
    }
}
