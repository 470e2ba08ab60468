// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a seed to the plan of the node: what `profiles` renders, the secrets, and what cloud-config adds.

use anyhow::Result;
use profiles::node::Role;
use profiles::render::{self, Content, NodeFile, RenderError};

use crate::bundle::Origin;
use crate::failure::Failure;
use crate::node::{Kind, NodePlan, PlannedFile, plan_digest};
use crate::payload::Payload;
use crate::seed::document::Seed;

/// Units that their own steps enable, never earlier: a reboot half-way must not start half a control plane, nor an etcd
/// whose port the preflight then finds taken, nor a keepalived that was not told yet whether its router id is free.
const ENABLED_BY_STEPS: [&str; 5] =
    ["containerd.service", "etcd.service", "haproxy.service", "keepalived.service", "kubelet.service"];

/// The plan of this node.
pub fn plan(seed: &Seed, payload: Payload, origin: Origin) -> Result<NodePlan> {
    let profile = seed.profile().clone();
    if payload.kubernetes.is_none() && (profile.has(Role::Master) || profile.has(Role::Worker)) {
        let name = &profile.node.name;
        let reason = format!("{name} is to run pods, and this disk was made for a node that is only an etcd member");
        return Err(
            Failure::seed(reason, "write the image of this node to its disk: `imgbuild --profile` builds it").into()
        );
    }
    let unusable = |error: RenderError| {
        let hint = "build this node's image again with `imgbuild --profile`";
        Failure::seed(format!("rendering the profile: {error}"), hint)
    };
    let rendered = render::files(&profile).map_err(unusable)?;
    let kubeadm = render::kubeadm_args(&profile).map_err(unusable)?;
    let mut files: Vec<PlannedFile> = rendered
        .into_iter()
        .filter(|file| !enables_a_steps_unit(&file.path))
        .chain(seed.ours.secret_files())
        .map(planned)
        .collect();
    for file in cloud_files(seed) {
        if files.iter().all(|other| other.path != file.path) {
            files.push(file);
        }
    }
    files.retain(|file| !origin.leaves(&file.path));
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let digest = plan_digest(&profile, &files, &kubeadm, &payload);
    Ok(NodePlan { profile, files, kubeadm, payload, origin, digest })
}

fn enables_a_steps_unit(path: &str) -> bool {
    let link = path.strip_prefix("/etc/systemd/system/").and_then(|rest| rest.split_once(".wants/"));
    link.is_some_and(|(_, unit)| ENABLED_BY_STEPS.contains(&unit))
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

    fn seed() -> Seed {
        let user_data = format!(
            "#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAA me]\ntimezone: Asia/Shanghai\nimgbuild:\n  schema: 1\n  \
             profile: {}\n  secrets: {{/etc/kubernetes/pki/ca.key: KEY, /etc/etcd/pki/server.crt: CERT}}\n",
            crate::testing::PROFILE.replace('\n', " ")
        );
        crate::seed::document::parse(b"instance-id: a", user_data.as_bytes()).unwrap()
    }

    #[test]
    fn the_plan_has_everything_but_the_links_that_steps_make() {
        let plan = plan(&seed(), crate::testing::payload(), Origin::Image).unwrap();
        let lines: Vec<_> =
            plan.files.iter().map(|file| format!("{:04o} {:9} {}", file.mode, file.owner, file.path)).collect();
        insta::assert_snapshot!(lines.join("\n"));
        assert_eq!(plan.kubeadm.init, ["--skip-phases=bootstrap-token,addon/coredns"]);
    }

    #[test]
    fn a_disk_without_kubernetes_is_only_for_an_etcd_member() {
        let mut seed = seed();
        let error = plan(&seed, Payload::default(), Origin::Image).unwrap_err();
        assert!(error.to_string().contains("only an etcd member"), "{error}");
        seed.ours.profile.node.roles = [Role::Etcd].into();
        assert_eq!(plan(&seed, Payload::default(), Origin::Image).unwrap().payload.kubernetes, None);
    }

    #[test]
    fn a_host_keeps_its_network_resolver_time_and_users() {
        let paths = |origin| -> Vec<String> {
            let plan = plan(&seed(), crate::testing::payload(), origin).unwrap();
            plan.files.into_iter().map(|file| file.path).collect()
        };
        let (image, host) = (paths(Origin::Image), paths(Origin::Bundle));
        let left: Vec<_> = image.iter().filter(|path| !host.contains(path)).collect();
        let wanted = ["/etc/hosts", "/etc/localtime", "/etc/resolv.conf", "/etc/systemd/network/10-node.network"];
        assert_eq!(left, [&wanted[..], &["/root/.ssh/authorized_keys"]].concat());
        assert!(host.iter().all(|path| image.contains(path)));
    }

    #[test]
    fn a_zone_cannot_lead_out_of_the_zones() {
        let mut seed = seed();
        for zone in ["../../../etc/shadow", "/etc/shadow", ""] {
            seed.cloud.timezone = Some(zone.to_owned());
            assert!(cloud_files(&seed).iter().all(|file| file.path != "/etc/localtime"));
        }
    }
}
