// SPDX-License-Identifier: MIT OR Apache-2.0
//! The node profile: everything one node must know, and nothing more. Rendered by the builder into the seed,
//! read by firstboot. Both sides use these very types, so a profile that builds is a profile that converges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The only version of the profile and cluster schema so far.
pub const SCHEMA: u32 = 1;

/// What a node does in the cluster. A node has one role or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A member of the external etcd cluster.
    Etcd,
    /// A Kubernetes control-plane node.
    Master,
    /// A node that runs workloads; together with `Master` it removes the control-plane taint.
    Worker,
}

/// CPU architecture, by the name OCI, Go and Debian use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// x86_64.
    Amd64,
    /// loongarch64, new-world ABI.
    Loong64,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Loong64];

    /// What `uname -m`, rpm and Rust call it.
    pub fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Loong64 => "loongarch64",
        }
    }

    /// The architecture with that [`Self::machine`].
    pub fn of_machine(machine: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.machine() == machine)
    }
}

/// Everything firstboot needs to converge one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeProfile {
    /// Always [`SCHEMA`].
    pub schema: u32,
    /// Which cluster this node belongs to.
    pub cluster: ClusterIdentity,
    /// This node.
    pub node: Node,
    /// All nodes of the cluster, this one included, in the cluster file's order.
    pub peers: Vec<Peer>,
    /// Networks.
    pub network: Network,
    /// Kubernetes settings shared by the cluster.
    pub kubernetes: Kubernetes,
    /// External etcd settings shared by the cluster.
    pub etcd: Etcd,
    /// Container runtime settings.
    pub containerd: Containerd,
    /// How masters are reached.
    pub load_balancer: LoadBalancer,
}

/// Name and identity of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterIdentity {
    /// DNS label.
    pub name: String,
    /// 32 lower-case hex digits, made once with the cluster's PKI: sha256 of the Kubernetes CA certificate, truncated.
    pub id: String,
}

/// One machine, as it sees itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Host name and Kubernetes node name.
    pub name: String,
    /// One role or more.
    pub roles: BTreeSet<Role>,
    /// CPU architecture.
    pub architecture: Architecture,
    /// Address with prefix length on the node network, `10.0.2.15/24`.
    pub address: IpNet,
    /// Address of the other IP family, with prefix length, in a cluster of two families.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary_address: Option<IpNet>,
    /// MAC address of the interface that carries `address`, lower case; `None`: the only Ethernet interface.
    pub mac: Option<String>,
    /// Name of that interface; masters behind keepalived have one.
    #[serde(default)]
    pub interface: Option<String>,
    /// The pod subnet of this node (bridge plugin: static share of the pod network).
    pub pod_subnet: Option<IpNet>,
    /// Kubernetes node labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// OpenSSH public keys allowed for root.
    #[serde(default)]
    pub ssh_authorized_keys: Vec<String>,
}

/// One machine, as others see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Host name.
    pub name: String,
    /// Address on the node network.
    pub address: IpAddr,
    /// Address of the other IP family, in a cluster of two families.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary_address: Option<IpAddr>,
    /// Its roles.
    pub roles: BTreeSet<Role>,
    /// Its share of the pod network (bridge plugin).
    pub pod_subnet: Option<IpNet>,
}

/// Networks of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Default gateway on the node network, if there is one.
    pub gateway: Option<IpAddr>,
    /// DNS servers of the room; may be empty.
    pub dns_servers: Vec<IpAddr>,
    /// NTP servers; may be empty.
    pub ntp_servers: Vec<String>,
    /// Pod networks, one per IP family.
    pub pod_subnets: Vec<IpNet>,
    /// Service networks, one per IP family.
    pub service_subnets: Vec<IpNet>,
    /// Cluster DNS domain, `cluster.local`.
    pub dns_domain: String,
    /// The pod network plugin.
    pub plugin: NetworkPlugin,
    /// MTU of pod interfaces; `None`: the kernel's default.
    pub mtu: Option<u32>,
}

/// Pod network plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPlugin {
    /// CNI `bridge` + `host-local` + `portmap`, and static routes between nodes. Needs no images.
    Bridge,
    /// Calico from a pinned manifest.
    Calico,
    /// Manifests the user brings.
    Manifest,
}

