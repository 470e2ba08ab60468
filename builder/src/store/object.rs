// SPDX-License-Identifier: MIT OR Apache-2.0

//! How objects come into being: written to a temporary name, synced, made read-only, renamed.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::lock::{Wait, open_locked, temporary};
use super::{Digest, Store};
use crate::error::Failure;

/// Writes one object; see [`Store::writer`].
#[derive(Debug)]
pub struct ObjectWriter {
    file: NamedTempFile,
    hasher: Sha256,
    size: u64,
    store: Store,
}

impl Write for ObjectWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl ObjectWriter {
    pub(super) fn new(store: &Store) -> Result<Self> {
        let file = temporary(store.root())
            .map_err(|e| Failure::io(format!("making a file in the store {}", store.root().display()), e))?;
        Ok(Self { file, hasher: Sha256::new(), size: 0, store: store.clone() })
    }

    /// Makes the object visible. With `expected`, any other digest is an error and nothing appears.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let digest = Digest::of_hasher(self.hasher);
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(mismatch(expected, &digest).into());
        }
        // A broken object under this name is replaced.
        if self.store.size(&digest) != Some(self.size) || self.store.verify(&digest).is_err() {
            let (file, path) = self.file.into_parts();
            place(&self.store, &file, &digest, |to| path.persist(to).map_err(|e| e.error))?;
            self.store.trust(&digest);
        }
        Ok((digest, self.size))
    }
}

fn mismatch(expected: &Digest, found: &Digest) -> Failure {
    Failure::verification(format!("sha256 is {found}, expected {expected}"))
}

/// Gives a complete file its name in the store.
fn place(
    store: &Store,
    file: &File,
    digest: &Digest,
    rename: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), Failure> {
    let path = store.path(digest);
    let placed = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        // Last before the name, as nobody could go on with a download that can only be read: see `Partial::open`.
        file.sync_data()?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        rename(&path)
    };
    placed().map_err(|e| Failure::io(format!("placing store object {}", path.display()), e))
}

/// A download under way, which survives the end of the process; see [`Store::partial`].
/// Locked: nobody else is at the same one.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    expected: Option<Digest>,
    hasher: Sha256,
    len: u64,
    store: Store,
}

impl Partial {
    pub(super) fn open(store: &Store, name: &Digest, expected: Option<Digest>) -> Result<Self> {
        let path = store.root().join("partial").join(name.to_string());
        let opening = |e| Failure::io(format!("opening the download {}", path.display()), e);
        // Somebody was killed between the last two steps of `place`.
        if let Ok(meta) = fs::metadata(&path)
            && meta.permissions().readonly()
        {
            fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(opening)?;
        }
        let file = open_locked(&path, Wait::For("the same download")).map_err(opening)?;
        let mut file = file.context("a lock that was waited for is held")?;
        let (mut hasher, mut len, mut buf) = (Sha256::new(), 0, vec![0; 128 << 10]);
        // What is already there has to go through the hasher.
        loop {
            let n = file.read(&mut buf).map_err(opening)?;
            if n == 0 {
                break;
            }
            hasher.update(&buf[..n]);
            len += n as u64;
        }
        Ok(Self { file, path, expected, hasher, len, store: store.clone() })
    }

    /// How many bytes are there.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is there yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sha256 of what is there.
    pub fn digest(&self) -> Digest {
        Digest::of_hasher(self.hasher.clone())
    }

    /// What was noted of the download, if that can be read.
    pub fn note(&self) -> Option<Vec<u8>> {
        fs::read(self.note_path()).ok()
    }

    /// Notes something of the download, for whoever continues it. Gone when it starts over or ends.
    ///
    /// The note is not synced, and can be cut off when the process is killed.
    pub fn set_note(&self, note: &[u8]) -> Result<()> {
        let path = self.note_path();
        fs::write(&path, note).map_err(|e| Failure::io(format!("writing {}", path.display()), e))?;
        Ok(())
    }

    fn note_path(&self) -> PathBuf {
        self.path.with_extension("note")
    }

    /// Starts over.
    pub fn restart(&mut self) -> Result<()> {
        let restarting = |e| Failure::io(format!("emptying the download {}", self.path.display()), e);
        self.file.set_len(0).map_err(restarting)?;
        self.file.seek(SeekFrom::Start(0)).map_err(restarting)?;
        self.hasher = Sha256::new();
        self.len = 0;
        // After the content: a note without content says nothing, content without its note would be taken for
        // another's.
        let _ = fs::remove_file(self.note_path());
        Ok(())
    }

    /// Makes the object visible.
    ///
    /// # Errors
    /// If the content is not what was promised: then it is thrown away, as it cannot be continued.
    pub fn commit(self) -> Result<()> {
        let found = self.digest();
        if let Some(expected) = self.expected
            && expected != found
        {
            self.discard();
            return Err(mismatch(&expected, &found).into());
        }
        place(&self.store, &self.file, &found, |path| fs::rename(&self.path, path))?;
        self.store.trust(&found);
        let _ = fs::remove_file(self.note_path());
        Ok(())
    }

    /// Throws the download away.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.note_path());
    }
}

impl Write for Partial {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.len += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
