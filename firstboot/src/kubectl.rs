// SPDX-License-Identifier: MIT OR Apache-2.0
//! Asks the API server through `kubectl`: firstboot itself speaks no TLS.

use crate::runner::Command;

/// The administrator's access, which masters have.
pub const ADMINS_CONFIG: &str = "/etc/kubernetes/admin.conf";
/// kubelet's access, which lets kubectl act as this node: read Nodes, write its own. A join's kubelet makes it, once it has
/// its certificate.
pub const KUBELETS_CONFIG: &str = "/etc/kubernetes/kubelet.conf";

/// kubectl with a kubeconfig of this node.
pub fn with(kubeconfig: &str, args: &[impl AsRef<str>]) -> Command {
    let mut all = vec![format!("--kubeconfig={kubeconfig}"), "--request-timeout=30s".to_owned()];
    all.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
    Command::new("kubectl", all).timeout(60)
}

/// kubectl as the administrator.
pub fn as_admin(args: &[impl AsRef<str>]) -> Command {
    with(ADMINS_CONFIG, args)
}

/// kubectl as this node.
pub fn as_node(args: &[impl AsRef<str>]) -> Command {
    with(KUBELETS_CONFIG, args)
}

/// What asks for a Node: one request, where `kubectl get node` first asks for all that the API server offers, in
/// dozens of requests, and believes what an API server said while it was starting ("no resource type nodes") for
/// ten minutes.
pub fn get_node(name: &str) -> [String; 3] {
    ["get".to_owned(), "--raw".to_owned(), format!("/api/v1/nodes/{name}")]
}
