// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single topics, in the cases that whole reports do not show.

use serde_json::{Value, json};

use super::world::{DATE, NOW, World, ago, crashing, pod, restarted};
use crate::health::collect::{Disk, Facts};
use crate::health::{Check, Level, Report, Source};
use crate::status::{FailureStatus, Phase, Status};

/// The findings of one topic that are not ok, a line each.
fn findings(report: &Report, topic: &str) -> String {
    let bad = |check: &&Check| check.topic() == topic && check.level != Level::Ok;
    let line = |check: &Check| format!("{} {} [{}] {}", check.level.word(), check.id, check.subject, check.finding);
    report.checks.iter().filter(bad).map(line).collect::<Vec<_>>().join("\n")
}

/// All findings of one topic.
fn all(report: &Report, topic: &str) -> String {
    let line = |check: &Check| format!("{} {} [{}] {}", check.level.word(), check.id, check.subject, check.finding);
    report.checks.iter().filter(|check| check.topic() == topic).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn nodes_in_every_bad_state() {
    let mut world = World::lab_ha("master-1");
    world.nodes.retain(|node| node["metadata"]["name"] != "master-3");
    world.nodes.push(super::world::node("laptop", "10.0.2.99", "v1.20.2"));
    world.node_mut("worker-1")["spec"]["unschedulable"] = true.into();
    world.node_mut("worker-1")["status"]["nodeInfo"]["kubeletVersion"] = "v1.19.7".into();
    let pressure = json!({"type": "DiskPressure", "status": "True", "message": "kubelet has disk pressure"});
    world.node_mut("worker-1")["status"]["conditions"][1] = pressure;
    let ready = json!({"type": "Ready", "status": "False", "reason": "KubeletNotReady", "lastTransitionTime": ago(1500),
        "message": "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady"});
    world.node_mut("master-2")["status"]["conditions"][3] = ready;
    insta::assert_snapshot!(findings(&world.report(), "node"), @r"
    error node.ready [master-2] not Ready for 25 min: container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady
    error node.registered [master-3] has never joined, or was removed
    warning node.pressure [worker-1] DiskPressure: kubelet has disk pressure
    warning node.version [worker-1] kubelet is 1.19.7, the cluster 1.20.2
    warning node.cordoned [worker-1] takes no new pods
    info node.stranger [laptop] is not in the profile: somebody added it
    ");
}

#[test]
fn pods_in_every_bad_state() {
    let mut world = World::lab_ha("master-1");
    world.profile.kubernetes.dns = profiles::node::ClusterDns::Coredns;
    world.profile.network.plugin = profiles::node::NetworkPlugin::Calico;
    world.pods.retain(|pod| pod["metadata"]["name"] != "kube-scheduler-master-2");
    let not_ready = |mut pod: Value, waiting: Value| {
        pod["status"]["conditions"][1]["status"] = "False".into();
        pod["status"]["containerStatuses"][0]["state"] = json!({"waiting": waiting});
        pod
    };
    let calico = json!({"k8s-app": "calico-node"});
    for (index, node) in ["master-1", "master-2", "master-3"].iter().enumerate() {
        world.pods.push(pod(&format!("calico-node-{index}"), "calico-node", node, &calico, 999_999));
    }
    let missing = json!({"reason": "ImagePullBackOff", "message": "Back-off pulling image \"calico/node:v3.29.1\""});
    world.pods.push(not_ready(pod("calico-node-w", "calico-node", "worker-1", &calico, 99_999), missing));
    let dns = json!({"k8s-app": "kube-dns"});
    world.pods.push(pod("coredns-a", "coredns", "worker-1", &dns, 99_999));
    world
        .pods
        .push(not_ready(pod("coredns-b", "coredns", "worker-1", &dns, 99_999), json!({"reason": "ContainerCreating"})));
    let mut pending = pod("metrics-server-x", "metrics-server", "", &json!({}), 99_999);
    pending["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
        "message": "0/4 nodes are available: 4 Insufficient memory."}]});
    world.pods.push(pending);
    let mut done = pod("job-x", "job", "worker-1", &json!({}), 99_999);
    done["status"]["phase"] = "Succeeded".into();
    world.pods.push(done);
    insta::assert_snapshot!(findings(&world.report(), "pods"), @r#"
    error pods.control-plane [master-2] no pod of kube-scheduler on master-2
    error pods.network [calico-node-w] ImagePullBackOff: Back-off pulling image "calico/node:v3.29.1"
    warning pods.dns [coredns-b] ContainerCreating
    warning pods.other [metrics-server-x] not scheduled: 0/4 nodes are available: 4 Insufficient memory.
    "#);
    world.pods.retain(|pod| pod["metadata"]["name"] != "coredns-a");
    assert!(
        findings(&world.report(), "pods").contains("error pods.dns [coredns-b] ContainerCreating; no name is resolved")
    );
}

