// SPDX-License-Identifier: MIT OR Apache-2.0

//! Cluster files: read, reported on, and rendered.

use profiles::seed::{Secrets, Seed};
use profiles::{Cluster, render};

/// Any id.
const ID: &str = "0123456789abcdef0123456789abcdef";

/// The cluster files that come with imgbuild.
pub const FILES: [&str; 6] = [
    include_str!("../../../profiles/lab/cluster.toml"),
    include_str!("../../../profiles/lab-split/cluster.toml"),
    include_str!("../../../profiles/lab-ha/cluster.toml"),
    include_str!("../../../profiles/lab-loong64/cluster.toml"),
    include_str!("../../../profiles/hyperconverged/cluster.toml"),
    include_str!("../../../profiles/kylin-v11-ha/cluster.toml"),
];

/// Reads a cluster file; renders what a good one says, and shows what is wrong with any other.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let cluster = match Cluster::parse("cluster.toml", text) {
        Ok(cluster) => cluster,
        Err(report) => {
            assert!(!report.problems().is_empty());
            let _ = (report.to_string(), report.to_json());
            return;
        }
    };
    for node in cluster.node.iter().take(4) {
        let profile = cluster.node_profile(&node.name, ID).expect("a node of the file");
        let _ = (render::files(&profile), render::kubeadm_args(&profile));
        let seed = Seed::new(profile, Secrets::default()).expect("a seed of a good cluster file");
        let (user, meta) = (seed.user_data().expect("user-data"), seed.meta_data().expect("meta-data"));
        seed.network_config().expect("network-config");
        assert_eq!(Seed::parse(&user, &meta).ok().as_ref(), Some(&seed), "{user}");
    }
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    FILES.iter().map(|text| text.as_bytes().to_vec()).collect()
}
