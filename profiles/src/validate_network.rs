// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks of addresses and subnets: what overlaps, what lies outside, what no machine can have.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::decode::Decoder;
use crate::schema::{Cluster, LoadBalancerSection, NetworkPlugin, Role};
use crate::sections::is_dns_name;

const SUBNET: &str = "network.node_subnet";
const SECONDARY: &str = "network.secondary_node_subnet";
/// Where a node finds the manifests that masters apply.
const MANIFESTS: &str = "/opt/imgbuild/manifests/";

/// Runs every check of addresses.
pub(crate) fn cluster(c: &Cluster, d: &mut Decoder) {
    subnets(c, d);
    families(c, d);
    pods(c, d);
    calico(c, d);
    servers(c, d);
    addresses(c, d);
    load_balancer(c, d);
    interfaces(c, d);
}

/// Every subnet of the file with its key and its name for messages.
fn all_subnets(c: &Cluster) -> Vec<(String, &'static str, IpNet)> {
    let list = |name: &str, what, nets: &[IpNet]| -> Vec<_> {
        nets.iter().enumerate().map(|(i, net)| (format!("network.{name}[{i}]"), what, *net)).collect()
    };
    let mut all = vec![(SUBNET.to_owned(), "node", c.network.node_subnet)];
    all.extend(c.network.secondary_node_subnet.map(|net| (SECONDARY.to_owned(), "secondary node", net)));
    all.extend(list("pod_subnets", "pod", &c.network.pod_subnets));
    all.extend(list("service_subnets", "service", &c.network.service_subnets));
    all
}

/// kubeadm's and kube-controller-manager's limit: the difference of the two prefix lengths.
const MOST_SHARE_BITS: u8 = 16;

fn subnets(c: &Cluster, d: &mut Decoder) {
    let all = all_subnets(c);
    for (index, (key, what, net)) in all.iter().enumerate() {
        for (other_key, other_what, other) in &all[..index] {
            if net.contains(other) || other.contains(net) {
                d.report(
                    &[key, other_key],
                    format!("the {what} subnet {net} overlaps the {other_what} subnet {other}"),
                    "an address in both would lead to two places",
                    "choose subnets that share no address",
                );
            }
        }
        if let Some(reason) = unusable(net.addr()) {
            d.report(&[key], format!("the {what} subnet {net} is {reason}"), "", "choose an ordinary private subnet");
        }
    }
    for (key, what, nets) in [
        ("network.pod_subnets", "pod", &c.network.pod_subnets),
        ("network.service_subnets", "service", &c.network.service_subnets),
    ] {
        let families: Vec<bool> = nets.iter().map(|net| is_v6(net.addr())).collect();
        if families.is_empty() {
            d.report(&[key], format!("there is no {what} subnet"), "", "give one per IP family");
        } else if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
            d.report(&[key], format!("two {what} subnets are of one IP family"), "", "give one per IP family");
        } else if families.len() == 2 && !c.kubernetes.version.has_dual_stack() {
            let what = format!("Kubernetes {} cannot use two IP families", c.kubernetes.version);
            d.report(&[key, "kubernetes.version"], what, "it can since 1.21", "give one subnet");
        }
        if families.first().is_some_and(|v6| *v6 != is_v6(c.network.node_subnet.addr())) {
            let what = format!("the first {what} subnet is of another IP family than the node subnet");
            d.report(
                &[key, SUBNET],
                what,
                "the API server and kubelet use the family of the node's address",
                "put the other family first",
            );
        }
    }
    service_sizes(c, d);
}

fn service_sizes(c: &Cluster, d: &mut Decoder) {
    for (index, net) in c.network.service_subnets.iter().enumerate() {
        let key = format!("network.service_subnets[{index}]");
        let host_bits = net.max_prefix_len() - net.prefix_len();
        if host_bits > 20 {
            let prefix = net.max_prefix_len() - 20;
            d.report(
                &[&key],
                format!("the service subnet {net} is too large"),
                "the API server refuses more than 20 bits",
                format!("use /{prefix} or less"),
            );
        } else if host_bits < 4 {
            d.report(
                &[&key],
                format!("the service subnet {net} is too small"),
                "the cluster DNS has its 10th address",
                "use a larger one",
            );
        }
    }
}

