// SPDX-License-Identifier: MIT OR Apache-2.0

//! Takes disks apart into blocks, so that what several of them share is stored once: the arithmetic of an installation
//! medium (docs/contracts.md, section 11). Knows nothing of what the blocks mean.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use profiles::medium::Range;

use crate::store::Digest;

/// Size of a block in bytes. Smaller ones would find more to share and make longer lists.
pub(super) const BLOCK: u64 = 64 << 10;

/// A part of a disk that is looked at; multiples of [`BLOCK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// Where it lies.
    pub range: Range,
    /// Whether its blocks may be stored where other disks' are. Secrets may not.
    pub shared: bool,
    /// Whether what lies behind its last data has to be zeros, too.
    pub to_the_end: bool,
}

/// Which file a block is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// That of blocks which several disks have.
    Shared,
    /// That of the disk's own.
    Own,
}

/// Contiguous blocks: on the disk as well as in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Which file.
    pub home: Home,
    /// Where they begin in it, in bytes.
    pub offset: u64,
    /// Where they begin on the disk, in bytes.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The blocks of several disks, each kept once.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Every distinct block, in the order they were first seen.
    pool: File,
    /// Its place there, by content; for a block that may not be shared, also by its disk.
    known: HashMap<(Option<usize>, Digest), usize>,
    /// Which disks have it.
    owners: Vec<Owners>,
    /// For each disk where which block goes, ascending.
    disks: Vec<Vec<(u64, usize)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owners {
    One(usize),
    Several,
}

impl Blocks {
    /// Keeps its blocks in `pool`, an empty file.
    pub(super) fn new(pool: File) -> Self {
        Self { pool, known: HashMap::new(), owners: vec![], disks: vec![] }
    }

    /// Adds the next disk. Gives the parts of its regions that hold no data and have to be zeros.
    ///
    /// # Errors
    /// Regions that are not multiples of [`BLOCK`], or failing I/O.
    pub(super) fn add(&mut self, disk: &File, regions: &[Region]) -> Result<Vec<Range>> {
        let number = self.disks.len();
        let mut blocks = Vec::new();
        let mut zeros = Vec::new();
        let mut block = vec![0; BLOCK as usize];
        for Region { range: Range { at, len }, shared, to_the_end } in regions.iter().copied() {
            ensure!(at % BLOCK == 0 && len % BLOCK == 0, "{len} bytes at {at} are not whole blocks");
            let (end, mut done, mut next) = (at + len, at, at);
            while let Some(found) = next_data(disk, next, end)? {
                disk.read_exact_at(&mut block, found).with_context(|| format!("reading a block at {found}"))?;
                next = found + BLOCK;
                if block.iter().all(|byte| *byte == 0) {
                    continue;
                }
                push_range(&mut zeros, Range { at: done, len: found - done });
                done = next;
                blocks.push((found, self.keep(number, shared, &block)?));
            }
            if to_the_end {
                push_range(&mut zeros, Range { at: done, len: end - done });
            }
        }
        blocks.sort_unstable();
        self.disks.push(blocks);
        Ok(normal(zeros))
    }

    /// The number of a block, which is new or known.
    fn keep(&mut self, disk: usize, shared: bool, block: &[u8]) -> Result<usize> {
        match self.known.entry(((!shared).then_some(disk), Digest::of(block))) {
            Entry::Occupied(known) => {
                let owners = &mut self.owners[*known.get()];
                if *owners != Owners::One(disk) {
                    *owners = Owners::Several;
                }
                Ok(*known.get())
            }
            Entry::Vacant(new) => {
                self.pool.write_all(block).context("keeping a block")?;
                self.owners.push(Owners::One(disk));
                Ok(*new.insert(self.owners.len() - 1))
            }
        }
    }

