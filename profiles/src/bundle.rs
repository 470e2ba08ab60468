// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a bundle for an installed operating system holds (docs/bundle.md): the builder writes it, `firstboot host-install`
//! reads it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::node::{Architecture, NodeProfile, Role};
use crate::signing;

/// Version of these documents. An installer refuses another one.
pub const SCHEMA: u32 = 1;
/// The index, in the folder of its architecture.
pub const INDEX: &str = "bundle.json";
/// Folder of the seeds, one folder for each node, in the folder of its architecture.
pub const SEEDS: &str = "seeds";
/// Folder of a payload whose files are copied to `/` of the host.
pub const HOST_FILES: &str = "host";

/// The folder of an architecture in a bundle, by its OCI name.
pub fn folder(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Amd64 => "amd64",
        Architecture::Loong64 => "loong64",
    }
}

/// Name of the list of checksums of an architecture, at the top of the bundle.
pub fn sums(architecture: Architecture) -> String {
    format!("{}.{}", signing::SUMS, folder(architecture))
}

/// The index of one architecture, `<architecture>/bundle.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// Id of the cluster, 32 hexadecimal digits.
    pub cluster_id: String,
    /// CPU architecture of everything in the folder.
    pub architecture: Architecture,
    /// The nodes whose seeds are in it, in the order they were asked for.
    pub nodes: Vec<BundleNode>,
    /// The key that must have signed the list of checksums, as [`signing::PublicKey`] reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<String>,
}

impl Bundle {
    /// The node called `name`.
    pub fn node(&self, name: &str) -> Option<&BundleNode> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

/// A node that can be installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleNode {
    /// Its name, and that of its seed's folder.
    pub name: String,
    /// Which payload it gets.
    pub payload: PayloadKind,
}

/// Which payload a node gets, and the name of its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PayloadKind {
    /// That of a master or a worker.
    Pods,
    /// That of a node that is only an etcd member.
    Etcd,
}

impl PayloadKind {
    /// What a node of this profile gets.
    pub fn of(profile: &NodeProfile) -> Self {
        if profile.has(Role::Master) || profile.has(Role::Worker) { Self::Pods } else { Self::Etcd }
    }
}

impl fmt::Display for PayloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pods => "pods",
            Self::Etcd => "etcd",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_an_interface() {
        let bundle = Bundle {
            schema: SCHEMA,
            cluster: "lab".into(),
            cluster_id: "0".repeat(32),
            architecture: Architecture::Loong64,
            nodes: vec![BundleNode { name: "etcd-1".into(), payload: PayloadKind::Etcd }],
            signing_key: None,
        };
        let text = serde_json::to_string(&bundle).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"schema":1,"cluster":"lab","cluster_id":"{}","architecture":"loong64","nodes":[{{"name":"etcd-1","payload":"etcd"}}]}}"#,
                "0".repeat(32)
            )
        );
        assert_eq!(serde_json::from_str::<Bundle>(&text).unwrap(), bundle);
        assert_eq!(sums(Architecture::Amd64), "SHA256SUMS.amd64");
        for architecture in [Architecture::Amd64, Architecture::Loong64] {
            // The folder is what the profile calls it.
            assert_eq!(serde_json::to_string(&architecture).unwrap(), format!("\"{}\"", folder(architecture)));
        }
        for kind in [PayloadKind::Pods, PayloadKind::Etcd] {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }
}
