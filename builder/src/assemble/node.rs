// SPDX-License-Identifier: MIT OR Apache-2.0

//! One node: its profile, its share of the PKI, its seed. The only part of an image that differs from node to node, and
//! the only one that holds secrets.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use profiles::render::{self, Content, NodeFile};
use profiles::seed::{Secrets, Seed};
use profiles::{Cluster, NodeProfile};

use crate::error::Failure;
use crate::pki::{Pki, Subject, plan};
use crate::tree::{Entry, FileTree};

fn profile(cluster: &Cluster, name: &str, cluster_id: &str) -> Result<NodeProfile> {
    Ok(cluster.node_profile(name, cluster_id).map_err(|unknown| Failure::user(unknown.to_string()))?)
}

/// The seed of the node called `name`: its profile and its secrets.
///
/// # Errors
/// An unknown name; failing I/O on the secrets folder.
pub fn seed(cluster: &Cluster, name: &str, pki: &Pki) -> Result<Seed> {
    let profile = profile(cluster, name, &pki.cluster_id())?;
    let subject = Subject::of(&profile, cluster.cluster.join_validity);
    let secrets = pki.for_node(&subject).with_context(|| format!("making the certificates of {name}"))?;
    if let Some(until) = secrets.join_until {
        let until = until.strftime("%Y-%m-%d %H:%M UTC");
        tracing::info!("{name}'s join credential is valid until {until}; boot it before that, or build again");
    }
    let seed = Seed::new(profile, Secrets(secrets.files)).with_context(|| format!("making the seed of {name}"))?;
    Ok(seed)
}

/// The seed as the files of a NoCloud medium: docs/contracts.md, section 6.
///
/// # Errors
/// If a document cannot be written as YAML.
pub fn seed_tree(seed: &Seed) -> Result<FileTree> {
    let mut tree = FileTree::new();
    for (name, text) in documents(seed)? {
        tree.insert(name, Entry::file(text.into_bytes(), 0o600))?;
    }
    Ok(tree)
}

fn documents(seed: &Seed) -> Result<[(&'static str, String); 3]> {
    Ok([("meta-data", seed.meta_data()?), ("user-data", seed.user_data()?), ("network-config", seed.network_config()?)])
}

/// Everything a node gets, for a reviewer: no secret is in it, and nothing that is new with every PKI but the cluster's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// What is on the node, sorted by path; keys and certificates are descriptions of themselves.
    pub files: Vec<NodeFile>,
    /// What is on the seed's medium, without secrets: name and text.
    pub seed: [(&'static str, String); 3],
}

/// What the node called `name` would get, were `cluster_id` the cluster's id. Needs no PKI.
///
/// # Errors
/// An unknown name; a profile that cannot be rendered.
pub fn review(cluster: &Cluster, name: &str, cluster_id: &str) -> Result<Review> {
    let profile = profile(cluster, name, cluster_id)?;
    let planned = plan(&Subject::of(&profile, cluster.cluster.join_validity));
    let described = planned.iter().map(|(path, secret)| (path.clone(), secret.to_string())).collect();
    // The very code that gives each secret its mode and owner on the node.
    let secrets = Seed::new(profile.clone(), Secrets(described))?.secret_files();
    let mut files = render::files(&profile)?;
    files.extend(secrets);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let seed = Seed::new(profile, Secrets::default())?;
    Ok(Review { files, seed: documents(&seed)? })
}

impl Review {
    /// One line for each file on the node, after `node`, separated by tabs: path, mode, owner, and a link's target.
    pub fn index(&self, node: &str) -> String {
        let mut text = String::new();
        for file in &self.files {
            let owner = file.owner.name();
            // Writing to a string cannot fail.
            _ = match &file.content {
                Content::Text(_) => writeln!(text, "{node}\t{}\t{:04o}\t{owner}:{owner}\t", file.path, file.mode),
                Content::Symlink(target) => writeln!(text, "{node}\t{}\tlink\t{owner}:{owner}\t{target}", file.path),
            };
        }
        text
    }
}
