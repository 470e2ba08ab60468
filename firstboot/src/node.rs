// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this node should become: its profile, and every file and argument that follows from it.

use std::path::Path;

use anyhow::{Context, Result};
use profiles::node::NodeProfile;
use profiles::render::KubeadmArgs;
use sha2::{Digest, Sha256};

use crate::bundle::Origin;
use crate::digest::hex;
use crate::files::{self, Owner};
use crate::payload::Payload;

/// What is at a planned path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File(Vec<u8>),
    /// A symbolic link.
    Link(String),
}

/// One file of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// `user` or `user:group`.
    pub owner: String,
    /// What is there.
    pub kind: Kind,
}

/// What this node should become.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// The profile.
    pub profile: NodeProfile,
    /// All files, secrets included.
    pub files: Vec<PlannedFile>,
    /// What kubeadm gets beside its configuration.
    pub kubeadm: KubeadmArgs,
    /// What the payload brings.
    pub payload: Payload,
    /// How the node's operating system came to be.
    pub origin: Origin,
    /// Digest of all of the above: the same digest means there is nothing new to do.
    pub digest: String,
}

impl NodePlan {
    /// Digest of the planned files below one of `prefixes`: what a daemon's configuration is made of.
    pub fn digest_of(&self, prefixes: &[&str]) -> String {
        let mut hash = Sha256::new();
        for file in self.files.iter().filter(|file| prefixes.iter().any(|prefix| file.path.starts_with(prefix))) {
            hash_file(&mut hash, file);
        }
        hex(&hash.finalize())
    }

    /// Planned regular files below `prefix`, as text.
    pub fn texts_below(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter(move |file| file.path.starts_with(prefix)).filter_map(|file| match &file.kind {
            Kind::File(content) => Some((file.path.as_str(), std::str::from_utf8(content).ok()?)),
            Kind::Link(_) => None,
        })
    }

    /// The planned file at `path`, as text.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts_below(path).find(|(found, _)| *found == path).map(|(_, text)| text)
    }
}

/// Digest over everything a plan is made of.
pub fn plan_digest(profile: &NodeProfile, files: &[PlannedFile], kubeadm: &KubeadmArgs, payload: &Payload) -> String {
    let mut hash = Sha256::new();
    hash.update(b"firstboot plan 1\n");
    hash.update(serde_json::to_vec(profile).unwrap_or_default());
    for file in files {
        hash_file(&mut hash, file);
    }
    hash.update(format!("{kubeadm:?}\n{payload:?}\n"));
    hex(&hash.finalize())
}

fn hash_file(hash: &mut Sha256, file: &PlannedFile) {
    let (kind, content) = match &file.kind {
        Kind::File(content) => ("file", content.as_slice()),
        Kind::Link(target) => ("link", target.as_bytes()),
    };
    hash.update(format!("{kind} {} {:o} {} {}\n", file.path, file.mode, file.owner, content.len()));
    hash.update(content);
}

/// Names of users and groups on the node.
#[derive(Debug)]
pub struct Owners {
    passwd: String,
    group: String,
}

impl Owners {
    /// Those of the running node; `None` for any other root, where owners are not compared: tests are not root.
    pub fn of_node(root: &Path) -> Option<Self> {
        (root == Path::new("/")).then(|| Self::read(root))
    }

    fn read(root: &Path) -> Self {
        let text = |name: &str| std::fs::read_to_string(root.join("etc").join(name)).unwrap_or_default();
        Self { passwd: text("passwd"), group: text("group") }
    }

    /// The numbers of `owner`.
    pub fn find(&self, owner: &str) -> Result<Owner> {
        files::look_up_owner(&self.passwd, &self.group, owner)
    }
}

/// What is different between a planned file and the disk below `root`; `None` if nothing.
pub fn difference(root: &Path, owners: Option<&Owners>, file: &PlannedFile) -> Result<Option<String>> {
    let path = crate::context::below(root, &file.path);
    Ok(match &file.kind {
        Kind::File(content) => {
            let owner = owners.map(|owners| owners.find(&file.owner)).transpose();
            let owner = owner.with_context(|| format!("looking up the owner of {}", file.path))?;
            files::difference(&path, content, file.mode, owner)
        }
        Kind::Link(target) => match std::fs::read_link(&path) {
            Ok(found) if found == Path::new(target) => None,
            Ok(found) => Some(format!("points to {}", found.display())),
            Err(_) => Some("is missing".to_owned()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_sees_every_input() {
        let profile = crate::testing::profile();
        let file =
            PlannedFile { path: "/etc/x".into(), mode: 0o644, owner: "root".into(), kind: Kind::File(b"1".to_vec()) };
        let digest = |file: &PlannedFile, payload: &Payload| {
            plan_digest(&profile, std::slice::from_ref(file), &KubeadmArgs::default(), payload)
        };
        let base = digest(&file, &Payload::default());
        assert_eq!(base, digest(&file, &Payload::default()));
        assert_ne!(base, digest(&PlannedFile { mode: 0o600, ..file.clone() }, &Payload::default()));
        assert_ne!(base, digest(&PlannedFile { kind: Kind::Link("1".into()), ..file.clone() }, &Payload::default()));
        assert_ne!(base, digest(&file, &Payload { kubernetes: Some("v2".into()), ..Payload::default() }));
    }
}
