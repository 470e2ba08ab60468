// SPDX-License-Identifier: MIT OR Apache-2.0

//! A cluster that grows: a node is added to a cluster file whose lock and secrets are there already.

#![allow(clippy::unwrap_used, reason = "tests")]

use imgbuild::assemble::{node, sources};
use imgbuild::inputs::request::digests;
use imgbuild::pki::Pki;
use profiles::Cluster;

const LAB_HA: &str = include_str!("../../profiles/lab-ha/cluster.toml");

fn cluster(text: &str) -> Cluster {
    Cluster::parse("cluster.toml", text).unwrap_or_else(|report| panic!("{report}"))
}

fn grown() -> String {
    let node = "[[node]]\nname = \"worker-2\"\nroles = [\"worker\"]\naddress = \"10.77.0.32\"\n";
    let (nodes, rest) = LAB_HA.split_at(LAB_HA.find("[[input]]").unwrap());
    format!("{nodes}{node}\n{rest}")
}

/// The lock says which requests it was made from: nodes are not among them.
#[test]
fn a_node_more_leaves_the_lock_as_it_is() {
    let of = |text: &str| digests(&sources::requests(&cluster(text)).unwrap()).unwrap();
    let (before, after) = (of(LAB_HA), of(&grown()));
    assert!(before.len() > 3, "{before:?}");
    assert_eq!(before, after);
}

#[test]
fn a_node_more_leaves_everyones_secrets_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = dir.path().join("secrets");
    let first_day: jiff::Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    let pki = Pki::open(&secrets, first_day).unwrap();
    let before = cluster(LAB_HA);
    let seeds = |cluster: &Cluster, pki: &Pki| -> Vec<_> {
        before.node.iter().map(|one| node::seed(cluster, &one.name, pki).unwrap().secrets).collect()
    };
    let old = seeds(&before, &pki);
    // Two days later.
    let later = Pki::open(&secrets, first_day + jiff::SignedDuration::from_hours(48)).unwrap();
    let after = cluster(&grown());
    assert_eq!(later.cluster_id(), pki.cluster_id());
    assert!(seeds(&after, &later) == old);
    let added = node::seed(&after, "worker-2", &later).unwrap();
    assert_eq!(added.profile.cluster.id, pki.cluster_id());
    assert_eq!(added.secrets.0.into_keys().collect::<Vec<_>>(), ["/etc/kubernetes/discovery.conf"]);
    // The pod subnets of nodes that are there already do not move.
    for one in &before.node {
        let of = |cluster: &Cluster| cluster.node_profile(&one.name, "00").unwrap().node.pod_subnet;
        assert_eq!(of(&before), of(&after), "{}", one.name);
    }
}
