// SPDX-License-Identifier: MIT OR Apache-2.0

//! `profiles/upstream-ha` with stand-ins for everything that upstream publishes, from hosts with the layout of the real
//! ones: what is refused, locked, fetched and missed; and, with a Debian mirror (`tests/run-upstream`), every node.
//! Nothing is booted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use imgbuild_tests::archive::{Package, SUITE};
use imgbuild_tests::archive_room::Room;
use imgbuild_tests::build::{binary, folder, users_store};
use imgbuild_tests::cli::{Outcome, check_store, code, files_below, sha256};
use imgbuild_tests::disk::{cat, cat_bytes, extract, listing, partitions, read_fat};
use imgbuild_tests::stand_in::program;
use imgbuild_tests::tool::{run, tool};
use imgbuild_tests::upstream::{Upstream, pins};
use serde_json::{Value, json};

const CLUSTER: &str = include_str!("../../profiles/upstream-ha/cluster.toml");
/// Debian's suites there.
const SUITES: &str = "suites = [\"bookworm\", \"bookworm-security\"]";

/// What of the environment of whoever runs the test would change what is done.
const OTHERS: [&str; 4] = ["DOCKER_CONFIG", "IMGBUILD_MIRROR", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"];

/// A folder with the cluster, the hosts of upstream, and an archive that has packages of all the names that the root
/// wants, which are empty.
struct Place {
    room: Room,
    upstream: Upstream,
}

impl Place {
    fn new() -> Self {
        let table: toml::Table = CLUSTER.parse().unwrap();
        let names = table["os"]["packages"].as_array().unwrap().iter();
        let packages: Vec<Package> = names.map(|name| Package::new(name.as_str().unwrap(), 10)).collect();
        Self { room: Room::new(&packages), upstream: Upstream::new(CLUSTER) }
    }

    /// The cluster file is this one from now on, but for the suite.
    fn cluster(&self, text: &str) {
        assert_eq!(text.matches(SUITES).count(), 1, "{text}");
        let text = text.replace(SUITES, &format!("suites = [{SUITE:?}]"));
        fs::write(self.room.path("cluster/cluster.toml"), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        let mut command = self.room.command(arguments[0]);
        command.args(&arguments[1..]).args(self.upstream.mirrors()).env("HOME", self.room.folder());
        for name in OTHERS {
            command.env_remove(name);
        }
        Outcome::of(&mut command)
    }

    /// Locking fails, and says all this.
    fn is_refused(&self, said: &[String]) {
        let parts: Vec<&str> = said.iter().map(String::as_str).collect();
        self.run(&["lock"]).fails(code::VERIFICATION, &parts);
        self.room.nothing_is_half_made();
    }

    fn lock(&self) -> String {
        fs::read_to_string(self.room.path("cluster/imgbuild.lock")).unwrap()
    }
}

/// A cluster file without one of its images.
fn without(cluster: &str, reference: &str) -> String {
    let line = format!("  \"{reference}\",\n");
    assert_eq!(cluster.matches(&line).count(), 1, "{reference} is an image of the cluster file");
    cluster.replace(&line, "")
}

#[test]
fn what_upstream_publishes_is_locked_fetched_and_complete() {
    let mut place = Place::new();

    // The file as it is shipped takes the real releases, and nothing else.
    place.cluster(CLUSTER);
    let real = pins(CLUSTER);
    let said = real.iter().flat_map(|pin| {
        [
            format!("input `{}`: {} is not what it is said to be:", pin.input, pin.url),
            format!("sha256 {} by the cluster file, which is not so", pin.sha256),
            format!("sha256 {} is what came (", place.upstream.sha256(&pin.url)),
        ]
    });
    place.is_refused(&said.collect::<Vec<_>>());

    // What is beside a file counts as much: each project's own list, of another file.
    let pinned = place.upstream.pinned(CLUSTER);
    place.cluster(&pinned);
    let pins = pins(&pinned);
    let (mut said, mut lists) = (vec![], vec![]);
    let another = "ab".repeat(32);
    for pin in &pins {
        for list in &pin.checksums {
            let text = String::from_utf8(place.upstream.file(list).to_vec()).unwrap();
            assert_eq!(text.matches(&pin.sha256).count(), 1, "{list}: {text}");
            place.upstream.publish(list, text.replace(&pin.sha256, &another));
            said.push(format!("sha256 {another} by {list}, which is not so"));
            lists.push((list.clone(), text));
        }
    }
    assert_eq!(lists.len(), pins.len() - 1, "all but Calico's manifest have one");
    place.is_refused(&said);
    for (list, text) in lists {
        place.upstream.publish(&list, text);
    }

    // Now everything is as it should be.
    let outcome = place.run(&["lock"]);
    assert!(!outcome.succeeds().stderr.contains("only the connection vouches"), "{outcome}");
    let lock = place.lock();
    assert!(!lock.contains("127.0.0.1"), "a lock is independent of mirrors:\n{lock}");
    for pin in &pins {
        let size = place.upstream.file(&pin.url).len();
        let line = format!("path = \"{}\", size = {size}, sha256 = \"{}\"", pin.url, pin.sha256);
        assert!(lock.contains(&line), "{line} wanted in\n{lock}");
    }
    let digests = place.upstream.digests();
    for (reference, digest) in &digests {
        let hash = digest.strip_prefix("sha256:").unwrap();
        assert!(lock.contains(&format!("name = \"{reference}\"")), "{reference} wanted in\n{lock}");
        assert!(lock.contains(hash), "{hash} of {reference} wanted in\n{lock}");
    }

    // The machine that fetches is another one; after that, nobody is asked.
    let store = place.room.path("store");
    fs::remove_dir_all(&store).unwrap();
    place.run(&["fetch"]).succeeds();
    check_store(&store);
    for pin in &pins {
        assert!(store.join("objects").join(&pin.sha256[..2]).join(&pin.sha256[2..]).exists(), "{pin:?}");
    }
    place.run(&["fetch", "--offline"]).succeeds();
    place.run(&["lock", "--check"]).succeeds();
    assert_eq!(place.lock(), lock);

    is_complete(&place, &pinned, &digests);
    assert_eq!(place.lock(), lock, "to ask for images locks nothing");
}

/// All images are there that a node will ask for, for its machine; and whichever is taken away is missed, it alone.
fn is_complete(place: &Place, cluster: &str, digests: &BTreeMap<String, String>) {
    let outcome = place.run(&["images", "--json", "--offline"]);
    let report: Value = serde_json::from_str(&outcome.succeeds().stdout).unwrap();
    let image = |image: &Value| {
        assert_eq!(image["state"], "present", "{image}");
        let manifest = image["from"]["manifest"].as_str().unwrap();
        (image["reference"].as_str().unwrap().to_owned(), format!("sha256:{manifest}"))
    };
    let found: BTreeMap<String, String> = report["images"].as_array().unwrap().iter().map(image).collect();
    assert_eq!(&found, digests);
    for reference in place.upstream.images() {
        place.cluster(&without(cluster, reference));
        let outcome = place.run(&["images"]);
        outcome.fails(code::USER, &["1 of the images that nodes will ask for are not there"]);
        assert!(outcome.stdout.contains(&format!("MISSING {reference}\n")), "{outcome}");
        assert_eq!(outcome.stdout.matches("MISSING ").count(), 1, "{outcome}");
    }
}

#[test]
#[ignore = "wants a Debian mirror, and minutes: tests/run-upstream"]
fn stand_ins_of_upstream_build_every_node() {
    let dir = tempfile::tempdir_in(folder()).unwrap();
    let (cluster, out) = (dir.path().join("cluster"), dir.path().join("out"));
    fs::create_dir(&cluster).unwrap();
    let upstream = Upstream::new(CLUSTER);
    // Debian's packages come from where this machine's do.
    let debian = std::env::var("IMGBUILD_MIRROR").unwrap_or_default();
    let debian = debian.split_whitespace().flat_map(|mirror| ["--mirror".to_owned(), mirror.to_owned()]);
    let mirrors: Vec<String> = debian.chain(upstream.mirrors()).collect();
    let imgbuild = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).args(&mirrors).arg("--cluster").arg(&cluster).arg("--out").arg(&out);
        command.arg("--store").arg(users_store()).current_dir(dir.path());
        for name in OTHERS {
            command.env_remove(name);
        }
        Outcome::of(&mut command)
    };
    let write = |text: &str| fs::write(cluster.join("cluster.toml"), text).unwrap();

    // The one command that wants the internet.
    let pinned = upstream.pinned(CLUSTER);
    write(&pinned);
    imgbuild(&["fetch"]).succeeds();
    let digests = upstream.digests();

    // A build would not be complete without any one image.
    let missed = upstream.images().iter().find(|image| image.contains("/kube-controllers:")).unwrap().clone();
    write(&without(&pinned, &missed));
    imgbuild(&["lock"]).succeeds();
    let said = format!("image `{missed}` is not in the payload, but the manifest 10-calico.yaml");
    imgbuild(&["build", "--offline", "--profile", "master-1"]).fails(code::VERIFICATION, &[&said]);
    assert_eq!(files_below(&out), [""; 0].map(PathBuf::from));
    write(&pinned);
    imgbuild(&["lock"]).succeeds();

    // From here on nobody is there to be asked.
    drop(upstream);
    imgbuild(&["build", "--offline", "--all"]).succeeds();
    let table: toml::Table = pinned.parse().unwrap();
    for node in table["node"].as_array().unwrap() {
        let image = out.join(format!("{}.img", node["name"].as_str().unwrap()));
        assert!(image.exists(), "{}", image.display());
    }
    let image = out.join("master-1.img");
    is_a_disk_that_boots(&image);
    has_root(&extract(&image, "root-a", &dir.path().join("root.squashfs")));
    let payload = extract(&image, "payload-a", &dir.path().join("payload.squashfs"));
    has_payload(&payload, &dir.path().join("payload"), &table, &digests);
    let payload = extract(&out.join("etcd-1.img"), "payload-a", &dir.path().join("etcd.squashfs"));
    let paths: BTreeSet<String> = listing(&payload).into_iter().map(|(path, _)| path).collect();
    let own = ["", "bin", "bin/firstboot", "payload.json"].map(str::to_owned);
    assert_eq!(paths, BTreeSet::from(own), "an etcd member runs no pods");

    // What it was made from can be read off it.
    let bom = fs::read_to_string(out.join("upstream-ha.cdx.json")).unwrap();
    for pin in pins(&pinned) {
        assert!(bom.contains(&pin.sha256), "{} is not in the bill of materials", pin.input);
    }
}

