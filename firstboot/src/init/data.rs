// SPDX-License-Identifier: MIT OR Apache-2.0
//! The data partition: made once, checked when it must be, mounted, and shown as /etc, /var, /root and /home.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::mount::MountFlags;

use super::ext4::{self, LABEL, LABEL_NEW, Verdict};
use super::mounts::{bind, in_sysroot, mount};
use super::{in_root, seeding};
use crate::console::Console;

/// Where the partition is mounted; `/run` moves into the root with it.
const MOUNT: &str = "/run/imgbuild/data";
/// A filesystem smaller than its partition by less than this is not grown.
const SLACK: u64 = 4 << 20;

/// Everything from the bare partition to the writable directories of the root.
pub fn bring_up(partition: &Path, guid: &str, console: &Console) -> Result<()> {
    let mut device = File::open(partition).with_context(|| format!("opening {}", partition.display()))?;
    let verdict =
        ext4::judge(&mut device, guid).with_context(|| format!("reading the superblock of {}", partition.display()))?;
    let name = partition.display().to_string();
    let mut size = 0;
    match verdict {
        Verdict::Refuse(why) => bail!(why),
        Verdict::Make => make(&name, guid, console)?,
        Verdict::Use(superblock) => {
            size = superblock.size;
            if !superblock.clean {
                check(&name, console)?;
            }
        }
    }
    mount(partition, Path::new(MOUNT), "ext4", MountFlags::NOATIME, None)?;
    let available =
        std::io::Seek::seek(&mut device, std::io::SeekFrom::End(0)).context("measuring the data partition")?;
    drop(device);
    writable_directories(console)?;
    // Not before: from inside the root, resize2fs sees the mount by /var alone.
    if size > 0 && available.saturating_sub(size) >= SLACK {
        grow(&name, console);
    }
    Ok(())
}

/// The same without a disk: a tmpfs of at most `budget` bytes.
pub fn in_memory(budget: u64, console: &Console) -> Result<()> {
    let options = CString::new(format!("mode=0755,size={budget}")).context("a number has a zero byte")?;
    mount(Path::new("tmpfs"), Path::new(MOUNT), "tmpfs", MountFlags::NOATIME, Some(&options))?;
    writable_directories(console)
}

/// Under a temporary label until all of it is on the disk: a half-made filesystem must not look like a whole one.
fn make(device: &str, guid: &str, console: &Console) -> Result<()> {
    console.line(&format!("making the filesystem on {device}"));
    // The block size is explicit: with 16 KiB pages mkfs could choose another one. The journal is written at once: an old
    // one in its place must not be replayed.
    let options = "lazy_itable_init=1,lazy_journal_init=0,nodiscard";
    in_root::must(
        &["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "1", "-L", LABEL_NEW, "-U", guid, "-E", options, device],
        console,
    )?;
    sync(device)?;
    in_root::must(&["tune2fs", "-L", LABEL, device], console)?;
    sync(device)
}

fn sync(device: &str) -> Result<()> {
    File::open(device).and_then(|file| file.sync_all()).with_context(|| format!("syncing {device}"))
}

/// After a power cut: the journal is replayed, small damage repaired.
fn check(device: &str, console: &Console) -> Result<()> {
    console.line(&format!("checking the filesystem on {device}"));
    let ended = in_root::run(&["e2fsck", "-p", device], console)?;
    // e2fsck(8): 1 is "errors corrected", 2 "reboot", which only concerns a mounted root.
    if !(0..4).contains(&ended.status) {
        bail!(
            "e2fsck cannot repair {device} by itself ({}): run `e2fsck -f {device}` from a rescue system",
            ended.said
        );
    }
    Ok(())
}

/// To the size of the partition, while mounted. A node with less space than it could have still boots.
fn grow(device: &str, console: &Console) {
    console.line(&format!("growing the filesystem on {device}"));
    if let Err(error) = in_root::must(&["resize2fs", device], console) {
        console.line(&format!("cannot grow it, going on: {error:#}"));
    }
}

fn writable_directories(console: &Console) -> Result<()> {
    let data = Path::new(MOUNT);
    for name in ["etc/upper", "etc/work"] {
        let path = data.join(name);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755);
        builder.create(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    for name in ["var", "root", "home"] {
        let (from, to) = (in_sysroot(name), data.join(name));
        if seeding::seed_once(&from, &to)? {
            console.line(&format!("/{name} starts as a copy of the image's"));
        }
        bind(&to, &from)?;
    }
    let etc = in_sysroot("etc");
    let options = format!("lowerdir={},upperdir={MOUNT}/etc/upper,workdir={MOUNT}/etc/work", etc.display());
    let options = CString::new(options).context("a path has a zero byte")?;
    mount(Path::new("overlay"), &etc, "overlay", MountFlags::NOATIME, Some(&options))
}
