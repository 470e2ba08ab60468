// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild render` on the shipped cluster files: what a reviewer gets, and that two reviewers get the same.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A shipped cluster file in a folder of its own, so that nothing is made beside the original.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles").join(name).join("cluster.toml");
    fs::copy(&from, dir.path().join("cluster.toml")).unwrap();
    dir
}

fn render(dir: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imgbuild"));
    command.args(["render", "--cluster"]).arg(dir).arg("--out").arg(dir.join("out")).args(more);
    command.output().unwrap()
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every file below `dir`, by its path from there.
fn files(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// A rendering of all nodes of a shipped cluster.
fn rendered(name: &str) -> BTreeMap<PathBuf, String> {
    let dir = copy(name);
    succeeds(&render(dir.path(), &["--all"]));
    assert!(!dir.path().join("secrets").exists(), "reviewing {name} has made a PKI");
    files(&dir.path().join("out/render"))
}

/// The runbook's cluster: every file of every node, one snapshot for each node.
#[test]
fn every_file_of_kylin_v11_ha() {
    let files = rendered("kylin-v11-ha");
    let nodes = ["etcd1", "etcd2", "etcd3", "master1", "master2", "master3", "node1"];
    let index = &files[Path::new("files.txt")];
    for node in nodes {
        let mut whole: String = index
            .lines()
            .filter(|line| line.starts_with(&format!("{node}\t")))
            .map(|line| format!("{line}\n"))
            .collect();
        for (path, text) in &files {
            if let Ok(path) = path.strip_prefix(node) {
                whole += &format!("\n=== {}\n{text}", path.display());
            }
        }
        insta::assert_snapshot!(node, whole);
    }
    let known = |path: &Path| path == Path::new("files.txt") || nodes.iter().any(|node| path.starts_with(node));
    assert!(files.keys().all(|path| known(path)), "{:?}", files.keys());
}

#[test]
fn a_rendering_holds_no_secret_and_lists_what_it_holds() {
    for name in ["lab", "lab-split", "lab-ha", "hyperconverged", "kylin-v11-ha"] {
        let files = rendered(name);
        let index = &files[Path::new("files.txt")];
        let listed = index.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            assert_eq!(fields.len(), 5, "{line}");
            PathBuf::from(format!("{}{}", fields[0], fields[1]))
        });
        let mut listed: Vec<PathBuf> = listed.collect();
        listed.sort();
        let on_nodes = |path: &&PathBuf| path.iter().nth(1).is_some_and(|part| part != "seed");
        assert_eq!(listed, files.keys().filter(on_nodes).cloned().collect::<Vec<_>>(), "{name}");
        for (path, text) in &files {
            assert!(!text.contains("PRIVATE KEY") && !text.contains("MII"), "{name} {}", path.display());
        }
        // Who joins has a configuration and a credential for it, and nobody else has either.
        for line in index.lines().filter(|line| line.contains("\t/etc/hostname\t")) {
            let node = line.split('\t').next().unwrap();
            let has = |path: &str| index.lines().any(|line| line.starts_with(&format!("{node}\t{path}\t0")));
            assert_eq!(
                has("/etc/kubernetes/kubeadm-join.yaml"),
                has("/etc/kubernetes/discovery.conf"),
                "{name} {node}"
            );
        }
        let modes = index.lines().filter(|line| line.contains("\t/etc/kubernetes/discovery.conf\t"));
        assert!(modes.into_iter().all(|line| line.contains("\t0600\troot:root\t")), "{name}");
    }
}

/// Two PKIs are two clusters: in the id, and in what follows from it, the instance and the router id.
#[test]
fn two_reviewers_differ_in_the_clusters_id_alone() {
    let with_id = |id: &str| {
        let dir = copy("lab-ha");
        fs::create_dir(dir.path().join("secrets")).unwrap();
        // The id is the hash of this file, whatever is in it.
        fs::write(dir.path().join("secrets/kubernetes-ca.crt"), id).unwrap();
        succeeds(&render(dir.path(), &["--all"]));
        assert_eq!(fs::read_dir(dir.path().join("secrets")).unwrap().count(), 1, "a rendering has made a secret");
        let mut files = files(&dir.path().join("out/render"));
        let user_data = &files[Path::new("worker-1/seed/user-data")];
        let id =
            user_data.lines().find_map(|line| line.trim().strip_prefix("id: ")).unwrap().trim_matches('"').to_owned();
        for text in files.values_mut() {
            let mut lines: Vec<String> = text.lines().map(|line| line.replace(&id, "ID")).collect();
            for line in &mut lines {
                let key = line.trim_start().split([' ', ':']).next().unwrap_or_default().to_owned();
                if ["vrid", "virtual_router_id"].contains(&key.as_str()) {
                    *line = key;
                } else if line.starts_with("instance-id: ID-") {
                    line.truncate(line.len() - 12);
                }
            }
            *text = lines.join("\n");
        }
        (id, files)
    };
    let (one, first) = with_id("one");
    let (other, second) = with_id("two");
    assert_ne!(one, other);
    assert_eq!(first, second);
}

#[test]
fn a_rendering_replaces_the_last_one_and_no_other_folder() {
    let dir = copy("lab-split");
    succeeds(&render(dir.path(), &["--all"]));
    let out = dir.path().join("out");
    assert!(out.join("render/etcd-1/etc/hostname").exists());
    succeeds(&render(dir.path(), &["--profile", "worker-1"]));
    assert!(!out.join("render/etcd-1").exists() && out.join("render/worker-1/etc/hostname").exists());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "scratch left behind");
    fs::remove_file(out.join("render/files.txt")).unwrap();
    fs::write(out.join("render/thesis.txt"), "years of work").unwrap();
    let refused = render(dir.path(), &["--all"]);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("no rendering that may be replaced") && message.contains("hint: "), "{message}");
    assert!(out.join("render/thesis.txt").exists());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "scratch left behind");
}
