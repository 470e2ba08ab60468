// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cluster files in this repository: all of them are valid and can be rendered for every node, and the labs of several
//! machines give exactly these files.

#![allow(clippy::unwrap_used)]

mod whole;

use std::path::PathBuf;

use profiles::Cluster;
use profiles::node::Role;
use profiles::render;
use profiles::seed::{Secrets, Seed};

const ID: &str = "0123456789abcdef0123456789abcdef";

/// Every folder beside `src` that has a cluster file: name, cluster.
fn shipped() -> Vec<(String, Cluster)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut clusters = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        let file = folder.join("cluster.toml");
        if file.is_file() {
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&file).unwrap();
            let cluster =
                Cluster::parse(&file.display().to_string(), &text).unwrap_or_else(|report| panic!("{report}"));
            clusters.push((name, cluster));
        }
    }
    clusters.sort_by(|a, b| a.0.cmp(&b.0));
    clusters
}

fn cluster(name: &str) -> Cluster {
    shipped().into_iter().find(|(other, _)| other == name).unwrap().1
}

#[test]
fn every_cluster_file_renders_every_node() {
    let clusters = shipped();
    let names: Vec<&str> = clusters.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["lab", "lab-split", "lab-ha", "hyperconverged", "kylin-v11-ha", "upstream-ha"] {
        assert!(names.contains(&name), "{name} is gone; there are {names:?}");
    }
    for (name, cluster) in clusters {
        assert_eq!(cluster.cluster.name, name, "a cluster is called like its folder");
        for node in &cluster.node {
            let profile = cluster.node_profile(&node.name, ID).unwrap();
            let files = render::files(&profile).unwrap_or_else(|error| panic!("{name} {}: {error}", node.name));
            assert!(files.iter().any(|file| file.path == "/etc/hostname"));
            render::kubeadm_args(&profile).unwrap();
            // What firstboot reads is what was rendered here.
            let seed = Seed::new(profile.clone(), Secrets::default()).unwrap();
            let read = Seed::parse(&seed.user_data().unwrap(), &seed.meta_data().unwrap()).unwrap();
            assert_eq!(read.profile, profile);
        }
    }
}

#[test]
fn all_files_of_lab_split() {
    for node in ["etcd-1", "master-1", "worker-1"] {
        insta::assert_snapshot!(
            format!("lab-split_{node}"),
            whole::files(&cluster("lab-split").node_profile(node, ID).unwrap())
        );
    }
}

#[test]
fn all_files_of_lab_ha() {
    for node in ["etcd-2", "master-1", "master-3", "worker-1"] {
        insta::assert_snapshot!(
            format!("lab-ha_{node}"),
            whole::files(&cluster("lab-ha").node_profile(node, ID).unwrap())
        );
    }
}

/// The labs of several machines differ from the lab in machines and patience alone.
#[test]
fn the_labs_have_the_same_inputs() {
    let lab = cluster("lab");
    for name in ["lab-split", "lab-ha", "hyperconverged"] {
        let other = cluster(name);
        assert_eq!((&other.input, &other.image, &other.payload), (&lab.input, &lab.image, &lab.payload), "{name}");
        assert!(lab.os.packages.iter().all(|package| other.os.packages.contains(package)), "{name}");
    }
}

#[test]
fn the_labs_are_what_the_virtual_segment_has() {
    for name in ["lab-split", "lab-ha", "hyperconverged"] {
        let cluster = cluster(name);
        assert!(cluster.network.gateway.is_none() && cluster.network.dns_servers.is_empty(), "{name}");
        for node in &cluster.node {
            let std::net::IpAddr::V4(address) = node.address else { panic!("{name}") };
            let mac = format!("52:54:00:77:00:{:02x}", address.octets()[3]);
            assert_eq!(node.mac.as_deref(), Some(mac.as_str()), "{name} {}", node.name);
        }
    }
}

/// Masters that are nothing else keep kubeadm's taint, so that ordinary pods run on the worker.
#[test]
fn pods_run_where_a_node_is_a_worker() {
    for (name, expected) in [("lab-ha", "worker-1"), ("lab-split", "worker-1")] {
        let cluster = cluster(name);
        let workers: Vec<&str> = cluster.nodes_with(Role::Worker).map(|node| node.name.as_str()).collect();
        assert_eq!(workers, [expected], "{name}");
        let master = whole::files(&cluster.node_profile("master-1", ID).unwrap());
        assert!(!master.contains("taints"), "{name}");
    }
    let everything = whole::files(&cluster("hyperconverged").node_profile("node-2", ID).unwrap());
    assert_eq!(everything.matches("taints: []").count(), 2, "for init and for join");
}
