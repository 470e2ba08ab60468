// SPDX-License-Identifier: MIT OR Apache-2.0
//! `firstboot routes`: with the plugin `bridge`, the routes to pods of nodes that the cluster file did not have yet when
//! this node's image was built. To those that it had, systemd-networkd has routes; they are never touched here.
//!
//! Every node says on its own Node object which pod subnet it has, and looks there for what others say.
//! imgbuild-routes.timer runs this once a minute, so it must be cheap: one question to the API server, one to the kernel.
//!
//! Whoever has a node's credential can write anything to its Node. So what a Node says is a claim: it gets a route to one
//! whole share of the pod network and to nothing else, never to what the cluster file gave to another node, and of two
//! that claim the same the older Node has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use profiles::node::{NodeProfile, Peer, Role};
use serde::Deserialize;

use crate::bundle::Origin;
use crate::failure::{Exit, Failure};
use crate::health;
use crate::kubectl;
use crate::runner::{Command, RealRunner, Runner, redact};

/// On a Node: the pod subnet of that node. An interface between nodes of different ages (docs/contracts.md).
const ANNOTATION: &str = "imgbuild/pod-subnet";
/// Marks routes of ours in the kernel (rtnetlink's `rtm_protocol`); no program in iproute2's table has this number.
const PROTOCOL: &str = "173";
/// The same for routes that systemd-networkd makes on a node from an image, and that are made here on a host whose network
/// is its own.
const FIXED: &str = "174";

/// Exit codes, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
   0  this node has the routes that it should have
  30  a route could not be set, or this node's pod subnet not be published
  40  the API server did not answer; the routes are as they were
  50  internal error, or this node has no seed";

