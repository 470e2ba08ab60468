// SPDX-License-Identifier: MIT OR Apache-2.0

//! The bundle: what a node needs beside an operating system that is installed already, as one archive with the seeds of its
//! nodes. Layout and use: docs/bundle.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiles::bundle::{self, Bundle, BundleNode, PayloadKind};
use rayon::prelude::*;

use super::{Bench, NodeKind, firstboot, node, os, payload};
use crate::error::Failure;
use crate::output::{archive, sums};
use crate::pki::Pki;
use crate::signing::Signer;
use crate::store::Digest;
use crate::tree::{Content, Entry, FileTree, Kind, overlay};

const INSTALL: &str = include_str!("bundle/install");
const UNINSTALL: &str = include_str!("bundle/uninstall");

/// Programs that an image has in its root and that a host gets from the payload; see [`programs_of_root`].
pub(super) const PROGRAMS_OF_ROOT: [&str; 6] =
    ["containerd", "containerd-shim-runc-v2", "ctr", "etcd", "etcdctl", "runc"];
const OF_ETCD: [&str; 2] = ["etcd", "etcdctl"];
/// Where a root has programs.
const PROGRAMS: [&str; 4] = ["usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin"];
/// Where a root has systemd's units.
const UNITS: &str = "usr/lib/systemd/system";

/// What of the overlays is as good on a host, and where it goes there. A host's own settings of journald, logind and the
/// like are not ours.
const HOST_FILES: [(&str, &str); 5] = [
    ("usr/lib/systemd/system/firstboot.service", "etc/systemd/system/firstboot.service"),
    ("usr/lib/systemd/network/05-kubernetes.link", "etc/systemd/network/05-kubernetes.link"),
    ("usr/lib/systemd/network/05-kubernetes.network", "etc/systemd/network/05-kubernetes.network"),
    ("usr/lib/tmpfiles.d/imgbuild.conf", "etc/tmpfiles.d/imgbuild.conf"),
    ("usr/lib/tmpfiles.d/imgbuild-kylin.conf", "etc/tmpfiles.d/imgbuild-kylin.conf"),
];

/// Name of a cluster's bundle for the architecture of its nodes.
pub fn file_name(bench: &Bench<'_>) -> String {
    format!("imgbuild-{}-{}.tar.zst", bench.cluster.cluster.name, bundle::folder(bench.architecture()))
}

/// Writes the bundle with the seeds of `nodes` to `path`, signed if there is a `signer`.
///
/// # Errors
/// As its parts; too little free space; failing I/O. Nothing is left at `path` then.
pub fn bundle(bench: &Bench<'_>, pki: &Pki, nodes: &[String], signer: Option<&Signer>, path: &Path) -> Result<PathBuf> {
    let tree = tree(bench, pki, nodes, signer).context("assembling the bundle")?;
    archive::write(&tree, bench.store, bench.sources.epoch, bench.jobs, path)?;
    Ok(path.to_owned())
}

/// What is in the archive.
fn tree(bench: &Bench<'_>, pki: &Pki, nodes: &[String], signer: Option<&Signer>) -> Result<FileTree> {
    let folder = bundle::folder(bench.architecture());
    let mut tree = FileTree::new();
    tree.insert("install", Entry::file(INSTALL.as_bytes(), 0o755))?;
    tree.insert("uninstall", Entry::file(UNINSTALL.as_bytes(), 0o755))?;
    tree.insert(&format!("{folder}/firstboot"), Entry::file(firstboot(bench.architecture())?, 0o755))?;
    let mut index = Bundle {
        schema: bundle::SCHEMA,
        cluster: bench.cluster.cluster.name.clone(),
        cluster_id: pki.cluster_id(),
        architecture: bench.architecture(),
        nodes: Vec::new(),
        signing_key: bench.cluster.cluster.signing_key.map(|key| key.to_string()),
    };
    tree.insert(&format!("{folder}/{}", bundle::SEEDS), Entry::dir(0o700))?;
    let mut kinds = BTreeSet::new();
    for name in nodes {
        let seed = node::seed(bench.cluster, name, pki)?;
        let payload = PayloadKind::of(&seed.profile);
        kinds.insert(payload);
        index.nodes.push(BundleNode { name: name.clone(), payload });
        let seeds = format!("{folder}/{}/{name}", bundle::SEEDS);
        tree.insert(&seeds, Entry::dir(0o700))?;
        for (file, entry) in node::seed_tree(&seed)?.below("") {
            tree.insert(&format!("{seeds}/{file}"), entry.clone())?;
        }
    }
    for kind in kinds {
        let of = || format!("the payload of {kind} nodes");
        for (path, entry) in host_payload(bench, kind).with_context(of)?.below("") {
            tree.insert(&format!("{folder}/{kind}/{path}"), entry.clone()).with_context(of)?;
        }
    }
    let mut index = serde_json::to_vec_pretty(&index).context("describing the bundle")?;
    index.push(b'\n');
    tree.insert(&format!("{folder}/{}", bundle::INDEX), Entry::file(index, 0o644))?;
    let digests = digests(bench, &tree)?;
    link_equal(&mut tree, &digests);
    let (list, text) = (bundle::sums(bench.architecture()), sums::text(&digests));
    if let Some(signer) = signer {
        let signature = sums::sign(signer, &bench.cluster.cluster.name, &list, &text);
        tree.insert(&sums::signature_of(&list), Entry::file(signature.into_bytes(), 0o600))?;
    }
    tree.insert(&list, Entry::file(text.into_bytes(), 0o600))?;
    let top = format!("imgbuild-{}", bench.cluster.cluster.name);
    let mut whole = FileTree::new();
    whole.insert(&top, Entry::dir(0o700))?;
    for (path, entry) in tree.below("") {
        let mut entry = entry.clone();
        if let Kind::HardLink(target) = &mut entry.kind {
            *target = format!("{top}/{target}");
        }
        whole.insert(&format!("{top}/{path}"), entry)?;
    }
    Ok(whole)
}

