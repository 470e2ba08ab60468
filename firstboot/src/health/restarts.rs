// SPDX-License-Identifier: MIT OR Apache-2.0
//! Containers that restart again and again, told from those that restarted when the cluster formed.
//!
//! A count alone says nothing: 5 restarts in 293 days are five reboots, 65301 in 71 days are one every 94 seconds. What
//! counts is the reason kubelet gives, how long ago the last restart was, and the rate over the pod's life.

use serde_json::Value;

use super::collect::Facts;
use super::json::{list, number, text};
use super::pods::Pod;
use super::time::{from_rfc3339, span};
use super::{Check, Source};

const ID: &str = "restarts.loop";
/// So many restarts belong to a cluster that forms: an API server waits for etcd, controllers for the API server.
const FORMING: u64 = 3;
/// A restart within this time is news.
const RECENT: u64 = 3600;
/// A container that restarts more often than this over its pod's life does not do its work.
const OFTEN: u64 = 86_400;
/// After this time without a restart, what was wrong is over.
const OVER: u64 = 7 * 86_400;

pub(super) fn judge(facts: &Facts) -> Vec<Check> {
    // That pods cannot be seen is said by their own topic.
    let Source::Known(answer) = &facts.pods else { return Vec::new() };
    let mut checks = Vec::new();
    let mut total = 0;
    for pod in list(answer, "/items").iter().map(Pod) {
        for container in pod.containers() {
            total += number(container, "/restartCount");
            checks.extend(judge_container(pod, container, facts.now));
        }
    }
    if checks.is_empty() {
        let finding = match total {
            0 => "no container of kube-system ever restarted".to_owned(),
            total => format!("no container of kube-system restarts over and over ({total} restarts so far)"),
        };
        checks.push(Check::ok(ID, "", finding));
    }
    checks
}

fn judge_container(pod: Pod<'_>, container: &Value, now: u64) -> Option<Check> {
    let restarts = number(container, "/restartCount");
    let waiting = text(container, "/state/waiting/reason");
    let looping = waiting == "CrashLoopBackOff";
    if restarts <= FORMING && !looping {
        return None;
    }
    let age = from_rfc3339(text(pod.0, "/metadata/creationTimestamp")).map(|at| now.saturating_sub(at));
    let last = last_restart(container).map(|at| now.saturating_sub(at));
    let interval = age.map(|age| age / restarts.max(1));
    let recent = last.is_some_and(|ago| ago < RECENT) && !machine_went_down(container);
    let finding = describe(restarts, age, last, interval, container);
    let name = match text(container, "/name") {
        "" => pod.name().to_owned(),
        container => format!("{}/{container}", pod.name()),
    };
    let (pod_name, container_name) = name.split_once('/').unwrap_or((&name, ""));
    let advice = format!("`kubectl -n kube-system logs --previous {pod_name} -c {container_name}`");
    if looping {
        return Some(Check::error(ID, pod.name(), format!("{waiting}: {finding}"), advice));
    }
    if recent && (!pod.ready() || interval.is_some_and(|interval| interval < RECENT)) {
        return Some(Check::error(ID, pod.name(), finding, advice));
    }
    let keeps_on = interval.is_some_and(|interval| interval < OFTEN) && last.is_none_or(|ago| ago < OVER);
    (recent || keeps_on && !machine_went_down(container)).then(|| Check::warning(ID, pod.name(), finding, advice))
}

/// `65301 restarts in 71 d, one every 94 s, the last 118 s ago; it ended with exit code 1 (Error)`.
fn describe(restarts: u64, age: Option<u64>, last: Option<u64>, interval: Option<u64>, container: &Value) -> String {
    let mut text_ = format!("{restarts} restarts");
    if let Some((age, interval)) = age.zip(interval) {
        text_ += &format!(" in {}, one every {}", span(age), span(interval));
    }
    if let Some(last) = last {
        text_ += &format!(", the last {} ago", span(last));
    }
    let ended = container.pointer("/lastState/terminated").or_else(|| container.pointer("/state/terminated"));
    if let Some(ended) = ended {
        let reason = text(ended, "/reason");
        let code = ended.pointer("/exitCode").and_then(Value::as_i64);
        text_ += &match (code, reason) {
            (Some(code), "") => format!("; it ended with exit code {code}"),
            (Some(code), reason) => format!("; it ended with exit code {code} ({reason})"),
            (None, reason) => format!("; it ended: {reason}"),
        };
    }
    text_
}

/// When it last started, or else last ended.
fn last_restart(container: &Value) -> Option<u64> {
    ["/state/running/startedAt", "/state/terminated/finishedAt", "/lastState/terminated/finishedAt"]
        .iter()
        .find_map(|pointer| from_rfc3339(text(container, pointer)))
}

/// containerd says so of containers that it finds dead when it starts: a reboot or a power cut, not a crash.
fn machine_went_down(container: &Value) -> bool {
    text(container, "/lastState/terminated/reason") == "Unknown"
        && number(container, "/lastState/terminated/exitCode") == 255
}
