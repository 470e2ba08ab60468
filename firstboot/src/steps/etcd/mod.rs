// SPDX-License-Identifier: MIT OR Apache-2.0
//! The etcd member of this node: running, and healthy together with a quorum of its peers.

mod formation;
mod members;
mod record;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use profiles::node::Peer;

use super::services;
use crate::context::{Cx, Poll};
use crate::engine::{State, Step, was_interrupted};
use crate::etcdctl::{self, PEER_PORT};
use crate::failure::Failure;
use crate::journal::Progress;
use crate::peer_port::PeerPort;
use crate::runner::{Command, Output};

const UNIT: &str = super::ETCD;
const CONFIG: [&str; 2] = ["/etc/etcd/", "/etc/systemd/system/etcd.service"];
const TIMER: &str = "/etc/systemd/system/etcd-defrag.timer";
/// For a member that has nobody to wait for.
const SHORT: Duration = Duration::from_secs(300);
/// How long an etcd may take before its log is read for what hinders it.
const SUSPICION: Duration = Duration::from_secs(10);

pub(super) struct Etcd;

/// `etcdctl endpoint health` of this member: it reads through a quorum, so peers count too.
fn health(cx: &Cx<'_>) -> Result<Output> {
    let profile = cx.profile();
    cx.try_run(&etcdctl::command(profile, &[etcdctl::own_endpoint(profile)], ["endpoint", "health"]))
}

impl Step for Etcd {
    fn id(&self) -> &'static str {
        UNIT
    }

    fn title(&self) -> &'static str {
        "starting etcd"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        if cx.progress(self.id()) != Progress::Done(self.fingerprint(cx)) {
            return Ok(State::Needed("not started with this configuration yet".to_owned()));
        }
        if !services::is_enabled(cx, UNIT)? || !services::is_active(cx, UNIT)? {
            return Ok(State::Needed("not running".to_owned()));
        }
        Ok(if health(cx)?.success() { State::Done } else { State::Needed("not healthy".to_owned()) })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        refuse_foreign_data(self, cx)?;
        // "Done" with the same configuration means it only has to run; a restart would cost an election.
        let mut same = cx.journal.borrow().last_done(self.id()) == Some(self.fingerprint(cx));
        let mut deadline = if formation::peers(cx).len() > 1 { formation::DEADLINE } else { SHORT };
        if !record::has_data(cx)? {
            let first = formation::settle(cx)?;
            record::allow(cx, &first)?;
            same = false;
            if matches!(first, record::First::Existing(_)) {
                // The quorum that was to take it in may be gone by now: then all must be asked again.
                deadline = SHORT;
            }
        }
        services::bring_up(cx, UNIT, !same)?;
        wait_until_healthy(cx, deadline)?;
        record::write(cx, record::Stage::Member)?;
        record::forbid(cx)?;
        // Its link counts from the next boot on.
        if cx.plan.text(TIMER).is_some() {
            cx.run(&Command::new("systemctl", ["start", "etcd-defrag.timer"]))?;
        }
        Ok(())
    }

    fn verify(&self, _: &Cx<'_>) -> Result<()> {
        Ok(()) // apply ends with the health check
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        cx.plan.digest_of(&CONFIG)
    }
}

/// Data that is not this node's: etcd would run with it and serve another cluster's content.
fn refuse_foreign_data(step: &Etcd, cx: &Cx<'_>) -> Result<()> {
    if !record::has_data(cx)? {
        return Ok(());
    }
    let hint = "move /var/lib/etcd/member away if nobody needs it, and restart firstboot.service";
    match record::read(cx) {
        Some(record) if record.cluster == cx.profile().cluster.id => Ok(()),
        Some(record) => {
            let reason = format!("/var/lib/etcd holds the data of another cluster ({})", record.cluster);
            Err(Failure::preflight(reason, hint).into())
        }
        // Before there were records, the journal was one.
        None if cx.journal.borrow().last_done(step.id()).is_some() || was_interrupted(step, cx) => Ok(()),
        None => {
            let reason = "/var/lib/etcd holds data of an etcd that this installation never started";
            Err(Failure::preflight(reason, hint).into())
        }
    }
}

