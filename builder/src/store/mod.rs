// SPDX-License-Identifier: MIT OR Apache-2.0

//! The content-addressed store: inputs and step outputs by sha256. Objects are complete and verified, or absent.
//! Knows nothing of what the objects mean. The layout is in docs/contracts.md, section 1.
//!
//! Durability: an object's bytes are synced before its name appears, so a power cut never leaves a broken object under
//! a good name. Names themselves are not synced: one that is lost is made again, and a step record counts only while
//! its objects are there. That halves the number of syncs of a cold build.

pub mod check;
pub mod collect;
mod digest;
pub mod inventory;
mod lock;
mod object;
pub mod transfer;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use digest::{Digest, step_key};
pub use lock::Scratch;
pub use object::{ObjectWriter, Partial};

use crate::error::Failure;

/// A store on disk. Cheap to clone; safe for several threads and several processes.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    /// Objects this process has written or checked; every other one is checked when it is first opened.
    trusted: Arc<Mutex<HashMap<Digest, Check>>>,
    presence: Arc<lock::Presence>,
}

/// How exactly it is known when a step record was last used.
const USED_STEP: Duration = Duration::from_secs(24 * 3600);

/// Told how many bytes more are done, from any thread.
pub type Tick<'a> = &'a (dyn Fn(u64) + Sync);

/// The outcome of checking one object, once: `None` if its content is right.
type Check = Arc<OnceLock<Option<String>>>;

/// A step record as it lies on disk.
#[derive(Serialize, Deserialize)]
struct Record<T> {
    /// The objects the value speaks of, with their sizes.
    objects: Vec<(Digest, u64)>,
    value: T,
}

impl<T> Record<T> {
    /// Whether everything it speaks of is there.
    fn is_complete(&self, store: &Store) -> bool {
        self.objects.iter().all(|(digest, size)| store.size(digest) == Some(*size))
    }
}