#[derive(Deserialize)]
struct NodeList {
    items: Vec<Node>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Node {
    metadata: Metadata,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    /// The API server's own, always in UTC and of one length: its text sorts by time.
    creation_timestamp: String,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    addresses: Vec<Address>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Address {
    r#type: String,
    address: String,
}

/// As `ip -j route` says it.
#[derive(Deserialize)]
struct KernelRoute {
    dst: String,
    gateway: Option<String>,
}

/// The routes that there should be, with the name of the node behind each.
type Wanted<'a> = BTreeMap<(IpNet, IpAddr), &'a str>;

/// The command.
pub fn run(say: &mut dyn FnMut(&str)) -> Result<()> {
    let root = Path::new("/");
    let profile = health::profile(root)?;
    if Origin::of(root)? == Origin::Bundle {
        // These need nobody's answer.
        keep_fixed(&profile, &RealRunner, say)?;
    }
    keep(&profile, &RealRunner, say)
}

/// Makes the routes to the pods of those nodes that the cluster file had.
fn keep_fixed(profile: &NodeProfile, runner: &dyn Runner, say: &mut dyn FnMut(&str)) -> Result<()> {
    let Some(own) = profile.node.pod_subnet else { return Ok(()) };
    let others = profile.peers.iter().filter(|peer| peer.name != profile.node.name && runs_pods(&peer.roles));
    let wanted: Wanted<'_> =
        others.filter_map(|peer| Some(((peer.pod_subnet?, peer.address), peer.name.as_str()))).collect();
    let present = present(runner, own, FIXED)?;
    for (subnet, via) in present.iter().filter(|(net, via)| !via.is_some_and(|via| wanted.contains_key(&(*net, via)))) {
        route(runner, "del", subnet, *via, FIXED)?;
    }
    for ((subnet, via), name) in wanted.iter().filter(|((net, via), _)| !present.contains(&(*net, Some(*via)))) {
        route(runner, "replace", subnet, Some(*via), FIXED)?;
        say(&format!("the pods of {name}, {subnet}, are behind {via}"));
    }
    Ok(())
}

/// Publishes this node's pod subnet, and makes the kernel's routes what they should be.
fn keep(profile: &NodeProfile, runner: &dyn Runner, say: &mut dyn FnMut(&str)) -> Result<()> {
    let own = match profile.node.pod_subnet {
        Some(own) if runs_pods(&profile.node.roles) => own,
        _ => {
            say("this node has no pod subnet of its own: nothing to do");
            return Ok(());
        }
    };
    let nodes = nodes(runner)?;
    let is_share = |net: &IpNet| is_share(profile, own, net);
    let present: BTreeSet<_> = present(runner, own, PROTOCOL)?.into_iter().filter(|(net, _)| is_share(net)).collect();
    let (wanted, refused) = wanted(profile, own, &nodes);
    refused.iter().for_each(|line| say(line));
    // What fails for one node must not keep the others from their routes.
    let mut failed = Vec::new();
    let mut attempt = |result: Result<()>, done: String, say: &mut dyn FnMut(&str)| match result {
        Ok(()) => say(&done),
        Err(error) => failed.push(format!("{error:#}")),
    };
    let registered = nodes.iter().find(|node| node.metadata.name == profile.node.name);
    if registered.is_some_and(|node| node.metadata.annotations.get(ANNOTATION) != Some(&own.to_string())) {
        attempt(publish(runner, &profile.node.name, &own), format!("published {own} as this node's pod subnet"), say);
    }
    for (subnet, via) in &present {
        if !via.is_some_and(|via| wanted.contains_key(&(*subnet, via))) {
            let done = format!("removed the route to {subnet}: no node has it there any more");
            attempt(route(runner, "del", subnet, *via, PROTOCOL), done, say);
        }
    }
    for ((subnet, via), name) in &wanted {
        if !present.contains(&(*subnet, Some(*via))) {
            let done = format!("the pods of {name}, {subnet}, are behind {via}");
            attempt(route(runner, "replace", subnet, Some(*via), PROTOCOL), done, say);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let hint = "look at `ip route` and `firstboot health`; imgbuild-routes.timer tries again in a minute";
    Err(Failure::new(Exit::Step, failed.join("; "), hint).into())
}

fn runs_pods<'a>(roles: impl IntoIterator<Item = &'a Role>) -> bool {
    roles.into_iter().any(|role| *role != Role::Etcd)
}

/// Whether `net` is exactly what one node gets of the pod network.
fn is_share(profile: &NodeProfile, own: IpNet, net: &IpNet) -> bool {
    let whole = *net == net.trunc() && net.prefix_len() == own.prefix_len();
    whole && profile.network.pod_subnets.iter().any(|pods| pods.contains(net))
}

/// Routes to the pods of nodes that the cluster file did not have, and what was refused, with reasons.
fn wanted<'a>(profile: &NodeProfile, own: IpNet, nodes: &'a [Node]) -> (Wanted<'a>, Vec<String>) {
    let mut others: Vec<&Node> = nodes.iter().filter(|node| node.metadata.name != profile.node.name).collect();
    others.sort_by_key(|node| (&node.metadata.creation_timestamp, &node.metadata.name));
    let (mut wanted, mut refused) = (Wanted::new(), Vec::new());
    for node in others {
        let name = node.metadata.name.as_str();
        let Some(said) = node.metadata.annotations.get(ANNOTATION) else { continue };
        let outcome = claim(profile, own, node, said).and_then(|claim| {
            let Some((subnet, via)) = claim else { return Ok(()) };
            match wanted.iter().find(|((net, address), _)| *net == subnet || *address == via) {
                Some(((net, address), first)) => Err(format!("{first}, an older Node, has {net} behind {address}")),
                None => {
                    wanted.insert((subnet, via), name);
                    Ok(())
                }
            }
        });
        if let Err(why) = outcome {
            refused.push(format!("no route to the pods of {name}: {why}"));
        }
    }
    (wanted, refused)
}

/// The route that a Node asks for; none, if it is networkd's. What the Node says is not quoted before it is understood.
fn claim(profile: &NodeProfile, own: IpNet, node: &Node, said: &str) -> Result<Option<(IpNet, IpAddr)>, String> {
    let name = &node.metadata.name;
    let subnet: IpNet = said.parse().map_err(|_| format!("its annotation {ANNOTATION} is no subnet"))?;
    if !is_share(profile, own, &subnet) {
        return Err(format!("{subnet} is not one node's share, a /{}, of the pod network", own.prefix_len()));
    }
    let others = || profile.peers.iter().filter(|peer| peer.name != *name);
    let given = |peer: &Peer| format!("is {}'s by the cluster file that this node was built from", peer.name);
    if let Some(peer) = others().find(|peer| peer.pod_subnet == Some(subnet)) {
        return Err(format!("{subnet} {}", given(peer)));
    }
    if subnet == own {
        return Err(format!("{subnet} is this node's own"));
    }
    if let Some(known) = profile.peers.iter().find(|peer| peer.name == *name && runs_pods(&peer.roles)) {
        return match known.pod_subnet {
            Some(net) if net == subnet => Ok(None),
            _ => Err(format!("it says {subnet}, the cluster file that this node was built from says otherwise")),
        };
    }
    let network = profile.node.address.trunc();
    let internal = node.status.addresses.iter().filter(|address| address.r#type == "InternalIP");
    let via = internal
        .filter_map(|address| address.address.parse().ok())
        .find(|address: &IpAddr| network.contains(address))
        .ok_or_else(|| format!("it has no address in {network}"))?;
    match others().find(|peer| peer.addresses().any(|address| address == via)) {
        Some(peer) => Err(format!("its address {via} {}", given(peer))),
        None => Ok(Some((subnet, via))),
    }
}

/// All Nodes. A raw request: kubectl needs no second one to learn what a Node is.
fn nodes(runner: &dyn Runner) -> Result<Vec<Node>> {
    let command = kubectl::as_node(&["get", "--raw", "/api/v1/nodes"]);
    let output = runner.run(&command, None, &mut |_| {})?;
    if !output.success() {
        let said = output.stderr_tail.lines().last().unwrap_or("it says nothing");
        let reason = format!("the API server does not tell which nodes there are: {}", redact(said));
        let hint = "imgbuild-routes.timer asks again in a minute; if that goes on, see `firstboot health`";
        return Err(Failure::new(Exit::Deadline, reason, hint).into());
    }
    let list: NodeList =
        serde_json::from_str(&output.stdout).context("understanding the API server's list of nodes")?;
    Ok(list.items)
}

fn publish(runner: &dyn Runner, name: &str, own: &IpNet) -> Result<()> {
    run_well(runner, &kubectl::as_node(&["annotate", "--overwrite", "node", name, &format!("{ANNOTATION}={own}")]))?;
    Ok(())
}

/// `ip` for the pod network's IP family.
fn ip(net: &IpNet, options: &[&str], args: &[&str], protocol: &str) -> Command {
    let family = if net.addr().is_ipv6() { "-6" } else { "-4" };
    let all = options.iter().chain([&family]).chain(args).chain([&"proto", &protocol]);
    Command::new("ip", all).timeout(30)
}

/// The kernel's routes of ours. What has no subnet as its destination is not ours, whatever its number.
fn present(runner: &dyn Runner, own: IpNet, protocol: &str) -> Result<Vec<(IpNet, Option<IpAddr>)>> {
    let answer = run_well(runner, &ip(&own, &["-j"], &["route", "show"], protocol))?;
    if answer.trim().is_empty() {
        return Ok(Vec::new());
    }
    let routes: Vec<KernelRoute> = serde_json::from_str(&answer).context("understanding `ip -j route`")?;
    let understood = routes.into_iter().filter_map(|route| {
        let gateway = route.gateway.and_then(|gateway| gateway.parse().ok());
        Some((route.dst.parse().ok()?, gateway))
    });
    Ok(understood.collect())
}

fn route(runner: &dyn Runner, verb: &str, subnet: &IpNet, via: Option<IpAddr>, protocol: &str) -> Result<()> {
    let (subnet_text, via) = (subnet.to_string(), via.map(|via| via.to_string()));
    let mut args = vec!["route", verb, &subnet_text];
    args.extend(via.iter().flat_map(|via| ["via", via]));
    run_well(runner, &ip(subnet, &[], &args, protocol))?;
    Ok(())
}

/// Runs a program that must succeed, for its stdout.
fn run_well(runner: &dyn Runner, command: &Command) -> Result<String> {
    let output = runner.run(command, None, &mut |_| {})?;
    if !output.success() {
        bail!("`{command}` exited with {}: {}", output.status, redact(output.stderr_tail.trim()));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::runner::Output;
    use crate::testing::{FakeRunner, profile as lab};

    /// The lab's node, and what its cluster file knew: a worker, and a machine of etcd alone.
    fn profile() -> NodeProfile {
        let mut profile = lab();
        for (name, address, role, subnet) in [
            ("worker-1", "10.0.2.16", Role::Worker, "10.244.1.0/24"),
            ("etcd-1", "10.0.2.17", Role::Etcd, "10.244.2.0/24"),
        ] {
            let mut peer = profile.peers[0].clone();
            (peer.name, peer.address, peer.roles) = (name.into(), address.parse().unwrap(), [role].into());
            peer.pod_subnet = Some(subnet.parse().unwrap());
            profile.peers.push(peer);
        }
        profile
    }

    fn node(name: &str, day: u32, subnet: &str, address: &str) -> Value {
        json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z"),
                         "annotations": {"other": "x", ANNOTATION: subnet}},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]},
        })
    }

    fn myself() -> Value {
        node("master-1", 1, "10.244.0.0/24", "10.0.2.15")
    }

    const LIST: &str =
        "kubectl --kubeconfig=/etc/kubernetes/kubelet.conf --request-timeout=30s get --raw /api/v1/nodes";
    const SHOW: &str = "ip -j -4 route show proto 173";

    /// A run with these Nodes and these routes in the kernel: how it ended, what it said, and what it changed.
    fn keep_with(
        profile: &NodeProfile,
        runner: &FakeRunner,
        nodes: Vec<Value>,
        routes: &str,
    ) -> (Result<()>, Vec<String>, Vec<String>) {
        let list = json!({"kind": "NodeList", "metadata": {}, "items": nodes}).to_string();
        runner.answer(LIST, 0, &list, "");
        runner.answer(SHOW, 0, routes, "");
        let mut said = Vec::new();
        let result = keep(profile, runner, &mut |line| said.push(line.to_owned()));
        let changes = runner.take_trace().into_iter().filter(|line| line != LIST && line != SHOW).collect();
        (result, said, changes)
    }

    fn run_with(nodes: Vec<Value>, routes: &str) -> (Vec<String>, Vec<String>) {
        let (result, said, changes) = keep_with(&profile(), &FakeRunner::default(), nodes, routes);
        result.unwrap();
        (said, changes)
    }

    /// As iproute2 6.1 prints them.
    fn kernel(dst: &str, gateway: &str) -> String {
        format!(r#"[{{"dst":"{dst}","gateway":"{gateway}","dev":"eth0","flags":[]}}]"#)
    }

    /// On a host whose network is its own.
    #[test]
    fn nodes_of_the_file_get_routes_that_networkd_does_not_make() {
        let runner = FakeRunner::default();
        let show = "ip -j -4 route show proto 174";
        let mut said = Vec::new();
        let mut keep = |routes: &str| {
            runner.answer(show, 0, routes, "");
            keep_fixed(&profile(), &runner, &mut |line| said.push(line.to_owned())).unwrap();
            runner.take_trace().into_iter().filter(|line| line != show).collect::<Vec<_>>()
        };
        assert_eq!(keep("[]"), ["ip -4 route replace 10.244.1.0/24 via 10.0.2.16 proto 174"]);
        assert_eq!(keep(&kernel("10.244.1.0/24", "10.0.2.16")), [""; 0]);
        let moved = keep(&kernel("10.244.1.0/24", "10.0.2.99"));
        insta::assert_snapshot!(moved.join("\n"), @r"
        ip -4 route del 10.244.1.0/24 via 10.0.2.99 proto 174
        ip -4 route replace 10.244.1.0/24 via 10.0.2.16 proto 174
        ");
        assert_eq!(said, ["the pods of worker-1, 10.244.1.0/24, are behind 10.0.2.16"; 2]);
    }

    #[test]
    fn a_node_of_later_gets_a_route() {
        let newcomer = || node("worker-9", 9, "10.244.9.0/24", "10.0.2.19");
        let (said, changes) = run_with(vec![newcomer(), myself()], "[ ]\n");
        assert_eq!(changes, ["ip -4 route replace 10.244.9.0/24 via 10.0.2.19 proto 173"]);
        assert_eq!(said, ["the pods of worker-9, 10.244.9.0/24, are behind 10.0.2.19"]);
        assert_eq!(run_with(vec![newcomer(), myself()], "").1.len(), 1);
        let (said, changes) = run_with(vec![newcomer(), myself()], &kernel("10.244.9.0/24", "10.0.2.19"));
        assert_eq!((said.len(), changes.len()), (0, 0), "{said:?} {changes:?}");
    }

    #[test]
    fn the_own_subnet_is_published_once() {
        let mut bare = myself();
        bare["metadata"].as_object_mut().unwrap().remove("annotations");
        let publish = "kubectl --kubeconfig=/etc/kubernetes/kubelet.conf --request-timeout=30s annotate --overwrite \
                       node master-1 imgbuild/pod-subnet=10.244.0.0/24";
        assert_eq!(run_with(vec![bare], "[]").1, [publish]);
        assert_eq!(run_with(vec![node("master-1", 1, "10.244.7.0/24", "10.0.2.15")], "[]").1, [publish]);
        assert_eq!(run_with(vec![myself()], "[]").1, [""; 0]);
        // kubelet has not registered it yet.
        assert_eq!(run_with(vec![], "[]").1, [""; 0]);
    }

    #[test]
    fn routes_of_ours_follow_their_nodes() {
        let (said, changes) = run_with(vec![myself()], &kernel("10.244.9.0/24", "10.0.2.19"));
        assert_eq!(changes, ["ip -4 route del 10.244.9.0/24 via 10.0.2.19 proto 173"]);
        assert_eq!(said, ["removed the route to 10.244.9.0/24: no node has it there any more"]);
        let moved = node("worker-9", 9, "10.244.9.0/24", "10.0.2.20");
        assert_eq!(
            run_with(vec![myself(), moved], &kernel("10.244.9.0/24", "10.0.2.19")).1,
            [
                "ip -4 route del 10.244.9.0/24 via 10.0.2.19 proto 173",
                "ip -4 route replace 10.244.9.0/24 via 10.0.2.20 proto 173"
            ]
        );
        let no_gateway = r#"[{"dst":"10.244.9.0/24","dev":"eth0","flags":[]}]"#;
        assert_eq!(run_with(vec![myself()], no_gateway).1, ["ip -4 route del 10.244.9.0/24 proto 173"]);
        for not_ours in ["default", "192.168.0.0/24", "10.244.9.7", "10.244.0.0/16"] {
            assert_eq!(run_with(vec![myself()], &kernel(not_ours, "10.0.2.19")).1, [""; 0], "{not_ours}");
        }
    }

    #[test]
    fn nodes_of_the_cluster_file_keep_their_routes() {
        let known = node("worker-1", 1, "10.244.1.0/24", "10.0.2.16");
        assert_eq!(run_with(vec![myself(), known], "[]"), (vec![], vec![]));
        // A machine of etcd alone that became a worker: the file's share, and there is no route yet.
        let became = node("etcd-1", 5, "10.244.2.0/24", "10.0.2.17");
        let expected = ["ip -4 route replace 10.244.2.0/24 via 10.0.2.17 proto 173"];
        assert_eq!(run_with(vec![myself(), became], "[]").1, expected);
    }

    /// What a node whose credential was stolen may try.
    #[test]
    fn a_claim_gets_one_free_share_or_nothing() {
        let lies = [
            ("evil", "10.244.0.0/24", "10.0.2.66", "10.244.0.0/24 is master-1's by the cluster file"),
            ("evil", "10.244.1.0/24", "10.0.2.66", "10.244.1.0/24 is worker-1's by the cluster file"),
            ("evil", "10.244.2.0/24", "10.0.2.66", "10.244.2.0/24 is etcd-1's by the cluster file"),
            ("worker-1", "10.244.8.0/24", "10.0.2.16", "it says 10.244.8.0/24, the cluster file"),
            ("evil", "10.244.0.0/16", "10.0.2.66", "10.244.0.0/16 is not one node's share, a /24, of the pod network"),
            ("evil", "10.244.8.0/25", "10.0.2.66", "is not one node's share"),
            ("evil", "10.244.8.1/24", "10.0.2.66", "is not one node's share"),
            ("evil", "0.0.0.0/0", "10.0.2.66", "is not one node's share"),
            ("evil", "10.96.0.0/24", "10.0.2.66", "is not one node's share"),
            ("evil", "10.0.2.0/24", "10.0.2.66", "is not one node's share"),
            ("evil", "fd00::/64", "10.0.2.66", "is not one node's share"),
            ("evil", "10.244.8.0/24 dev lo", "10.0.2.66", "its annotation imgbuild/pod-subnet is no subnet"),
            ("evil", "\nroutes: all is well", "10.0.2.66", "its annotation imgbuild/pod-subnet is no subnet"),
            ("evil", "", "10.0.2.66", "its annotation imgbuild/pod-subnet is no subnet"),
            ("evil", "10.244.8.0/24", "192.0.2.1", "it has no address in 10.0.2.0/24"),
            ("evil", "10.244.8.0/24", "fd00::1", "it has no address in 10.0.2.0/24"),
            ("evil", "10.244.8.0/24", "10.0.2.19 dev lo", "it has no address in 10.0.2.0/24"),
            ("evil", "10.244.8.0/24", "10.0.2.15", "its address 10.0.2.15 is master-1's by the cluster file"),
            ("evil", "10.244.8.0/24", "10.0.2.16", "its address 10.0.2.16 is worker-1's by the cluster file"),
        ];
        for (name, subnet, address, why) in lies {
            let honest = node("worker-9", 9, "10.244.9.0/24", "10.0.2.19");
            let (said, changes) = run_with(vec![myself(), node(name, 2, subnet, address), honest], "[]");
            assert_eq!(changes, ["ip -4 route replace 10.244.9.0/24 via 10.0.2.19 proto 173"], "{subnet} {address}");
            assert!(said[0].starts_with(&format!("no route to the pods of {name}: ")), "{said:?}");
            assert!(said[0].contains(why) && !said[0].contains('\n'), "{said:?}");
        }
    }

    #[test]
    fn the_older_of_two_has_it() {
        let younger = node("a-younger", 20, "10.244.9.0/24", "10.0.2.20");
        let older = node("worker-9", 9, "10.244.9.0/24", "10.0.2.19");
        let same_address = node("b-younger", 21, "10.244.10.0/24", "10.0.2.19");
        let (said, changes) = run_with(vec![younger, same_address, myself(), older], "[]");
        assert_eq!(changes, ["ip -4 route replace 10.244.9.0/24 via 10.0.2.19 proto 173"]);
        let first = "worker-9, an older Node, has 10.244.9.0/24 behind 10.0.2.19";
        let refused = |name: &str| format!("no route to the pods of {name}: {first}");
        assert_eq!(said[..2], [refused("a-younger"), refused("b-younger")]);
    }

    #[test]
    fn one_failure_does_not_keep_the_others() {
        let runner = FakeRunner::default();
        runner.answer("ip -4 route replace 10.244.8.0/24", 2, "", "RTNETLINK answers: Network is unreachable");
        let nodes =
            vec![node("worker-8", 8, "10.244.8.0/24", "10.0.2.18"), node("worker-9", 9, "10.244.9.0/24", "10.0.2.19")];
        let (result, said, changes) = keep_with(&profile(), &runner, nodes, "[]");
        assert_eq!((said.len(), changes.len()), (1, 2), "{said:?} {changes:?}");
        let failure = Failure::from_error(&result.unwrap_err(), Exit::Internal, "");
        assert_eq!(failure.exit, Exit::Step);
        assert_eq!(
            failure.reason,
            "`ip -4 route replace 10.244.8.0/24 via 10.0.2.18 proto 173` exited with 2: RTNETLINK answers: Network is \
             unreachable"
        );
    }

    #[test]
    fn without_an_answer_everything_stays() {
        let runner = FakeRunner::default();
        let refused =
            "The connection to the server 10.0.2.15:6443 was refused - did you specify the right host or port?";
        runner.on(LIST, move |_| Output { status: 1, stderr_tail: refused.to_owned(), ..Output::default() });
        let error = keep(&profile(), &runner, &mut |_| {}).unwrap_err();
        let failure = Failure::from_error(&error, Exit::Internal, "");
        assert_eq!(failure.exit, Exit::Deadline);
        assert!(failure.reason.ends_with(refused), "{}", failure.reason);
        assert_eq!(runner.take_trace(), [LIST]);
        for nonsense in ["", "<html>", "{}", r#"{"items": 3}"#, r#"{"items": [{"metadata": {"name": 1}}]}"#] {
            let runner = FakeRunner::default();
            runner.answer(LIST, 0, nonsense, "");
            keep(&profile(), &runner, &mut |_| {}).unwrap_err();
            assert_eq!(runner.take_trace(), [LIST]);
        }
    }

    #[test]
    fn machines_without_pods_have_nothing_to_do() {
        let runner = FakeRunner::default();
        let mut etcd = profile();
        etcd.node.roles = [Role::Etcd].into();
        keep(&etcd, &runner, &mut |_| {}).unwrap();
        let mut other_plugin = profile();
        other_plugin.node.pod_subnet = None;
        keep(&other_plugin, &runner, &mut |_| {}).unwrap();
        assert_eq!(runner.take_trace(), [""; 0]);
    }

    #[test]
    fn ipv6_is_the_same() {
        let mut profile = lab();
        profile.node.address = "fd00::15/64".parse().unwrap();
        profile.node.pod_subnet = Some("fd00:200::/64".parse().unwrap());
        profile.network.pod_subnets = vec!["fd00:200::/48".parse().unwrap()];
        profile.peers[0].address = "fd00::15".parse().unwrap();
        profile.peers[0].pod_subnet = profile.node.pod_subnet;
        let runner = FakeRunner::default();
        runner.answer("ip -j -6 route show proto 173", 0, &kernel("fd00:200:0:8::/64", "fd00::18"), "");
        let (result, _, changes) =
            keep_with(&profile, &runner, vec![node("worker-9", 9, "fd00:200:0:9::/64", "fd00::19")], "[]");
        result.unwrap();
        assert_eq!(
            changes[1..],
            [
                "ip -6 route del fd00:200:0:8::/64 via fd00::18 proto 173",
                "ip -6 route replace fd00:200:0:9::/64 via fd00::19 proto 173"
            ]
        );
    }
}
