// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload's images in containerd, under exactly the names kubelet asks for.
//!
//! The payload is an OCI layout; `ctr` reads a tar of one from stdin, so nothing is copied to the disk in between. A node
//! that is no master gets a tar without the control plane's images: its index lists the others, and only what they are
//! made of is in it.
//! containerd does not fsync what it unpacks: an import that a power cut stopped may leave files of zeros behind a
//! database that calls them complete. So such an import starts over with an empty containerd.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use profiles::node::Role;
use profiles::version::Version;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{CONTROL_PLANE, JOIN, containerd, services};
use crate::context::{Cx, PAYLOAD_DIR};
use crate::engine::{State, Step, journal_state, was_interrupted};
use crate::files;
use crate::journal::Progress;
use crate::runner::Command;

const STORE: &str = "/var/lib/containerd";
/// What only masters run.
const CONTROL_PLANE_IMAGES: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// By which annotation of the index containerd names an image, the first one that is there.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// The label by which containerd's CRI service knows a pinned image (pkg/cri/labels).
const PINNED: &str = "io.cri-containerd.pinned=pinned";
/// An index or a manifest is never near as large.
const MANIFEST_LIMIT: u64 = 4 << 20;

pub(super) struct Images;

impl Step for Images {
    fn id(&self) -> &'static str {
        "images"
    }

    fn title(&self) -> &'static str {
        "importing container images"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        Ok(journal_state(self, cx))
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        if was_interrupted(self, cx) {
            start_over(cx)?;
        }
        let layout = cx.path(&format!("{PAYLOAD_DIR}/images"));
        let index = index(cx)?;
        let files = if cx.profile().has(Role::Master) { all_blobs(&layout)? } else { blobs_of(&layout, &index)? };
        let total: u64 = files.values().sum();
        cx.say(&format!("{} images, {} MB", wanted(cx).count(), total / 1_000_000));
        let command = Command::new("ctr", ["-n", "k8s.io", "images", "import", "-"]).timeout(3600);
        let mut feed = |stdin: &mut dyn Write| write_layout(stdin, &layout, &index, &files);
        let output = cx.run_with(&command, Some(&mut feed), &mut |line| cx.log(line))?;
        cx.expect_success(&command, output)?;
        pin(cx)
    }

    fn verify(&self, cx: &Cx<'_>) -> Result<()> {
        let listed = cx.run(&Command::new("ctr", ["-n", "k8s.io", "images", "ls", "-q"]))?.stdout;
        let is_there = |wanted: &str| listed.lines().any(|line| line.trim() == wanted);
        let missing: Vec<_> = wanted(cx).filter(|wanted| !is_there(wanted)).collect();
        ensure!(missing.is_empty(), "containerd does not list {} after the import", missing.join(", "));
        Ok(())
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        Sha256::digest(index(cx).unwrap_or_default()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Marks the images so that kubelet never deletes them, where it knows of that: in a room without a registry none comes back. An older
/// containerd takes the label and ignores it; then kubelet's configuration is another one (profiles, render/kubelet.rs).
fn pin(cx: &Cx<'_>) -> Result<()> {
    let version: Version = cx.profile().kubernetes.version.parse().context("reading the version of Kubernetes")?;
    if version.spares_pinned_images() {
        for name in wanted(cx) {
            cx.run(&Command::new("ctr", ["-n", "k8s.io", "images", "label", name, PINNED]))?;
        }
    }
    Ok(())
}

/// Empties containerd. Only as long as no pod of this node can live in it.
fn start_over(cx: &Cx<'_>) -> Result<()> {
    if [CONTROL_PLANE, JOIN].iter().any(|step| cx.progress(step) != Progress::Never) {
        return Ok(());
    }
    cx.say("an earlier import was interrupted: starting over with an empty containerd");
    services::stop(cx, containerd::UNIT)?;
    files::remove(&cx.path(STORE))?;
    services::bring_up(cx, containerd::UNIT, false)?;
    containerd::wait(cx)
}

/// Whether this node runs the image called `name`.
fn is_wanted(cx: &Cx<'_>, name: &str) -> bool {
    let own = name.strip_prefix(&cx.profile().kubernetes.image_repository).and_then(|rest| rest.strip_prefix('/'));
    let image = own.and_then(|own| own.split([':', '@']).next());
    cx.profile().has(Role::Master) || !image.is_some_and(|image| CONTROL_PLANE_IMAGES.contains(&image))
}

/// The payload's images that this node runs.
fn wanted<'a>(cx: &'a Cx<'_>) -> impl Iterator<Item = &'a str> {
    cx.plan.payload.images.iter().map(String::as_str).filter(|name| is_wanted(cx, name))
}

/// The layout's index; on a node that is no master, without what it does not run.
fn index(cx: &Cx<'_>) -> Result<Vec<u8>> {
    let text = fs::read(cx.path(&format!("{PAYLOAD_DIR}/images/index.json")));
    let text = text.context("reading index.json of the payload's images")?;
    if cx.profile().has(Role::Master) {
        return Ok(text);
    }
    let mut index: Value = serde_json::from_slice(&text).context("understanding index.json of the payload's images")?;
    let manifests = index["manifests"].as_array_mut().context("index.json of the payload's images lists no images")?;
    manifests.retain(|manifest| {
        let name = NAMES.iter().find_map(|name| manifest["annotations"][name].as_str());
        name.is_none_or(|name| is_wanted(cx, name))
    });
    serde_json::to_vec(&index).context("encoding index.json")
}

/// All blobs of the layout with their sizes, relative.
fn all_blobs(layout: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let blobs = layout.join("blobs/sha256");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&blobs).with_context(|| format!("reading {}", blobs.display()))? {
        let entry = entry.with_context(|| format!("reading {}", blobs.display()))?;
        let size = entry.metadata().with_context(|| format!("reading {}", entry.path().display()))?.len();
        found.insert(Path::new("blobs/sha256").join(entry.file_name()), size);
    }
    Ok(found)
}

/// The blobs that the images of `index` are made of.
fn blobs_of(layout: &Path, index: &[u8]) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let mut documents = vec![index.to_owned()];
    while let Some(document) = documents.pop() {
        let document: Value = serde_json::from_slice(&document).context("understanding an image's manifest")?;
        let list = |name: &str| document[name].as_array().map(Vec::as_slice).unwrap_or_default().iter();
        let parts = document.get("config").into_iter().chain(list("layers")).map(|part| (part, false));
        for (part, is_document) in list("manifests").map(|part| (part, true)).chain(parts) {
            let digest = part["digest"].as_str().context("an image's manifest names a blob without its digest")?;
            let hex = digest.strip_prefix("sha256:").filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
            let relative = Path::new("blobs/sha256").join(hex.with_context(|| format!("{digest} is no sha256"))?);
            let path = layout.join(&relative);
            let size = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len();
            // An index of several platforms may list manifests that are not its image's; here every one is there.
            if found.insert(relative, size).is_none() && is_document {
                let text = files::read_limited(&path, MANIFEST_LIMIT);
                documents.push(text.with_context(|| format!("reading {}", path.display()))?);
            }
        }
    }
    Ok(found)
}

