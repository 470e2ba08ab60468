// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload's images in containerd, under exactly the names kubelet asks for.
//!
//! `ctr images import` would send every byte through a pipe and a socket, hash it, write it, and read and hash it again to unpack
//! it. So we put the blobs where containerd keeps its content ourselves, and let `ctr images pull` adopt them from a registry on the loopback
//! address ([`registry`]); what is left is unpacking, several images at a time. `tests/run-import` measures what that is worth.
//! A blob is never trusted for lying there: indices, manifests and configurations are compared with their digests here, layers by containerd as it
//! unpacks them. A node that is no master leaves out the control plane's.
//!
//! containerd does not fsync what it unpacks: an import that a power cut stopped may leave files of zeros behind a
//! database that calls them complete. So each image gets a record of ours once it is on the disk, and what has none is
//! taken out again before the import goes on.

mod layout;
mod registry;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use profiles::node::Role;
use sha2::{Digest, Sha256};

use self::layout::{Blob, Image, Layout};
use self::registry::Registry;
use super::{CONTROL_PLANE, JOIN, containerd, services};
use crate::context::{Cx, PAYLOAD_DIR, RUN_DIR};
use crate::digest::hex;
use crate::engine::{State, Step, journal_state, was_interrupted};
use crate::files;
use crate::journal::Progress;
use crate::runner::Command;

const STORE: &str = "/var/lib/containerd";
/// Where containerd's plugin `io.containerd.content.v1.content` keeps blobs, since 1.0.
const CONTENT: &str = "/var/lib/containerd/io.containerd.content.v1.content";
/// Images that are imported and on the disk: names and digests. It goes wherever the store goes.
const IMPORTED: &str = "/var/lib/containerd/imgbuild-images.json";
/// What only masters run.
const CONTROL_PLANE_IMAGES: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// Images that are unpacked at the same time: each keeps one processor busy, and more than a few keep the disk busy.
const AT_ONCE: usize = 4;

pub(super) struct Images;

impl Step for Images {
    fn id(&self) -> &'static str {
        "images"
    }

    fn title(&self) -> &'static str {
        "importing container images"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        let state = journal_state(self, cx);
        if state != State::Done {
            return Ok(state);
        }
        // Somebody may have removed them, and there is no registry to get them back from.
        let missing = missing(cx)?;
        Ok(if missing.is_empty() { State::Done } else { State::Needed(format!("containerd has lost {missing}")) })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let layout = Layout::read(&cx.path(&format!("{PAYLOAD_DIR}/images")), |name| is_wanted(cx, name))?;
        let mut imported = read_imported(cx);
        if was_interrupted(self, cx) {
            take_back(cx, &layout, &imported)?;
        }
        let listed = listed(cx)?;
        imported.retain(|name, digest| listed.get(name) == Some(digest));
        let is_new = |image: &&Image| imported.get(&image.name) != Some(&image.target.digest());
        let new: Vec<Image> = layout.images.iter().filter(is_new).cloned().collect();
        // Before anything is unpacked: a record must not outlive what it is about.
        write_imported(cx, &imported)?;
        import(cx, &layout, &new, &mut imported)
    }

    fn verify(&self, cx: &Cx<'_>) -> Result<()> {
        let missing = missing(cx)?;
        ensure!(missing.is_empty(), "containerd does not list {missing} after the import");
        Ok(())
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        // Names and digests of manifests are all there is to say about images.
        let layout = Layout::read(&cx.path(&format!("{PAYLOAD_DIR}/images")), |name| is_wanted(cx, name));
        let mut hash = Sha256::new();
        for image in layout.map(|layout| layout.images).unwrap_or_default() {
            hash.update(format!("{} {}\n", image.name, image.target.digest()));
        }
        hex(&hash.finalize())
    }
}