#[test]
fn restarts_are_news_only_when_they_go_on() {
    let judge = |change: fn(Value) -> Value| {
        let mut world = World::lab_ha("master-1");
        let labels = json!({"k8s-app": "kube-proxy"});
        world.pods = vec![change(pod("kube-proxy-x", "kube-proxy", "master-1", &labels, 30 * 86_400))];
        findings(&world.report(), "restarts")
    };
    // The cluster formed; a node rebooted now and then; it was bad once and is over.
    assert_eq!(judge(|pod| restarted(pod, 3, 10)), "");
    assert_eq!(judge(|pod| restarted(pod, 9, 20 * 86_400)), "");
    assert_eq!(judge(|pod| restarted(pod, 900, 8 * 86_400)), "");
    insta::assert_snapshot!(judge(|pod| restarted(pod, 4, 600)), @"warning restarts.loop [kube-proxy-x] 4 restarts in 30 d, one every 7 d, the last 10 min ago; it ended with exit code 1 (Error)");
    insta::assert_snapshot!(judge(|pod| restarted(pod, 900, 2 * 86_400)), @"warning restarts.loop [kube-proxy-x] 900 restarts in 30 d, one every 48 min, the last 2 d ago; it ended with exit code 1 (Error)");
    insta::assert_snapshot!(judge(|pod| restarted(pod, 900, 600)), @"error restarts.loop [kube-proxy-x] 900 restarts in 30 d, one every 48 min, the last 10 min ago; it ended with exit code 1 (Error)");
    insta::assert_snapshot!(judge(|pod| crashing(pod, 2, 5)), @"error restarts.loop [kube-proxy-x] CrashLoopBackOff: 2 restarts in 30 d, one every 15 d, the last 5 s ago; it ended with exit code 1 (Error)");
    // A reboot: containerd found the container dead.
    let rebooted = |pod| {
        let mut pod = restarted(pod, 4, 600);
        pod["status"]["containerStatuses"][0]["lastState"] =
            json!({"terminated": {"exitCode": 255, "reason": "Unknown", "finishedAt": ago(601)}});
        pod
    };
    assert_eq!(judge(rebooted), "");
}

