//! The cluster file: the shipped one is valid, and mistakes are found, all of them, in their place.

use profiles::Cluster;

const LAB: &str = include_str!("../lab/cluster.toml");

#[test]
fn the_lab_is_valid() {
    let lab = Cluster::parse("profiles/lab/cluster.toml", LAB).unwrap_or_else(|report| panic!("{report}"));
    let profile = lab.node_profile("master-1", "0123456789abcdef0123456789abcdef").unwrap();
    assert_eq!(profile.kubernetes.control_plane_endpoint, "10.0.2.15:6443");
    assert_eq!(profile.node.pod_subnet.unwrap().to_string(), "10.200.0.0/24");
}

#[test]
fn an_unknown_node_is_named() {
    let lab = Cluster::parse("cluster.toml", LAB).unwrap();
    assert_eq!(
        lab.node_profile("master1", "x").unwrap_err().to_string(),
        "the cluster file has no node `master1`; did you mean `master-1`?"
    );
}
