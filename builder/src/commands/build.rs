// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild [build]`: the images of one node or of all, or one that installs them.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::assemble::{self, Bench, calico, vendor};
use crate::cli::{Options, Output};
use crate::commands::{ClusterFile, inputs, jobs, open_store, say};
use crate::error::Failure;

pub(super) fn run(options: &Options) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    let nodes = file.some_nodes(options)?;
    let store = open_store(options)?;
    let sources = inputs::ready(&file, options, &store)?;
    let mut bench = Bench { store: &store, cluster: &file.cluster, sources, jobs: jobs(options) };
    if bench.sources.epoch == 0 {
        bench.sources.epoch = vendor::epoch(&bench)?;
    }
    say(&calico::of(&bench)?);
    let pki = file.pki()?;
    let creating = |error| Failure::io(format!("creating {}", options.out.display()), error);
    fs::create_dir_all(&options.out).map_err(creating)?;
    for name in &nodes {
        for output in &options.output {
            let begun = Instant::now();
            let path = match output {
                Output::Disk => assemble::disk(&bench, &pki, name, &options.out.join(format!("{name}.img")))?.path,
                // One for all nodes.
                Output::Iso => continue,
            };
            say_ready(&path, begun);
        }
    }
    if options.output.contains(&Output::Iso) {
        let begun = Instant::now();
        let path = options.out.join(format!("{}.iso", file.cluster.cluster.name));
        say_ready(&assemble::iso(&bench, &pki, &nodes, &path)?.path, begun);
    }
    Ok(())
}

fn say_ready(path: &Path, begun: Instant) {
    tracing::info!("{} is ready ({:.1}s)", path.display(), begun.elapsed().as_secs_f32());
}
