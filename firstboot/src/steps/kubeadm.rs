// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `kubeadm init` and `kubeadm join` have in common, and how either is taken back.
//!
//! kubeadm cannot resume where it stopped. So a run that did not end well is taken back to where it began, and runs again as a
//! whole; but for an init or a master's join whose control plane runs ([`control_plane_is_made`]), and a worker's join whose
//! kubelet has joined: only what it does through the API server after that is done again.
//! What the seed brought (CAs, the service-account key, etcd's client certificate, the join credential) and etcd's data
//! are input, and are never touched. kubelet is enabled only afterwards: a reboot in the middle must not start half a
//! control plane.

use anyhow::{Context, Result};
use profiles::node::Role;
use profiles::render::KUBEADM_JOIN_CONFIG;

use super::services;
use crate::context::Cx;
use crate::files;
use crate::kubectl;
use crate::runner::{Command, redact};

const RUNTIME: &str = "unix:///run/containerd/containerd.sock";
const MANIFESTS: &str = "/etc/kubernetes/manifests";
/// What it makes on a master below /etc/kubernetes/pki, beside its input.
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

/// The last line of a program's stderr.
pub(super) fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().to_owned()
}

/// Runs kubeadm, its phases on the console; `each` runs at every line it writes.
pub(super) fn run(cx: &Cx<'_>, args: impl IntoIterator<Item = String>, each: impl FnMut()) -> Result<()> {
    // kubelet only starts to be useful when kubeadm has configured it, and kubeadm starts it itself.
    services::stop(cx, "kubelet")?;
    run_beside_kubelet(cx, args, each)
}

/// The same, with kubelet as it is.
pub(super) fn run_beside_kubelet(
    cx: &Cx<'_>,
    args: impl IntoIterator<Item = String>,
    mut each: impl FnMut(),
) -> Result<()> {
    let control_plane = u64::from(cx.profile().kubernetes.control_plane_timeout_seconds);
    let command = Command::new("kubeadm", args).timeout(control_plane + 900);
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
        each();
    };
    let output = cx.run_with(&command, None, &mut on_line)?;
    cx.expect_success(&command, output)?;
    Ok(())
}

/// Writes down on this node's Node which runtime it has, with the access in `kubeconfig`. `kubeadm upgrade` and `kubeadm reset`
/// read it. It is the last thing that the phase `kubelet-start` of a join does, and what it most often gives up at
/// (`PatchNodeCRISocket` in cmd/kubeadm/app/phases/patchnode).
pub(super) fn name_runtime(cx: &Cx<'_>, kubeconfig: &str) -> Result<()> {
    // As its version of kubeadm writes it: the file that it joined with says it.
    let join = cx.plan.texts_below(KUBEADM_JOIN_CONFIG).next().map_or("", |(_, text)| text);
    let socket = join.lines().find_map(|line| line.trim().strip_prefix("criSocket: "));
    let socket = socket.with_context(|| format!("{KUBEADM_JOIN_CONFIG} has no criSocket"))?;
    let annotation = format!("kubeadm.alpha.kubernetes.io/cri-socket={}", socket.trim_matches(['"', '\'']));
    let annotate = ["annotate", "--overwrite", "node", &cx.profile().node.name, &annotation];
    cx.run(&kubectl::with(kubeconfig, &annotate).timeout(300))?;
    Ok(())
}

/// Whether kubeadm has made all that a control plane needs to run; whether that runs is another question.
pub(super) fn control_plane_is_made(cx: &Cx<'_>) -> bool {
    // The last one of each of its phases; kubelet.conf is there when a join's kubelet has its certificate.
    ["/etc/kubernetes/scheduler.conf", "/etc/kubernetes/manifests/kube-scheduler.yaml", "/etc/kubernetes/kubelet.conf"]
        .iter()
        .all(|made| cx.path(made).exists())
}

/// What kubeadm made, or may have made half of.
fn left_overs(cx: &Cx<'_>) -> Vec<String> {
    let mut paths: Vec<String> = KUBECONFIGS.iter().map(|name| format!("/etc/kubernetes/{name}")).collect();
    if cx.profile().has(Role::Master) {
        for name in LEAF_CERTIFICATES {
            paths.extend(["crt", "key"].map(|kind| format!("/etc/kubernetes/pki/{name}.{kind}")));
        }
    } else {
        // On a master it is input. kubeadm refuses to join a worker that has one.
        paths.push("/etc/kubernetes/pki/ca.crt".to_owned());
    }
    paths.extend(KUBELET_STATE.iter().map(|name| format!("/var/lib/kubelet/{name}")));
    paths
}

/// Takes the node back to before kubeadm.
pub(super) fn take_back(cx: &Cx<'_>) -> Result<()> {
    let manifests = cx.path(MANIFESTS);
    let mut made = Vec::new();
    if manifests.exists() {
        for entry in std::fs::read_dir(&manifests).with_context(|| format!("reading {MANIFESTS}"))? {
            made.push(entry.with_context(|| format!("reading {MANIFESTS}"))?.path());
        }
    }
    let left_overs: Vec<_> = left_overs(cx).iter().map(|path| cx.path(path)).collect();
    if made.is_empty() && !left_overs.iter().any(|path| path.exists()) {
        return Ok(()); // it was interrupted before kubeadm did anything
    }
    cx.say("taking back what the interrupted kubeadm left");
    services::stop(cx, "kubelet")?;
    let _ = cx.try_run(&Command::new("systemctl", ["disable", "--quiet", "kubelet"]))?;
    // Manifests first: nothing may bring the pods back.
    made.iter().try_for_each(|path| files::remove(path))?;
    remove_pods(cx)?;
    left_overs.iter().try_for_each(|path| files::remove(path))
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
