// SPDX-License-Identifier: MIT OR Apache-2.0
//! Certificates on this node's disk: which end soon, and who renews each kind. Private keys are never looked at.

use std::path::Path;

use super::Check;
use super::collect::Facts;
use super::time::span;
use crate::cert::{Validity, kubeconfig_client_validity, show_time, validity};
use crate::context::below;
use crate::files::read_limited;

const ID: &str = "cert.expiry";
/// Bundles of certificates are a few kB.
const LIMIT: u64 = 1 << 20;
const DAY: u64 = 86_400;
const SOON: u64 = 30 * DAY;
const VERY_SOON: u64 = 7 * DAY;

/// Directories of certificates of their own files.
const DIRECTORIES: [&str; 3] = ["/etc/kubernetes/pki", "/etc/kubernetes/pki/etcd-external", "/etc/etcd/pki"];
/// Kubeconfigs with an embedded client certificate.
const KUBECONFIGS: [&str; 4] = ["admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf"];
/// Certificate and key in one file, replaced by kubelet itself.
const KUBELET: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    /// Where it is.
    pub path: String,
    /// From when to when, or why that is unknown.
    pub validity: Result<Validity, String>,
}

/// Reads all that are there. What is not there yet, or not for this role, is no finding.
pub(super) fn find(root: &Path) -> Vec<Certificate> {
    let mut paths = Vec::new();
    for directory in DIRECTORIES {
        let Ok(entries) = std::fs::read_dir(below(root, directory)) else { continue };
        let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        paths.extend(names.iter().filter(|name| name.ends_with(".crt")).map(|name| format!("{directory}/{name}")));
    }
    paths.push(KUBELET.to_owned());
    let mut found: Vec<_> = paths.into_iter().filter_map(|path| read(root, path, |text| validity(text).ok())).collect();
    found.extend(
        KUBECONFIGS.iter().filter_map(|name| read(root, format!("/etc/kubernetes/{name}"), kubeconfig_client_validity)),
    );
    found
}

fn read(root: &Path, path: String, parse: impl Fn(&str) -> Option<Validity>) -> Option<Certificate> {
    let validity = match read_limited(&below(root, &path), LIMIT) {
        Ok(bytes) => parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| "holds no readable certificate".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => Err(error.to_string()),
    };
    Some(Certificate { path, validity })
}

pub(super) fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut good: Vec<(&str, u64)> = Vec::new();
    for certificate in &facts.certificates {
        let path = certificate.path.as_str();
        let valid = match &certificate.validity {
            Ok(valid) => valid,
            Err(why) => {
                checks.push(Check::error(ID, path, why, advice(path)));
                continue;
            }
        };
        let left = valid.until.saturating_sub(facts.now);
        if facts.now < valid.from {
            let finding = format!("begins only at {}", show_time(valid.from));
            checks.push(Check::error(ID, path, finding, "is this node's clock right? see the topic `clock`"));
        } else if left == 0 {
            let ago = span(facts.now - valid.until);
            checks.push(Check::error(ID, path, format!("expired {ago} ago, {}", show_time(valid.until)), advice(path)));
        } else if left < SOON {
            let finding = format!("expires in {}, {}", span(left), show_time(valid.until));
            let check = if left < VERY_SOON { Check::error } else { Check::warning };
            checks.push(check(ID, path, &finding, &advice(path)));
        } else {
            good.push((path, left));
        }
    }
    if let Some((path, left)) = good.iter().min_by_key(|(_, left)| *left) {
        let finding = format!("{} valid; the first to expire is {path}, in {}", certificates(good.len()), span(*left));
        checks.push(Check::ok(ID, "", finding));
    }
    checks
}

fn certificates(count: usize) -> String {
    if count == 1 { "1 certificate is".to_owned() } else { format!("{count} certificates are") }
}

