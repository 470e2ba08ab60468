// SPDX-License-Identifier: MIT OR Apache-2.0

//! Removes from a store what nobody needs: no list given, and no record of a step. Whoever uses the store is waited for, and
//! nobody comes in meanwhile, so no build loses what it has just opened or made.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde::de::IgnoredAny;

use super::check::DAMAGED;
use super::inventory::{Listing, OBJECTS, entries};
use super::{Digest, Record, Store};
use crate::error::Failure;

/// What to keep.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// These objects, and downloads of them that are under way.
    pub objects: BTreeSet<Digest>,
    /// Results of steps that were used within this time, or all.
    pub steps_used_within: Option<Duration>,
}

/// How many, and how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What was removed, or would be, and what stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Objects that nobody needs.
    pub objects: Tally,
    /// Records of steps whose objects are gone, or that were not used for long.
    pub steps: Tally,
    /// Downloads that did not end, of what is not to be kept.
    pub downloads: Tally,
    /// What [`super::check`] moved away.
    pub damaged: Tally,
    /// Objects that stay.
    pub kept: Tally,
}

impl Collected {
    /// Bytes of all that was removed.
    pub fn bytes(&self) -> u64 {
        [self.objects, self.steps, self.downloads, self.damaged].iter().map(|tally| tally.bytes).sum()
    }
}

/// Removes what `keep` does not say; with `dry_run`, only counts it. A dry run waits for nobody: its numbers are those of a
/// store that others may be changing.
///
/// # Errors
/// Failing I/O. What is removed by then is gone; nothing that is to be kept is.
pub fn collect(store: &Store, keep: &Keep, dry_run: bool) -> Result<Collected> {
    if !dry_run {
        let locking = |e| Failure::io(format!("locking the store {}", store.root().display()), e);
        store.presence.alone(store.root()).map_err(locking)?;
    }
    let remover = Remover { dry_run };
    let mut collected = Collected::default();
    let mut wanted = keep.objects.clone();
    let steps = listed(&store.root().join("steps"))?;
    for path in steps {
        // A name that no step has is not ours.
        if digest_of(&path).is_none() {
            continue;
        }
        match record(store, &path, keep.steps_used_within) {
            Some(objects) => wanted.extend(objects),
            None => remover.remove(&path, &mut collected.steps)?,
        }
    }
    for (digest, about) in Listing::of(&store.root().join(OBJECTS))?.inventory.objects {
        if wanted.contains(&digest) {
            collected.kept.add(about.size);
        } else {
            remover.remove(&store.path(&digest), &mut collected.objects)?;
            store.forget(&digest);
        }
    }
    for path in listed(&store.root().join("partial"))? {
        // With a note of it, if there is one.
        if digest_of(&path.with_extension("")).is_some_and(|digest| !keep.objects.contains(&digest)) {
            remover.remove(&path, &mut collected.downloads)?;
        }
    }
    for path in listed(&store.root().join(DAMAGED))? {
        remover.remove(&path, &mut collected.damaged)?;
    }
    Ok(collected)
}

/// The objects that the record at `path` speaks of, if it counts.
fn record(store: &Store, path: &Path, used_within: Option<Duration>) -> Option<BTreeSet<Digest>> {
    let record: Record<IgnoredAny> = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    if !record.is_complete(store) {
        return None;
    }
    if let Some(limit) = used_within {
        let used = path.metadata().and_then(|meta| meta.modified()).ok()?;
        // One from the future, by a clock that was set back, is as good as new.
        if SystemTime::now().duration_since(used).unwrap_or_default() >= limit {
            return None;
        }
    }
    Some(record.objects.into_iter().map(|(digest, _)| digest).collect())
}

fn digest_of(path: &Path) -> Option<Digest> {
    path.file_name()?.to_str()?.parse().ok()
}

/// The paths in a folder of the store; none if it is not there.
fn listed(folder: &Path) -> Result<Vec<std::path::PathBuf>, Failure> {
    match entries(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found.map_err(|e| Failure::io(format!("listing {}", folder.display()), e)),
    }
}

struct Remover {
    dry_run: bool,
}

impl Remover {
    fn remove(&self, path: &Path, tally: &mut Tally) -> Result<(), Failure> {
        let removed = path.symlink_metadata().and_then(|meta| {
            if !self.dry_run {
                fs::remove_file(path)?;
            }
            Ok(meta.len())
        });
        match removed {
            Ok(bytes) => tally.add(bytes),
            // In a dry run others may be at work.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Failure::io(format!("removing {}", path.display()), e)),
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
