// SPDX-License-Identifier: MIT OR Apache-2.0
//! `kubeadm join` with the credential of the seed: a kubeconfig that names this very node, and no token.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, Result};
use profiles::render::{DISCOVERY_CONFIG, KUBEADM_JOIN_CONFIG};
use serde_json::Value;

use super::control_plane::membership;
use super::kubeadm::{self, last_line};
use super::{JOIN, PEERS};
use crate::cert::{self, show_time};
use crate::context::{Cx, Poll};
use crate::engine::{State, Step, was_interrupted};
use crate::failure::{Exit, Failure};
use crate::files;
use crate::kubectl::{self, KUBELETS_CONFIG};

/// How long a Node of this name may stay Ready: the cluster notices after 40 s that a machine went off.
const NAME_TAKEN: Duration = Duration::from_secs(600);

/// How long an API server may be too busy for the last request of a join.
const BUSY: Duration = Duration::from_secs(300);

/// Joins a worker.
pub(super) struct Join;

impl Step for Join {
    fn id(&self) -> &'static str {
        JOIN
    }

    fn title(&self) -> &'static str {
        "joining the cluster"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        membership(cx, JOIN)
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        if was_interrupted(self, cx) {
            kubeadm::take_back(cx)?;
        }
        let what = format!("the API server at {}", endpoint(cx));
        let hint = "look at the consoles of the masters, and at the load balancer";
        cx.wait_for(&what, PEERS, Duration::from_secs(3), hint, || api(cx))?;
        join(cx).or_else(|error| finish(cx, error))
    }

    fn verify(&self, cx: &Cx<'_>) -> Result<()> {
        anyhow::ensure!(cx.path(KUBELETS_CONFIG).exists(), "kubeadm join ended without {KUBELETS_CONFIG}");
        Ok(())
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        cx.profile().cluster.id.clone()
    }

    fn attempts(&self) -> u32 {
        5
    }
}

/// `kubeadm join`, once the API server answers.
pub(super) fn join(cx: &Cx<'_>) -> Result<()> {
    wait_for_the_name(cx)?;
    cx.say("this node joins the cluster");
    kubeadm::run(cx, args(&cx.plan.kubeadm.join), || {})
}

/// The last thing that a worker's join does is a request with ten seconds of patience (its client's timeout), after its kubelet
/// has joined. Joining once more would have to wait until the Node that is there counts as gone; so only that request is made
/// again. `error` is what kubeadm gave up with.
fn finish(cx: &Cx<'_>, error: anyhow::Error) -> Result<()> {
    if !cx.path(KUBELETS_CONFIG).exists() {
        return Err(error);
    }
    cx.say("kubeadm gave up on a kubelet that has joined: doing again what is left");
    cx.log(&format!("{error:#}"));
    let hint = "look at the consoles of the masters";
    let finished = cx.wait_for("the API server to take it", BUSY, Duration::from_secs(10), hint, || {
        Ok(match kubeadm::name_runtime(cx, KUBELETS_CONFIG) {
            Ok(()) => Poll::Ready(()),
            Err(error) => Poll::Pending(last_line(&format!("{error:#}"))),
        })
    });
    finished.or(Err(error))
}

/// Arguments of kubeadm for a join.
pub(super) fn args(more: &[String]) -> impl Iterator<Item = String> {
    ["join".to_owned(), format!("--config={KUBEADM_JOIN_CONFIG}")].into_iter().chain(more.iter().cloned())
}

fn endpoint<'a>(cx: &'a Cx<'_>) -> &'a str {
    &cx.profile().kubernetes.control_plane_endpoint
}

