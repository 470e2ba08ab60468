// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole reports, from what programs print to what people read.

mod broken;
mod topics;
mod world;

use super::print::describe;
use super::*;
use world::World;

#[test]
fn a_healthy_cluster_of_seven() {
    let report = World::lab_ha("master-1").report();
    assert_eq!(report.level.exit_code(), 0);
    insta::assert_snapshot!("healthy", describe(&report, false));
    insta::assert_snapshot!("healthy-json", serde_json::to_string_pretty(&report).unwrap());
}

#[test]
fn a_member_of_etcd_is_gone() {
    let mut world = World::lab_ha("master-1");
    world.down("etcd-3");
    let report = world.report();
    assert_eq!(report.level.exit_code(), 2);
    insta::assert_snapshot!("etcd-2-of-3", describe(&report, false));
    insta::assert_snapshot!("etcd-2-of-3-json", serde_json::to_string_pretty(&report).unwrap());
}

#[test]
fn two_members_of_etcd_are_gone() {
    let mut world = World::lab_ha("etcd-1");
    world.down("etcd-2");
    world.down("etcd-3");
    let report = world.report();
    assert!(report.headline.starts_with("down: etcd: 1 of 3 members runs: no quorum"), "{}", report.headline);
    insta::assert_snapshot!("etcd-1-of-3", describe(&report, false));
}

#[test]
fn an_api_server_is_down() {
    let mut world = World::lab_ha("master-1");
    world.down("master-2");
    world.vip_at("master-3");
    insta::assert_snapshot!("api-down", describe(&world.report(), false));
}

/// The machine from which it is run is the broken one: everything else is seen through the endpoint.
#[test]
fn the_own_api_server_is_down() {
    let mut world = World::lab_ha("master-1");
    world.api_down("master-1");
    world.vip_at("master-3");
    let report = world.report();
    assert!(
        report.headline.starts_with("degraded: api master-1: does not serve: connection refused"),
        "{}",
        report.headline
    );
    assert!(
        report
            .checks
            .iter()
            .any(|check| check.finding.starts_with("7 of 7 nodes") || check.finding.starts_with("4 of 4"))
    );
    assert!(world.asked().iter().any(|line| line.contains("--server=https://10.0.2.100:8443 get --raw /api/v1/nodes")));
}

#[test]
fn nothing_answers() {
    let mut world = World::lab_ha("master-1");
    for name in ["etcd-1", "etcd-2", "etcd-3", "master-1", "master-2", "master-3"] {
        world.down(name);
    }
    let report = world.report();
    assert_eq!(report.level.exit_code(), 2);
    insta::assert_snapshot!("nothing-answers", describe(&report, false));
}

/// The hyper-converged cluster of the beginners' course: 65301 restarts that nobody saw.
#[test]
fn a_crash_loop_is_told_from_restarts_long_ago() {
    let report = World::course().report();
    let loops: Vec<_> = report.checks.iter().filter(|check| check.topic() == "restarts").collect();
    assert_eq!(loops[0].subject, "kube-apiserver-xos-hnbk692u");
    insta::assert_snapshot!("crash-loop", describe(&report, false));
    insta::assert_snapshot!("crash-loop-json", serde_json::to_string_pretty(&loops).unwrap());
}

#[test]
fn a_certificate_has_expired() {
    let mut world = World::lab_ha("master-1");
    let until = |days: i64| (world::NOW as i64 + days * 86_400) as u64;
    world.certificates = vec![
        ("/etc/kubernetes/pki/apiserver.crt", until(-3)),
        ("/etc/kubernetes/pki/ca.crt", until(3000)),
        ("/etc/kubernetes/pki/front-proxy-client.crt", until(5)),
        ("/var/lib/kubelet/pki/kubelet-client-current.pem", until(20)),
        ("/etc/kubernetes/admin.conf", until(29)),
    ];
    let report = world.report();
    assert!(report.headline.contains("apiserver.crt: expired 3 d ago"), "{}", report.headline);
    insta::assert_snapshot!("certificates", describe(&report, false));
}

#[test]
fn a_worker_sees_itself() {
    let mut world = World::lab_ha("worker-1");
    let report = world.report();
    assert_eq!(report.level.exit_code(), 0);
    insta::assert_snapshot!("worker", describe(&report, false));
    let asked = world.asked();
    assert!(!asked.iter().any(|line| line.starts_with("etcdctl")), "a worker has no certificate for etcd");
    assert!(asked.iter().any(|line| line.ends_with("get --raw /api/v1/nodes?fieldSelector=metadata.name=worker-1")));
    assert!(
        asked
            .iter()
            .filter(|line| line.starts_with("kubectl"))
            .all(|line| line.contains("/etc/kubernetes/kubelet.conf"))
    );
    world.node_mut("worker-1")["status"]["conditions"][3]["status"] = "False".into();
    assert_eq!(world.report().level.exit_code(), 2);
}

#[test]
fn an_etcd_node_sees_etcd() {
    let world = World::lab_ha("etcd-2");
    let report = world.report();
    assert_eq!(report.level.exit_code(), 0);
    insta::assert_snapshot!("etcd-node", describe(&report, false));
    assert!(!world.asked().iter().any(|line| line.starts_with("kubectl")));
}

#[test]
fn colours_are_for_terminals() {
    let report = World::lab_ha("master-1").report();
    assert!(!describe(&report, false).contains('\x1b'));
    assert!(describe(&report, true).contains("\x1b[32mok     \x1b[0m"));
}

/// Nothing that is secret is in a report, nor in a command line that others could see.
#[test]
fn no_secret_is_shown() {
    let mut world = World::lab_ha("master-1");
    world.down("etcd-3");
    let report = world.report();
    let text = describe(&report, false) + &serde_json::to_string(&report).unwrap() + &world.asked().join("\n");
    assert!(!text.contains("PRIVATE") && !text.contains("client-key-data"));
    let check = Check::error("machine.firstboot", "", "join with k3pqzv.0123456789abcdex failed", "");
    assert!(!check.finding.contains("k3pqzv"));
}

#[test]
fn a_node_without_a_seed_cannot_tell() {
    let root = tempfile::tempdir().unwrap();
    assert!(format!("{:#}", profile(root.path()).unwrap_err()).contains("holds no seed"));
    assert_eq!(run(root.path(), true), 3);
}

#[test]
fn the_profile_is_read_from_the_nodes_own_seed() {
    let root = tempfile::tempdir().unwrap();
    let seed = root.path().join("var/lib/imgbuild/seed");
    std::fs::create_dir_all(&seed).unwrap();
    std::fs::write(seed.join("meta-data"), "instance-id: a\n").unwrap();
    let inline = crate::testing::PROFILE.replace('\n', " ");
    let text = format!("#cloud-config\nimgbuild:\n  schema: 1\n  profile: {inline}\n");
    std::fs::write(seed.join("user-data"), text).unwrap();
    assert_eq!(profile(root.path()).unwrap(), crate::testing::profile());
}

#[test]
fn the_worst_decides_the_exit_code() {
    let check = |level| Check::new("a.b", level, "", "x", "");
    let code = |levels: &[Level]| {
        Report::new("c", "n", 0, levels.iter().map(|level| check(*level)).collect()).level.exit_code()
    };
    assert_eq!(code(&[Level::Ok, Level::Info]), 0);
    assert_eq!(code(&[Level::Unknown, Level::Ok]), 3);
    assert_eq!(code(&[Level::Unknown, Level::Warning]), 1);
    assert_eq!(code(&[Level::Error, Level::Warning, Level::Unknown]), 2);
    assert_eq!(code(&[]), 3);
}
