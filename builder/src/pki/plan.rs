// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which keys and certificates a node gets, by its roles. Pure: nothing is made or read here, so that a reviewer may see
//! what every seed holds without a PKI.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use profiles::node::{NodeProfile, Role};
use profiles::render::DISCOVERY_CONFIG;

/// The API server's share of the PKI, and kubeadm's.
const KUBERNETES: &str = "/etc/kubernetes/pki";
/// An etcd member's.
const ETCD: &str = "/etc/etcd/pki";

/// A node as its certificates name it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Host name.
    pub name: String,
    /// Address on the node network.
    pub address: IpAddr,
    /// Its roles.
    pub roles: BTreeSet<Role>,
    /// What it joins; `None` for a node that joins nothing.
    pub join: Option<Join>,
}

/// The control plane that a node joins.
#[derive(Debug, Clone)]
pub struct Join {
    /// The cluster's name.
    pub cluster: String,
    /// `host:port` of its API server.
    pub endpoint: String,
    /// How long the credential is good.
    pub validity: Duration,
}

impl Subject {
    /// The node that `profile` describes.
    pub fn of(profile: &NodeProfile, join_validity: Duration) -> Self {
        Self {
            name: profile.node.name.clone(),
            address: profile.node.address.addr(),
            roles: profile.node.roles.clone(),
            join: profile.joins().then(|| Join {
                cluster: profile.cluster.name.clone(),
                endpoint: profile.kubernetes.control_plane_endpoint.clone(),
                validity: join_validity,
            }),
        }
    }
}

/// A certificate authority of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ca {
    /// Of the API server, kubelets and administrators.
    Kubernetes,
    /// Of the aggregation layer.
    FrontProxy,
    /// Of etcd: its key is on no node.
    Etcd,
}

impl Ca {
    /// Its common name, and the name of its files in the secrets folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes-ca",
            Self::FrontProxy => "front-proxy-ca",
            Self::Etcd => "etcd-ca",
        }
    }
}

/// Which side of TLS a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Server authentication.
    Server,
    /// Client authentication.
    Client,
}

/// A certificate that one of the authorities signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Name of its files in the secrets folder.
    pub(super) file: String,
    /// Who signs it.
    pub(super) authority: Ca,
    /// `O` of the subject: a group, to Kubernetes.
    pub(super) organization: Option<&'static str>,
    /// `CN` of the subject: a user, to Kubernetes.
    pub(super) common_name: String,
    /// DNS names it is for.
    pub(super) dns_names: Vec<String>,
    /// Addresses it is for.
    pub(super) addresses: Vec<IpAddr>,
    /// What it may be used for.
    pub(super) usages: &'static [Usage],
}

/// What a file of a seed is.
#[derive(Debug, Clone)]
pub enum Secret {
    /// An authority's certificate.
    AuthorityCertificate(Ca),
    /// An authority's key.
    AuthorityKey(Ca),
    /// The key that signs the tokens of service accounts.
    ServiceAccountKey,
    /// Its public half.
    ServiceAccountPublic,
    /// A leaf certificate.
    Certificate(Leaf),
    /// The key of a leaf certificate.
    Key(Leaf),
    /// A kubeconfig with which the node joins, and its certificate.
    Discovery(Join, Leaf),
}