/// Whether the API server answers this node's credential; what time cannot mend is refused.
pub(super) fn api(cx: &Cx<'_>) -> Result<Poll<()>> {
    check_credential(cx)?;
    let output = cx.try_run(&kubectl::with(DISCOVERY_CONFIG, &["get", "--raw", "/readyz"]).timeout(45))?;
    if output.success() {
        return Ok(Poll::Ready(()));
    }
    let said = output.stderr_tail.trim();
    let (endpoint, node) = (endpoint(cx), &cx.profile().node.name);
    let refused = |reason: String, hint: String| Err(Failure::preflight(reason, hint).into());
    if said.contains("signed by unknown authority") {
        return refused(
            format!("the API server at {endpoint} has a certificate of another CA: this seed is of another cluster"),
            "attach a seed of that cluster, or give this one another endpoint".to_owned(),
        );
    }
    if said.contains("certificate has expired or is not yet valid") {
        let now = show_time(cx.host.unix_time());
        return refused(
            format!("by this node's clock ({now}), the certificate of the API server at {endpoint} is not valid"),
            "set the clock of this node; if it is right, renew the masters' certificates (`kubeadm certs renew`)"
                .to_owned(),
        );
    }
    if said.contains("Unauthorized") || said.contains("must be logged in") {
        return refused(
            format!("the API server at {endpoint} does not accept this seed's join credential"),
            rebuild(node),
        );
    }
    Ok(Poll::Pending(why_not_ready(said, endpoint)))
}

/// What kubectl says of an API server that does not serve yet, in a line.
fn why_not_ready(said: &str, endpoint: &str) -> String {
    // It lists every check, with its line breaks escaped: `[+]ping ok\n[-]poststarthook/rbac/bootstrap-roles failed: …`.
    let failed: Vec<_> = said.split("[-]").skip(1).filter_map(|check| check.split_whitespace().next()).collect();
    if said.contains("refused") {
        format!("nobody listens at {endpoint}")
    } else if !failed.is_empty() {
        format!("it is starting: {}", failed.join(", "))
    } else if said.contains("Forbidden") {
        "it is starting: it has no roles yet".to_owned()
    } else {
        last_line(said)
    }
}

fn rebuild(node: &str) -> String {
    format!("build this node's image again: `imgbuild --profile {node}`; or this node's or the masters' clock is wrong")
}

/// The credential is there, and valid by this node's clock.
fn check_credential(cx: &Cx<'_>) -> Result<()> {
    let node = &cx.profile().node.name;
    let path = cx.path(DISCOVERY_CONFIG);
    let unusable = |error: anyhow::Error| {
        Failure::seed(format!("the seed's join credential {DISCOVERY_CONFIG} is unusable: {error:#}"), rebuild(node))
    };
    let valid =
        files::read_limited(&path, 1 << 20).context("reading it").and_then(|text| validity(&text)).map_err(unusable)?;
    let now = cx.host.unix_time();
    if now > valid.until {
        let reason = format!("the join credential of this seed expired on {}", show_time(valid.until));
        return Err(Failure::preflight(reason, rebuild(node)).into());
    }
    if now < valid.from {
        let reason = format!(
            "the join credential of this seed is valid from {}, and this clock says {}",
            show_time(valid.from),
            show_time(now)
        );
        return Err(Failure::preflight(reason, "set this node's clock").into());
    }
    Ok(())
}

fn validity(kubeconfig: &[u8]) -> Result<cert::Validity> {
    cert::try_kubeconfig_client_validity(std::str::from_utf8(kubeconfig).context("reading it as text")?)
}

