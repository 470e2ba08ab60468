// SPDX-License-Identifier: MIT OR Apache-2.0
//! etcd: every member by its own word, and how many more may fail.

use profiles::node::{NodeProfile, Role};
use serde_json::Value;

use super::collect::{Facts, peers};
use super::json::{list, number, text};
use super::{Check, Source};
use crate::etcdctl;

const QUORUM: &str = "etcd.quorum";
const MEMBER: &str = "etcd.member";
/// Share of the quota, in percent, from which on there is something to do.
const QUOTA_PERCENT: u64 = 80;
/// Entries a follower may be behind while all are busy: etcd itself calls one slow from 5000 on (it then sends a snapshot
/// instead of entries after 10000).
const LAG: u64 = 5000;

/// One member of the profile.
struct Member<'a> {
    name: &'a str,
    /// `etcdctl endpoint status`, its inner object; or why there is none.
    status: Result<&'a Value, &'a str>,
    /// It answers a read through the quorum; else what it said.
    health: Result<(), &'a str>,
}

pub(super) fn judge(profile: &NodeProfile, facts: &Facts) -> Vec<Check> {
    if matches!(facts.health, Source::NotAsked) {
        return Vec::new();
    }
    let members = members(profile, facts);
    let mut checks = vec![quorum(&members, voters(facts))];
    for member in &members {
        checks.extend(judge_member(member, profile));
    }
    checks.extend(leader(&members));
    checks.extend(lag(&members));
    checks.extend(membership(profile, facts));
    checks
}

fn members<'a>(profile: &'a NodeProfile, facts: &'a Facts) -> Vec<Member<'a>> {
    let endpoints = etcdctl::endpoints(profile);
    let health = match &facts.health {
        Source::Known(answer) => Ok(list(answer, "")),
        Source::Failed(why) => Err(why.as_str()),
        Source::NotAsked => Err("not asked"),
    };
    peers(profile, &[Role::Etcd])
        .zip(&endpoints)
        .map(|(peer, endpoint)| {
            let status = match facts.statuses.get(&peer.name) {
                Some(Source::Known(answer)) => answer.pointer("/0/Status").ok_or("no answer"),
                Some(Source::Failed(why)) => Err(why.as_str()),
                Some(Source::NotAsked) | None => Err("not asked"),
            };
            let health = health.and_then(|all| {
                let own = all.iter().find(|one| text(one, "/endpoint") == endpoint).ok_or("no answer")?;
                match own["health"].as_bool() {
                    Some(true) => Ok(()),
                    _ => Err(text(own, "/error")),
                }
            });
            Member { name: &peer.name, status, health }
        })
        .collect()
}

/// How many members the cluster itself counts: strangers among them, and those that never started.
fn voters(facts: &Facts) -> Option<usize> {
    let Source::Known(answer) = &facts.members else { return None };
    let voters = list(answer, "/members").iter().filter(|member| member["isLearner"] != Value::Bool(true)).count();
    Some(voters).filter(|voters| *voters > 0)
}

