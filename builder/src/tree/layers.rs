// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packages to a tree: merges the files of packages as a package manager would lay them out, usr-merged. Runs nothing,
//! and knows nothing of what the files mean.
//!
//! Sources: Debian policy 10.1 (file conflicts), 7.6 (Replaces); dpkg(1) on symbolic links to directories; the
//! usr-merge of <https://wiki.debian.org/UsrMerge>.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::{Content, Entry, FileTree, Kind};
use crate::inputs::deb::archive::{Archive, ArchiveEntry, ArchiveKind};

/// A package to be merged.
#[derive(Debug, Clone, Copy)]
pub struct Package<'a> {
    /// Its name, for messages and for a fixed order.
    pub name: &'a str,
    /// Its files.
    pub archive: &'a Archive,
    /// Names of packages whose files it may overwrite (the names of its `Replaces` field).
    pub replaces: &'a [String],
}

/// Top-level directories that live below `usr` on a merged system.
pub const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Folders whose content is not needed to run a node; measured in docs/os-layer.md.
///
/// Of `usr/share/doc` the copyright files stay: licences ask for them.
pub const PRUNED: &[&str] = &[
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/fish",
    "usr/share/gtk-doc",
    "usr/share/info",
    "usr/share/initramfs-tools",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/reportbug",
    "usr/share/zsh",
    // systemd would make units out of them for every package whose native unit is absent.
    "etc/init.d",
    "etc/rc0.d",
    "etc/rc1.d",
    "etc/rc2.d",
    "etc/rc3.d",
    "etc/rc4.d",
    "etc/rc5.d",
    "etc/rc6.d",
    "etc/rcS.d",
    "etc/runit",
    "etc/sv",
    "etc/ufw",
    // Hooks of packages that are not there: nothing installs kernels or packages on a node.
    "etc/apt",
    "etc/cron.d",
    "etc/cron.daily",
    "etc/dhcp",
    "etc/initramfs-tools",
    "etc/kernel",
    "etc/logrotate.d",
    "etc/network",
    "etc/rsyslog.d",
];

/// Whether the entry at `path` is wanted in an image.
fn wanted(path: &str, kind: &ArchiveKind) -> bool {
    let Some(top) =
        PRUNED.iter().find(|top| path.strip_prefix(**top).is_some_and(|r| r.is_empty() || r.starts_with('/')))
    else {
        return true;
    };
    // Some packages share the documentation folder of another by a link.
    *top == "usr/share/doc"
        && !matches!(kind, ArchiveKind::Dir)
        && (path.ends_with("/copyright") || matches!(kind, ArchiveKind::Symlink(_)) && path.split('/').count() == 4)
}

