// SPDX-License-Identifier: MIT OR Apache-2.0
//! kubelet's unit with kubeadm's drop-in, and its configuration, which kubeadm hands on.

use serde::Serialize;

use super::{CONTAINERD_SOCKET, Context, NodeFile, PAYLOAD_BIN, enabled, ini, line, masquerade, routes, text};
use crate::node::{ClusterDns, NetworkPlugin};

pub(super) fn files(c: &Context<'_>) -> Vec<NodeFile> {
    vec![
        text("/etc/systemd/system/kubelet.service", unit(c)),
        text("/etc/systemd/system/kubelet.service.d/10-kubeadm.conf", drop_in()),
        enabled("kubelet.service", "/etc/systemd/system"),
    ]
}

fn unit(c: &Context<'_>) -> String {
    let mut dependencies = vec![
        line("Description", "kubelet"),
        line("Wants", "network-online.target"),
        line("After", "network-online.target containerd.service"),
    ];
    if c.profile.network.plugin == NetworkPlugin::Bridge {
        dependencies.extend([line("Wants", masquerade::UNIT), line("After", masquerade::UNIT)]);
        dependencies.push(line("Wants", routes::TIMER));
    }
    // kubeadm writes it and starts kubelet; until then there is nothing to run.
    dependencies.push(line("ConditionPathExists", "/var/lib/kubelet/config.yaml"));
    dependencies.push(line("StartLimitIntervalSec", "0"));
    ini(&[
        ("Unit", dependencies),
        (
            "Service",
            vec![
                line("ExecStart", format!("{PAYLOAD_BIN}/kubelet")),
                line("Restart", "always"),
                line("RestartSec", "10"),
            ],
        ),
        ("Install", vec![line("WantedBy", "multi-user.target")]),
    ])
}

/// The names of the variables are an interface: kubeadm writes KUBELET_KUBEADM_ARGS.
fn drop_in() -> String {
    ini(&[(
        "Service",
        vec![
            line(
                "Environment",
                "\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
                 --kubeconfig=/etc/kubernetes/kubelet.conf\"",
            ),
            line("Environment", "\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\""),
            line("EnvironmentFile", "-/var/lib/kubelet/kubeadm-flags.env"),
            line("EnvironmentFile", "-/etc/default/kubelet"),
            line("ExecStart", ""),
            line(
                "ExecStart",
                format!(
                    "{PAYLOAD_BIN}/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS \
                     $KUBELET_EXTRA_ARGS"
                ),
            ),
        ],
    )])
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KubeletConfiguration {
    api_version: &'static str,
    kind: &'static str,
    /// Where kubelet serves: everything, of both families, on a node with IPv6; else its default.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'static str>,
    authentication: Authentication,
    authorization: Authorization,
    cgroup_driver: &'static str,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<String>,
    cluster_domain: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_runtime_endpoint: Option<String>,
    eviction_hard: EvictionHard,
    fail_swap_on: bool,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: u32,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: u32,
    read_only_port: u16,
    resolv_conf: &'static str,
    rotate_certificates: bool,
    #[serde(rename = "serverTLSBootstrap")]
    server_tls_bootstrap: bool,
    static_pod_path: &'static str,
}

#[derive(Serialize)]
struct Authentication {
    anonymous: Enabled,
    webhook: Enabled,
    x509: X509,
}

#[derive(Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Serialize)]
struct X509 {
    #[serde(rename = "clientCAFile")]
    client_ca_file: &'static str,
}

#[derive(Serialize)]
struct Authorization {
    mode: AuthorizationMode,
}

/// kubelet knows these spellings and no other.
#[derive(Serialize)]
enum AuthorizationMode {
    Webhook,
}

#[derive(Serialize)]
struct EvictionHard {
    #[serde(rename = "imagefs.available")]
    imagefs_available: &'static str,
    #[serde(rename = "memory.available")]
    memory_available: &'static str,
    #[serde(rename = "nodefs.available")]
    nodefs_available: &'static str,
    #[serde(rename = "nodefs.inodesFree")]
    nodefs_inodes_free: &'static str,
}

pub(super) fn configuration(c: &Context<'_>) -> KubeletConfiguration {
    // Images and pods share one filesystem. When it is nearly full, kubelet deletes all images that no container uses, and only then
    // evicts pods (pkg/kubelet/eviction/helpers.go, buildSignalToNodeReclaimFuncs). It spares pinned ones, as firstboot makes them;
    // where that does not work, a full disk, which can be emptied, is better than images that are gone.
    let pinned = c.kubernetes.spares_pinned_images() && c.containerd.pins_by_label();
    let disk = if pinned { "5%" } else { "0%" };
    KubeletConfiguration {
        api_version: "kubelet.config.k8s.io/v1beta1",
        kind: "KubeletConfiguration",
        address: c.has_v6().then_some("::"),
        authentication: Authentication {
            anonymous: Enabled { enabled: false },
            webhook: Enabled { enabled: true },
            x509: X509 { client_ca_file: "/etc/kubernetes/pki/ca.crt" },
        },
        authorization: Authorization { mode: AuthorizationMode::Webhook },
        cgroup_driver: "systemd",
        // Without a cluster DNS an empty list, not an absent one, which kubeadm would fill in: pods then use the
        // room's servers instead of an address where nobody answers.
        cluster_dns: match c.profile.kubernetes.dns {
            ClusterDns::Coredns => dns_address(c).into_iter().collect(),
            ClusterDns::None => vec![],
        },
        cluster_domain: c.profile.network.dns_domain.clone(),
        // The field exists since 1.27; before, kubeadm passes the flag.
        container_runtime_endpoint: (c.kubernetes.minor >= 27).then(|| format!("unix://{CONTAINERD_SOCKET}")),
        // Images cannot be pulled again: kubelet must never make room by deleting them. 100 switches the collection
        // off, "0%" an eviction that would run it.
        eviction_hard: EvictionHard {
            imagefs_available: "0%",
            memory_available: "100Mi",
            nodefs_available: disk,
            nodefs_inodes_free: disk,
        },
        fail_swap_on: true,
        image_gc_high_threshold_percent: 100,
        image_gc_low_threshold_percent: 80,
        read_only_port: 0,
        resolv_conf: "/etc/resolv.conf",
        rotate_certificates: true,
        server_tls_bootstrap: false,
        static_pod_path: "/etc/kubernetes/manifests",
    }
}

/// kubeadm's choice for the cluster DNS: the tenth address of the first service subnet.
fn dns_address(c: &Context<'_>) -> Option<String> {
    c.profile.network.service_subnets.first().map(|net| match net.network() {
        std::net::IpAddr::V4(v4) => std::net::Ipv4Addr::from(v4.to_bits().wrapping_add(10)).to_string(),
        std::net::IpAddr::V6(v6) => std::net::Ipv6Addr::from(v6.to_bits().wrapping_add(10)).to_string(),
    })
}
