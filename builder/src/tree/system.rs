// SPDX-License-Identifier: MIT OR Apache-2.0

//! A vendor's installed system to a tree: lays the layers of its archive over each other, takes out what belongs to the one
//! machine it was installed on, and picks its kernel. Runs nothing. docs/os-layer.md has the lists in words.
//!
//! Sources: image-spec's layer.md on whiteouts; file-hierarchy(7) on what is of one machine, one boot or no use.

use anyhow::{Context, Result, bail};

use super::{Entry, FileTree, Kind, layers};
use crate::error::Failure;
use crate::inputs::deb::archive::{Archive, ArchiveEntry, ArchiveKind};

/// A system out of layers, the lowest first; a plain archive of a system is one layer. `/usr` is merged, nothing left out.
///
/// # Errors
/// A path that leads through a file, a loop of links, a hard link to nothing.
pub fn system(archives: &[Archive]) -> Result<FileTree> {
    let mut tree = layers::skeleton()?;
    for archive in archives {
        // Whiteouts are about lower layers alone, wherever they stand in theirs.
        for entry in &archive.entries {
            if let Some(hidden) = Hidden::by(&entry.path) {
                hidden.hide(&mut tree).with_context(|| format!("hiding what /{} says", entry.path))?;
            }
        }
        let linked = tree.linked();
        for entry in archive.entries.iter().filter(|entry| Hidden::by(&entry.path).is_none()) {
            let lower = |path: &str| linked.contains(path);
            lay(&mut tree, archive, entry, &lower).with_context(|| format!("adding /{}", entry.path))?;
        }
    }
    layers::finish(&mut tree)?;
    Ok(tree)
}

/// What a whiteout hides.
enum Hidden<'a> {
    /// One entry, with all below it.
    Entry(String),
    /// All that lower layers have in a folder.
    Content(&'a str),
}

impl<'a> Hidden<'a> {
    fn by(path: &'a str) -> Option<Self> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let hidden = name.strip_prefix(".wh.")?;
        Some(match hidden {
            ".wh..opq" => Self::Content(folder),
            _ if folder.is_empty() => Self::Entry(hidden.to_owned()),
            _ => Self::Entry(format!("{folder}/{hidden}")),
        })
    }

