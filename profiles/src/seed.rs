// SPDX-License-Identifier: MIT OR Apache-2.0
//! The seed of one node: the documents of a NoCloud medium, written and read. Valid for cloud-init too; our part is under
//! the key `imgbuild`. Media and file systems are for others.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::node::{NodeProfile, SCHEMA};
use crate::render::{Content, NodeFile, Owner};
use crate::sections::is_clean_path;
use crate::yaml::{self, YamlError};

/// Everything one node gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Seed {
    /// What tells one first boot from another.
    pub instance_id: String,
    /// What the node must become.
    pub profile: NodeProfile,
    /// Keys and certificates of its roles, or none once they were erased.
    pub secrets: Secrets,
}

/// Path on the node → PEM. Shows paths only when printed for debugging.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub BTreeMap<String, String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A seed cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// A document is no YAML, or not of the shape it must have.
    #[error("{document} cannot be read: {source}")]
    Document {
        /// `user-data`, `meta-data` or `network-config`.
        document: &'static str,
        /// What the YAML reader says.
        source: YamlError,
    },
    /// The medium is somebody else's.
    #[error("user-data has no section `imgbuild`: it was not made by imgbuild")]
    NotOurs,
    /// Made by another version of imgbuild.
    #[error("user-data has imgbuild schema {0}, this program knows only {SCHEMA}")]
    Schema(u32),
    /// A secret would be written where none belongs.
    #[error("user-data has a secret for `{0}`, which is neither below /etc/kubernetes/ nor below /etc/etcd/")]
    SecretPath(String),
}

#[derive(Serialize, Deserialize)]
struct UserData {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ssh_authorized_keys: Vec<String>,
    imgbuild: Option<Section>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    schema: u32,
    profile: NodeProfile,
    #[serde(default, skip_serializing_if = "is_empty")]
    secrets: Secrets,
}

