// SPDX-License-Identifier: MIT OR Apache-2.0
//! The steps, one file each, and their order.

mod bless;
mod containerd;
mod etcd;
mod files;
mod hostname;
mod images;
mod init;
mod kernel;
mod kubelet;
mod manifests;
mod network;
mod node_ready;
mod preflight;
mod services;
mod swap;

use profiles::node::{NodeProfile, Role};

use crate::engine::Step;
use crate::failure::Failure;

/// Journal name of the step that runs `kubeadm init`; others look whether it is done.
pub const INIT: &str = "init";

/// The steps of a node, in order.
pub fn for_profile(profile: &NodeProfile) -> Result<Vec<Box<dyn Step>>, Failure> {
    refuse_what_is_not_built_yet(profile)?;
    let mut steps: Vec<Box<dyn Step>> = vec![
        Box::new(hostname::Hostname),
        Box::new(files::Files),
        Box::new(kernel::Modules),
        Box::new(kernel::Sysctl),
        Box::new(swap::Swap),
        Box::new(network::Network),
        Box::new(preflight::Preflight),
    ];
    if profile.has(Role::Etcd) {
        steps.push(Box::new(etcd::Etcd));
    }
    if profile.has(Role::Master) {
        steps.push(Box::new(containerd::Containerd));
        steps.push(Box::new(images::Images));
        steps.push(Box::new(init::Init));
        steps.push(Box::new(kubelet::Kubelet));
        steps.push(Box::new(manifests::AdminAccess));
        steps.push(Box::new(manifests::Manifests));
        steps.push(Box::new(node_ready::NodeReady));
    }
    steps.push(Box::new(bless::Bless));
    Ok(steps)
}

/// What other versions of firstboot do, said before anything changes.
fn refuse_what_is_not_built_yet(profile: &NodeProfile) -> Result<(), Failure> {
    let masters = profile.peers.iter().filter(|peer| peer.roles.contains(&Role::Master)).count();
    if profile.has(Role::Master) && masters != 1 {
        return Err(Failure::preflight(
            format!("the profile has {masters} masters, and this firstboot only initialises clusters of one"),
            "use a cluster file with one master, or a later imgbuild",
        ));
    }
    if profile.has(Role::Worker) && !profile.has(Role::Master) {
        return Err(Failure::preflight(
            "the profile is of a worker that would join, and this firstboot cannot join",
            "use a cluster file with one node, or a later imgbuild",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod whole_run;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn roles_decide_the_steps() {
        let mut profile = crate::testing::profile();
        let ids = |profile: &NodeProfile| -> Vec<&'static str> {
            for_profile(profile).unwrap().iter().map(|step| step.id()).collect()
        };
        insta::assert_snapshot!(ids(&profile).join(" "), @"hostname files modules sysctl swap network preflight etcd containerd images init kubelet admin-access manifests node-ready bless-boot");
        profile.node.roles = BTreeSet::from([Role::Etcd]);
        insta::assert_snapshot!(ids(&profile).join(" "), @"hostname files modules sysctl swap network preflight etcd bless-boot");
    }

    #[test]
    fn several_masters_are_refused_before_anything_changes() {
        let mut profile = crate::testing::profile();
        profile.peers.push(profiles::node::Peer { name: "master-2".into(), ..profile.peers[0].clone() });
        let failure = for_profile(&profile).err().unwrap();
        assert_eq!(failure.exit.code(), 20);
        assert!(failure.reason.contains("2 masters"));
        profile.node.roles = BTreeSet::from([Role::Worker]);
        assert!(for_profile(&profile).err().unwrap().reason.contains("worker"));
    }
}
