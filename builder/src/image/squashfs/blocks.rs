// SPDX-License-Identifier: MIT OR Apache-2.0

//! The data part of an image: jobs are read and compressed by several threads, and written in order by the caller's.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use super::Options;
use super::cache::{Cache, Cached, Key, Run};
use super::format::BLOCK_STORED;
use super::meta::put;
use super::pack::Packer;
use super::plan::{Job, Place, Plan};
use super::source::{Source, join};

/// Finished blocks that may wait for their turn, per thread: bounds memory at about `jobs * 16` blocks.
const AHEAD: usize = 16;

/// Where a job's block came to lie: position, and size word (0: all zeros, not stored).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// The data part, written.
#[derive(Debug)]
pub(super) struct Data {
    /// By job.
    pub(super) stored: Vec<Stored>,
    /// For the cache of a later build.
    pub(super) runs: Vec<Run>,
    /// Blocks compressed now, and blocks copied from earlier images.
    pub(super) packed: usize,
    pub(super) copied: usize,
    pub(super) block_size: u32,
}

struct Block {
    bytes: Vec<u8>,
    size: u32,
}

#[derive(Default)]
struct State {
    /// Next job to take.
    next: usize,
    /// Jobs written.
    written: usize,
    ready: BTreeMap<usize, Block>,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
    fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }
}

/// Stops everyone when a thread ends early, by error or panic, so that nobody waits for its block.
struct StopOnDrop<'a>(&'a Shared, bool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.stop();
        }
    }
}

/// Writes all blocks and fragment blocks of `plan` at position `at` of the image.
pub(super) fn write_data(
    plan: &Plan<'_>,
    source: &Source<'_>,
    cache: &Cache,
    options: &Options,
    out: &mut impl Write,
    at: &mut u64,
) -> Result<Data> {
    let cached = find_cached(plan, cache);
    let total = plan.jobs.len();
    let shared = Shared { state: Mutex::default(), changed: Condvar::new() };
    let ahead = AHEAD * options.jobs.max(1);
    let work = || -> Result<()> {
        let mut guard = StopOnDrop(&shared, true);
        let mut packer = Packer::new(options.level)?;
        loop {
            let mut state = shared.lock();
            while !state.stop && state.next < total && state.next >= state.written + ahead {
                state = shared.wait(state);
            }
            if state.stop || state.next >= total {
                guard.1 = false;
                return Ok(());
            }
            let job = state.next;
            state.next += 1;
            drop(state);
            let block = make(plan, source, job, cached[job], &mut packer)?;
            shared.lock().ready.insert(job, block);
            shared.changed.notify_all();
        }
    };
    let stored = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.jobs.clamp(1, total.max(1))).map(|_| scope.spawn(work)).collect();
        let stored = {
            let _guard = StopOnDrop(&shared, true);
            collect(&shared, total, out, at)
        };
        threads.into_iter().try_for_each(join)?;
        stored
    })?;
    let copied = cached.iter().flatten().count();
    let runs = runs(plan, &stored);
    Ok(Data { stored, runs, packed: total - copied, copied, block_size: options.block_size })
}

/// Writes the blocks in order as they become ready.
fn collect(shared: &Shared, total: usize, out: &mut impl Write, at: &mut u64) -> Result<Vec<Stored>> {
    let mut stored = Vec::with_capacity(total);
    for job in 0..total {
        let mut state = shared.lock();
        let block = loop {
            if let Some(block) = state.ready.remove(&job) {
                break block;
            }
            if state.stop {
                // The thread that stopped has the error.
                return Ok(stored);
            }
            state = shared.wait(state);
        };
        state.written = job + 1;
        drop(state);
        shared.changed.notify_all();
        stored.push(Stored { offset: *at, size: block.size });
        put(out, at, &block.bytes)?;
    }
    Ok(stored)
}

/// Reads and compresses one job, or copies it from an earlier image.
fn make(
    plan: &Plan<'_>,
    source: &Source<'_>,
    job: usize,
    cached: Option<Cached>,
    packer: &mut Packer,
) -> Result<Block> {
    let mut bytes = Vec::new();
    if let Some(Cached { image, offset, size }) = cached {
        source.read_object(&image, offset, (size & !BLOCK_STORED) as usize, &mut bytes)?;
        return Ok(Block { bytes, size });
    }
    match &plan.jobs[job] {
        Job::Block(piece) => {
            source.read(plan.contents[piece.content].content, piece.offset, piece.len, &mut bytes)?;
            if bytes.iter().all(|byte| *byte == 0) {
                return Ok(Block { bytes: Vec::new(), size: 0 });
            }
        }
        Job::Fragment(pieces) => {
            for piece in pieces {
                source.read(plan.contents[piece.content].content, piece.offset, piece.len, &mut bytes)?;
            }
        }
    }
    Ok(match packer.pack(&bytes)? {
        Some(packed) => Block { size: packed.len() as u32, bytes: packed },
        None => Block { size: bytes.len() as u32 | BLOCK_STORED, bytes },
    })
}

fn fragment_key(plan: &Plan<'_>, job: &Job) -> Option<Key> {
    match job {
        Job::Fragment(pieces) => Some(Key::of_fragment(pieces.iter().map(|piece| plan.contents[piece.content].key))),
        Job::Block(_) => None,
    }
}

fn find_cached(plan: &Plan<'_>, cache: &Cache) -> Vec<Option<Cached>> {
    let mut found = vec![None; plan.jobs.len()];
    for distinct in &plan.contents {
        if let Place::Blocks { first, count } = distinct.place
            && let Some(blocks) = cache.find(&distinct.key, count)
        {
            for (slot, block) in found[first..first + count].iter_mut().zip(blocks) {
                *slot = Some(block);
            }
        }
    }
    for (slot, job) in found.iter_mut().zip(&plan.jobs) {
        if let Some(key) = fragment_key(plan, job)
            && let Some(mut blocks) = cache.find(&key, 1)
        {
            *slot = blocks.next();
        }
    }
    found
}

fn runs(plan: &Plan<'_>, stored: &[Stored]) -> Vec<Run> {
    let mut runs = Vec::new();
    for distinct in &plan.contents {
        if let Place::Blocks { first, count } = distinct.place
            && let Some(blocks) = stored.get(first..first + count)
        {
            let sizes = blocks.iter().map(|block| block.size).collect();
            runs.push(Run { key: distinct.key, offset: blocks[0].offset, sizes });
        }
    }
    for (job, block) in plan.jobs.iter().zip(stored) {
        if let Some(key) = fragment_key(plan, job) {
            runs.push(Run { key, offset: block.offset, sizes: vec![block.size] });
        }
    }
    runs
}

/// The fragment table's records: position, size word, unused (`struct squashfs_fragment_entry`).
pub(super) fn fragment_records(plan: &Plan<'_>, data: &Data) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (job, block) in plan.jobs.iter().zip(&data.stored) {
        if matches!(job, Job::Fragment(_)) {
            out.extend_from_slice(&block.offset.to_le_bytes());
            out.extend_from_slice(&block.size.to_le_bytes());
            out.extend_from_slice(&0u32.to_le_bytes());
        }
    }
    u32::try_from(out.len() / 16).context("too many fragment blocks")?;
    Ok(out)
}
