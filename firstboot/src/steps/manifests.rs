// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the cluster itself gets: our own objects, rendered manifests, then the payload's, in order. And the
//! administrator's access.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use profiles::node::NetworkPlugin;
use profiles::render::MANIFESTS_DIR;
use sha2::{Digest, Sha256};

use crate::context::{Cx, PAYLOAD_DIR};
use crate::digest::hex;
use crate::engine::{State, Step, journal_state};
use crate::files;
use crate::kubectl;

/// Lets kubelets renew their own client certificates: the part of kubeadm's skipped phase `bootstrap-token` that has
/// nothing to do with tokens, under kubeadm's own names (cmd/kubeadm/app/phases/bootstraptoken/node).
const CERTIFICATE_ROTATION: &str = r#"{
  "apiVersion": "rbac.authorization.k8s.io/v1",
  "kind": "ClusterRoleBinding",
  "metadata": {"name": "kubeadm:node-autoapprove-certificate-rotation"},
  "roleRef": {
    "apiGroup": "rbac.authorization.k8s.io",
    "kind": "ClusterRole",
    "name": "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient"
  },
  "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}]
}
"#;

/// With the plugin `bridge`, nodes look for each other's pod subnets (routes.rs). Since 1.32 the API server shows a node
/// no Node but its own, unless a rule like this one says otherwise; what it grants is what every node could do before.
const NODES_SEE_NODES: &str = r#"{
  "apiVersion": "v1",
  "kind": "List",
  "items": [
    {
      "apiVersion": "rbac.authorization.k8s.io/v1",
      "kind": "ClusterRole",
      "metadata": {"name": "imgbuild:nodes-see-nodes"},
      "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]}]
    },
    {
      "apiVersion": "rbac.authorization.k8s.io/v1",
      "kind": "ClusterRoleBinding",
      "metadata": {"name": "imgbuild:nodes-see-nodes"},
      "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "imgbuild:nodes-see-nodes"},
      "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}]
    }
  ]
}
"#;

pub(super) struct Manifests;

fn manifest_files(cx: &Cx<'_>) -> Result<Vec<PathBuf>> {
    let dir = cx.path(&format!("{PAYLOAD_DIR}/manifests"));
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "json") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Nodes join with a certificate of their own, so joining is a renewal too.
pub(super) fn allow_certificate_rotation(cx: &Cx<'_>) -> Result<()> {
    apply_object(cx, CERTIFICATE_ROTATION)
}

/// An object of firstboot's own, which is known to be right: to validate it, kubectl would fetch the description of all that the
/// API server offers, some megabytes that a slow machine reads for half a minute.
fn apply_object(cx: &Cx<'_>, object: &str) -> Result<()> {
    let command = kubectl::as_admin(&["apply", "--validate=false", "-f", "-"]).timeout(300);
    let mut feed = |stdin: &mut dyn Write| stdin.write_all(object.as_bytes());
    let output = cx.run_with(&command, Some(&mut feed), &mut |line| cx.log(line))?;
    cx.expect_success(&command, output)?;
    Ok(())
}

/// kubectl warns where the object is kubeadm's own, and takes the change.
fn apply(cx: &Cx<'_>, path: &str) -> Result<()> {
    cx.run(&kubectl::as_admin(&["apply", "-f", path]).timeout(300))?;
    Ok(())
}

impl Step for Manifests {
    fn id(&self) -> &'static str {
        "manifests"
    }

    fn title(&self) -> &'static str {
        "applying manifests"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        Ok(journal_state(self, cx))
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        allow_certificate_rotation(cx)?;
        if cx.profile().network.plugin == NetworkPlugin::Bridge {
            apply_object(cx, NODES_SEE_NODES)?;
        }
        // The planned ones: a file of an earlier profile may still lie beside them.
        for (path, _) in cx.plan.texts_below(MANIFESTS_DIR) {
            cx.say(path.strip_prefix(MANIFESTS_DIR).unwrap_or(path));
            apply(cx, path)?;
        }
        for path in manifest_files(cx)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            cx.say(&name);
            let path = format!("{PAYLOAD_DIR}/manifests/{name}");
            apply(cx, &path)?;
        }
        Ok(())
    }

    fn verify(&self, _: &Cx<'_>) -> Result<()> {
        Ok(()) // kubectl says itself whether the API server took them
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        let mut hash = Sha256::new();
        hash.update(CERTIFICATE_ROTATION);
        if cx.profile().network.plugin == NetworkPlugin::Bridge {
            hash.update(NODES_SEE_NODES);
        }
        for (_, text) in cx.plan.texts_below(MANIFESTS_DIR) {
            hash.update(text);
        }
        for path in manifest_files(cx).unwrap_or_default() {
            hash.update(fs::read(&path).unwrap_or_default());
        }
        hex(&hash.finalize())
    }

    fn attempts(&self) -> u32 {
        5
    }
}

