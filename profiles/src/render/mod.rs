// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every file a node gets, from its profile: one module per program, structured files from typed structs, never from
//! templates. What is rendered here is what `imgbuild render` shows and what firstboot writes.

mod cni;
mod containerd;
mod coredns;
mod etcd;
mod kube_proxy;
mod kubeadm;
mod kubelet;
mod load_balancer;
mod masquerade;
mod network;
mod probes;
mod routes;
mod system;

use std::net::IpAddr;

use crate::node::{LoadBalancer, NetworkPlugin, NodeProfile, Peer, Role};
use crate::sections::is_dns_name;
use crate::version::{BadVersion, Version};
use crate::yaml::YamlError;

/// Where containerd listens.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Programs of the payload.
pub const PAYLOAD_BIN: &str = "/opt/imgbuild/bin";
/// kubeadm's configuration on a master, for `kubeadm init`.
pub const KUBEADM_CONFIG: &str = "/etc/kubernetes/kubeadm.yaml";
/// kubeadm's configuration for `kubeadm join`, on workers, and on masters of a cluster that has several.
pub const KUBEADM_JOIN_CONFIG: &str = "/etc/kubernetes/kubeadm-join.yaml";
/// Where kubeadm finds changes to the control plane's pods.
pub const KUBEADM_PATCHES: &str = "/etc/kubernetes/patches";
/// Manifests of our own for the cluster, applied in the order of their names before the payload's.
pub const MANIFESTS_DIR: &str = "/etc/kubernetes/imgbuild/";
/// The kubeconfig with the credential of a joining node; a secret of the seed, not rendered.
pub const DISCOVERY_CONFIG: &str = "/etc/kubernetes/discovery.conf";
/// Where etcd answers `/health` without TLS, to the node itself alone.
pub const ETCD_METRICS: &str = "http://127.0.0.1:2381";
/// kubelet and kube-controller-manager want to create this directory; its default is below /usr, which is read-only.
const VOLUME_PLUGINS: &str = "/var/lib/kubelet/volume-plugins";

/// One file or link of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFile {
    /// Absolute path.
    pub path: String,
    /// What is there.
    pub content: Content,
    /// Permission bits; of no meaning for links.
    pub mode: u32,
    /// Who owns it, group included.
    pub owner: Owner,
}

/// What is at the path of a [`NodeFile`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file with this text.
    Text(String),
    /// A symbolic link to this target.
    Symlink(String),
}

/// Owner and group of a [`NodeFile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// root:root
    Root,
    /// etcd:etcd
    Etcd,
}

impl Owner {
    /// The name of the user and of the group.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Etcd => "etcd",
        }
    }
}

/// A profile cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A version in the profile is none.
    #[error(transparent)]
    Version(#[from] BadVersion),
    /// Text of the profile would break out of the line it is written to, or a value is missing.
    #[error("the node profile has a bad {0}")]
    Invalid(&'static str),
    /// A structured file cannot be written.
    #[error("writing {file}: {reason}")]
    Format {
        /// Path on the node.
        file: &'static str,
        /// What the format's writer says.
        reason: String,
    },
}

impl RenderError {
    fn yaml(file: &'static str) -> impl Fn(YamlError) -> Self {
        move |error| Self::Format { file, reason: error.to_string() }
    }
}

/// A profile with its versions understood.
struct Context<'a> {
    profile: &'a NodeProfile,
    kubernetes: Version,
    containerd: Version,
}

impl<'a> Context<'a> {
    fn new(profile: &'a NodeProfile) -> Result<Self, RenderError> {
        check(profile)?;
        let (kubernetes, containerd) = (profile.kubernetes.version.parse()?, profile.containerd.version.parse()?);
        Ok(Self { profile, kubernetes, containerd })
    }

    fn peers_with(&self, role: Role) -> impl Iterator<Item = &'a Peer> + use<'a> {
        self.profile.peers.iter().filter(move |peer| peer.roles.contains(&role))
    }

    fn runs_pods(&self) -> bool {
        self.profile.has(Role::Master) || self.profile.has(Role::Worker)
    }

    /// Whether nodes or pods have addresses of IPv6.
    fn has_v6(&self) -> bool {
        let pods = self.profile.network.pod_subnets.iter().any(|net| net.addr().is_ipv6());
        pods || self.profile.node.addresses().any(|address| address.addr().is_ipv6())
    }

    fn address(&self) -> IpAddr {
        self.profile.node.address.addr()
    }
}

