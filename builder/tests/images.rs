// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild images`: from a complete cluster file, any one image is taken away, and exactly that one is missed. Needs no mirror: what is not
//! about images is not looked at.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const LAB_HA: &str = include_str!("../../profiles/lab-ha/cluster.toml");
const KYLIN: &str = include_str!("../../profiles/kylin-v11-ha/cluster.toml");
const CALICO: &str = include_str!("data/calico.yaml");

/// What kubeadm 1.32.1 and the manifest ask for.
const OF_KYLIN: [&str; 9] = [
    "lcr.loongnix.cn/kubernetes/pause:3.10",
    "lcr.loongnix.cn/kubernetes/kube-apiserver:v1.32.1",
    "lcr.loongnix.cn/kubernetes/kube-controller-manager:v1.32.1",
    "lcr.loongnix.cn/kubernetes/kube-scheduler:v1.32.1",
    "lcr.loongnix.cn/kubernetes/kube-proxy:v1.32.1",
    "lcr.loongnix.cn/kubernetes/coredns:v1.11.3",
    "docker.io/calico/node:v3.26.1",
    "docker.io/calico/cni:v3.26.1",
    "docker.io/calico/pod2daemon-flexvol:v3.26.1",
];

/// An image of the lab that only tests use.
const UNASKED: &str = "localhost/busybox:1";

struct Room(tempfile::TempDir);

impl Room {
    fn new(cluster: &str) -> Self {
        let room = Self(tempfile::tempdir().unwrap());
        room.put("cluster.toml", cluster);
        room
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imgbuild"));
        command.args(arguments).arg("--cluster").arg(self.0.path()).arg("--store").arg(self.0.path().join("store"));
        // Whatever this machine has of a mirror is not asked.
        command.args(["--offline", "--mirror", "http://127.0.0.1:9/debian"]).output().unwrap()
    }

    /// The images in that state, and the exit code.
    fn images(&self, state: &str) -> (Vec<String>, Option<i32>) {
        let output = self.run(&["images", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let images = report["images"].as_array().unwrap().iter().filter(|image| image["state"] == state);
        (images.map(|image| image["reference"].as_str().unwrap().to_owned()).collect(), output.status.code())
    }
}

#[test]
fn any_image_that_a_cluster_file_lacks_is_named() {
    let (head, rest) = LAB_HA.split_once("[[image]]").unwrap();
    let sections: Vec<&str> = rest.split("[[image]]").collect();
    let whole = Room::new(LAB_HA);
    let (present, code) = whole.images("present");
    // For pods of whoever uses the lab: kubelet asks for it then, and nothing that is known here does.
    assert_eq!(
        (present.len(), whole.images("unasked").0, code),
        (sections.len() - 1, vec![UNASKED.to_owned()], Some(0))
    );
    for (index, section) in sections.iter().enumerate() {
        let others = sections.iter().enumerate().filter(|(other, _)| *other != index);
        let room = Room::new(&others.fold(head.to_owned(), |text, (_, section)| format!("{text}[[image]]{section}")));
        let line = section.lines().find(|line| line.starts_with("reference")).unwrap();
        let reference = line.split('"').nth(1).unwrap().to_owned();
        if reference == UNASKED {
            assert_eq!(room.images("missing"), (vec![], Some(0)));
            continue;
        }
        assert_eq!(room.images("missing"), (vec![reference.clone()], Some(1)));
        let text = room.run(&["images"]);
        let (list, said) = (String::from_utf8_lossy(&text.stdout), String::from_utf8_lossy(&text.stderr));
        assert!(list.contains(&format!("MISSING {reference}\n")) && list.contains("        add: [[input]]"), "{list}");
        assert!(said.contains("1 of the images that nodes will ask for are not there"), "{said}");
    }
}

/// Writes an archive of images of loong64, as an OCI layout.
fn archive(path: &Path, names: &[&str]) {
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut blob = |bytes: Vec<u8>, media_type: &str| {
        let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let link = json!({"mediaType": format!("application/vnd.oci.image.{media_type}"), "digest": format!("sha256:{hex}"), "size": bytes.len()});
        blobs.insert(hex, bytes);
        link
    };
    // An empty tar archive.
    let layer = blob(vec![0; 1024], "layer.v1.tar");
    let manifests: Vec<Value> = names
        .iter()
        .map(|name| {
            let config = json!({"architecture": "loong64", "os": "linux", "config": {"Labels": {"is": name}},
                                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
            let config = blob(config.to_string().into(), "config.v1+json");
            let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                                  "config": config, "layers": [layer]});
            let mut entry = blob(manifest.to_string().into(), "manifest.v1+json");
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            entry
        })
        .collect();
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), json!({"schemaVersion": 2, "manifests": manifests}).to_string().into()),
    ];
    files.extend(blobs.into_iter().map(|(hex, bytes)| (format!("blobs/sha256/{hex}"), bytes)));
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, name, &*bytes).unwrap();
    }
    tar.finish().unwrap();
}

