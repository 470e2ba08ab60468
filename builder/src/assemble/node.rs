// SPDX-License-Identifier: MIT OR Apache-2.0

//! One node: its profile, its share of the PKI, its seed. The only part of an image that differs from node to node, and
//! the only one that holds secrets.

use anyhow::{Context, Result};
use profiles::Cluster;
use profiles::seed::{Secrets, Seed};

use crate::error::Failure;
use crate::pki::{Pki, Subject};
use crate::tree::{Entry, FileTree};

/// The seed of the node called `name`: its profile and its secrets.
///
/// # Errors
/// An unknown name; failing I/O on the secrets folder.
pub fn seed(cluster: &Cluster, name: &str, pki: &Pki) -> Result<Seed> {
    let profile =
        cluster.node_profile(name, &pki.cluster_id()).map_err(|unknown| Failure::user(unknown.to_string()))?;
    let subject = Subject {
        name: profile.node.name.clone(),
        address: profile.node.address.addr(),
        roles: profile.node.roles.iter().copied().collect(),
    };
    let secrets = pki.for_node(&subject).with_context(|| format!("making the certificates of {name}"))?;
    let seed = Seed::new(profile, Secrets(secrets)).with_context(|| format!("making the seed of {name}"))?;
    Ok(seed)
}

/// The seed as the files of a NoCloud medium: docs/contracts.md, section 6.
///
/// # Errors
/// If a document cannot be written as YAML.
pub fn seed_tree(seed: &Seed) -> Result<FileTree> {
    let mut tree = FileTree::new();
    let documents = [
        ("meta-data", seed.meta_data()?),
        ("user-data", seed.user_data()?),
        ("network-config", seed.network_config()?),
    ];
    for (name, text) in documents {
        tree.insert(name, Entry::file(text.into_bytes(), 0o600))?;
    }
    Ok(tree)
}
