// SPDX-License-Identifier: MIT OR Apache-2.0

//! The disk image of one node for a virtual machine: the raw one as qcow2.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use super::disk::check_space;
use super::place::Placed;
use crate::image::qcow2;

/// Room for tables beyond the data: an L2 entry and a count for each cluster are 10 bytes in 64 KiB; the rest is
/// rounding.
const SLACK: u64 = 16 << 20;

/// Writes the raw image `raw` as qcow2 to `path`. Nothing is at `path` before it is whole.
///
/// # Errors
/// Too little free space, or failing I/O.
pub fn write(raw: &Path, path: &Path) -> Result<()> {
    let raw = File::open(raw).with_context(|| format!("opening {}", raw.display()))?;
    // st_blocks counts 512 bytes whatever the filesystem's block (stat(2)).
    let data = std::os::unix::fs::MetadataExt::blocks(&raw.metadata().context("measuring the raw image")?) * 512;
    check_space(path, data + SLACK)?;
    let placed = Placed::new(path)?;
    qcow2::write(&raw, placed.file()).with_context(|| format!("writing {}", path.display()))?;
    placed.finish()
}
