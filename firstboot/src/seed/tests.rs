// SPDX-License-Identifier: MIT OR Apache-2.0
//! Adoption of seeds, with a directory that plays the medium.

use super::*;
use crate::testing::PROFILE;

struct Stick {
    dir: Option<PathBuf>,
    writable: bool,
}

impl Sources for Stick {
    fn media(&self) -> Result<Vec<PathBuf>> {
        Ok(self.dir.clone().into_iter().collect())
    }
    fn with_mounted(&self, device: &Path, writable: bool, visit: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
        anyhow::ensure!(self.writable || !writable, "write-protected");
        visit(device)
    }
}

struct Node {
    dir: tempfile::TempDir,
    stick: Stick,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let medium = dir.path().join("medium");
        fs::create_dir_all(&medium).unwrap();
        Self { stick: Stick { dir: Some(medium), writable: true }, dir }
    }

    fn insert(&self, id: &str, secret: &str) {
        let medium = self.dir.path().join("medium");
        let secrets = if secret.is_empty() {
            String::new()
        } else {
            format!("  secrets: {{\"/etc/kubernetes/pki/ca.key\": \"{secret}\"}}\n")
        };
        fs::write(medium.join("meta-data"), format!("instance-id: {id}\n")).unwrap();
        let profile = PROFILE.replace('\n', " ");
        fs::write(
            medium.join("user-data"),
            format!("#cloud-config\nimgbuild:\n  schema: 1\n  profile: {profile}\n{secrets}"),
        )
        .unwrap();
    }

    fn medium_text(&self) -> String {
        fs::read_to_string(self.dir.path().join("medium/user-data")).unwrap()
    }

    fn boot(&self, converged: bool) -> Result<Seed> {
        let console = Console::new(Vec::new(), Box::new(std::io::sink()));
        obtain(&self.dir.path().join("root"), &self.stick, EverConverged(converged), &console)
    }

    fn key(&self, converged: bool) -> String {
        self.boot(converged).unwrap().ours.secrets.0["/etc/kubernetes/pki/ca.key"].clone()
    }

    fn exit(&self) -> u8 {
        self.boot(false).unwrap_err().downcast_ref::<Failure>().unwrap().exit.code()
    }
}

#[test]
fn takes_keeps_and_erases() {
    use std::os::unix::fs::PermissionsExt;
    let mut node = Node::new();
    node.insert("one", "SECRET");
    let length = node.medium_text().len();
    assert_eq!(node.key(false), "SECRET");
    assert!(!node.medium_text().contains("SECRET") && node.medium_text().len() != length);
    let kept = node.dir.path().join("root/var/lib/imgbuild/seed");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(kept.join("user-data")).unwrap().permissions().mode() & 0o777, 0o600);
    // The next boots, with the erased medium and without any.
    assert_eq!(node.key(false), "SECRET");
    node.stick.dir = None;
    assert_eq!(node.key(false), "SECRET");
    assert_eq!(node.key(true), "SECRET");
}

#[test]
fn another_seed_counts_until_the_node_converged() {
    let node = Node::new();
    node.insert("one", "FIRST");
    assert_eq!(node.key(false), "FIRST");
    node.insert("one", "SAME-ID");
    assert_eq!(node.key(false), "FIRST");
    node.insert("two", "SECOND");
    assert_eq!(node.key(false), "SECOND");
    node.insert("three", "THIRD");
    assert_eq!(node.key(true), "SECOND");
    assert!(node.medium_text().contains("THIRD"), "a medium that is ignored is left alone");
}

#[test]
fn a_power_cut_between_adopting_and_erasing_is_made_good() {
    let mut node = Node::new();
    node.stick.writable = false;
    node.insert("one", "SECRET");
    assert_eq!(node.key(false), "SECRET");
    assert!(node.medium_text().contains("SECRET"));
    node.stick.writable = true;
    assert_eq!(node.key(false), "SECRET");
    assert!(!node.medium_text().contains("SECRET"));
}

#[test]
fn a_power_cut_between_the_renames_is_made_good() {
    let node = Node::new();
    node.insert("one", "SECRET");
    node.boot(false).unwrap();
    let kept = node.dir.path().join("root/var/lib/imgbuild/seed");
    fs::rename(&kept, kept.with_extension("old")).unwrap();
    assert_eq!(node.key(true), "SECRET");
}

#[test]
fn no_seed_and_an_erased_seed_say_so() {
    let node = Node::new();
    assert_eq!(node.exit(), 10);
    node.insert("one", "");
    let error = node.boot(false).unwrap_err();
    assert!(error.to_string().contains("erased"), "{error:#}");
}

#[test]
fn nonsense_on_a_medium_does_not_matter_to_a_node_with_a_seed() {
    let node = Node::new();
    node.insert("one", "SECRET");
    node.boot(false).unwrap();
    fs::write(node.dir.path().join("medium/user-data"), "#!/bin/sh\n").unwrap();
    assert_eq!(node.key(false), "SECRET");
}

#[test]
fn a_seed_directory_comes_before_media() {
    let node = Node::new();
    node.insert("one", "MEDIUM");
    let dir = node.dir.path().join("root/var/lib/cloud/seed/nocloud");
    fs::create_dir_all(&dir).unwrap();
    for name in ["meta-data", "user-data"] {
        fs::copy(node.dir.path().join("medium").join(name), dir.join(name)).unwrap();
    }
    node.insert("two", "OTHER");
    assert_eq!(node.key(false), "MEDIUM");
    assert!(!fs::read_to_string(dir.join("user-data")).unwrap().contains("MEDIUM"));
}
