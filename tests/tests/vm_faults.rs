// SPDX-License-Identifier: MIT OR Apache-2.0

//! What goes wrong in a room, on nodes of `lab-split`: the console says what is wrong in words that lead to it, and when it
//! is mended the node goes on by itself. Words are looked for loosely: what matters is that they name the thing.
//!
//! `tests/run-faults` runs all of them; each test boots only the machines it needs. Most need one, for some minutes with TCG.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime};

use imgbuild_tests::build::binary;
use imgbuild_tests::cli::Outcome;
use imgbuild_tests::cluster::{Built, Failures, TestCluster};
use imgbuild_tests::frames::{Advert, Mac};
use imgbuild_tests::qemu::turn;
use imgbuild_tests::workload::{
    COMMAND, boot_id, busybox, is_ready_again, node_reaches, nodes_are_ready, pod_reaches, web_pod,
};

/// For one machine with KVM, as all limits; the harness makes more of it.
const CONVERGE: Duration = Duration::from_secs(300);
/// Until firstboot comes to the step that fails.
const BOOT: Duration = Duration::from_secs(120);

/// Another machine.
const SQUATTER: Mac = [0x52, 0x54, 0x00, 0xbb, 0x00, 0x09];

fn lab_split() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| Built::new("lab-split", "lab-split"))
}

#[test]
#[ignore = "boots a machine: run it with tests/run-faults"]
fn booted_fault_address_in_use() {
    let _turn = turn();
    let mut cluster = TestCluster::new(lab_split(), "fault-address");
    let address: Ipv4Addr = cluster.address("worker-1").parse().unwrap();
    let squatter = cluster.switch().host("squatter").hold_address(SQUATTER, address);
    cluster.switch_on("worker-1");
    let worker = cluster.vm("worker-1");
    let line =
        worker.wait_for_words(&["firstboot: worker-1:", "10.77.0.31", "in use|already|another|taken|has it"], 0, BOOT);
    println!("{line}");
    // The one who has it can be found.
    worker.wait_for_words(&["firstboot: worker-1:", "52:54:00:bb:00:09"], 0, BOOT);
    assert!(squatter.sent() > 0, "nobody asked who has the address");
    let from = worker.console.position();
    drop(squatter);
    worker.wait_for_words(&["firstboot: worker-1: containerd|images:"], from, CONVERGE);
}

#[test]
#[ignore = "boots a machine: run it with tests/run-faults"]
fn booted_fault_image_on_another_machine() {
    let _turn = turn();
    let mut cluster = TestCluster::new(lab_split(), "fault-machine");
    // With the right one switched off, this would be a second worker-1.
    cluster.switch_on_with("worker-1", |builder| {
        let mut builder = builder;
        builder.mac = "52:54:00:bb:00:07".to_owned();
        builder
    });
    let line =
        cluster.vm("worker-1").wait_for_words(&["firstboot: worker-1:", "network", "52:54:00:bb:00:07"], 0, BOOT);
    println!("{line}");
    let line = cluster.vm("worker-1").wait_for_words(&["FAILED step=network", "52:54:00:77:00:1f"], 0, CONVERGE);
    println!("{line}");
}

/// The year, or the one beside it on New Year's Eve.
fn year() -> u64 {
    const AVERAGE_YEAR: u64 = 31_556_952;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    1970 + now.as_secs() / AVERAGE_YEAR
}

#[test]
#[ignore = "boots a machine: run it with tests/run-faults"]
fn booted_fault_join_credential_expired() {
    let _turn = turn();
    let mut cluster = TestCluster::new(lab_split(), "fault-expired");
    // No time server in this cluster: the clock is the machine's own.
    cluster.switch_on_with("worker-1", |builder| {
        let mut builder = builder;
        // The credential, which is for days, is over, and the authority is not. systemd sets back what is 15 years beyond its epoch.
        builder.arguments.extend(["-rtc".to_owned(), format!("base={}-01-01T00:00:00", year() + 5)]);
        builder
    });
    let line = cluster.vm("worker-1").wait_for_words(
        &[
            "firstboot: worker-1:",
            "FAILED step=",
            "expired|not valid|valid until",
            "credential|discovery|seed|certificate",
        ],
        0,
        BOOT,
    );
    println!("{line}");
}

#[test]
#[ignore = "boots two machines: run it with tests/run-faults"]
fn booted_fault_nobody_else_is_there() {
    let _turn = turn();
    let mut cluster = TestCluster::new(lab_split(), "fault-alone");
    cluster.switch_on_together(&["master-1", "worker-1"]);
    let master = ["firstboot: master-1:", "wait|no answer", "etcd-1|10.77.0.11"];
    println!("{}", cluster.vm("master-1").wait_for_words(&master, 0, CONVERGE));
    let worker = ["firstboot: worker-1:", "wait|nobody|no answer", "10.77.0.21|master-1"];
    println!("{}", cluster.vm("worker-1").wait_for_words(&worker, 0, CONVERGE));
    // A wait is no failure: nothing has failed, and all goes on when the one that is missing comes.
    let status = cluster.vm("master-1").output("firstboot status", COMMAND);
    assert!(status.contains("etcd-1") || status.contains("10.77.0.11"), "{status}");
    cluster.switch_on("etcd-1");
    cluster.wait_converged(&["etcd-1", "master-1", "worker-1"], CONVERGE, Failures::Refused);
    nodes_are_ready(cluster.vm("master-1"), &["master-1", "worker-1"]);
}

