// SPDX-License-Identifier: MIT OR Apache-2.0

//! `lab-ha` on seven virtual machines: three etcd members, three masters behind a virtual address, one worker. They form one
//! cluster whoever is first; then machines die, and come back with their disk or without.
//!
//! `tests/run-ha` runs it. It takes 13 GB of memory. What it measures it prints.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use imgbuild_tests::cluster::{Built, Failures, TestCluster};
use imgbuild_tests::qemu::{Accelerator, turn};
use imgbuild_tests::random::Random;
use imgbuild_tests::workload::{COMMAND, POD, boot_id, health, is_ready_again, nodes_are_ready};

/// For one machine with KVM, as all limits; the harness makes more of it.
const CONVERGE: Duration = Duration::from_secs(400);

const ETCD: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];
const MASTERS: [&str; 3] = ["master-1", "master-2", "master-3"];
const WORKER: &str = "worker-1";
const VIP: &str = "10.77.0.20";

#[test]
#[ignore = "seven machines: run it with tests/run-ha"]
fn booted_lab_ha_forms_one_cluster_and_survives() {
    let _turn = turn();
    let mut random = Random::from_environment();
    let built = Built::many("lab-ha", "lab-ha");
    let mut cluster = TestCluster::new(&built, "ha");

    seven_machines_form_one_cluster(&mut cluster, &mut random);
    let formed = Identity::of(&mut cluster, "etcd-1");
    println!("{formed:?}");
    formed.is_one_cluster(&mut cluster);

    a_member_with_an_empty_disk_is_replaced(&mut cluster, "etcd-2");
    a_worker_with_an_empty_disk_joins(&mut cluster);
    // Both kinds of master: the one that once initialised the cluster must not do so again.
    let initialised = formed.initialised_by();
    let other = MASTERS.into_iter().find(|name| *name != initialised).expect("three masters");
    for master in [initialised, other] {
        a_master_with_an_empty_disk_joins(&mut cluster, master);
    }

    watch_the_virtual_address(&mut cluster);
    a_stopped_haproxy_moves_the_virtual_address(&mut cluster);
    a_dead_master_moves_the_virtual_address(&mut cluster);
    a_dead_member_stops_nothing(&mut cluster);
    stop_watching(&mut cluster);

    assert_eq!(Identity::of(&mut cluster, "etcd-1"), formed, "it is not the cluster that it was");
    formed.is_one_cluster(&mut cluster);
    all_is_good(&mut cluster);
}

/// Random order, but that two masters are switched on at the same instant: both want to initialise.
fn seven_machines_form_one_cluster(cluster: &mut TestCluster, random: &mut Random) {
    let mut masters = MASTERS;
    random.shuffle(&mut masters);
    let mut groups = vec![vec![masters[0], masters[1]], vec![masters[2]], vec![WORKER]];
    groups.extend(ETCD.map(|name| vec![name]));
    random.shuffle(&mut groups);
    let longest = match Accelerator::of_many() {
        Accelerator::Kvm | Accelerator::Uml => Duration::from_secs(10),
        Accelerator::Tcg => Duration::from_secs(120),
    };
    cluster.switch_on_at_random(&groups, random, longest);
    cluster.wait_converged(&everybody(), CONVERGE, Failures::Refused);
    nodes_are_ready(cluster.vm(masters[2]), &members());
}

fn everybody() -> Vec<&'static str> {
    [&ETCD[..], &MASTERS, &[WORKER]].concat()
}

/// Nodes of Kubernetes.
fn members() -> Vec<&'static str> {
    [&MASTERS[..], &[WORKER]].concat()
}

/// What makes a cluster this one: it must be the same at the end.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    /// Keys below `/imgbuild/` that have no lease, with their values and the revisions at which they were made.
    records: Vec<(String, String, u64)>,
}

