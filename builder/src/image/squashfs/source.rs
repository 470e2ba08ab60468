// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reading file contents: positioned reads on a bounded set of open store objects.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::store::{Digest, Store};
use crate::tree::Content;

/// Most objects held open at a time; well below the usual limit of 1024 open files.
const OPEN_MAX: usize = 256;

/// Reads contents; shared by all threads.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    store: &'a Store,
    open: Mutex<BTreeMap<Digest, Arc<File>>>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store, open: Mutex::new(BTreeMap::new()) }
    }
    fn object(&self, digest: &Digest) -> Result<Arc<File>> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = lock().get(digest) {
            return Ok(file.clone());
        }
        // Not under the lock: the store may have to hash a large object first.
        let file = Arc::new(self.store.open_object(digest)?);
        let mut open = lock();
        if open.len() >= OPEN_MAX {
            open.pop_first();
        }
        open.insert(*digest, file.clone());
        Ok(file)
    }
    /// Appends `len` bytes at `offset` of a store object.
    pub(crate) fn read_object(&self, digest: &Digest, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<()> {
        let at = into.len();
        into.resize(at + len, 0);
        self.object(digest)?
            .read_exact_at(&mut into[at..], offset)
            .with_context(|| format!("reading {len} bytes at {offset} of store object {digest}"))
    }
    /// Appends `len` bytes at `offset` of a content.
    pub(crate) fn read(&self, content: &Content, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<()> {
        match content {
            Content::Bytes(bytes) => {
                let from = usize::try_from(offset).context("an offset in memory")?;
                into.extend_from_slice(bytes.get(from..from + len).context("reading past the end of a file")?);
                Ok(())
            }
            Content::Slice { object, offset: base, .. } => self.read_object(object, base + offset, len, into),
        }
    }
    fn hash(&self, content: &Content) -> Result<Digest> {
        let mut hasher = Sha256::new();
        let mut buffer = Vec::new();
        let mut offset = 0;
        while offset < content.len() {
            let n = (content.len() - offset).min(1 << 18);
            buffer.clear();
            self.read(content, offset, n as usize, &mut buffer)?;
            hasher.update(&buffer);
            offset += n;
        }
        Ok(Digest::from_bytes(hasher.finalize().into()))
    }
}

/// The sha256 of each content, in order, by several threads.
pub(super) fn hash_all(source: &Source<'_>, contents: &[&Content], jobs: usize) -> Result<Vec<Digest>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Digest)>> {
        let mut mine = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(content) = contents.get(i) else { return Ok(mine) };
            mine.push((i, source.hash(content)?));
        }
    };
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let mut all: Vec<(usize, Digest)> = parts.into_iter().flatten().collect();
    all.sort_unstable_by_key(|(i, _)| *i);
    Ok(all.into_iter().map(|(_, digest)| digest).collect())
}

/// The result of a thread; its panic goes on in this one.
pub(super) fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
