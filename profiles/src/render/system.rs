// SPDX-License-Identifier: MIT OR Apache-2.0
//! The node's name, kernel modules, kernel settings, and what a person's shell needs.

use super::{Context, NodeFile, PAYLOAD_BIN, symlink, text};
use crate::node::{ProxyMode, Role};

pub(super) fn files(c: &Context<'_>) -> Vec<NodeFile> {
    let mut files = vec![
        text("/etc/hostname", format!("{}\n", c.profile.node.name)),
        text("/etc/hosts", hosts(c)),
        text("/etc/modules-load.d/imgbuild.conf", modules(c)),
        text("/etc/sysctl.d/90-imgbuild.conf", sysctl(c)),
        // kubelet refuses to run beside swap; systemd finds swap partitions by itself.
        symlink("/etc/systemd/system/swap.target", "/dev/null"),
    ];
    if c.runs_pods() {
        files.push(text("/etc/profile.d/imgbuild.sh", shell(c)));
    }
    files
}

fn hosts(c: &Context<'_>) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\n");
    for peer in &c.profile.peers {
        for address in peer.addresses() {
            text += &format!("{address} {}\n", peer.name);
        }
    }
    text
}

fn modules(c: &Context<'_>) -> String {
    let mut modules = Vec::new();
    if c.runs_pods() {
        // Without br_netfilter the keys net.bridge.* do not exist, and kubeadm 1.32 no longer checks.
        modules.extend(["overlay", "br_netfilter", "nf_conntrack"]);
        match c.profile.kubernetes.proxy_mode {
            ProxyMode::Iptables => {}
            ProxyMode::Ipvs => modules.extend(["ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_sh"]),
            ProxyMode::Nftables => modules.push("nf_tables"),
        }
    }
    modules.iter().map(|module| format!("{module}\n")).collect()
}

fn sysctl(c: &Context<'_>) -> String {
    let mut settings: Vec<(&str, u32)> = vec![
        // A node that oopses is better gone and back than half alive; kubelet sets these as well.
        ("kernel.panic", 10),
        ("kernel.panic_on_oops", 1),
    ];
    if c.runs_pods() {
        settings.extend([
            ("fs.inotify.max_user_instances", 8192),
            ("fs.inotify.max_user_watches", 524_288),
            ("net.bridge.bridge-nf-call-ip6tables", 1),
            ("net.bridge.bridge-nf-call-iptables", 1),
            ("net.ipv4.ip_forward", 1),
            // Here and not in kube-proxy, which would take it from the number of processors.
            ("net.netfilter.nf_conntrack_max", 262_144),
            ("vm.max_map_count", 262_144),
            ("vm.overcommit_memory", 1),
        ]);
        if c.has_v6() {
            settings.extend([("net.ipv6.conf.all.forwarding", 1), ("net.ipv6.conf.default.forwarding", 1)]);
        }
    }
    settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
}

fn shell(c: &Context<'_>) -> String {
    let mut text = format!("export PATH=\"{PAYLOAD_BIN}:$PATH\"\n");
    if c.profile.has(Role::Master) {
        text += "if [ -r /etc/kubernetes/admin.conf ]; then export KUBECONFIG=/etc/kubernetes/admin.conf; fi\n";
    }
    text
}