/// Programs of the root that nodes of a kind get from their bundle.
pub(super) fn programs_of_root(kind: NodeKind) -> &'static [&'static str] {
    match kind {
        NodeKind::Pods => &PROGRAMS_OF_ROOT,
        NodeKind::Etcd => &OF_ETCD,
    }
}

/// The payload with what an image has in its root: regular files only, so that a list of checksums says all of it.
fn host_payload(bench: &Bench<'_>, kind: PayloadKind) -> Result<FileTree> {
    let node_kind = match kind {
        PayloadKind::Pods => NodeKind::Pods,
        PayloadKind::Etcd => NodeKind::Etcd,
    };
    let payload = payload::files(bench, node_kind)?;
    let root = os::root(bench, node_kind)?.tree;
    let mut tree = FileTree::new();
    for (path, entry) in payload.below("").filter(|(_, entry)| entry.kind != Kind::Dir) {
        let content = payload.content(path).with_context(|| format!("{path} is neither a file nor leads to one"))?;
        tree.insert(path, plain(content.clone(), is_executable(&payload, path, entry)))?;
    }
    for name in programs_of_root(node_kind) {
        let found = PROGRAMS.iter().find_map(|folder| root.content(&format!("{folder}/{name}")));
        // One that the root lacks is the host's to have; `install` says so.
        if let Some(content) = found {
            tree.insert(&format!("bin/{name}"), plain(content.clone(), true))?;
        }
    }
    for (to, content) in host_files(bench, kind, &root)? {
        tree.insert(&format!("{}/{to}", bundle::HOST_FILES), plain(content, false))?;
    }
    Ok(tree)
}

/// Files that are copied to `/` of the host.
fn host_files(bench: &Bench<'_>, kind: PayloadKind, root: &FileTree) -> Result<BTreeMap<String, Content>> {
    let mut files = BTreeMap::new();
    for (from, to) in HOST_FILES {
        let wanted = kind == PayloadKind::Pods || !from.contains("kube");
        if let Some(content) = root.content(from).filter(|_| wanted) {
            files.insert(to.to_owned(), content.clone());
        }
    }
    if kind == PayloadKind::Etcd {
        return Ok(files);
    }
    let own = overlay::overlay("bundle")?;
    let own = own.below("").filter_map(|(path, _)| Some((path.to_owned(), own.content(path)?.clone())));
    files.extend(own);
    // Its package's, whose scripts and dependencies stay behind; a released one comes without.
    let unit = format!("{UNITS}/containerd.service");
    let content = match root.content(&unit) {
        Some(content) => content.clone(),
        None => {
            overlay::overlay("containerd")?.content(&unit).cloned().context("the overlay `containerd` has a unit")?
        }
    };
    let text = String::from_utf8(content.read(bench.store)?).context("containerd.service is not UTF-8")?;
    if !text.lines().any(|line| line.trim() == "ExecStart=/usr/bin/containerd") {
        return Err(Failure::user("containerd.service of the root does not start /usr/bin/containerd")
            .hint("a host has it there: bring a unit with `ExecStart=/usr/bin/containerd` as an input of kind \"file\"")
            .into());
    }
    files.insert("etc/systemd/system/containerd.service".to_owned(), content);
    Ok(files)
}

fn is_executable(tree: &FileTree, path: &str, entry: &Entry) -> bool {
    let mode = match entry.kind {
        Kind::File(_) => entry.mode,
        _ => tree.lookup(path).map_or(0, |(_, file)| file.mode),
    };
    mode & 0o100 != 0
}

fn plain(content: Content, executable: bool) -> Entry {
    Entry::new(Kind::File(content), if executable { 0o755 } else { 0o644 })
}

