// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild [build]`: the images of one node or of all, or one that installs them.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::assemble::{self, Bench, bundle, calico, vendor};
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
    let done = |path: &Path, begun: Instant| {
        tracing::info!("{} is ready ({:.1}s)", path.display(), begun.elapsed().as_secs_f32());
    };
    for output in &options.output {
        match output {
            Output::Disk => {
                for name in &nodes {
                    let begun = Instant::now();
                    let disk = assemble::disk(&bench, &pki, name, &options.out.join(format!("{name}.img")))?;
                    done(&disk.path, begun);
                }
            }
            Output::Iso => {
                let begun = Instant::now();
                let path = options.out.join(format!("{}.iso", file.cluster.cluster.name));
                done(&assemble::iso(&bench, &pki, &nodes, &path)?.path, begun);
            }
            Output::Bundle => {
                let begun = Instant::now();
                let path = options.out.join(bundle::file_name(&bench));
                done(&bundle::bundle(&bench, &pki, &nodes, &path)?, begun);
            }
        }
    }
    Ok(())
}