/// Brings the images `new` into containerd, and records each as soon as it is on the disk.
fn import(cx: &Cx<'_>, layout: &Layout, new: &[Image], imported: &mut BTreeMap<String, String>) -> Result<()> {
    let blobs: BTreeSet<&Blob> = new.iter().flat_map(|image| image.documents.iter().chain(&image.layers)).collect();
    let total: u64 = blobs.iter().map(|blob| blob.size).sum();
    cx.say(&format!("{} images, {} MB", new.len(), total / 1_000_000));
    for blob in blobs {
        place(&cx.path(CONTENT), layout, blob).with_context(|| format!("copying {} into containerd", blob.digest()))?;
    }
    let registry = Registry::start(layout)?;
    // For every registry that a name may begin with.
    let hosts = format!("{RUN_DIR}/images");
    let file = cx.path(&format!("{hosts}/_default/hosts.toml"));
    files::write_atomic(&file, registry.hosts_toml().as_bytes(), 0o600, None)?;
    let pull = |image: &Image| {
        let args = ["-n", "k8s.io", "images", "pull", "--hosts-dir", &hosts, "--label", PINNED, &image.name];
        Command::new("ctr", args).timeout(3600)
    };
    let commands: Vec<Command> = new.iter().map(pull).collect();
    let at_once = thread::available_parallelism().map_or(1, usize::from).min(AT_ONCE);
    let (mut done, mut failed) = (0, None);
    cx.run_all(&commands, at_once, &mut |at, result| {
        let recorded = result.and_then(|_| {
            cx.host.sync(&cx.path(STORE))?;
            imported.insert(new[at].name.clone(), new[at].target.digest());
            write_imported(cx, imported)
        });
        match recorded {
            Ok(()) => {
                done += 1;
                cx.say(&format!("{} ({done} of {})", new[at].name, new.len()));
            }
            Err(error) => failed = Some(failed.take().unwrap_or(error)),
        }
    });
    failed.map_or(Ok(()), Err)
}

/// CRI's label for images that kubelet must never remove to free space (containerd 1.7 and later; others ignore it).
const PINNED: &str = "io.cri-containerd.pinned=pinned";

/// Puts a blob where containerd keeps its content, whole or not at all.
fn place(content: &Path, layout: &Layout, blob: &Blob) -> io::Result<()> {
    let to = content.join("blobs/sha256").join(&blob.sha256);
    if fs::metadata(&to).is_ok_and(|meta| meta.len() == blob.size) {
        return Ok(());
    }
    let dir = content.join("blobs/sha256");
    fs::create_dir_all(&dir)?;
    // Beside the folder, as containerd takes every name in it for a digest.
    let temporary = content.join("imgbuild-partial");
    fs::copy(layout.path(&blob.sha256), &temporary)?;
    File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, &to)?;
    File::open(&dir)?.sync_all()
}

/// Takes out what an interrupted import left. Only as long as no pod of this node can live in it.
fn take_back(cx: &Cx<'_>, layout: &Layout, imported: &BTreeMap<String, String>) -> Result<()> {
    if [CONTROL_PLANE, JOIN].iter().any(|step| cx.progress(step) != Progress::Never) {
        return Ok(());
    }
    if imported.is_empty() {
        cx.say("an earlier import was interrupted: starting over with an empty containerd");
        services::stop(cx, containerd::UNIT)?;
        files::remove(&cx.path(STORE))?;
        services::bring_up(cx, containerd::UNIT, false)?;
        return containerd::wait(cx);
    }
    cx.say(&format!("an earlier import was interrupted: {} images are there, the rest once more", imported.len()));
    // A lease keeps what was being unpacked.
    for lease in cx.run(&ctr(&["leases", "ls", "-q"]))?.stdout.lines().map(str::trim).filter(|id| !id.is_empty()) {
        cx.run(&ctr(&["leases", "delete", "--sync", lease]))?;
    }
    // CRI has given it further names: all that lead to a manifest of ours without a record.
    let whole: BTreeSet<&String> = imported.values().collect();
    let ours: BTreeSet<String> = layout.images.iter().map(|image| image.target.digest()).collect();
    for (name, digest) in listed(cx)? {
        if ours.contains(&digest) && !whole.contains(&digest) {
            cx.run(&ctr(&["images", "rm", "--sync", &name]))?;
        }
    }
    Ok(())
}

