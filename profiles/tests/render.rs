// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every rendered file of the lab and of a large cluster, as snapshots; and the mistakes of the manual runbook that must
//! not come back.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use profiles::Cluster;
use profiles::node::{LoadBalancer, NetworkPlugin, NodeProfile};
use profiles::render::{self, Content};

const ID: &str = "0123456789abcdef0123456789abcdef";

fn cluster(text: &str) -> Cluster {
    Cluster::parse("cluster.toml", text).unwrap_or_else(|report| panic!("{report}"))
}

fn lab() -> NodeProfile {
    cluster(include_str!("../lab/cluster.toml")).node_profile("master-1", ID).unwrap()
}

fn ha(node: &str) -> NodeProfile {
    cluster(include_str!("clusters/ha.toml")).node_profile(node, ID).unwrap()
}

fn with_version(mut profile: NodeProfile, version: &str) -> NodeProfile {
    profile.kubernetes.version = version.to_owned();
    profile
}

/// Path → text; links as `-> target`.
fn rendered(profile: &NodeProfile) -> BTreeMap<String, String> {
    let text = |content| match content {
        Content::Text(text) => text,
        Content::Symlink(target) => format!("-> {target}"),
    };
    render::files(profile).unwrap().into_iter().map(|file| (file.path, text(file.content))).collect()
}

fn whole(profile: &NodeProfile) -> String {
    let mut whole = String::new();
    for file in render::files(profile).unwrap() {
        match file.content {
            Content::Text(text) => {
                whole += &format!("=== {} {:04o} {}\n{text}\n", file.path, file.mode, file.owner.name());
            }
            Content::Symlink(target) => whole += &format!("=== {} -> {target}\n\n", file.path),
        }
    }
    whole + &format!("=== kubeadm init {}\n", render::kubeadm_args(profile).unwrap().join(" "))
}

fn kubeadm(profile: &NodeProfile) -> String {
    rendered(profile).remove("/etc/kubernetes/kubeadm.yaml").unwrap()
}

#[test]
fn all_files_of_the_lab() {
    insta::assert_snapshot!("lab_master-1", whole(&lab()));
}

#[test]
fn all_files_of_a_large_cluster() {
    for node in ["etcd3", "master2", "node1"] {
        insta::assert_snapshot!(format!("ha_{node}"), whole(&ha(node)));
    }
}

#[test]
fn kubeadm_in_every_format() {
    for version in ["1.19.16", "1.22.17", "1.24.0", "1.28.3", "1.31.0", "1.35.0"] {
        insta::assert_snapshot!(format!("kubeadm_{version}"), kubeadm(&with_version(lab(), version)));
    }
}

#[test]
fn containerd_in_every_format() {
    for version in ["1.6.20", "2.0", "2.1.9"] {
        let mut profile = lab();
        profile.containerd.version = version.to_owned();
        let config = rendered(&profile).remove("/etc/containerd/config.toml").unwrap();
        insta::assert_snapshot!(format!("containerd_{version}"), config);
        assert!(config.contains("SystemdCgroup = true"), "C27");
        assert!(config.contains("k8s.gcr.io/pause:3.2"), "C26");
        assert!(!config.contains("mirrors"), "registry mirrors are deprecated");
    }
}

#[test]
fn rendering_repeats_itself() {
    assert_eq!(render::files(&ha("master1")).unwrap(), render::files(&ha("master1")).unwrap());
}

