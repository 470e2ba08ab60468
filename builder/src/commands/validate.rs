// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild validate`: say everything that is wrong with a cluster file.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Result;
use profiles::schema::FileInput;

use crate::assemble::{addons, calico};
use crate::cli::Options;
use crate::commands::{ClusterFile, say, warn};
use crate::error::Failure;
use crate::manifest;

pub(super) fn run(options: &Options) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    file.nodes(options)?;
    // One by address is as good as not brought yet: validation needs no network and no store.
    let read = |input: &FileInput| input.from.path.as_ref().map_or(Ok(None), |path| manifest(&file.dir().join(path)));
    say(&calico::manifests(&file.cluster, read)?);
    let addons = addons::prepare(&file.cluster, |path| {
        let of_input =
            path.strip_prefix("input:").and_then(|name| file.cluster.files().find(|input| input.name == name));
        of_input.map_or_else(|| manifest(&file.dir().join(path)), read)
    })?;
    warn(&addons.warnings);
    tracing::info!("{}: valid; {} nodes", file.path.display(), file.cluster.node.len());
    Ok(())
}

/// A manifest, if it is there: a cluster file can be written before its inputs are brought.
fn manifest(path: &Path) -> Result<Option<Vec<u8>>> {
    match File::open(path) {
        Ok(file) => manifest::read(file).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io(format!("reading {}", path.display()), error).into()),
    }
}
