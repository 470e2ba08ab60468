// SPDX-License-Identifier: MIT OR Apache-2.0

//! Metadata blocks (8 KiB, each compressed on its own) and the tables made of them.

use std::io::Write;

use anyhow::{Context, Result};

use super::format::{META_SIZE, META_STORED};
use super::pack::Packer;

/// Collects bytes into metadata blocks. Positions are known before anything is written to the image.
#[derive(Debug, Default)]
pub(super) struct MetaWriter {
    done: Vec<u8>,
    open: Vec<u8>,
    /// Where each finished block begins in `done`.
    starts: Vec<u64>,
}

impl MetaWriter {
    /// Where the next byte will be: offset of its block in the table, and offset in the uncompressed block.
    pub(super) fn position(&self) -> (u64, u16) {
        (self.done.len() as u64, self.open.len() as u16)
    }
    /// The same as one number: an inode or extended attribute reference.
    pub(super) fn reference(&self) -> u64 {
        let (block, offset) = self.position();
        block << 16 | u64::from(offset)
    }
    pub(super) fn write(&mut self, packer: &mut Packer, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(META_SIZE - self.open.len());
            self.open.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.open.len() == META_SIZE {
                self.close(packer)?;
            }
        }
        Ok(())
    }
    fn close(&mut self, packer: &mut Packer) -> Result<()> {
        self.starts.push(self.done.len() as u64);
        let packed = packer.pack(&self.open)?;
        let (header, body) = match &packed {
            // At most 8192, so the cast is exact.
            Some(packed) => (packed.len() as u16, packed.as_slice()),
            None => (self.open.len() as u16 | META_STORED, self.open.as_slice()),
        };
        self.done.extend_from_slice(&header.to_le_bytes());
        self.done.extend_from_slice(body);
        self.open.clear();
        Ok(())
    }
    /// Ends the last block. Gives the table's bytes and where each block begins in it.
    pub(super) fn finish(mut self, packer: &mut Packer) -> Result<(Vec<u8>, Vec<u64>)> {
        if !self.open.is_empty() {
            self.close(packer)?;
        }
        Ok((self.done, self.starts))
    }
}

/// Writes a table of fixed-size records: its metadata blocks, then the index of their positions. Gives the index's
/// position, which is what the superblock holds.
pub(super) fn write_table(out: &mut impl Write, at: &mut u64, packer: &mut Packer, records: &[u8]) -> Result<u64> {
    let mut meta = MetaWriter::default();
    meta.write(packer, records)?;
    let (bytes, starts) = meta.finish(packer)?;
    let base = *at;
    put(out, at, &bytes)?;
    let index = *at;
    for start in starts {
        put(out, at, &(base + start).to_le_bytes())?;
    }
    Ok(index)
}

/// Writes bytes and moves the position on.
pub(super) fn put(out: &mut impl Write, at: &mut u64, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).context("writing the squashfs image")?;
    *at += bytes.len() as u64;
    Ok(())
}
