// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild [build]`: the images of one node or of all, or one that installs them.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::assemble::{self, Bench, bundle, calico, images, vendor};
use crate::cli::{Options, Output};
use crate::commands::{ClusterFile, inputs, jobs, open_store, outputs, say, warn};
use crate::error::Failure;

pub(super) fn run(options: &Options) -> Result<()> {
    let mut file = ClusterFile::load(&options.cluster)?;
    let nodes = file.some_nodes(options)?;
    if outputs::only_seeds(options) {
        return outputs::seeds(&file, &nodes, options);
    }
    for node in file.cluster.node.iter_mut().filter(|node| nodes.contains(&node.name)) {
        node.disk_size = options.disk_size.or(node.disk_size);
    }
    let store = open_store(options)?;
    let sources = inputs::ready(&file, options, &store)?;
    let mut bench = Bench { store: &store, cluster: &file.cluster, sources, jobs: jobs(options) };
    if bench.sources.epoch == 0 {
        bench.sources.epoch = vendor::epoch(&bench)?;
    }
    say(&calico::of(&bench)?);
    warn(&images::warnings(&bench)?);
    let pki = file.pki()?;
    let creating = |error| Failure::io(format!("creating {}", options.out.display()), error);
    fs::create_dir_all(&options.out).map_err(creating)?;
    let out = |name: String| options.out.join(name);
    for output in &options.output {
        match output {
            Output::Disk => {
                each(&nodes, |name| Ok(assemble::disk(&bench, &pki, name, &out(format!("{name}.img")))?.path))?
            }
            Output::Qcow2 => each(&nodes, |name| outputs::qcow2(&bench, &pki, name, options))?,
            Output::Seed => each(&nodes, |name| outputs::seed(bench.cluster, bench.store, &pki, name, options))?,
            Output::Iso => {
                let path = out(format!("{}.iso", file.cluster.cluster.name));
                timed(|| Ok(assemble::iso(&bench, &pki, &nodes, &path)?.path))?;
            }
            Output::Pxe => {
                let path = out(format!("{}-pxe", file.cluster.cluster.name));
                timed(|| {
                    let pxe = assemble::pxe(&bench, &pki, &nodes, &path)?;
                    for (name, memory) in &pxe.memory {
                        tracing::info!("{name} needs memory: {memory}");
                    }
                    Ok(pxe.path)
                })?;
            }
            Output::Bundle => timed(|| bundle::bundle(&bench, &pki, &nodes, &out(bundle::file_name(&bench))))?,
        }
    }
    Ok(())
}

/// One output for each node.
fn each(nodes: &[String], make: impl Fn(&str) -> Result<PathBuf>) -> Result<()> {
    nodes.iter().try_for_each(|name| timed(|| make(name)))
}

/// Makes one output, and says how long that took.
fn timed(make: impl FnOnce() -> Result<PathBuf>) -> Result<()> {
    let begun = Instant::now();
    tracing::info!("{} is ready ({:.1}s)", make()?.display(), begun.elapsed().as_secs_f32());
    Ok(())
}
