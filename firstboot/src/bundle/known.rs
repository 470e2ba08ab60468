// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of hosts: packages and leftovers that are in the way, commands that a node runs, and what it makes.

/// Files of the profile that stay the host's: its network, resolver, time and users. `/etc/hosts` gets a block of ours instead.
pub(super) const LEFT_TO_THE_HOST: [&str; 6] = [
    "/etc/hosts",
    "/etc/localtime",
    "/etc/resolv.conf",
    "/etc/systemd/network/10-node.network",
    "/etc/systemd/timesyncd.conf.d/10-imgbuild.conf",
    "/root/.ssh/authorized_keys",
];

/// Packages that are in the way: those that the guides of Kubernetes distributions have removed from CentOS, Ubuntu and
/// Kylin hosts, under their vendors' names too. A name that ends in `*` is a prefix.
pub(super) const PACKAGES: [&str; 32] = [
    "apptainer",
    "conmon",
    "containerd",
    "containerd.io",
    "containernetworking-plugins",
    "cri-o",
    "cri-tools",
    "crun",
    "docker",
    "docker-ce*",
    "docker-client*",
    "docker-common",
    "docker-engine*",
    "docker-latest*",
    "docker-proxy",
    "docker-runc",
    "docker.io",
    "etcd",
    "etcd-client",
    "etcd-server",
    "iSulad",
    "k3s*",
    "kubeadm",
    "kubectl",
    "kubelet",
    "kubernetes*",
    "moby-*",
    "podman*",
    "rke2*",
    "rkt",
    "rootlesskit",
    "runc",
];

/// The same as snaps.
pub(super) const SNAPS: [&str; 11] = [
    "docker",
    "etcd",
    "k8s",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubeadm",
    "kubectl",
    "kubelet",
    "microk8s",
];

/// Whether a package called `name` is meant by one of `patterns`.
pub(super) fn is_meant(name: &str, patterns: &[&str]) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *pattern,
    })
}

/// Programs that would be found before or beside ours, in the folders below, whoever put them there.
pub(super) const PROGRAMS: [&str; 23] = [
    "containerd",
    "containerd-shim",
    "containerd-shim-runc-v1",
    "containerd-shim-runc-v2",
    "crictl",
    "crio",
    "ctr",
    "docker",
    "dockerd",
    "etcd",
    "etcdctl",
    "firstboot",
    "k3s",
    "kube-apiserver",
    "kube-proxy",
    "kubeadm",
    "kubectl",
    "kubelet",
    "nerdctl",
    "podman",
    "rke2",
    "rkt",
    "runc",
];
pub(super) const PROGRAM_FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// Units of the same, which would run beside ours.
pub(super) const UNITS: [&str; 8] = [
    "containerd.service",
    "crio.service",
    "docker.service",
    "etcd.service",
    "k3s.service",
    "kube-apiserver.service",
    "kube-proxy.service",
    "kubelet.service",
];
pub(super) const UNIT_FOLDERS: [&str; 3] =
    ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];

/// What another cluster or container engine leaves, and what ours makes: must be absent or empty before, and goes afterwards.
pub(super) const OWNED: [&str; 20] = [
    "/etc/cni/net.d",
    "/etc/containerd",
    "/etc/etcd",
    "/etc/imgbuild",
    "/etc/kubernetes",
    "/opt/cni/bin",
    "/opt/imgbuild",
    "/run/containerd",
    "/run/flannel",
    "/run/imgbuild",
    "/run/kubernetes",
    "/var/lib/calico",
    "/var/lib/cni",
    "/var/lib/cni-bin",
    "/var/lib/containerd",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/log/calico",
    "/var/log/containers",
    "/var/log/pods",
];

/// What others leave and ours has no use for.
pub(super) const RESIDUE: [&str; 6] = [
    "/etc/docker",
    "/var/lib/docker",
    "/var/lib/containers",
    "/var/lib/dockershim",
    "/var/lib/rancher",
    "/root/.kube/config",
];

