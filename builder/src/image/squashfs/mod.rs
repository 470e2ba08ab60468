// SPDX-License-Identifier: MIT OR Apache-2.0

//! squashfs 4.0 with zstd: our own writer and reader.
//!
//! The writer keeps what an operating system needs (owners, modes, devices, hard links, extended attributes such as
//! `security.capability`), compresses on all cores, takes the blocks of earlier images from the store, and makes the same
//! bytes from the same tree whatever the number of threads and whatever the store holds.

mod blocks;
mod cache;
pub mod format;
mod inodes;
mod meta;
mod pack;
mod plan;
pub mod read;
mod source;
mod xattr;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

use std::io::{Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use self::blocks::{fragment_records, write_data};
use self::cache::{Cache, Run};
use self::format::{FLAG_DUPLICATES, FLAG_EXPORT, FLAG_NO_XATTRS, FLAG_OPTIONS, NONE64, PAD, SUPER_SIZE, Superblock};
use self::inodes::InodeWriter;
use self::meta::{put, write_table};
use self::pack::Packer;
use self::plan::Plan;
pub(crate) use self::source::Source;
use crate::store::{Digest, Store};
use crate::tree::FileTree;

/// How to write an image. Everything but `jobs` shows in its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Size of a data block: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// zstd level, 1 to 22.
    pub level: i32,
    /// Time of the image; files are not newer.
    pub epoch: u32,
    /// Threads that compress.
    pub jobs: usize,
}

impl Options {
    /// The defaults, for an image of this time: 256 KiB blocks, level 7.
    pub fn new(epoch: u32) -> Self {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        Self { block_size: 256 << 10, level: 7, epoch, jobs }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Size of the image in bytes, a multiple of 4096.
    pub bytes: u64,
    /// Number of inodes.
    pub inodes: u32,
    /// Bytes of all regular files, each inode once.
    pub file_bytes: u64,
    /// Of those, bytes not stored because an equal file was.
    pub duplicate_bytes: u64,
    /// Fragment blocks: those that hold small files.
    pub fragments: u32,
    /// Blocks compressed for this image.
    pub packed_blocks: usize,
    /// Blocks copied from earlier images.
    pub copied_blocks: usize,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// The image.
    pub object: Digest,
    /// What it holds.
    pub summary: Summary,
}

/// Writes `tree` as an image, compressing every block.
///
/// # Errors
/// Options out of range, a hard link that leads nowhere, an attribute squashfs cannot hold, or failing I/O.
pub fn write(tree: &FileTree, store: &Store, options: &Options, out: &mut (impl Write + Seek)) -> Result<Summary> {
    Ok(write_with(tree, store, options, &Cache::default(), out)?.0)
}

/// Writes `tree` as an image into the store, taking the blocks it shares with earlier images from those.
///
/// # Errors
/// As [`write`](fn@write).
pub fn pack(tree: &FileTree, store: &Store, options: &Options) -> Result<Packed> {
    let cache = Cache::load(store, options)?;
    let mut file =
        tempfile::tempfile_in(store.root().join("work")).context("creating a temporary file in the store")?;
    let (summary, runs) = {
        let mut out = std::io::BufWriter::with_capacity(1 << 20, &file);
        let done = write_with(tree, store, options, &cache, &mut out)?;
        out.flush().context("writing the squashfs image")?;
        done
    };
    file.seek(SeekFrom::Start(0)).context("rewinding the squashfs image")?;
    let (object, _) = store.put_reader(&file, None)?;
    cache.remember(store, options, object, &runs)?;
    Ok(Packed { object, summary })
}

fn write_with(
    tree: &FileTree,
    store: &Store,
    options: &Options,
    cache: &Cache,
    out: &mut (impl Write + Seek),
) -> Result<(Summary, Vec<Run>)> {
    if !options.block_size.is_power_of_two() || !(1 << 12..=1 << 20).contains(&options.block_size) {
        bail!("squashfs block size {} is not a power of two between 4 KiB and 1 MiB", options.block_size);
    }
    if !(1..=22).contains(&options.level) {
        bail!("zstd level {} is not between 1 and 22", options.level);
    }
    let source = Source::new(store);
    let plan = Plan::new(tree, &source, options)?;
    let base = out.stream_position().context("writing the squashfs image")?;
    let mut at = 0;
    put(out, &mut at, &[0; SUPER_SIZE])?;
    // Compressor options, a stored metadata block of 4 bytes: the level (`struct zstd_comp_opts` of squashfs-tools).
    put(out, &mut at, &(4u16 | format::META_STORED).to_le_bytes())?;
    put(out, &mut at, &options.level.to_le_bytes())?;
    let data = write_data(&plan, &source, cache, options, out, &mut at)?;
    let superblock = write_tables(tree, &plan, &data, options, out, &mut at)?;
    let padding = at.next_multiple_of(PAD) - at;
    put(out, &mut at, &vec![0; padding as usize])?;
    out.seek(SeekFrom::Start(base)).context("writing the squashfs superblock")?;
    out.write_all(&superblock.encode()).context("writing the squashfs superblock")?;
    out.seek(SeekFrom::Start(base + at)).context("writing the squashfs image")?;
    let summary = Summary {
        bytes: at,
        inodes: plan.inodes,
        file_bytes: plan.files.values().map(|content| plan.contents[*content].content.len()).sum(),
        duplicate_bytes: plan.duplicate_bytes,
        fragments: plan.fragments,
        packed_blocks: data.packed,
        copied_blocks: data.copied,
    };
    Ok((summary, data.runs))
}

/// Writes all that comes after the data.
fn write_tables(
    tree: &FileTree,
    plan: &Plan<'_>,
    data: &blocks::Data,
    options: &Options,
    out: &mut impl Write,
    at: &mut u64,
) -> Result<Superblock> {
    let mut packer = Packer::new(options.level)?;
    let mut writer = InodeWriter::new(tree, plan, data, options);
    let root = writer.run(&mut packer)?;
    let InodeWriter { inodes, directories, xattrs, id_list, references, .. } = writer;
    let inode_table = *at;
    put(out, at, &inodes.finish(&mut packer)?.0)?;
    let directory_table = *at;
    put(out, at, &directories.finish(&mut packer)?.0)?;
    let fragment_table = write_table(out, at, &mut packer, &fragment_records(plan, data)?)?;
    let export: Vec<u8> = references.iter().flat_map(|reference| reference.to_le_bytes()).collect();
    let export_table = write_table(out, at, &mut packer, &export)?;
    let ids: Vec<u8> = id_list.iter().flat_map(|id| id.to_le_bytes()).collect();
    let id_table = write_table(out, at, &mut packer, &ids)?;
    let xattr_table = xattrs.finish(out, at, &mut packer)?;
    let no_xattrs = if xattr_table == NONE64 { FLAG_NO_XATTRS } else { 0 };
    Ok(Superblock {
        inodes: plan.inodes,
        mtime: options.epoch,
        block_size: options.block_size,
        fragments: plan.fragments,
        flags: FLAG_DUPLICATES | FLAG_EXPORT | FLAG_OPTIONS | no_xattrs,
        ids: u16::try_from(id_list.len()).context("more than 65535 owners")?,
        root,
        bytes_used: *at,
        id_table,
        xattr_table,
        inode_table,
        directory_table,
        fragment_table,
        export_table,
    })
}
