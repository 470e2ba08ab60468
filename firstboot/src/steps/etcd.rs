// SPDX-License-Identifier: MIT OR Apache-2.0
//! The etcd member of this node: running, and healthy together with a quorum of its peers.

use std::time::Duration;

use anyhow::Result;
use profiles::node::Role;

use super::services;
use crate::context::{Cx, Poll};
use crate::engine::{State, Step};
use crate::journal::Progress;
use crate::runner::{Command, Output};

const UNIT: &str = "etcd";
const CONFIG: [&str; 2] = ["/etc/etcd/", "/etc/systemd/system/etcd.service"];
const DEADLINE: Duration = Duration::from_secs(300);

pub(super) struct Etcd;

/// `etcdctl endpoint health` of this member: it reads through a quorum, so peers count too.
fn health(cx: &Cx<'_>) -> Result<Output> {
    // On a master the API server's client certificate; elsewhere the peer certificate, which also is a client's.
    let (ca, cert, key) = if cx.profile().has(Role::Master) {
        let dir = "/etc/kubernetes/pki/etcd-external";
        (format!("{dir}/ca.crt"), format!("{dir}/client.crt"), format!("{dir}/client.key"))
    } else {
        let dir = "/etc/etcd/pki";
        (format!("{dir}/ca.crt"), format!("{dir}/peer.crt"), format!("{dir}/peer.key"))
    };
    let own = std::net::SocketAddr::new(cx.profile().node.address.addr(), 2379);
    let command = Command::new(
        "etcdctl",
        [
            &format!("--endpoints=https://{own}"),
            &format!("--cacert={ca}"),
            &format!("--cert={cert}"),
            &format!("--key={key}"),
            "--dial-timeout=3s",
            "--command-timeout=5s",
            "endpoint",
            "health",
        ],
    );
    cx.try_run(&command.env("ETCDCTL_API", "3").timeout(30))
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
        // "Done" with the same configuration means it only has to run; a restart would cost an election.
        let same = cx.journal.borrow().last_done(self.id()) == Some(self.fingerprint(cx));
        services::bring_up(cx, UNIT, !same)?;
        let members = cx.profile().peers.iter().filter(|peer| peer.roles.contains(&Role::Etcd)).count();
        let what = match members {
            1 => "etcd to be healthy".to_owned(),
            members => format!("etcd to be healthy: {} of {members} members must run", members / 2 + 1),
        };
        let hint = "look at `journalctl -u etcd`, and at the other members' consoles";
        cx.wait_for(&what, DEADLINE, Duration::from_secs(1), hint, || {
            let output = health(cx)?;
            if output.success() {
                return Ok(Poll::Ready(()));
            }
            Ok(Poll::Pending(services::state(cx, UNIT)))
        })
    }

    fn verify(&self, _: &Cx<'_>) -> Result<()> {
        Ok(()) // apply ends with the health check
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        cx.plan.digest_of(&CONFIG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::runner::Output;
    use crate::testing::Lab;

    #[test]
    fn starts_waits_for_health_and_leaves_a_running_one_alone() {
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
        let lab = lab.reboot();
        converge(&lab.cx(), &[Box::new(Etcd)]).unwrap();
        assert!(!lab.runner.take_trace().iter().any(|line| line.contains("start")));
    }
}