/// Pods, services and nodes are of the same IP families, in the same order.
fn families(c: &Cluster, d: &mut Decoder) {
    let network = &c.network;
    let (pods, services) = (network.pod_subnets.len(), network.service_subnets.len());
    if pods != services {
        d.report(
            &["network.service_subnets", "network.pod_subnets"],
            "pods and services do not have the same IP families",
            "a service of a family that no pod has leads nowhere",
            "give both one subnet, or both one of each family",
        );
    }
    let dual = pods > 1 || services > 1;
    match network.secondary_node_subnet {
        None if dual => d.report(
            &[SECONDARY, "network.pod_subnets", "network.service_subnets"],
            "pods or services have two IP families, but the nodes have one",
            "kubelet gives pods the families that its node has addresses of",
            "add `secondary_node_subnet` to `[network]`, and `secondary_address` to every node",
        ),
        Some(_) if !dual => d.report(
            &[SECONDARY, "network.pod_subnets", "network.service_subnets"],
            "the nodes have two IP families, but pods and services have one",
            "nothing would use the second",
            "drop it with the nodes' `secondary_address`, or give pods and services two subnets each",
        ),
        Some(subnet) if is_v6(subnet.addr()) == is_v6(network.node_subnet.addr()) => d.report(
            &[SECONDARY, SUBNET],
            format!("the secondary node subnet {subnet} is of the same IP family as the node subnet"),
            "it is there for the other family",
            "give one of the other family, or drop it",
        ),
        _ => {}
    }
}

/// Prefix length of a node's share of a pod subnet; kube-controller-manager's default too.
pub(crate) fn share_prefix(net: &IpNet) -> u8 {
    if is_v6(net.addr()) { 64 } else { 24 }
}

fn pods(c: &Cluster, d: &mut Decoder) {
    for (index, net) in c.network.pod_subnets.iter().enumerate() {
        let share = share_prefix(net);
        let shares = share.checked_sub(net.prefix_len()).map(|bits| 1u128 << bits);
        if shares.is_none_or(|shares| shares < c.node.len() as u128) {
            let nodes = if c.node.len() == 1 { "one node".to_owned() } else { format!("{} nodes", c.node.len()) };
            d.report(
                &[&format!("network.pod_subnets[{index}]"), "node"],
                format!("the pod subnet {net} is too small for {nodes}"),
                format!("each node gets a /{share} of it"),
                "use a larger one",
            );
        }
        // With `bridge` kubeadm shares out nothing, and so has no opinion.
        if c.network.plugin != NetworkPlugin::Bridge && shares.is_some_and(|shares| shares > 1 << MOST_SHARE_BITS) {
            d.report(
                &[&format!("network.pod_subnets[{index}]"), "network.plugin"],
                format!("the pod subnet {net} is too large"),
                format!("kubeadm refuses one of more than {} shares", 1u32 << MOST_SHARE_BITS),
                format!("use /{} or less", share - MOST_SHARE_BITS),
            );
        }
    }
    if c.network.plugin == NetworkPlugin::Bridge && c.network.pod_subnets.len() > 1 {
        d.report(
            &["network.pod_subnets", "network.plugin"],
            "the plugin \"bridge\" serves a single pod subnet",
            "it is for small clusters: one static route from node to node",
            "give one, or choose another plugin",
        );
    }
}