fn kylin(more: &str, names: &[&str]) -> Room {
    let room = Room::new(
        &KYLIN
            .replace("images-loong64.tar.zst", "images-loong64.tar")
            .replace("\n[os]\n", &format!("\n{more}\n[os]\n")),
    );
    room.put("inputs/calico.yaml", CALICO);
    archive(&room.0.path().join("inputs/images-loong64.tar"), names);
    room
}

#[test]
fn any_image_that_an_archive_lacks_is_named() {
    assert_eq!(kylin("", &OF_KYLIN).images("missing"), (vec![], Some(0)));
    for missing in OF_KYLIN {
        let others: Vec<&str> = OF_KYLIN.into_iter().filter(|name| *name != missing).collect();
        assert_eq!(kylin("", &others).images("missing"), (vec![missing.to_owned()], Some(1)));
    }
}

#[test]
fn the_report_says_who_asks_and_where_an_image_comes_from() {
    // Under the name of another registry, and one that nobody asks for.
    let mut names = OF_KYLIN;
    names[6] = "lcr.loongnix.cn/calico/node:3.26.1";
    let room = kylin("", &[&names[..], &["example.org/nobody:1"]].concat());
    let output = room.run(&["images"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("MISSING docker.io/calico/node:v3.26.1\n        for the manifest 10-calico.yaml (DaemonSet/kube-system/calico-node)\n"), "{text}");
    let add =
        "names = { \"docker.io/calico/node:v3.26.1\" = \"lcr.loongnix.cn/calico/node:3.26.1\" } to input `images`";
    assert!(text.contains(add), "{text}");
    assert!(
        text.contains("unasked example.org/nobody:1\n        from input `images`, inputs/images-loong64.tar, sha256:"),
        "{text}"
    );
    assert!(text.contains("10 images for linux/loong64: 1 missing"), "{text}");
    // What it says to add is what is missing.
    let file = room.0.path().join("cluster.toml");
    let with_name = fs::read_to_string(&file).unwrap().replace(
        "path = \"inputs/images-loong64.tar\"\n",
        "path = \"inputs/images-loong64.tar\"\nnames = { \"docker.io/calico/node:v3.26.1\" = \"lcr.loongnix.cn/calico/node:3.26.1\" }\n",
    );
    fs::write(&file, with_name).unwrap();
    assert_eq!(room.images("missing"), (vec![], Some(0)));
    assert!(!room.0.path().join("imgbuild.lock").exists(), "it only looks");
}

/// Add-ons ask under the names that the cluster file gives their images.
#[test]
fn images_of_add_ons_are_asked_for_under_their_new_names() {
    let addon = "[[addon]]\nname = \"cm\"\nmanifests = [\"addons/cm.yaml\"]\nimages = { \"quay.io/jetstack\" = \"lcr.loongnix.cn/jetstack\" }\n";
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: cm, namespace: cm}\nspec:\n  containers:\n  - name: cm\n    \
                    image: quay.io/jetstack/cm:v1\n    args: [--acme-http01-solver-image=quay.io/jetstack/solver:v1]\n";
    let room = kylin(addon, &OF_KYLIN);
    room.put("addons/cm.yaml", manifest);
    assert_eq!(room.images("missing"), (vec!["lcr.loongnix.cn/jetstack/cm:v1".to_owned()], Some(1)));
    assert_eq!(room.images("perhaps-missing").0, ["lcr.loongnix.cn/jetstack/solver:v1"]);
    let said = room.run(&["images"]);
    let said = String::from_utf8_lossy(&said.stderr);
    let warning = "warning: add-on `cm` (addons/cm.yaml line 8, Pod/cm/cm) may ask for the image `lcr.loongnix.cn/jetstack/solver:v1`";
    assert!(said.contains(warning), "{said}");
    let complete = kylin(
        addon,
        &[&OF_KYLIN[..], &["lcr.loongnix.cn/jetstack/cm:v1", "lcr.loongnix.cn/jetstack/solver:v1"]].concat(),
    );
    complete.put("addons/cm.yaml", manifest);
    assert_eq!(complete.images("present").0.len(), OF_KYLIN.len() + 2);
    assert_eq!(complete.images("missing").1, Some(0));
}
