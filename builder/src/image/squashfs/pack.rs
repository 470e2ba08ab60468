// SPDX-License-Identifier: MIT OR Apache-2.0

//! zstd for single blocks: the same bytes for the same block, whatever was compressed before it.

use anyhow::{Context, Result};
use zstd::bulk::Compressor;

/// Compresses one block at a time at a fixed level, over and over in one zstd context.
///
/// Which thread gets which block must not show in the image. zstd's row match finder (levels 5 to 12) keeps its table
/// between blocks and makes old entries unreadable by a salt drawn from the block before (`ZSTD_advanceHashSalt` in zstd
/// 1.5.7); the salt is XORed to the hash before it is cut, so it renames rows and tags and changes no choice. The test
/// below would see it if a later zstd did otherwise.
pub(super) struct Packer {
    compressor: Compressor<'static>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

impl Packer {
    pub(super) fn new(level: i32) -> Result<Self> {
        Ok(Self { compressor: Compressor::new(level).context("setting up zstd")?, buffer: Vec::new() })
    }
    /// The compressed block, or nothing when it would not be smaller.
    pub(super) fn pack(&mut self, block: &[u8]) -> Result<Option<Vec<u8>>> {
        self.buffer.resize(zstd::zstd_safe::compress_bound(block.len()), 0);
        let n = self.compressor.compress_to_buffer(block, self.buffer.as_mut_slice()).context("compressing a block")?;
        Ok((n < block.len()).then(|| self.buffer[..n].to_vec()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Text-like bytes from a fixed recurrence, with enough repeats to make match finders choose.
    fn sample(seed: u32, len: usize) -> Vec<u8> {
        let mut state = seed;
        let mut out: Vec<u8> = Vec::with_capacity(len);
        while out.len() < len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (pick, back) = (state >> 24, (state >> 8) as usize & 0xfff);
            if pick > 96 && out.len() > back + 16 {
                let from = out.len() - back - 16;
                out.extend_from_within(from..from + 4 + (pick as usize & 11));
            } else {
                out.push(b'a' + (pick % 23) as u8);
            }
        }
        out.truncate(len);
        out
    }

    #[test]
    fn a_used_context_packs_as_a_fresh_one_does() {
        for level in [1, 3, 5, 6, 7, 9, 12, 15] {
            let mut used = Packer::new(level).unwrap();
            for seed in 0..12 {
                let block = sample(seed, 131_072 - 1000 * seed as usize);
                assert_eq!(
                    used.pack(&block).unwrap(),
                    Packer::new(level).unwrap().pack(&block).unwrap(),
                    "level {level}"
                );
            }
        }
    }
}