fn calico(c: &Cluster, d: &mut Decoder) {
    if c.network.plugin != NetworkPlugin::Calico {
        if c.network.calico.is_some() {
            d.report(
                &["network.calico", "network.plugin"],
                "`[network.calico]` is there, but the plugin is another",
                "nothing would read it",
                "drop it, or write `plugin = \"calico\"`",
            );
        }
        return;
    }
    if let Some(index) = c.network.pod_subnets.iter().position(|net| is_v6(net.addr())) {
        d.report(
            &[&format!("network.pod_subnets[{index}]"), "network.plugin"],
            "the plugin \"calico\" serves IPv4 alone",
            "for IPv6 more of Calico's manifest must change than imgbuild sets in it",
            "give one subnet of IPv4, or set the manifest up yourself and write `plugin = \"manifest\"`",
        );
    } else if !c.files().any(|file| file.to.starts_with(MANIFESTS)) {
        d.report(
            &["network.plugin", "input"],
            format!("the plugin is \"calico\", but no input is put below {MANIFESTS}"),
            "Calico comes as a manifest",
            format!(
                "add the `calico.yaml` of a release as an input of kind \"file\", `to = \"{MANIFESTS}10-calico.yaml\"`"
            ),
        );
    }
}

fn servers(c: &Cluster, d: &mut Decoder) {
    if let Some(gateway) = c.network.gateway {
        inside(d, "network.gateway", "the gateway", gateway, c);
    }
    for (index, server) in c.network.dns_servers.iter().enumerate() {
        let key = format!("network.dns_servers[{index}]");
        if let Some(reason) = unusable(*server) {
            let why = "pods use this server too, from their own network";
            d.report(&[&key], format!("the DNS server {server} is {reason}"), why, "name a server of the room");
        }
        let inside = |(_, what, net): &(String, &str, IpNet)| ["pod", "service"].contains(what) && net.contains(server);
        for (subnet_key, what, net) in all_subnets(c).into_iter().filter(inside) {
            d.report(
                &[&key, &subnet_key],
                format!("the DNS server {server} lies in the {what} subnet {net}"),
                "no node could reach it",
                "",
            );
        }
    }
    if !is_dns_name(&c.network.dns_domain) {
        let what = format!("\"{}\" is not a DNS domain", c.network.dns_domain);
        d.report(&["network.dns_domain"], what, "", "write it like \"cluster.local\"");
    }
    let names = [("network.ntp_servers", &c.network.ntp_servers), ("kubernetes.cert_sans", &c.kubernetes.cert_sans)];
    for (key, values) in names {
        for (index, value) in values.iter().enumerate() {
            if value.parse::<IpAddr>().is_err() && !is_dns_name(value.strip_prefix("*.").unwrap_or(value)) {
                let what = format!("\"{value}\" is neither a name nor an IP address");
                d.report(&[&format!("{key}[{index}]")], what, "", "names are lower case, as RFC 1123 has them");
            }
        }
    }
}

fn addresses(c: &Cluster, d: &mut Decoder) {
    for (index, node) in c.node.iter().enumerate() {
        let key = format!("node[{index}].address");
        inside(d, &key, &format!("the address of node `{}`", node.name), node.address, c);
        secondary(d, index, c);
        if c.network.gateway == Some(node.address) {
            let what = format!("node `{}` has the address of the gateway, {}", node.name, node.address);
            d.report(&[&key, "network.gateway"], what, "", "give each its own");
        }
    }
}

fn secondary(d: &mut Decoder, index: usize, c: &Cluster) {
    let (node, key) = (&c.node[index], format!("node[{index}].secondary_address"));
    match (node.secondary_address, c.network.secondary_node_subnet) {
        (None, None) => {}
        (Some(address), Some(net)) => {
            let what = format!("the secondary address of node `{}`", node.name);
            inside_net(d, &key, &what, address, (SECONDARY, net));
        }
        (None, Some(net)) => d.report(
            &[&key, SECONDARY],
            format!("node `{}` has no `secondary_address`", node.name),
            "in a cluster of two IP families every node has an address of each",
            format!("give it one in {net}"),
        ),
        (Some(_), None) => d.report(
            &[&key, SECONDARY],
            format!("node `{}` has a `secondary_address`, but there is no subnet for it", node.name),
            "the prefix length comes from the subnet",
            "add `secondary_node_subnet` to `[network]`, or drop the address",
        ),
    }
}