/// Needs a whole cluster; what else can go wrong with one follows in the same test.
#[test]
#[ignore = "boots three machines: run it with tests/run-faults"]
fn booted_fault_worker_of_another_cluster_and_sole_master_without_disk() {
    let _turn = turn();
    // The same cluster file, and secrets of its own.
    let other = Built::new("lab-split", "lab-split-other");
    let mut cluster = TestCluster::new(lab_split(), "fault-other");
    cluster.switch_on_together(&["etcd-1", "master-1"]);
    cluster.wait_converged(&["etcd-1", "master-1"], CONVERGE, Failures::Refused);

    cluster.add(other.node("worker-1"));
    cluster.switch_on("worker-1");
    let words = ["firstboot: worker-1:", "another ca|other ca|another cluster|unknown authority"];
    println!("{}", cluster.vm("worker-1").wait_for_words(&words, 0, CONVERGE));
    // Time enough for a node that does not look to join.
    thread::sleep(Duration::from_secs(60));
    nodes_are_ready(cluster.vm("master-1"), &["master-1"]);
    cluster.cut_power("worker-1");

    cluster.add(lab_split().node("worker-1"));
    cluster.switch_on("worker-1");
    cluster.wait_converged(&["worker-1"], CONVERGE, Failures::Refused);
    nodes_are_ready(cluster.vm("master-1"), &["master-1", "worker-1"]);

    // All the cluster knows lies in etcd: a fresh master serves it again, the worker and what it runs included.
    let master = cluster.vm("master-1");
    let before = boot_id(master, "master-1");
    master.until("kubectl create configmap kept --dry-run=client -o yaml | kubectl apply -f -", CONVERGE, |done| {
        done.status == 0
    });
    cluster.reimage("master-1");
    cluster.switch_on("master-1");
    cluster.wait_converged(&["master-1"], CONVERGE, Failures::Refused);
    let master = cluster.vm("master-1");
    is_ready_again(master, "master-1", &before);
    nodes_are_ready(master, &["master-1", "worker-1"]);
    master.output("kubectl get configmap kept", COMMAND);

    a_worker_more(&mut cluster);
}

/// Appended to the cluster file days later: no other node is touched, and yet its pods are reached from all of them.
fn a_worker_more(cluster: &mut TestCluster) {
    let node = lab_split().append(
        "[[node]]\nname = \"worker-2\"\nroles = [\"worker\"]\naddress = \"10.77.0.32\"\nmac = \"52:54:00:77:00:20\"\n",
    );
    cluster.add(&node);
    cluster.switch_on("worker-2");
    cluster.wait_converged(&["worker-2"], CONVERGE, Failures::Refused);
    let master = cluster.vm("master-1");
    nodes_are_ready(master, &["master-1", "worker-1", "worker-2"]);
    let image = busybox(master);
    let first = web_pod(master, "on-worker-1", "worker-1", &image);
    let second = web_pod(master, "on-worker-2", "worker-2", &image);
    node_reaches(master, &second, 8080, "on-worker-2");
    pod_reaches(master, "on-worker-1", &second, 8080, "on-worker-2");
    pod_reaches(master, "on-worker-2", &first, 8080, "on-worker-1");
}

/// A master of another keepalived on this segment, first with our virtual address, then with our virtual router's number.
#[test]
#[ignore = "boots a machine: run it with tests/run-faults"]
fn booted_fault_virtual_router_in_use() {
    let _turn = turn();
    let built = Built::new("lab-ha", "lab-ha");
    let vip: Ipv4Addr = "10.77.0.20".parse().unwrap();
    let router = virtual_router_id(&built);
    let mut cluster = TestCluster::new(&built, "fault-router");
    let squatter = cluster.switch().host("squatter").hold_address(SQUATTER, vip);
    cluster.switch_on("master-1");
    let master = cluster.vm("master-1");
    let words = ["FAILED step=load-balancer", "10.77.0.20", "52:54:00:bb:00:09"];
    println!("{}", master.wait_for_words(&words, 0, BOOT));
    drop(squatter);

    let source = "10.77.0.99".parse().unwrap();
    let address = "10.77.0.98".parse().unwrap();
    let advert = Advert { source, to: Advert::EVERYBODY, router, priority: 200, address };
    let other = cluster.switch().host("other").hold_router(SQUATTER, advert);
    let words = ["FAILED step=load-balancer", &format!("virtual router id {router} "), "10.77.0.99", "10.77.0.98"];
    let master = cluster.vm("master-1");
    println!("{}", master.wait_for_words(&words, 0, BOOT));
    let from = master.console.position();
    drop(other);
    // It goes on by itself, up to the wait for etcd.
    let words = ["firstboot: master-1: control-plane:", "etcd-1|10.77.0.11"];
    println!("{}", master.wait_for_words(&words, from, CONVERGE));
    assert!(master.output("ip -4 -o address show", COMMAND).contains(" 10.77.0.20/"), "nobody has the address");
}

/// As it is in keepalived's configuration for this cluster.
fn virtual_router_id(built: &Built) -> u8 {
    let out = tempfile::tempdir().unwrap();
    let mut render = Command::new(binary());
    render.args(["render", "--profile", "master-1", "--cluster"]).args([
        &built.cluster,
        Path::new("--out"),
        out.path(),
    ]);
    Outcome::of(&mut render).succeeds();
    let file = out.path().join("render/master-1/etc/keepalived/keepalived.conf");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("reading {}: {error}", file.display()));
    let id = text.lines().find_map(|line| line.trim().strip_prefix("virtual_router_id "));
    id.unwrap_or_else(|| panic!("no virtual_router_id in\n{text}")).trim().parse().unwrap()
}
