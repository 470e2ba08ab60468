// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild store …`: look after the store, and carry its objects to a machine without a network.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use indicatif::HumanBytes;

use crate::cli::{Options, Store as Command};
use crate::commands::{ClusterFile, bar, inputs, jobs, open_store, print};
use crate::error::Failure;
use crate::lock::Lock;
use crate::store::check::check;
use crate::store::collect::{Collected, Keep, collect};
use crate::store::inventory::{About, Inventory, Listing, OBJECTS};
use crate::store::{Store, transfer};

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn run(options: &Options, what: &Command) -> Result<()> {
    match what {
        Command::List { json } => list(&open_store(options)?, *json),
        Command::Verify => verify(options),
        Command::Gc { locks, unused_for, dry_run } => {
            // Locks are read first: a mistake in a name must not wait for a build to end.
            let locks = locks.iter().map(|path| inputs::lock_at(path)).collect::<Result<Vec<_>>>()?;
            let objects = locks.iter().flat_map(Lock::items).map(|item| item.sha256).collect();
            let keep = Keep { objects, steps_used_within: unused_for.map(|days| DAY * u32::from(days)) };
            gc(&open_store(options)?, &keep, *dry_run)
        }
        Command::Export { since, target } => export(options, since, target),
        Command::Import { folder } => import(options, folder),
    }
}

fn list(store: &Store, json: bool) -> Result<()> {
    let inventory = Listing::of(&store.root().join(OBJECTS))?.inventory;
    if json {
        print(inventory.to_text()?.trim_end());
        return Ok(());
    }
    for (digest, about) in &inventory.objects {
        print(&format!("{digest}  {}", about.size));
    }
    tracing::info!("{}: {}", store.root().display(), count(inventory.objects.len(), inventory.bytes()));
    Ok(())
}

fn verify(options: &Options) -> Result<()> {
    let store = open_store(options)?;
    let bar = bar(options);
    bar.set_length(Listing::of(&store.root().join(OBJECTS))?.inventory.bytes());
    bar.set_message("Reading");
    let checked = check(&store, jobs(options).get(), &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    for stranger in &checked.strangers {
        tracing::warn!("warning: {} is no object", stranger.display());
    }
    let all = count(checked.objects, checked.bytes);
    if checked.damaged.is_empty() {
        tracing::info!("{}: {all}, each what its name says", store.root().display());
        return Ok(());
    }
    let lines = checked.damaged.iter().map(|damaged| {
        let moved = match &damaged.moved {
            Ok(path) => format!("moved to {}", path.display()),
            Err(e) => format!("still there, as it could not be moved: {e}"),
        };
        format!("\n  {}: {}; {moved}", damaged.digest, damaged.problem)
    });
    let message = format!(
        "{}: of {all}, {} damaged:{}",
        store.root().display(),
        are(checked.damaged.len()),
        lines.collect::<String>()
    );
    Err(Failure::verification(message)
        .hint("the disk may be failing. `imgbuild fetch` brings inputs back, or `imgbuild store import` from a drive; the next build makes results again")
        .into())
}

fn gc(store: &Store, keep: &Keep, dry_run: bool) -> Result<()> {
    let found = collect(store, keep, dry_run)?;
    let Collected { objects, steps, downloads, damaged, kept } = found;
    let verb = if dry_run { "would remove" } else { "removed" };
    for (tally, what) in [
        (objects, "that nobody needs"),
        (steps, "of records of steps"),
        (downloads, "of downloads that did not end"),
        (damaged, "of damaged objects"),
    ] {
        if tally.count > 0 {
            tracing::info!("{verb} {} {what}", count(tally.count, tally.bytes));
        }
    }
    tracing::info!(
        "{}: {verb} {} bytes; {} stay",
        store.root().display(),
        found.bytes(),
        count(kept.count, kept.bytes)
    );
    Ok(())
}

fn export(options: &Options, since: &[PathBuf], target: &Path) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    let lock = inputs::locked(&file)?;
    let mut other = Inventory::default();
    for path in since {
        other.add(Inventory::at(path)?);
    }
    let wanted = lock.items().map(|item| (item.sha256, About { size: item.size, name: item.describe() })).collect();
    let wanted = Inventory { objects: wanted };
    let bar = bar(options);
    let bytes =
        wanted.objects.iter().filter(|(digest, about)| !other.has(digest, about.size)).map(|(_, about)| about.size);
    // Once for writing, once for reading back.
    bar.set_length(2 * bytes.sum::<u64>());
    bar.set_message("Exporting");
    let exported = transfer::export(&open_store(options)?, &wanted, &other, target, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let (objects, bytes) = exported.written;
    tracing::info!(
        "{}: {} written and read back; {} there already, {} on the other side",
        target.display(),
        count(objects, bytes),
        exported.there,
        exported.not_needed
    );
    Ok(())
}

fn import(options: &Options, folder: &Path) -> Result<()> {
    let store = open_store(options)?;
    let index = transfer::index(folder)?;
    let bar = bar(options);
    let lacking = index.objects.iter().filter(|(digest, about)| store.size(digest) != Some(about.size));
    bar.set_length(lacking.fold(0, |sum: u64, (_, about)| sum.saturating_add(about.size)));
    bar.set_message("Importing");
    let imported = transfer::import(&store, folder, &index, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let (objects, bytes) = imported.new;
    let there = imported.there;
    tracing::info!("{}: {} verified and new; {there} there already", store.root().display(), count(objects, bytes));
    if imported.damaged.is_empty() {
        return Ok(());
    }
    let lines = imported.damaged.iter().map(|(digest, (about, problem))| {
        let name = if about.name.is_empty() { String::new() } else { format!("{} ", about.name) };
        format!("\n  {name}({digest}): {problem}")
    });
    let message =
        format!("{}: {} damaged:{}", folder.display(), are(imported.damaged.len()), lines.collect::<String>());
    Err(Failure::verification(message)
        .hint("the rest is in the store. Export to the same folder again: that writes anew what is damaged there")
        .into())
}

fn count(objects: usize, bytes: u64) -> String {
    let bytes = HumanBytes(bytes);
    if objects == 1 { format!("1 file ({bytes})") } else { format!("{objects} files ({bytes})") }
}

fn are(objects: usize) -> String {
    if objects == 1 { "1 is".to_owned() } else { format!("{objects} are") }
}