/// kubeadm refuses to join under the name of a Node that is Ready.
fn wait_for_the_name(cx: &Cx<'_>) -> Result<()> {
    let node = &cx.profile().node.name;
    let taken = Cell::new(false);
    let what = format!("the name {node} to be free");
    let waited = cx.wait_for(&what, NAME_TAKEN, Duration::from_secs(5), "look at `kubectl get nodes`", || {
        let output = cx.try_run(&kubectl::with(DISCOVERY_CONFIG, &kubectl::get_node(node)))?;
        taken.set(false);
        if !output.success() {
            let free = output.stderr_tail.contains("(NotFound)");
            return Ok(if free { Poll::Ready(()) } else { Poll::Pending(last_line(&output.stderr_tail)) });
        }
        let found: Value = serde_json::from_str(&output.stdout).context("understanding kubectl's answer")?;
        let conditions = found["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        taken.set(conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True"));
        Ok(if taken.get() {
            Poll::Pending(format!(
                "another machine calls itself {node}, or the old one went off less than a minute ago"
            ))
        } else {
            Poll::Ready(())
        })
    });
    waited.map_err(|error| {
        let failure = Failure::from_error(&error, Exit::Step, "");
        if failure.exit != Exit::Deadline || !taken.get() {
            return error;
        }
        let reason = format!("another machine calls itself {node}: a Node of this name is Ready in the cluster");
        let hint = format!(
            "turn that machine off, or give this one another name; if it is gone, `kubectl delete node {node}`"
        );
        Failure::preflight(reason, hint).into()
    })
}

#[cfg(test)]
mod tests {
    use profiles::node::Role;

    use super::*;
    use crate::engine::converge;
    use crate::runner::Output;
    use crate::testing::{DISCOVERY, Lab, join_config};

    const READYZ: &str = "kubectl --kubeconfig=/etc/kubernetes/discovery.conf --request-timeout=30s get --raw /readyz";
    const NODE: &str =
        "kubectl --kubeconfig=/etc/kubernetes/discovery.conf --request-timeout=30s get --raw /api/v1/nodes/worker-1";
    const KUBEADM: &str = "kubeadm join --config=/etc/kubernetes/kubeadm-join.yaml";

    fn lab() -> Lab {
        let mut lab = Lab::new();
        prepare(&mut lab);
        lab
    }

    fn prepare(lab: &mut Lab) {
        lab.plan.profile.node.name = "worker-1".into();
        lab.plan.profile.node.roles = [Role::Worker].into();
        lab.write("/etc/kubernetes/discovery.conf", DISCOVERY);
        lab.runner.answer(NODE, 1, "", "Error from server (NotFound): nodes \"worker-1\" not found");
        let root = lab.root();
        lab.runner.on("kubeadm join", move |_| {
            std::fs::create_dir_all(root.join("etc/kubernetes/pki")).unwrap();
            for made in ["kubelet.conf", "pki/ca.crt"] {
                std::fs::write(root.join("etc/kubernetes").join(made), "x").unwrap();
            }
            Output {
                stdout: "[preflight] Running pre-flight checks\n[kubelet-start] Starting\n".into(),
                ..Output::default()
            }
        });
    }

    fn run(lab: &Lab) -> Result<(), Failure> {
        converge(&lab.cx(), &[Box::new(Join)]).map_err(|(_, failure)| failure)
    }

    fn joined(lab: &Lab) -> usize {
        lab.runner.take_trace().iter().filter(|line| *line == KUBEADM).count()
    }

    #[test]
    fn waits_for_the_api_server_and_joins_once() {
        let lab = lab();
        let mut polls = 0;
        lab.runner.on(READYZ, move |_| {
            polls += 1;
            let stderr = match polls {
                1..3 => {
                    "The connection to the server 10.0.2.15:6443 was refused - did you specify the right host or port?"
                }
                3 => "Unable to connect to the server: dial tcp 10.0.2.15:6443: connect: no route to host",
                _ => return Output::default(),
            };
            Output { status: 1, stderr_tail: stderr.into(), ..Output::default() }
        });
        run(&lab).unwrap();
        assert_eq!(joined(&lab), 1);
        insta::assert_snapshot!(lab.console_lines().join("\n"));
        let mut lab = lab.reboot();
        prepare(&mut lab);
        run(&lab).unwrap();
        assert!(lab.runner.take_trace().is_empty());
    }

