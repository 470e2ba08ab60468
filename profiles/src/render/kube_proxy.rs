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
    mode: ProxyMode,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Conntrack {
    max_per_core: u32,
    min: u32,
}

pub(super) fn configuration(c: &Context<'_>) -> KubeProxyConfiguration {
    KubeProxyConfiguration {
        api_version: "kubeproxy.config.k8s.io/v1alpha1",
        kind: "KubeProxyConfiguration",
        cluster_cidr: super::kubeadm::joined(&c.profile.network.pod_subnets),
        // Zero leaves the kernel's table alone: /etc/sysctl.d sets it, the same on every machine.
        conntrack: Conntrack { max_per_core: 0, min: 0 },
        mode: c.profile.kubernetes.proxy_mode,
    }
}
