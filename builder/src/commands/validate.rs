// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild validate`: say everything that is wrong with a cluster file.

use anyhow::Result;

use crate::cli::Options;
use crate::commands::ClusterFile;

pub(super) fn run(options: &Options) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    file.nodes(options)?;
    tracing::info!("{}: valid; {} nodes", file.path.display(), file.cluster.node.len());
    Ok(())
}