impl Identity {
    fn of(cluster: &mut TestCluster, member: &str) -> Self {
        // The claim has a lease, which runs out after the initialisation if it was not given back.
        let keys = etcdctl(cluster, member, "get --prefix /imgbuild/ --keys-only");
        let keys = cluster.until(member, &keys, POD, |done| {
            done.status == 0
                && done.output.contains("/initialised")
                && !done.output.lines().any(|l| l.ends_with("/init"))
        });
        let records = keys.lines().filter(|line| !line.is_empty()).map(|key| {
            let mut get = |how: &str| {
                let get = etcdctl(cluster, member, &format!("get {key} {how}"));
                cluster.output(member, &get, COMMAND)
            };
            let (value, fields) = (get("--print-value-only"), get("-w fields"));
            let created = fields.lines().find_map(|line| line.strip_prefix("\"CreateRevision\" :"));
            let created = created.unwrap_or_else(|| panic!("no CreateRevision in\n{fields}")).trim().parse().unwrap();
            (key.to_owned(), value.trim().to_owned(), created)
        });
        Self { records: records.collect() }
    }

    fn values(&self, name: &str) -> Vec<&str> {
        let records = self.records.iter().filter(|(key, ..)| key.rsplit('/').next() == Some(name));
        records.map(|(_, value, _)| value.as_str()).collect()
    }

    fn initialised_by(&self) -> &'static str {
        let [first] = self.values("initialised")[..] else { panic!("one `initialised` wanted: {self:?}") };
        MASTERS.into_iter().find(|name| *name == first).unwrap_or_else(|| panic!("not by a master: {self:?}"))
    }

    /// One cluster in etcd, one record of an initialisation, by a master; and one cluster behind every API server.
    fn is_one_cluster(&self, cluster: &mut TestCluster) {
        let ids: BTreeSet<&str> = self.records.iter().filter_map(|(key, ..)| key.split('/').nth(2)).collect();
        assert_eq!(ids.len(), 1, "{self:?}");
        assert_eq!(self.values("cluster").len(), 1, "{self:?}");
        self.initialised_by();

        let uids: BTreeSet<String> = MASTERS
            .iter()
            .map(|master| {
                // Each API server by its own address, not by the virtual one.
                let server = format!("https://{}:6443", cluster.address(master));
                let get =
                    format!("kubectl --server {server} get namespace kube-system -o jsonpath='{{.metadata.uid}}'");
                cluster.until(master, &get, POD, |done| done.status == 0).trim().to_owned()
            })
            .collect();
        assert_eq!(uids.len(), 1, "{uids:?}");
    }
}

/// A command line for a member of etcd, that asks itself.
fn etcdctl(cluster: &mut TestCluster, member: &str, arguments: &str) -> String {
    format!(
        "ETCDCTL_API=3 etcdctl --endpoints=https://{}:2379 --cacert=/etc/etcd/pki/ca.crt --cert=/etc/etcd/pki/peer.crt \
         --key=/etc/etcd/pki/peer.key {arguments}",
        cluster.address(member)
    )
}

/// Asks the API server through the virtual address again and again, from the worker, and writes down when, and what it said.
fn watch_the_virtual_address(cluster: &mut TestCluster) {
    // An emulated machine that asks every second has no time for anything else.
    let pause = match Accelerator::of_many() {
        Accelerator::Kvm | Accelerator::Uml => 1,
        Accelerator::Tcg => 4,
    };
    let script = format!(
        "while :; do code=$(curl -k -s -m 5 -o /dev/null -w '%{{http_code}}' https://{VIP}:8443/readyz); \
         echo $(date +%s.%N) $code >> /run/watch.log; sleep {pause}; done"
    );
    let start =
        format!("cat > /run/watch.sh <<'END'\n{script}\nEND\nsystemd-run --quiet --unit=watch sh /run/watch.sh");
    cluster.output(WORKER, &start, COMMAND);
    is_answered(cluster, 3);
}

/// Waits until as many requests on end were answered well.
fn is_answered(cluster: &mut TestCluster, times: usize) {
    cluster.until(WORKER, &format!("tail -n {times} /run/watch.log"), POD, |done| {
        done.output.lines().filter(|line| line.ends_with(" 200")).count() == times
    });
}

fn stop_watching(cluster: &mut TestCluster) {
    let all = answers(cluster, 0.0);
    let failed = all.iter().filter(|(_, good)| !good).count();
    println!("watched: {} requests, {failed} failed", all.len());
    cluster.output(WORKER, "systemctl stop watch", COMMAND);
}

