// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every rendered file of the lab and of a large cluster, as snapshots; and the mistakes of the manual runbook that must
//! not come back.

#![allow(clippy::unwrap_used)]

mod whole;

use std::collections::BTreeMap;

use profiles::Cluster;
use profiles::node::{ClusterDns, EncryptionAlgorithm, LoadBalancer, NetworkPlugin, NodeProfile};
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
    whole::files(profile)
        + &format!(
            "=== kubeadm init {}
",
            render::kubeadm_args(profile).unwrap().init.join(" ")
        )
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

/// Brackets around every address that has a port, `::` where there was 0.0.0.0, forwarding, and routes.
#[test]
fn all_files_of_an_ipv6_cluster() {
    for node in ["etcd-1", "master-1", "worker-1"] {
        let profile = cluster(include_str!("clusters/ipv6.toml")).node_profile(node, ID).unwrap();
        let whole = whole(&profile);
        assert!(!whole.contains("0.0.0.0"), "{node}");
        insta::assert_snapshot!(format!("ipv6_{node}"), whole);
    }
}

#[test]
fn all_files_of_a_dual_stack_cluster() {
    for node in ["etcd-1", "master-1", "worker-1"] {
        let profile = cluster(include_str!("clusters/dual-stack.toml")).node_profile(node, ID).unwrap();
        insta::assert_snapshot!(format!("dual-stack_{node}"), whole(&profile));
    }
}

#[test]
fn kubeadm_in_every_format() {
    for version in ["1.19.16", "1.22.17", "1.24.0", "1.28.3", "1.31.0", "1.35.0"] {
        insta::assert_snapshot!(format!("kubeadm_{version}"), kubeadm(&with_version(lab(), version)));
    }
}

#[test]
fn joining_in_every_format() {
    for version in ["1.20.2", "1.28.3", "1.32.1"] {
        for (node, profile) in [("master2", ha("master2")), ("node1", ha("node1"))] {
            let join = rendered(&with_version(profile, version)).remove(render::KUBEADM_JOIN_CONFIG).unwrap();
            insta::assert_snapshot!(format!("join_{node}_{version}"), join);
        }
    }
}

/// A sole master has nobody to join, and an etcd member nothing to join with.
#[test]
fn only_those_that_may_join_get_what_it_takes() {
    let joins = |profile: &NodeProfile| rendered(profile).contains_key(render::KUBEADM_JOIN_CONFIG);
    assert!(!joins(&lab()) && !joins(&ha("etcd1")));
    assert!(joins(&ha("master1")) && joins(&ha("node1")));
}

#[test]
fn kubeadm_is_told_to_skip_what_nobody_needs() {
    let args = |version: &str| {
        let mut profile = with_version(lab(), version);
        profile.kubernetes.probe_period_seconds = None;
        render::kubeadm_args(&profile).unwrap().init
    };
    assert_eq!(args("1.20.2"), ["--skip-phases=bootstrap-token,addon/coredns"]);
    // On the command line it would replace what the file says.
    assert!(args("1.22.0").is_empty() && args("1.32.1").is_empty());
    let resume = |version| render::kubeadm_args(&with_version(lab(), version)).unwrap().resume_init;
    let whole =
        "--skip-phases=preflight,certs,kubeconfig,etcd,control-plane,kubelet-start,bootstrap-token,addon/coredns";
    assert_eq!((resume("1.20.2"), resume("1.32.1")), (vec![whole.to_owned()], vec![whole.to_owned()]));
    let with_dns = |version| render::kubeadm_args(&with_version(ha("master1"), version)).unwrap().init;
    assert_eq!(with_dns("1.20.2"), ["--skip-phases=bootstrap-token"]);
}

#[test]
fn slow_machines_probe_less_often() {
    let slow = |version: &str| {
        let mut profile = with_version(ha("master1"), version);
        profile.kubernetes.probe_period_seconds = Some(30);
        profile
    };
    let patch = |profile: &NodeProfile, pod: &str| {
        rendered(profile).remove(&format!("/etc/kubernetes/patches/{pod}+strategic.yaml")).unwrap()
    };
    insta::assert_snapshot!(patch(&slow("1.20.2"), "kube-apiserver"));
    assert!(!patch(&slow("1.19.0"), "kube-apiserver").contains("readinessProbe"), "it has none to change");
    assert!(!patch(&slow("1.20.2"), "kube-scheduler").contains("readinessProbe"), "it has none to change");

    let args = render::kubeadm_args(&slow("1.20.2")).unwrap();
    assert_eq!(args.join, ["--experimental-patches=/etc/kubernetes/patches"]);
    assert_eq!(args.init, [args.join[0].as_str(), "--skip-phases=bootstrap-token"]);
    let newer = render::kubeadm_args(&slow("1.32.1")).unwrap();
    assert!(newer.init.is_empty() && newer.join.is_empty(), "{newer:?}");
    assert_eq!(newer.resume_join, ["--skip-phases=preflight,control-plane-prepare,kubelet-start"]);
    let init = |version| kubeadm(&slow(version));
    assert!(!init("1.20.2").contains("patches"));
    for version in ["1.22.0", "1.32.1"] {
        assert!(init(version).contains("patches:\n  directory: /etc/kubernetes/patches\n"));
        let join = rendered(&slow(version)).remove(render::KUBEADM_JOIN_CONFIG).unwrap();
        assert!(join.contains("directory: /etc/kubernetes/patches\n"));
    }
    let mut worker = ha("node1");
    worker.kubernetes.probe_period_seconds = Some(30);
    assert!(rendered(&worker).keys().all(|path| !path.contains("patches")), "a worker has no such pods");
    assert_eq!(render::kubeadm_args(&worker).unwrap().join, Vec::<String>::new());
}