/// `kubectl` works for root who logs in.
pub(super) struct AdminAccess;

const ADMIN: &str = "/etc/kubernetes/admin.conf";
const ROOTS_CONFIG: &str = "/root/.kube/config";

impl Step for AdminAccess {
    fn id(&self) -> &'static str {
        "admin-access"
    }

    fn title(&self) -> &'static str {
        "giving root access to the cluster"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        // Somebody who took admin.conf off the node meant it.
        let Ok(admin) = fs::read(cx.path(ADMIN)) else { return Ok(State::Done) };
        let how = files::difference(&cx.path(ROOTS_CONFIG), &admin, 0o600, None);
        Ok(how.map_or(State::Done, |how| State::Needed(format!("{ROOTS_CONFIG} {how}"))))
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let admin = fs::read(cx.path(ADMIN)).with_context(|| format!("reading {ADMIN}"))?;
        files::write_atomic(&cx.path(ROOTS_CONFIG), &admin, 0o600, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::testing::{Lab, planned};

    #[test]
    fn applies_in_order_and_again_when_they_change() {
        let lab = Lab::new();
        lab.write("/opt/imgbuild/manifests/20-b.yaml", "b");
        lab.write("/opt/imgbuild/manifests/10-a.yaml", "a");
        lab.write("/opt/imgbuild/manifests/README", "no");
        converge(&lab.cx(), &[Box::new(Manifests)]).unwrap();
        let applied = |lab: &Lab| -> Vec<String> {
            let trace = lab.runner.take_trace();
            trace.iter().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
        };
        let expected = ["-", "-", "/opt/imgbuild/manifests/10-a.yaml", "/opt/imgbuild/manifests/20-b.yaml"];
        assert_eq!(applied(&lab), expected);
        assert_eq!(*lab.runner.fed.borrow(), NODES_SEE_NODES.as_bytes());
        let lab = lab.reboot();
        converge(&lab.cx(), &[Box::new(Manifests)]).unwrap();
        assert_eq!(applied(&lab), [""; 0]);
        lab.write("/opt/imgbuild/manifests/20-b.yaml", "changed");
        converge(&lab.cx(), &[Box::new(Manifests)]).unwrap();
        assert_eq!(applied(&lab), expected);
    }

    #[test]
    fn our_own_objects_are_json() {
        for object in [CERTIFICATE_ROTATION, NODES_SEE_NODES] {
            serde_json::from_str::<serde_json::Value>(object).unwrap();
        }
    }

    #[test]
    fn nodes_see_nodes_only_where_they_must() {
        let mut lab = Lab::new();
        lab.plan.profile.network.plugin = NetworkPlugin::Calico;
        converge(&lab.cx(), &[Box::new(Manifests)]).unwrap();
        assert_eq!(lab.runner.take_trace().len(), 1);
        assert_eq!(*lab.runner.fed.borrow(), CERTIFICATE_ROTATION.as_bytes());
    }

    #[test]
    fn rendered_ones_come_before_the_payloads() {
        let mut lab = Lab::new();
        let rendered = |text: &str| vec![planned(&format!("{MANIFESTS_DIR}10-coredns.yaml"), 0o644, text)];
        let applied = |lab: &Lab| -> Vec<String> {
            converge(&lab.cx(), &[Box::new(Manifests)]).unwrap();
            let trace = lab.runner.take_trace();
            trace.iter().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
        };
        lab.write("/opt/imgbuild/manifests/05-calico.yaml", "calico");
        // Of an earlier profile: nobody wants it any more.
        lab.write("/etc/kubernetes/imgbuild/20-other.yaml", "other");
        lab.plan.files = rendered("one");
        let expected = ["-", "-", "/etc/kubernetes/imgbuild/10-coredns.yaml", "/opt/imgbuild/manifests/05-calico.yaml"];
        assert_eq!(applied(&lab), expected);
        let mut lab = lab.reboot();
        lab.plan.files = rendered("one");
        assert_eq!(applied(&lab), [""; 0]);
        lab.plan.files = rendered("two");
        assert_eq!(applied(&lab), expected);
    }

    #[test]
    fn root_gets_a_private_copy() {
        let lab = Lab::new();
        let cx = lab.cx();
        assert_eq!(AdminAccess.check(&cx).unwrap(), State::Done);
        lab.write(ADMIN, "kubeconfig");
        converge(&cx, &[Box::new(AdminAccess)]).unwrap();
        assert_eq!(files::difference(&cx.path(ROOTS_CONFIG), b"kubeconfig", 0o600, None), None);
    }
}