    #[test]
    fn an_interrupted_join_is_taken_back_without_the_input() {
        let lab = lab();
        let cx = lab.cx();
        cx.journal.borrow_mut().fuse = Some(1);
        converge(&cx, &[Box::new(Join)]).unwrap_err();
        drop(cx);
        let mut lab = lab.reboot();
        prepare(&mut lab);
        assert!(lab.exists("/etc/kubernetes/kubelet.conf"));
        for made in ["bootstrap-kubelet.conf", "manifests/x.yaml", "../../var/lib/kubelet/pki/kubelet.crt"] {
            lab.write(&format!("/etc/kubernetes/{made}"), "x");
        }
        let root = lab.root();
        lab.runner.on("systemctl stop kubelet", {
            let mut stops = 0;
            move |_| {
                stops += 1;
                if stops == 2 {
                    for path in ["kubelet.conf", "bootstrap-kubelet.conf", "pki/ca.crt", "manifests/x.yaml"] {
                        assert!(!root.join("etc/kubernetes").join(path).exists(), "{path} is still there");
                    }
                    assert!(!root.join("var/lib/kubelet/pki").exists());
                }
                Output::default()
            }
        });
        run(&lab).unwrap();
        assert_eq!(joined(&lab), 1);
        assert!(lab.exists("/etc/kubernetes/discovery.conf"));
    }

    /// A kubelet that joins under a kubeadm that gives up, and what the API server says to each note of its runtime.
    fn joins_without_kubeadm(lab: &mut Lab, statuses: impl Fn(u32) -> i32 + 'static) {
        lab.plan.files.push(join_config());
        let made = lab.root().join("etc/kubernetes/kubelet.conf");
        let mut runs = 0;
        lab.runner.on("kubeadm join", move |_| {
            runs += 1;
            std::fs::write(&made, "x").unwrap();
            let said = "error execution phase kubelet-start: error uploading crisocket: context deadline exceeded";
            Output { status: i32::from(runs == 1), stderr_tail: said.into(), ..Output::default() }
        });
        let mut notes = 0;
        lab.runner.on("kubectl --kubeconfig=/etc/kubernetes/kubelet.conf", move |_| {
            notes += 1;
            Output { status: statuses(notes), stderr_tail: "Unable to connect".into(), ..Output::default() }
        });
    }

    #[test]
    fn a_kubelet_that_has_joined_stays_though_kubeadm_gave_up() {
        let mut lab = lab();
        joins_without_kubeadm(&mut lab, |note| i32::from(note < 3));
        run(&lab).unwrap();
        let trace = lab.runner.take_trace();
        let note = "annotate --overwrite node worker-1 kubeadm.alpha.kubernetes.io/cri-socket=unix:///run/x.sock";
        assert_eq!(trace.iter().filter(|line| line.ends_with(note)).count(), 3, "{trace:?}");
        assert_eq!(trace.iter().filter(|line| *line == KUBEADM).count(), 1, "{trace:?}");
        assert!(!trace.iter().any(|line| line.contains("crictl")), "{trace:?}");
        assert!(lab.log().contains("error uploading crisocket"));
    }

    #[test]
    fn a_kubelet_that_has_joined_in_vain_is_taken_back() {
        let mut lab = lab();
        joins_without_kubeadm(&mut lab, |_| 1);
        run(&lab).unwrap();
        assert!(lab.host.slept() >= BUSY);
        assert_eq!(joined(&lab), 2);
        assert!(lab.console_lines().iter().any(|line| line.contains("taking back what")));
    }

