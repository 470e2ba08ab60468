// SPDX-License-Identifier: MIT OR Apache-2.0
//! `kubeadm init` with certificates made beforehand.
//!
//! kubeadm cannot resume. So an init that did not end well is taken back to where it began, and runs again as a whole.
//! CAs, the service-account key, etcd's client certificate and etcd's data are input, and are never touched.
//! kubelet is enabled only after init: a reboot in the middle of it must not start half a control plane.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{INIT, services};
use crate::context::{Cx, Poll};
use crate::engine::{State, Step, was_interrupted};
use crate::failure::Failure;
use crate::files;
use crate::journal::Progress;
use crate::runner::{Command, redact};

const CONFIG: &str = "/etc/kubernetes/kubeadm.yaml";
const RUNTIME: &str = "unix:///run/containerd/containerd.sock";
/// What init makes below /etc/kubernetes/pki, beside its input.
const LEAF_CERTIFICATES: [&str; 3] = ["apiserver", "apiserver-kubelet-client", "front-proxy-client"];
const KUBECONFIGS: [&str; 6] = [
    "admin.conf",
    "super-admin.conf",
    "kubelet.conf",
    "bootstrap-kubelet.conf",
    "controller-manager.conf",
    "scheduler.conf",
];
/// Of kubelet's state only what belongs to its identity.
const KUBELET_STATE: [&str; 3] = ["config.yaml", "kubeadm-flags.env", "pki"];

pub(super) struct Init;

impl Step for Init {
    fn id(&self) -> &'static str {
        INIT
    }

    fn title(&self) -> &'static str {
        "initialising the cluster"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        match cx.progress(INIT) {
            Progress::Never => Ok(State::Needed("no control plane yet".to_owned())),
            Progress::Interrupted => Ok(State::Needed("an earlier init was interrupted".to_owned())),
            Progress::Done(cluster) if cluster == self.fingerprint(cx) => Ok(State::Done),
            // A control plane is never replaced by another one behind anybody's back.
            Progress::Done(cluster) => Err(Failure::preflight(
                format!(
                    "this disk holds a control plane of cluster {cluster}, the seed is of {}",
                    self.fingerprint(cx)
                ),
                "re-image the disk, or attach the right seed",
            )
            .into()),
        }
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        if was_interrupted(self, cx) {
            take_back(cx)?;
        }
        // kubelet only starts to be useful when kubeadm has configured it, and kubeadm starts it itself.
        services::stop(cx, "kubelet")?;
        let command = init_command(cx);
        let mut phase = String::new();
        let mut on_line = |line: &str| {
            let line = redact(line);
            cx.log(&line);
            if let Some((name, rest)) = line.strip_prefix('[').and_then(|line| line.split_once("] "))
                && name != phase
            {
                name.clone_into(&mut phase);
                cx.say(&format!("kubeadm {name}: {rest}"));
            }
        };
        let output = cx.run_with(&command, None, &mut on_line)?;
        cx.expect_success(&command, output)?;
        Ok(())
    }

    fn verify(&self, cx: &Cx<'_>) -> Result<()> {
        let what = "the API server to answer";
        let hint = "look at `crictl ps -a` and `journalctl -u kubelet`";
        cx.wait_for(what, Duration::from_secs(180), Duration::from_secs(1), hint, || {
            let output = cx.try_run(&kubectl(&["get", "--raw", "/healthz"]))?;
            Ok(if output.success() { Poll::Ready(()) } else { Poll::Pending(last_line(&output.stderr_tail)) })
        })
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        cx.profile().cluster.id.clone()
    }

    fn attempts(&self) -> u32 {
        2
    }
}

/// kubectl as the administrator.
pub(super) fn kubectl(args: &[&str]) -> Command {
    let mut all = vec!["--kubeconfig=/etc/kubernetes/admin.conf", "--request-timeout=30s"];
    all.extend(args);
    Command::new("kubectl", all).timeout(60)
}

/// The last line of a program's stderr.
pub(super) fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().to_owned()
}

fn init_command(cx: &Cx<'_>) -> Command {
    let args = ["init".to_owned(), format!("--config={CONFIG}")].into_iter().chain(cx.plan.kubeadm.iter().cloned());
    let control_plane = u64::from(cx.profile().kubernetes.control_plane_timeout_seconds);
    Command::new("kubeadm", args).timeout(control_plane + 900)
}

/// Takes the node back to before init.
fn take_back(cx: &Cx<'_>) -> Result<()> {
    cx.say("taking back what the interrupted init left");
    services::stop(cx, "kubelet")?;
    let _ = cx.try_run(&Command::new("systemctl", ["disable", "--quiet", "kubelet"]))?;
    // Manifests first: nothing may bring the pods back.
    let manifests = cx.path("/etc/kubernetes/manifests");
    if manifests.exists() {
        for entry in std::fs::read_dir(&manifests).context("reading /etc/kubernetes/manifests")? {
            files::remove(&entry.context("reading /etc/kubernetes/manifests")?.path())?;
        }
    }
    remove_pods(cx)?;
    let below = |dir: &str, name: &str| cx.path(&format!("{dir}/{name}"));
    for name in KUBECONFIGS {
        files::remove(&below("/etc/kubernetes", name))?;
    }
    for name in LEAF_CERTIFICATES {
        files::remove(&below("/etc/kubernetes/pki", &format!("{name}.crt")))?;
        files::remove(&below("/etc/kubernetes/pki", &format!("{name}.key")))?;
    }
    for name in KUBELET_STATE {
        files::remove(&below("/var/lib/kubelet", name))?;
    }
    Ok(())
}

