// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clocks of other nodes, against this one's. firstboot speaks no TLS and no NTP; two things that kubectl shows tell.
//!
//! * The `Date` header of each API server, a whole second, cut off. It was written between the start and the end of the
//!   request; only what lies outside of that by more than the second is counted, so a slow answer hides a skew but never
//!   invents one.
//! * The lease that each kubelet renews every 10 s by its own clock, for nodes without an API server. A time in the
//!   future means a clock that is ahead. A time in the past may be a late renewal as well: the node controller gives a
//!   kubelet 40 s (50 s since 1.32) by its own clock, so only what a node that counts as Ready cannot explain by lateness
//!   is an error, and what is probably no lateness is a warning.

use profiles::node::{NodeProfile, Role};
use serde_json::Value;

use super::api::date;
use super::collect::{Facts, peers};
use super::json::{is_true, list, text};
use super::time::{from_rfc3339, span};
use super::{Check, Source};

const ID: &str = "clock.skew";
/// From here on, in seconds, etcd and people who read logs begin to suffer.
const WARNING: i64 = 2;
/// What the ACP platform refuses; tokens and young certificates break.
const ERROR: i64 = 10;
/// The longest that a kubelet may be silent and still count as Ready.
const GRACE: i64 = 50;
/// Renewals are 10 s apart; one of them failed and was tried again.
const RENEWAL: i64 = 25;

/// A clock that was compared: by how much it is at least ahead (behind if negative), 0 if nothing is certain.
struct Clock<'a> {
    node: &'a str,
    ahead: i64,
    /// It may also be a kubelet that was late.
    perhaps_late: bool,
}

pub(super) fn judge(profile: &NodeProfile, facts: &Facts) -> Vec<Check> {
    let clocks = clocks(profile, facts);
    let off: Vec<&Clock<'_>> = clocks.iter().filter(|clock| clock.ahead.abs() >= WARNING).collect();
    if clocks.is_empty() {
        return match &facts.nodes {
            // An etcd node sees nobody's clock.
            Source::NotAsked => Vec::new(),
            _ => vec![Check::unknown(ID, "", "no other clock to compare with", "see the topic `api`")],
        };
    }
    // All others off by the same side: it is this one.
    if off.len() == clocks.len()
        && off.len() > 1
        && off.windows(2).all(|two| two[0].ahead.signum() == two[1].ahead.signum())
    {
        let least = off.iter().map(|clock| clock.ahead.abs()).min().unwrap_or_default();
        let side = if off[0].ahead > 0 { "behind" } else { "ahead of" };
        let finding = format!("at least {} {side} all others", span(least.unsigned_abs()));
        return vec![grade(least, &profile.node.name, &finding)];
    }
    let mut checks: Vec<Check> = off
        .iter()
        .map(|clock| {
            let side = if clock.ahead > 0 { "ahead of" } else { "behind" };
            let late = if clock.perhaps_late { ", or its kubelet is slow to report" } else { "" };
            let amount = span(clock.ahead.unsigned_abs());
            grade(clock.ahead.abs(), clock.node, &format!("at least {amount} {side} this node{late}"))
        })
        .collect();
    if off.is_empty() {
        let nodes =
            if clocks.len() == 1 { "1 other clock".to_owned() } else { format!("{} other clocks", clocks.len()) };
        checks.push(Check::ok(ID, "", format!("{nodes} seen, none differs by {WARNING} s or more for certain")));
    }
    checks
}

fn grade(seconds: i64, node: &str, finding: &str) -> Check {
    let advice = "`timedatectl` there: is NTP on, and does it reach a server? all nodes need the same source";
    if seconds >= ERROR { Check::error(ID, node, finding, advice) } else { Check::warning(ID, node, finding, advice) }
}

fn clocks<'a>(profile: &'a NodeProfile, facts: &'a Facts) -> Vec<Clock<'a>> {
    let own = profile.node.name.as_str();
    let mut clocks: Vec<Clock<'a>> = Vec::new();
    for api in &facts.apis {
        let name = api.master.as_deref().unwrap_or("the endpoint's API server");
        let Some((ran, at)) = api.answer.as_ref().ok().and_then(|ran| Some((ran, date(ran)?))) else { continue };
        // Seen through the endpoint it is one of the masters again.
        if name == own || (api.master.is_none() && !clocks.is_empty()) {
            continue;
        }
        clocks.push(Clock { node: name, ahead: outside(at, ran.from, ran.until), perhaps_late: false });
    }
    let (Source::Known(leases), Source::Known(nodes)) = (&facts.leases, &facts.nodes) else { return clocks };
    for peer in peers(profile, &[Role::Master, Role::Worker]) {
        let name = peer.name.as_str();
        if name == own || clocks.iter().any(|clock| clock.node == name) {
            continue;
        }
        let named = |object: &&Value| text(object, "/metadata/name") == name;
        let ready = list(nodes, "/items").iter().find(named).is_some_and(|node| is_true(node, "Ready"));
        let lease = list(leases, "/items").iter().find(named);
        let Some(renewed) = lease.and_then(|lease| from_rfc3339(text(lease, "/spec/renewTime"))) else { continue };
        let ahead = difference(renewed, facts.now);
        clocks.push(match ahead {
            // A silent kubelet says nothing about its clock.
            _ if !ready && ahead <= 0 => continue,
            ..=-60 => Clock { node: name, ahead: ahead + GRACE, perhaps_late: false },
            -59..=-27 => Clock { node: name, ahead: (ahead + RENEWAL).max(1 - ERROR), perhaps_late: true },
            -26..=0 => Clock { node: name, ahead: 0, perhaps_late: true },
            _ => Clock { node: name, ahead, perhaps_late: false },
        });
    }
    clocks
}

/// By how much `at` lies outside of `from..=until`, a second of rounding aside.
fn outside(at: u64, from: u64, until: u64) -> i64 {
    match (difference(at, from), difference(at, until)) {
        (before, _) if before < -1 => before + 1,
        (_, after) if after > 1 => after - 1,
        _ => 0,
    }
}

fn difference(a: u64, b: u64) -> i64 {
    i64::try_from(a).unwrap_or(i64::MAX).saturating_sub(i64::try_from(b).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_took_long_hides_a_skew_but_invents_none() {
        assert_eq!(outside(100, 100, 100), 0);
        assert_eq!(outside(99, 100, 100), 0);
        assert_eq!(outside(101, 100, 100), 0);
        assert_eq!(outside(103, 100, 105), 0);
        assert_eq!(outside(97, 100, 105), -2);
        assert_eq!(outside(108, 100, 105), 2);
        assert_eq!(outside(u64::MAX, 0, 0), i64::MAX - 1);
    }
}