    #[test]
    fn what_time_cannot_mend_is_refused_by_its_cause() {
        for (stderr, reason, hint) in [
            (
                "Unable to connect to the server: x509: certificate signed by unknown authority (possibly because of \"x\")",
                "this seed is of another cluster",
                "attach a seed of that cluster",
            ),
            (
                "Unable to connect to the server: x509: certificate has expired or is not yet valid: current time 2026",
                "by this node's clock (2027-01-15 08:00:00 UTC)",
                "set the clock",
            ),
            ("error: You must be logged in to the server (Unauthorized)", "does not accept", "--profile worker-1"),
        ] {
            let lab = lab();
            lab.runner.answer(READYZ, 1, "", stderr);
            let failure = run(&lab).unwrap_err();
            assert_eq!(failure.exit.code(), 20, "{failure}");
            assert!(failure.reason.contains(reason) && failure.hint.contains(hint), "{failure}; {}", failure.hint);
            assert_eq!(joined(&lab), 0);
        }
        let lab = lab();
        lab.runner.answer(READYZ, 1, "", "Unable to connect to the server: EOF");
        let failure = run(&lab).unwrap_err();
        assert_eq!(failure.exit.code(), 40);
        assert!(failure.reason.contains("the API server at 10.0.2.15:6443 (Unable"), "{failure}");
    }

    #[test]
    fn a_credential_is_judged_before_it_is_used() {
        let lab = lab();
        lab.host.unix_time.set(5_000_000_000);
        let failure = run(&lab).unwrap_err();
        assert_eq!(failure.exit.code(), 20);
        assert_eq!(failure.reason, "the join credential of this seed expired on 2120-01-01 00:00:00 UTC");
        assert!(failure.hint.contains("imgbuild --profile worker-1"));
        lab.host.unix_time.set(1_000_000_000);
        assert!(
            run(&lab).unwrap_err().reason.contains("is valid from 2020-01-01 00:00:00 UTC, and this clock says 2001-")
        );
        for text in ["", "users: []", "users: [{user: {client-certificate-data: LS0t}}]", "users: [{user: {token: x}}]"]
        {
            lab.write("/etc/kubernetes/discovery.conf", text);
            assert_eq!(run(&lab).unwrap_err().exit.code(), 10, "{text}");
        }
        assert!(lab.runner.take_trace().is_empty());
    }

    #[test]
    fn a_name_that_is_ready_is_waited_for_and_then_refused() {
        let node = |ready: &str| format!(r#"{{"status":{{"conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#);
        let lab = lab();
        let (taken, gone) = (node("True"), node("Unknown"));
        let mut polls = 0;
        lab.runner.on(NODE, move |_| {
            polls += 1;
            Output { stdout: if polls < 9 { taken.clone() } else { gone.clone() }, ..Output::default() }
        });
        run(&lab).unwrap();
        assert_eq!((joined(&lab), lab.host.slept().as_secs()), (1, 40));
        let lab = self::lab();
        lab.runner.answer(NODE, 0, &node("True"), "");
        let failure = run(&lab).unwrap_err();
        assert_eq!((failure.exit.code(), lab.host.slept().as_secs()), (20, 600));
        assert!(failure.reason.contains("another machine calls itself worker-1"), "{failure}");
        assert_eq!(joined(&lab), 0);
    }

    #[test]
    fn an_api_server_that_starts_is_described_in_a_line() {
        let at = "10.77.0.21:6443";
        let checks = r#"Error from server (InternalError): an error on the server ("[+]ping ok\n[-]etcd failed: reason withheld\n[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\nreadyz check failed") has prevented the request"#;
        assert_eq!(why_not_ready(checks, at), "it is starting: etcd, poststarthook/rbac/bootstrap-roles");
        let forbidden =
            "Error from server (Forbidden): forbidden: User \"system:node:worker-1\" cannot get path \"/readyz\"";
        assert_eq!(why_not_ready(forbidden, at), "it is starting: it has no roles yet");
        assert_eq!(
            why_not_ready("dial tcp 10.77.0.21:6443: connect: connection refused", at),
            "nobody listens at 10.77.0.21:6443"
        );
        assert_eq!(
            why_not_ready("a\nUnable to connect to the server: EOF", at),
            "Unable to connect to the server: EOF"
        );
    }
}
