// SPDX-License-Identifier: MIT OR Apache-2.0
//! The installation medium: in the initramfs itself, or on any block device with an ISO 9660 filesystem. Which one it
//! is, the SHA-256 of its index says.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use profiles::medium::{FOLDER, INDEX, Medium};
use profiles::signing::PublicKey;
use rustix::mount::{MountFlags, UnmountFlags};

use super::index::{self, INDEX_LIMIT};
use super::signature::{self, Refused};
use crate::console::Console;
use crate::context::RUN_DIR;
use crate::digest;
use crate::files::read_limited;
use crate::init::disk::{DEADLINE, NEWS_EVERY, block_devices};
use crate::init::modules::Modules;
use crate::seed::label;

/// Where it is mounted. The directory above keeps everybody but root out: the medium holds secrets.
const MOUNT: &str = "/run/imgbuild/install/medium";
/// Where a boot loader puts it in the initramfs.
const IN_INITRAMFS: &str = "/";

/// The medium.
#[derive(Debug)]
pub struct Found {
    /// The folder with its files.
    pub dir: PathBuf,
    /// Its index.
    pub index: Medium,
    /// The disk it is on, by the kernel's name; `None` if it is in memory.
    pub disk: Option<String>,
}

/// Waits for the medium whose index has this SHA-256, and loads drivers as devices turn up. It must be signed with `key`,
/// if there is one; else nothing waits any longer.
pub fn wait_for(sha256: &str, key: Option<&PublicKey>, modules: &mut Modules, console: &Console) -> Result<Found> {
    if let Some(found) = read(Path::new(IN_INITRAMFS), sha256, key).context("the medium in the initramfs")? {
        console.line("the medium is in memory");
        return Ok(found);
    }
    let started = Instant::now();
    let mut said = Instant::now();
    let mut rejected = BTreeSet::new();
    loop {
        while modules.load_matching(console) {}
        let (images, mut seen) = iso_devices(Path::new("/sys/class/block"), Path::new("/dev"));
        if Path::new(IN_INITRAMFS).join(FOLDER).exists() {
            seen.push("another medium, or a part of one, in the initramfs".to_owned());
        }
        for name in images {
            // Another medium is mounted once: the kernel's log is for other things.
            let known = generation(Path::new("/sys/class/block"), &name);
            if !rejected.contains(&known) {
                match mounted(&name, sha256, key) {
                    Ok(Some(found)) => {
                        console.line(&format!("the medium is {name}"));
                        return Ok(found);
                    }
                    Ok(None) => drop(rejected.insert(known)),
                    Err(error) if error.downcast_ref::<Refused>().is_some() => return Err(error.context(name)),
                    Err(error) => {
                        seen.push(format!("{name} ({error:#})"));
                        continue;
                    }
                }
            }
            seen.push(format!("{name} with another ISO image"));
        }
        let seen = if seen.is_empty() { "no drive at all".to_owned() } else { seen.join(", ") };
        if started.elapsed() >= DEADLINE {
            bail!(
                "no medium with the index {sha256} in {} s; seen: {seen}. Plug in the stick or disc that this kernel \
                 was booted from",
                DEADLINE.as_secs()
            );
        }
        if said.elapsed() >= NEWS_EVERY {
            said = Instant::now();
            let waited = started.elapsed().as_secs();
            console.line(&format!("waiting for the medium, {waited} of {} s; seen: {seen}", DEADLINE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Mounts a device; `None` (and it is released again) if it is another medium.
fn mounted(name: &str, sha256: &str, key: Option<&PublicKey>) -> Result<Option<Found>> {
    let target = Path::new(MOUNT);
    let parent = target.parent().context("the mount point has a parent")?;
    fs::create_dir_all(RUN_DIR).with_context(|| format!("creating {RUN_DIR}"))?;
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700).create(parent).with_context(|| format!("creating {}", parent.display()))?;
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(Path::new("/dev").join(name.replace('!', "/")), target, "iso9660", flags, None)
        .with_context(|| format!("mounting {name}"))?;
    match read(target, sha256, key) {
        Ok(Some(found)) => {
            let disk = disk_of(Path::new("/sys/class/block"), name);
            Ok(Some(Found { disk: Some(disk), ..found }))
        }
        other => {
            release()?;
            other
        }
    }
}

impl Found {
    /// Releases the medium. One that stays mounted is no harm.
    pub fn release(self, console: &Console) {
        if self.disk.is_some()
            && let Err(error) = release()
        {
            console.line(&format!("{error:#}"));
        }
    }
}

fn release() -> Result<()> {
    rustix::mount::unmount(MOUNT, UnmountFlags::empty()).context("releasing the medium")
}

/// The medium below `root`, if it is the one with this index.
///
/// # Errors
/// [`Refused`] if `key` did not sign it; an index that is not understood; failing I/O.
fn read(root: &Path, sha256: &str, key: Option<&PublicKey>) -> Result<Option<Found>> {
    let dir = root.join(FOLDER);
    let bytes = match read_limited(&dir.join(INDEX), INDEX_LIMIT) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", dir.join(INDEX).display())),
    };
    if digest::sha256(&bytes) != sha256 {
        return Ok(None);
    }
    if let Some(key) = key {
        signature::check(&dir, sha256, key)?;
    }
    Ok(Some(Found { dir, index: index::parse(&bytes)?, disk: None }))
}

/// Devices with an ISO 9660 filesystem, whole disks first, and what the others are.
fn iso_devices(class_block: &Path, dev: &Path) -> (Vec<String>, Vec<String>) {
    let (mut images, mut seen) = (Vec::new(), Vec::new());
    for name in block_devices(class_block) {
        let whole = !class_block.join(&name).join("partition").exists();
        let device = dev.join(name.replace('!', "/"));
        match File::open(&device).and_then(|mut file| label::read(&mut file)) {
            Ok(Some((label::Kind::Iso9660, _))) => images.push((!whole, name)),
            Ok(_) if whole => seen.push(format!("{name} without an ISO image")),
            Ok(_) => {}
            // A drive without a disc.
            Err(error) if whole => seen.push(format!("{name} unreadable ({error})")),
            Err(_) => {}
        }
    }
    images.sort();
    (images.into_iter().map(|(_, name)| name).collect(), seen)
}

/// The disk that `name` is, or is a partition of.
fn disk_of(class_block: &Path, name: &str) -> String {
    let sys = class_block.join(name);
    let parent = sys.join("partition").exists().then(|| fs::canonicalize(&sys).ok()).flatten();
    parent
        .as_deref()
        .and_then(Path::parent)
        .and_then(Path::file_name)
        .map_or_else(|| name.to_owned(), |disk| disk.to_string_lossy().into_owned())
}

/// Changes when another disc is in the drive, or another stick has the name.
fn generation(class_block: &Path, name: &str) -> String {
    let text = |file: &str| fs::read_to_string(class_block.join(name).join(file)).unwrap_or_default();
    format!("{name} {} {}", text("diskseq").trim(), text("size").trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::testing::medium;

    #[test]
    fn the_index_says_which_medium_it_is() {
        let root = tempfile::tempdir().unwrap();
        let sha = |bytes: &[u8]| digest::sha256(bytes);
        assert!(read(root.path(), &sha(b""), None).unwrap().is_none(), "no folder");
        let bytes = serde_json::to_vec(&medium(&["master-1"])).unwrap();
        fs::create_dir(root.path().join(FOLDER)).unwrap();
        fs::write(root.path().join(FOLDER).join(INDEX), &bytes).unwrap();
        assert!(read(root.path(), &sha(b"other"), None).unwrap().is_none());
        let found = read(root.path(), &sha(&bytes), None).unwrap().unwrap();
        assert_eq!((found.dir, found.index), (root.path().join("imgbuild"), medium(&["master-1"])));
        fs::write(root.path().join(FOLDER).join(INDEX), b"{}").unwrap();
        assert!(read(root.path(), &sha(b"{}"), None).is_err(), "the right one, but not understood");
    }

    #[test]
    fn a_medium_must_be_signed_before_its_index_is_understood() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        let bytes = serde_json::to_vec(&medium(&["master-1"])).unwrap();
        fs::write(folder.join(INDEX), &bytes).unwrap();
        let sha = digest::sha256(&bytes);
        let list = format!("{sha}  {INDEX}\n");
        let (key, signature) = crate::testing::signed(list.as_bytes());
        let refused = || {
            let error = read(root.path(), &sha, Some(&key)).unwrap_err();
            assert!(error.downcast_ref::<Refused>().is_some(), "{error:#}");
        };
        refused();
        fs::write(folder.join("SHA256SUMS"), &list).unwrap();
        fs::write(folder.join("SHA256SUMS.minisig"), &signature).unwrap();
        let found = read(root.path(), &sha, Some(&key)).unwrap().unwrap();
        assert_eq!(found.index, medium(&["master-1"]));
        // Another index under the list of this one; it is not even looked at.
        fs::write(folder.join(INDEX), b"{}").unwrap();
        let error = read(root.path(), &digest::sha256(b"{}"), Some(&key)).unwrap_err();
        assert!(error.to_string().contains("is that of another index"), "{error:#}");
    }

    #[test]
    fn images_are_found_on_disks_and_partitions() {
        let dir = tempfile::tempdir().unwrap();
        let (class, dev) = (dir.path().join("class"), dir.path().join("dev"));
        let devices = dir.path().join("devices");
        fs::create_dir_all(&class).unwrap();
        fs::create_dir_all(&dev).unwrap();
        let mut image = vec![0; 18 * 2048];
        image[16 * 2048..16 * 2048 + 7].copy_from_slice(b"\x01CD001\x01");
        for (path, content) in [("sda", &image), ("sda/sda1", &image), ("sdb", &vec![0; 65_536]), ("loop0", &image)] {
            fs::create_dir_all(devices.join(path)).unwrap();
            let name = path.rsplit('/').next().unwrap();
            std::os::unix::fs::symlink(devices.join(path), class.join(name)).unwrap();
            fs::write(dev.join(name), content).unwrap();
        }
        fs::write(devices.join("sda/sda1/partition"), "1\n").unwrap();
        fs::create_dir_all(devices.join("sr0")).unwrap();
        std::os::unix::fs::symlink(devices.join("sr0"), class.join("sr0")).unwrap();
        let (images, seen) = iso_devices(&class, &dev);
        assert_eq!(images, ["sda", "sda1"]);
        assert_eq!(seen[0], "sdb without an ISO image");
        assert!(seen[1].starts_with("sr0 unreadable"), "{seen:?}");
        assert_eq!((disk_of(&class, "sda1"), disk_of(&class, "sda")), ("sda".to_owned(), "sda".to_owned()));
        fs::write(devices.join("sda/size"), "100\n").unwrap();
        assert_eq!(generation(&class, "sda"), "sda  100");
    }
}
