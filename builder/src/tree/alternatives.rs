// SPDX-License-Identifier: MIT OR Apache-2.0

//! Alternatives as declared links: what `update-alternatives --install` in maintainer scripts would have linked, without
//! the detour through `/etc/alternatives`. See docs/os-layer.md for the package behind each line.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::{Entry, FileTree};

/// Link, and what it may point at: the first that is in the tree is taken; none means the package is not there.
const DEFAULTS: &[(&str, &[&str])] = &[
    ("usr/bin/awk", &["usr/bin/gawk", "usr/bin/mawk", "usr/bin/original-awk"]),
    ("usr/bin/editor", &["usr/bin/vim.basic", "usr/bin/vim.tiny", "usr/bin/nano"]),
    ("usr/bin/nawk", &["usr/bin/gawk", "usr/bin/mawk", "usr/bin/original-awk"]),
    ("usr/bin/nc", &["usr/bin/nc.openbsd", "usr/bin/nc.traditional"]),
    ("usr/bin/pager", &["usr/bin/less", "usr/bin/more"]),
    ("usr/bin/vi", &["usr/bin/vim.basic", "usr/bin/vim.tiny"]),
    ("usr/bin/which", &["usr/bin/which.debianutils", "usr/bin/which.gnu"]),
    ("usr/sbin/arptables", &["usr/sbin/arptables-nft", "usr/sbin/arptables-legacy"]),
    ("usr/sbin/arptables-restore", &["usr/sbin/arptables-nft-restore", "usr/sbin/arptables-legacy-restore"]),
    ("usr/sbin/arptables-save", &["usr/sbin/arptables-nft-save", "usr/sbin/arptables-legacy-save"]),
    ("usr/sbin/ebtables", &["usr/sbin/ebtables-nft", "usr/sbin/ebtables-legacy"]),
    ("usr/sbin/ebtables-restore", &["usr/sbin/ebtables-nft-restore", "usr/sbin/ebtables-legacy-restore"]),
    ("usr/sbin/ebtables-save", &["usr/sbin/ebtables-nft-save", "usr/sbin/ebtables-legacy-save"]),
    ("usr/sbin/ip6tables", &["usr/sbin/ip6tables-nft", "usr/sbin/ip6tables-legacy"]),
    ("usr/sbin/ip6tables-restore", &["usr/sbin/ip6tables-nft-restore", "usr/sbin/ip6tables-legacy-restore"]),
    ("usr/sbin/ip6tables-save", &["usr/sbin/ip6tables-nft-save", "usr/sbin/ip6tables-legacy-save"]),
    ("usr/sbin/iptables", &["usr/sbin/iptables-nft", "usr/sbin/iptables-legacy"]),
    ("usr/sbin/iptables-restore", &["usr/sbin/iptables-nft-restore", "usr/sbin/iptables-legacy-restore"]),
    ("usr/sbin/iptables-save", &["usr/sbin/iptables-nft-save", "usr/sbin/iptables-legacy-save"]),
];

/// Makes the links. `declared` (link to target, both without leading slash) comes before the defaults.
///
/// # Errors
/// All declared links that point at nothing in the tree, or are not below `usr`.
pub fn link(tree: &mut FileTree, declared: &BTreeMap<String, String>) -> Result<()> {
    let mut problems = Vec::new();
    for (link, target) in declared {
        let clean = |path: &str| path.trim_start_matches('/').to_owned();
        let (link, target) = (clean(link), clean(target));
        if tree.lookup(&target).is_none() {
            problems.push(format!("/{link} -> /{target}: there is no /{target} in any package"));
        } else if let Err(error) = make(tree, &link, &target) {
            problems.push(format!("/{link} -> /{target}: {error:#}"));
        }
    }
    if !problems.is_empty() {
        bail!("declared alternatives cannot be linked:\n  {}", problems.join("\n  "));
    }
    for (link, targets) in DEFAULTS {
        if tree.lookup(link).is_none()
            && let Some(target) = targets.iter().find(|target| tree.lookup(target).is_some())
        {
            make(tree, link, target)?;
        }
    }
    Ok(())
}

fn make(tree: &mut FileTree, link: &str, target: &str) -> Result<()> {
    let same = |a: &str, b: &str| a.rsplit_once('/').map(|(dir, _)| dir) == b.rsplit_once('/').map(|(dir, _)| dir);
    let text = match target.rsplit_once('/') {
        Some((_, name)) if same(link, target) => name.to_owned(),
        _ => format!("/{target}"),
    };
    tree.insert(link, Entry::symlink(text))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::link;
    use crate::tree::{Entry, FileTree, Kind};

    fn tree(paths: &[&str]) -> FileTree {
        let mut tree = FileTree::new();
        for path in paths {
            tree.insert(path, Entry::file(*b"x", 0o755)).unwrap();
        }
        tree
    }

    #[test]
    fn defaults_and_declared() {
        let mut tree = tree(&["usr/sbin/iptables-nft", "usr/sbin/iptables-legacy", "usr/bin/more", "usr/lib/x/awk"]);
        let declared = BTreeMap::from([
            ("usr/bin/awk".to_owned(), "/usr/lib/x/awk".to_owned()),
            ("/usr/sbin/iptables".to_owned(), "usr/sbin/iptables-legacy".to_owned()),
        ]);
        link(&mut tree, &declared).unwrap();
        let target = |path| match &tree.get(path)?.kind {
            Kind::Symlink(target) => Some(target.clone()),
            _ => None,
        };
        assert_eq!(target("usr/bin/awk").as_deref(), Some("/usr/lib/x/awk"));
        assert_eq!(target("usr/sbin/iptables").as_deref(), Some("iptables-legacy"));
        assert_eq!(target("usr/bin/pager").as_deref(), Some("more"));
        assert_eq!(target("usr/sbin/ebtables"), None);
    }

    #[test]
    fn a_declared_link_must_lead_somewhere() {
        let declared = BTreeMap::from([("usr/bin/awk".to_owned(), "usr/bin/gawk".to_owned())]);
        let error = link(&mut tree(&["usr/bin/mawk"]), &declared).unwrap_err().to_string();
        assert!(error.contains("/usr/bin/awk -> /usr/bin/gawk"), "{error}");
    }
}