/// SHA-256 of every file.
fn digests(bench: &Bench<'_>, tree: &FileTree) -> Result<BTreeMap<String, Digest>> {
    let file = |(path, entry)| match entry {
        &Entry { kind: Kind::File(ref content), .. } => Some((path, content)),
        _ => None,
    };
    let files: Vec<(&str, &Content)> = tree.iter().filter_map(file).collect();
    files
        .into_par_iter()
        .map(|(path, content)| {
            let read = Digest::of_reader(&mut content.reader(bench.store)?);
            let (digest, _) = read.with_context(|| format!("reading {path}"))?;
            Ok((path.to_owned(), digest))
        })
        .collect()
}

/// Files of the same content and mode become names of one: firstboot is in every payload. Seeds stay alone, as whoever has
/// one may change it.
fn link_equal(tree: &mut FileTree, digests: &BTreeMap<String, Digest>) {
    let mut first: BTreeMap<(Digest, u16), &str> = BTreeMap::new();
    for (path, digest) in digests {
        if let Some(entry) = tree.get_mut(path).filter(|entry| entry.mode != 0o600) {
            match first.get(&(*digest, entry.mode)) {
                Some(target) => entry.kind = Kind::HardLink((*target).to_owned()),
                None => _ = first.insert((*digest, entry.mode), path),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Output};

    use super::*;
    use crate::assemble::testing::Lab;

    #[test]
    fn equal_files_are_names_of_one_but_seeds_stay_alone() {
        let lab = Lab::loong64();
        let mut tree = FileTree::new();
        for (path, text, mode) in [
            ("loong64/etcd/bin/firstboot", "same", 0o755),
            ("loong64/firstboot", "same", 0o755),
            ("loong64/pods/data", "same", 0o644),
            ("loong64/seeds/a/user-data", "same", 0o600),
            ("loong64/seeds/b/user-data", "same", 0o600),
        ] {
            tree.insert(path, Entry::file(text.as_bytes(), mode)).unwrap();
        }
        let digests = digests(&lab.bench(), &tree).unwrap();
        link_equal(&mut tree, &digests);
        let links: Vec<&str> =
            tree.iter().filter(|(_, entry)| matches!(entry.kind, Kind::HardLink(_))).map(|(path, _)| path).collect();
        assert_eq!(links, ["loong64/firstboot"]);
        let same = "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5";
        let text = sums::text(&digests);
        assert_eq!(text.lines().nth(1).unwrap(), format!("{same}  loong64/firstboot"));
        assert_eq!(text.lines().count(), 5, "links too");
    }

    /// `./install` on a machine that `uname` says is another one.
    fn on(machine: &str, release: &str, script: &str, arguments: &[&str]) -> Output {
        let dir = tempfile::tempdir().unwrap();
        let program = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let uname = format!("#!/bin/sh\n[ \"$1\" = -m ] && echo {machine} || echo {release}\n");
        program("path/uname", &uname);
        for folder in ["amd64", "loong64"] {
            program(&format!("bundle/{folder}/firstboot"), "#!/bin/sh\necho \"$0: $*\"\n");
        }
        let script = program("bundle/script", script);
        let path = format!("{}:/usr/bin:/bin", dir.path().join("path").display());
        Command::new(script).args(arguments).env("PATH", path).output().unwrap()
    }

    #[test]
    fn the_scripts_pick_the_half_of_the_machine() {
        for (machine, release, folder) in [
            ("x86_64", "3.10.0", "amd64"),
            ("loongarch64", "6.6.0-32.7.v2505.ky11", "loong64"),
            ("loongarch64", "5.19.0", "loong64"),
        ] {
            let output = on(machine, release, INSTALL, &["--profile", "a b"]);
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(said, format!("{folder}/firstboot: host-install --bundle . --profile a b\n"));
            let said = String::from_utf8(on(machine, release, UNINSTALL, &["--yes"]).stdout).unwrap();
            assert_eq!(said, format!("{folder}/firstboot: host-uninstall --yes\n"));
        }
        for (machine, release, why) in [
            ("loongarch64", "4.19.90-52.22.v2207.ky10.loongarch64", "os.world: kernel 4.19.90"),
            ("loongarch64", "5.10.0", "os.world: kernel 5.10.0"),
            ("aarch64", "6.6.0", "os.arch: this bundle has nothing for aarch64"),
        ] {
            let output = on(machine, release, INSTALL, &[]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), said.contains(why)), (Some(20), true), "{said}");
        }
    }

    /// What is taken from the overlays is there, and does not follow a host's own settings.
    #[test]
    fn host_files_are_in_the_overlays() {
        let (common, kylin) = (overlay::overlay("common").unwrap(), overlay::overlay("kylin").unwrap());
        for (from, to) in HOST_FILES {
            assert!(common.content(from).or(kylin.content(from)).is_some(), "{from}");
            assert!(to.starts_with("etc/"), "{to}");
        }
    }
}
