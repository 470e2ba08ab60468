// SPDX-License-Identifier: MIT OR Apache-2.0
//! systemd-networkd, the resolver, and time servers.

use ipnet::IpNet;

use super::{Context, NodeFile, ini, line, text};

pub(super) fn files(c: &Context<'_>) -> Vec<NodeFile> {
    let network = &c.profile.network;
    let mut files = vec![
        text("/etc/systemd/network/10-node.network", node_network(c)),
        // By default networkd removes every route it did not make: those of pods too.
        text(
            "/etc/systemd/networkd.conf.d/10-imgbuild.conf",
            ini(&[("Network", vec![line("ManageForeignRoutes", "no"), line("ManageForeignRoutingPolicyRules", "no")])]),
        ),
        // networkd hands DNS servers to resolved alone, which is not installed. kubelet needs the file, if only empty.
        text(
            "/etc/resolv.conf",
            network.dns_servers.iter().map(|server| format!("nameserver {server}\n")).collect::<String>(),
        ),
    ];
    if !network.ntp_servers.is_empty() {
        let servers = line("NTP", network.ntp_servers.join(" "));
        files.push(text("/etc/systemd/timesyncd.conf.d/10-imgbuild.conf", ini(&[("Time", vec![servers])])));
    }
    files
}

fn node_network(c: &Context<'_>) -> String {
    let node = &c.profile.node;
    let matches = match (&node.mac, &node.interface) {
        // A bridge or VLAN takes over the MAC address of its interface: the kind keeps it out.
        (Some(mac), _) => vec![line("MACAddress", mac), line("Kind", "!*")],
        (None, Some(interface)) => vec![line("Name", interface)],
        // Only real interfaces have no kind; the ends of containers' cables are of type ether too.
        (None, None) => vec![line("Type", "ether"), line("Kind", "!*")],
    };
    let mut lines: Vec<_> = node.addresses().map(|address| line("Address", address)).collect();
    lines.extend([
        line("DHCP", "no"),
        line("IPv6AcceptRA", "no"),
        // A restart of networkd must not cut kubelet's and etcd's connections.
        line("KeepConfiguration", "static"),
    ]);
    lines.extend(c.profile.network.gateway.map(|gateway| line("Gateway", gateway)));
    let mut sections = vec![("Match", matches), ("Network", lines)];
    if c.runs_pods() {
        // The kernel looks for a route before kube-proxy's rules see the packet. Without a default route there is none to
        // a service, and connections from the node itself would fail at once.
        let has_default = |subnet: &IpNet| c.profile.network.gateway.is_some_and(|via| via.is_ipv6() == is_v6(subnet));
        for subnet in c.profile.network.service_subnets.iter().filter(|subnet| !has_default(subnet)) {
            sections.push(("Route", vec![line("Destination", subnet)]));
        }
        for peer in c.profile.peers.iter().filter(|peer| peer.name != node.name) {
            // With the plugin bridge, other nodes' pods are behind those nodes. Machines without pods need no route.
            // `firstboot routes` adds those of nodes that the cluster file gets later.
            let has_pods = peer.roles.iter().any(|role| *role != crate::node::Role::Etcd);
            if let Some(subnet) = peer.pod_subnet.filter(|_| has_pods) {
                sections.push(("Route", vec![line("Destination", subnet), line("Gateway", peer.address)]));
            }
        }
    }
    ini(&sections)
}

fn is_v6(subnet: &IpNet) -> bool {
    subnet.addr().is_ipv6()
}