/// Interfaces of pod networks: exact names, or prefixes that end in `*`. Those that came after the installation go with it.
pub(super) const INTERFACES: [&str; 14] = [
    "antrea*",
    "cali*",
    "cilium*",
    "cni0",
    "docker0",
    "flannel*",
    "kube-*",
    "lxc*",
    "nodelocaldns",
    "ovn0",
    "tunl0",
    "vxlan.calico",
    "vxlan-v6.calico",
    "weave*",
];

/// Units that firstboot starts, in the order they are stopped in.
pub(super) const STARTED: [&str; 12] = [
    "firstboot.service",
    "imgbuild-routes.timer",
    "imgbuild-routes.service",
    "etcd-defrag.timer",
    "etcd-defrag.service",
    "kubelet.service",
    "keepalived.service",
    "haproxy.service",
    "containerd.service",
    "opt-cni-bin.mount",
    "etcd.service",
    "imgbuild-masquerade.service",
];

/// A command that a node runs, and the packages that have it: of Debian's family, and of those with RPM packages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needed {
    pub command: &'static str,
    pub deb: &'static str,
    pub rpm: &'static str,
}

const fn needed(command: &'static str, deb: &'static str, rpm: &'static str) -> Needed {
    Needed { command, deb, rpm }
}

/// firstboot itself, on every node.
pub(super) const NEEDED: [Needed; 5] = [
    needed("ip", "iproute2", "iproute"),
    needed("modprobe", "kmod", "kmod"),
    needed("mount", "mount", "util-linux"),
    needed("systemd-tmpfiles", "systemd", "systemd"),
    needed("umount", "mount", "util-linux"),
];
/// An etcd member has a user.
pub(super) const NEEDED_BY_ETCD: [Needed; 2] =
    [needed("useradd", "passwd", "shadow"), needed("userdel", "passwd", "shadow")];
/// kubeadm's preflight where it is an error, and kubelet.
pub(super) const NEEDED_BY_PODS: [Needed; 4] = [
    needed("conntrack", "conntrack", "conntrack-tools"),
    needed("iptables", "iptables", "iptables"),
    needed("iptables-save", "iptables", "iptables"),
    needed("nsenter", "util-linux", "util-linux"),
];
/// The plugin `bridge`.
pub(super) const NEEDED_BY_BRIDGE: [Needed; 1] = [needed("nft", "nftables", "nftables")];
/// Masters behind a virtual address.
pub(super) const NEEDED_BY_BALANCER: [Needed; 3] = [
    needed("curl", "curl", "curl"),
    needed("haproxy", "haproxy", "haproxy"),
    needed("keepalived", "keepalived", "keepalived"),
];

/// Programs that a bundle carries and that may want libraries, with arguments that make them say their version and end.
pub(super) const CARRIED: [(&str, &str); 6] = [
    ("containerd", "--version"),
    ("containerd-shim-runc-v2", "-v"),
    ("ctr", "--version"),
    ("etcd", "--version"),
    ("etcdctl", "version"),
    ("runc", "--version"),
];
/// Of those, what a node with these roles cannot do without.
pub(super) const CARRIED_FOR_PODS: [&str; 4] = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"];
pub(super) const CARRIED_FOR_ETCD: [&str; 2] = ["etcd", "etcdctl"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_prefixes() {
        for name in ["docker-ce-cli", "podman", "podman-docker", "runc", "kubernetes1.31-kubeadm", "containerd.io"] {
            assert!(is_meant(name, &PACKAGES), "{name}");
        }
        // What merely sounds like it: docutils, a library, a D-Bus service.
        for name in ["python3-docker", "libpodman", "runcached", "containers-common", "kubecolor", "etcd-fs"] {
            assert!(!is_meant(name, &PACKAGES), "{name}");
        }
        assert!(is_meant("cali12ab", &INTERFACES) && !is_meant("eth0", &INTERFACES));
        assert!(PACKAGES.is_sorted_by_key(|name| name.to_lowercase()) && OWNED.is_sorted() && PROGRAMS.is_sorted());
    }
}
