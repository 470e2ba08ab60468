// SPDX-License-Identifier: MIT OR Apache-2.0

//! `lab-loong64`, built on x86_64, on emulated loongarch64 machines: UEFI firmware, systemd-boot, a kernel with pages of 16 KiB.
//! Every change has its etcd member; the master, whose programs take long to compile and longer to run, has `tests/run-loong64`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::{Duration, Instant};

use imgbuild_tests::cli::sha256;
use imgbuild_tests::cluster::{Built, Failures, TestCluster};
use imgbuild_tests::qemu::{Vm, turn};
use imgbuild_tests::workload::{
    COMMAND, POD, busybox, no_secret_is_left_on_the_seed, node_reaches, nodes_are_ready, pod_reaches, service, web_pod,
};

/// For one machine with KVM, as all limits; the harness makes more of it.
const CONVERGE: Duration = Duration::from_secs(60);
const BOOT: Duration = Duration::from_secs(60);

const CLUSTER: &str = "lab-loong64";
const VIP: &str = "10.0.2.20";

#[test]
fn booted_lab_loong64_etcd_1_converges() {
    let _turn = turn();
    let built = Built::only(CLUSTER, CLUSTER, "etcd-1");
    let image = built.node("etcd-1").image.clone();
    let before = sha256(&image);

    let mut cluster = TestCluster::new(&built, "loong64");
    cluster.switch_on("etcd-1");
    cluster.wait_converged(&["etcd-1"], CONVERGE, Failures::Refused);
    let etcd_1 = cluster.vm("etcd-1");
    let machine = etcd_1.output("uname -m; getconf PAGESIZE", COMMAND);
    assert_eq!(machine.split_whitespace().collect::<Vec<_>>(), ["loongarch64", "16384"]);
    etcd_answers_over_tls(etcd_1);
    has_nothing_to_run_pods_with(etcd_1);
    no_secret_is_left_on_the_seed(etcd_1, &image);
    etcdctl(etcd_1, "put /imgbuild-test kept");

    cluster.cut_power("etcd-1");
    cluster.switch_on("etcd-1");
    let etcd_1 = cluster.vm("etcd-1");
    etcd_1.wait_for("firstboot: etcd-1: already converged, nothing to do", BOOT);
    println!("nothing to do: {} s after power on", etcd_1.uptime().as_secs());
    etcd_answers_over_tls(etcd_1);
    assert_eq!(etcdctl(etcd_1, "get --print-value-only /imgbuild-test").trim(), "kept");
    drop(cluster);

    assert_eq!(sha256(&image), before, "the image under test was written to");
}

#[test]
#[ignore = "compiles Kubernetes, and takes 9 GB of memory and long: tests/run-loong64"]
fn booted_lab_loong64_master_1_runs_a_pod() {
    let _turn = turn();
    let built = Built::new(CLUSTER, CLUSTER);
    assert_eq!(built.names(), ["etcd-1", "master-1"]);

    let mut cluster = TestCluster::new(&built, "loong64-pod");
    let begun = Instant::now();
    cluster.switch_on_together(&["etcd-1", "master-1"]);
    // kubeadm alone may take its cluster file's 30 minutes.
    cluster.wait_converged(&["etcd-1", "master-1"], 4 * CONVERGE, Failures::Refused);
    println!("all converged {} s after the first power on", begun.elapsed().as_secs());
    let master = cluster.vm("master-1");
    nodes_are_ready(master, &["master-1"]);
    holds_the_virtual_address(master);
    let image = busybox(master);
    let address = web_pod(master, "web", "master-1", &image);
    let service = service(master, "web");
    node_reaches(master, &address, 8080, "web");
    node_reaches(master, &service, 80, "web");
    pod_reaches(master, "web", &service, 80, "web");
    // `firstboot health` is not asked: it did not come to call this emulated API server, which may take longer than the ten
    // seconds it is given, healthy within several minutes.
    println!("a pod answers {} s after the first power on", begun.elapsed().as_secs());
}

/// keepalived has it, and haproxy leads from it to the API server.
fn holds_the_virtual_address(master: &mut Vm) {
    let addresses = master.output("ip -4 -o address show dev eth0", COMMAND);
    assert!(addresses.contains(&format!(" {VIP}/")), "{addresses}");
    let ready = master.output(&format!("curl --silent --fail --insecure https://{VIP}:8443/readyz"), COMMAND);
    assert_eq!(ready.trim(), "ok");
}

/// Runs `etcdctl` on the member with the certificate that it shows to its peers. After a boot, etcd may not be there yet when
/// firstboot says that it has nothing to do.
fn etcdctl(vm: &mut Vm, arguments: &str) -> String {
    let command = format!("{ETCDCTL} --cert=/etc/etcd/pki/peer.crt --key=/etc/etcd/pki/peer.key {arguments}");
    vm.until(&command, POD, |done| done.status == 0)
}

const ETCDCTL: &str = "ETCDCTL_API=3 etcdctl --endpoints=https://10.0.2.15:2379 --cacert=/etc/etcd/pki/ca.crt";

/// To those who have a certificate, and to nobody else.
fn etcd_answers_over_tls(vm: &mut Vm) {
    let said = etcdctl(vm, "endpoint health");
    assert!(said.contains("https://10.0.2.15:2379 is healthy"), "{said}");
    let stranger = vm.exec(&format!("{ETCDCTL} endpoint health"), COMMAND);
    assert_ne!(stranger.status, 0, "etcd answers a client without a certificate: {}", stranger.output);
}

/// Contract 3: no Kubernetes, no container images, no container runtime of ours.
fn has_nothing_to_run_pods_with(vm: &mut Vm) {
    let files = vm.output("cd /opt/imgbuild && find . -type f | sort", COMMAND);
    assert_eq!(files.split_whitespace().collect::<Vec<_>>(), ["./bin/firstboot", "./payload.json"]);
    let programs = "containerd containerd-shim-runc-v2 ctr kubeadm kubelet kubectl crictl";
    let found = vm.output(&format!("for program in {programs}; do command -v $program; done; true"), COMMAND);
    assert_eq!(found, "");
}