fn is_a_disk_that_boots(image: &Path) {
    let verdict = run(tool("sgdisk").arg("-v").arg(image));
    assert!(verdict.contains("No problems found"), "{verdict}");
    let names: Vec<String> = partitions(image).into_iter().map(|partition| partition.name).collect();
    assert_eq!(names, ["ESP", "root-a", "root-b", "payload-a", "payload-b", "CIDATA", "data"]);
    // Both are programs for firmware.
    for file in ["EFI/BOOT/BOOTX64.EFI", "imgbuild/a/vmlinuz"] {
        assert!(read_fat(image, "ESP", file).starts_with(b"MZ"), "{file}");
    }
    let entry = String::from_utf8(read_fat(image, "ESP", "loader/entries/imgbuild-a+3.conf")).unwrap();
    assert!(entry.contains("net.ifnames=0"), "{entry}");
}

/// The root is Debian's, with the released programs where Debian's packages would have theirs.
fn has_root(root: &Path) {
    let files = listing(root);
    let line = |path: &str| files.iter().find(|(found, _)| found == path).map(|(_, line)| line.as_str());
    for name in ["containerd", "containerd-shim-runc-v2", "ctr", "etcd", "etcdctl", "runc"] {
        let path = format!("usr/bin/{name}");
        assert!(cat_bytes(root, &path) == program(name), "{path} is not what was released");
        assert!(line(&path).unwrap().starts_with("-rwxr-xr-x 0/0 "), "{:?}", line(&path));
    }
    for path in ["usr/bin/etcdutl", "usr/bin/README.md"] {
        assert_eq!(line(path), None, "what no `members` name");
    }
    for path in ["usr/lib/systemd/systemd", "usr/sbin/haproxy", "usr/sbin/keepalived", "usr/bin/curl"] {
        assert!(line(path).is_some(), "the root lacks {path}");
    }
    // No package brings the unit or the user.
    let unit = cat(root, "usr/lib/systemd/system/containerd.service");
    assert!(unit.lines().any(|line| line == "ExecStart=/usr/bin/containerd"), "{unit}");
    let passwd = cat(root, "etc/passwd");
    assert!(passwd.contains("\netcd:x:989:989:"), "{passwd}");
    assert!(line("var/lib/etcd").unwrap().starts_with("drwx------ 989/989 "), "{:?}", line("var/lib/etcd"));
}

