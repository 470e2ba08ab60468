//! `imgbuild [build]`: the images of one node or of all.

use std::path::Path;

use anyhow::{Context, Result};

use crate::assemble::{Bench, node, os, payload};
use crate::cli::{Options, Output};
use crate::commands::{ClusterFile, jobs, open_store};
use crate::output::disk;
use crate::output::progress::Progress;

pub(super) fn run(options: &Options) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    let nodes = file.some_nodes(options)?;
    let store = open_store(options)?;
    let bench = Bench { store: &store, cluster: &file.cluster, sources: file.sources(options, &store)?, jobs: jobs(options) };
    let pki = file.pki()?;
    for name in nodes {
        let node = node::prepare(&file.cluster, &name, &pki)?;
        for output in &options.output {
            match output {
                Output::Disk => todo(),
                Output::Seed => todo(),
            }
        }
    }
    Ok(())
}