fn wait_until_healthy(cx: &Cx<'_>, deadline: Duration) -> Result<()> {
    let peers = formation::peers(cx);
    let what = match peers.len() {
        0 | 1 => "etcd to be healthy".to_owned(),
        members => format!("etcd to be healthy: {} of {members} members must run", formation::quorum(members)),
    };
    let hint = "look at `journalctl -u etcd`, and at the other members' consoles";
    let started = cx.host.uptime();
    let (mut polls, mut absent) = (0, Vec::new());
    cx.wait_for(&what, deadline, Duration::from_secs(1), hint, || {
        if health(cx)?.success() {
            return Ok(Poll::Ready(()));
        }
        if cx.host.uptime().saturating_sub(started) >= SUSPICION {
            refuse_what_the_log_says(cx)?;
        }
        // Each question leaves a line in the other's log.
        if polls % 5 == 0 {
            absent = peers.iter().filter(|peer| !is_there(cx, peer)).map(|peer| formation::show(peer)).collect();
        }
        polls += 1;
        let state = services::state(cx, UNIT);
        Ok(Poll::Pending(if absent.is_empty() { state } else { format!("{state}; no etcd on {}", absent.join(", ")) }))
    })
}

/// Whether etcd runs on another member, as far as its port tells.
fn is_there(cx: &Cx<'_>, peer: &Peer) -> bool {
    peer.name == cx.profile().node.name
        || cx.host.peer_port(SocketAddr::new(peer.address, PEER_PORT), &cx.profile().cluster.id) == PeerPort::Etcd
}

