// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild render`: write every file a node would get, for reading and review. Makes no PKI: who reviews a cluster file
//! makes no cluster.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use profiles::render::Content;

use crate::assemble::node;
use crate::cli::Options;
use crate::commands::ClusterFile;
use crate::error::Failure;

/// Stands for the id of a cluster that has no PKI yet.
const NO_ID: &str = "00000000000000000000000000000000";

/// List of all that was rendered.
const INDEX: &str = "files.txt";
const INDEX_HEADER: &str = "# imgbuild render\n# node\tpath\tmode\towner\tlink to\n";

pub(super) fn run(options: &Options) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    let cluster_id = match file.known_cluster_id()? {
        Some(id) => id,
        None => {
            tracing::info!(
                "the cluster has no PKI yet: its id is shown as zeros, and a vrid derived from it is not the later one"
            );
            NO_ID.to_owned()
        }
    };
    let creating = |error| Failure::io(format!("creating {}", options.out.display()), error);
    fs::create_dir_all(&options.out).map_err(creating)?;
    let scratch = tempfile::tempdir_in(&options.out).map_err(creating)?;
    let mut index = INDEX_HEADER.to_owned();
    for name in file.some_nodes(options)? {
        let review = node::review(&file.cluster, &name, &cluster_id)?;
        let root = scratch.path().join(&name);
        for rendered in &review.files {
            match &rendered.content {
                Content::Text(text) => write(&root, &rendered.path, text)?,
                Content::Symlink(target) => write(&root, &rendered.path, &format!("(symbolic link to {target})\n"))?,
            }
        }
        for (document, text) in &review.seed {
            write(&root, &format!("seed/{document}"), text)?;
        }
        index += &review.index(&name);
    }
    write(scratch.path(), INDEX, &index)?;
    let rendering = options.out.join("render");
    replace(scratch, &rendering)?;
    tracing::info!("rendered to {}; {INDEX} lists every file", rendering.display());
    Ok(())
}

/// Puts `scratch` where the last rendering was, so that what lies there is one rendering and nothing else.
fn replace(scratch: tempfile::TempDir, rendering: &Path) -> Result<()> {
    if rendering.exists() {
        let ours = fs::read_to_string(rendering.join(INDEX)).is_ok_and(|index| index.starts_with(INDEX_HEADER));
        if !ours {
            let message = format!("{} is there, and no rendering that may be replaced", rendering.display());
            return Err(Failure::user(message).hint("remove it, or give another folder as --out").into());
        }
        fs::remove_dir_all(rendering).with_context(|| format!("removing {}", rendering.display()))?;
    }
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))
        .and_then(|()| fs::rename(scratch.path(), rendering))
        .with_context(|| format!("placing {}", rendering.display()))?;
    // It is no longer there to be removed.
    _ = scratch.keep();
    Ok(())
}

fn write(root: &Path, path: &str, content: &str) -> Result<()> {
    let file = root.join(path.trim_start_matches('/'));
    let dir = file.parent().context("a rendered file has a folder")?;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    fs::write(&file, content).with_context(|| format!("writing {}", file.display()))
}
