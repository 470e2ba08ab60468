// SPDX-License-Identifier: MIT OR Apache-2.0

//! The OCI layouts we write, read by skopeo (package `skopeo`).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imgbuild::image::oci::{Image, Layer, Layout, Process};
use imgbuild::store::Store;
use imgbuild::tree::{Entry, FileTree, Kind};
use profiles::node::Architecture;
use serde_json::{Value, json};

const EPOCH: u32 = 1_610_543_941;
const NAME: &str = "k8s.gcr.io/kube-proxy:v1.20.2";

/// Writes a layout with one image of two layers, one of which has everything a layer may have.
fn layout(dir: &Path) -> PathBuf {
    let store = Store::open(&dir.join("store")).unwrap();
    let mut base = FileTree::new();
    base.insert("etc/passwd", Entry::file(*b"root:x:0:0::/:/bin/sh\n", 0o644)).unwrap();
    base.insert(&format!("usr/share/{}/{}", "d".repeat(150), "f".repeat(150)), Entry::file(vec![1; 700], 0o600))
        .unwrap();
    let mut capable = Entry::file(*b"\x7fELF", 0o755);
    // cap_net_raw+ep with a newline in it: attributes are bytes.
    capable.xattrs.insert("security.capability".into(), b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\n".to_vec());
    base.insert("usr/bin/ping", capable).unwrap();
    base.insert("usr/bin/ping6", Entry::new(Kind::HardLink("usr/bin/ping".into()), 0o755)).unwrap();
    base.insert("bin", Entry::symlink("usr/bin")).unwrap();
    let mut program = FileTree::new();
    program.insert("usr/local/bin/kube-proxy", Entry::file(vec![0x7f; 100_000], 0o755)).unwrap();

    let mut layout = Layout::new(EPOCH).unwrap();
    let layers = [("base", base), ("kube-proxy", program)];
    layout
        .add(&Image {
            names: vec![NAME.to_owned()],
            architecture: Architecture::Loong64,
            layers: layers.map(|(name, tree)| Layer::write(&store, &tree, EPOCH, name).unwrap()).into(),
            process: Process {
                entrypoint: vec!["/usr/local/bin/kube-proxy".to_owned()],
                arguments: vec!["--v=2".to_owned()],
                environment: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
                working_directory: "/".to_owned(),
                user: "0:0".to_owned(),
            },
        })
        .unwrap();
    let target = dir.join("layout");
    for (path, entry) in layout.finish().unwrap().iter() {
        match &entry.kind {
            Kind::Dir => fs::create_dir(target.join(path)).unwrap(),
            Kind::File(content) => fs::write(target.join(path), content.read(&store).unwrap()).unwrap(),
            other => panic!("{path}: {other:?}"),
        }
    }
    target
}

/// Runs a tool that must be there, and gives what it prints.
fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("running {program}, which these tests need: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn skopeo_reads_manifest_and_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let source = format!("oci:{}:{NAME}", layout(dir.path()).display());
    let manifest: Value = serde_json::from_slice(&run("skopeo", &["inspect", "--raw", &source])).unwrap();
    assert_eq!(manifest["schemaVersion"], 2);
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    let config: Value = serde_json::from_slice(&run("skopeo", &["inspect", "--config", &source])).unwrap();
    assert_eq!((&config["architecture"], &config["os"]), (&json!("loong64"), &json!("linux")));
    assert_eq!(config["created"], "2021-01-13T13:19:01Z");
    assert_eq!(
        config["config"],
        json!({
            "User": "0:0",
            "Env": ["PATH=/bin"],
            "Entrypoint": ["/usr/local/bin/kube-proxy"],
            "Cmd": ["--v=2"],
            "WorkingDir": "/",
        })
    );
}

#[test]
fn skopeo_verifies_every_blob_in_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let source = format!("oci:{}:{NAME}", layout.display());
    let copy = dir.path().join("copy");
    run("skopeo", &["copy", "--insecure-policy", &source, &format!("dir:{}", copy.display())]);
    let manifest: Value = serde_json::from_slice(&fs::read(copy.join("manifest.json")).unwrap()).unwrap();
    // Docker's form has the layers by their uncompressed digest: skopeo finds ours to be what the configuration says.
    let archive = dir.path().join("archive.tar");
    run("skopeo", &["copy", "--insecure-policy", &source, &format!("docker-archive:{}:{NAME}", archive.display())]);

    // GNU tar, too, finds in the first layer what the tree had.
    let digest = manifest["layers"][0]["digest"].as_str().unwrap().replace(':', "/");
    let layer = layout.join("blobs").join(digest);
    let listing = run("tar", &["--xattrs-include=*", "--numeric-owner", "--utc", "-tvvf", layer.to_str().unwrap()]);
    let listing = String::from_utf8(listing).unwrap();
    for line in [
        "lrwxrwxrwx  0/0               0 2021-01-13 13:19 bin -> usr/bin",
        "hrwxr-xr-x  0/0               0 2021-01-13 13:19 usr/bin/ping6 link to usr/bin/ping",
        // The asterisk stands for extended attributes.
        "-rwxr-xr-x* 0/0               4 2021-01-13 13:19 usr/bin/ping",
        &"f".repeat(150),
    ] {
        assert!(listing.contains(line), "{line} is missing:\n{listing}");
    }
}
