// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pods of kube-system: the control plane on every master, kube-proxy and the network plugin on every node, DNS.

use profiles::node::{ClusterDns, NetworkPlugin, NodeProfile, Role};
use serde_json::Value;

use super::collect::{Facts, peers};
use super::json::{is_true, list, text};
use super::{Check, Source};

const CONTROL_PLANE: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// One pod as the API server describes it.
#[derive(Clone, Copy)]
pub(super) struct Pod<'a>(pub &'a Value);

impl<'a> Pod<'a> {
    pub fn name(self) -> &'a str {
        text(self.0, "/metadata/name")
    }

    fn node(self) -> &'a str {
        text(self.0, "/spec/nodeName")
    }

    fn label(self, name: &str) -> &'a str {
        self.0["metadata"]["labels"][name].as_str().unwrap_or_default()
    }

    pub fn ready(self) -> bool {
        text(self.0, "/status/phase") == "Running" && is_true(self.0, "Ready")
    }

    /// A job's pod that ended well.
    fn finished(self) -> bool {
        text(self.0, "/status/phase") == "Succeeded"
    }

    /// All its containers' statuses, those of init containers first.
    pub fn containers(self) -> impl Iterator<Item = &'a Value> {
        let of = |kind: &str| list(self.0, &format!("/status/{kind}"));
        of("initContainerStatuses").iter().chain(of("containerStatuses"))
    }

    /// Why it is not ready.
    fn trouble(self) -> String {
        for container in self.containers() {
            let reason = text(container, "/state/waiting/reason");
            if !reason.is_empty() && reason != "PodInitializing" {
                let message = text(container, "/state/waiting/message");
                return if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
            }
        }
        if self.0.pointer("/metadata/deletionTimestamp").is_some() {
            return "is being deleted".to_owned();
        }
        let scheduled = list(self.0, "/status/conditions")
            .iter()
            .find(|condition| text(condition, "/type") == "PodScheduled" && text(condition, "/status") == "False");
        if let Some(condition) = scheduled {
            return format!("not scheduled: {}", text(condition, "/message"));
        }
        match text(self.0, "/status/phase") {
            "" => "has no status".to_owned(),
            "Running" => "Running, but not ready".to_owned(),
            phase => match text(self.0, "/status/message") {
                "" => phase.to_owned(),
                message => format!("{phase}: {message}"),
            },
        }
    }

    fn advice(self) -> String {
        format!("`kubectl -n kube-system describe pod {}`", self.name())
    }
}