/// All files of a node, sorted by path. The same profile gives the same bytes.
pub fn files(profile: &NodeProfile) -> Result<Vec<NodeFile>, RenderError> {
    let context = Context::new(profile)?;
    let mut files = system::files(&context);
    files.extend(network::files(&context));
    if profile.has(Role::Etcd) {
        files.extend(etcd::files(&context)?);
    }
    if context.runs_pods() {
        files.extend(containerd::files(&context)?);
        files.extend(kubelet::files(&context));
        if profile.network.plugin == NetworkPlugin::Bridge {
            files.push(cni::file(&context)?);
            files.extend(masquerade::files(&context)?);
            files.extend(routes::files());
        }
    }
    if profile.has(Role::Master) {
        files.push(kubeadm::file(&context)?);
        files.extend(probes::files(&context)?);
        files.extend(coredns::file(&context)?);
        if let LoadBalancer::Keepalived { vip, port, vrid, check_interval_seconds } = profile.load_balancer {
            let settings = load_balancer::Settings { vip, port, vrid, interval: check_interval_seconds };
            files.extend(load_balancer::files(&context, &settings)?);
        }
    }
    if profile.joins() {
        files.push(kubeadm::join_file(&context)?);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// What kubeadm must be told on its command line besides `--config`, because the configuration format of its version has
/// no place for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubeadmArgs {
    /// For `kubeadm init`.
    pub init: Vec<String>,
    /// For `kubeadm init`, instead, where the control plane runs already and only what is done through it is left.
    pub resume_init: Vec<String>,
    /// For `kubeadm join`.
    pub join: Vec<String>,
    /// For `kubeadm join`, instead, as `resume_init`.
    pub resume_join: Vec<String>,
}

/// The command-line arguments of this node's kubeadm.
pub fn kubeadm_args(profile: &NodeProfile) -> Result<KubeadmArgs, RenderError> {
    Ok(kubeadm::args(&Context::new(profile)?))
}

/// A seed may have been edited by hand: nothing of it may break out of the line it is written to.
fn check(profile: &NodeProfile) -> Result<(), RenderError> {
    let lines = |text: &str| text.contains(|c: char| c.is_control() || c == '"' || c == '\\');
    let node = &profile.node;
    let name_or_address = |text: &str| text.parse::<IpAddr>().is_ok() || is_dns_name(text);
    let balancer_is_good = match profile.load_balancer {
        LoadBalancer::Keepalived { vrid, port, check_interval_seconds, .. } => {
            vrid > 0 && port != profile.kubernetes.apiserver_port && (1..=60).contains(&check_interval_seconds)
        }
        LoadBalancer::None | LoadBalancer::External { .. } => true,
    };
    let checks: [(&'static str, bool); 9] = [
        ("cluster name or id", is_dns_name(&profile.cluster.name) && is_dns_name(&profile.cluster.id)),
        ("node name", is_dns_name(&node.name) && profile.peers.iter().all(|peer| is_dns_name(&peer.name))),
        ("mac or interface", !node.mac.iter().chain(&node.interface).any(|text| lines(text) || text.contains(' '))),
        ("list of peers", profile.peers.iter().any(|peer| peer.name == node.name)),
        ("NTP server", profile.network.ntp_servers.iter().all(|server| name_or_address(server))),
        ("load balancer: its port, its router id or its check interval", balancer_is_good),
        ("DNS domain", is_dns_name(&profile.network.dns_domain)),
        (
            "pod or service subnet",
            !profile.network.pod_subnets.is_empty() && !profile.network.service_subnets.is_empty(),
        ),
        (
            "label",
            node.labels.iter().all(|(name, value)| {
                !lines(name) && !lines(value) && !format!("{name}{value}").contains([' ', ',', '='])
            }),
        ),
    ];
    checks.iter().find(|(_, good)| !good).map_or(Ok(()), |(what, _)| Err(RenderError::Invalid(what)))
}

fn text(path: &str, content: impl Into<String>) -> NodeFile {
    NodeFile { path: path.to_owned(), content: Content::Text(content.into()), mode: 0o644, owner: Owner::Root }
}

fn symlink(path: &str, target: &str) -> NodeFile {
    NodeFile { path: path.to_owned(), content: Content::Symlink(target.to_owned()), mode: 0o777, owner: Owner::Root }
}

/// What `systemctl enable` would do for a unit of multi-user.target.
fn enabled(unit: &str, directory: &str) -> NodeFile {
    symlink(&format!("/etc/systemd/system/multi-user.target.wants/{unit}"), &format!("{directory}/{unit}"))
}

/// systemd's format: sections of `Key=value` lines.
fn ini(sections: &[(&str, Vec<(&str, String)>)]) -> String {
    let mut text = String::from("# Written by imgbuild; changes are lost.\n");
    for (section, lines) in sections {
        text += &format!("\n[{section}]\n");
        for (key, value) in lines {
            text += &format!("{key}={value}\n");
        }
    }
    text
}

fn line(key: &'static str, value: impl ToString) -> (&'static str, String) {
    (key, value.to_string())
}
