// SPDX-License-Identifier: MIT OR Apache-2.0

//! The file tree: the virtual root filesystem of an image, and what edits it. Never unpacked onto the host.
//!
//! [`layers`] makes a tree out of packages, [`system`] out of a vendor's installed system; [`os`] does to it what maintainer
//! scripts would have done, with [`users`], [`pam`], [`alternatives`] and [`overlay`]; [`depmod`] indexes kernel modules, [`initramfs`] picks from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::store::{Digest, Store};

pub mod alternatives;
pub mod depmod;
pub mod initramfs;
pub mod kmod_index;
pub mod layers;
pub mod modules;
pub mod os;
pub mod overlay;
pub mod pam;
pub mod system;
pub mod users;

#[cfg(test)]
mod real_tests;
#[cfg(test)]
mod tests;

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// `len` bytes at `offset` of a store object.
    Slice {
        /// The object.
        object: Digest,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Content {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Slice { len, .. } => *len,
        }
    }
    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A reader over the bytes.
    pub fn reader(&self, store: &Store) -> Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Bytes(bytes) => Box::new(std::io::Cursor::new(bytes.clone())),
            Self::Slice { object, offset, len } => {
                let mut file = store.open_object(object)?;
                file.seek(SeekFrom::Start(*offset)).with_context(|| format!("seeking in store object {object}"))?;
                Box::new(file.take(*len))
            }
        })
    }
    /// Opens it for reads at any position.
    pub fn open(&self, store: &Store) -> Result<OpenContent> {
        Ok(match self {
            Self::Bytes(bytes) => OpenContent::Bytes(bytes.clone()),
            Self::Slice { object, offset, len } => {
                OpenContent::Slice { file: store.open_object(object)?, offset: *offset, len: *len }
            }
        })
    }
    /// All bytes, in memory.
    pub fn read(&self, store: &Store) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(usize::try_from(self.len()).context("file too large for memory")?);
        self.reader(store)?.read_to_end(&mut out).context("reading file content")?;
        if out.len() as u64 != self.len() {
            bail!("store object is shorter than its index says: {} of {} bytes", out.len(), self.len());
        }
        Ok(out)
    }
}

/// A [`Content`] that can be read at any position; see [`Content::open`].
#[derive(Debug)]
pub enum OpenContent {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// A part of an open store object.
    Slice {
        /// The object.
        file: File,
        /// Where the part begins.
        offset: u64,
        /// How long it is.
        len: u64,
    },
}

impl OpenContent {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Slice { len, .. } => *len,
        }
    }
    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The `len` bytes at `at`.
    ///
    /// # Errors
    /// A range that is not inside the content: checked before memory is asked for.
    pub fn read_at(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        if at.checked_add(len).is_none_or(|end| end > self.len()) {
            bail!("{len} bytes at {at} are not inside a file of {} bytes", self.len());
        }
        let size = usize::try_from(len).context("file too large for memory")?;
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(at).context("file too large for memory")?;
                Ok(bytes[start..start + size].to_vec())
            }
            Self::Slice { file, offset, .. } => {
                let mut out = vec![0; size];
                file.read_exact_at(&mut out, offset + at).context("reading a store object")?;
                Ok(out)
            }
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File(Content),
    /// A symbolic link with its target.
    Symlink(String),
    /// A further name of the regular file at this path.
    HardLink(String),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970; clamped to the build's epoch when packed.
    pub mtime: u32,
    /// Extended attributes by full name (`security.capability`).
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    /// A root-owned directory.
    pub fn dir(mode: u16) -> Self {
        Self::new(Kind::Dir, mode)
    }
    /// A root-owned file.
    pub fn file(bytes: impl Into<Arc<[u8]>>, mode: u16) -> Self {
        Self::new(Kind::File(Content::Bytes(bytes.into())), mode)
    }
    /// A root-owned symbolic link.
    pub fn symlink(target: impl Into<String>) -> Self {
        Self::new(Kind::Symlink(target.into()), 0o777)
    }
    /// A root-owned entry without time or attributes.
    pub fn new(kind: Kind, mode: u16) -> Self {
        Self { kind, mode, uid: 0, gid: 0, mtime: 0, xattrs: BTreeMap::new() }
    }
}