fn is_empty(secrets: &Secrets) -> bool {
    secrets.0.is_empty()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MetaData {
    #[serde(default)]
    instance_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local_hostname: Option<String>,
}

#[derive(Serialize)]
struct NetworkConfig {
    version: u32,
    ethernets: BTreeMap<&'static str, Ethernet>,
}

#[derive(Serialize)]
struct Ethernet {
    r#match: Match,
    dhcp4: bool,
    dhcp6: bool,
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nameservers: Option<Nameservers>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Match {
    MacAddress(String),
    Name(String),
}

#[derive(Serialize)]
struct Route {
    to: &'static str,
    via: String,
}

#[derive(Serialize)]
struct Nameservers {
    addresses: Vec<String>,
}

impl Seed {
    /// The seed of the node that `profile` describes. The instance id changes with the profile and with nothing else.
    pub fn new(profile: NodeProfile, secrets: Secrets) -> Result<Self, SeedError> {
        let text = yaml::to_string(&profile).map_err(document("user-data"))?;
        let digest: String = Sha256::digest(text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let instance_id = format!("{}-{}-{digest}", profile.cluster.id, profile.node.name);
        check_paths(&secrets)?;
        Ok(Self { instance_id, profile, secrets })
    }

    /// The document `meta-data`.
    pub fn meta_data(&self) -> Result<String, SeedError> {
        let meta = MetaData {
            instance_id: Some(self.instance_id.clone()),
            local_hostname: Some(self.profile.node.name.clone()),
        };
        yaml::to_string(&meta).map_err(document("meta-data"))
    }

    /// The document `user-data`, secrets included.
    pub fn user_data(&self) -> Result<String, SeedError> {
        let node = &self.profile.node;
        let user = UserData {
            hostname: Some(node.name.clone()),
            ssh_authorized_keys: node.ssh_authorized_keys.clone(),
            imgbuild: Some(Section { schema: SCHEMA, profile: self.profile.clone(), secrets: self.secrets.clone() }),
        };
        Ok(format!("#cloud-config\n{}", yaml::to_string(&user).map_err(document("user-data"))?))
    }

    /// The document `network-config`, version 2.
    pub fn network_config(&self) -> Result<String, SeedError> {
        let (node, network) = (&self.profile.node, &self.profile.network);
        let ethernet = Ethernet {
            r#match: match (&node.mac, &node.interface) {
                (Some(mac), _) => Match::MacAddress(mac.clone()),
                (None, Some(name)) => Match::Name(name.clone()),
                (None, None) => Match::Name("e*".to_owned()),
            },
            dhcp4: false,
            dhcp6: false,
            addresses: node.addresses().map(|address| address.to_string()).collect(),
            routes: network
                .gateway
                .iter()
                .map(|via| Route { to: if via.is_ipv6() { "::/0" } else { "0.0.0.0/0" }, via: via.to_string() })
                .collect(),
            nameservers: (!network.dns_servers.is_empty())
                .then(|| Nameservers { addresses: network.dns_servers.iter().map(ToString::to_string).collect() }),
        };
        let config = NetworkConfig { version: 2, ethernets: BTreeMap::from([("node", ethernet)]) };
        yaml::to_string(&config).map_err(document("network-config"))
    }

    /// Reads a seed. Keys of cloud-config that are not ours are let be.
    pub fn parse(user_data: &str, meta_data: &str) -> Result<Self, SeedError> {
        let user: UserData = yaml::from_str(user_data).map_err(document("user-data"))?;
        // virt-install writes an empty meta-data, and cloud-init calls such an instance so.
        let meta: Option<MetaData> = match meta_data.trim() {
            "" => None,
            text => Some(yaml::from_str(text).map_err(document("meta-data"))?),
        };
        let section = user.imgbuild.ok_or(SeedError::NotOurs)?;
        if section.schema != SCHEMA || section.profile.schema != SCHEMA {
            return Err(SeedError::Schema(section.schema.max(section.profile.schema)));
        }
        check_paths(&section.secrets)?;
        let instance_id = meta.and_then(|meta| meta.instance_id).unwrap_or_else(|| "nocloud".to_owned());
        Ok(Self { instance_id, profile: section.profile, secrets: section.secrets })
    }

    /// The secrets as files: keys for their owner alone, certificates and public keys for everyone.
    pub fn secret_files(&self) -> Vec<NodeFile> {
        let file = |(path, pem): (&String, &String)| NodeFile {
            path: path.clone(),
            content: Content::Text(pem.clone()),
            mode: if path.ends_with(".crt") || path.ends_with(".pub") { 0o644 } else { 0o600 },
            owner: if path.starts_with("/etc/etcd/") { Owner::Etcd } else { Owner::Root },
        };
        self.secrets.0.iter().map(file).collect()
    }
}

/// `user-data` without secrets and with everything else it held, or `None` if it holds none.
pub fn without_secrets(user_data: &str) -> Result<Option<String>, SeedError> {
    let mut tree: serde_json::Value = yaml::from_str(user_data).map_err(document("user-data"))?;
    let section = tree.get_mut("imgbuild").and_then(serde_json::Value::as_object_mut);
    if section.and_then(|section| section.remove("secrets")).is_none() {
        return Ok(None);
    }
    Ok(Some(format!("#cloud-config\n{}", yaml::to_string(&tree).map_err(document("user-data"))?)))
}

fn document(document: &'static str) -> impl Fn(YamlError) -> SeedError {
    move |source| SeedError::Document { document, source }
}

fn check_paths(secrets: &Secrets) -> Result<(), SeedError> {
    let good =
        |path: &str| is_clean_path(path) && (path.starts_with("/etc/kubernetes/") || path.starts_with("/etc/etcd/"));
    match secrets.0.keys().find(|path| !good(path)) {
        Some(path) => Err(SeedError::SecretPath(path.clone())),
        None => Ok(()),
    }
}
