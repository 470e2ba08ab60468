// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild lock`: resolve every input and write it down, or say what would change.

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::{LockOptions, Options};
use crate::commands::inputs::{Room, lock_at, path};
use crate::commands::{ClusterFile, open_store, print};
use crate::error::{ErrorKind, Failure};
use crate::inputs::request::Update;
use crate::lock::{Diff, Lock};

pub(super) fn run(options: &Options, what: LockOptions) -> Result<()> {
    let LockOptions { update, check, diff } = what;
    match diff {
        // Locks alone: no cluster file is read and nothing resolved.
        Some(locks) if !locks.is_empty() => return between(options, &locks),
        Some(_) => return fresh(options).map(drop),
        None if check => return is_newest(options),
        None => {}
    }
    let update = match update {
        None => Update::Stale,
        Some(names) if names.is_empty() => Update::All,
        Some(names) => Update::Named(names.into_iter().collect()),
    };
    let file = ClusterFile::load(&options.cluster)?;
    let store = open_store(options)?;
    let previous = Lock::read(&path(&file))?;
    let lock = Room::open(&file, options, &store, false)?.relock(&file, previous.as_ref(), &update)?;
    if let Some(previous) = previous {
        show(&Diff::of(&previous, &lock));
    }
    Ok(())
}

/// What changes between two lock files, or from one to that of --cluster.
fn between(options: &Options, locks: &[PathBuf]) -> Result<()> {
    let old = lock_at(&locks[0])?;
    let new = match locks.get(1) {
        Some(new) => lock_at(new)?,
        None => lock_at(&path(&ClusterFile::load(&options.cluster)?))?,
    };
    show(&Diff::of(&old, &new));
    Ok(())
}

/// What `lock --update` would change. Writes no lock.
fn fresh(options: &Options) -> Result<Diff> {
    let file = ClusterFile::load(&options.cluster)?;
    let lock = lock_at(&path(&file))?;
    let store = open_store(options)?;
    let now = Room::open(&file, options, &store, false)?.resolve(&file, Some(&lock), &Update::All)?;
    let diff = Diff::of(&lock, &now);
    show(&diff);
    Ok(diff)
}

/// Fails if something is newer.
fn is_newest(options: &Options) -> Result<()> {
    if !fresh(options)?.changes_files() {
        return Ok(());
    }
    Err(Failure::new(ErrorKind::Outdated, "the lock is older than what its origins have now")
        .hint("`imgbuild lock --update` moves it, or `imgbuild lock --update INPUT` one input of it")
        .into())
}

fn show(diff: &Diff) {
    if diff.is_empty() {
        tracing::info!("nothing changes");
    } else {
        print(&diff.to_string());
    }
}