fn remove_pods(cx: &Cx<'_>) -> Result<()> {
    let crictl = |args: &[&str]| {
        let mut all = vec!["--runtime-endpoint", RUNTIME, "--timeout", "60s"];
        all.extend(args);
        Command::new("crictl", all).timeout(300)
    };
    let pods = cx.run(&crictl(&["pods", "-q"]))?.stdout;
    let pods: Vec<_> = pods.split_whitespace().collect();
    for (verb, force) in [("stopp", None), ("rmp", Some("-f"))] {
        if !pods.is_empty() {
            let args: Vec<_> = [verb].into_iter().chain(force).chain(pods.iter().copied()).collect();
            cx.run(&crictl(&args))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::runner::Output;
    use crate::testing::Lab;

    const KUBEADM: &str = "kubeadm init --config=/etc/kubernetes/kubeadm.yaml --skip-phases=bootstrap-token";

    #[test]
    fn runs_once_and_shows_phases_without_tokens() {
        let mut lab = Lab::new();
        lab.plan.kubeadm.push("--ignore-preflight-errors=ImagePull".into());
        let said = "[init] Using Kubernetes version: v1.20.2\n[certs] a\n[certs] b\n\
                    kubeadm join --token k3pqzv.0123456789abcdex\n";
        lab.runner.answer("kubeadm init", 0, said, "");
        converge(&lab.cx(), &[Box::new(Init)]).unwrap();
        assert_eq!(
            lab.runner.take_trace()[..2],
            [
                "systemctl stop kubelet".to_owned(),
                "kubeadm init --config=/etc/kubernetes/kubeadm.yaml --skip-phases=bootstrap-token \
                 --ignore-preflight-errors=ImagePull"
                    .to_owned()
            ]
        );
        assert!(!lab.log().contains("k3pqzv"));
        insta::assert_snapshot!(lab.console_lines().join("\n"), @r"
        firstboot: master-1: init: initialising the cluster (no control plane yet)
        firstboot: master-1: init: kubeadm init: Using Kubernetes version: v1.20.2
        firstboot: master-1: init: kubeadm certs: a
        firstboot: master-1: init: done in 0 s
        ");
        let lab = lab.reboot();
        converge(&lab.cx(), &[Box::new(Init)]).unwrap();
        assert!(lab.runner.take_trace().is_empty());
    }

    #[test]
    fn an_interrupted_init_is_taken_back_and_its_input_is_kept() {
        let lab = Lab::new();
        let cx = lab.cx();
        cx.journal.borrow_mut().fuse = Some(1);
        converge(&cx, &[Box::new(Init)]).unwrap_err();
        drop(cx);
        let lab = lab.reboot();
        let input = [
            "/etc/kubernetes/kubeadm.yaml",
            "/etc/kubernetes/pki/ca.crt",
            "/etc/kubernetes/pki/ca.key",
            "/etc/kubernetes/pki/front-proxy-ca.crt",
            "/etc/kubernetes/pki/front-proxy-ca.key",
            "/etc/kubernetes/pki/sa.key",
            "/etc/kubernetes/pki/etcd-external/client.key",
            "/var/lib/etcd/member/snap/db",
            "/var/lib/kubelet/cpu_manager_state",
        ];
        let left_overs = [
            "/etc/kubernetes/admin.conf",
            "/etc/kubernetes/manifests/kube-apiserver.yaml",
            "/etc/kubernetes/pki/apiserver.crt",
            "/etc/kubernetes/pki/apiserver-kubelet-client.key",
            "/etc/kubernetes/pki/front-proxy-client.crt",
            "/var/lib/kubelet/config.yaml",
            "/var/lib/kubelet/pki/kubelet-client-current.pem",
        ];
        input.iter().chain(&left_overs).for_each(|path| lab.write(path, "x"));
        lab.runner.answer(
            "crictl --runtime-endpoint unix:///run/containerd/containerd.sock --timeout 60s pods",
            0,
            "p1\np2\n",
            "",
        );
        converge(&lab.cx(), &[Box::new(Init)]).unwrap();
        input.iter().for_each(|path| assert!(lab.exists(path), "{path} was removed"));
        left_overs.iter().for_each(|path| assert!(!lab.exists(path), "{path} is still there"));
        let trace = lab.runner.take_trace();
        assert!(trace[4].ends_with("rmp -f p1 p2"), "{trace:?}");
        assert_eq!(trace[6], KUBEADM);
    }

    #[test]
    fn a_failed_attempt_is_taken_back_before_the_next() {
        let lab = Lab::new();
        let mut attempts = 0;
        lab.runner.on("kubeadm init", move |_| {
            attempts += 1;
            Output { status: i32::from(attempts == 1), stderr_tail: "timed out".into(), ..Output::default() }
        });
        converge(&lab.cx(), &[Box::new(Init)]).unwrap();
        let trace = lab.runner.take_trace();
        let first = trace.iter().position(|line| line == KUBEADM).unwrap();
        assert!(trace[first + 1..].iter().any(|line| line.contains("crictl")));
        assert_eq!(trace.iter().filter(|line| *line == KUBEADM).count(), 2);
    }

    #[test]
    fn another_clusters_control_plane_is_not_replaced() {
        let lab = Lab::new();
        converge(&lab.cx(), &[Box::new(Init)]).unwrap();
        let mut lab = lab.reboot();
        lab.plan.profile.cluster.id = "f".repeat(32);
        let (_, failure) = converge(&lab.cx(), &[Box::new(Init)]).unwrap_err();
        assert_eq!(failure.exit.code(), 20);
        assert!(lab.runner.take_trace().is_empty());
    }
}