/// The rows of the runbook's list of defects that belong to rendering, over versions and roles.
#[test]
fn defects_of_the_runbook_do_not_return() {
    for version in ["1.19.16", "1.20.2", "1.22.17", "1.24.0", "1.30.0", "1.31.0", "1.32.1", "1.35.0"] {
        for profile in [lab(), ha("master1"), ha("master3")] {
            let files = rendered(&with_version(profile.clone(), version));
            let all: String = files.values().map(String::as_str).collect();
            let kubeadm = &files["/etc/kubernetes/kubeadm.yaml"];
            let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
            let has = |text: &str| kubeadm.contains(text);

            assert!(!all.contains("network-plugin"), "C1");
            if let LoadBalancer::Keepalived { port, .. } = profile.load_balancer {
                assert_ne!(port, profile.kubernetes.apiserver_port, "C2");
                assert!(files["/etc/haproxy/haproxy.cfg"].contains("bind 0.0.0.0:8443"), "C2");
                assert!(has("controlPlaneEndpoint: 19.190.3.100:8443"), "C2");
                let keepalived = &files["/etc/keepalived/keepalived.conf"];
                assert_eq!(keepalived.matches('{').count(), keepalived.matches('}').count(), "C11");
                assert!(keepalived.contains("nopreempt") && keepalived.contains("state BACKUP"), "C16");
                assert!(keepalived.contains("weight 0") && !keepalived.contains("weight -"), "C17");
                assert!(!keepalived.contains("auth_pass"), "C18");
                assert!(!keepalived.contains("virtual_router_id 51\n"), "C19");
                assert!(keepalived.contains("/healthz") && !keepalived.contains("killall"), "C20");
                assert!(files["/etc/haproxy/haproxy.cfg"].contains("option httpchk"), "C20");
                assert!(!files["/etc/haproxy/haproxy.cfg"].contains("stats auth"), "C21");
            }
            assert!(!all.contains("/root"), "C3");
            assert!(has("caFile: /etc/kubernetes/pki/etcd-external/ca.crt"), "C3");
            assert!(has("mode: Webhook"), "C4");
            let drop_in = &files["/etc/systemd/system/kubelet.service.d/10-kubeadm.conf"];
            assert!(drop_in.contains("--bootstrap-kubeconfig=") && drop_in.contains("kubeadm-flags.env"), "C5");
            assert!(has("serviceSubnet: 10.201.0.0/16") && !has("servicesSubnet"), "C6");
            assert!(has("certSANs:") && !has("certSANS"), "C7");
            assert_eq!(has("timeoutForControlPlane"), minor < 31, "C8");
            assert_eq!(has("controlPlaneComponentHealthCheck"), minor >= 31, "C8");
            assert!(!has("Logging"), "C9");
            assert!(files["/etc/modules-load.d/imgbuild.conf"].contains("br_netfilter"), "C12");
            assert_eq!(files["/etc/systemd/system/swap.target"], "-> /dev/null", "C13");
            assert!(files.keys().all(|path| !path.starts_with("/etc/sysconfig")), "C14");
            assert!(files.contains_key("/etc/systemd/system/multi-user.target.wants/kubelet.service"), "C15");
            assert!(!has("token:") && !has("abcdef"), "C22");
            assert!(!all.contains("upload-certs"), "C25");
            assert!(has("cgroupDriver: systemd"), "C27");
            assert_eq!(has("unix:///run/containerd/containerd.sock"), minor >= 24, "C34");
            assert_eq!(has("addon/coredns"), minor >= 22 && !files.contains_key("/etc/haproxy/haproxy.cfg"));
        }
    }
}

/// C35: etcd of its authors exits on this architecture.
#[test]
fn etcd_starts_on_loong64() {
    assert!(rendered(&ha("etcd1"))["/etc/systemd/system/etcd.service"].contains("ETCD_UNSUPPORTED_ARCH=loong64"));
    assert!(!rendered(&lab())["/etc/systemd/system/etcd.service"].contains("ETCD_UNSUPPORTED_ARCH"));
}

#[test]
fn an_etcd_node_gets_nothing_of_kubernetes() {
    let files = rendered(&ha("etcd1"));
    assert!(files.keys().all(|path| !path.contains("kube") && !path.contains("containerd") && !path.contains("cni")));
}

#[test]
fn a_worker_gets_nothing_of_masters() {
    let files = rendered(&ha("node1"));
    for path in ["/etc/kubernetes/kubeadm.yaml", "/etc/haproxy/haproxy.cfg", "/etc/etcd/etcd.yaml"] {
        assert!(!files.contains_key(path), "{path}");
    }
    assert!(!files["/etc/profile.d/imgbuild.sh"].contains("KUBECONFIG"));
}

#[test]
fn only_masters_that_work_lose_the_taint() {
    assert!(kubeadm(&lab()).contains("taints: []"));
    assert!(!kubeadm(&ha("master1")).contains("taints"));
}

#[test]
fn other_plugins_bring_their_own_network() {
    let mut profile = lab();
    profile.network.plugin = NetworkPlugin::Calico;
    assert!(rendered(&profile).keys().all(|path| !path.starts_with("/etc/cni")));
    assert!(!kubeadm(&profile).contains("allocate-node-cidrs"));
}

#[test]
fn a_profile_edited_by_hand_cannot_break_out_of_its_line() {
    let breaks: [fn(&mut NodeProfile); 7] = [
        |p| p.node.name = "a\nb".into(),
        |p| p.node.mac = Some("x\n[Service]".into()),
        |p| p.node.interface = Some("eth0\nGateway=1".into()),
        |p| p.network.ntp_servers.push("a b".into()),
        |p| p.network.dns_domain = "a\n".into(),
        |p| drop(p.node.labels.insert("a".into(), "b,c".into())),
        |p| p.kubernetes.version = "latest".into(),
    ];
    for break_it in breaks {
        let mut profile = lab();
        break_it(&mut profile);
        assert!(render::files(&profile).is_err());
    }
}
