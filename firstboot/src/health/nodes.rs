// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes: all of the profile's are there, Ready, of the cluster's version, and take work.

use profiles::node::{NodeProfile, Role};
use serde_json::Value;

use super::collect::{Facts, peers};
use super::json::{condition, is_true, list, text};
use super::time::{from_rfc3339, span};
use super::{Check, Source};

/// Conditions that are bad when true.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "free memory: the kubelet evicts pods"),
    ("DiskPressure", "free disk space (`crictl rmi --prune`, old logs): the kubelet evicts pods"),
    ("PIDPressure", "find what starts so many processes: the kubelet evicts pods"),
    ("NetworkUnavailable", "look at the network plugin's pod on that node"),
];

pub(super) fn judge(profile: &NodeProfile, facts: &Facts) -> Vec<Check> {
    let answer = match &facts.nodes {
        Source::Known(answer) => answer,
        Source::Failed(why) => {
            return vec![Check::unknown("node.ready", "", why, "see the topic `api` below")];
        }
        Source::NotAsked => {
            return vec![Check::info("node.ready", "", "Kubernetes is not visible from here: run it on a master too")];
        }
    };
    let found = list(answer, "/items");
    let mut checks = Vec::new();
    let mut ready = 0;
    let expected = expected(profile);
    for name in &expected {
        let Some(node) = found.iter().find(|node| text(node, "/metadata/name") == *name) else {
            let advice = format!("on {name}: `firstboot status`");
            checks.push(Check::error("node.registered", name, "has never joined, or was removed", advice));
            continue;
        };
        if is_true(node, "Ready") {
            ready += 1;
        } else {
            checks.push(not_ready(name, node, facts.now));
        }
        checks.extend(details(profile, name, node));
    }
    for name in found.iter().map(|node| text(node, "/metadata/name")).filter(|name| !expected.contains(name)) {
        checks.push(Check::info("node.stranger", name, "is not in the profile: somebody added it"));
    }
    if ready > 0 {
        let finding = match expected.as_slice() {
            [only] => format!("{only} is Ready, {}", profile.kubernetes.version),
            all => format!("{ready} of {} nodes are Ready, {}", all.len(), profile.kubernetes.version),
        };
        checks.push(Check::ok("node.ready", "", finding));
    }
    checks
}

/// Nodes that must be registered, as far as this one can see.
fn expected(profile: &NodeProfile) -> Vec<&str> {
    if !profile.has(Role::Master) {
        return vec![&profile.node.name];
    }
    peers(profile, &[Role::Master, Role::Worker]).map(|peer| peer.name.as_str()).collect()
}

fn not_ready(name: &str, node: &Value, now: u64) -> Check {
    let Some(ready) = condition(node, "Ready") else {
        let advice = format!("on {name}: `systemctl status kubelet`");
        return Check::error("node.ready", name, "its kubelet has not reported yet", advice);
    };
    let since = from_rfc3339(text(ready, "/lastTransitionTime"))
        .map(|at| format!(" for {}", span(now.saturating_sub(at))))
        .unwrap_or_default();
    let why = match (text(ready, "/message"), text(ready, "/reason")) {
        ("", "") => "no reason given",
        ("", reason) => reason,
        (message, _) => message,
    };
    // `Unknown` is the cluster's word for a kubelet that went silent; `False` is kubelet's own.
    let advice = match text(ready, "/status") {
        "Unknown" => format!("on {name}: is the machine up and in the network? then `systemctl status kubelet`"),
        _ => format!("`kubectl describe node {name}`; on {name}: `journalctl -u kubelet`"),
    };
    Check::error("node.ready", name, format!("not Ready{since}: {why}"), advice)
}

fn details(profile: &NodeProfile, name: &str, node: &Value) -> Vec<Check> {
    let mut checks = Vec::new();
    for (kind, advice) in PRESSURES {
        if is_true(node, kind) {
            let message = condition(node, kind).map(|found| text(found, "/message")).unwrap_or_default();
            let finding = format!("{kind}: {}", if message.is_empty() { "no reason given" } else { message });
            checks.push(match kind {
                "NetworkUnavailable" => Check::error("node.pressure", name, finding, advice),
                _ => Check::warning("node.pressure", name, finding, advice),
            });
        }
    }
    let version = text(node, "/status/nodeInfo/kubeletVersion").trim_start_matches('v');
    if !same_version(version, &profile.kubernetes.version) {
        let finding = format!("kubelet is {version}, the cluster {}", profile.kubernetes.version);
        let advice = "give every node the same image; a kubelet must not be newer than the API servers";
        checks.push(Check::warning("node.version", name, finding, advice));
    }
    if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        let advice = format!("`kubectl uncordon {name}` when the work on it is done");
        checks.push(Check::warning("node.cordoned", name, "takes no new pods", advice));
    }
    checks
}

/// Distributions append their own: `1.25.16-12+92530656e308a8`.
fn same_version(kubelet: &str, cluster: &str) -> bool {
    kubelet.strip_prefix(cluster).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '+']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_may_have_a_suffix() {
        assert!(same_version("1.20.2", "1.20.2"));
        assert!(same_version("1.25.16-12+92530656e308a8", "1.25.16"));
        assert!(!same_version("1.20.21", "1.20.2"));
        assert!(!same_version("", "1.20.2"));
    }
}