fn ctr(args: &[&str]) -> Command {
    Command::new("ctr", ["-n", "k8s.io"].iter().chain(args))
}

/// The images that this node wants and containerd does not list.
fn missing(cx: &Cx<'_>) -> Result<String> {
    let listed = cx.run(&ctr(&["images", "ls", "-q"]))?.stdout;
    let is_missing = |wanted: &&str| !listed.lines().any(|line| line.trim() == *wanted);
    Ok(wanted(cx).filter(is_missing).collect::<Vec<_>>().join(", "))
}

/// The images that containerd lists: names and the digests they lead to.
fn listed(cx: &Cx<'_>) -> Result<BTreeMap<String, String>> {
    let table = cx.run(&ctr(&["images", "ls"]))?.stdout;
    // REF TYPE DIGEST SIZE PLATFORMS LABELS
    let row = |line: &str| {
        let mut columns = line.split_whitespace();
        let name = columns.next()?;
        Some((name.to_owned(), columns.nth(1)?.to_owned()))
    };
    Ok(table.lines().filter_map(row).filter(|(_, digest)| digest.starts_with("sha256:")).collect())
}

/// The records of imported images. Unreadable ones are none: then there is more to do, never less.
fn read_imported(cx: &Cx<'_>) -> BTreeMap<String, String> {
    let text = fs::read(cx.path(IMPORTED)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn write_imported(cx: &Cx<'_>, imported: &BTreeMap<String, String>) -> Result<()> {
    let text = serde_json::to_vec(imported).context("encoding the names of images")?;
    files::write_atomic(&cx.path(IMPORTED), &text, 0o600, None)
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::rc::Rc;

    use serde_json::json;

    use super::*;
    use crate::digest::sha256;
    use crate::engine::converge;
    use crate::runner::Output;
    use crate::testing::Lab;

    const NAMES: [&str; 3] =
        ["k8s.gcr.io/kube-apiserver:v1.20.2", "k8s.gcr.io/kube-proxy:v1.20.2", "example.org/kube-scheduler:1"];

    /// Adds a blob to the payload; gives its descriptor.
    fn blob(lab: &Lab, content: &str) -> serde_json::Value {
        let sha256 = sha256(content);
        lab.write(&format!("/opt/imgbuild/images/blobs/sha256/{sha256}"), content);
        json!({"mediaType": "application/x", "digest": format!("sha256:{sha256}"), "size": content.len()})
    }

    fn manifest(lab: &Lab, config: &str, layers: &[&str]) -> serde_json::Value {
        let layers: Vec<_> = layers.iter().map(|layer| blob(lab, layer)).collect();
        blob(lab, &json!({"config": blob(lab, config), "layers": layers}).to_string())
    }

    /// A node with [`NAMES`] in its payload: the first two share a layer, the third hides behind an index that lists
    /// one for another machine, too.
    fn prepare(lab: &mut Lab, containerd: &Containerd) {
        let elsewhere = json!({"digest": format!("sha256:{}", "0a".repeat(32)), "size": 7});
        let mut targets = [
            manifest(lab, "{\"a\":1}", &["shared", "of the API server"]),
            manifest(lab, "{\"b\":1}", &["shared", "of the proxy"]),
            blob(lab, &json!({"manifests": [elsewhere, manifest(lab, "{\"c\":1}", &["hidden"])]}).to_string()),
        ];
        for (target, name) in targets.iter_mut().zip(NAMES) {
            target["annotations"] = json!({"io.containerd.image.name": name});
        }
        lab.write("/opt/imgbuild/images/index.json", &json!({"schemaVersion": 2, "manifests": targets}).to_string());
        lab.plan.payload.images = NAMES.map(str::to_owned).to_vec();
        containerd.attach(lab);
    }

    /// What containerd holds, and what it was told: images by name, with their digests.
    #[derive(Default, Clone)]
    struct Containerd {
        images: Rc<RefCell<BTreeMap<String, String>>>,
        /// As many pulls work; the next one fails.
        pulls: Rc<RefCell<Option<usize>>>,
    }

    impl Containerd {
        fn attach(&self, lab: &Lab) {
            let table = self.images.clone();
            lab.runner.on("ctr -n k8s.io images ls", move |line| {
                if line.ends_with(" -q") {
                    let names = table.borrow().keys().map(|name| format!("{name}\n")).collect();
                    return Output { stdout: names, ..Output::default() };
                }
                let rows = table
                    .borrow()
                    .iter()
                    .map(|(name, digest)| format!("{name} type {digest} 1 MiB linux/amd64 -\n"))
                    .collect::<String>();
                Output { stdout: format!("REF TYPE DIGEST SIZE PLATFORMS LABELS\n{rows}"), ..Output::default() }
            });
            let (images, left, root) = (self.images.clone(), self.pulls.clone(), lab.root());
            lab.runner.on("ctr -n k8s.io images pull", move |line| {
                let name = line.rsplit(' ').next().unwrap();
                // It finds the registry as containerd does, and believes it.
                let hosts = fs::read_to_string(root.join("run/imgbuild/images/_default/hosts.toml")).unwrap();
                let address = hosts
                    .lines()
                    .next()
                    .unwrap()
                    .trim_start_matches("server = \"http://")
                    .trim_end_matches('"')
                    .to_owned();
                let (repository, tag) = name.split_once('/').unwrap().1.rsplit_once(':').unwrap();
                let host = name.split('/').next().unwrap();
                let head = ask(&address, &format!("HEAD /v2/{repository}/manifests/{tag}?ns={host}")).0;
                let digest = head.lines().find_map(|line| line.strip_prefix("Docker-Content-Digest: ")).unwrap();
                // The record comes before the layers.
                images.borrow_mut().insert(name.to_owned(), digest.to_owned());
                let left = &mut *left.borrow_mut();
                let fails = *left == Some(0);
                *left = left.map(|left| left.saturating_sub(1));
                Output { status: fails.into(), stderr_tail: "no space left on device".into(), ..Output::default() }
            });
            let images = self.images.clone();
            lab.runner.on("ctr -n k8s.io images rm --sync", move |line| {
                images.borrow_mut().remove(line.rsplit(' ').next().unwrap()).unwrap();
                Output::default()
            });
            let images = self.images.clone();
            lab.runner.on("systemctl stop containerd", move |_| {
                images.borrow_mut().clear();
                Output::default()
            });
        }
    }

    /// Head and body of an answer.
    fn ask(address: &str, request: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        (String::from_utf8(answer[..end].to_vec()).unwrap(), answer[end + 4..].to_vec())
    }

    fn pulled(lab: &Lab) -> Vec<String> {
        let trace = lab.runner.take_trace();
        let pulls = trace.iter().filter(|line| line.contains(" images pull "));
        pulls.map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
    }

    fn content(lab: &Lab) -> BTreeSet<String> {
        let dir = lab.root().join("var/lib/containerd/io.containerd.content.v1.content/blobs/sha256");
        fs::read_dir(dir).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn each_blob_is_there_before_each_image_is_pulled_once() {
        let (mut lab, containerd) = (Lab::new(), Containerd::default());
        prepare(&mut lab, &containerd);
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        assert_eq!(pulled(&lab), NAMES);
        let content = content(&lab);
        // Three configurations, three manifests, an index, four layers.
        assert_eq!(content.len(), 11, "{content:?}");
        assert!(["shared", "of the API server", "of the proxy", "hidden"].iter().all(|layer| content.contains(*layer)));
        let mut lab = lab.reboot();
        prepare(&mut lab, &containerd);
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        assert_eq!(pulled(&lab), [""; 0]);
        // Without a registry an image that somebody removed is gone for good, unless it comes back from here.
        containerd.images.borrow_mut().remove(NAMES[1]);
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        assert_eq!(pulled(&lab), [NAMES[1]]);
        assert!(
            lab.console_lines().iter().any(|line| line.contains("containerd has lost k8s.gcr.io/kube-proxy:v1.20.2"))
        );
    }

    #[test]
    fn a_worker_gets_no_control_plane() {
        let (mut lab, containerd) = (Lab::new(), Containerd::default());
        prepare(&mut lab, &containerd);
        let masters = Images.fingerprint(&lab.cx());
        lab.plan.profile.node.roles = [Role::Worker].into();
        assert_ne!(Images.fingerprint(&lab.cx()), masters);
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        // The third one is only called like the control plane's.
        assert_eq!(pulled(&lab), NAMES[1..]);
        assert!(!content(&lab).contains("of the API server"));
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        let (mut lab, containerd) = (Lab::new(), Containerd::default());
        prepare(&mut lab, &containerd);
        let layer = blob(&lab, "hidden")["digest"].as_str().unwrap().replace("sha256:", "");
        fs::remove_file(lab.root().join(format!("opt/imgbuild/images/blobs/sha256/{layer}"))).unwrap();
        let error = format!("{:#}", Images.apply(&lab.cx()).unwrap_err());
        assert!(error.contains(&layer) && error.contains(NAMES[2]), "{error}");
        prepare(&mut lab, &containerd);
        let config = blob(&lab, "{\"a\":1}")["digest"].as_str().unwrap().replace("sha256:", "");
        lab.write(&format!("/opt/imgbuild/images/blobs/sha256/{config}"), "{\"a\":2}");
        let error = format!("{:#}", Images.apply(&lab.cx()).unwrap_err());
        assert!(error.contains("is damaged") && error.contains(&config), "{error}");
        prepare(&mut lab, &containerd);
        let hidden = manifest(&lab, "{\"c\":1}", &["hidden"])["digest"].as_str().unwrap().replace("sha256:", "");
        fs::remove_file(lab.root().join(format!("opt/imgbuild/images/blobs/sha256/{hidden}"))).unwrap();
        let error = format!("{:#}", Images.apply(&lab.cx()).unwrap_err());
        assert!(error.contains("nothing that its index lists is here") && error.contains(NAMES[2]), "{error}");
    }

    #[test]
    fn an_import_interrupted_before_its_first_image_starts_over_with_an_empty_containerd() {
        let (mut lab, containerd) = (Lab::new(), Containerd::default());
        prepare(&mut lab, &containerd);
        let cx = lab.cx();
        cx.journal.borrow_mut().fuse = Some(1);
        *containerd.pulls.borrow_mut() = Some(0);
        converge(&cx, &[Box::new(Images)]).unwrap_err();
        drop(cx);
        let mut lab = lab.reboot();
        *containerd.pulls.borrow_mut() = None;
        fs::remove_file(lab.root().join("var/lib/containerd/imgbuild-images.json")).unwrap();
        prepare(&mut lab, &containerd);
        lab.write("/var/lib/containerd/half", "zeros");
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        assert!(!lab.exists("/var/lib/containerd/half"));
        assert_eq!(lab.runner.take_trace()[0], "systemctl stop containerd");
        assert_eq!(containerd.images.borrow().len(), 3);
    }

    #[test]
    fn an_interrupted_import_keeps_what_is_on_the_disk() {
        let (mut lab, containerd) = (Lab::new(), Containerd::default());
        prepare(&mut lab, &containerd);
        let cx = lab.cx();
        *containerd.pulls.borrow_mut() = Some(1);
        cx.journal.borrow_mut().fuse = Some(1);
        converge(&cx, &[Box::new(Images)]).unwrap_err();
        drop(cx);
        // All three are listed, as containerd lists them before they are unpacked; CRI has named one once more.
        let digest = containerd.images.borrow()[NAMES[2]].clone();
        containerd.images.borrow_mut().insert("sha256:configuration".into(), digest);
        containerd.images.borrow_mut().insert("docker.io/somebody/elses:1".into(), "sha256:other".into());
        let mut lab = lab.reboot();
        *containerd.pulls.borrow_mut() = None;
        prepare(&mut lab, &containerd);
        lab.runner.answer("ctr -n k8s.io leases ls -q", 0, "lease-1\n", "");
        lab.write("/var/lib/containerd/kept", "");
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        let trace = lab.runner.take_trace();
        let has = |line: &str| trace.iter().any(|ran| ran == line);
        assert!(has("ctr -n k8s.io leases delete --sync lease-1"), "{trace:?}");
        assert!(has("ctr -n k8s.io images rm --sync sha256:configuration"), "{trace:?}");
        assert!(!has("systemctl stop containerd") && lab.exists("/var/lib/containerd/kept"));
        let pulls: Vec<&String> = trace.iter().filter(|line| line.contains(" images pull ")).collect();
        assert_eq!(pulls.len(), 2, "{pulls:?}");
        assert!(!pulls.iter().any(|line| line.ends_with(NAMES[0])));
        assert!(containerd.images.borrow().contains_key("docker.io/somebody/elses:1"));
    }

    #[test]
    fn a_pull_that_fails_says_why_and_the_others_count() {
        let (mut lab, containerd) = (Lab::new(), Containerd::default());
        prepare(&mut lab, &containerd);
        *containerd.pulls.borrow_mut() = Some(2);
        let error = format!("{:#}", Images.apply(&lab.cx()).unwrap_err());
        assert!(error.contains("no space left on device") && error.contains(NAMES[2]), "{error}");
        assert_eq!(read_imported(&lab.cx()).len(), 2);
    }

    #[test]
    fn the_registry_hands_out_what_containerd_asks_for_and_nothing_else() {
        let (mut lab, containerd) = (Lab::new(), Containerd::default());
        prepare(&mut lab, &containerd);
        let layout = Layout::read(&lab.root().join("opt/imgbuild/images"), |_| true).unwrap();
        let registry = Registry::start(&layout).unwrap();
        let hosts = registry.hosts_toml();
        let address = hosts.split('"').nth(1).unwrap().trim_start_matches("http://").to_owned();
        let digest = layout.images[0].target.digest();
        let by_tag = "/v2/kube-apiserver/manifests/v1.20.2?ns=k8s.gcr.io";
        let (head, body) = ask(&address, &format!("GET {by_tag}"));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains(&digest), "{head}");
        let found = sha256(&body);
        assert_eq!(format!("sha256:{found}"), digest);
        let (head, body) = ask(&address, &format!("HEAD {by_tag}"));
        assert!(head.contains("Content-Type: application/x") && body.is_empty(), "{head}");
        let layer = layout.images[0].layers.first().unwrap();
        let (_, body) = ask(&address, &format!("GET /v2/kube-apiserver/blobs/{}?ns=k8s.gcr.io", layer.digest()));
        assert_eq!(body.len() as u64, layer.size);
        assert!(ask(&address, "GET /v2/").0.starts_with("HTTP/1.1 200"));
        for wrong in [
            "GET /v2/kube-apiserver/manifests/v1.20.2",
            "GET /v2/kube-apiserver/manifests/v1.20.3?ns=k8s.gcr.io",
            "GET /v2/x/blobs/sha256:../../../../etc/passwd",
            "GET /etc/passwd",
            "GET",
        ] {
            assert!(ask(&address, wrong).0.starts_with("HTTP/1.1 404"), "{wrong}");
        }
        assert!(ask(&address, "POST /v2/").0.starts_with("HTTP/1.1 405"));
        drop(registry);
        assert!(TcpStream::connect(&address).is_err());
    }
}