    /// Writes the blocks that several disks have to `shared`, those of one to that of `own` which has the disk's number.
    /// Gives for each disk where its blocks are.
    ///
    /// # Errors
    /// Failing I/O.
    pub(super) fn finish<W: Write>(self, shared: &mut W, own: &mut [W]) -> Result<Vec<Vec<Run>>> {
        ensure!(own.len() == self.disks.len(), "{} files for {} disks", own.len(), self.disks.len());
        let mut written = vec![0; own.len()];
        let mut written_shared = 0;
        let mut places = Vec::with_capacity(self.owners.len());
        let mut block = vec![0; BLOCK as usize];
        for (owners, number) in self.owners.iter().zip(0..) {
            self.pool.read_exact_at(&mut block, number * BLOCK).context("reading a block that was kept")?;
            let (home, out, offset) = match *owners {
                Owners::Several => (Home::Shared, &mut *shared, &mut written_shared),
                Owners::One(disk) => (Home::Own, &mut own[disk], &mut written[disk]),
            };
            out.write_all(&block).context("writing a block")?;
            places.push((home, *offset));
            *offset += BLOCK;
        }
        let runs = |blocks: Vec<(u64, usize)>| {
            let mut runs: Vec<Run> = Vec::new();
            for (at, number) in blocks {
                let (home, offset) = places[number];
                match runs.last_mut() {
                    Some(Run { home: last, offset: from, at: to, len })
                        if *last == home && *from + *len == offset && *to + *len == at =>
                    {
                        *len += BLOCK;
                    }
                    _ => runs.push(Run { home, offset, at, len: BLOCK }),
                }
            }
            runs
        };
        Ok(self.disks.into_iter().map(runs).collect())
    }
}

/// Where the first block at `from` or behind it begins that may hold data: the filesystem knows what it never stored.
fn next_data(file: &File, from: u64, end: u64) -> Result<Option<u64>> {
    if from >= end {
        return Ok(None);
    }
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Ok(found) if found < end => Ok(Some((found / BLOCK * BLOCK).max(from))),
        // There is no data behind it.
        Ok(_) | Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error).context("looking for data in a sparse file"),
    }
}

fn push_range(ranges: &mut Vec<Range>, range: Range) {
    if range.len > 0 {
        ranges.push(range);
    }
}

