// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compressed blocks of earlier images, found by content: a rebuild copies them and compresses only what is new.
//!
//! The cache stores no block twice. An earlier image in the store *is* the cache; beside it lies an index that says which file,
//! or which run of small files, is compressed where. What is found cannot change an image: a block is a pure function of its
//! content, the block size, the level and the version of zstd, and all four are in the key.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Options;
use super::format::{BLOCK_STORED, Fields};
use crate::store::{Digest, Store, step_key};
use crate::tree::Content;

/// Bump when the meaning of an index, of a key, or the bytes of a block for one key change.
const VERSION: u32 = 1;
/// Images remembered: enough for the root and payload of a few clusters, few enough that loading takes milliseconds.
const REMEMBERED: usize = 8;

/// What a compressed run of blocks was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(Digest);

impl Key {
    /// The key of one file's content. Slices go by where they are: store objects never change.
    pub(super) fn of_content(content: &Content) -> Self {
        let mut hasher = Sha256::new();
        match content {
            Content::Bytes(bytes) => {
                hasher.update(b"bytes");
                hasher.update(bytes);
            }
            Content::Slice { object, offset, len } => {
                hasher.update(b"slice");
                hasher.update(object.as_bytes());
                hasher.update(offset.to_le_bytes());
                hasher.update(len.to_le_bytes());
            }
        }
        Self(Digest::from_bytes(hasher.finalize().into()))
    }
    /// The key of a fragment block with these contents, end to end.
    pub(super) fn of_fragment(parts: impl Iterator<Item = Key>) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"fragment");
        for part in parts {
            hasher.update(part.0.as_bytes());
        }
        Self(Digest::from_bytes(hasher.finalize().into()))
    }
    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// One run of blocks in an image: where it begins, and the size word of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) key: Key,
    pub(super) offset: u64,
    pub(super) sizes: Vec<u32>,
}

/// One block of an earlier image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cached {
    pub(super) image: Digest,
    pub(super) offset: u64,
    pub(super) size: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    image: Digest,
    index: Digest,
}

/// The blocks known for one set of options.
#[derive(Debug, Default)]
pub(super) struct Cache {
    remembered: Vec<Remembered>,
    runs: HashMap<Key, (Digest, Run)>,
}

fn record_key(options: &Options) -> Result<Digest> {
    let zstd = zstd::zstd_safe::version_string();
    step_key("squashfs-blocks", VERSION, &(options.block_size, options.level, zstd))
}

impl Cache {
    /// Loads what the store remembers. What is damaged or gone is forgotten, never an error.
    pub(super) fn load(store: &Store, options: &Options) -> Result<Self> {
        let mut cache = Self::default();
        let remembered: Vec<Remembered> = store.step(&record_key(options)?).unwrap_or_default();
        for entry in remembered {
            let index = store.open_object(&entry.index).and_then(|mut file| {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut bytes)?;
                decode(&bytes)
            });
            if let Ok(runs) = index
                && store.has(&entry.image)
            {
                for run in runs {
                    cache.runs.entry(run.key).or_insert((entry.image, run));
                }
                cache.remembered.push(entry);
            }
        }
        Ok(cache)
    }
    /// The blocks of this key, if there are exactly `count`.
    pub(super) fn find(&self, key: &Key, count: usize) -> Option<impl Iterator<Item = Cached> + '_> {
        let (image, run) = self.runs.get(key)?;
        let mut offset = run.offset;
        (run.sizes.len() == count).then(|| {
            run.sizes.iter().map(move |size| {
                let cached = Cached { image: *image, offset, size: *size };
                offset += u64::from(size & !BLOCK_STORED);
                cached
            })
        })
    }
    /// Remembers a new image, as the latest, in place of the oldest.
    pub(super) fn remember(mut self, store: &Store, options: &Options, image: Digest, runs: &[Run]) -> Result<()> {
        let index = store.put_bytes(&encode(runs))?;
        self.remembered.retain(|entry| entry.image != image);
        self.remembered.insert(0, Remembered { image, index });
        self.remembered.truncate(REMEMBERED);
        store.record_step(&record_key(options)?, &self.remembered)
    }
}

fn encode(runs: &[Run]) -> Vec<u8> {
    let mut out = Vec::new();
    for run in runs {
        out.extend_from_slice(run.key.as_bytes());
        out.extend_from_slice(&run.offset.to_le_bytes());
        out.extend_from_slice(&(run.sizes.len() as u32).to_le_bytes());
        run.sizes.iter().for_each(|size| out.extend_from_slice(&size.to_le_bytes()));
    }
    out
}

fn decode(bytes: &[u8]) -> Result<Vec<Run>> {
    let mut fields = Fields::new(bytes);
    let mut runs = Vec::new();
    while !fields.is_empty() {
        let mut key = [0; 32];
        key.copy_from_slice(fields.bytes(32)?);
        let offset = fields.u64()?;
        let count = usize::try_from(fields.u32()?).context("a count of blocks")?;
        let words = fields.bytes(count.saturating_mul(4))?;
        let sizes = words.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        runs.push(Run { key: Key(Digest::from_bytes(key)), offset, sizes });
    }
    Ok(runs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_index_survives_being_written() {
        let run = |n: u8, sizes: &[u32]| Run {
            key: Key::of_content(&Content::Bytes([n].as_slice().into())),
            offset: u64::from(n) << 33,
            sizes: sizes.to_vec(),
        };
        let runs = vec![run(1, &[5, 0, 7 | BLOCK_STORED]), run(2, &[]), run(3, &[9])];
        let bytes = encode(&runs);
        assert_eq!(decode(&bytes).unwrap(), runs);
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
