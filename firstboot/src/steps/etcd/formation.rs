// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a member without data comes to its first start: a new cluster with all others, or its place in one that runs.
//!
//! # Never two clusters
//! etcd's own guard is not enough: a member that starts with `initial-cluster-state: new` asks the others whether it was
//! bootstrapped before, but takes no answer for a no. Two re-imaged members of three, with the third switched off or just
//! slow, would form a second cluster with the same ids, and the third's data would be contradicted when it returns.
//!
//! So a member starts a new cluster with a *licence* only: the record `agreed`, on its disk before anybody hears of it.
//! * It gets the licence when, in one round of questions, **every** other member greeted, that is, had no data. It has none
//!   itself. So at that time no member had data: there was no cluster.
//! * It uses the licence when every other member has one too, or when etcd runs on some other member. (The first to start
//!   saw all licences; who starts later sees a licence or etcd of each that matters.)
//! * It loses the licence when it was healthy once (the record becomes `member`), and by being re-imaged.
//!
//! *Safe.* Let a cluster have been formed, and data of it live on some disk. A licence given earlier belongs to the same
//! formation: its holder never had data, every member lists it as not started, and all that start with licences have the
//! same token, ids and list, so Raft makes them one cluster whose log is that of the quorum. A licence given later would
//! need that disk's member to greet, and with data it does not. A member that was re-imaged has no licence and gets none
//! while that disk exists; all it can do is to join (below). If no disk has data, nothing is contradicted.
//!
//! *Live.* Licences are durable, so power cuts only delay: whoever returns greets with what it had. Nobody without a licence
//! sees etcd start in its own formation, since the first start waits for its licence. A member that is re-imaged in the
//! middle of a formation finds either greetings only (and agrees anew), or etcd: then licensed members start although it
//! has no licence, they are a quorum or wait for one, and it joins them.
//!
//! *Not data:* `member/snap/db` without a write-ahead log. etcd leaves it when it was refused or killed during its first
//! start, and takes it over at the next. Nothing below /var/lib/etcd is ever removed here.
//!
//! # Taking the place of a former self
//! A running cluster lists this member, with the data that its former disk had. Starting with the same id and no data would
//! break Raft's promises (it may vote twice, and it forgot what it acknowledged). So it is removed, added under a new id,
//! and started as `existing`. Each of these only while a quorum of all members is healthy without this one, and each is
//! followed by a new look at the list: that list is the whole state, so a power cut between any two is no special case. A
//! member that is listed and not started may start at once: a quorum without it holds everything ever acknowledged.
//! etcd itself (`strict-reconfig-check`) refuses changes that would cost the quorum.
//!
//! The unit starts etcd without data only with a file in /run that this step writes ([`record::allow`]): after a reboot,
//! or after someone emptied /var/lib/etcd, nothing starts before all this was asked again.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use profiles::node::{Peer, Role};

use super::members::{self, healthy};
use super::record::{self, First, Record, Stage as Recorded};
use crate::context::{Cx, Poll};
use crate::etcdctl::{self, PEER_PORT};
use crate::failure::{Failure, one_line};
use crate::peer_port::{PeerPort, Stage, greeting};
use crate::steps::services;

/// Machines are unpacked and switched on by people.
pub(super) const DEADLINE: Duration = Duration::from_secs(3600);
/// Rounds that must agree that a majority of the members lost its data.
const ROUNDS: u32 = 3;

/// What a member without data does after a round of questions.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    /// Note that nobody has data.
    Agree,
    /// Start a new cluster.
    Start,
    /// Ask the etcd that runs.
    Join,
    /// Ask again.
    Wait,
}

/// Decides from what the other members' peer ports answered.
fn next(agreed: bool, others: &[PeerPort]) -> Next {
    let any_etcd = others.contains(&PeerPort::Etcd);
    let all = |wanted: fn(&PeerPort) -> bool| others.iter().all(wanted);
    match agreed {
        true if any_etcd || all(|port| *port == PeerPort::Waiting(Stage::Agreed)) => Next::Start,
        false if any_etcd => Next::Join,
        false if all(|port| matches!(port, PeerPort::Waiting(_))) => Next::Agree,
        _ => Next::Wait,
    }
}

