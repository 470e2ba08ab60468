// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild render`: write every file a node would get, for reading and review.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use profiles::render::{self, Content};
use profiles::seed::without_secrets;

use crate::assemble::node;
use crate::cli::Options;
use crate::commands::ClusterFile;

/// Stands where a node's private keys would: a rendered folder is for reviewing and may be passed around.
const SECRET: &str = "(left out of the rendering: secret)\n";

pub(super) fn run(options: &Options) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    let pki = file.pki()?;
    for name in file.some_nodes(options)? {
        let seed = node::seed(&file.cluster, &name, &pki)?;
        let root = options.out.join("render").join(&name);
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("removing the earlier rendering {}", root.display()))?;
        }
        for rendered in render::files(&seed.profile)? {
            match &rendered.content {
                Content::Text(text) => write(&root, &rendered.path, text)?,
                Content::Symlink(target) => write(&root, &rendered.path, &format!("(symbolic link to {target})\n"))?,
            }
        }
        for secret in seed.secret_files() {
            let Content::Text(pem) = &secret.content else { continue };
            write(&root, &secret.path, if secret.mode & 0o077 == 0 { SECRET } else { pem })?;
        }
        let user_data = seed.user_data()?;
        let user_data = without_secrets(&user_data)?.unwrap_or(user_data);
        write(&root, "seed/user-data", &user_data)?;
        write(&root, "seed/meta-data", &seed.meta_data()?)?;
        write(&root, "seed/network-config", &seed.network_config()?)?;
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