/// Kubernetes settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// `1.20.2`, without `v`.
    pub version: String,
    /// `host:port` that every kubeconfig and every kubelet uses.
    pub control_plane_endpoint: String,
    /// Port the API servers bind, 6443 by default.
    pub apiserver_port: u16,
    /// Further names and addresses for the API server's certificate.
    pub cert_sans: Vec<String>,
    /// Registry prefix of the control-plane images, `k8s.gcr.io`.
    pub image_repository: String,
    /// The sandbox image, exactly as the payload names it.
    pub pause_image: String,
    /// kube-proxy mode.
    pub proxy_mode: ProxyMode,
    /// Cluster DNS: with `None` the CoreDNS add-on is skipped.
    pub dns: ClusterDns,
    /// How long kubeadm waits for the control plane, in seconds.
    pub control_plane_timeout_seconds: u32,
    /// How often kubelet probes the control plane's pods, in seconds; `None`: as kubeadm has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_period_seconds: Option<u32>,
    /// Keys that kubeadm makes.
    #[serde(default, skip_serializing_if = "EncryptionAlgorithm::is_default")]
    pub encryption_algorithm: EncryptionAlgorithm,
    /// What the cluster file adds to the command lines.
    #[serde(default, skip_serializing_if = "ExtraArgs::is_empty")]
    pub extra_args: ExtraArgs,
}

/// Further arguments by component, without leading dashes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExtraArgs {
    /// kube-apiserver's.
    pub apiserver: BTreeMap<String, String>,
    /// kube-controller-manager's.
    pub controller_manager: BTreeMap<String, String>,
    /// kube-scheduler's.
    pub scheduler: BTreeMap<String, String>,
    /// kubelet's.
    pub kubelet: BTreeMap<String, String>,
}

impl ExtraArgs {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// kube-proxy mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyMode {
    /// iptables.
    Iptables,
    /// IPVS.
    Ipvs,
    /// nftables, Kubernetes 1.31 and later.
    Nftables,
}

/// Keys that kubeadm makes, by the names of its v1beta4 format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncryptionAlgorithm {
    /// kubeadm's default.
    #[default]
    #[serde(rename = "RSA-2048")]
    Rsa2048,
    /// ECDSA with curve P-256.
    #[serde(rename = "ECDSA-P256")]
    EcdsaP256,
}

impl EncryptionAlgorithm {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Cluster DNS add-on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterDns {
    /// kubeadm's CoreDNS add-on.
    Coredns,
    /// None: the payload carries no CoreDNS image.
    None,
}

/// External etcd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Etcd {
    /// Heartbeat interval in milliseconds.
    pub heartbeat_ms: u32,
    /// Election timeout in milliseconds; at least five heartbeats.
    pub election_ms: u32,
    /// Backend quota in bytes.
    pub quota_bytes: u64,
}

/// containerd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Containerd {
    /// Version of the packaged containerd, `1.6.20`; decides config v2 or v3.
    pub version: String,
}

/// How masters are reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum LoadBalancer {
    /// A single master, reached directly.
    None,
    /// A load balancer of the room at `endpoint`.
    External {
        /// `host:port`.
        endpoint: String,
    },
    /// haproxy + keepalived on the masters.
    Keepalived {
        /// The virtual address.
        vip: IpAddr,
        /// haproxy's port, never the API server's.
        port: u16,
        /// VRRP virtual router id.
        vrid: u8,
        /// How often haproxy and keepalived ask whether the API servers serve, in seconds.
        check_interval_seconds: u32,
    },
}

impl Node {
    /// The address, and in a cluster of two IP families that of the other one.
    pub fn addresses(&self) -> impl Iterator<Item = IpNet> {
        std::iter::once(self.address).chain(self.secondary_address)
    }
}

impl Peer {
    /// The address, and in a cluster of two IP families that of the other one.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.address).chain(self.secondary_address)
    }
}

impl NodeProfile {
    /// Whether this node may join a cluster that another node has begun: every worker and master, as who begins is not known
    /// before they boot. Only the sole master of a cluster has nothing to join.
    pub fn joins(&self) -> bool {
        let masters = self.peers.iter().filter(|peer| peer.roles.contains(&Role::Master)).count();
        if self.has(Role::Master) { masters > 1 } else { self.has(Role::Worker) }
    }

    /// Whether this node has `role`.
    pub fn has(&self, role: Role) -> bool {
        self.node.roles.contains(&role)
    }
}