/// The margin, in words. A member counts as healthy when it reads through the quorum. Without a quorum none does, and those
/// that still answer for themselves count.
fn quorum(members: &[Member<'_>], voters: Option<usize>) -> Check {
    let all = voters.unwrap_or(members.len());
    let votes = |member: &&Member<'_>| !member.status.is_ok_and(|status| status["isLearner"] == Value::Bool(true));
    let healthy = members.iter().filter(votes).filter(|member| member.health.is_ok()).count();
    let running = members.iter().filter(votes).filter(|member| member.status.is_ok()).count();
    let needed = all / 2 + 1;
    if healthy == 0 {
        let advice =
            format!("bring back members until {needed} of {all} run; never remove or re-image a second one now");
        return match running {
            0 => {
                let finding = format!("none of {all} members answers: nothing can be read or written");
                Check::error(QUORUM, "", finding, advice)
            }
            running if running < needed => {
                let finding =
                    format!("{running} of {all} members run{}: no quorum, nothing can be written", s(running));
                Check::error(QUORUM, "", finding, advice)
            }
            running => {
                let finding =
                    format!("{running} of {all} members run, but none can write: they have no leader or no space");
                Check::error(QUORUM, "", finding, "look at `journalctl -u etcd` on the members")
            }
        };
    }
    let spare = healthy.saturating_sub(needed);
    let are = if healthy == 1 { "is" } else { "are" };
    let base = format!("{healthy} of {all} members {are} healthy");
    match (healthy >= all, spare) {
        (true, 0) if all == 1 => Check::ok(QUORUM, "", "the only member is healthy"),
        (true, 0) => Check::warning(QUORUM, "", format!("{base}: none may fail"), "three members survive one failure"),
        (true, 1) => Check::ok(QUORUM, "", format!("{base}: one may fail")),
        (true, spare) => Check::ok(QUORUM, "", format!("{base}: {spare} may fail")),
        (false, 0) => {
            let advice = "bring back the failed member first; do not reboot another node before";
            Check::warning(QUORUM, "", format!("{base}: one more failure stops writes"), advice)
        }
        (false, spare) => {
            let more = if spare == 1 { "one more may fail".to_owned() } else { format!("{spare} more may fail") };
            Check::warning(QUORUM, "", format!("{base}: {more}"), "bring back the failed member")
        }
    }
}

/// The ending of a verb after a number.
fn s(count: usize) -> &'static str {
    if count == 1 { "s" } else { "" }
}

fn judge_member(member: &Member<'_>, profile: &NodeProfile) -> Vec<Check> {
    let name = member.name;
    let status = match member.status {
        Ok(status) => status,
        Err(why) => {
            let advice = format!("on {name}: `systemctl status etcd`, `journalctl -u etcd`");
            return vec![Check::error(MEMBER, name, format!("does not answer: {why}"), advice)];
        }
    };
    let mut checks = Vec::new();
    let errors: Vec<&str> = list(status, "/errors").iter().filter_map(Value::as_str).collect();
    // Alarms are raised for the whole cluster; each member lists those of all: `memberID:123 alarm:NOSPACE `.
    let own = format!("memberID:{} ", number(status, "/header/member_id"));
    let alarms =
        errors.iter().filter_map(|error| error.split_once("alarm:").map(|(whose, alarm)| (whose, alarm.trim())));
    for (whose, alarm) in alarms {
        if whose != own {
            continue;
        }
        let advice = match alarm {
            "NOSPACE" => "compact and defragment (docs/health.md), then `etcdctl alarm disarm`",
            "CORRUPT" => "its data differs from the others': re-image this member alone, it then joins anew",
            _ => "see `etcdctl alarm list`",
        };
        checks.push(Check::error("etcd.alarm", name, format!("alarm {alarm}: writes are refused"), advice));
    }
    let others: Vec<&str> = errors.iter().copied().filter(|error| !error.contains("alarm:")).collect();
    if member.health.is_err() && checks.is_empty() {
        let said = match (member.health, others.as_slice()) {
            (Err(why), []) if !why.is_empty() => why.to_owned(),
            (_, []) => "no reason given".to_owned(),
            (_, errors) => errors.join(", "),
        };
        let advice = format!("on {name}: `journalctl -u etcd`; if several members say so, look at the quorum first");
        checks.push(Check::error(MEMBER, name, format!("runs, but cannot read through the quorum: {said}"), advice));
    }
    let (size, quota) = (number(status, "/dbSize"), profile.etcd.quota_bytes);
    if quota > 0 && size.saturating_mul(100) >= quota.saturating_mul(QUOTA_PERCENT) {
        let used = number(status, "/dbSizeInUse");
        let finding = format!(
            "the database has {} of its quota of {} MiB, {} MiB of it in use",
            percent(size, quota),
            quota >> 20,
            used >> 20
        );
        let advice =
            "at the quota etcd refuses all writes: compact and defragment (docs/health.md), or find what fills it";
        checks.push(Check::warning("etcd.database", name, finding, advice));
    }
    if status["isLearner"] == Value::Bool(true) {
        let id = number(status, "/header/member_id");
        let advice = format!("it has no vote: `etcdctl member promote {id:x}` when it has caught up");
        checks.push(Check::warning("etcd.learner", name, "is a learner", advice));
    }
    checks
}

fn percent(part: u64, whole: u64) -> String {
    format!("{} %", part.saturating_mul(100) / whole.max(1))
}