/// Path on the node -> what is there: what the node's roles need, and nothing more.
pub fn plan(node: &Subject) -> BTreeMap<String, Secret> {
    let mut files = BTreeMap::new();
    if node.roles.contains(&Role::Etcd) {
        files.insert(format!("{ETCD}/ca.crt"), Secret::AuthorityCertificate(Ca::Etcd));
        for role in ["server", "peer"] {
            let leaf = Leaf {
                file: format!("etcd-{role}-{}", node.name),
                authority: Ca::Etcd,
                organization: None,
                common_name: node.name.clone(),
                dns_names: vec![node.name.clone(), "localhost".into()],
                addresses: vec![node.address, IpAddr::V4(Ipv4Addr::LOCALHOST)],
                // etcd's gateway dials its own server with the server certificate, and peers dial each other: both sides.
                usages: &[Usage::Server, Usage::Client],
            };
            files.insert(format!("{ETCD}/{role}.crt"), Secret::Certificate(leaf.clone()));
            files.insert(format!("{ETCD}/{role}.key"), Secret::Key(leaf));
        }
    }
    if node.roles.contains(&Role::Master) {
        for (name, authority) in [("ca", Ca::Kubernetes), ("front-proxy-ca", Ca::FrontProxy)] {
            files.insert(format!("{KUBERNETES}/{name}.crt"), Secret::AuthorityCertificate(authority));
            files.insert(format!("{KUBERNETES}/{name}.key"), Secret::AuthorityKey(authority));
        }
        files.insert(format!("{KUBERNETES}/sa.key"), Secret::ServiceAccountKey);
        files.insert(format!("{KUBERNETES}/sa.pub"), Secret::ServiceAccountPublic);
        let leaf = Leaf {
            file: format!("etcd-client-{}", node.name),
            authority: Ca::Etcd,
            organization: None,
            common_name: format!("kube-apiserver-etcd-client-{}", node.name),
            dns_names: vec![],
            addresses: vec![],
            usages: &[Usage::Client],
        };
        files.insert(format!("{KUBERNETES}/etcd-external/ca.crt"), Secret::AuthorityCertificate(Ca::Etcd));
        files.insert(format!("{KUBERNETES}/etcd-external/client.crt"), Secret::Certificate(leaf.clone()));
        files.insert(format!("{KUBERNETES}/etcd-external/client.key"), Secret::Key(leaf));
    }
    if let Some(join) = &node.join {
        // With this identity a request for the certificate of the very same node is approved (`selfnodeclient`), and
        // kubeadm may read its configuration. Nothing of another node can be had with it.
        let leaf = Leaf {
            file: format!("join-{}", node.name),
            authority: Ca::Kubernetes,
            organization: Some("system:nodes"),
            common_name: format!("system:node:{}", node.name),
            dns_names: vec![],
            addresses: vec![],
            usages: &[Usage::Client],
        };
        files.insert(DISCOVERY_CONFIG.into(), Secret::Discovery(join.clone(), leaf));
    }
    files
}

/// Stands where the file would, for a reviewer: what it is, and nothing that differs from one PKI to another.
impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AuthorityCertificate(ca) => {
                writeln!(f, "(left out of the rendering: made with the cluster's PKI)\ncertificate of CN={}", ca.name())
            }
            Self::AuthorityKey(ca) => writeln!(f, "(left out of the rendering: secret)\nkey of CN={}", ca.name()),
            Self::ServiceAccountKey => {
                writeln!(f, "(left out of the rendering: secret)\nkey that signs service-account tokens")
            }
            Self::ServiceAccountPublic => {
                writeln!(f, "(left out of the rendering: made with the cluster's PKI)\npublic half of sa.key")
            }
            Self::Certificate(leaf) => {
                writeln!(f, "(left out of the rendering: made with the cluster's PKI)\n{leaf}")
            }
            Self::Key(leaf) => {
                writeln!(f, "(left out of the rendering: secret)\nkey of CN={}", leaf.common_name)
            }
            Self::Discovery(join, leaf) => {
                let hours = join.validity.as_secs() / 3600;
                writeln!(f, "(left out of the rendering: secret)\nkubeconfig for https://{}", join.endpoint)?;
                writeln!(f, "valid for {hours} h after it is made\n{leaf}")
            }
        }
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let organization = self.organization.map(|name| format!("O={name}, ")).unwrap_or_default();
        writeln!(f, "subject: {organization}CN={}", self.common_name)?;
        writeln!(f, "issuer: CN={}", self.authority.name())?;
        let usages: Vec<&str> = self
            .usages
            .iter()
            .map(|usage| match usage {
                Usage::Server => "server",
                Usage::Client => "client",
            })
            .collect();
        write!(f, "usages: {}", usages.join(", "))?;
        let names = self.dns_names.iter().map(|name| format!("DNS:{name}"));
        let names: Vec<String> = names.chain(self.addresses.iter().map(|address| format!("IP:{address}"))).collect();
        if !names.is_empty() {
            write!(f, "\nnames: {}", names.join(", "))?;
        }
        Ok(())
    }
}