/// Reports an address that no machine on the node network can have.
fn inside(d: &mut Decoder, key: &str, what: &str, address: IpAddr, c: &Cluster) {
    inside_net(d, key, what, address, (SUBNET, c.network.node_subnet));
}

fn inside_net(d: &mut Decoder, key: &str, what: &str, address: IpAddr, (subnet, net): (&str, IpNet)) {
    if let Some(reason) = unusable(address) {
        d.report(&[key], format!("{what}, {address}, is {reason}"), "", format!("choose one in {net}"));
    } else if !net.contains(&address) {
        let why = "nodes reach it directly or not at all";
        d.report(
            &[key, subnet],
            format!("{what}, {address}, is outside the node subnet {net}"),
            why,
            format!("choose one in {net}"),
        );
    } else if net.prefix_len() + 1 < net.max_prefix_len()
        && (address == net.network() || (!is_v6(address) && address == net.broadcast()))
    {
        let what = format!("{what}, {address}, is the first or last address of {net}");
        d.report(&[key, subnet], what, "those mean the network itself and everyone in it", "choose another");
    }
}

fn load_balancer(c: &Cluster, d: &mut Decoder) {
    let LoadBalancerSection::Keepalived { vip, port, check_interval, .. } = c.load_balancer else { return };
    if check_interval.subsec_millis() != 0 || !(1..=60).contains(&check_interval.as_secs()) {
        d.report(
            &["load_balancer.check_interval"],
            format!("the check interval {check_interval:?} is not a whole number of seconds from 1 to 60"),
            "keepalived counts in seconds",
            "write it like \"2s\"",
        );
    }
    inside(d, "load_balancer.vip", "the virtual address", vip, c);
    for (index, node) in c.node.iter().enumerate().filter(|(_, node)| node.address == vip) {
        let what = format!("the virtual address {vip} is the address of node `{}`", node.name);
        d.report(
            &["load_balancer.vip", &format!("node[{index}].address")],
            what,
            "it moves from master to master and belongs to none",
            "choose an address no machine has",
        );
    }
    if c.network.gateway == Some(vip) {
        d.report(
            &["load_balancer.vip", "network.gateway"],
            format!("the virtual address {vip} is the gateway"),
            "",
            "choose an address no machine has",
        );
    }
    if port == c.kubernetes.apiserver_port {
        d.report(
            &["load_balancer.port", "kubernetes.apiserver_port"],
            format!("haproxy and the API server would both bind port {port}"),
            "they run on the same machines, and kubeadm refuses a port in use",
            "use 8443 for `load_balancer.port` and 6443 for `kubernetes.apiserver_port`",
        );
    }
    for (key, port) in [("load_balancer.port", port), ("kubernetes.apiserver_port", c.kubernetes.apiserver_port)] {
        if [22, 2379, 2380, 2381, 10248, 10249, 10250, 10256, 10257, 10259].contains(&port) {
            d.report(&[key], format!("port {port} is taken by another part of the node"), "", "use 8443 or 6443");
        }
    }
}

fn interfaces(c: &Cluster, d: &mut Decoder) {
    if !matches!(c.load_balancer, LoadBalancerSection::Keepalived { .. }) {
        return;
    }
    for (index, node) in c.node.iter().enumerate() {
        if node.roles.contains(&Role::Master) && node.interface.is_none() {
            d.report(
                &[&format!("node[{index}].interface")],
                format!("master `{}` has no `interface`", node.name),
                "keepalived must be told which interface carries the virtual address",
                "add `interface = \"eth0\"`, or whatever the machine calls it",
            );
        }
    }
}

/// Why no interface of a node can have this address.
fn unusable(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if link_local => Some("a link-local address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        _ => None,
    }
}

fn is_v6(address: IpAddr) -> bool {
    address.is_ipv6()
}