/// Requests that ended after `since`, by the worker's clock: when, and whether well.
fn answers(cluster: &mut TestCluster, since: f64) -> Vec<(f64, bool)> {
    let log = cluster.output(WORKER, "cat /run/watch.log", COMMAND);
    let line = |line: &str| {
        let (time, code) = line.split_once(' ')?;
        Some((time.parse::<f64>().ok()?, code == "200"))
    };
    log.lines().filter_map(line).filter(|(time, _)| *time > since).collect()
}

/// The longest time between two requests that were answered, from `since` on.
fn longest_gap(answers: &[(f64, bool)], since: f64) -> f64 {
    let mut last = since;
    let mut longest = 0_f64;
    for (time, _) in answers.iter().filter(|(_, good)| *good) {
        longest = longest.max(time - last);
        last = *time;
    }
    longest
}

/// Does something, waits until requests are answered again, and gives the longest time without an answer in seconds.
fn gap(cluster: &mut TestCluster, what: &str, act: impl FnOnce(&mut TestCluster)) -> f64 {
    let since: f64 = cluster.output(WORKER, "date +%s.%N", COMMAND).trim().parse().unwrap();
    act(cluster);
    // Requests that were on their way when it happened may still end well: first some time has to pass.
    thread::sleep(Duration::from_secs(20));
    is_answered(cluster, 5);
    let answers = answers(cluster, since);
    let (gap, failed) = (longest_gap(&answers, since), answers.iter().filter(|(_, good)| !good).count());
    println!("{what}: {gap:.1} s without an answer, {failed} of {} requests failed", answers.len());
    gap
}

/// The checks run every 5 s in this cluster file, three of them have to fail, and the others wait three adverts; the rest is
/// for machines that share processors.
fn longest_failover() -> f64 {
    match Accelerator::of_many() {
        Accelerator::Kvm | Accelerator::Uml => 60.0,
        Accelerator::Tcg => 180.0,
    }
}

