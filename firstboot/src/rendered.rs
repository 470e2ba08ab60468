// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a seed to the plan of the node: what `profiles` renders, the secrets, and what cloud-config adds.

use anyhow::Result;
use profiles::node::ClusterDns;
use profiles::render::{self, Content, NodeFile, RenderError};

use crate::failure::Failure;
use crate::node::{Kind, NodePlan, PlannedFile, plan_digest};
use crate::payload::Payload;
use crate::seed::document::Seed;

/// kubelet is enabled by the step that comes after init, never earlier: a reboot in the middle of init must not start
/// half a control plane.
const KUBELET_LINK: &str = "/etc/systemd/system/multi-user.target.wants/kubelet.service";
/// This phase makes a token that nobody needs here. The one thing of it that every cluster needs, the approval of
/// kubelets' renewed certificates, is a manifest of ours (steps/manifests.rs).
const TOKEN_PHASE: &str = "bootstrap-token";

/// The plan of this node.
pub fn plan(seed: &Seed, payload: Payload) -> Result<NodePlan> {
    let profile = seed.profile().clone();
    let unusable = |error: RenderError| {
        let hint = "make the seed again with `imgbuild --output seed`";
        Failure::seed(format!("rendering the profile: {error}"), hint)
    };
    let rendered = render::files(&profile).map_err(unusable)?;
    let arguments = render::kubeadm_args(&profile).map_err(unusable)?;
    let mut files: Vec<PlannedFile> = rendered
        .into_iter()
        .filter(|file| file.path != KUBELET_LINK)
        .chain(seed.ours.secret_files())
        .map(planned)
        .collect();
    for file in cloud_files(seed) {
        if files.iter().all(|other| other.path != file.path) {
            files.push(file);
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let kubeadm = kubeadm_arguments(arguments, profile.kubernetes.dns);
    let digest = plan_digest(&profile, &files, &kubeadm, &payload);
    Ok(NodePlan { profile, files, kubeadm, payload, digest })
}

fn planned(file: NodeFile) -> PlannedFile {
    PlannedFile {
        path: file.path,
        mode: file.mode,
        owner: format!("{0}:{0}", file.owner.name()),
        kind: match file.content {
            Content::Text(text) => Kind::File(text.into_bytes()),
            Content::Symlink(target) => Kind::Link(target),
        },
    }
}

/// Adds what only the node side knows to what `profiles` says.
fn kubeadm_arguments(mut arguments: Vec<String>, dns: ClusterDns) -> Vec<String> {
    match arguments.iter_mut().find(|argument| argument.starts_with("--skip-phases=")) {
        Some(skip) if skip.contains(TOKEN_PHASE) => {}
        Some(skip) => {
            skip.push(',');
            skip.push_str(TOKEN_PHASE);
        }
        None => arguments.push(format!("--skip-phases={TOKEN_PHASE}")),
    }
    let ignores = arguments.iter().any(|argument| argument.starts_with("--ignore-preflight-errors="));
    if dns == ClusterDns::None && !ignores {
        // kubeadm wants to pull the CoreDNS image even when it skips the add-on. What is needed was proved complete by
        // the build, and is verified by the step that imports images.
        arguments.push("--ignore-preflight-errors=ImagePull".to_owned());
    }
    arguments
}

/// cloud-config's ordinary keys, where `profiles` does not render the same file.
fn cloud_files(seed: &Seed) -> Vec<PlannedFile> {
    let mut files = Vec::new();
    let mut keys = seed.profile().node.ssh_authorized_keys.clone();
    keys.extend(seed.cloud.ssh_authorized_keys.iter().filter(|key| !keys.contains(key)).cloned().collect::<Vec<_>>());
    if !keys.is_empty() {
        files.push(PlannedFile {
            path: "/root/.ssh/authorized_keys".to_owned(),
            mode: 0o600,
            owner: "root:root".to_owned(),
            kind: Kind::File((keys.join("\n") + "\n").into_bytes()),
        });
    }
    let is_zone =
        |zone: &&String| !zone.is_empty() && !zone.starts_with('/') && !zone.split('/').any(|part| part == "..");
    if let Some(zone) = seed.cloud.timezone.as_ref().filter(is_zone) {
        files.push(PlannedFile {
            path: "/etc/localtime".to_owned(),
            mode: 0o777,
            owner: "root:root".to_owned(),
            kind: Kind::Link(format!("../usr/share/zoneinfo/{zone}")),
        });
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_is_made_and_images_are_not_pulled() {
        let arguments = |from: &[&str], dns| kubeadm_arguments(from.iter().map(|arg| (*arg).to_owned()).collect(), dns);
        assert_eq!(
            arguments(&["--skip-phases=addon/coredns"], ClusterDns::None),
            ["--skip-phases=addon/coredns,bootstrap-token", "--ignore-preflight-errors=ImagePull"]
        );
        assert_eq!(arguments(&[], ClusterDns::Coredns), ["--skip-phases=bootstrap-token"]);
    }
}
