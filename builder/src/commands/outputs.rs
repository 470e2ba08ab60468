// SPDX-License-Identifier: MIT OR Apache-2.0

//! Outputs that are another form of something: a disk for a virtual machine, a seed alone.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use profiles::Cluster;

use crate::assemble::{self, Bench, node};
use crate::cli::{Options, Output};
use crate::commands::{ClusterFile, open_store};
use crate::error::Failure;
use crate::output;
use crate::output::seed::SeedFiles;
use crate::pki::Pki;
use crate::store::Store;

/// Whether nothing but seeds is asked for: they need no package, no mirror and no lock.
pub(super) fn only_seeds(options: &Options) -> bool {
    options.output.iter().all(|output| *output == Output::Seed)
}

/// The seeds of some nodes and nothing else.
pub(super) fn seeds(file: &ClusterFile, nodes: &[String], options: &Options) -> Result<()> {
    let (store, pki) = (open_store(options)?, file.pki()?);
    let creating = |error| Failure::io(format!("creating {}", options.out.display()), error);
    fs::create_dir_all(&options.out).map_err(creating)?;
    for name in nodes {
        let folder = seed(&file.cluster, &store, &pki, name, options)?.folder;
        tracing::info!("{}, .iso and .cpio are ready", folder.display());
    }
    Ok(())
}

/// The seed of one node.
pub(super) fn seed(cluster: &Cluster, store: &Store, pki: &Pki, name: &str, options: &Options) -> Result<SeedFiles> {
    let tree = node::seed_tree(&node::seed(cluster, name, pki)?)?;
    output::seed::write(&tree, store, name, &options.out)
}

/// The disk of one node as qcow2; gives its path. The raw image lies in the store's scratch meanwhile, sparse.
pub(super) fn qcow2(bench: &Bench<'_>, pki: &Pki, name: &str, options: &Options) -> Result<PathBuf> {
    let scratch = bench.store.scratch()?;
    let raw = assemble::disk(bench, pki, name, &scratch.path().join("disk.img"))?.path;
    let path = options.out.join(format!("{name}.qcow2"));
    output::qcow2::write(&raw, &path)?;
    Ok(path)
}
