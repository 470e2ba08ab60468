// SPDX-License-Identifier: MIT OR Apache-2.0

//! `lab-split` on three virtual machines: etcd, master and worker find each other by themselves, whoever is switched on
//! first, and whoever loses power on the way.
//!
//! One test does it all, one run after the other. Order, delays and the moment of the power cut are random; the seed is
//! printed, and `IMGBUILD_TEST_SEED` brings them back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::thread;
use std::time::{Duration, Instant};

use imgbuild_tests::cli::contents;
use imgbuild_tests::cluster::{Built, Failures, TestCluster};
use imgbuild_tests::qemu::{Accelerator, turn};
use imgbuild_tests::random::Random;
use imgbuild_tests::workload::{
    POD, boot_id, busybox, health, is_ready_again, no_secret_is_left_on_the_seed, node_reaches, nodes_are_ready,
    pod_reaches, service, web_pod,
};

/// For one machine with KVM, as all limits; the harness makes more of it.
const CONVERGE: Duration = Duration::from_secs(300);

const NODES: [&str; 3] = ["etcd-1", "master-1", "worker-1"];

#[test]
fn booted_lab_split_converges_three_times_from_cold_power_on() {
    let _turn = turn();
    let mut random = Random::from_environment();
    let built = Built::many("lab-split", "lab-split");
    assert_eq!(built.names(), NODES);
    let before = hashes(&built);

    let mut cluster = TestCluster::new(&built, "split-1");
    let first = converge(&mut cluster, &mut random);
    works(&mut cluster);
    for node in &built.nodes {
        no_secret_is_left_on_the_seed(cluster.vm(&node.name), &node.image);
    }
    pods_reach_each_other(&mut cluster);
    health_sees_a_lost_member(&mut cluster);
    drop(cluster);

    let mut cluster = TestCluster::new(&built, "split-2-cut");
    converge_with_a_power_cut(&mut cluster, &mut random, first);
    works_after_an_outage(&mut cluster);
    drop(cluster);

    let mut cluster = TestCluster::new(&built, "split-3");
    converge(&mut cluster, &mut random);
    works(&mut cluster);
    a_worker_with_an_empty_disk_joins_again(&mut cluster);
    drop(cluster);

    assert_eq!(hashes(&built), before, "the images under test were written to");
}

fn hashes(built: &Built) -> Vec<String> {
    built.nodes.iter().map(|node| contents(&node.image)).collect()
}

fn switch_all_on(cluster: &mut TestCluster, random: &mut Random) {
    let mut order = NODES;
    random.shuffle(&mut order);
    // With TCG, a machine needs a minute to come to its first wait for another one.
    let longest = match Accelerator::of_many() {
        Accelerator::Kvm | Accelerator::Uml => Duration::from_secs(10),
        Accelerator::Tcg => Duration::from_secs(60),
    };
    cluster.switch_on_at_random(&order.map(|name| vec![name]), random, longest);
}

/// How long it took, from the first power on to the last node.
fn converge(cluster: &mut TestCluster, random: &mut Random) -> Duration {
    let begun = Instant::now();
    switch_all_on(cluster, random);
    cluster.wait_converged(&NODES, CONVERGE, Failures::Refused);
    let took = begun.elapsed();
    println!("all converged {} s after the first power on", took.as_secs());
    took
}

/// A random machine loses its power at a random moment of the time that the first run took.
fn converge_with_a_power_cut(cluster: &mut TestCluster, random: &mut Random, first: Duration) {
    let begun = Instant::now();
    let victim = *random.one_of(&NODES);
    let moment = random.up_to(first.mul_f64(0.8));
    switch_all_on(cluster, random);
    thread::sleep(moment.saturating_sub(begun.elapsed()));
    cluster.cut_power(victim);
    thread::sleep(random.up_to(Duration::from_secs(20)));
    cluster.switch_on(victim);
    // The others may have given up a step while it was gone, and begin it again.
    cluster.wait_converged(&NODES, CONVERGE, Failures::Expected);
    println!("all converged {} s after the first power on, with a power cut", begun.elapsed().as_secs());
}

fn works(cluster: &mut TestCluster) {
    nodes_are_ready(cluster.vm("master-1"), &["master-1", "worker-1"]);
    health(cluster.vm("master-1"), &[0, 1]);
}

fn pods_reach_each_other(cluster: &mut TestCluster) {
    let master = cluster.vm("master-1");
    let image = busybox(master);
    let on_worker = web_pod(master, "on-worker", "worker-1", &image);
    let on_master = web_pod(master, "on-master", "master-1", &image);
    let service = service(master, "on-worker");

    node_reaches(master, &on_worker, 8080, "on-worker");
    node_reaches(master, &service, 80, "on-worker");
    pod_reaches(master, "on-master", &on_worker, 8080, "on-worker");
    pod_reaches(master, "on-master", &service, 80, "on-worker");
    pod_reaches(master, "on-worker", &on_master, 8080, "on-master");
    let worker = cluster.vm("worker-1");
    node_reaches(worker, &service, 80, "on-worker");
    node_reaches(worker, &on_master, 8080, "on-master");
}

/// `firstboot health` is worth its exit code only if it sees what is wrong.
fn health_sees_a_lost_member(cluster: &mut TestCluster) {
    cluster.switch().unplug("etcd-1");
    let said = health(cluster.vm("master-1"), &[2]);
    assert!(said.contains("etcd-1") || said.contains("10.77.0.11"), "the lost member is not named:\n{said}");
    cluster.switch().plug("etcd-1");
    works_after_an_outage(cluster);
}

/// Without etcd, the control plane's containers are restarted again and again, each time later: `health` rightly calls that a
/// loop for as long as it was a moment ago.
fn works_after_an_outage(cluster: &mut TestCluster) {
    nodes_are_ready(cluster.vm("master-1"), &["master-1", "worker-1"]);
    let said = cluster.until("master-1", "firstboot health", POD, |done| {
        let mut errors = done.output.lines().filter(|line| line.starts_with("error "));
        done.status < 2 || (done.status == 2 && errors.all(|line| line.contains(" restarts.loop ")))
    });
    println!("firstboot health after an outage:\n{said}");
}

fn a_worker_with_an_empty_disk_joins_again(cluster: &mut TestCluster) {
    let before = boot_id(cluster.vm("master-1"), "worker-1");
    cluster.reimage("worker-1");
    cluster.switch_on("worker-1");
    cluster.wait_converged(&["worker-1"], CONVERGE, Failures::Refused);
    is_ready_again(cluster.vm("master-1"), "worker-1", &before);
    works(cluster);
    let master = cluster.vm("master-1");
    let image = busybox(master);
    let pod = web_pod(master, "again", "worker-1", &image);
    node_reaches(master, &pod, 8080, "again");
}
