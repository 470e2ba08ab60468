// SPDX-License-Identifier: MIT OR Apache-2.0
//! The node is Ready, by the API server's own word.

use std::time::Duration;

use anyhow::{Context, Result};
use profiles::node::Role;
use serde_json::Value;

use super::kubeadm::last_line;
use crate::context::{Cx, Poll};
use crate::engine::{State, Step};
use crate::kubectl;

pub(super) struct NodeReady;

/// Ready, or what is missing.
fn poll(cx: &Cx<'_>) -> Result<Poll<()>> {
    let args = kubectl::get_node(&cx.profile().node.name);
    // A worker has no administrator's access; its kubelet may read its own Node.
    let ask = if cx.profile().has(Role::Master) { kubectl::as_admin(&args) } else { kubectl::as_node(&args) };
    let output = cx.try_run(&ask)?;
    if !output.success() {
        return Ok(Poll::Pending(last_line(&output.stderr_tail)));
    }
    let node: Value = serde_json::from_str(&output.stdout).context("understanding kubectl's answer")?;
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(ready) = conditions.iter().find(|condition| condition["type"] == "Ready") else {
        return Ok(Poll::Pending("kubelet has not reported yet".to_owned()));
    };
    if ready["status"] == "True" {
        return Ok(Poll::Ready(()));
    }
    Ok(Poll::Pending(ready["message"].as_str().unwrap_or("no reason given").to_owned()))
}

impl Step for NodeReady {
    fn id(&self) -> &'static str {
        "node-ready"
    }

    fn title(&self) -> &'static str {
        "waiting for the node to be Ready"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        Ok(match poll(cx)? {
            Poll::Ready(()) => State::Done,
            Poll::Pending(missing) => State::Needed(if missing.is_empty() { "not Ready".to_owned() } else { missing }),
        })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let what = format!("node {} to be Ready", cx.profile().node.name);
        let hint = "look at `kubectl describe node` and `journalctl -u kubelet`";
        cx.wait_for(&what, Duration::from_secs(600), Duration::from_secs(2), hint, || poll(cx))
    }

    fn verify(&self, _: &Cx<'_>) -> Result<()> {
        Ok(()) // apply ends when it is
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::runner::Output;
    use crate::testing::Lab;

    #[test]
    fn a_worker_asks_as_its_kubelet() {
        let mut lab = Lab::new();
        lab.plan.profile.node.roles = [Role::Worker].into();
        let _ = poll(&lab.cx()).unwrap_err();
        assert!(lab.runner.take_trace()[0].starts_with("kubectl --kubeconfig=/etc/kubernetes/kubelet.conf "));
    }

    #[test]
    fn passes_on_what_kubelet_says_is_missing() {
        let lab = Lab::new();
        let mut polls = 0;
        lab.runner.on("kubectl", move |_| {
            polls += 1;
            let condition = |status: &str| {
                format!(r#"{{"status":{{"conditions":[{{"type":"Ready","status":"{status}","message":"cni config uninitialized"}}]}}}}"#)
            };
            match polls {
                1 => Output { status: 1, stderr_tail: "warn\nnodes \"master-1\" not found".into(), ..Output::default() },
                2..5 => Output { stdout: condition("False"), ..Output::default() },
                _ => Output { stdout: condition("True"), ..Output::default() },
            }
        });
        converge(&lab.cx(), &[Box::new(NodeReady)]).unwrap();
        insta::assert_snapshot!(lab.console_lines().join("\n"), @r#"
        firstboot: master-1: node-ready: waiting for the node to be Ready (nodes "master-1" not found)
        firstboot: master-1: node-ready: waiting for node master-1 to be Ready (cni config uninitialized), 2 of 600 s
        firstboot: master-1: node-ready: done in 6 s
        "#);
    }
}