/// Who renews it.
fn advice(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let restart = "then restart the control plane's pods (docs/health.md)";
    if path == KUBELET {
        // kubelet renews it when a tenth to a third of its life is left.
        return "kubelet renews it itself and did not: `journalctl -u kubelet | grep -i certificate`".to_owned();
    }
    if name == "ca.crt" || name == "front-proxy-ca.crt" {
        return "a CA is not renewed in place: plan a new one for the whole cluster (docs/health.md)".to_owned();
    }
    if path.contains("etcd") {
        return "imgbuild makes etcd's certificates, for ten years: make new ones there (docs/health.md)".to_owned();
    }
    match name.strip_suffix(".crt") {
        Some(name @ ("apiserver" | "apiserver-kubelet-client" | "front-proxy-client")) => {
            format!("`kubeadm certs renew {name}`, {restart}")
        }
        None => format!("`kubeadm certs renew {name}`, {restart}"),
        Some(_) => "no part of the cluster that imgbuild knows: ask whoever put it there".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = include_str!("../../fixtures/ca.crt");

    #[test]
    fn all_certificates_of_a_node_are_found() {
        let node = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = below(node.path(), path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("/etc/kubernetes/pki/ca.crt", CA);
        write("/etc/kubernetes/pki/ca.key", "never looked at");
        write("/etc/kubernetes/pki/apiserver.crt", "torn");
        write("/etc/kubernetes/pki/etcd-external/client.crt", CA);
        write("/etc/etcd/pki/peer.crt", CA);
        write(KUBELET, &format!("{CA}-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"));
        write("/etc/kubernetes/admin.conf", &crate::cert::tests::kubeconfig(CA));
        write("/etc/kubernetes/scheduler.conf", "users: []");
        let found = find(node.path());
        let lines: Vec<_> = found
            .iter()
            .map(|one| {
                let state = one.validity.as_ref().map_or_else(Clone::clone, |valid| show_time(valid.until));
                format!("{} {state}", one.path)
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        /etc/kubernetes/pki/apiserver.crt holds no readable certificate
        /etc/kubernetes/pki/ca.crt 2036-01-01 00:00:00 UTC
        /etc/kubernetes/pki/etcd-external/client.crt 2036-01-01 00:00:00 UTC
        /etc/etcd/pki/peer.crt 2036-01-01 00:00:00 UTC
        /var/lib/kubelet/pki/kubelet-client-current.pem 2036-01-01 00:00:00 UTC
        /etc/kubernetes/admin.conf 2036-01-01 00:00:00 UTC
        /etc/kubernetes/scheduler.conf holds no readable certificate
        ");
    }

    #[test]
    fn every_kind_has_its_own_advice() {
        let paths = [
            "/etc/kubernetes/pki/apiserver.crt",
            "/etc/kubernetes/pki/ca.crt",
            "/etc/kubernetes/pki/etcd-external/client.crt",
            "/etc/etcd/pki/peer.crt",
            "/etc/etcd/pki/ca.crt",
            "/etc/kubernetes/admin.conf",
            "/etc/kubernetes/pki/mine.crt",
            KUBELET,
        ];
        let lines: Vec<_> = paths.iter().map(|path| format!("{path}: {}", advice(path))).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        /etc/kubernetes/pki/apiserver.crt: `kubeadm certs renew apiserver`, then restart the control plane's pods (docs/health.md)
        /etc/kubernetes/pki/ca.crt: a CA is not renewed in place: plan a new one for the whole cluster (docs/health.md)
        /etc/kubernetes/pki/etcd-external/client.crt: imgbuild makes etcd's certificates, for ten years: make new ones there (docs/health.md)
        /etc/etcd/pki/peer.crt: imgbuild makes etcd's certificates, for ten years: make new ones there (docs/health.md)
        /etc/etcd/pki/ca.crt: a CA is not renewed in place: plan a new one for the whole cluster (docs/health.md)
        /etc/kubernetes/admin.conf: `kubeadm certs renew admin.conf`, then restart the control plane's pods (docs/health.md)
        /etc/kubernetes/pki/mine.crt: no part of the cluster that imgbuild knows: ask whoever put it there
        /var/lib/kubelet/pki/kubelet-client-current.pem: kubelet renews it itself and did not: `journalctl -u kubelet | grep -i certificate`
        ");
    }
}