/// A tar of the layout; the small files that explain the rest come first.
fn write_layout(out: &mut dyn Write, layout: &Path, index: &[u8], blobs: &BTreeMap<PathBuf, u64>) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    let header = |size: u64| {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        header
    };
    let version = fs::read(layout.join("oci-layout"))?;
    tar.append_data(&mut header(version.len() as u64), "oci-layout", version.as_slice())?;
    tar.append_data(&mut header(index.len() as u64), "index.json", index)?;
    for (path, size) in blobs {
        tar.append_data(&mut header(*size), path, File::open(layout.join(path))?)?;
    }
    tar.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::testing::Lab;

    fn lab() -> Lab {
        let mut lab = Lab::new();
        prepare(&mut lab);
        lab
    }

    fn prepare(lab: &mut Lab) {
        lab.write("/opt/imgbuild/images/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        lab.write("/opt/imgbuild/images/index.json", "{}");
        lab.write(&format!("/opt/imgbuild/images/blobs/sha256/{}", "b".repeat(64)), "layer");
        lab.write(&format!("/opt/imgbuild/images/blobs/sha256/{}", "a".repeat(64)), "manifest");
        lab.plan.payload.images = vec!["k8s.gcr.io/pause:3.2".into()];
        lab.runner.answer("ctr -n k8s.io images ls -q", 0, "k8s.gcr.io/pause:3.2\nother\n", "");
    }

    #[test]
    fn streams_the_layout_once() {
        let lab = lab();
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        let fed = lab.runner.fed.borrow().clone();
        let mut archive = tar::Archive::new(fed.as_slice());
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        let blob = |letter: &str| format!("blobs/sha256/{}", letter.repeat(64));
        assert_eq!(names, ["oci-layout".to_owned(), "index.json".to_owned(), blob("a"), blob("b")]);
        assert_eq!(lab.runner.take_trace(), ["ctr -n k8s.io images import -", "ctr -n k8s.io images ls -q"]);
        let mut lab = lab.reboot();
        prepare(&mut lab);
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        assert!(lab.runner.take_trace().is_empty());
    }

    #[test]
    fn images_are_pinned_where_kubelet_knows_of_it() {
        let mut lab = lab();
        lab.plan.profile.kubernetes.version = "1.23.0".into();
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        let pin = "ctr -n k8s.io images label k8s.gcr.io/pause:3.2 io.cri-containerd.pinned=pinned";
        assert_eq!(lab.runner.take_trace()[1], pin);
    }

    #[test]
    fn a_worker_gets_no_control_plane() {
        let mut lab = Lab::new();
        let blob = |letter: &str| letter.repeat(64);
        let digest = |letter: &str| format!("sha256:{}", blob(letter));
        let image = |name: &str, letter: &str| serde_json::json!({"digest": digest(letter), "annotations": {"io.containerd.image.name": name}});
        let manifest = |config: &str, layers: &[&str]| {
            let layers: Vec<_> = layers.iter().map(|letter| serde_json::json!({"digest": digest(letter)})).collect();
            serde_json::json!({"config": {"digest": digest(config)}, "layers": layers}).to_string()
        };
        let names =
            ["k8s.gcr.io/kube-apiserver:v1.20.2", "k8s.gcr.io/kube-proxy:v1.20.2", "example.org/kube-scheduler:1"];
        let write =
            |letter: &str, text: &str| lab.write(&format!("/opt/imgbuild/images/blobs/sha256/{}", blob(letter)), text);
        // 0: only the API server's; 1: a layer that both share; 2, 3: kube-proxy's.
        ["0", "1", "2", "3"].iter().for_each(|letter| write(letter, letter));
        write("a", &manifest("0", &["0", "1"]));
        write("b", &manifest("2", &["1", "3"]));
        // The third one hides behind an index, and only its name is like the control plane's.
        write("c", &serde_json::json!({"manifests": [{"digest": digest("d")}]}).to_string());
        write("d", &manifest("2", &["1"]));
        lab.write("/opt/imgbuild/images/oci-layout", "{}");
        let all = [image(names[0], "a"), image(names[1], "b"), image(names[2], "c")];
        let index = serde_json::json!({"schemaVersion": 2, "manifests": all}).to_string();
        lab.write("/opt/imgbuild/images/index.json", &index);
        lab.plan.payload.images = names.map(str::to_owned).to_vec();
        lab.runner.answer("ctr -n k8s.io images ls -q", 0, &names[1..].join("\n"), "");
        let masters = Images.fingerprint(&lab.cx());
        lab.plan.profile.node.roles = [Role::Worker].into();
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        let fed = lab.runner.fed.borrow().clone();
        let mut archive = tar::Archive::new(fed.as_slice());
        let mut streamed = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().file_name().unwrap().to_string_lossy().into_owned();
            if name == "index.json" {
                let index: Value = serde_json::from_reader(&mut entry).unwrap();
                assert_eq!(index["manifests"].as_array().unwrap()[..], all[1..]);
                assert_eq!(index["schemaVersion"], 2);
            }
            streamed.push(name);
        }
        let mut expected = vec!["oci-layout".to_owned(), "index.json".to_owned()];
        expected.extend(["1", "2", "3", "b", "c", "d"].map(blob));
        assert_eq!(streamed, expected);
        assert!(lab.console_lines().iter().any(|line| line.contains("2 images")));
        assert_ne!(Images.fingerprint(&lab.cx()), masters);
        // A blob that is missing is named, not left out.
        std::fs::remove_file(lab.root().join(format!("opt/imgbuild/images/blobs/sha256/{}", blob("3")))).unwrap();
        let error = Images.apply(&lab.cx()).unwrap_err();
        assert!(format!("{error:#}").contains(&blob("3")));
    }

    #[test]
    fn an_interrupted_import_starts_over_with_an_empty_containerd() {
        let lab = lab();
        let cx = lab.cx();
        cx.journal.borrow_mut().fuse = Some(1);
        converge(&cx, &[Box::new(Images)]).unwrap_err();
        drop(cx);
        let mut lab = lab.reboot();
        prepare(&mut lab);
        lab.write("/var/lib/containerd/half", "zeros");
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        assert!(!lab.exists("/var/lib/containerd/half"));
        let trace = lab.runner.take_trace();
        assert_eq!(trace[0], "systemctl stop containerd");
        assert_eq!(trace.iter().filter(|line| line.contains("images import")).count(), 1);
    }

    #[test]
    fn an_image_that_is_not_listed_fails_by_name() {
        let lab = lab();
        lab.runner.answer("ctr -n k8s.io images ls -q", 0, "other\n", "");
        let (step, failure) = converge(&lab.cx(), &[Box::new(Images)]).unwrap_err();
        assert_eq!((step, failure.exit.code()), ("images", 30));
        assert!(failure.reason.contains("k8s.gcr.io/pause:3.2"));
    }
}