#[test]
fn containers_without_times_are_judged_by_their_reason() {
    let mut world = World::lab_ha("master-1");
    let one = world.pod_mut("kube-scheduler-master-3");
    one["metadata"]["creationTimestamp"] = Value::Null;
    one["status"]["containerStatuses"][0] =
        json!({"name": "kube-scheduler", "restartCount": 7, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
    insta::assert_snapshot!(findings(&world.report(), "restarts"), @"error restarts.loop [kube-scheduler-master-3] CrashLoopBackOff: 7 restarts");
}

#[test]
fn etcd_in_every_bad_state() {
    let mut world = World::lab_ha("master-1");
    let id = world.statuses[0].1["header"]["member_id"].clone();
    world.statuses[0].1["errors"] = json!([format!("memberID:{id} alarm:NOSPACE ")]);
    world.statuses[1].1["errors"] = json!([format!("memberID:{id} alarm:NOSPACE ")]);
    world.statuses[1].1["dbSize"] = (1_800_u64 << 20).into();
    world.statuses[2].1["raftAppliedIndex"] = 80_000.into();
    world.statuses[2].1["isLearner"] = true.into();
    world.members["members"].as_array_mut().unwrap().remove(2);
    world.members["members"].as_array_mut().unwrap().extend([
        json!({"ID": 255, "name": "old-etcd", "peerURLs": ["https://10.0.2.77:2380"]}),
        json!({"ID": 254, "peerURLs": ["https://10.0.2.12:2380"]}),
    ]);
    insta::assert_snapshot!(findings(&world.report(), "etcd"), @r"
    error etcd.alarm [etcd-1] alarm NOSPACE: writes are refused
    error etcd.membership [etcd-3] is no member of the cluster
    warning etcd.quorum [] 2 of 4 members are healthy: one more failure stops writes
    warning etcd.database [etcd-2] the database has 87 % of its quota of 2048 MiB, 15 MiB of it in use
    warning etcd.learner [etcd-3] is a learner
    warning etcd.lag [etcd-3] is 10123 entries behind the others
    warning etcd.stranger [old-etcd] member ff is not in the profile, but counts for the quorum
    warning etcd.membership [https://10.0.2.12:2380] member fe was added, but has never started
    ");
}

#[test]
fn the_margin_of_the_quorum_is_said_in_words() {
    let margin = |down: &[&str]| {
        let mut world = World::lab_ha("etcd-1");
        down.iter().for_each(|name| world.down(name));
        let report = world.report();
        report.checks.iter().find(|check| check.id == "etcd.quorum").unwrap().finding.clone()
    };
    assert_eq!(margin(&[]), "3 of 3 members are healthy: one may fail");
    assert_eq!(margin(&["etcd-2"]), "2 of 3 members are healthy: one more failure stops writes");
    assert_eq!(margin(&["etcd-2", "etcd-3"]), "1 of 3 members runs: no quorum, nothing can be written");
    assert_eq!(margin(&["etcd-1", "etcd-2", "etcd-3"]), "none of 3 members answers: nothing can be read or written");
}

/// A master that is still converging has no kubeconfig: it cannot tell, and does not cry wolf.
#[test]
fn a_node_that_has_not_joined_cannot_tell() {
    let mut world = World::lab_ha("master-2");
    world.not_joined = true;
    let report = world.report();
    assert_eq!(report.level, Level::Unknown, "{}", report.headline);
    assert!(findings(&report, "node").contains("admin.conf is not there: this node has not joined yet"));
    assert!(!world.asked().iter().any(|line| line.starts_with("kubectl")));
}

/// A member that the profile does not know has a vote, and nobody knows whether it uses it.
#[test]
fn strangers_count_for_the_quorum() {
    let mut world = World::lab_ha("etcd-1");
    let stranger = json!({"ID": 255, "name": "old-etcd", "peerURLs": ["https://10.0.2.77:2380"]});
    world.members["members"].as_array_mut().unwrap().push(stranger);
    let report = world.report();
    let quorum = report.checks.iter().find(|check| check.id == "etcd.quorum").unwrap();
    assert_eq!(quorum.finding, "3 of 4 members are healthy: one more failure stops writes");
    // A learner has none.
    world.members["members"][3]["isLearner"] = true.into();
    let report = world.report();
    assert_eq!(report.checks.iter().find(|check| check.id == "etcd.quorum").unwrap().level, Level::Ok);
}

#[test]
fn all_run_but_none_can_write() {
    let mut world = World::lab_ha("master-1");
    let health: Vec<Value> = ["11", "12", "13"]
        .iter()
        .map(|end| json!({"endpoint": format!("https://10.0.2.{end}:2379"), "health": false, "error": "etcdserver: no leader"}))
        .collect();
    world.instead.push(("endpoint health", 1, Value::from(health).to_string(), "Error: unhealthy cluster".into()));
    let report = world.report();
    assert!(report.headline.starts_with("down: etcd: 3 of 3 members run, but none can write"), "{}", report.headline);
}

#[test]
fn the_vip_has_one_holder() {
    let vip = |change: fn(&mut World)| {
        let mut world = World::lab_ha("master-1");
        change(&mut world);
        all(&world.report(), "lb").lines().find(|line| line.contains("lb.vip")).unwrap().to_owned()
    };
    assert_eq!(vip(|_| {}), "ok lb.vip [10.0.2.100] master-1 (this node) holds it");
    assert_eq!(vip(|world| world.vip_at("master-3")), "ok lb.vip [10.0.2.100] master-3 holds it");
    assert_eq!(vip(World::nobody_has_the_vip), "error lb.vip [10.0.2.100] no node holds it");
    assert_eq!(
        vip(|world| world.vip_at("worker-1")),
        "error lb.vip [10.0.2.100] 52:54:00:00:02:31 answers for it, which is none of the other masters"
    );
    // With a master that is not visible, the same link address may be its.
    assert!(
        vip(|world| {
            world.vip_at("worker-1");
            world.down("master-2");
        })
        .starts_with("info")
    );
}

#[test]
fn haproxy_names_the_servers_it_lost() {
    let mut world = World::lab_ha("master-1");
    world.haproxy =
        world.haproxy.replace("master-2,UP,L7OK", "master-2,DOWN,L4CON").replace("master-3,UP", "master-3,UP 1/3");
    insta::assert_snapshot!(all(&world.report(), "lb"), @r"
    warning lb.backend [master-2] haproxy here sees it DOWN (L4CON)
    ok lb.vip [10.0.2.100] master-1 (this node) holds it
    ok lb.backend [] haproxy here sees 2 of 3 API servers up
    ");
    world.haproxy = world.haproxy.replace(",UP", ",DOWN");
    assert!(findings(&world.report(), "lb").starts_with("error lb.backend [master-1]"));
    world.haproxy = String::new();
    assert_eq!(findings(&world.report(), "lb"), "unknown lb.backend [] haproxy lists no servers");
}

#[test]
fn haproxys_socket_is_asked() {
    use std::io::{Read, Write};
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run/haproxy/admin.sock");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut request = [0; 10];
        client.read_exact(&mut request).unwrap();
        client.write_all(b"# pxname,svname,status\nmasters,master-1,UP\n\n").unwrap();
        request
    });
    let world = World::lab_ha("master-1");
    let answer = crate::health::collect::haproxy(root.path(), &world.profile);
    assert_eq!(&server.join().unwrap(), b"show stat\n");
    assert_eq!(answer, Source::Known("# pxname,svname,status\nmasters,master-1,UP\n\n".to_owned()));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(crate::health::collect::haproxy(root.path(), &world.profile), Source::Failed(_)));
    assert_eq!(crate::health::collect::haproxy(root.path(), &World::lab_ha("worker-1").profile), Source::NotAsked);
}

/// The world with master-2's API server and worker-1's kubelet by other clocks.
fn clocks(master: i64, worker: i64) -> String {
    let mut world = World::lab_ha("master-1");
    let date = |seconds: i64| format!("Date: Fri, 15 Jan 2027 08:{:02}:{:02} GMT", seconds / 60, seconds % 60);
    if master != 0 {
        world.instead.push(("10.0.2.22:6443 -v=8", 0, "ok".into(), date(master)));
    }
    let renewed = crate::health::time::rfc3339((NOW as i64 + worker) as u64);
    let leases = json!({"items": [{"metadata": {"name": "worker-1"}, "spec": {"renewTime": renewed}}]});
    world.instead.push(("/leases", 0, leases.to_string(), String::new()));
    findings(&world.report(), "clock")
}

#[test]
fn clocks_that_differ_are_named() {
    assert!(DATE.contains("08:00:00"));
    assert_eq!(clocks(0, -4), "");
    assert_eq!(clocks(2, 0), "", "a second of rounding on either side");
    assert_eq!(clocks(5, 0), "warning clock.skew [master-2] at least 4 s ahead of this node");
    assert_eq!(clocks(40, 0), "error clock.skew [master-2] at least 39 s ahead of this node");
    assert_eq!(clocks(0, 3), "warning clock.skew [worker-1] at least 3 s ahead of this node");
    assert_eq!(clocks(0, 90), "error clock.skew [worker-1] at least 90 s ahead of this node");
    // Behind: a lease that is late says little, one that is impossibly late says much.
    assert_eq!(clocks(0, -20), "");
    assert_eq!(
        clocks(0, -30),
        "warning clock.skew [worker-1] at least 5 s behind this node, or its kubelet is slow to report"
    );
    assert_eq!(clocks(0, -3700), "error clock.skew [worker-1] at least 60 min behind this node");
}

#[test]
fn one_clock_against_all_others_is_the_wrong_one() {
    let mut world = World::lab_ha("master-1");
    for part in ["10.0.2.22:6443 -v=8", "10.0.2.23:6443 -v=8"] {
        world.instead.push((part, 0, "ok".into(), "Date: Fri, 15 Jan 2027 09:00:00 GMT".into()));
    }
    let lease =
        json!({"items": [{"metadata": {"name": "worker-1"}, "spec": {"renewTime": "2027-01-15T08:59:57.000000Z"}}]});
    world.instead.push(("/leases", 0, lease.to_string(), String::new()));
    assert_eq!(findings(&world.report(), "clock"), "error clock.skew [master-1] at least 59 min behind all others");
}

fn machine(change: impl FnOnce(&mut Facts)) -> String {
    let world = World::lab_ha("etcd-1");
    let mut facts = world.facts();
    change(&mut facts);
    findings(&Report::of(&world.profile, &facts), "machine")
}

#[test]
fn this_machine_in_every_bad_state() {
    let disk = |free: u64, free_inodes: u64| Disk {
        paths: vec!["/var/lib/etcd"],
        bytes: 100 << 30,
        free: free << 30,
        inodes: 1000,
        free_inodes,
    };
    let text = machine(|facts| {
        facts.disks = vec![disk(5, 900), disk(15, 900), disk(50, 120), disk(50, 900)];
        facts.memory = "MemTotal: 4000000 kB\nMemAvailable:  150000 kB\n".into();
        facts.swaps = "Filename Type Size Used Priority\n/dev/sda3 partition 2097148 0 -2\n".into();
        facts.units = Source::Known(
            "Id=etcd.service\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\nNRestarts=57\n\n\
             Id=kubelet.service\nActiveState=inactive\nSubState=dead\nResult=success\nNRestarts=0\n"
                .into(),
        );
        let failure =
            FailureStatus { step: "etcd".into(), exit: 40, reason: "waited 300 s".into(), hint: "look".into() };
        facts.firstboot = Source::Known(Status { phase: Phase::Failed, failure: Some(failure), ..Status::default() });
    });
    insta::assert_snapshot!(text, @r"
    error machine.firstboot [] firstboot failed at the step etcd: waited 300 s
    error machine.unit [etcd] is activating (auto-restart, exit-code, started again 57 times)
    error machine.unit [kubelet] is inactive (dead)
    error machine.disk [/var/lib/etcd] 5.0 of 100.0 GiB free (5 %)
    error machine.memory [] 146 of 3906 MiB available
    error machine.swap [/dev/sda3] swap is on
    warning machine.disk [/var/lib/etcd] 15.0 of 100.0 GiB free (15 %)
    warning machine.disk [/var/lib/etcd] 50.0 of 100.0 GiB free (50 %), 12 % of the inodes
    ");
    let running = Status { step: Some("join".into()), waiting_for: Some("the record".into()), ..Status::default() };
    assert_eq!(
        machine(|facts| facts.firstboot = Source::Known(running)),
        "warning machine.firstboot [] firstboot is at the step join, waiting for the record"
    );
    assert!(machine(|facts| facts.firstboot = Source::Failed("x".into())).starts_with("unknown machine.firstboot"));
}

#[test]
fn the_record_says_who_initialised() {
    let record = |lines: &str| {
        let mut world = World::lab_ha("master-1");
        world.record = lines.replace("ID", &world.profile.cluster.id);
        all(&world.report(), "init")
    };
    assert_eq!(
        record("/imgbuild/ID/cluster\nmaster-2\n/imgbuild/ID/initialised\nmaster-2\n"),
        "ok init.record [] master-2 initialised the cluster"
    );
    assert_eq!(
        record("/imgbuild/ID/cluster\nmaster-2\n/imgbuild/ID/init\nmaster-3\n"),
        "info init.record [] master-3 is initialising the cluster right now"
    );
    let nobody = "warning init.record [] etcd has no record of who initialised the cluster";
    // A value that looks like a key is none.
    for lines in ["", "/imgbuild/other/initialised\nmaster-2\n", "/imgbuild/ID/cluster\n/imgbuild/ID/initialised\n"] {
        assert_eq!(record(lines), nobody);
    }
}
