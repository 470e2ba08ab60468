// SPDX-License-Identifier: MIT OR Apache-2.0
//! A root in memory: root and payload straight from the medium, and a tmpfs in place of the data partition.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use profiles::medium::{Medium, MediumNode};
use profiles::node::Role;

use super::loop_device::LoopDevice;
use super::medium::Found;
use crate::console::Console;
use crate::digest::sha256;
use crate::files;
use crate::init::{data, mounts};
use crate::seed::{RawSeed, document};

const MIB: u64 = 1 << 20;
/// What kubeadm wants of a master, and systemd, kubelet and containerd take of any node.
const FOR_PROGRAMS: u64 = 1700 * MIB;
/// What the data partition has at least: container images, logs.
const FOR_DATA: u64 = 2048 * MIB;
/// A shell and its tools, and files that a person makes.
const FOR_RESCUE: u64 = 512 * MIB;

/// What a boot in memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A node.
    Node,
    /// A person with a shell.
    Rescue,
}

/// How many bytes the tmpfs may take, on a machine with `memory` bytes. What is in the initramfs takes memory too.
pub fn budget(memory: u64, found: &Found, node: &MediumNode, purpose: Purpose) -> Result<u64> {
    let size = |path: &str| found.index.files.get(path).map_or(0, |file| file.size);
    let files = if found.disk.is_none() { size(&node.root) + size(&node.payload) } else { 0 };
    let (programs, data) = match purpose {
        Purpose::Node => (FOR_PROGRAMS, FOR_DATA),
        Purpose::Rescue => (FOR_RESCUE / 2, FOR_RESCUE / 2),
    };
    let needed = files + programs + data;
    let what = match purpose {
        Purpose::Node => format!("{} without a disk", node.name),
        Purpose::Rescue => "the rescue system".to_owned(),
    };
    ensure!(
        memory >= needed,
        "the machine has {} MiB of memory, {what} needs {} MiB ({} MiB of it for the medium's files): give it that{}",
        memory / MIB,
        needed.div_ceil(MIB),
        files.div_ceil(MIB),
        if purpose == Purpose::Node { ", or install the node to a disk" } else { "" }
    );
    Ok(memory - files - programs)
}

/// The seed of `node`, its files as the index has them. Refused for members of etcd.
pub fn seed(dir: &Path, medium: &Medium, node: &MediumNode) -> Result<RawSeed> {
    let folder = format!("nodes/{}", node.name);
    let raw = RawSeed::read(&dir.join(&folder))?;
    let raw = raw.with_context(|| format!("the medium has no seed of {}", node.name))?;
    let network = raw.network_config.as_ref();
    let contents =
        [("meta-data", Some(&raw.meta_data)), ("user-data", Some(&raw.user_data)), ("network-config", network)];
    for (name, content) in contents {
        let path = format!("{folder}/{name}");
        let wanted = medium.files.get(&path).map(|file| file.sha256.as_str());
        if content.map(sha256).as_deref() != wanted {
            bail!("the medium's file `{path}` is corrupt or missing: write the medium again, or use another stick");
        }
    }
    let seed = document::parse(&raw.meta_data, &raw.user_data)?;
    ensure!(seed.profile().node.name == node.name, "the seed in {folder} is that of {}", seed.profile().node.name);
    ensure!(
        !seed.profile().has(Role::Etcd),
        "{} is a member of etcd, and would forget everything whenever the power goes: a member that forgets is a lost \
         member. Install it to a disk",
        node.name
    );
    Ok(raw)
}

/// Mounts everything below `/sysroot`. The medium stays mounted: the root is on it.
pub fn mount(found: &Found, node: &MediumNode, budget: u64, console: &Console) -> Result<()> {
    let root = LoopDevice::of(&found.dir.join(&node.root))?;
    let payload = LoopDevice::of(&found.dir.join(&node.payload))?;
    mounts::read_only_root(&root.path, &payload.path)?;
    mounts::bind_kernel_filesystems()?;
    data::in_memory(budget, console)
}

/// Puts the seed where cloud-init and firstboot look for it first. `root` is the node's root.
pub fn put_seed(root: &Path, seed: &RawSeed) -> Result<()> {
    seed.write(&root.join("var/lib/cloud/seed/nocloud"))
}

