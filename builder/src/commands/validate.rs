// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild validate`: say everything that is wrong with a cluster file.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Result;
use profiles::schema::FileInput;

use crate::assemble::calico;
use crate::cli::Options;
use crate::commands::{ClusterFile, say};
use crate::error::Failure;

pub(super) fn run(options: &Options) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    file.nodes(options)?;
    // One by address is as good as not brought yet: validation needs no network and no store.
    let read = |input: &FileInput| input.from.path.as_ref().map_or(Ok(None), |path| manifest(&file.dir().join(path)));
    say(&calico::manifests(&file.cluster, read)?);
    tracing::info!("{}: valid; {} nodes", file.path.display(), file.cluster.node.len());
    Ok(())
}

/// A manifest, if it is there: a cluster file can be written before its inputs are brought.
fn manifest(path: &Path) -> Result<Option<Vec<u8>>> {
    match File::open(path) {
        Ok(file) => calico::read(file).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io(format!("reading {}", path.display()), error).into()),
    }
}
