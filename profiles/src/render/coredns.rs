// SPDX-License-Identifier: MIT OR Apache-2.0
//! CoreDNS in a room without a DNS server.
//!
//! kubeadm's Corefile hands every name that is not the cluster's to the servers of the node's /etc/resolv.conf. With none
//! in it, CoreDNS says "plugin/forward: no nameservers found" and ends, again and again. So there it gets a configuration
//! that asks nobody, in place of kubeadm's, which leaves it as it is at upgrades. A CoreDNS that was quicker than firstboot
//! reads it when it is started again.

use serde::Serialize;

use super::{Context, MANIFESTS_DIR, NodeFile, RenderError, text};
use crate::node::{ClusterDns, Role};
use crate::yaml;

const FILE: &str = "10-coredns.yaml";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMap {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    data: Data,
}

/// Where kubeadm has it.
#[derive(Serialize)]
struct Metadata {
    name: &'static str,
    namespace: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    corefile: String,
}

pub(super) fn file(c: &Context<'_>) -> Result<Option<NodeFile>, RenderError> {
    let profile = c.profile;
    let asks_nobody = profile.kubernetes.dns == ClusterDns::Coredns && profile.network.dns_servers.is_empty();
    if !asks_nobody || !profile.has(Role::Master) {
        return Ok(None);
    }
    let map = ConfigMap {
        api_version: "v1",
        kind: "ConfigMap",
        metadata: Metadata { name: "coredns", namespace: "kube-system" },
        data: Data { corefile: corefile(&profile.network.dns_domain) },
    };
    let yaml = yaml::to_string(&map).map_err(RenderError::yaml(FILE))?;
    Ok(Some(text(&format!("{MANIFESTS_DIR}{FILE}"), yaml)))
}

/// Names of the cluster and addresses from the API server, as in kubeadm's Corefile. Nobody knows any other name, and
/// that is said at once: without the second block they would be refused, which resolvers of musl take for no answer and
/// wait. Without anybody to forward to there is no loop to detect.
fn corefile(domain: &str) -> String {
    format!(
        "\
{domain}:53 in-addr.arpa:53 ip6.arpa:53 {{
    errors
    health {{
        lameduck 5s
    }}
    ready
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        pods insecure
        ttl 30
    }}
    prometheus :9153
    cache 30
    reload
    loadbalance
}}
.:53 {{
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"
    )
}
