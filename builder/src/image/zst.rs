// SPDX-License-Identifier: MIT OR Apache-2.0

//! zstd, the same bytes for any number of threads.

use std::io::{BufWriter, IntoInnerError, Write};

use anyhow::{Context, Result};
use zstd::stream::Encoder;
use zstd::zstd_safe::CParameter;

/// How to compress.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// zstd's level.
    pub level: i32,
    /// Logarithm of the window in bytes: what a reader must have memory for.
    pub window_log: u32,
    /// What one thread gets at a time, in bytes. Part of the result, and it bounds memory.
    pub job_size: u32,
    /// Threads; not part of the result.
    pub jobs: usize,
}

/// What the data is written to.
pub type Writer<W> = BufWriter<Encoder<'static, W>>;

/// Compresses what `write` writes to `out`, as one frame with a checksum.
///
/// # Errors
/// As `write`, or failing I/O.
pub fn compress<W: Write>(out: W, options: &Options, write: impl FnOnce(&mut Writer<W>) -> Result<()>) -> Result<()> {
    let mut encoder = Encoder::new(out, options.level).context("setting up zstd")?;
    encoder.window_log(options.window_log).context("setting up zstd")?;
    encoder.include_checksum(true).context("setting up zstd")?;
    // Never 0: without workers zstd cuts its jobs elsewhere, and the bytes differ.
    encoder.multithread(u32::try_from(options.jobs.max(1))?).context("setting up zstd")?;
    encoder.set_parameter(CParameter::JobSize(options.job_size)).context("setting up zstd")?;
    let mut buffered = BufWriter::with_capacity(1 << 17, encoder);
    write(&mut buffered)?;
    let encoder = buffered.into_inner().map_err(IntoInnerError::into_error).context("compressing")?;
    encoder.finish().context("compressing")?;
    Ok(())
}