    fn hide(&self, tree: &mut FileTree) -> Result<()> {
        let (path, itself) = match self {
            Self::Entry(path) => (tree.resolve_parent(&layers::merged_path(path)), true),
            Self::Content(folder) => (tree.resolve(&layers::merged_path(folder)), false),
        };
        let path = path.context("a loop of symbolic links")?;
        if path.is_empty() {
            bail!("it hides the whole root");
        }
        tree.discard(|other, _| itself && other == path || is_below(other, &path));
        Ok(())
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn lay(tree: &mut FileTree, archive: &Archive, from: &ArchiveEntry, linked: &dyn Fn(&str) -> bool) -> Result<()> {
    let merged = layers::merged_path(&from.path);
    let mut entry = layers::convert(archive, from, &merged);
    keep_portable_attributes(&mut entry);
    let top_level_link = matches!(from.kind, ArchiveKind::Symlink(_)) && layers::MERGED.contains(&from.path.as_str());
    if top_level_link {
        return Ok(());
    }
    let is_dir = entry.kind == Kind::Dir;
    let path = if is_dir { tree.resolve(&merged) } else { tree.resolve_parent(&merged) };
    let path = path.context("a loop of symbolic links")?;
    if let Kind::HardLink(target) = &mut entry.kind {
        let resolved = tree.resolve_parent(target).context("a loop of symbolic links")?;
        // A name of a name is a name of the file.
        *target = match tree.get(&resolved) {
            Some(Entry { kind: Kind::HardLink(file), .. }) => file.clone(),
            _ => resolved,
        };
        if *target == path {
            return Ok(());
        }
    }
    if linked(&path) {
        tree.keep_links_to(&path);
    }
    if !is_dir && matches!(tree.get(&path), Some(Entry { kind: Kind::Dir, .. })) {
        tree.discard(|other, _| is_below(other, &path));
    }
    tree.insert(&path, entry)
}

/// Labels of SELinux and signatures of EVM are of the disk the system was installed on; access lists are nothing that squashfs
/// can hold.
fn keep_portable_attributes(entry: &mut Entry) {
    entry.xattrs.retain(|name, _| name == "security.capability" || name.starts_with("user."));
}

/// Folders of which only the folder stays: made at boot, mount points, or the data of one machine and its people.
const EMPTIED: &[&str] = &[
    "dev",
    "etc/NetworkManager/system-connections",
    "etc/cni/net.d",
    "etc/kubernetes",
    "home",
    "media",
    "mnt",
    "proc",
    "run",
    "sys",
    "tmp",
    "var/crash",
    "var/lib/NetworkManager",
    "var/lib/cloud",
    "var/lib/cni",
    "var/lib/containerd",
    "var/lib/dhclient",
    "var/lib/docker",
    "var/lib/etcd",
    "var/lib/kubelet",
    "var/lib/systemd/coredump",
    "var/spool/mail",
    "var/tmp",
];

/// Folders of which the folders stay, as services want to find them, and the files go.
const WITHOUT_FILES: &[&str] = &["var/cache", "var/log"];

/// Entries that go, with all below them: identity and secrets of one machine, its mounts, what installers leave behind, and
/// documentation. The four files of users are written anew.
const DROPPED: &[&str] = &[
    ".autorelabel",
    "etc/.pwd.lock",
    "etc/crypttab",
    "etc/fstab",
    "etc/group-",
    "etc/gshadow",
    "etc/gshadow-",
    "etc/hostname",
    "etc/machine-id",
    "etc/passwd-",
    "etc/pki/tls/private/localhost.key",
    "etc/resolv.conf",
    "etc/shadow",
    "etc/shadow-",
    "etc/udev/rules.d/70-persistent-net.rules",
    "lost+found",
    "root/.bash_history",
    "root/.cache",
    "root/.ssh",
    "root/anaconda-ks.cfg",
    "root/initial-setup-ks.cfg",
    "root/original-ks.cfg",
    "usr/share/gtk-doc",
    "usr/share/help",
    "usr/share/info",
    "usr/share/man",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
];

/// Beginnings of the names of files that go as well: host keys, and interfaces of that machine.
const DROPPED_PREFIXES: &[&str] = &["etc/ssh/ssh_host_", "etc/sysconfig/network-scripts/ifcfg-"];

/// Takes out of an installed system what must not be in an image that many machines get.
pub fn clean(tree: &mut FileTree) {
    let below_any = |path: &str, folders: &[&str]| folders.iter().any(|folder| is_below(path, folder));
    tree.discard(|path, entry| {
        let device = matches!(entry.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo);
        device
            || below_any(path, EMPTIED)
            || below_any(path, WITHOUT_FILES) && entry.kind != Kind::Dir
            || DROPPED.contains(&path)
            || below_any(path, DROPPED)
            || DROPPED_PREFIXES.iter().any(|prefix| path.starts_with(prefix))
    });
    // Links that led nowhere on the vendor's system are not our finding.
    let dead: Vec<String> = super::os::dead_commands(tree).into_iter().map(|(path, _)| path).collect();
    for path in dead {
        tracing::debug!("leaving out /{path}: it leads nowhere");
        tree.remove(&path);
    }
}

/// Names of a kernel's image, in /boot with the release appended, and beside its modules.
const IMAGES: [&str; 2] = ["vmlinuz", "vmlinux"];

/// Picks the kernel to boot, and takes out all others with their modules and everything else in /boot but its configuration.
/// Gives its release.
///
/// # Errors
/// No kernel that has an image and modules; several, without one that is `wanted`; not the one that is.
pub fn keep_one_kernel(tree: &mut FileTree, wanted: Option<&str>) -> Result<String> {
    let is_file = |path: &str| tree.content(path).is_some();
    let has_image = |release: &str| {
        IMAGES.iter().any(|name| {
            is_file(&format!("boot/{name}-{release}")) || is_file(&format!("usr/lib/modules/{release}/{name}"))
        })
    };
    // A rescue kernel has an image and no modules; kernels that were removed leave folders without an image.
    let mut with_modules = super::modules::versions(tree);
    with_modules.retain(|release| !super::modules::files(tree, release).is_empty());
    let bootable: Vec<String> = with_modules.iter().filter(|release| has_image(release)).cloned().collect();
    let release = match (wanted, &bootable[..]) {
        (Some(wanted), _) if bootable.iter().any(|release| release == wanted) => wanted.to_owned(),
        (Some(wanted), _) => bail!(
            Failure::user(format!("the root filesystem has no kernel {wanted} with its modules"))
                .hint(format!("its kernels are: {}", list(&bootable)))
        ),
        (None, [only]) => only.clone(),
        (None, []) => bail!(
            Failure::user(format!(
                "the root filesystem has no kernel: none of /boot/vmlinuz-<release> and /usr/lib/modules/<release>/vmlinuz \
                 belongs to modules below /usr/lib/modules, which are for: {}",
                list(&with_modules)
            ))
            .hint("archive the whole installed system, /boot included, even where that is a filesystem of its own")
        ),
        (None, several) => bail!(
            Failure::user(format!("the root filesystem has several kernels: {}", several.join(", ")))
                .hint("say which one to boot: `kernel = \"<release>\"` in its `[[input]]`")
        ),
    };
    let kept: Vec<String> =
        ["config", "vmlinuz", "vmlinux"].iter().map(|name| format!("boot/{name}-{release}")).collect();
    // An image that is a link becomes the file it leads to, as only that is taken for a kernel.
    for path in &kept {
        if let Some((_, file)) = tree.lookup(path).filter(|(real, _)| real != path) {
            let file = file.clone();
            tree.insert(path, file)?;
        }
    }
    let modules = format!("usr/lib/modules/{release}");
    tree.discard(|path, _| {
        is_below(path, "boot") && !kept.iter().any(|kept| kept == path)
            || is_below(path, "usr/lib/modules") && path != modules && !is_below(path, &modules)
    });
    Ok(release)
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
#[path = "system_tests.rs"]
mod tests;