/// The same bytes as ascending ranges that do not touch.
pub(super) fn normal(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable_by_key(|range| (range.at, range.len));
    let mut out: Vec<Range> = Vec::new();
    for range in ranges.into_iter().filter(|range| range.len > 0) {
        match out.last_mut() {
            Some(last) if last.at + last.len >= range.at => {
                last.len = last.len.max(range.at + range.len - last.at);
            }
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(at: u64, len: u64) -> Range {
        Range { at: at * BLOCK, len: len * BLOCK }
    }

    /// A sparse file whose blocks are filled with these bytes; 0 is a hole.
    fn disk(blocks: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(blocks.len() as u64 * BLOCK).unwrap();
        for (at, byte) in blocks.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            file.write_all_at(&[*byte; 100], at as u64 * BLOCK + 7).unwrap();
        }
        file
    }

    #[test]
    fn what_disks_share_is_stored_once_and_secrets_are_not_shared() {
        let mut blocks = Blocks::new(tempfile::tempfile().unwrap());
        let open = Region { range: range(0, 4), shared: true, to_the_end: false };
        let secret = Region { range: range(4, 2), shared: false, to_the_end: true };
        let zeros = blocks.add(&disk(&[1, 2, 0, 9, 5, 0]), &[open, secret]).unwrap();
        assert_eq!(zeros, [range(2, 1), range(5, 1)]);
        let zeros = blocks.add(&disk(&[1, 2, 3, 0, 5, 1]), &[open, secret]).unwrap();
        assert!(zeros.is_empty(), "behind the last data of the first region anything may be: {zeros:?}");
        let mut files = [vec![], vec![], vec![]];
        let [shared, own @ ..] = &mut files;
        let runs = blocks.finish(shared, own).unwrap();
        let run = |home, offset, at, len| Run { home, offset: offset * BLOCK, at: at * BLOCK, len: len * BLOCK };
        assert_eq!(runs[0], [run(Home::Shared, 0, 0, 2), run(Home::Own, 0, 3, 2)]);
        assert_eq!(runs[1], [run(Home::Shared, 0, 0, 2), run(Home::Own, 0, 2, 1), run(Home::Own, 1, 4, 2)]);
        let firsts = files.each_ref().map(|file| file.chunks(BLOCK as usize).map(|b| b[7]).collect::<Vec<_>>());
        assert_eq!(firsts, [vec![1, 2], vec![9, 5], vec![3, 5, 1]]);
    }

    #[test]
    fn ranges_are_merged() {
        assert_eq!(normal(vec![range(5, 1), range(0, 2), range(1, 3), range(4, 1), range(9, 0)]), [range(0, 6)]);
        assert_eq!(normal(vec![range(3, 1), range(1, 1)]), [range(1, 1), range(3, 1)]);
    }

    #[test]
    fn regions_are_whole_blocks() {
        let region = Region { range: Range { at: 0, len: 100 }, shared: true, to_the_end: true };
        let error = Blocks::new(tempfile::tempfile().unwrap()).add(&disk(&[1]), &[region]).unwrap_err();
        assert_eq!(error.to_string(), "100 bytes at 0 are not whole blocks");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Pieces and zeros, laid over garbage, give the disk again, in every region.
        #[test]
        fn disks_come_together_again(
            disks in proptest::collection::vec(proptest::collection::vec(0u8..4, 12), 1..4),
            cuts in (0u64..=12, 0u64..=12),
            flags in any::<[bool; 4]>(),
        ) {
            let (a, b) = (cuts.0.min(cuts.1), cuts.0.max(cuts.1));
            let regions = [
                Region { range: range(0, a), shared: flags[0], to_the_end: flags[1] },
                Region { range: range(b, 12 - b), shared: flags[2], to_the_end: flags[3] },
            ];
            let mut blocks = Blocks::new(tempfile::tempfile().unwrap());
            let zeros: Vec<_> = disks.iter().map(|bytes| blocks.add(&disk(bytes), &regions).unwrap()).collect();
            let mut shared = vec![];
            let mut own = vec![vec![]; disks.len()];
            let runs = blocks.finish(&mut shared, &mut own).unwrap();
            let mut distinct: Vec<&[u8]> = shared.chunks(BLOCK as usize).collect();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len() as u64 * BLOCK, shared.len() as u64, "a shared block is there twice");
            for (number, bytes) in disks.iter().enumerate() {
                let mut want = vec![0; 12 * BLOCK as usize];
                disk(bytes).read_exact_at(&mut want, 0).unwrap();
                let mut got = vec![0xFF; want.len()];
                let mut touched = [false; 12];
                let mut lay = |at: u64, len: u64, from: Option<&[u8]>| {
                    for block in at / BLOCK..(at + len) / BLOCK {
                        assert!(!std::mem::replace(&mut touched[block as usize], true), "block {block} is written twice");
                    }
                    let to = &mut got[at as usize..][..len as usize];
                    match from {
                        Some(from) => to.copy_from_slice(from),
                        None => to.fill(0),
                    }
                };
                for Run { home, offset, at, len } in runs[number].iter().copied() {
                    let file = if home == Home::Shared { &shared } else { &own[number] };
                    lay(at, len, Some(&file[offset as usize..][..len as usize]));
                }
                for Range { at, len } in zeros[number].iter().copied() {
                    lay(at, len, None);
                }
                for Region { range, to_the_end, .. } in regions {
                    let part = range.at as usize..(range.at + range.len) as usize;
                    let used = if to_the_end {
                        part.len()
                    } else {
                        want[part.clone()].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
                    };
                    prop_assert!(got[part.clone()][..used] == want[part][..used], "disk {}", number);
                }
            }
        }
    }
}
