//! The content-addressed store: inputs and step outputs by sha256. Objects are complete and verified, or absent.
//! Knows nothing of what the objects mean.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A sha256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
    /// From the 32 raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let mut out = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            bail!("`{text}` is not a sha256: 64 hex digits wanted");
        }
        for (i, byte) in out.iter_mut().enumerate() {
            *byte =
                u8::from_str_radix(&text[2 * i..2 * i + 2], 16).with_context(|| format!("`{text}` is not a sha256"))?;
        }
        Ok(Self(out))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A store on disk. Cheap to clone; safe for several threads and several processes.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, making it if it is not there.
    pub fn open(root: &Path) -> Result<Self> {
        for dir in ["objects", "steps", "partial", "work"] {
            let path = root.join(dir);
            std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        Ok(Self { root: root.to_owned() })
    }
    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Where the object `digest` lies, or would lie.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        self.root.join("objects").join(&hex[..2]).join(&hex[2..])
    }
    /// Whether the object is there.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }
    /// Opens an object for reading.
    pub fn open_object(&self, digest: &Digest) -> Result<File> {
        let path = self.path(digest);
        File::open(&path).with_context(|| format!("opening store object {}", path.display()))
    }
    /// Puts `bytes` into the store.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let mut writer = self.writer()?;
        writer.write_all(bytes).context("writing a store object")?;
        Ok(writer.commit(None)?.0)
    }
    /// Copies `reader` into the store; with `expected`, anything else is an error and nothing appears.
    pub fn put_reader(&self, mut reader: impl Read, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let mut writer = self.writer()?;
        std::io::copy(&mut reader, &mut writer).context("writing a store object")?;
        writer.commit(expected)
    }
    /// A writer whose content becomes an object when it is committed, and vanishes when it is dropped.
    pub fn writer(&self) -> Result<ObjectWriter> {
        let file = tempfile::NamedTempFile::new_in(self.root.join("work"))
            .context("creating a temporary file in the store")?;
        Ok(ObjectWriter { file, hasher: Sha256::new(), size: 0, store: self.clone() })
    }
    /// What the step with this key made last time, if all of its objects are still there.
    pub fn step<T: for<'de> Deserialize<'de>>(&self, key: &Digest) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.root.join("steps").join(key.to_string())).ok()?).ok()
    }
    /// Records what a step made.
    pub fn record_step<T: Serialize>(&self, key: &Digest, value: &T) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.root.join("work"))
            .context("creating a temporary file in the store")?;
        serde_json::to_writer(&mut file, value).context("writing a step record")?;
        file.as_file().sync_all().context("syncing a step record")?;
        file.persist(self.root.join("steps").join(key.to_string())).context("placing a step record")?;
        Ok(())
    }
}

/// Writes one object; see [`Store::writer`].
#[derive(Debug)]
pub struct ObjectWriter {
    file: tempfile::NamedTempFile,
    hasher: Sha256,
    size: u64,
    store: Store,
}

impl Write for ObjectWriter {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl ObjectWriter {
    /// Makes the object visible. With `expected`, any other digest is an error and nothing appears.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let digest = Digest(self.hasher.finalize().into());
        if let Some(expected) = expected
            && *expected != digest
        {
            bail!("sha256 is {digest}, expected {expected}");
        }
        let path = self.store.path(&digest);
        if !path.exists() {
            let dir = path.parent().context("an object path has a parent")?;
            std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
            self.file.as_file().sync_all().context("syncing a store object")?;
            self.file.persist(&path).with_context(|| format!("placing store object {}", path.display()))?;
            File::open(dir).and_then(|d| d.sync_all()).with_context(|| format!("syncing {}", dir.display()))?;
        }
        Ok((digest, self.size))
    }
}

/// The key of a step: the sha256 of its canonical JSON description (see docs/contracts.md, section 1).
pub fn step_key(name: &str, version: u32, inputs: &impl Serialize) -> Result<Digest> {
    let json = serde_json::to_vec(&(name, version, inputs)).context("describing a step")?;
    Ok(Digest::of(&json))
}