/// A virtual filesystem: normalised relative path (`usr/bin/env`, the root is the empty string) to entry.
/// Parents sort before their children, as `BTreeMap` orders them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileTree {
    entries: BTreeMap<String, Entry>,
}

impl FileTree {
    /// A tree with only a root directory, mode 0755.
    pub fn new() -> Self {
        let mut entries = BTreeMap::new();
        entries.insert(String::new(), Entry::dir(0o755));
        Self { entries }
    }
    /// Inserts or replaces an entry; missing parents become root-owned 0755 directories.
    ///
    /// # Errors
    /// A path that is absolute, has empty, `.` or `..` components, or leads through something that is not a directory.
    pub fn insert(&mut self, path: &str, entry: Entry) -> Result<()> {
        if !path.is_empty() && path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            bail!("`{path}` is not a clean relative path");
        }
        // What is missing is made only once it is known that the path leads through directories.
        let mut missing = Vec::new();
        let mut parent = path;
        while let Some((up, _)) = parent.rsplit_once('/') {
            match self.entries.get(up) {
                None => missing.push(up),
                Some(Entry { kind: Kind::Dir, .. }) => break,
                Some(_) => bail!("`{path}` leads through `{up}`, which is not a directory"),
            }
            parent = up;
        }
        for up in missing {
            self.entries.insert(up.to_owned(), Entry::dir(0o755));
        }
        self.entries.insert(path.to_owned(), entry);
        Ok(())
    }
    /// The entry at exactly this path; symbolic links are not followed.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }
    /// The entry at this path, to be changed.
    pub fn get_mut(&mut self, path: &str) -> Option<&mut Entry> {
        self.entries.get_mut(path)
    }
    /// Removes the entry and everything below it.
    pub fn remove(&mut self, path: &str) {
        let gone: Vec<String> = self.below(path).map(|(path, _)| path.to_owned()).collect();
        for path in gone {
            self.entries.remove(&path);
        }
        self.entries.remove(path);
    }
    /// Removes all entries of which `gone` says so. A file lives on under those of its names that stay.
    pub fn discard(&mut self, gone: impl Fn(&str, &Entry) -> bool) {
        let going: Vec<String> =
            self.entries.iter().filter(|(path, entry)| gone(path, entry)).map(|(path, _)| path.clone()).collect();
        let linked = self.linked();
        for path in going {
            if linked.contains(&path) {
                self.keep_links_to(&path);
            }
            self.entries.remove(&path);
        }
    }
    /// Files that have further names.
    pub fn linked(&self) -> BTreeSet<String> {
        let targets = self.entries.values().filter_map(|entry| match &entry.kind {
            Kind::HardLink(target) => Some(target.clone()),
            _ => None,
        });
        targets.collect()
    }
    /// Makes the further names of the file at `path` a file of their own, before something else takes its place.
    pub fn keep_links_to(&mut self, path: &str) {
        let Some(file) = self.entries.get(path).cloned() else { return };
        let mut first: Option<String> = None;
        for (name, entry) in &mut self.entries {
            if matches!(&entry.kind, Kind::HardLink(target) if target == path) {
                match &first {
                    None => {
                        *entry = file.clone();
                        first = Some(name.clone());
                    }
                    Some(first) => entry.kind = Kind::HardLink(first.clone()),
                }
            }
        }
    }
    /// Everything below this directory, sorted by path; the directory itself not included.
    pub fn below(&self, path: &str) -> impl Iterator<Item = (&str, &Entry)> {
        // `0` follows `/` in ASCII, so this range holds exactly the paths that start with `path/`.
        let (from, to) = (format!("{path}/"), format!("{path}0"));
        let all = path.is_empty();
        let range = if all { self.entries.range::<str, _>(..) } else { self.entries.range(from..to) };
        range.filter(move |(p, _)| !all || !p.is_empty()).map(|(path, entry)| (path.as_str(), entry))
    }
    /// Where `path` leads when every symbolic link in it is followed inside the tree, as after `chroot`. The last
    /// component need not exist. `None` for a loop.
    pub fn resolve(&self, path: &str) -> Option<String> {
        self.walk(path, true)
    }
    /// Like [`Self::resolve`], but a link in the last component is not followed.
    pub fn resolve_parent(&self, path: &str) -> Option<String> {
        self.walk(path, false)
    }
    fn walk(&self, path: &str, follow_last: bool) -> Option<String> {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done = String::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.truncate(done.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let parent = done.len();
            if parent > 0 {
                done.push('/');
            }
            done.push_str(&part);
            let last = todo.iter().all(|part| part.is_empty());
            if let Some(Entry { kind: Kind::Symlink(target), .. }) = self.entries.get(&done)
                && (follow_last || !last)
            {
                links += 1;
                // The kernel's limit (path_resolution(7)).
                if links > 40 {
                    return None;
                }
                done.truncate(if target.starts_with('/') { 0 } else { parent });
                todo.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        Some(done)
    }
    /// The entry that `path` leads to when links are followed, hard links too, and where it is.
    pub fn lookup(&self, path: &str) -> Option<(String, &Entry)> {
        let mut path = self.resolve(path)?;
        let mut entry = self.entries.get(&path)?;
        if let Kind::HardLink(target) = &entry.kind {
            path.clone_from(target);
            entry = self.entries.get(&path)?;
        }
        Some((path, entry))
    }
    /// The content of the regular file that `path` leads to.
    pub fn content(&self, path: &str) -> Option<&Content> {
        match &self.lookup(path)?.1.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }
    /// The text of the regular file that `path` leads to, or `None` if there is none.
    pub fn text(&self, store: &Store, path: &str) -> Result<Option<String>> {
        let Some(content) = self.content(path) else { return Ok(None) };
        let bytes = content.read(store).with_context(|| format!("reading /{path}"))?;
        Ok(Some(String::from_utf8(bytes).with_context(|| format!("/{path} is not UTF-8"))?))
    }
    /// Makes the directory if nothing is there.
    pub fn ensure_dir(&mut self, path: &str, mode: u16) -> Result<()> {
        match self.get(path) {
            Some(Entry { kind: Kind::Dir, .. }) => Ok(()),
            Some(_) => bail!("/{path} is not a directory"),
            None => self.insert(path, Entry::dir(mode)),
        }
    }
    /// Puts `other` on top of this tree. Directories keep their entry if both have it and `other`'s has nothing to say
    /// (root-owned, 0755); everything else is replaced. Symbolic links to directories are followed in `other`'s paths.
    pub fn overlay(&mut self, other: Self) -> Result<()> {
        for (path, entry) in other.entries {
            if entry.kind == Kind::Dir {
                let target = self.resolve(&path).with_context(|| format!("/{path} is a loop of symbolic links"))?;
                let plain = (entry.mode, entry.uid, entry.gid) == (0o755, 0, 0) && entry.xattrs.is_empty();
                match self.get_mut(&target) {
                    Some(Entry { kind: Kind::Dir, .. }) if plain => {}
                    Some(old) if old.kind == Kind::Dir => *old = entry,
                    Some(_) => bail!("/{path} would replace what is not a directory"),
                    None => self.insert(&target, entry)?,
                }
                continue;
            }
            let path = self.resolve_parent(&path).with_context(|| format!("/{path} is a loop of symbolic links"))?;
            if matches!(self.get(&path), Some(Entry { kind: Kind::Dir, .. })) {
                bail!("/{path} would replace a directory");
            }
            self.insert(&path, entry)?;
        }
        Ok(())
    }
    /// All entries, sorted by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }
    /// Number of entries, the root included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
