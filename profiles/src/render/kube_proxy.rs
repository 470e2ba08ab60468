// SPDX-License-Identifier: MIT OR Apache-2.0
//! kube-proxy's configuration, which kubeadm hands on.

use serde::Serialize;

use super::Context;
use crate::node::ProxyMode;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KubeProxyConfiguration {
    api_version: &'static str,
    kind: &'static str,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    conntrack: Conntrack,
    #[serde(skip_serializing_if = "Option::is_none")]
    iptables: Option<Rules>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipvs: Option<Rules>,
    mode: ProxyMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    nftables: Option<Rules>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Conntrack {
    max_per_core: u32,
    min: u32,
}

/// What the modes have in common.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rules {
    sync_period: String,
}

pub(super) fn configuration(c: &Context<'_>) -> KubeProxyConfiguration {
    let kubernetes = &c.profile.kubernetes;
    let rules = |mode| {
        let period = kubernetes.proxy_sync_period_seconds.filter(|_| mode == kubernetes.proxy_mode)?;
        Some(Rules { sync_period: format!("{period}s") })
    };
    KubeProxyConfiguration {
        api_version: "kubeproxy.config.k8s.io/v1alpha1",
        kind: "KubeProxyConfiguration",
        cluster_cidr: super::kubeadm::joined(&c.profile.network.pod_subnets),
        // Zero leaves the kernel's table alone: /etc/sysctl.d sets it, the same on every machine.
        conntrack: Conntrack { max_per_core: 0, min: 0 },
        iptables: rules(ProxyMode::Iptables),
        ipvs: rules(ProxyMode::Ipvs),
        mode: kubernetes.proxy_mode,
        nftables: rules(ProxyMode::Nftables),
    }
}