/// The path on a usr-merged system: `bin/sh` becomes `usr/bin/sh`.
pub fn merged_path(path: &str) -> String {
    match path.split('/').next() {
        Some(top) if MERGED.contains(&top) => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

/// The target of a symbolic link that moved from `path` below `usr`: a relative target that climbs to the root would
/// now end in `usr`, so it becomes absolute.
fn merged_target(path: &str, target: &str) -> String {
    let depth = path.split('/').count() - 1;
    let ups = target.split('/').take_while(|part| *part == "..").count();
    if target.starts_with('/') || ups == 0 || ups < depth {
        return target.to_owned();
    }
    let rest: Vec<&str> = target.split('/').skip(ups).collect();
    format!("/{}", rest.join("/"))
}

/// Merges packages into one tree. The result does not depend on the order of `packages`.
///
/// # Errors
/// Two packages with different files at one path and no `Replaces` between them, all such pairs at once; an archive
/// whose paths lead through something that is not a directory.
pub fn merge(packages: &[Package<'_>]) -> Result<FileTree> {
    merge_onto(skeleton()?, false, packages)
}

/// Merges packages over a vendor's root filesystem: its directories keep owner and mode, its files give way, and nothing is
/// left out. The result does not depend on the order of `packages`.
///
/// # Errors
/// As [`merge`].
pub fn merge_over(base: FileTree, packages: &[Package<'_>]) -> Result<FileTree> {
    merge_onto(base, true, packages)
}

fn merge_onto(tree: FileTree, over: bool, packages: &[Package<'_>]) -> Result<FileTree> {
    let mut sorted: Vec<&Package<'_>> = packages.iter().collect();
    sorted.sort_by_key(|package| package.name);
    let mut merger = Merger { tree, over, owners: BTreeMap::new(), conflicts: Vec::new(), packages: &sorted };
    for (index, package) in sorted.iter().enumerate() {
        merger.add(index).with_context(|| format!("adding package {}", package.name))?;
    }
    if !merger.conflicts.is_empty() {
        bail!("packages have different files at the same path:\n  {}", merger.conflicts.join("\n  "));
    }
    let mut tree = merger.tree;
    finish(&mut tree)?;
    Ok(tree)
}

/// The files of an archive as they are: nothing merged, nothing left out.
///
/// # Errors
/// A path that leads through something that is not a directory.
pub fn plain(archive: &Archive) -> Result<FileTree> {
    let mut tree = FileTree::new();
    for entry in &archive.entries {
        let mut converted = convert(archive, entry, &entry.path);
        if let ArchiveKind::HardLink(target) = &entry.kind {
            converted.kind = Kind::HardLink(target.clone());
        }
        tree.insert(&entry.path, converted)?;
    }
    Ok(tree)
}

/// A tree with the links of a merged `/usr` and nothing else.
pub(super) fn skeleton() -> Result<FileTree> {
    let mut tree = FileTree::new();
    for top in MERGED {
        tree.insert(&format!("usr/{top}"), Entry::dir(0o755))?;
        tree.insert(top, Entry::symlink(format!("usr/{top}")))?;
    }
    Ok(tree)
}

/// Drops the merged directories that no package needed, and checks hard links.
pub(super) fn finish(tree: &mut FileTree) -> Result<()> {
    for top in ["lib32", "lib64", "libx32"] {
        let dir = format!("usr/{top}");
        if tree.below(&dir).next().is_none() {
            tree.remove(&dir);
            tree.remove(top);
        }
    }
    for (path, entry) in tree.iter() {
        if let Kind::HardLink(target) = &entry.kind
            && !matches!(tree.get(target), Some(Entry { kind: Kind::File(_), .. }))
        {
            bail!("/{path} is a hard link to /{target}, which is no regular file");
        }
    }
    Ok(())
}

struct Merger<'a> {
    tree: FileTree,
    /// Whether the tree began as a vendor's root filesystem.
    over: bool,
    /// The package, by index, that put what is not a directory at a path.
    owners: BTreeMap<String, usize>,
    conflicts: Vec<String>,
    packages: &'a [&'a Package<'a>],
}

impl Merger<'_> {
    fn add(&mut self, index: usize) -> Result<()> {
        let archive = self.packages[index].archive;
        for entry in &archive.entries {
            if self.over || wanted(&entry.path, &entry.kind) {
                self.add_entry(index, archive, entry).with_context(|| format!("adding /{}", entry.path))?;
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, index: usize, archive: &Archive, from: &ArchiveEntry) -> Result<()> {
        let merged = merged_path(&from.path);
        let entry = convert(archive, from, &merged);
        if entry.kind == Kind::Dir {
            let path = self.tree.resolve(&merged).context("a loop of symbolic links")?;
            return match self.tree.get(&path) {
                None => self.tree.insert(&path, entry),
                // The first package decides; the root and parents made on the way take the package's word.
                Some(old) if old.kind == Kind::Dir && !self.over && !self.owners.contains_key(&path) => {
                    self.owners.insert(path.clone(), index);
                    self.tree.insert(&path, entry)
                }
                Some(old) if old.kind == Kind::Dir => Ok(()),
                Some(_) => {
                    self.conflict(&path, index);
                    Ok(())
                }
            };
        }
        if matches!(entry.kind, Kind::Symlink(_)) && MERGED.contains(&from.path.as_str()) {
            return Ok(());
        }
        let path = self.tree.resolve_parent(&merged).context("a loop of symbolic links")?;
        match self.tree.get(&path) {
            Some(old) if old.kind == Kind::Dir => {
                // A link to a directory that another package ships as a directory: the directory stays, as with dpkg.
                if !matches!(entry.kind, Kind::Symlink(_)) {
                    self.conflict(&path, index);
                }
                return Ok(());
            }
            Some(old) if old.kind != entry.kind => {
                let owner = self.owners.get(&path).copied();
                match owner {
                    Some(owner) if self.replaces(owner, index) => return Ok(()),
                    Some(owner) if owner == index || self.replaces(index, owner) => {}
                    None if self.over => self.tree.keep_links_to(&path),
                    _ => {
                        self.conflict(&path, index);
                        return Ok(());
                    }
                }
            }
            _ => {}
        }
        self.owners.insert(path.clone(), index);
        self.tree.insert(&path, entry)
    }

    fn replaces(&self, new: usize, old: usize) -> bool {
        self.packages[new].replaces.iter().any(|name| name == self.packages[old].name)
    }

    fn conflict(&mut self, path: &str, index: usize) {
        let other = self.owners.get(path).map_or("another package", |owner| self.packages[*owner].name);
        self.conflicts.push(format!("/{path}: {other} and {}", self.packages[index].name));
    }
}

/// An archive's entry as a tree's; `merged` is its path on a merged system.
pub(super) fn convert(archive: &Archive, from: &ArchiveEntry, merged: &str) -> Entry {
    let kind = match &from.kind {
        ArchiveKind::Dir => Kind::Dir,
        ArchiveKind::File { len: 0, .. } => Kind::File(Content::Bytes([].into())),
        ArchiveKind::File { offset, len } => {
            Kind::File(Content::Slice { object: archive.tar, offset: *offset, len: *len })
        }
        ArchiveKind::Symlink(target) if from.path != merged => Kind::Symlink(merged_target(&from.path, target)),
        ArchiveKind::Symlink(target) => Kind::Symlink(target.clone()),
        ArchiveKind::HardLink(target) => Kind::HardLink(merged_path(target)),
        ArchiveKind::CharDevice { major, minor } => Kind::CharDevice { major: *major, minor: *minor },
        ArchiveKind::BlockDevice { major, minor } => Kind::BlockDevice { major: *major, minor: *minor },
        ArchiveKind::Fifo => Kind::Fifo,
    };
    Entry { kind, mode: from.mode, uid: from.uid, gid: from.gid, mtime: from.mtime, xattrs: from.xattrs.clone() }
}
