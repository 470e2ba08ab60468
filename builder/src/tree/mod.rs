//! The file tree: the virtual root filesystem of an image, and what edits it. Never unpacked onto the host.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::store::{Digest, Store};

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
        let mut parent = path;
        while let Some((up, _)) = parent.rsplit_once('/') {
            match self.entries.get(up) {
                None => {
                    self.entries.insert(up.to_owned(), Entry::dir(0o755));
                }
                Some(Entry { kind: Kind::Dir, .. }) => break,
                Some(_) => bail!("`{path}` leads through `{up}`, which is not a directory"),
            }
            parent = up;
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
        let below = format!("{path}/");
        self.entries.retain(|p, _| p != path && !p.starts_with(&below));
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
