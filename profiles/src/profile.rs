// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the cluster file to what one node must know.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::node::{
    ClusterIdentity, Containerd, Etcd, ExtraArgs, Kubernetes, LoadBalancer, Network, NetworkPlugin, Node, NodeProfile,
    Peer, Role, SCHEMA,
};
use crate::schema::{Cluster, LoadBalancerSection, UnknownNode};
use crate::validate_network::share_prefix;

impl Cluster {
    /// Everything the node called `node_name` must know, and nothing more. `cluster_id` is made with the cluster's PKI.
    pub fn node_profile(&self, node_name: &str, cluster_id: &str) -> Result<NodeProfile, UnknownNode> {
        let own = self.node(node_name)?;
        let peers = self.node.iter().enumerate().map(|(index, node)| Peer {
            name: node.name.clone(),
            address: node.address,
            secondary_address: node.secondary_address,
            roles: node.roles.clone(),
            pod_subnet: self.pod_share(index),
        });
        let index = self.node.iter().position(|node| node.name == own.name).unwrap_or(0);
        Ok(NodeProfile {
            schema: SCHEMA,
            cluster: ClusterIdentity { name: self.cluster.name.clone(), id: cluster_id.to_owned() },
            node: Node {
                name: own.name.clone(),
                roles: own.roles.clone(),
                architecture: self.os.architecture,
                address: with_prefix(own.address, &self.network.node_subnet),
                secondary_address: own
                    .secondary_address
                    .zip(self.network.secondary_node_subnet)
                    .map(|(address, subnet)| with_prefix(address, &subnet)),
                mac: own.mac.clone(),
                interface: own.interface.clone(),
                pod_subnet: self.pod_share(index),
                labels: own.labels.clone(),
                ssh_authorized_keys: own.ssh_authorized_keys.clone(),
            },
            peers: peers.collect(),
            network: Network {
                gateway: self.network.gateway,
                dns_servers: self.network.dns_servers.clone(),
                ntp_servers: self.network.ntp_servers.clone(),
                pod_subnets: self.network.pod_subnets.clone(),
                service_subnets: self.network.service_subnets.clone(),
                dns_domain: self.network.dns_domain.clone(),
                plugin: self.network.plugin,
                mtu: self.network.mtu,
            },
            kubernetes: Kubernetes {
                version: self.kubernetes.version.to_string(),
                control_plane_endpoint: self.control_plane_endpoint(),
                apiserver_port: self.kubernetes.apiserver_port,
                cert_sans: self.kubernetes.cert_sans.clone(),
                image_repository: self.kubernetes.image_repository.clone(),
                pause_image: self.kubernetes.pause_image.clone(),
                proxy_mode: self.kubernetes.proxy_mode,
                dns: self.kubernetes.dns,
                control_plane_timeout_seconds: u32::try_from(self.kubernetes.control_plane_timeout.as_secs())
                    .unwrap_or(u32::MAX),
                probe_period_seconds: self
                    .kubernetes
                    .probe_period
                    .map(|period| u32::try_from(period.as_secs()).unwrap_or(u32::MAX)),
                encryption_algorithm: self.kubernetes.encryption_algorithm,
                extra_args: ExtraArgs {
                    apiserver: self.kubernetes.apiserver_extra_args.clone(),
                    controller_manager: self.kubernetes.controller_manager_extra_args.clone(),
                    scheduler: self.kubernetes.scheduler_extra_args.clone(),
                    kubelet: self.kubernetes.kubelet_extra_args.clone(),
                },
            },
            etcd: Etcd {
                heartbeat_ms: u32::try_from(self.etcd.heartbeat.as_millis()).unwrap_or(u32::MAX),
                election_ms: u32::try_from(self.etcd.election.as_millis()).unwrap_or(u32::MAX),
                quota_bytes: self.etcd.quota,
            },
            containerd: Containerd { version: self.containerd.version.to_string() },
            load_balancer: match &self.load_balancer {
                LoadBalancerSection::None => LoadBalancer::None,
                LoadBalancerSection::External { endpoint } => LoadBalancer::External { endpoint: endpoint.clone() },
                LoadBalancerSection::Keepalived { vip, port, vrid, check_interval } => LoadBalancer::Keepalived {
                    vip: *vip,
                    port: *port,
                    vrid: vrid.unwrap_or_else(|| derived_vrid(cluster_id)),
                    check_interval_seconds: u32::try_from(check_interval.as_secs()).unwrap_or(u32::MAX),
                },
            },
        })
    }

    /// `host:port` that every kubeconfig uses.
    fn control_plane_endpoint(&self) -> String {
        match &self.load_balancer {
            LoadBalancerSection::External { endpoint } => endpoint.clone(),
            LoadBalancerSection::Keepalived { vip, port, .. } => host_port(*vip, *port),
            LoadBalancerSection::None => {
                // Validation saw to it that there is exactly one master.
                let master = self.nodes_with(Role::Master).next().map(|node| node.address);
                master.map(|address| host_port(address, self.kubernetes.apiserver_port)).unwrap_or_default()
            }
        }
    }

    /// The pod subnet of the node at `index`: with `bridge` a fixed share of the pod network by the node's place in
    /// the file. Other plugins share out the network themselves.
    fn pod_share(&self, index: usize) -> Option<IpNet> {
        if self.network.plugin != NetworkPlugin::Bridge {
            return None;
        }
        let net = self.network.pod_subnets.first()?;
        let (prefix, index) = (share_prefix(net), u128::try_from(index).ok()?);
        // Not `subnets().nth()`: a /12 of IPv6 has more shares than anyone wants to walk.
        let address = match net.network() {
            IpAddr::V4(v4) => {
                let offset = u32::try_from(index.checked_shl(u32::from(32 - prefix))?).ok()?;
                IpAddr::V4(v4.to_bits().checked_add(offset)?.into())
            }
            IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().checked_add(index.checked_shl(u32::from(128 - prefix))?)?.into()),
        };
        IpNet::new(address, prefix).ok().filter(|share| net.contains(share))
    }
}

/// `10.0.2.15:6443`, `[fd00::1]:6443`.
pub(crate) fn host_port(host: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(host, port).to_string()
}

fn with_prefix(address: IpAddr, subnet: &IpNet) -> IpNet {
    IpNet::new(address, subnet.prefix_len()).unwrap_or_else(|_| IpNet::from(address))
}

/// 1 to 255 from the cluster id, so that two clusters in one segment rarely meet.
fn derived_vrid(cluster_id: &str) -> u8 {
    let sum = cluster_id.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    u8::try_from(sum % 255 + 1).unwrap_or(1)
}