/// Makes the time of a record that of its last use, to a day.
fn note_use(record: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    let file = File::open(record)?;
    // A clock set back makes records from the future: they are as good as new.
    if now.duration_since(file.metadata()?.modified()?).unwrap_or_default() >= USED_STEP {
        file.set_modified(now)?;
    }
    Ok(())
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and sweeps what dead processes left behind. Waits while another
    /// process is removing things from it ([`collect::collect`]).
    ///
    /// # Errors
    /// If the folder cannot be made or locked.
    pub fn open(root: &Path) -> Result<Self> {
        for dir in ["objects", "steps", "partial", "work", "locks"] {
            let path = root.join(dir);
            std::fs::create_dir_all(&path)
                .map_err(|e| Failure::io(format!("making the store folder {}", path.display()), e))?;
        }
        let root = root.canonicalize().with_context(|| format!("finding the store {}", root.display()))?;
        let presence = lock::Presence::enter(&root)
            .map_err(|e| Failure::io(format!("locking the store {}", root.display()), e))?;
        lock::sweep(&root);
        Ok(Self { root, trusted: Arc::default(), presence: Arc::new(presence) })
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the object `digest` lies, or would lie.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        inventory::place(&self.root.join(inventory::OBJECTS), digest)
    }

    /// Whether the object is there.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// The size of the object, if it is there.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        std::fs::metadata(self.path(digest)).ok().map(|meta| meta.len())
    }

    /// Opens an object for reading. Its content is checked when this process opens it for the first time.
    ///
    /// # Errors
    /// If it is not there or is corrupt. A corrupt object is removed, so that the next build fetches or makes it again.
    pub fn open_object(&self, digest: &Digest) -> Result<File> {
        let path = self.path(digest);
        let mut file = File::open(&path).map_err(|e| self.missing(digest, e))?;
        let check = self.check(digest);
        let outcome = check.get_or_init(|| match Digest::of_reader(&mut file) {
            Ok((found, _)) if found == *digest => None,
            Ok((found, size)) => Some(format!("its {size} bytes have sha256 {found}")),
            Err(e) => Some(format!("it cannot be read: {e}")),
        });
        let Some(problem) = outcome else {
            file.rewind().with_context(|| format!("reading store object {}", path.display()))?;
            return Ok(file);
        };
        let failure = Failure::verification(format!("store object {digest} is corrupt: {problem}"));
        self.forget(digest);
        Err(match std::fs::remove_file(&path) {
            Ok(()) => failure.hint("it was removed: run the same command again to fetch or make it anew"),
            Err(_) => failure.hint(format!("remove {} and run the same command again", path.display())),
        }
        .into())
    }

    /// Checks an object's content against its name, once per process; fails as [`Store::open_object`] does.
    pub fn verify(&self, digest: &Digest) -> Result<()> {
        self.open_object(digest).map(drop)
    }

    fn missing(&self, digest: &Digest, error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::NotFound {
            Failure::user(format!("object {digest} is not in the store {}", self.root.display()))
                .hint("run `imgbuild fetch` on a machine with a network, or build without --offline")
        } else {
            Failure::io(format!("opening store object {}", self.path(digest).display()), error)
        }
    }

    fn check(&self, digest: &Digest) -> Check {
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        trusted.entry(*digest).or_default().clone()
    }

    fn forget(&self, digest: &Digest) {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }

    /// Notes that this process has just written the object.
    fn trust(&self, digest: &Digest) {
        let check = Check::default();
        let _ = check.set(None);
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest, check);
    }

    /// Puts `bytes` into the store.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.size(&digest) == Some(bytes.len() as u64) && self.verify(&digest).is_ok() {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        writer.write_all(bytes).context("writing a store object")?;
        Ok(writer.commit(None)?.0)
    }

    /// Copies `reader` into the store; with `expected`, anything else is an error and nothing appears.
    pub fn put_reader(&self, mut reader: impl Read, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let mut writer = self.writer()?;
        io::copy(&mut reader, &mut writer).context("writing a store object")?;
        writer.commit(expected)
    }

    /// A writer whose content becomes an object when it is committed, and vanishes when it is dropped.
    pub fn writer(&self) -> Result<ObjectWriter> {
        ObjectWriter::new(self)
    }

    /// A download that can be continued: waits until no other process is at the same one.
    pub fn partial(&self, digest: &Digest) -> Result<Partial> {
        Partial::open(self, digest, Some(*digest))
    }

    /// As [`Self::partial`], where nobody knows the digest for sure: `name` names the download, and it becomes an
    /// object under the digest that it turns out to have.
    pub fn unknown_partial(&self, name: &Digest) -> Result<Partial> {
        Partial::open(self, name, None)
    }

    /// A scratch folder inside the store, removed when dropped; swept later if the process is killed.
    pub fn scratch(&self) -> Result<Scratch> {
        Scratch::new(&self.root)
    }

    /// A file without a name, for the process's eyes only: what a killed build had in it is gone.
    pub fn nameless(&self) -> Result<File> {
        let making = |e| Failure::io(format!("making a file in the store {}", self.root.display()), e);
        Ok(tempfile::tempfile_in(self.root.join("work")).map_err(making)?)
    }

    /// What the step with this key made last time, if all of its objects are still there with their sizes.
    pub fn step<T: for<'de> Deserialize<'de>>(&self, key: &Digest) -> Option<T> {
        let path = self.step_path(key);
        let bytes = std::fs::read(&path).ok()?;
        let record: Record<T> = serde_json::from_slice(&bytes).ok()?;
        if !record.is_complete(self) {
            return None;
        }
        // Without permission it stays as old as it looks: that costs a later build time, and nothing else.
        if let Err(e) = note_use(&path) {
            tracing::debug!("Not noted as used: {}: {e}", path.display());
        }
        Some(record.value)
    }

    /// Records what a step made. Every digest in `value` that names an object of the store becomes a condition: the
    /// record counts only while that object is there.
    pub fn record_step<T: Serialize>(&self, key: &Digest, value: &T) -> Result<()> {
        let value = serde_json::to_value(value).context("describing what a step made")?;
        let mut objects = Vec::new();
        collect_objects(self, &value, &mut objects);
        objects.sort_unstable();
        objects.dedup();
        let bytes = serde_json::to_vec(&Record { objects, value }).context("describing what a step made")?;
        let writing = |e| Failure::io(format!("writing a step record to the store {}", self.root.display()), e);
        let mut file = lock::temporary(&self.root).map_err(writing)?;
        file.write_all(&bytes).map_err(writing)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(writing)?;
        // Not synced: a record that a power cut garbles does not parse, and the step runs again.
        file.persist(self.step_path(key)).map_err(|e| writing(e.error))?;
        Ok(())
    }

    /// What the step with this key makes: from its record, or by running `make`. Two builds that want the same step do
    /// it once: the second waits for the first. `what` names the step in messages.
    pub fn cached<T>(&self, key: &Digest, what: &str, make: impl FnOnce() -> Result<T>) -> Result<T>
    where
        T: Serialize + for<'de> Deserialize<'de>,
    {
        if let Some(value) = self.step(key) {
            return Ok(value);
        }
        let _lock = lock::StepLock::acquire(&self.root, key, what)?;
        // Whoever held the lock may have made it.
        if let Some(value) = self.step(key) {
            return Ok(value);
        }
        let value = make()?;
        self.record_step(key, &value)?;
        Ok(value)
    }

    fn step_path(&self, key: &Digest) -> PathBuf {
        self.root.join("steps").join(key.to_string())
    }
}

/// The digests in a JSON value that name objects of the store, with the objects' sizes.
fn collect_objects(store: &Store, value: &serde_json::Value, out: &mut Vec<(Digest, u64)>) {
    match value {
        serde_json::Value::String(text) if text.len() == 64 => {
            if let Some(digest) = text.parse().ok()
                && let Some(size) = store.size(&digest)
            {
                out.push((digest, size));
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect_objects(store, value, out)),
        serde_json::Value::Object(map) => map.values().for_each(|value| collect_objects(store, value, out)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