pub(super) fn judge(profile: &NodeProfile, facts: &Facts) -> Vec<Check> {
    let answer = match &facts.pods {
        Source::Known(answer) => answer,
        Source::Failed(why) => return vec![Check::unknown("pods.all", "", why, "see the topic `api` below")],
        Source::NotAsked => return Vec::new(),
    };
    let pods: Vec<Pod<'_>> = list(answer, "/items").iter().map(Pod).collect();
    let whole_cluster = profile.has(Role::Master);
    let visible = |name: &str| whole_cluster || name == profile.node.name;
    let mut masters: Vec<&str> =
        peers(profile, &[Role::Master]).map(|peer| peer.name.as_str()).filter(|name| visible(name)).collect();
    let mut nodes: Vec<&str> = peers(profile, &[Role::Master, Role::Worker])
        .map(|peer| peer.name.as_str())
        .filter(|name| visible(name))
        .collect();
    let silent = silent(facts);
    let mut judged: Vec<&str> = Vec::new();
    let mut checks = Vec::new();
    for name in silent.iter().filter(|name| visible(name)) {
        let waiting = pods.iter().filter(|pod| pod.node() == *name && !pod.ready() && !pod.finished()).count();
        if waiting > 0 {
            let pods = if waiting == 1 { "1 pod is".to_owned() } else { format!("{waiting} pods are") };
            checks.push(Check::info("pods.node", name, format!("{pods} not ready, because the node is not")));
        }
    }
    masters.retain(|name| !silent.contains(name));
    nodes.retain(|name| !silent.contains(name));
    for component in CONTROL_PLANE {
        checks.extend(one_each(&pods, "pods.control-plane", ("component", component), &masters, &mut judged));
    }
    checks.extend(one_each(&pods, "pods.kube-proxy", ("k8s-app", "kube-proxy"), &nodes, &mut judged));
    if profile.network.plugin == NetworkPlugin::Calico {
        checks.extend(one_each(&pods, "pods.network", ("k8s-app", "calico-node"), &nodes, &mut judged));
    }
    if profile.kubernetes.dns == ClusterDns::Coredns && whole_cluster {
        checks.extend(dns(&pods, &mut judged));
    }
    let bad = |pod: &&Pod<'_>| !pod.finished() && !pod.ready() && !silent.contains(&pod.node());
    for pod in pods.iter().filter(|pod| !judged.contains(&pod.name())).filter(bad) {
        checks.push(Check::warning("pods.other", pod.name(), pod.trouble(), pod.advice()));
    }
    let ready = pods.iter().filter(|pod| pod.ready()).count();
    if ready > 0 {
        let scope = if whole_cluster { "" } else { " on this node" };
        let all = pods.iter().filter(|pod| !pod.finished()).count();
        checks.push(Check::ok("pods.all", "", format!("{ready} of {all} pods of kube-system{scope} are ready")));
    }
    checks
}

/// Nodes that are known and not Ready. One finding about such a node says more than one about each of its pods.
fn silent(facts: &Facts) -> Vec<&str> {
    let Source::Known(nodes) = &facts.nodes else { return Vec::new() };
    let not_ready = list(nodes, "/items").iter().filter(|node| !is_true(node, "Ready"));
    not_ready.map(|node| text(node, "/metadata/name")).filter(|name| !name.is_empty()).collect()
}

/// Pods of which every one of `nodes` needs one that is ready.
fn one_each<'a>(
    pods: &[Pod<'a>],
    id: &'static str,
    (label, value): (&str, &str),
    nodes: &[&str],
    judged: &mut Vec<&'a str>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    for node in nodes {
        let here: Vec<_> = pods.iter().filter(|pod| pod.label(label) == value && pod.node() == *node).collect();
        judged.extend(here.iter().map(|pod| pod.name()));
        if here.iter().any(|pod| pod.ready()) {
            continue;
        }
        match here.first() {
            Some(pod) => checks.push(Check::error(id, pod.name(), pod.trouble(), pod.advice())),
            None => {
                let finding = format!("no pod of {value} on {node}");
                let advice = match id {
                    "pods.control-plane" => {
                        format!("on {node}: `ls /etc/kubernetes/manifests`, `systemctl status kubelet`")
                    }
                    _ => format!("`kubectl -n kube-system describe daemonset {value}`"),
                };
                checks.push(Check::error(id, node, finding, advice));
            }
        }
    }
    checks
}

/// One that is ready is enough to answer, but all are wanted.
fn dns<'a>(pods: &[Pod<'a>], judged: &mut Vec<&'a str>) -> Vec<Check> {
    let id = "pods.dns";
    let all: Vec<_> = pods.iter().filter(|pod| pod.label("k8s-app") == "kube-dns").collect();
    judged.extend(all.iter().map(|pod| pod.name()));
    let ready = all.iter().filter(|pod| pod.ready()).count();
    if all.is_empty() {
        let advice = "`kubectl -n kube-system describe deployment coredns`";
        return vec![Check::error(id, "", "no pod of CoreDNS", advice)];
    }
    all.iter()
        .filter(|pod| !pod.ready())
        .map(|pod| match ready {
            0 => Check::error(id, pod.name(), format!("{}; no name is resolved", pod.trouble()), pod.advice()),
            _ => Check::warning(id, pod.name(), pod.trouble(), pod.advice()),
        })
        .collect()
}