/// The payload has the released programs, the manifest set to the cluster, and each image as it is in its registry.
fn has_payload(payload: &Path, folder: &Path, cluster: &toml::Table, digests: &BTreeMap<String, String>) {
    run(tool("unsquashfs").args(["-quiet", "-no-progress", "-dest"]).arg(folder).arg(payload));
    let read = |path: &str| fs::read(folder.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    for name in ["kubeadm", "kubelet", "kubectl", "crictl"] {
        assert!(read(&format!("bin/{name}")) == program(name), "{name} is not what was released");
    }
    for name in ["bridge", "host-local", "loopback", "portmap"] {
        assert!(read(&format!("cni/bin/{name}")) == program(name), "{name} is not what was released");
    }
    let manifest = String::from_utf8(read("manifests/10-calico.yaml")).unwrap();
    let subnet = cluster["network"]["pod_subnets"][0].as_str().unwrap();
    assert!(manifest.contains(subnet) && manifest.contains("calico/node:v"), "{manifest}");
    let description: Value = serde_json::from_slice(&read("payload.json")).unwrap();
    assert_eq!(description["kubernetes"], format!("v{}", cluster["kubernetes"]["version"].as_str().unwrap()));
    assert_eq!(description["containerd"].as_str(), cluster["containerd"]["version"].as_str());
    assert_eq!(description["images"], json!(digests.keys().collect::<Vec<_>>()));

    let index: Value = serde_json::from_slice(&read("images/index.json")).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let entry = |entry: &Value| {
        let name = entry["annotations"]["io.containerd.image.name"].as_str().unwrap();
        // A registry's manifests stay in the form they have, so that digests do.
        let of_docker = entry["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json";
        assert_eq!(of_docker, name.starts_with("registry.k8s.io/"), "{entry}");
        (name.to_owned(), entry["digest"].as_str().unwrap().to_owned())
    };
    assert_eq!(&entries.iter().map(entry).collect::<BTreeMap<String, String>>(), digests);
    let blobs = folder.join("images/blobs/sha256");
    for blob in files_below(&blobs) {
        assert_eq!(sha256(&blobs.join(&blob)), blob.to_str().unwrap(), "a blob is not what its name says");
    }
    for digest in digests.values() {
        let blob = |digest: &Value| -> Value {
            let hash = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
            serde_json::from_slice(&read(&format!("images/blobs/sha256/{hash}"))).unwrap()
        };
        let manifest = blob(&json!(digest));
        let config = blob(&manifest["config"]["digest"]);
        assert_eq!((&config["os"], &config["architecture"]), (&json!("linux"), &json!("amd64")), "{digest}");
        for layer in manifest["layers"].as_array().unwrap() {
            let hash = layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            assert!(blobs.join(hash).exists(), "{hash} of {digest}");
        }
    }
    // skopeo reads no manifests of Docker's form in a folder; those of the other form it copies whole.
    for reference in digests.keys().filter(|reference| reference.starts_with("docker.io/")) {
        let source = format!("oci:{}:{reference}", folder.join("images").display());
        let target = tempfile::tempdir().unwrap();
        let target = format!("dir:{}", target.path().display());
        run(tool("skopeo").args(["copy", "--quiet", "--insecure-policy", &source, &target]));
    }
}
