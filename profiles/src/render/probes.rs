// SPDX-License-Identifier: MIT OR Apache-2.0
//! How often kubelet probes the control plane's pods. kubeadm has no setting for it; it applies patches to the pods it
//! writes (kubeadm init, "Customizing the control plane with patches").
//!
//! Each probe is a TLS handshake, and kubeadm has kubelet ask every second whether the API server is ready. On an emulated
//! processor that is a good part of all there is to do, and an API server that is merely slow is killed for it.

use serde::Serialize;

use super::{Context, KUBEADM_PATCHES, NodeFile, RenderError, text};
use crate::node::Role;
use crate::yaml;

/// How long an answer may take, in seconds; kubeadm's own value.
const PATIENCE: u32 = 15;

/// A strategic merge patch: what is not in it stays as it is, containers are merged by name.
#[derive(Serialize)]
struct Patch {
    spec: Spec,
}

#[derive(Serialize)]
struct Spec {
    containers: [Container; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: &'static str,
    liveness_probe: Probe,
    #[serde(skip_serializing_if = "Option::is_none")]
    readiness_probe: Option<Probe>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    period_seconds: u32,
    timeout_seconds: u32,
}

pub(super) fn are_patched(c: &Context<'_>) -> bool {
    c.profile.has(Role::Master) && c.profile.kubernetes.probe_period_seconds.is_some()
}

pub(super) fn files(c: &Context<'_>) -> Result<Vec<NodeFile>, RenderError> {
    let Some(period) = c.profile.kubernetes.probe_period_seconds else { return Ok(Vec::new()) };
    let probe = Probe { period_seconds: period, timeout_seconds: period.max(PATIENCE) };
    // Of the three, only the API server has a readiness probe, since 1.20; one without a question to ask would be invalid.
    let readiness_probe = (c.kubernetes.minor >= 20).then_some(probe);
    [("kube-apiserver", readiness_probe), ("kube-controller-manager", None), ("kube-scheduler", None)]
        .into_iter()
        .map(|(name, readiness_probe)| {
            let containers = [Container { name, liveness_probe: probe, readiness_probe }];
            let patch = yaml::to_string(&Patch { spec: Spec { containers } });
            let patch = patch.map_err(RenderError::yaml("a patch of kubeadm"))?;
            Ok(text(&format!("{KUBEADM_PATCHES}/{name}+strategic.yaml"), patch))
        })
        .collect()
}
