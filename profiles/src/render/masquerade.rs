// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plugin `bridge`: which packets of pods leave with the address of their node. CNI's own `ipMasq` would take all
//! that leave the node, and every pod would see nodes in place of the pods that call it.

use super::{Context, NodeFile, RenderError, ini, line, text};
use crate::node::Role;

/// kubelet wants it, so that it is there before the first pod.
pub(super) const UNIT: &str = "imgbuild-masquerade.service";
const RULES: &str = "/etc/imgbuild/masquerade.nft";

pub(super) fn files(c: &Context<'_>) -> Result<Vec<NodeFile>, RenderError> {
    Ok(vec![text(RULES, rules(c)?), text(&format!("/etc/systemd/system/{UNIT}"), unit())])
}

/// Pods and the nodes that run pods have routes to each other's pod subnets. Everyone else has no way back to a pod: the
/// world outside, the room's servers, machines that are etcd members alone.
///
/// A table of our own, replaced as a whole: kube-proxy's rules stay as they are, and have the first word.
fn rules(c: &Context<'_>) -> Result<String, RenderError> {
    let own = c.profile.node.pod_subnet.ok_or(RenderError::Invalid("pod subnet of this node"))?;
    let (family, multicast) = if own.addr().is_ipv6() { ("ip6", "ff00::/8") } else { ("ip", "224.0.0.0/4") };
    let mut direct: Vec<String> = c.profile.network.pod_subnets.iter().map(ToString::to_string).collect();
    direct.push(multicast.to_owned());
    let with_pods = c.profile.peers.iter().filter(|peer| peer.roles.iter().any(|role| *role != Role::Etcd));
    direct.extend(with_pods.map(|peer| peer.address.to_string()));
    let direct = direct.join(",\n            ");
    Ok(format!(
        "\
# Written by imgbuild; changes are lost.
# The first line is for the second to have something to delete.
table {family} imgbuild
delete table {family} imgbuild
table {family} imgbuild {{
    chain postrouting {{
        type nat hook postrouting priority srcnat + 10; policy accept;
        {family} saddr != {own} accept
        {family} daddr {{
            {direct}
        }} accept
        masquerade
    }}
}}
"
    ))
}

fn unit() -> String {
    ini(&[
        ("Unit", vec![line("Description", "Masquerading of pods"), line("Before", "kubelet.service")]),
        (
            "Service",
            vec![
                line("Type", "oneshot"),
                line("RemainAfterExit", "yes"),
                line("ExecStart", format!("/usr/sbin/nft -f {RULES}")),
            ],
        ),
    ])
}
