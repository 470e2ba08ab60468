// SPDX-License-Identifier: MIT OR Apache-2.0
//! The mistakes of the manual runbook, row by row of docs/runbook.md, and that what is rendered for the very same cluster
//! does not repeat them. Files are parsed as their programs parse them, not searched for words.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use profiles::Cluster;
use profiles::node::NodeProfile;
use profiles::render::{self, Content};
use profiles::yaml;
use serde_json::Value;

const CLUSTER: &str = include_str!("../kylin-v11-ha/cluster.toml");
const ID: &str = "0123456789abcdef0123456789abcdef";
const MASTERS: [&str; 3] = ["master1", "master2", "master3"];
const VIP: &str = "19.190.3.100";
const UNITS: &str = "/etc/systemd/system";

/// The fields of kubeadm's v1beta4. It only warns of others, and goes on without them.
const CLUSTER_CONFIGURATION: &str = "apiVersion kind etcd networking kubernetesVersion controlPlaneEndpoint apiServer \
     controllerManager scheduler dns proxy certificatesDir imageRepository featureGates clusterName encryptionAlgorithm \
     certificateValidityPeriod caCertificateValidityPeriod";
const API_SERVER: &str = "extraArgs extraVolumes extraEnvs certSANs";
const NETWORKING: &str = "serviceSubnet podSubnet dnsDomain";
const INIT_CONFIGURATION: &str = "apiVersion kind bootstrapTokens dryRun nodeRegistration localAPIEndpoint certificateKey \
     skipPhases patches timeouts";
const JOIN_CONFIGURATION: &str =
    "apiVersion kind dryRun nodeRegistration caCertPath discovery controlPlane skipPhases patches timeouts";
const NODE_REGISTRATION: &str =
    "name criSocket taints kubeletExtraArgs ignorePreflightErrors imagePullPolicy imagePullSerial";
const TIMEOUTS: &str = "controlPlaneComponentHealthCheck kubeletHealthCheck kubernetesAPICall etcdAPICall tlsBootstrap \
     discovery upgradeManifests";
/// Of KubeletConfiguration v1beta1, those that are rendered, as kubelet spells them.
const KUBELET: &str = "apiVersion kind authentication authorization cgroupDriver clusterDNS clusterDomain \
     containerRuntimeEndpoint evictionHard failSwapOn imageGCHighThresholdPercent imageGCLowThresholdPercent readOnlyPort \
     resolvConf rotateCertificates serverTLSBootstrap staticPodPath";

struct Node {
    profile: NodeProfile,
    /// Path → text; links as `-> target`.
    files: BTreeMap<String, String>,
}

fn node(name: &str) -> Node {
    node_of(name, ID)
}

fn node_of(name: &str, id: &str) -> Node {
    let cluster = Cluster::parse("kylin-v11-ha", CLUSTER).unwrap_or_else(|report| panic!("{report}"));
    let profile = cluster.node_profile(name, id).unwrap();
    let text = |content| match content {
        Content::Text(text) => text,
        Content::Symlink(target) => format!("-> {target}"),
    };
    let files = render::files(&profile).unwrap().into_iter().map(|file| (file.path, text(file.content))).collect();
    Node { profile, files }
}

impl Node {
    fn text(&self, path: &str) -> &str {
        self.files.get(path).unwrap_or_else(|| panic!("{} has no {path}", self.profile.node.name))
    }

    /// The document of this kind among all of kubeadm's.
    fn kubeadm(&self, kind: &str) -> Value {
        let paths = [render::KUBEADM_CONFIG, render::KUBEADM_JOIN_CONFIG];
        let texts = paths.iter().filter_map(|path| self.files.get(*path));
        let mut documents =
            texts.flat_map(|text| text.split("---\n")).map(|text| yaml::from_str::<Value>(text).unwrap());
        documents.find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
    }