#[test]
fn keys_of_kubeadm_in_every_format() {
    let with = |version| {
        let mut profile = with_version(ha("master1"), version);
        profile.kubernetes.encryption_algorithm = EncryptionAlgorithm::EcdsaP256;
        kubeadm(&profile)
    };
    for version in ["1.20.2", "1.22.0"] {
        assert!(with(version).contains("featureGates:\n  PublicKeysECDSA: true\n"));
        assert!(!with(version).contains("encryptionAlgorithm"));
    }
    assert!(
        with("1.32.1").contains("encryptionAlgorithm: ECDSA-P256\n") && !with("1.32.1").contains("PublicKeysECDSA")
    );
    let plain = kubeadm(&ha("master1"));
    assert!(!plain.contains("PublicKeysECDSA") && !plain.contains("encryptionAlgorithm"));
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
                assert!(keepalived.contains("priority 100") && keepalived.contains("state BACKUP"), "C16");
                assert!(keepalived.contains("weight -50") && !keepalived.contains("nopreempt"), "C17");
                assert!(!keepalived.contains("auth_pass"), "C18");
                assert!(!keepalived.contains("virtual_router_id 51\n"), "C19");
                assert!(keepalived.contains("/readyz") && !keepalived.contains("killall"), "C20");
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
            assert_eq!(has("- bootstrap-token"), minor >= 22, "C22");
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

/// Calico copies its plugins to /opt/cni/bin, whatever containerd is told.
#[test]
fn plugins_that_pods_install_are_found_by_every_containerd() {
    for (plugin, installs) in
        [(NetworkPlugin::Bridge, false), (NetworkPlugin::Calico, true), (NetworkPlugin::Manifest, true)]
    {
        for (version, key) in [("1.6.20", "bin_dir = \"DIR\""), ("2.1.9", "bin_dirs = [\"DIR\"]")] {
            let mut profile = ha("node1");
            (profile.network.plugin, profile.containerd.version) = (plugin, version.to_owned());
            let files = rendered(&profile);
            let dir = if installs { "/opt/cni/bin" } else { "/opt/imgbuild/cni/bin" };
            let config = &files["/etc/containerd/config.toml"];
            assert!(config.contains(&format!("\n{}\n", key.replace("DIR", dir))), "{config}");
            assert_eq!(files.contains_key("/etc/systemd/system/opt-cni-bin.mount"), installs);
            assert_eq!(files.contains_key("/etc/systemd/system/containerd.service.d/10-cni.conf"), installs);
        }
    }
    assert!(rendered(&ha("etcd1")).keys().all(|path| !path.contains("cni")));
    let tmpfiles = include_str!("../../rootfs-overlays/common/usr/lib/tmpfiles.d/imgbuild.conf");
    let mut profile = ha("node1");
    profile.network.plugin = NetworkPlugin::Calico;
    let mount = &rendered(&profile)["/etc/systemd/system/opt-cni-bin.mount"];
    for dir in ["upperdir=", "workdir="] {
        let dir = mount.split(dir).nth(1).unwrap().split([',', '\n']).next().unwrap();
        assert!(tmpfiles.contains(&format!("\nd {dir} ")), "nobody makes {dir}");
    }
}

/// Without a server in /etc/resolv.conf, kubeadm's Corefile makes CoreDNS end.
#[test]
fn coredns_forwards_only_where_there_is_somebody_to_forward_to() {
    const PATH: &str = "/etc/kubernetes/imgbuild/10-coredns.yaml";
    let mut alone = ha("master1");
    assert!(!rendered(&alone).contains_key(PATH));
    alone.network.dns_servers.clear();
    alone.network.dns_domain = "k8s.example.org".into();
    insta::assert_snapshot!("coredns_without_servers", rendered(&alone)[PATH]);
    alone.kubernetes.dns = ClusterDns::None;
    assert!(!rendered(&alone).contains_key(PATH));
    let mut worker = ha("node1");
    worker.network.dns_servers.clear();
    assert!(!rendered(&worker).contains_key(PATH), "masters apply it");
}

#[test]
fn a_load_balancer_edited_by_hand_is_still_one_that_works() {
    let edits: [fn(&mut LoadBalancer); 4] = [
        |lb| {
            if let LoadBalancer::Keepalived { vrid, .. } = lb {
                *vrid = 0
            }
        },
        |lb| {
            if let LoadBalancer::Keepalived { port, .. } = lb {
                *port = 6443
            }
        },
        |lb| {
            if let LoadBalancer::Keepalived { check_interval_seconds, .. } = lb {
                *check_interval_seconds = 0
            }
        },
        |lb| {
            if let LoadBalancer::Keepalived { check_interval_seconds, .. } = lb {
                *check_interval_seconds = 61
            }
        },
    ];
    for edit in edits {
        let mut profile = ha("master1");
        edit(&mut profile.load_balancer);
        let error = render::files(&profile).unwrap_err().to_string();
        assert!(error.contains("bad load balancer"), "{error}");
    }
}

/// Slow machines are asked less often and given longer to answer; haproxy, curl and keepalived move together.
#[test]
fn the_check_interval_moves_every_timeout() {
    let files = |seconds: u32| {
        let mut profile = ha("master1");
        if let LoadBalancer::Keepalived { check_interval_seconds, .. } = &mut profile.load_balancer {
            *check_interval_seconds = seconds;
        }
        let files = rendered(&profile);
        (files["/etc/haproxy/haproxy.cfg"].clone(), files["/etc/keepalived/keepalived.conf"].clone())
    };
    for (seconds, check, timeout, advert) in [(1, 2, 3, 1), (5, 10, 11, 2), (60, 120, 121, 30)] {
        let (haproxy, keepalived) = files(seconds);
        assert!(haproxy.contains(&format!(" inter {seconds}s ")), "{haproxy}");
        assert!(haproxy.contains(&format!("timeout check {check}s\n")), "{haproxy}");
        assert!(keepalived.contains(&format!("--max-time {check} ")), "{keepalived}");
        for line in [format!("interval {seconds}"), format!("timeout {timeout}"), format!("advert_int {advert}")] {
            assert!(keepalived.contains(&format!("    {line}\n")), "{line} in {keepalived}");
        }
    }
}

#[test]
fn a_sole_master_behind_keepalived_has_no_empty_list_of_peers() {
    let mut profile = ha("master1");
    profile.peers.retain(|peer| !["master2", "master3"].contains(&peer.name.as_str()));
    let keepalived = &rendered(&profile)["/etc/keepalived/keepalived.conf"];
    assert!(!keepalived.contains("unicast"), "{keepalived}");
}

/// Who has a route back to a pod sees the pod; who has none sees its node.
#[test]
fn only_what_has_no_route_back_is_masqueraded() {
    let rules = &rendered(&ha("node1"))["/etc/imgbuild/masquerade.nft"];
    for direct in ["10.200.0.0/16", "19.190.3.140", "19.190.3.141", "19.190.3.142", "19.190.3.143"] {
        assert!(rules.contains(direct), "{direct} in {rules}");
    }
    for without_route in ["19.190.3.130", "19.190.3.0/24", "19.190.3.2\n"] {
        assert!(!rules.contains(without_route), "{without_route} in {rules}");
    }
    let files = rendered(&ha("node1"));
    assert!(files["/etc/cni/net.d/10-imgbuild.conflist"].contains("\"ipMasq\": false"));
    assert!(files["/etc/systemd/system/kubelet.service"].contains("Wants=imgbuild-masquerade.service"));
    let mut other = ha("node1");
    other.network.plugin = NetworkPlugin::Calico;
    assert!(rendered(&other).keys().all(|path| !path.contains("masquerade")));
}

/// Nodes look for each other where nobody else sees to routes, and where there are pods.
#[test]
fn routes_to_nodes_of_later_are_the_bridges_business() {
    let looks = |profile: &NodeProfile| {
        let files = rendered(profile);
        let wanted = files
            .get("/etc/systemd/system/kubelet.service")
            .is_some_and(|unit| unit.contains("Wants=imgbuild-routes.timer\n"));
        let there = ["service", "timer"].map(|kind| format!("/etc/systemd/system/imgbuild-routes.{kind}"));
        assert!(there.iter().all(|path| files.contains_key(path) == wanted));
        // kubelet starts it. One that timers.target wants would be there before anything else, and not on the first boot.
        assert!(!files.keys().any(|path| path.contains(".wants/imgbuild-routes")));
        wanted
    };
    assert!(looks(&ha("node1")) && looks(&ha("master2")) && looks(&lab()));
    assert!(!looks(&ha("etcd1")));
    let mut other = ha("node1");
    other.network.plugin = NetworkPlugin::Calico;
    assert!(!looks(&other));
}

#[test]
fn a_node_without_a_default_route_still_has_one_to_services() {
    let network = |profile: &NodeProfile| rendered(profile).remove("/etc/systemd/network/10-node.network").unwrap();
    let with_gateway = ha("node1");
    assert!(!network(&with_gateway).contains("Destination=10.201.0.0/16"));
    let mut without = ha("node1");
    without.network.gateway = None;
    assert!(network(&without).contains("[Route]\nDestination=10.201.0.0/16\n"));
    let mut etcd = ha("etcd1");
    etcd.network.gateway = None;
    assert!(!network(&etcd).contains("[Route]"));
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
