// SPDX-License-Identifier: MIT OR Apache-2.0
//! The steps, one file each, and their order.

mod addons;
mod bless;
mod claim;
mod containerd;
mod control_plane;
mod etcd;
mod files;
mod hostname;
mod images;
mod join;
pub(crate) mod kernel;
mod kubeadm;
mod kubelet;
mod load_balancer;
mod manifests;
mod network;
mod node_ready;
pub mod preflight;
mod services;
mod swap;

use std::time::Duration;

use profiles::node::{LoadBalancer, NodeProfile, Role};

use crate::engine::Step;
use crate::failure::Failure;

/// Journal name of the step that gives a master its control plane; others look whether it is done.
pub const CONTROL_PLANE: &str = "control-plane";
/// Journal name of the step that starts an etcd member, and the name of its unit.
pub const ETCD: &str = "etcd";
/// Journal name of the step that joins a worker.
pub const JOIN: &str = "join";
/// Journal name of the step that starts haproxy and keepalived.
const LOAD_BALANCER: &str = "load-balancer";
/// How long to wait for other machines: people may still be plugging them in.
const PEERS: Duration = Duration::from_secs(3600);

/// The steps of a node, in order.
pub fn for_profile(profile: &NodeProfile) -> Result<Vec<Box<dyn Step>>, Failure> {
    let (master, worker) = (profile.has(Role::Master), profile.has(Role::Worker));
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
    if master && matches!(profile.load_balancer, LoadBalancer::Keepalived { .. }) {
        steps.push(Box::new(load_balancer::LoadBalancer));
    }
    if master || worker {
        steps.push(Box::new(containerd::Containerd));
        steps.push(Box::new(images::Images));
        steps.push(if master { Box::new(control_plane::ControlPlane) } else { Box::new(join::Join) });
        steps.push(Box::new(kubelet::Kubelet));
        if master {
            steps.push(Box::new(manifests::AdminAccess));
            steps.push(Box::new(manifests::Manifests));
            steps.push(Box::new(addons::Addons));
        }
        steps.push(Box::new(node_ready::NodeReady));
    }
    steps.push(Box::new(bless::Bless));
    Ok(steps)
}

#[cfg(test)]
mod fake_etcd;
#[cfg(test)]
mod several;
#[cfg(test)]
mod whole_run;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn roles_decide_the_steps() {
        let mut profile = crate::testing::profile();
        let mut ids = |roles: &[Role], keepalived: bool| -> String {
            profile.node.roles = roles.iter().copied().collect::<BTreeSet<_>>();
            profile.load_balancer = if keepalived {
                LoadBalancer::Keepalived {
                    vip: "10.0.2.100".parse().unwrap(),
                    port: 8443,
                    vrid: 93,
                    check_interval_seconds: 2,
                }
            } else {
                LoadBalancer::None
            };
            let steps: Vec<_> = for_profile(&profile).unwrap().iter().map(|step| step.id()).collect();
            let steps = steps.join(" ");
            steps.strip_prefix("hostname files modules sysctl swap network preflight ").unwrap().to_owned()
        };
        let all = [Role::Etcd, Role::Master, Role::Worker];
        insta::assert_snapshot!(ids(&all, false), @"etcd containerd images control-plane kubelet admin-access manifests addons node-ready bless-boot");
        insta::assert_snapshot!(ids(&all, true), @"etcd load-balancer containerd images control-plane kubelet admin-access manifests addons node-ready bless-boot");
        insta::assert_snapshot!(ids(&[Role::Etcd], true), @"etcd bless-boot");
        insta::assert_snapshot!(ids(&[Role::Master], true), @"load-balancer containerd images control-plane kubelet admin-access manifests addons node-ready bless-boot");
        insta::assert_snapshot!(ids(&[Role::Master], false), @"containerd images control-plane kubelet admin-access manifests addons node-ready bless-boot");
        insta::assert_snapshot!(ids(&[Role::Master, Role::Worker], false), @"containerd images control-plane kubelet admin-access manifests addons node-ready bless-boot");
        insta::assert_snapshot!(ids(&[Role::Master, Role::Etcd], true), @"etcd load-balancer containerd images control-plane kubelet admin-access manifests addons node-ready bless-boot");
        insta::assert_snapshot!(ids(&[Role::Worker], true), @"containerd images join kubelet node-ready bless-boot");
        insta::assert_snapshot!(ids(&[Role::Worker, Role::Etcd], true), @"etcd containerd images join kubelet node-ready bless-boot");
    }
}
