// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the payload says of its add-ons (docs/contracts.md, section 3): the builder writes it, firstboot goes by it.

use serde::{Deserialize, Serialize};

/// Version of this document. firstboot refuses another one.
pub const SCHEMA: u32 = 1;
/// Folder of the payload with the add-ons.
pub const DIR: &str = "addons";
/// The index in it.
pub const INDEX: &str = "index.json";
/// The condition of a Deployment, DaemonSet or StatefulSet all of whose pods are new and serve.
pub const ROLLED_OUT: &str = "rolled-out";
/// The condition of whatever is there at all.
pub const EXISTS: &str = "exists";

/// The add-ons of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The add-ons, in the order they are applied.
    pub addons: Vec<Addon>,
}

/// One add-on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addon {
    /// Its name.
    pub name: String,
    /// What is applied first, and waited for until the API server serves it; none if it has no CustomResourceDefinition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definitions: Option<Definitions>,
    /// The file with everything else, beside the index; none if there is nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<String>,
    /// What must be so before the next add-on, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<Wait>,
}

/// CustomResourceDefinitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definitions {
    /// The file with them, beside the index.
    pub file: String,
    /// Their names.
    pub names: Vec<String>,
}

/// Something that must be so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// The kind as kubectl takes it: `Deployment.v1.apps`, or `Deployment` alone where no manifest says its group.
    pub resource: String,
    /// The namespace, if the cluster file gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// [`ROLLED_OUT`], [`EXISTS`], or the type of a condition.
    pub condition: String,
    /// How long, in seconds.
    pub timeout_seconds: u64,
}
