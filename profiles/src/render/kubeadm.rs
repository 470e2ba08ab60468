// SPDX-License-Identifier: MIT OR Apache-2.0
//! kubeadm's configuration, in the format its version writes itself. kubeadm only warns of a field it does not know and
//! goes on without it, so every field here is one of a typed struct; those that a format lacks are `None` for it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{
    CONTAINERD_SOCKET, Context, KUBEADM_CONFIG, NodeFile, RenderError, VOLUME_PLUGINS, etcd, kube_proxy, kubelet, text,
};
use crate::node::{ClusterDns, LoadBalancer, NetworkPlugin, Role};
use crate::version::KubeadmApi;
use crate::yaml;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InitConfiguration {
    api_version: &'static str,
    kind: &'static str,
    bootstrap_tokens: [BootstrapToken; 1],
    #[serde(rename = "localAPIEndpoint")]
    local_api_endpoint: ApiEndpoint,
    node_registration: NodeRegistration,
    /// Since v1beta3.
    #[serde(skip_serializing_if = "Option::is_none")]
    skip_phases: Option<Vec<&'static str>>,
    /// Since v1beta4.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeouts: Option<Timeouts>,
}

/// Has no field for the token: kubeadm makes a random one, and a well-known one cannot be written. Nobody uses it, as
/// nodes join with what their seed carries; so it lives briefly.
#[derive(Serialize)]
struct BootstrapToken {
    description: &'static str,
    ttl: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiEndpoint {
    advertise_address: String,
    bind_port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeRegistration {
    name: String,
    cri_socket: String,
    /// Since v1beta3.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_pull_policy: Option<&'static str>,
    kubelet_extra_args: Args,
    /// `None`: kubeadm's taint for masters. Empty: no taint.
    #[serde(skip_serializing_if = "Option::is_none")]
    taints: Option<[(); 0]>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Timeouts {
    control_plane_component_health_check: String,
    kubelet_health_check: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterConfiguration {
    api_version: &'static str,
    kind: &'static str,
    cluster_name: String,
    kubernetes_version: String,
    control_plane_endpoint: String,
    image_repository: String,
    certificates_dir: &'static str,
    networking: Networking,
    etcd: EtcdChoice,
    api_server: ApiServer,
    controller_manager: ControllerManager,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Networking {
    dns_domain: String,
    pod_subnet: String,
    service_subnet: String,
}

#[derive(Serialize)]
struct EtcdChoice {
    external: ExternalEtcd,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalEtcd {
    endpoints: Vec<String>,
    ca_file: &'static str,
    cert_file: &'static str,
    key_file: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiServer {
    #[serde(rename = "certSANs")]
    cert_sans: Vec<String>,
    /// Until v1beta3; `timeouts` of InitConfiguration took its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_for_control_plane: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ControllerManager {
    extra_args: Args,
}

/// Arguments of a component: a map until v1beta3, a list since v1beta4.
struct Args {
    api: KubeadmApi,
    args: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Arg<'a> {
    name: &'a str,
    value: &'a str,
}

impl Serialize for Args {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.api {
            KubeadmApi::V1Beta2 | KubeadmApi::V1Beta3 => serializer.collect_map(&self.args),
            KubeadmApi::V1Beta4 => serializer.collect_seq(self.args.iter().map(|(name, value)| Arg { name, value })),
        }
    }
}

pub(super) fn file(c: &Context<'_>) -> Result<NodeFile, RenderError> {
    let error = RenderError::yaml(KUBEADM_CONFIG);
    let documents = [
        yaml::to_string(&init(c)).map_err(&error)?,
        yaml::to_string(&cluster(c)).map_err(&error)?,
        yaml::to_string(&kubelet::configuration(c)).map_err(&error)?,
        yaml::to_string(&kube_proxy::configuration(c)).map_err(&error)?,
    ];
    Ok(text(KUBEADM_CONFIG, documents.join("---\n")))
}

pub(super) fn args(c: &Context<'_>) -> Vec<String> {
    match (c.kubernetes.kubeadm_api(), skip_phases(c)) {
        (KubeadmApi::V1Beta2, phases) if !phases.is_empty() => vec![format!("--skip-phases={}", phases.join(","))],
        _ => vec![],
    }
}

fn skip_phases(c: &Context<'_>) -> Vec<&'static str> {
    match c.profile.kubernetes.dns {
        ClusterDns::None => vec!["addon/coredns"],
        ClusterDns::Coredns => vec![],
    }
}

fn api_version(api: KubeadmApi) -> &'static str {
    match api {
        KubeadmApi::V1Beta2 => "kubeadm.k8s.io/v1beta2",
        KubeadmApi::V1Beta3 => "kubeadm.k8s.io/v1beta3",
        KubeadmApi::V1Beta4 => "kubeadm.k8s.io/v1beta4",
    }
}

/// Comma-separated, as kubeadm wants two IP families.
pub(super) fn joined(nets: &[IpNet]) -> String {
    nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",")
}

/// As Go writes durations.
fn timeout(c: &Context<'_>) -> String {
    let seconds = c.profile.kubernetes.control_plane_timeout_seconds;
    format!("{}m{}s", seconds / 60, seconds % 60)
}

fn init(c: &Context<'_>) -> InitConfiguration {
    let (api, node) = (c.kubernetes.kubeadm_api(), &c.profile.node);
    let phases = skip_phases(c);
    let mut kubelet_args =
        BTreeMap::from([("node-ip", c.address().to_string()), ("volume-plugin-dir", VOLUME_PLUGINS.to_owned())]);
    if !node.labels.is_empty() {
        let labels: Vec<String> = node.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        kubelet_args.insert("node-labels", labels.join(","));
    }
    InitConfiguration {
        api_version: api_version(api),
        kind: "InitConfiguration",
        bootstrap_tokens: [BootstrapToken { description: "made by kubeadm init, used by nobody", ttl: "15m0s" }],
        local_api_endpoint: ApiEndpoint {
            advertise_address: c.address().to_string(),
            bind_port: c.profile.kubernetes.apiserver_port,
        },
        node_registration: NodeRegistration {
            name: node.name.clone(),
            // What kubeadm of that version would write itself: a URL since 1.24.
            cri_socket: if c.kubernetes.minor >= 24 {
                format!("unix://{CONTAINERD_SOCKET}")
            } else {
                CONTAINERD_SOCKET.to_owned()
            },
            image_pull_policy: (api != KubeadmApi::V1Beta2).then_some("IfNotPresent"),
            kubelet_extra_args: Args { api, args: kubelet_args },
            taints: c.profile.has(Role::Worker).then_some([]),
        },
        skip_phases: (api != KubeadmApi::V1Beta2 && !phases.is_empty()).then_some(phases),
        timeouts: (api == KubeadmApi::V1Beta4)
            .then(|| Timeouts { control_plane_component_health_check: timeout(c), kubelet_health_check: timeout(c) }),
    }
}

fn cluster(c: &Context<'_>) -> ClusterConfiguration {
    let (api, k, network) = (c.kubernetes.kubeadm_api(), &c.profile.kubernetes, &c.profile.network);
    let mut manager_args = BTreeMap::from([("flex-volume-plugin-dir", VOLUME_PLUGINS.to_owned())]);
    if network.plugin == NetworkPlugin::Bridge {
        // Each node's pod subnet is decided by the cluster file; a second opinion in Node objects would only mislead.
        manager_args.insert("allocate-node-cidrs", "false".to_owned());
    }
    ClusterConfiguration {
        api_version: api_version(api),
        kind: "ClusterConfiguration",
        cluster_name: c.profile.cluster.name.clone(),
        // Without it kubeadm asks the Internet for the current version.
        kubernetes_version: format!("v{}", k.version),
        control_plane_endpoint: k.control_plane_endpoint.clone(),
        image_repository: k.image_repository.clone(),
        certificates_dir: "/etc/kubernetes/pki",
        networking: Networking {
            dns_domain: network.dns_domain.clone(),
            pod_subnet: joined(&network.pod_subnets),
            service_subnet: joined(&network.service_subnets),
        },
        etcd: EtcdChoice {
            external: ExternalEtcd {
                endpoints: etcd::endpoints(c),
                ca_file: "/etc/kubernetes/pki/etcd-external/ca.crt",
                cert_file: "/etc/kubernetes/pki/etcd-external/client.crt",
                key_file: "/etc/kubernetes/pki/etcd-external/client.key",
            },
        },
        api_server: ApiServer {
            cert_sans: cert_sans(c),
            timeout_for_control_plane: (api != KubeadmApi::V1Beta4).then(|| timeout(c)),
        },
        controller_manager: ControllerManager { extra_args: Args { api, args: manager_args } },
    }
}

/// kubeadm adds this node, the service names and the endpoint's host; the other masters and localhost it does not.
fn cert_sans(c: &Context<'_>) -> Vec<String> {
    let mut sans = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    for master in c.peers_with(Role::Master) {
        sans.extend([master.name.clone(), master.address.to_string()]);
    }
    if let LoadBalancer::Keepalived { vip, .. } = c.profile.load_balancer {
        sans.push(vip.to_string());
    }
    for san in &c.profile.kubernetes.cert_sans {
        if !sans.contains(san) {
            sans.push(san.clone());
        }
    }
    sans
}