/// Whether the cluster cannot come back by itself: everyone is there, and fewer than a quorum have data.
fn is_lost(others: &[PeerPort], quorum: usize) -> bool {
    let etcds = others.iter().filter(|port| **port == PeerPort::Etcd).count();
    let settled = others.iter().all(|port| matches!(port, PeerPort::Etcd | PeerPort::Waiting(Stage::Fresh)));
    settled && etcds > 0 && etcds < quorum
}

/// Members needed for a decision.
pub(super) fn quorum(members: usize) -> usize {
    members / 2 + 1
}

/// The etcd members of the profile.
pub(super) fn peers<'a>(cx: &'a Cx<'_>) -> Vec<&'a Peer> {
    cx.profile().peers.iter().filter(|peer| peer.roles.contains(&Role::Etcd)).collect()
}

/// `etcd-3 (10.77.0.13)`.
pub(super) fn show(peer: &Peer) -> String {
    format!("{} ({})", peer.name, peer.address)
}

/// The member of this node, and the others.
struct Members<'a> {
    all: Vec<&'a Peer>,
    own: &'a Peer,
    others: Vec<&'a Peer>,
}

impl<'a> Members<'a> {
    fn of(cx: &'a Cx<'_>) -> Result<Self> {
        let all = peers(cx);
        let (own, others): (Vec<_>, Vec<_>) = all.iter().partition(|peer| peer.name == cx.profile().node.name);
        let own = own.into_iter().next().context("the profile's peers lack this etcd member")?;
        Ok(Self { all, own, others })
    }
}

/// Waits until this member, which has no data, may start, and says how.
pub(super) fn settle(cx: &Cx<'_>) -> Result<First> {
    let members = Members::of(cx)?;
    let cluster = cx.profile().cluster.id.clone();
    if members.others.is_empty() {
        record::write(cx, Recorded::Agreed)?;
        return Ok(First::New);
    }
    // One that an earlier attempt started and that never got data would hold the port.
    record::forbid(cx)?;
    services::stop(cx, super::UNIT)?;
    let licence = Record { cluster: cluster.clone(), stage: Recorded::Agreed };
    let mut agreed = record::read(cx) == Some(licence);
    let stage = |agreed| if agreed { Stage::Agreed } else { Stage::Fresh };
    let greeter = cx.host.greet(SocketAddr::new(members.own.address, PEER_PORT), greeting(&cluster, stage(agreed)))?;
    let mut lost_rounds = 0;
    let hint = "switch the missing machines on; look at their consoles";
    cx.wait_for("the other etcd members", DEADLINE, Duration::from_secs(1), hint, || {
        let ports: Vec<_> = members
            .others
            .iter()
            .map(|peer| cx.host.peer_port(SocketAddr::new(peer.address, PEER_PORT), &cluster))
            .collect();
        refuse_another_cluster(&members, &ports)?;
        let missing = match next(agreed, &ports) {
            Next::Agree => {
                record::write(cx, Recorded::Agreed)?;
                agreed = true;
                greeter.say(greeting(&cluster, Stage::Agreed));
                cx.say("every etcd member is there and without data: agreed to form a new cluster");
                "for all of them to agree".to_owned()
            }
            Next::Start => return Ok(Poll::Ready(First::New)),
            Next::Join => match join(cx, &members, &ports)? {
                Poll::Ready(first) => return Ok(Poll::Ready(first)),
                Poll::Pending(missing) => missing,
            },
            Next::Wait => missing(&members, &ports),
        };
        lost_rounds = if !agreed && is_lost(&ports, quorum(members.all.len())) { lost_rounds + 1 } else { 0 };
        if lost_rounds >= ROUNDS {
            return Err(majority_lost(&members, &ports).into());
        }
        Ok(Poll::Pending(missing))
    })
    // The greeter is dropped here: etcd needs the port.
}

fn refuse_another_cluster(members: &Members<'_>, ports: &[PeerPort]) -> Result<(), Failure> {
    for (peer, port) in members.others.iter().zip(ports) {
        if let PeerPort::OtherCluster(id) = port {
            return Err(Failure::preflight(
                format!("{} is forming another cluster ({id}): its seed is not of this cluster", show(peer)),
                "build the seeds of all nodes from the same cluster file and secrets folder, or correct the addresses",
            ));
        }
    }
    Ok(())
}