/// Turns the node's root into a rescue system: nobody converges it, and root, whose password is locked, gets a shell
/// (systemd-sulogin-shell; sulogin(8), `--force`).
pub fn make_rescue(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for target in ["rescue", "emergency"] {
        let path = units.join(format!("{target}.service.d/10-imgbuild.conf"));
        files::write_atomic(&path, b"[Service]\nEnvironment=SYSTEMD_SULOGIN_FORCE=1\n", 0o644, None)?;
    }
    let masked = units.join("firstboot.service");
    files::remove(&masked)?;
    fs::create_dir_all(&units)
        .and_then(|()| symlink("/dev/null", &masked))
        .with_context(|| format!("masking {}", masked.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use profiles::medium::MediumFile;

    use super::*;
    use crate::install::testing::medium;

    fn found(disk: Option<&str>) -> Found {
        Found { dir: "/m".into(), index: medium(&["worker-1"]), disk: disk.map(str::to_owned) }
    }

    #[test]
    fn memory_is_refused_with_the_number_that_is_needed() {
        let on_disk = found(Some("sr0"));
        let node = &on_disk.index.nodes[0];
        let budget = |memory: u64, found: &Found, purpose| {
            super::budget(memory, found, node, purpose).map_err(|error| error.to_string())
        };
        assert_eq!(budget(4000 * MIB, &on_disk, Purpose::Node).unwrap(), 2300 * MIB);
        let error = budget(3747 * MIB, &on_disk, Purpose::Node).unwrap_err();
        assert!(error.contains("3747 MiB of memory, worker-1 without a disk needs 3748 MiB"), "{error}");
        let error = budget(3748 * MIB, &found(None), Purpose::Node).unwrap_err();
        assert!(error.contains("needs 3749 MiB (1 MiB of it for the medium's"), "{error}");
        assert_eq!(budget(1024 * MIB, &on_disk, Purpose::Rescue).unwrap(), 768 * MIB);
        assert!(budget(511 * MIB, &on_disk, Purpose::Rescue).unwrap_err().contains("rescue system needs 512 MiB"));
    }

    /// A medium whose node is that of the tests' profile, with these roles.
    fn with_seed(roles: &str) -> (tempfile::TempDir, Medium) {
        let dir = tempfile::tempdir().unwrap();
        let mut medium = medium(&["master-1"]);
        let all = "[\"etcd\", \"master\", \"worker\"]";
        let profile = crate::testing::PROFILE.replacen(all, roles, 1).replace('\n', " ");
        let user_data = format!("#cloud-config\nimgbuild:\n  schema: 1\n  profile: {profile}\n");
        let meta_data = "instance-id: x\nlocal-hostname: master-1\n".to_owned();
        fs::create_dir_all(dir.path().join("nodes/master-1")).unwrap();
        for (name, text) in [("meta-data", meta_data), ("user-data", user_data)] {
            let path = format!("nodes/master-1/{name}");
            fs::write(dir.path().join(&path), &text).unwrap();
            let file = MediumFile { size: text.len() as u64, sha256: sha256(text.as_bytes()) };
            medium.files.insert(path, file);
        }
        (dir, medium)
    }

    #[test]
    fn a_seed_is_verified_and_lands_where_firstboot_looks() {
        let (dir, medium) = with_seed("[\"master\", \"worker\"]");
        let raw = seed(dir.path(), &medium, &medium.nodes[0]).unwrap();
        let root = tempfile::tempdir().unwrap();
        put_seed(root.path(), &raw).unwrap();
        let kept = root.path().join("var/lib/cloud/seed/nocloud");
        assert_eq!(RawSeed::read(&kept).unwrap().unwrap(), raw);
        assert_eq!(fs::metadata(kept.join("user-data")).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(dir.path().join("nodes/master-1/meta-data"), "instance-id: y\nlocal-hostname: master-1\n").unwrap();
        let error = seed(dir.path(), &medium, &medium.nodes[0]).unwrap_err().to_string();
        assert!(error.contains("`nodes/master-1/meta-data` is corrupt"), "{error}");
        fs::remove_file(dir.path().join("nodes/master-1/meta-data")).unwrap();
        assert!(seed(dir.path(), &medium, &medium.nodes[0]).unwrap_err().to_string().contains("no seed"));
    }

    #[test]
    fn a_member_of_etcd_needs_a_disk() {
        let (dir, medium) = with_seed("[\"etcd\"]");
        let error = seed(dir.path(), &medium, &medium.nodes[0]).unwrap_err().to_string();
        assert!(error.contains("a lost member"), "{error}");
    }

    #[test]
    fn a_rescue_system_lets_root_in_and_converges_nothing() {
        let root = tempfile::tempdir().unwrap();
        make_rescue(root.path()).unwrap();
        make_rescue(root.path()).unwrap();
        let units = root.path().join("etc/systemd/system");
        assert_eq!(fs::read_link(units.join("firstboot.service")).unwrap(), Path::new("/dev/null"));
        let text = fs::read_to_string(units.join("rescue.service.d/10-imgbuild.conf")).unwrap();
        assert_eq!(text, "[Service]\nEnvironment=SYSTEMD_SULOGIN_FORCE=1\n");
    }
}
