//! One node: its profile, its share of the PKI, its seed. The only part of an image that differs from node to node, and
//! the only one that holds secrets.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use profiles::node::NodeProfile;
use profiles::seed::Seed;
use profiles::{Cluster, render};

use crate::error::Failure;
use crate::pki::{Pki, Subject};
use crate::tree::{Entry, FileTree};

/// Everything that is particular to one node.
#[derive(Debug)]
pub struct PreparedNode {
    /// What firstboot will converge to.
    pub profile: NodeProfile,
    /// The seed, secrets and all.
    pub seed: Seed,
}

/// Prepares the node called `name`.
///
/// # Errors
/// An unknown name; failing I/O on the secrets folder.
pub fn prepare(cluster: &Cluster, name: &str, pki: &Pki) -> Result<PreparedNode> {
    let profile = cluster.node_profile(name, &pki.cluster_id()).map_err(|unknown| {
        Failure::user(unknown.to_string())
    })?;
    let subject = Subject {
        name: profile.node.name.clone(),
        address: profile.node.address.addr(),
        roles: profile.node.roles.iter().copied().collect(),
    };
    let secrets = pki.for_node(&subject).with_context(|| format!("making the certificates of {name}"))?;
    let seed = Seed::new(&profile, secrets);
    Ok(PreparedNode { profile, seed })
}