/// The one master that has the virtual address.
fn holder(cluster: &mut TestCluster, masters: &[&'static str]) -> &'static str {
    for _ in 0..60 {
        let holders: Vec<&str> = masters
            .iter()
            .copied()
            .filter(|master| cluster.output(master, "ip -4 -o address show", COMMAND).contains(&format!(" {VIP}/")))
            .collect();
        if let [holder] = holders[..] {
            return holder;
        }
        // On its way from one to another.
        thread::sleep(Duration::from_secs(1));
    }
    panic!("{VIP} is not on exactly one of {masters:?}");
}

/// Longer than any check and advert: nothing comes back by itself in this time, or not at all.
fn stays_with(cluster: &mut TestCluster, name: &str) {
    for _ in 0..6 {
        thread::sleep(Duration::from_secs(10));
        assert_eq!(holder(cluster, &MASTERS), name, "the virtual address went back by itself");
    }
}

fn a_stopped_haproxy_moves_the_virtual_address(cluster: &mut TestCluster) {
    let first = holder(cluster, &MASTERS);
    let gap = gap(cluster, "haproxy stopped", |cluster| {
        cluster.output(first, "systemctl stop haproxy", COMMAND);
    });
    let second = holder(cluster, &MASTERS);
    assert_ne!(second, first, "the virtual address stayed where haproxy is stopped");
    assert!(gap < longest_failover(), "{gap:.1} s");
    cluster.output(first, "systemctl start haproxy", COMMAND);
    stays_with(cluster, second);
}

fn a_dead_master_moves_the_virtual_address(cluster: &mut TestCluster) {
    let first = holder(cluster, &MASTERS);
    let left: Vec<&str> = MASTERS.into_iter().filter(|name| *name != first).collect();
    let before = boot_id(cluster.vm(left[0]), first);
    let gap = gap(cluster, "master killed", |cluster| cluster.cut_power(first));
    let second = holder(cluster, &left);
    assert!(gap < longest_failover(), "{gap:.1} s");
    cluster.switch_on(first);
    cluster.wait_converged(&[first], CONVERGE, Failures::Expected);
    is_ready_again(cluster.vm(second), first, &before);
    stays_with(cluster, second);
}

fn a_dead_member_stops_nothing(cluster: &mut TestCluster) {
    let gap = gap(cluster, "etcd member killed", |cluster| cluster.cut_power("etcd-3"));
    assert!(gap < longest_failover(), "{gap:.1} s");
    // Reads may come from a cache; this is written by two of three. May be tried again, should the answer have been lost.
    let write = "kubectl create configmap with-two-members --dry-run=client -o yaml | kubectl apply -f -";
    cluster.until("master-1", write, POD, |done| done.status == 0);
    cluster.switch_on("etcd-3");
    cluster.wait_converged(&["etcd-3"], CONVERGE, Failures::Expected);
    three_members_are_healthy(cluster, "etcd-3");
}

fn three_members_are_healthy(cluster: &mut TestCluster, on: &str) {
    let health = etcdctl(cluster, on, "endpoint health --cluster 2>&1");
    cluster.until(on, &health, POD, |done| {
        done.status == 0 && done.output.lines().filter(|line| line.contains("is healthy")).count() == 3
    });
    let members = members_of_etcd(cluster, on);
    assert_eq!(members.lines().filter(|line| line.contains(", started,")).count(), 3, "{members}");
    assert_eq!(members.lines().count(), 3, "{members}");
}

fn members_of_etcd(cluster: &mut TestCluster, on: &str) -> String {
    let list = etcdctl(cluster, on, "member list");
    cluster.output(on, &list, COMMAND)
}

fn member_id(cluster: &mut TestCluster, on: &str, name: &str) -> String {
    let members = members_of_etcd(cluster, on);
    let line = members.lines().find(|line| line.contains(&format!(", {name},")));
    line.unwrap_or_else(|| panic!("no {name} in\n{members}")).split(',').next().unwrap().to_owned()
}

fn a_member_with_an_empty_disk_is_replaced(cluster: &mut TestCluster, name: &str) {
    let before = member_id(cluster, "etcd-1", name);
    cluster.reimage(name);
    cluster.switch_on(name);
    cluster.wait_converged(&[name], CONVERGE, Failures::Refused);
    three_members_are_healthy(cluster, name);
    let after = member_id(cluster, "etcd-1", name);
    assert_ne!(after, before, "{name} lost its data and is the same member");
    nodes_are_ready(cluster.vm("master-2"), &members());
}

fn a_master_with_an_empty_disk_joins(cluster: &mut TestCluster, name: &str) {
    let witness = MASTERS.into_iter().find(|other| *other != name).expect("three masters");
    let before = boot_id(cluster.vm(witness), name);
    let identity = Identity::of(cluster, "etcd-1");
    cluster.reimage(name);
    cluster.switch_on(name);
    cluster.wait_converged(&[name], CONVERGE, Failures::Refused);
    let log = cluster.vm(name).console.since(0).to_lowercase();
    let own = || log.lines().filter(|line| line.contains(&format!("firstboot: {name}: control-plane: ")));
    assert!(own().any(|line| line.contains("joins the cluster")), "{name} does not say that it joins");
    assert!(own().all(|line| !line.contains("this node initialises")), "{name} has initialised another cluster");
    is_ready_again(cluster.vm(witness), name, &before);
    assert_eq!(Identity::of(cluster, "etcd-1"), identity);
}

fn a_worker_with_an_empty_disk_joins(cluster: &mut TestCluster) {
    let before = boot_id(cluster.vm("master-2"), WORKER);
    cluster.reimage(WORKER);
    cluster.switch_on(WORKER);
    cluster.wait_converged(&[WORKER], CONVERGE, Failures::Refused);
    is_ready_again(cluster.vm("master-2"), WORKER, &before);
}

fn all_is_good(cluster: &mut TestCluster) {
    nodes_are_ready(cluster.vm("master-1"), &members());
    for master in MASTERS {
        health(cluster.vm(master), &[0]);
    }
}

#[test]
fn the_longest_gap_is_between_two_good_answers() {
    let answers = [(10.0, true), (11.0, false), (15.0, true), (16.0, true)];
    assert!((longest_gap(&answers, 9.5) - 5.0).abs() < 1e-9);
    assert!((longest_gap(&answers, 2.0) - 8.0).abs() < 1e-9);
}