/// Whatever of etcd's log no waiting can mend.
fn refuse_what_the_log_says(cx: &Cx<'_>) -> Result<()> {
    let command = Command::new("journalctl", ["-b", "-u", UNIT, "-n", "50", "-o", "cat", "--no-pager"]);
    let log = cx.try_run(&command)?.stdout;
    match understand(&log, &cx.profile().node.name) {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

fn understand(log: &str, own: &str) -> Option<Failure> {
    let aside = "stop etcd, move /var/lib/etcd/member away, and restart firstboot.service: \
                 with a majority of healthy members this one gets all data from them";
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| log.contains(phrase));
    if says(&["has already been bootstrapped"]) {
        return Some(formation::lost("the other etcd members know this one with data that it has not"));
    }
    if says(&["cluster ID mismatch"]) {
        let reason = format!("{own}'s etcd and another member hold the data of different clusters");
        return Some(Failure::preflight(reason, "keep the data of one; see `journalctl -u etcd` for which they are"));
    }
    if says(&["the member has been permanently removed from the cluster"]) {
        return Some(Failure::preflight(format!("{own} was removed from the etcd cluster by somebody"), aside));
    }
    // wal and snapshot packages of etcd 3.4 to 3.6; bbolt.
    if says(&[
        "crc mismatch",
        "wal: file not found",
        "failed to recover v3 backend",
        "invalid database",
        "file corrupt",
    ]) {
        return Some(Failure::preflight(format!("etcd's data on {own} is damaged"), aside));
    }
    let other = "another etcd member";
    if etcdctl::speaks_of_wrong_time(log) {
        return Some(etcdctl::wrong_time(own, other));
    }
    etcdctl::speaks_of_foreign_authority(log).then(|| etcdctl::foreign(own, other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::peer_port::Stage;
    use crate::runner::Output;
    use crate::testing::{Lab, planned};

    const WAL: &str = "/var/lib/etcd/member/wal/0000000000000000-0000000000000000.wal";
    const HEALTH: &str = "etcdctl --endpoints=https://10.77.0.13:2379 --cacert=/etc/etcd/pki/ca.crt \
        --cert=/etc/etcd/pki/peer.crt --key=/etc/etcd/pki/peer.key --dial-timeout=3s --command-timeout=5s endpoint health";

    /// Three etcd members, 10.77.0.11 to 13.
    pub(super) fn peers() -> Vec<Peer> {
        let peer = |number: u8| Peer {
            secondary_address: None,
            name: format!("etcd-{number}"),
            address: format!("10.77.0.1{number}").parse().unwrap(),
            roles: [profiles::node::Role::Etcd].into(),
            pod_subnet: None,
        };
        [1, 2, 3].map(peer).into()
    }

    /// etcd-3 of three.
    fn third() -> Lab {
        let mut lab = Lab::new();
        third_of(&mut lab);
        lab
    }

    fn third_of(lab: &mut Lab) {
        lab.plan.profile.peers = peers();
        let node = &mut lab.plan.profile.node;
        node.name = "etcd-3".into();
        node.roles = [profiles::node::Role::Etcd].into();
        node.address = "10.77.0.13/24".parse().unwrap();
        let files = profiles::render::files(&lab.plan.profile).unwrap();
        let config = files.into_iter().find(|file| file.path == "/etc/etcd/etcd.yaml").unwrap();
        let profiles::render::Content::Text(text) = config.content else { panic!("a link") };
        lab.plan.files = vec![planned(&config.path, 0o644, &text)];
    }

    fn answers(lab: &Lab, number: u8, port: PeerPort) {
        lab.host.peer_ports.borrow_mut().insert(format!("10.77.0.1{number}:2380").parse().unwrap(), port);
    }

    /// etcdctl asking these endpoints with an etcd node's certificates.
    fn ctl(endpoints: &str, command: &str) -> String {
        format!(
            "etcdctl --endpoints={endpoints} --cacert=/etc/etcd/pki/ca.crt --cert=/etc/etcd/pki/peer.crt \
             --key=/etc/etcd/pki/peer.key --dial-timeout=3s --command-timeout=5s {command}"
        )
    }

    fn refusal(lab: &Lab) -> Failure {
        let (_, failure) = converge(&lab.cx(), &[Box::new(Etcd)]).unwrap_err();
        assert_eq!(failure.exit.code(), 20, "{failure}");
        failure
    }

    #[test]
    fn alone_it_starts_waits_for_health_and_leaves_a_running_one_alone() {
        let lab = Lab::new();
        let mut failures = 3;
        lab.runner.on("etcdctl", move |_| {
            failures -= 1;
            Output { status: i32::from(failures > 0), ..Output::default() }
        });
        converge(&lab.cx(), &[Box::new(Etcd)]).unwrap();
        let trace = lab.runner.take_trace();
        assert_eq!(
            trace[..4],
            [
                "systemctl enable --quiet etcd",
                "systemctl reset-failed etcd",
                "systemctl restart --no-block etcd",
                "etcdctl --endpoints=https://10.0.2.15:2379 --cacert=/etc/kubernetes/pki/etcd-external/ca.crt \
                 --cert=/etc/kubernetes/pki/etcd-external/client.crt --key=/etc/kubernetes/pki/etcd-external/client.key \
                 --dial-timeout=3s --command-timeout=5s endpoint health"
            ]
        );
        assert!(lab.host.greeted.borrow().is_empty());
        lab.write(WAL, "");
        let lab = lab.reboot();
        converge(&lab.cx(), &[Box::new(Etcd)]).unwrap();
        assert!(!lab.runner.take_trace().iter().any(|line| line.contains("start")));
    }

    #[test]
    fn the_unit_may_start_without_data_only_while_this_step_says_so() {
        let lab = third();
        answers(&lab, 1, PeerPort::Waiting(Stage::Agreed));
        answers(&lab, 2, PeerPort::Waiting(Stage::Agreed));
        let env = lab.root().join("run/imgbuild/etcd.env");
        let seen = std::rc::Rc::new(std::cell::RefCell::new(String::new()));
        let (see, path) = (seen.clone(), env.clone());
        lab.runner.on("systemctl restart --no-block etcd", move |_| {
            *see.borrow_mut() = std::fs::read_to_string(&path).unwrap();
            Output::default()
        });
        converge(&lab.cx(), &[Box::new(Etcd)]).unwrap();
        assert_eq!(*seen.borrow(), "CONFIG=/etc/etcd/etcd.yaml\n");
        assert!(!env.exists());
        let id = &lab.plan.profile.cluster.id;
        let said = lab.host.greeted.borrow().clone();
        assert_eq!(said, [format!("imgbuild {id} fresh\n"), format!("imgbuild {id} agreed\n")]);
        // The licence is used up.
        assert_eq!(record::read(&lab.cx()).unwrap().stage, record::Stage::Member);
    }

    #[test]
    fn nothing_starts_before_everybody_is_there() {
        let lab = third();
        answers(&lab, 1, PeerPort::Waiting(Stage::Fresh));
        let (step, failure) = converge(&lab.cx(), &[Box::new(Etcd)]).unwrap_err();
        assert_eq!((step, failure.exit.code()), ("etcd", 40));
        assert!(failure.reason.contains("etcd-2 (10.77.0.12) to be switched on"), "{}", failure.reason);
        assert!(!lab.runner.take_trace().iter().any(|line| line.contains("start --no-block")));
        let line = &lab.console_lines()[1];
        assert_eq!(
            line,
            "firstboot: master-1: etcd: waiting for the other etcd members (etcd-2 (10.77.0.12) to be switched on), 2 of 3600 s"
        );
        // A licence survives a power cut, and then the other's etcd is enough.
        record::write(&lab.cx(), record::Stage::Agreed).unwrap();
        let mut lab = lab.reboot();
        third_of(&mut lab);
        answers(&lab, 1, PeerPort::Etcd);
        converge(&lab.cx(), &[Box::new(Etcd)]).unwrap();
        assert!(!lab.runner.take_trace().iter().any(|line| line.contains("member")));
    }

    #[test]
    fn a_re_imaged_member_takes_its_place_again() {
        let lab = third();
        answers(&lab, 1, PeerPort::Etcd);
        answers(&lab, 2, PeerPort::Etcd);
        let both = "https://10.77.0.11:2379,https://10.77.0.12:2379";
        let (one, two) = (
            "{\"endpoint\":\"https://10.77.0.11:2379\",\"health\":",
            "{\"endpoint\":\"https://10.77.0.12:2379\",\"health\":",
        );
        let mut polls = 0;
        lab.runner.on(&ctl(both, "endpoint health --write-out=json"), move |_| {
            polls += 1;
            // At first one of them is not healthy: nothing may change.
            let second = polls > 3;
            Output { stdout: format!("[{one}true}},{two}{second}}}]"), status: i32::from(!second), ..Output::default() }
        });
        let list = |entry: &str| {
            format!(
                r#"{{"members":[{{"ID":1,"name":"etcd-1","peerURLs":["https://10.77.0.11:2380"],"clientURLs":["x"]}},
                {{"ID":2,"name":"etcd-2","peerURLs":["https://10.77.0.12:2380"],"clientURLs":["x"]}}{entry}]}}"#
            )
        };
        let started =
            r#",{"ID":12331702123594964409,"name":"etcd-3","peerURLs":["https://10.77.0.13:2380"],"clientURLs":["x"]}"#;
        lab.runner.answer(&ctl(both, "member list --write-out=json"), 0, &list(started), "");
        let state = std::rc::Rc::new(std::cell::Cell::new(0));
        let (removed, added, listed) = (state.clone(), state.clone(), state.clone());
        lab.runner.on(&ctl(both, "member remove ab2301bec8ceddb9"), move |_| {
            removed.set(1);
            Output::default()
        });
        let mut refused = false;
        lab.runner.on(&ctl(both, "member add etcd-3 --peer-urls=https://10.77.0.13:2380"), move |_| {
            if !refused {
                refused = true;
                return Output {
                    status: 1,
                    stderr_tail: "Error: etcdserver: unhealthy cluster".into(),
                    ..Output::default()
                };
            }
            added.set(2);
            Output::default()
        });
        let lists = [list(started), list(""), list(r#",{"ID":7,"peerURLs":["https://10.77.0.13:2380"]}"#)];
        lab.runner.on(&ctl(both, "member list --write-out=json"), move |_| Output {
            stdout: lists[listed.get()].clone(),
            ..Output::default()
        });
        let (config, root) = (std::rc::Rc::new(std::cell::RefCell::new(String::new())), lab.root());
        let seen = config.clone();
        lab.runner.on("systemctl restart --no-block etcd", move |_| {
            assert!(
                std::fs::read_to_string(root.join("run/imgbuild/etcd.env"))
                    .unwrap()
                    .contains("/run/imgbuild/etcd.yaml")
            );
            *seen.borrow_mut() = std::fs::read_to_string(root.join("run/imgbuild/etcd.yaml")).unwrap();
            Output::default()
        });
        converge(&lab.cx(), &[Box::new(Etcd)]).unwrap();
        assert!(config.borrow().contains("initial-cluster-state: existing\n"));
        let changes: Vec<_> = lab
            .runner
            .take_trace()
            .into_iter()
            .filter(|line| line.contains("member ") && !line.contains("list"))
            .collect();
        assert_eq!(changes.len(), 3, "{changes:?}");
        let lines = lab.console_lines().join("\n");
        assert!(lines.contains("2 of 3 members must be healthy before this one can be replaced; etcd runs on etcd-1 (10.77.0.11), etcd-2 (10.77.0.12), 1 healthy"), "{lines}");
    }

    #[test]
    fn a_lost_majority_is_for_people() {
        let lab = third();
        answers(&lab, 1, PeerPort::Etcd);
        answers(&lab, 2, PeerPort::Waiting(Stage::Fresh));
        lab.runner.answer("etcdctl", 1, "", "Error: context deadline exceeded");
        let failure = refusal(&lab);
        insta::assert_snapshot!(failure.reason, @"2 of 3 etcd members have no data (etcd-2 (10.77.0.12), this one); only etcd-1 (10.77.0.11) has: the majority of the etcd cluster was lost, and a new one would contradict what is left");
        assert!(failure.hint.contains("snapshot restore"));
    }

    #[test]
    fn other_clusters_are_refused() {
        let lab = third();
        answers(&lab, 1, PeerPort::OtherCluster("f".repeat(32)));
        assert!(refusal(&lab).reason.starts_with("etcd-1 (10.77.0.11) is forming another cluster (ffff"));

        let lab = third();
        answers(&lab, 1, PeerPort::Etcd);
        lab.runner.answer(
            &ctl("https://10.77.0.11:2379", "--debug"),
            1,
            "",
            "x509: certificate signed by unknown authority",
        );
        lab.runner.answer(
            &ctl("https://10.77.0.11:2379", "endpoint health"),
            1,
            "",
            "Error: context deadline exceeded",
        );
        assert!(refusal(&lab).reason.contains("different clusters"));
    }

    #[test]
    fn data_of_others_is_never_run_with() {
        let lab = third();
        lab.write(WAL, "");
        assert!(refusal(&lab).reason.contains("never started"));

        let lab = third();
        lab.write(WAL, "");
        record::write(&lab.cx(), record::Stage::Member).unwrap();
        converge(&lab.cx(), &[Box::new(Etcd)]).unwrap();
        let mut lab = lab.reboot();
        lab.plan.profile.cluster.id = "f".repeat(32);
        third_of(&mut lab);
        assert!(refusal(&lab).reason.contains("another cluster (0123456789abcdef"));
    }

    #[test]
    fn a_member_with_data_just_runs_and_names_who_is_missing() {
        let lab = third();
        lab.write(WAL, "");
        record::write(&lab.cx(), record::Stage::Member).unwrap();
        answers(&lab, 1, PeerPort::Absent);
        answers(&lab, 2, PeerPort::Etcd);
        let mut polls = 0;
        lab.runner.on(HEALTH, move |_| {
            polls += 1;
            Output { status: i32::from(polls < 5), ..Output::default() }
        });
        converge(&lab.cx(), &[Box::new(Etcd)]).unwrap();
        assert!(lab.host.greeted.borrow().is_empty());
        let lines = lab.console_lines().join("\n");
        assert!(lines.contains("2 of 3 members must run (etcd is ; no etcd on etcd-1 (10.77.0.11))"), "{lines}");
    }

    #[test]
    fn the_log_of_etcd_is_understood() {
        // Lines of etcd 3.4.23.
        let refused = r#"{"level":"fatal","ts":"2026-11-21T09:50:39.594Z","caller":"etcdmain/etcd.go:271","msg":"discovery failed","error":"member e30aa90ed0e8736 has already been bootstrapped"}"#;
        assert!(understand(refused, "etcd-3").unwrap().reason.contains("majority"));
        let rejected = r#"{"level":"warn","caller":"embed/config_logging.go:287","msg":"rejected connection","remote-addr":"127.0.0.1:45220","server-name":"","error":"remote error: tls: bad certificate"}"#;
        assert!(understand(rejected, "etcd-3").unwrap().reason.contains("different clusters"));
        // What our own question looks like to etcd.
        let asked = r#"{"level":"warn","msg":"rejected connection","remote-addr":"10.77.0.12:45220","error":"tls: unexpected handshake message of type *tls.helloRequestMsg when waiting for *tls.clientHelloMsg"}"#;
        assert_eq!(understand(asked, "etcd-3"), None);
        assert_eq!(understand("", "etcd-3"), None);
    }
}