    /// A unit, or one of its drop-ins: section, key → values.
    fn unit(&self, path: &str) -> BTreeMap<(String, String), Vec<String>> {
        let (mut section, mut lines) = (String::new(), BTreeMap::<_, Vec<String>>::new());
        for line in self.text(path).lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                Some(name) => section = name.to_owned(),
                None => {
                    let (key, value) = line.split_once('=').unwrap();
                    lines.entry((section.clone(), key.to_owned())).or_default().push(value.to_owned());
                }
            }
        }
        lines
    }

    /// haproxy.cfg: section with its name → lines, each as words.
    fn haproxy(&self) -> BTreeMap<String, Vec<Vec<String>>> {
        let (mut section, mut lines) = (String::new(), BTreeMap::<_, Vec<_>>::new());
        for line in self.text("/etc/haproxy/haproxy.cfg").lines() {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            match words.first() {
                None => {}
                Some(word) if word.starts_with('#') => {}
                Some(_) if !line.starts_with(' ') => {
                    section = words.join(" ");
                    lines.entry(section.clone()).or_default();
                }
                Some(_) => lines.get_mut(&section).unwrap().push(words),
            }
        }
        lines
    }

    /// keepalived.conf as blocks: header, lines, blocks within. A brace too many or too few is a panic.
    fn keepalived(&self) -> Block {
        let mut stack = vec![Block::default()];
        for line in self.text("/etc/keepalived/keepalived.conf").lines().map(str::trim) {
            if let Some(header) = line.strip_suffix('{') {
                stack.push(Block { header: header.trim().to_owned(), ..Block::default() });
            } else if line == "}" {
                let block = stack.pop().unwrap();
                stack.last_mut().unwrap().blocks.push(block);
            } else if !line.is_empty() && !line.starts_with('#') {
                stack.last_mut().unwrap().lines.push(line.to_owned());
            }
        }
        assert_eq!(stack.len(), 1, "a block is not closed");
        stack.pop().unwrap()
    }

    fn containerd(&self) -> toml::Table {
        self.text("/etc/containerd/config.toml").parse().unwrap()
    }
}

#[derive(Default)]
struct Block {
    header: String,
    lines: Vec<String>,
    blocks: Vec<Block>,
}

impl Block {
    fn block(&self, header: &str) -> &Block {
        self.blocks.iter().find(|block| block.header == header).unwrap_or_else(|| panic!("no block {header}"))
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
    }