/// All must follow the same leader.
fn leader(members: &[Member<'_>]) -> Option<Check> {
    let answering: Vec<_> = members.iter().filter_map(|member| Some((member.name, member.status.ok()?))).collect();
    let mut leaders: Vec<u64> = answering.iter().map(|(_, status)| number(status, "/leader")).collect();
    leaders.sort_unstable();
    leaders.dedup();
    match leaders.as_slice() {
        // Nobody answers, or nobody knows a leader: the quorum has said what that means.
        [] | [0] => None,
        [only] => {
            let leads = |status: &Value| number(status, "/header/member_id") == *only;
            let name = answering.iter().find(|(_, status)| leads(status)).map_or("another member", |(name, _)| name);
            let biggest = answering.iter().map(|(_, status)| number(status, "/dbSize")).max().unwrap_or_default();
            let version = answering.first().map(|(_, status)| text(status, "/version")).unwrap_or_default();
            let finding = format!("{name} leads; etcd {version}, database {} MiB", biggest.div_ceil(1 << 20));
            Some(Check::ok("etcd.leader", "", finding))
        }
        _ => {
            let advice =
                "ask again: an election takes a second; if it stays so, look at the network between the members";
            Some(Check::warning("etcd.leader", "", "the members do not agree on a leader", advice))
        }
    }
}

/// Members that are far behind the first.
fn lag(members: &[Member<'_>]) -> Vec<Check> {
    let applied = |status: &Value| match number(status, "/raftAppliedIndex") {
        0 => number(status, "/raftIndex"),
        index => index,
    };
    let indices: Vec<_> =
        members.iter().filter_map(|member| Some((member.name, applied(member.status.ok()?)))).collect();
    let first = indices.iter().map(|(_, index)| *index).max().unwrap_or_default();
    indices
        .into_iter()
        .filter(|(_, index)| first.saturating_sub(*index) > LAG)
        .map(|(name, index)| {
            let finding = format!("is {} entries behind the others", first - index);
            let advice = format!("on {name}: a slow disk or network? `journalctl -u etcd` warns of both");
            Check::warning("etcd.lag", name, finding, advice)
        })
        .collect()
}

/// The cluster's own list of members, against the profile.
fn membership(profile: &NodeProfile, facts: &Facts) -> Vec<Check> {
    const ID: &str = "etcd.membership";
    let answer = match &facts.members {
        Source::Known(answer) => answer,
        Source::Failed(why) => return vec![Check::unknown(ID, "", format!("no list of members: {why}"), "")],
        Source::NotAsked => return Vec::new(),
    };
    let listed = list(answer, "/members");
    let mut checks = Vec::new();
    let host_of = |url: &str| url.rsplit_once("://").map_or(url, |(_, rest)| rest).to_owned();
    let known: Vec<(&str, String)> = peers(profile, &[Role::Etcd])
        .map(|peer| (peer.name.as_str(), std::net::SocketAddr::new(peer.address, 2380).to_string()))
        .collect();
    let is = |member: &Value, (name, address): &(&str, String)| {
        text(member, "/name") == *name
            || list(member, "/peerURLs").iter().any(|url| url.as_str().is_some_and(|url| host_of(url) == *address))
    };
    for member in listed {
        let stranger = !known.iter().any(|one| is(member, one));
        let name = match text(member, "/name") {
            "" => list(member, "/peerURLs").first().and_then(Value::as_str).unwrap_or("a member without a name"),
            name => name,
        };
        let id = format!("{:x}", number(member, "/ID"));
        if stranger {
            let advice = format!("if nobody needs it: `etcdctl member remove {id}`");
            let finding = format!("member {id} is not in the profile, but counts for the quorum");
            checks.push(Check::warning("etcd.stranger", name, finding, advice));
        } else if text(member, "/name").is_empty() {
            let finding = format!("member {id} was added, but has never started");
            checks.push(Check::warning(ID, name, finding, "start that node: until then it counts as failed"));
        }
    }
    for one in known.iter().filter(|one| !listed.iter().any(|member| is(member, one))) {
        let advice = format!("on {}: `firstboot status`", one.0);
        checks.push(Check::error(ID, one.0, "is no member of the cluster", advice));
    }
    checks
}
