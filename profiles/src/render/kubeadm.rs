// SPDX-License-Identifier: MIT OR Apache-2.0
//! kubeadm's configuration, in the format its version writes itself. kubeadm only warns of a field it does not know and
//! goes on without it, so every field here is one of a typed struct; those that a format lacks are `None` for it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{
    CONTAINERD_SOCKET, Context, DISCOVERY_CONFIG, KUBEADM_CONFIG, KUBEADM_JOIN_CONFIG, KUBEADM_PATCHES, KubeadmArgs,
    NodeFile, RenderError, VOLUME_PLUGINS, etcd, kube_proxy, kubelet, probes, text,
};
use crate::node::{ClusterDns, EncryptionAlgorithm, LoadBalancer, NetworkPlugin, Role};
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
    /// Since v1beta3.
    #[serde(skip_serializing_if = "Option::is_none")]
    patches: Option<Patches>,
    /// Since v1beta4.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeouts: Option<Timeouts>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JoinConfiguration {
    api_version: &'static str,
    kind: &'static str,
    discovery: Discovery,
    node_registration: NodeRegistration,
    /// Masters alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    control_plane: Option<JoinControlPlane>,
    /// Masters alone, since v1beta3.
    #[serde(skip_serializing_if = "Option::is_none")]
    patches: Option<Patches>,
    /// Since v1beta4.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeouts: Option<JoinTimeouts>,
}

/// Changes to the control plane's pods.
#[derive(Serialize)]
struct Patches {
    directory: &'static str,
}

#[derive(Serialize)]
struct Discovery {
    file: FileDiscovery,
    /// Until v1beta3; `timeouts` took its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
}

/// The kubeconfig holds a credential of this very node, so that no token is needed beside it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FileDiscovery {
    kube_config_path: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JoinControlPlane {
    #[serde(rename = "localAPIEndpoint")]
    local_api_endpoint: ApiEndpoint,
}