    fn says(&self, line: &str) -> bool {
        self.lines.iter().any(|other| other == line)
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn assert_known(value: &Value, fields: &str) {
    let known: BTreeSet<&str> = fields.split_whitespace().collect();
    let present = keys(value);
    let unknown: Vec<&&str> = present.difference(&known).collect();
    assert!(unknown.is_empty(), "fields that the program does not have: {unknown:?}");
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

fn runs_pods() -> impl Iterator<Item = Node> {
    MASTERS.into_iter().chain(["node1"]).map(node)
}

#[test]
fn the_cluster_is_the_runbooks() {
    let profile = node("master1").profile;
    let peers: Vec<String> = profile.peers.iter().map(|peer| format!("{} {}", peer.name, peer.address)).collect();
    assert_eq!(
        peers,
        [
            "etcd1 19.190.3.130",
            "etcd2 19.190.3.131",
            "etcd3 19.190.3.132",
            "master1 19.190.3.140",
            "master2 19.190.3.141",
            "master3 19.190.3.142",
            "node1 19.190.3.143",
        ]
    );
    let cluster = node("master1").kubeadm("ClusterConfiguration");
    assert_eq!(cluster["kubernetesVersion"], "v1.32.1");
    assert_eq!(cluster["imageRepository"], "lcr.loongnix.cn/kubernetes");
    assert_eq!(cluster["networking"]["podSubnet"], "10.200.0.0/16");
    assert_eq!(cluster["networking"]["dnsDomain"], "cluster.local");
    let endpoints = ["https://19.190.3.130:2379", "https://19.190.3.131:2379", "https://19.190.3.132:2379"];
    assert_eq!(strings(&cluster["etcd"]["external"]["endpoints"]), endpoints);
}

#[test]
fn row_01_kubelet_has_no_flag_that_was_removed() {
    for node in runs_pods() {
        let drop_in = node.unit(&format!("{UNITS}/kubelet.service.d/10-kubeadm.conf"));
        let service = |key: &str| drop_in[&("Service".to_owned(), key.to_owned())].clone();
        // Everything kubelet is called with: these two variables, and what kubeadm and the operator add.
        let arguments = "$KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS";
        assert_eq!(service("ExecStart"), [String::new(), format!("/opt/imgbuild/bin/kubelet {arguments}")]);
        let variables = service("Environment").join(" ");
        let flags: Vec<&str> = variables.split([' ', '=', '"']).filter(|word| word.starts_with("--")).collect();
        assert_eq!(flags, ["--bootstrap-kubeconfig", "--kubeconfig", "--config"]);
        for kind in ["InitConfiguration", "JoinConfiguration"] {
            if kind == "InitConfiguration" && node.profile.node.name == "node1" {
                continue;
            }
            let registration = &node.kubeadm(kind)["nodeRegistration"];
            let extra = registration["kubeletExtraArgs"].as_array().unwrap();
            let names: Vec<&str> = extra.iter().map(|arg| arg["name"].as_str().unwrap()).collect();
            assert_eq!(names, ["node-ip", "volume-plugin-dir"]);
        }
    }
}

#[test]
fn row_02_haproxy_and_the_api_server_bind_different_ports() {
    for node in MASTERS.map(node) {
        let api = node.kubeadm("InitConfiguration")["localAPIEndpoint"]["bindPort"].as_u64().unwrap();
        assert_eq!(node.kubeadm("JoinConfiguration")["controlPlane"]["localAPIEndpoint"]["bindPort"], api);
        let haproxy = node.haproxy();
        let binds: Vec<&Vec<String>> = haproxy.values().flatten().filter(|words| words[0] == "bind").collect();
        assert_eq!(binds.len(), 1, "one listener, and no other");
        let port: u64 = binds[0][1].rsplit(':').next().unwrap().parse().unwrap();
        assert_ne!(port, api);
        assert_eq!(node.kubeadm("ClusterConfiguration")["controlPlaneEndpoint"], format!("{VIP}:{port}"));
        let servers: Vec<&str> = haproxy["backend masters"]
            .iter()
            .filter(|words| words[0] == "server")
            .map(|words| words[2].as_str())
            .collect();
        assert_eq!(servers, ["19.190.3.140:6443", "19.190.3.141:6443", "19.190.3.142:6443"]);
    }
}

#[test]
fn row_03_the_certificates_of_etcd_are_where_the_configuration_says() {
    for node in MASTERS.map(node) {
        let external = &node.kubeadm("ClusterConfiguration")["etcd"]["external"];
        let directory = "/etc/kubernetes/pki/etcd-external";
        assert_eq!(external["caFile"], format!("{directory}/ca.crt"));
        assert_eq!(external["certFile"], format!("{directory}/client.crt"));
        assert_eq!(external["keyFile"], format!("{directory}/client.key"));
    }
}

#[test]
fn row_04_kubelet_authorizes_by_a_mode_it_knows() {
    let kubelet = node("master1").kubeadm("KubeletConfiguration");
    assert_eq!(kubelet["authorization"]["mode"], "Webhook");
    assert_eq!(kubelet["authentication"]["anonymous"]["enabled"], false);
}

#[test]
fn row_05_a_joining_kubelet_finds_its_credential() {
    for node in runs_pods() {
        let drop_in = node.unit(&format!("{UNITS}/kubelet.service.d/10-kubeadm.conf"));
        let service = |key: &str| &drop_in[&("Service".to_owned(), key.to_owned())];
        let kubeconfigs = &service("Environment")[0];
        assert!(kubeconfigs.contains("--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf "));
        assert!(kubeconfigs.contains("--kubeconfig=/etc/kubernetes/kubelet.conf"));
        assert_eq!(service("EnvironmentFile")[0], "-/var/lib/kubelet/kubeadm-flags.env");
        let join = node.kubeadm("JoinConfiguration");
        assert_known(&join, JOIN_CONFIGURATION);
        assert_known(&join["nodeRegistration"], NODE_REGISTRATION);
        assert_known(&join["timeouts"], TIMEOUTS);
        assert_eq!(keys(&join["discovery"]), BTreeSet::from(["file"]), "exactly one way to find the cluster");
        assert_eq!(join["discovery"]["file"]["kubeConfigPath"], render::DISCOVERY_CONFIG);
        assert_eq!(join["nodeRegistration"]["name"], node.profile.node.name);
        assert_eq!(join["nodeRegistration"]["criSocket"], "unix:///run/containerd/containerd.sock");
    }
}

#[test]
fn row_06_service_subnet_is_spelt_as_kubeadm_has_it() {
    let master = node("master1");
    let networking = &master.kubeadm("ClusterConfiguration")["networking"];
    assert_known(networking, NETWORKING);
    assert_eq!(networking["serviceSubnet"], "10.201.0.0/16");
    // What pods ask is an address of that very network.
    assert_eq!(strings(&master.kubeadm("KubeletConfiguration")["clusterDNS"]), ["10.201.0.10"]);
}

#[test]
fn row_07_every_name_of_the_api_server_is_in_its_certificate() {
    for node in MASTERS.map(node) {
        let server = &node.kubeadm("ClusterConfiguration")["apiServer"];
        assert_known(server, API_SERVER);
        let names: BTreeSet<&str> = strings(&server["certSANs"]).into_iter().collect();
        let addresses = ["19.190.3.140", "19.190.3.141", "19.190.3.142"];
        for name in ["localhost", "127.0.0.1", VIP].into_iter().chain(MASTERS).chain(addresses) {
            assert!(names.contains(name), "{name} is not in {names:?}");
        }
    }
}

#[test]
fn row_08_timeouts_stand_where_v1beta4_has_them() {
    let master = node("master1");
    for kind in ["InitConfiguration", "ClusterConfiguration", "JoinConfiguration"] {
        assert_eq!(master.kubeadm(kind)["apiVersion"], "kubeadm.k8s.io/v1beta4");
    }
    let (init, cluster) = (master.kubeadm("InitConfiguration"), master.kubeadm("ClusterConfiguration"));
    assert_known(&init, INIT_CONFIGURATION);
    assert_known(&init["nodeRegistration"], NODE_REGISTRATION);
    assert_known(&init["timeouts"], TIMEOUTS);
    assert_known(&cluster, CLUSTER_CONFIGURATION);
    assert_known(&cluster["apiServer"], API_SERVER);
    assert_eq!(init["timeouts"]["controlPlaneComponentHealthCheck"], "4m0s");
    assert_eq!(master.kubeadm("JoinConfiguration")["timeouts"]["discovery"], "5m0s");
}

#[test]
fn row_09_fields_of_kubelet_begin_with_a_small_letter() {
    assert_known(&node("master1").kubeadm("KubeletConfiguration"), KUBELET);
}

#[test]
fn row_10_kubeadm_reads_the_file_that_is_written() {
    assert_eq!(render::KUBEADM_CONFIG, "/etc/kubernetes/kubeadm.yaml");
    assert!(node("master1").files.contains_key(render::KUBEADM_CONFIG));
    assert!(node("node1").files.contains_key(render::KUBEADM_JOIN_CONFIG));
}

#[test]
fn row_11_the_blocks_of_keepalived_are_closed_where_they_should() {
    for node in MASTERS.map(node) {
        let conf = node.keepalived();
        let headers: Vec<&str> = conf.blocks.iter().map(|block| block.header.as_str()).collect();
        assert_eq!(headers, ["global_defs", "vrrp_script apiserver", "vrrp_instance apiserver"]);
        let inner: Vec<&str> =
            conf.block("vrrp_instance apiserver").blocks.iter().map(|block| block.header.as_str()).collect();
        assert_eq!(inner, ["unicast_peer", "virtual_ipaddress", "track_script"]);
        assert!(conf.lines.is_empty(), "{:?}", conf.lines);
    }
}

#[test]
fn row_12_br_netfilter_is_loaded_where_its_keys_are_set() {
    for node in runs_pods() {
        let modules: BTreeSet<&str> = node.text("/etc/modules-load.d/imgbuild.conf").lines().collect();
        assert!(modules.contains("br_netfilter") && modules.contains("overlay"));
        let sysctl: BTreeMap<&str, &str> =
            node.text("/etc/sysctl.d/90-imgbuild.conf").lines().map(|line| line.split_once(" = ").unwrap()).collect();
        for key in ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables", "net.ipv4.ip_forward"]
        {
            assert_eq!(sysctl[key], "1", "{key}");
        }
    }
}

#[test]
fn row_13_swap_stays_off_after_a_reboot() {
    for node in runs_pods() {
        assert_eq!(node.text(&format!("{UNITS}/swap.target")), "-> /dev/null");
    }
    assert_eq!(node("master1").kubeadm("KubeletConfiguration")["failSwapOn"], true);
}

#[test]
fn row_14_ipvs_modules_are_listed_where_systemd_reads() {
    for node in runs_pods() {
        let modules: BTreeSet<&str> = node.text("/etc/modules-load.d/imgbuild.conf").lines().collect();
        for module in ["ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_sh", "nf_conntrack"] {
            assert!(modules.contains(module), "{module}");
        }
        assert!(node.files.keys().all(|path| !path.starts_with("/etc/sysconfig/")));
    }
}

#[test]
fn row_15_kubelet_is_enabled() {
    for node in runs_pods() {
        let link = node.text(&format!("{UNITS}/multi-user.target.wants/kubelet.service"));
        assert_eq!(link, format!("-> {UNITS}/kubelet.service"));
        assert!(node.files.contains_key(&format!("{UNITS}/kubelet.service")), "the link leads somewhere");
    }
    for unit in ["haproxy.service", "keepalived.service", "containerd.service"] {
        let link = format!("{UNITS}/multi-user.target.wants/{unit}");
        assert_eq!(node("master1").text(&link), format!("-> /usr/lib/systemd/system/{unit}"));
    }
}

#[test]
fn row_16_a_master_that_returns_does_not_preempt() {
    let mut priorities = BTreeSet::new();
    for node in MASTERS.map(node) {
        let conf = node.keepalived();
        let instance = conf.block("vrrp_instance apiserver");
        assert_eq!(instance.value("state"), Some("BACKUP"));
        priorities.insert(instance.value("priority").unwrap().parse::<u8>().unwrap());
    }
    assert_eq!(priorities.len(), 1, "the higher one would preempt");
}

#[test]
fn row_17_a_dead_haproxy_fails_over() {
    for node in MASTERS.map(node) {
        let conf = node.keepalived();
        let instance = conf.block("vrrp_instance apiserver");
        assert!(instance.block("track_script").says("apiserver"));
        assert!(!instance.says("nopreempt"), "whoever has less would stay in office");
        let weight: i16 = conf.block("vrrp_script apiserver").value("weight").unwrap().parse().unwrap();
        let priority: i16 = instance.value("priority").unwrap().parse().unwrap();
        assert!(
            weight < 0 && priority + weight > 0,
            "out of the election when all checks fail, and nobody has the address"
        );
    }
}

#[test]
fn row_18_no_password_is_truncated_or_sent_in_the_clear() {
    for node in MASTERS.map(node) {
        let conf = node.keepalived();
        let instance = conf.block("vrrp_instance apiserver");
        assert!(instance.blocks.iter().all(|block| block.header != "authentication"));
        assert_eq!(conf.block("global_defs").value("vrrp_version"), Some("3"));
        // In place of a password: the two other masters, and nobody else.
        let own = instance.value("unicast_src_ip").unwrap();
        assert_eq!(own, node.profile.node.address.addr().to_string());
        let mut all: BTreeSet<&str> = instance.block("unicast_peer").lines.iter().map(String::as_str).collect();
        assert_eq!(all.len(), 2);
        all.insert(own);
        assert_eq!(all, BTreeSet::from(["19.190.3.140", "19.190.3.141", "19.190.3.142"]));
        assert!(instance.says("check_unicast_src"));
    }
}

#[test]
fn row_19_the_router_id_is_the_clusters_own() {
    let id = |node: Node| {
        let conf = node.keepalived();
        conf.block("vrrp_instance apiserver").value("virtual_router_id").unwrap().parse::<u8>().unwrap()
    };
    let ids: BTreeSet<u8> = MASTERS.map(|name| id(node(name))).into();
    assert_eq!(ids.len(), 1, "masters of one cluster agree");
    let many: BTreeSet<u8> = (0..100u32).map(|at| id(node_of("master1", &format!("{at:032x}")))).collect();
    assert!(many.len() > 50 && !many.contains(&0), "other clusters rarely have the same: {many:?}");
}

#[test]
fn row_20_checks_ask_whether_the_api_server_serves() {
    for node in MASTERS.map(node) {
        let haproxy = node.haproxy();
        let masters = &haproxy["backend masters"];
        assert!(masters.contains(&["option", "httpchk", "GET", "/readyz"].map(str::to_owned).to_vec()));
        assert!(masters.contains(&["http-check", "expect", "status", "200"].map(str::to_owned).to_vec()));
        let defaults = masters.iter().find(|words| words[0] == "default-server").unwrap();
        for word in ["check", "check-ssl", "2s"] {
            assert!(defaults.iter().any(|other| other == word), "{word}");
        }
        let conf = node.keepalived();
        let script = conf.block("vrrp_script apiserver");
        let command = script.value("script").unwrap().trim_matches('"');
        assert!(command.starts_with("/usr/bin/curl ") && command.contains(" --fail "), "{command}");
        assert!(command.ends_with(" https://127.0.0.1:8443/readyz"), "through haproxy: {command}");
        let seconds = |key: &str| script.value(key).unwrap().parse::<u32>().unwrap();
        let patience: u32 = command.split("--max-time ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert_eq!(seconds("interval"), 2);
        assert!(patience < seconds("timeout"), "curl gives up before keepalived gives up on curl");
    }
}

#[test]
fn row_21_no_statistics_with_a_known_password() {
    for node in MASTERS.map(node) {
        let haproxy = node.haproxy();
        let sections: Vec<&str> = haproxy.keys().map(String::as_str).collect();
        assert_eq!(sections, ["backend masters", "defaults", "frontend apiserver", "global"]);
        let stats: Vec<String> =
            haproxy.values().flatten().filter(|words| words[0] == "stats").map(|words| words.join(" ")).collect();
        assert_eq!(stats, ["stats socket /run/haproxy/admin.sock mode 600 level admin"]);
    }
}

#[test]
fn row_22_there_is_no_well_known_token() {
    let init = node("master1").kubeadm("InitConfiguration");
    for token in init["bootstrapTokens"].as_array().unwrap() {
        assert_eq!(keys(token), BTreeSet::from(["description", "ttl"]));
    }
    assert!(strings(&init["skipPhases"]).contains(&"bootstrap-token"), "none is made at all");
    for node in runs_pods() {
        assert!(node.kubeadm("JoinConfiguration")["discovery"].get("tlsBootstrapToken").is_none());
    }
}

#[test]
fn row_26_containerd_and_kubeadm_agree_on_the_sandbox() {
    for node in runs_pods() {
        let images = &node.containerd()["plugins"]["io.containerd.cri.v1.images"];
        let sandbox = images["pinned_images"]["sandbox"].as_str().unwrap();
        assert_eq!(sandbox, "lcr.loongnix.cn/kubernetes/pause:3.10");
        assert_eq!(sandbox, format!("{}/pause:3.10", node.profile.kubernetes.image_repository), "what kubeadm names");
    }
}

#[test]
fn row_27_kubelet_and_containerd_have_one_cgroup_driver() {
    assert_eq!(node("master1").kubeadm("KubeletConfiguration")["cgroupDriver"], "systemd");
    for node in runs_pods() {
        let runtime = &node.containerd()["plugins"]["io.containerd.cri.v1.runtime"];
        assert_eq!(runtime["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"].as_bool(), Some(true));
    }
}

/// ipvs works in 1.32, and the runbook asks for it; who does not ask gets what stays.
#[test]
fn row_33_ipvs_is_a_choice_and_not_the_default() {
    assert_eq!(node("master1").kubeadm("KubeProxyConfiguration")["mode"], "ipvs");
    let text = CLUSTER.replace("proxy_mode = \"ipvs\"\n", "");
    let cluster = Cluster::parse("kylin-v11-ha", &text).unwrap();
    let profile = cluster.node_profile("master1", ID).unwrap();
    let files = render::files(&profile).unwrap();
    let Content::Text(kubeadm) = &files.iter().find(|file| file.path == render::KUBEADM_CONFIG).unwrap().content else {
        panic!("a link");
    };
    let proxy: Value = yaml::from_str(kubeadm.split("---\n").last().unwrap()).unwrap();
    assert_eq!((&proxy["kind"], &proxy["mode"]), (&"KubeProxyConfiguration".into(), &"iptables".into()));
}

#[test]
fn row_34_the_runtime_endpoint_is_configuration_and_not_a_flag() {
    let master = node("master1");
    let kubelet = master.kubeadm("KubeletConfiguration");
    assert_eq!(kubelet["containerRuntimeEndpoint"], "unix:///run/containerd/containerd.sock");
    for path in ["kubelet.service", "kubelet.service.d/10-kubeadm.conf"] {
        assert!(!master.text(&format!("{UNITS}/{path}")).contains("container-runtime-endpoint"));
    }
}

#[test]
fn row_35_etcd_starts_on_an_architecture_its_authors_do_not_test() {
    for name in ["etcd1", "etcd2", "etcd3"] {
        let unit = node(name).unit(&format!("{UNITS}/etcd.service"));
        let environment = &unit[&("Service".to_owned(), "Environment".to_owned())];
        assert!(environment.iter().any(|line| line == "ETCD_UNSUPPORTED_ARCH=loong64"), "{environment:?}");
    }
}
