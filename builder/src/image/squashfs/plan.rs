// SPDX-License-Identifier: MIT OR Apache-2.0

//! What goes where: inode numbers, hard links, duplicates, and the jobs whose results make up the data of an image.
//! Everything here follows from the tree and the file sizes alone, so the layout is the same for any number of threads.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail};

use super::Options;
use super::cache::Key;
use super::source::{Source, hash_all};
use crate::store::Digest;
use crate::tree::{Content, Entry, FileTree, Kind};

/// A piece of a file.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Index of the distinct content in [`Plan::contents`].
    pub(super) content: usize,
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// One stretch of the data part that is made in one go.
#[derive(Debug)]
pub(super) enum Job {
    /// One block of a file with blocks of its own.
    Block(Piece),
    /// One fragment block: whole small files, end to end.
    Fragment(Vec<Piece>),
}

/// Where a distinct content lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing to store.
    Empty,
    /// These jobs are its blocks.
    Blocks { first: usize, count: usize },
    /// At this offset of this fragment block.
    Fragment { index: u32, offset: u32 },
}

/// A distinct file content.
#[derive(Debug)]
pub(super) struct Distinct<'a> {
    pub(super) content: &'a Content,
    pub(super) key: Key,
    pub(super) place: Place,
}

/// The layout of an image.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) contents: Vec<Distinct<'a>>,
    /// Content of each regular file by path (hard links are not in it).
    pub(super) files: BTreeMap<&'a str, usize>,
    /// Further names of each file that has them: path of the file to number of names, itself included.
    pub(super) links: BTreeMap<&'a str, u32>,
    /// Inode number by path; a hard link has that of its file.
    pub(super) numbers: BTreeMap<&'a str, u32>,
    /// Number of inodes.
    pub(super) inodes: u32,
    pub(super) jobs: Vec<Job>,
    /// Number of fragment blocks.
    pub(super) fragments: u32,
    /// Bytes of files not stored because an equal file was.
    pub(super) duplicate_bytes: u64,
}

/// Follows a hard link to the path of its file.
pub(super) fn link_target<'a>(tree: &'a FileTree, path: &str, target: &'a str) -> Result<&'a str> {
    match tree.get(target) {
        Some(Entry { kind: Kind::File(_), .. }) => Ok(target),
        Some(_) => bail!("hard link `{path}` points to `{target}`, which is not a regular file"),
        None => bail!("hard link `{path}` points to `{target}`, which is not there"),
    }
}

impl<'a> Plan<'a> {
    pub(super) fn new(tree: &'a FileTree, source: &Source<'_>, options: &Options) -> Result<Self> {
        let mut plan = Self {
            contents: Vec::new(),
            files: BTreeMap::new(),
            links: BTreeMap::new(),
            numbers: BTreeMap::new(),
            inodes: 0,
            jobs: Vec::new(),
            fragments: 0,
            duplicate_bytes: 0,
        };
        plan.number(tree)?;
        plan.find_contents(tree, source, options)?;
        plan.lay_out(options);
        Ok(plan)
    }

    fn number(&mut self, tree: &'a FileTree) -> Result<()> {
        for (path, entry) in tree.iter() {
            if !matches!(entry.kind, Kind::HardLink(_)) {
                self.inodes += 1;
                self.numbers.insert(path, self.inodes);
            }
        }
        for (path, entry) in tree.iter() {
            if let Kind::HardLink(target) = &entry.kind {
                let file = link_target(tree, path, target)?;
                let number = *self.numbers.get(file).context("a hard link's file has a number")?;
                self.numbers.insert(path, number);
                *self.links.entry(file).or_insert(1) += 1;
            }
        }
        Ok(())
    }

    /// Finds the distinct contents: first by slice, then, among those of equal size, by hash.
    fn find_contents(&mut self, tree: &'a FileTree, source: &Source<'_>, options: &Options) -> Result<()> {
        let mut slices: HashMap<Key, usize> = HashMap::new();
        let mut unique: Vec<(&'a Content, Key)> = Vec::new();
        let mut files: Vec<(&'a str, usize)> = Vec::new();
        for (path, entry) in tree.iter() {
            if let Kind::File(content) = &entry.kind {
                let key = Key::of_content(content);
                let index = *slices.entry(key).or_insert_with(|| {
                    unique.push((content, key));
                    unique.len() - 1
                });
                files.push((path, index));
            }
        }
        let mut sizes: HashMap<u64, u32> = HashMap::new();
        for (content, _) in &unique {
            *sizes.entry(content.len()).or_default() += 1;
        }
        let is_twin = |c: &Content| !c.is_empty() && sizes.get(&c.len()).is_some_and(|n| *n > 1);
        let twins: Vec<&Content> = unique.iter().map(|(content, _)| *content).filter(|c| is_twin(c)).collect();
        let mut hashes = hash_all(source, &twins, options.jobs)?.into_iter();
        let mut seen: HashMap<(u64, Digest), usize> = HashMap::new();
        let mut map = Vec::with_capacity(unique.len());
        for (content, key) in unique {
            let next = self.contents.len();
            let index = match is_twin(content).then(|| hashes.next()).flatten() {
                Some(hash) => *seen.entry((content.len(), hash)).or_insert(next),
                None => next,
            };
            if index == next {
                self.contents.push(Distinct { content, key, place: Place::Empty });
            }
            map.push(index);
        }
        let mut taken = vec![false; self.contents.len()];
        for (path, index) in files {
            let index = map[index];
            if std::mem::replace(&mut taken[index], true) {
                self.duplicate_bytes += self.contents[index].content.len();
            }
            self.files.insert(path, index);
        }
        Ok(())
    }

    /// Gives every content its blocks or its place in a fragment block, in the order of the first file that has it.
    fn lay_out(&mut self, options: &Options) {
        let block = u64::from(options.block_size);
        let mut fragment: Vec<Piece> = Vec::new();
        let mut used = 0;
        for (index, distinct) in self.contents.iter_mut().enumerate() {
            let len = distinct.content.len();
            if len == 0 {
                continue;
            }
            if len >= block {
                let first = self.jobs.len();
                let mut offset = 0;
                while offset < len {
                    let n = block.min(len - offset);
                    self.jobs.push(Job::Block(Piece { content: index, offset, len: n as usize }));
                    offset += n;
                }
                distinct.place = Place::Blocks { first, count: self.jobs.len() - first };
                continue;
            }
            if used + len > block {
                self.jobs.push(Job::Fragment(std::mem::take(&mut fragment)));
                self.fragments += 1;
                used = 0;
            }
            distinct.place = Place::Fragment { index: self.fragments, offset: used as u32 };
            fragment.push(Piece { content: index, offset: 0, len: len as usize });
            used += len;
            if ends_fragment(used, block, &distinct.key) {
                self.jobs.push(Job::Fragment(std::mem::take(&mut fragment)));
                self.fragments += 1;
                used = 0;
            }
        }
        if !fragment.is_empty() {
            self.jobs.push(Job::Fragment(fragment));
            self.fragments += 1;
        }
    }
}

/// Whether a fragment block ends after this file although more would fit. A quarter of a block before its end, one file in
/// sixteen ends it, chosen by content: after a change in the tree the blocks soon fall back into step with those of the
/// image before, and come from the cache.
fn ends_fragment(used: u64, block: u64, key: &Key) -> bool {
    used >= block / 4 * 3 && key.as_bytes()[0] & 15 == 0
}
