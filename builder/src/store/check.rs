// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads every object of a store, and moves those away that are not what their name says. Nothing that uses the store at the
//! same time is harmed: an object that is gone is fetched or made again, a damaged one would have been refused.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::inventory::{Listing, OBJECTS};
use super::{Digest, Store, Tick, lock};
use crate::error::Failure;

/// The folder of the store that damaged objects are moved to.
pub(super) const DAMAGED: &str = "damaged";

/// An object that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Its name.
    pub digest: Digest,
    /// What is wrong with it.
    pub problem: String,
    /// Where it was moved to, or why it could not be.
    pub moved: Result<PathBuf, String>,
}

/// What a store is like.
#[derive(Debug)]
pub struct Checked {
    /// How many objects were read.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are damaged, sorted.
    pub damaged: Vec<Damaged>,
    /// What is no object and lies among them. It does no harm and stays.
    pub strangers: Vec<PathBuf>,
}

/// Reads every object, `jobs` at a time.
///
/// # Errors
/// If the store cannot be listed, or an object not be read for want of permission. Damage is no error.
pub fn check(store: &Store, jobs: usize, tick: Tick<'_>) -> Result<Checked> {
    let Listing { inventory, strangers } = Listing::of(&store.root().join(OBJECTS))?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(jobs).build().context("starting threads")?;
    let damaged = pool.install(|| {
        let one = |(digest, about): (&Digest, &super::inventory::About)| {
            let found = check_one(store, digest);
            tick(about.size);
            found.transpose()
        };
        inventory.objects.par_iter().filter_map(one).collect::<Result<Vec<_>>>()
    })?;
    Ok(Checked { objects: inventory.objects.len(), bytes: inventory.bytes(), damaged, strangers })
}

fn check_one(store: &Store, digest: &Digest) -> Result<Option<Damaged>> {
    let path = store.path(digest);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::io(format!("opening store object {}", path.display()), e).into()),
    };
    let problem = match Digest::of_reader(&mut file) {
        Ok((found, _)) if found == *digest => return Ok(None),
        Ok((found, size)) => format!("its {size} bytes have sha256 {found}"),
        Err(e) => format!("it cannot be read: {e}"),
    };
    // Somebody else may have found it and put a good one in its place.
    if !lock::is_at(&file, &path) {
        return Ok(None);
    }
    let folder = store.root().join(DAMAGED);
    let to = folder.join(digest.to_string());
    let moved = fs::create_dir_all(&folder).and_then(|()| fs::rename(&path, &to));
    store.forget(digest);
    Ok(Some(Damaged { digest: *digest, problem, moved: moved.map(|()| to).map_err(|e| e.to_string()) }))
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
