// SPDX-License-Identifier: MIT OR Apache-2.0
//! Node profiles: what follows from the cluster file for one node.

#![allow(clippy::unwrap_used)]

use profiles::Cluster;
use profiles::node::{LoadBalancer, NodeProfile};

const LAB: &str = include_str!("../lab/cluster.toml");
const HA: &str = include_str!("clusters/ha.toml");
const ID: &str = "0123456789abcdef0123456789abcdef";

fn profile(text: &str, node: &str, id: &str) -> NodeProfile {
    let cluster = Cluster::parse("cluster.toml", text).unwrap_or_else(|report| panic!("{report}"));
    cluster.node_profile(node, id).unwrap()
}

#[test]
fn ipv6_works_throughout() {
    let text = LAB
        .replace("10.0.2.0/24", "fd00:2::/64")
        .replace("10.0.2.15", "fd00:2::15")
        .replace("10.0.2.2\"", "fd00:2::2\"")
        .replace("10.0.2.3\"", "fd00:2::3\"")
        .replace("10.200.0.0/16", "fd00:200::/48")
        .replace("10.201.0.0/16", "fd00:201::/112");
    let profile = profile(&text, "master-1", ID);
    assert_eq!(profile.kubernetes.control_plane_endpoint, "[fd00:2::15]:6443");
    assert_eq!(profile.node.address.to_string(), "fd00:2::15/64");
    assert_eq!(profile.node.pod_subnet.unwrap().to_string(), "fd00:200::/64");
    let files = profiles::render::files(&profile).unwrap();
    let all = format!("{files:?}");
    assert!(all.contains("https://[fd00:2::15]:2379") && all.contains("net.ipv6.conf.all.forwarding"), "{all}");
}

#[test]
fn pod_subnets_are_disjoint_shares_in_the_order_of_the_file() {
    let profile = profile(HA, "node1", ID);
    let shares: Vec<String> = profile.peers.iter().map(|peer| peer.pod_subnet.unwrap().to_string()).collect();
    let expected: Vec<String> = (0..7).map(|index| format!("10.200.{index}.0/24")).collect();
    assert_eq!(shares, expected);
    assert_eq!(profile.node.pod_subnet, profile.peers[6].pod_subnet);
}

#[test]
fn other_plugins_share_out_the_pod_network_themselves() {
    let profile = profile(&HA.replace("\"bridge\"", "\"manifest\""), "node1", ID);
    assert!(profile.node.pod_subnet.is_none() && profile.peers.iter().all(|peer| peer.pod_subnet.is_none()));
}

#[test]
fn the_router_id_follows_from_the_cluster_unless_the_file_says_it() {
    let vrid = |text: &str, id: &str| match profile(text, "master1", id).load_balancer {
        LoadBalancer::Keepalived { vrid, .. } => vrid,
        other => panic!("{other:?}"),
    };
    assert_eq!(vrid(HA, ID), vrid(HA, ID));
    assert_ne!(vrid(HA, ID), vrid(HA, "fedcba9876543210fedcba9876543210"));
    assert_ne!(vrid(HA, ""), 0);
    assert_eq!(vrid(&HA.replace("port = 8443", "vrid = 77"), ID), 77);
}

#[test]
fn an_external_load_balancer_is_the_endpoint() {
    let text = HA
        .replace("kind = \"keepalived\"", "kind = \"external\"\nendpoint = \"api.example.org:443\"")
        .replace("vip = \"19.190.3.100\"\nport = 8443\n", "");
    assert_eq!(profile(&text, "node1", ID).kubernetes.control_plane_endpoint, "api.example.org:443");
}
