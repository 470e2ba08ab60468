//! `imgbuild render`: write every file a node would get, for reading and review.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use profiles::render;

use crate::assemble::node;
use crate::cli::Options;
use crate::commands::ClusterFile;

/// Stands where a node's private keys would: a rendered folder is for reviewing and may be passed around.
const SECRET: &str = "(left out of the rendering: secret)\n";

pub(super) fn run(options: &Options) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    let pki = file.pki()?;
    for name in file.some_nodes(options)? {
        let node = node::prepare(&file.cluster, &name, &pki)?;
        let root = options.out.join("render").join(&name);
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("removing the earlier rendering {}", root.display()))?;
        }
        for rendered in render::files(&node.profile) {
            match &rendered.kind {
                render::Kind::File(content) => write(&root, &rendered.path, content)?,
                render::Kind::Symlink(target) => write(&root, &rendered.path, &format!("(symbolic link to {target})\n"))?,
            }
        }
        for (path, pem) in &node.secrets {
            let public = pem.contains("BEGIN CERTIFICATE") || pem.contains("BEGIN PUBLIC KEY");
            write(&root, path, if public { pem } else { SECRET })?;
        }
        for (path, content) in node.seed_without_secrets()? {
            write(&root, &format!("seed/{path}"), &content)?;
        }
        tracing::info!("{name}: rendered to {}", root.display());
    }
    Ok(())
}

fn write(root: &Path, path: &str, content: &str) -> Result<()> {
    let file = root.join(path.trim_start_matches('/'));
    let dir = file.parent().context("a rendered file has a folder")?;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    fs::write(&file, content).with_context(|| format!("writing {}", file.display()))
}