/// Has no field for the token: kubeadm makes a random one in memory, and a well-known one cannot be written. It never
/// reaches the cluster, as the phase that would put it there is skipped; if it did, it would live briefly.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    ignore_preflight_errors: Option<[&'static str; 1]>,
    /// `None`: kubeadm's taint for masters. Empty: no taint.
    #[serde(skip_serializing_if = "Option::is_none")]
    taints: Option<[(); 0]>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Timeouts {
    control_plane_component_health_check: String,
    kubelet_health_check: String,
    #[serde(rename = "kubernetesAPICall")]
    kubernetes_api_call: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JoinTimeouts {
    #[serde(flatten)]
    common: Timeouts,
    discovery: String,
    tls_bootstrap: String,
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
    controller_manager: Component,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler: Option<Component>,
    /// Until v1beta3, and only to have ECDSA.
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_gates: Option<FeatureGates>,
    /// Since v1beta4.
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_algorithm: Option<EncryptionAlgorithm>,
}

#[derive(Serialize)]
struct FeatureGates {
    #[serde(rename = "PublicKeysECDSA")]
    public_keys_ecdsa: bool,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    extra_args: Option<Args>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Component {
    extra_args: Args,
}

/// Arguments of a component: a map until v1beta3, a list since v1beta4.
struct Args {
    api: KubeadmApi,
    args: BTreeMap<String, String>,
}

impl Args {
    /// Ours, and what the cluster file adds. Where both speak, ours counts: validation has refused it before.
    fn new(api: KubeadmApi, ours: BTreeMap<&'static str, String>, extra: &BTreeMap<String, String>) -> Self {
        let mut args = extra.clone();
        args.extend(ours.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Self { api, args }
    }
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

/// The configuration of `kubeadm join`: a worker's, or that of a master that joins others.
pub(super) fn join_file(c: &Context<'_>) -> Result<NodeFile, RenderError> {
    Ok(text(KUBEADM_JOIN_CONFIG, yaml::to_string(&join(c)).map_err(RenderError::yaml(KUBEADM_JOIN_CONFIG))?))
}

pub(super) fn args(c: &Context<'_>) -> KubeadmArgs {
    let skip = |phases: &[&str]| format!("--skip-phases={}", phases.join(","));
    let resume_init = vec![skip(&[&INIT_UNTIL_IT_RUNS[..], &skip_phases(c)].concat())];
    let resume_join = vec![skip(&JOIN_UNTIL_IT_RUNS)];
    match c.kubernetes.kubeadm_api() {
        KubeadmApi::V1Beta2 => {
            let patches = probes::are_patched(c).then(|| format!("--experimental-patches={KUBEADM_PATCHES}"));
            let init = patches.iter().cloned().chain([skip(&skip_phases(c))]).collect();
            KubeadmArgs { init, resume_init, join: patches.into_iter().collect(), resume_join }
        }
        // On the command line the option would replace the list of the file.
        KubeadmApi::V1Beta3 | KubeadmApi::V1Beta4 => KubeadmArgs { resume_init, resume_join, ..KubeadmArgs::default() },
    }
}

/// The phases of `kubeadm init` until the control plane runs, without those that wait for it
/// (`kubeadm init phase --help`, the same from 1.18 to 1.36).
const INIT_UNTIL_IT_RUNS: [&str; 6] = ["preflight", "certs", "kubeconfig", "etcd", "control-plane", "kubelet-start"];
/// The same of `kubeadm join`.
const JOIN_UNTIL_IT_RUNS: [&str; 3] = ["preflight", "control-plane-prepare", "kubelet-start"];

fn patches(c: &Context<'_>) -> Option<Patches> {
    let in_file = c.kubernetes.kubeadm_api() != KubeadmApi::V1Beta2;
    (in_file && probes::are_patched(c)).then_some(Patches { directory: KUBEADM_PATCHES })
}

/// The phase `bootstrap-token` makes a token that nobody needs here: nodes join with what their seed carries. The one
/// thing of it that every cluster needs, the approval of kubelets' renewed certificates, firstboot applies itself.
fn skip_phases(c: &Context<'_>) -> Vec<&'static str> {
    let mut phases = vec!["bootstrap-token"];
    if c.profile.kubernetes.dns == ClusterDns::None {
        phases.push("addon/coredns");
    }
    phases
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
fn duration(seconds: u32) -> String {
    format!("{}m{}s", seconds / 60, seconds % 60)
}

fn timeout(c: &Context<'_>) -> String {
    duration(c.profile.kubernetes.control_plane_timeout_seconds)
}

/// Where the control plane is slow, so is everything that waits for it. Never less than kubeadm's own defaults, which
/// are five minutes for discovery and bootstrap, and one for a call.
fn join_timeout(c: &Context<'_>) -> String {
    duration(c.profile.kubernetes.control_plane_timeout_seconds.max(300))
}

fn timeouts(c: &Context<'_>) -> Timeouts {
    Timeouts {
        control_plane_component_health_check: timeout(c),
        kubelet_health_check: timeout(c),
        kubernetes_api_call: duration((c.profile.kubernetes.control_plane_timeout_seconds / 4).max(60)),
    }
}

fn local_api_endpoint(c: &Context<'_>) -> ApiEndpoint {
    ApiEndpoint { advertise_address: c.address().to_string(), bind_port: c.profile.kubernetes.apiserver_port }
}

fn node_registration(c: &Context<'_>) -> NodeRegistration {
    let (api, node) = (c.kubernetes.kubeadm_api(), &c.profile.node);
    // Two addresses, one per IP family, are what makes a bare-metal node one of both. The list came with 1.20, and the
    // feature gate IPv6DualStack is on since 1.21, the first version that validation lets have two families.
    let addresses: Vec<String> = node.addresses().map(|address| address.addr().to_string()).collect();
    let mut kubelet_args =
        BTreeMap::from([("node-ip", addresses.join(",")), ("volume-plugin-dir", VOLUME_PLUGINS.to_owned())]);
    if !node.labels.is_empty() {
        let labels: Vec<String> = node.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        kubelet_args.insert("node-labels", labels.join(","));
    }
    NodeRegistration {
        name: node.name.clone(),
        // What kubeadm of that version would write itself: a URL since 1.24.
        cri_socket: if c.kubernetes.minor >= 24 {
            format!("unix://{CONTAINERD_SOCKET}")
        } else {
            CONTAINERD_SOCKET.to_owned()
        },
        image_pull_policy: (api != KubeadmApi::V1Beta2).then_some("IfNotPresent"),
        kubelet_extra_args: Args::new(api, kubelet_args, &c.profile.kubernetes.extra_args.kubelet),
        // kubeadm wants to pull the CoreDNS image even when it skips the add-on. What is needed was proved complete by
        // the build, and is verified by the step that imports images.
        ignore_preflight_errors: (c.profile.kubernetes.dns == ClusterDns::None).then_some(["ImagePull"]),
        taints: (c.profile.has(Role::Master) && c.profile.has(Role::Worker)).then_some([]),
    }
}

fn init(c: &Context<'_>) -> InitConfiguration {
    let api = c.kubernetes.kubeadm_api();
    InitConfiguration {
        api_version: api_version(api),
        kind: "InitConfiguration",
        bootstrap_tokens: [BootstrapToken { description: "made by kubeadm init, used by nobody", ttl: "15m0s" }],
        local_api_endpoint: local_api_endpoint(c),
        node_registration: node_registration(c),
        skip_phases: (api != KubeadmApi::V1Beta2).then(|| skip_phases(c)),
        patches: patches(c),
        timeouts: (api == KubeadmApi::V1Beta4).then(|| timeouts(c)),
    }
}

fn join(c: &Context<'_>) -> JoinConfiguration {
    let api = c.kubernetes.kubeadm_api();
    let in_timeouts = api == KubeadmApi::V1Beta4;
    JoinConfiguration {
        api_version: api_version(api),
        kind: "JoinConfiguration",
        discovery: Discovery {
            file: FileDiscovery { kube_config_path: DISCOVERY_CONFIG },
            timeout: (!in_timeouts).then(|| join_timeout(c)),
        },
        node_registration: node_registration(c),
        control_plane: c
            .profile
            .has(Role::Master)
            .then(|| JoinControlPlane { local_api_endpoint: local_api_endpoint(c) }),
        patches: c.profile.has(Role::Master).then(|| patches(c)).flatten(),
        timeouts: in_timeouts.then(|| JoinTimeouts {
            common: timeouts(c),
            discovery: join_timeout(c),
            tls_bootstrap: join_timeout(c),
        }),
    }
}

fn cluster(c: &Context<'_>) -> ClusterConfiguration {
    let (api, k, network) = (c.kubernetes.kubeadm_api(), &c.profile.kubernetes, &c.profile.network);
    let ecdsa = k.encryption_algorithm == EncryptionAlgorithm::EcdsaP256;
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
            extra_args: (!k.extra_args.apiserver.is_empty())
                .then(|| Args::new(api, BTreeMap::new(), &k.extra_args.apiserver)),
        },
        controller_manager: Component { extra_args: Args::new(api, manager_args, &k.extra_args.controller_manager) },
        scheduler: (!k.extra_args.scheduler.is_empty())
            .then(|| Component { extra_args: Args::new(api, BTreeMap::new(), &k.extra_args.scheduler) }),
        feature_gates: (ecdsa && api != KubeadmApi::V1Beta4).then_some(FeatureGates { public_keys_ecdsa: true }),
        encryption_algorithm: (ecdsa && api == KubeadmApi::V1Beta4).then_some(k.encryption_algorithm),
    }
}

/// kubeadm adds this node, the service names and the endpoint's host; the other masters and localhost it does not.
fn cert_sans(c: &Context<'_>) -> Vec<String> {
    let mut sans = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    if c.has_v6() {
        sans.push("::1".to_owned());
    }
    for master in c.peers_with(Role::Master) {
        sans.push(master.name.clone());
        sans.extend(master.addresses().map(|address| address.to_string()));
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
