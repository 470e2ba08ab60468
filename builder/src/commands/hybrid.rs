// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild hybrid`: one bundle for both architectures, of two.

use std::path::Path;

use anyhow::Result;

use crate::cli::Options;
use crate::commands::jobs;
use crate::output::hybrid;

pub(super) fn run(options: &Options, bundles: [&Path; 2]) -> Result<()> {
    let path = hybrid::join(bundles, jobs(options), &options.out)?;
    tracing::info!("{} is ready", path.display());
    Ok(())
}