/// Who is missing for the first formation.
fn missing(members: &Members<'_>, ports: &[PeerPort]) -> String {
    let with = |wanted: PeerPort| -> Vec<String> {
        let found = members.others.iter().zip(ports).filter(|(_, port)| **port == wanted);
        found.map(|(peer, _)| show(peer)).collect()
    };
    let absent = with(PeerPort::Absent);
    if absent.is_empty() {
        return format!("{} to see all of them", with(PeerPort::Waiting(Stage::Fresh)).join(", "));
    }
    format!("{} to be switched on", absent.join(", "))
}

fn majority_lost(members: &Members<'_>, ports: &[PeerPort]) -> Failure {
    let (with, without): (Vec<_>, Vec<_>) =
        members.others.iter().zip(ports).partition(|(_, port)| **port == PeerPort::Etcd);
    let names = |list: Vec<(&&Peer, &PeerPort)>| -> Vec<String> { list.iter().map(|(peer, _)| show(peer)).collect() };
    let mut without = names(without);
    without.push("this one".to_owned());
    lost(&format!(
        "{} of {} etcd members have no data ({}); only {} has",
        without.len(),
        members.all.len(),
        without.join(", "),
        names(with).join(", ")
    ))
}

/// A majority of the members lost its data: nothing that a program should mend by itself.
pub(super) fn lost(reason: &str) -> Failure {
    Failure::preflight(
        format!("{reason}: the majority of the etcd cluster was lost, and a new one would contradict what is left"),
        "switch on the members that still have their data, or restore a snapshot (`etcdctl snapshot restore`); \
         to start over with nothing, image all etcd nodes again",
    )
}

/// One step towards a place in the cluster that runs.
fn join(cx: &Cx<'_>, members: &Members<'_>, ports: &[PeerPort]) -> Result<Poll<First>> {
    let running: Vec<&Peer> =
        members.others.iter().zip(ports).filter(|(_, port)| **port == PeerPort::Etcd).map(|(peer, _)| *peer).collect();
    let urls: Vec<_> = running.iter().map(|peer| etcdctl::client_url(peer.address)).collect();
    let ask = |args: &[&str]| cx.try_run(&etcdctl::command(cx.profile(), &urls, args.iter().copied()));
    let needed = quorum(members.all.len());
    let too_few = |healthy: usize| {
        let names: Vec<_> = running.iter().map(|peer| show(peer)).collect();
        format!(
            "{needed} of {} members must be healthy before this one can be replaced; etcd runs on {}, {healthy} healthy",
            members.all.len(),
            names.join(", ")
        )
    };
    let healthy = healthy(&ask(&["endpoint", "health", "--write-out=json"])?.stdout).len();
    if healthy < needed {
        if healthy == 0 {
            for peer in &running {
                etcdctl::refuse_foreign(cx, peer)?;
            }
        }
        return Ok(Poll::Pending(too_few(healthy)));
    }
    let listed = ask(&["member", "list", "--write-out=json"])?;
    if !listed.success() {
        return Ok(Poll::Pending(format!("etcd does not list its members: {}", one_line(&listed.stderr_tail))));
    }
    let url = etcdctl::peer_url(members.own.address);
    let output = match members::next(&members::parse(&listed.stdout)?, &members.all, members.own) {
        members::Next::Remove(id) => {
            cx.say("the cluster knows this member with data that this disk has not: removing it, to add it anew");
            ask(&["member", "remove", &format!("{id:x}")])?
        }
        members::Next::Add => {
            cx.say("adding this member to the running etcd cluster");
            ask(&["member", "add", &members.own.name, &format!("--peer-urls={url}")])?
        }
        members::Next::Start(cluster) => {
            record::write(cx, Recorded::Joining)?;
            return Ok(Poll::Ready(First::Existing(cluster)));
        }
        members::Next::Strangers(names) => {
            let reason = format!("the etcd cluster has members that the cluster file does not: {}", names.join(", "));
            let hint = "remove them (`etcdctl member remove`), or build this node's seed from the cluster's file";
            return Err(Failure::preflight(reason, hint).into());
        }
    };
    Ok(Poll::Pending(if output.success() {
        "the list of members has changed".to_owned()
    } else {
        format!("etcd refuses for now: {}", one_line(&output.stderr_tail))
    }))
}

#[cfg(test)]
mod model;
