// SPDX-License-Identifier: MIT OR Apache-2.0

//! The bill of materials of `lab-loong64` on another machine, whose firstboot is always there, with a lock and programs
//! that are made up.

use serde_json::Value;

use super::*;
use crate::assemble::testing::Lab;
use crate::inputs::deb::fixtures;

fn item(kind: ItemKind, name: &str, version: &str, path: &str, sha256: Digest) -> LockedItem {
    let architecture = if kind == ItemKind::Deb { "amd64" } else { "" };
    LockedItem {
        kind,
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: architecture.to_owned(),
        archive: if kind == ItemKind::File { String::new() } else { "debian".to_owned() },
        path: path.to_owned(),
        size: 7,
        sha256,
    }
}

fn locked(items: Vec<LockedItem>) -> LockedInput {
    LockedInput { request: Digest::of(b"request"), suites: vec!["forky".into(), "sid".into()], date: 0, items }
}

/// A package in the store of the lab.
fn deb(lab: &Lab, name: &str, version: &str, source: &str, program: &str) -> LockedItem {
    let mut files = vec![(format!("./{program}"), "\x7fELF")];
    if name == "base-files" {
        files.push(("./usr/lib/os-release".to_owned(), "VERSION_ID=\"14\"\n"));
    }
    let control = format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\n{source}");
    let bytes = fixtures::deb(&control, "data.tar", &fixtures::tar(&files));
    let object = lab.store.put_bytes(&bytes).unwrap();
    item(ItemKind::Deb, name, version, &format!("pool/main/{name}.deb"), object)
}

/// The lab with all its programs compiled, without the images of packages alone, and with three files.
fn lab() -> (Lab, Lock) {
    let mut lab = Lab::with(|text| {
        let text = text.replace("architecture = \"loong64\"", "architecture = \"amd64\"");
        format!(
            "{text}\n[[input]]\nkind = \"file\"\nname = \"motd\"\npath = \"inputs/motd\"\nto = \"/etc/motd\"\n\
             [[input]]\nkind = \"file\"\nname = \"addon\"\npath = \"inputs/a.yaml\"\n\
             to = \"/opt/imgbuild/manifests/10-a.yaml\"\n\
             [[input]]\nkind = \"tar\"\nname = \"tools\"\npath = \"inputs/t.tar\"\nto = \"/usr/local\"\n\
             members = [\"bin/x\"]\n"
        )
    });
    lab.cluster.image.retain(|image| !image.binaries.is_empty());
    lab.compiled();
    let mut lock = Lock::default();
    let etcd = deb(&lab, "etcd-server", "3.5.16-4+b1", "Source: etcd (3.5.16-4)\n", "usr/bin/etcd");
    let base = deb(&lab, "base-files", "14~x", "", "usr/bin/x");
    lock.inputs.insert(OS.into(), locked(vec![base, etcd]));
    for source in lab.cluster.sources() {
        let path = format!("pool/main/{}.orig.tar.gz", source.package);
        let file =
            item(ItemKind::Source, &source.package, &format!("{}-1", source.version), &path, Digest::of(b"orig"));
        lock.inputs.insert(source.name.clone(), locked(vec![file]));
        let compiler = item(ItemKind::Deb, "golang-go", "2:1.24~1", "pool/main/golang.deb", Digest::of(b"go"));
        lock.inputs.insert(toolchain_name(source), locked(vec![compiler]));
    }
    for (name, path) in [("motd", "inputs/motd"), ("addon", "inputs/a.yaml"), ("tools", "inputs/t.tar")] {
        let file = path.rsplit('/').next().unwrap();
        let file = item(ItemKind::File, file, "", path, Digest::of(path.as_bytes()));
        lock.inputs.insert(name.into(), locked(vec![file]));
    }
    let text = lab.store.put_bytes(b"apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n").unwrap();
    lab.sources.files.push(("/opt/imgbuild/manifests/10-a.yaml".into(), 0o644, text));
    (lab, lock)
}

fn written(lab: &Lab, lock: &Lock, nodes: &[&str], with_os: bool) -> Value {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let bom = bom(&lab.bench(), lock, Scope { nodes: &nodes, with_os }).unwrap_or_else(|e| panic!("{e:#}"));
    serde_json::from_slice(&bom.to_json().unwrap()).unwrap()
}

/// The component with a reference, at any depth.
fn find<'a>(value: &'a Value, reference: &str) -> Option<&'a Value> {
    let components = value["components"].as_array()?;
    components.iter().find_map(|component| {
        let found = component["bom-ref"] == reference;
        if found { Some(component) } else { find(component, reference) }
    })
}

fn references(value: &Value, out: &mut Vec<String>) {
    for component in value["components"].as_array().into_iter().flatten() {
        out.push(component["bom-ref"].as_str().unwrap_or_default().to_owned());
        references(component, out);
    }
}

fn names_of(lab: &Lab, role: profiles::node::Role) -> String {
    lab.cluster.nodes_with(role).next().unwrap().name.clone()
}

#[test]
fn everything_is_said_once_with_what_is_known_of_it() {
    let (lab, lock) = lab();
    let master = names_of(&lab, profiles::node::Role::Master);
    let bom = written(&lab, &lock, &[&master], true);
    assert_eq!(bom, written(&lab, &lock, &[&master], true), "twice the same");

    let etcd = find(&bom, "root/etcd-server").unwrap();
    assert_eq!(etcd["purl"], "pkg:deb/debian/etcd-server@3.5.16-4%2Bb1?arch=amd64&distro=forky");
    assert_eq!(etcd["pedigree"]["ancestors"][0]["purl"], "pkg:deb/debian/etcd@3.5.16-4?arch=source");
    assert_eq!(etcd["hashes"][0]["alg"], "SHA-256");
    let locked = &lock.inputs[OS].items[1];
    assert_eq!(etcd["hashes"][0]["content"], locked.sha256.to_string());
    assert_eq!(
        (&find(&bom, "os").unwrap()["name"], &find(&bom, "os").unwrap()["version"]),
        (&"debian".into(), &"14".into())
    );
    assert_eq!(bom["metadata"]["timestamp"], "2023-11-14T22:13:20Z");

    // A program of the source package, and one of ours.
    let kubelet = find(&bom, "payload/opt/imgbuild/bin/kubelet").unwrap();
    assert_eq!((&kubelet["name"], &kubelet["version"]), (&"kubelet".into(), &"1.20.2".into()));
    assert_eq!(kubelet["hashes"][0]["content"], Digest::of(b"kubelet").to_string());
    let ancestors = kubelet["pedigree"]["ancestors"].as_array().unwrap();
    assert_eq!(ancestors[0]["purl"], "pkg:deb/debian/kubernetes@1.20.2-1?arch=source");
    assert_eq!(ancestors[0]["components"][0]["name"], "kubernetes.orig.tar.gz");
    assert_eq!(ancestors[1]["purl"], "pkg:deb/debian/golang-go@2:1.24~1?arch=amd64&distro=forky");
    let crictl = find(&bom, "payload/opt/imgbuild/bin/crictl").unwrap();
    assert_eq!(crictl["version"], VERSION);
    assert_eq!(crictl["pedigree"]["ancestors"].as_array().unwrap().len(), 1, "the compiler alone");

    // An image with what is in it.
    let image = find(&bom, "image/k8s.gcr.io/kube-apiserver:v1.20.2").unwrap();
    assert_eq!((&image["name"], &image["version"]), (&"k8s.gcr.io/kube-apiserver".into(), &"v1.20.2".into()));
    let digest = image["hashes"][0]["content"].as_str().unwrap();
    assert_eq!(
        image["purl"],
        format!(
            "pkg:oci/kube-apiserver@sha256:{digest}?arch=amd64&repository_url=k8s.gcr.io/kube-apiserver&tag=v1.20.2"
        )
    );
    assert_eq!(image["components"][0]["name"], "kube-apiserver");

    let motd = find(&bom, "input/motd/inputs/motd").unwrap();
    assert_eq!((&motd["type"], &motd["name"]), (&"file".into(), &"motd".into()));
    assert!(
        motd["properties"]
            .as_array()
            .unwrap()
            .contains(&serde_json::json!({"name": "imgbuild:place", "value": "/etc/motd"}))
    );
    assert_eq!(bom["compositions"][0]["assemblies"], serde_json::json!(["input/tools/inputs/t.tar"]));
    assert_eq!(bom["compositions"][0]["aggregate"], "incomplete");

    let mut all = vec![];
    references(&bom, &mut all);
    let distinct: BTreeSet<&String> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "a reference is there twice: {all:#?}");
    assert!(!all.contains(&String::new()), "{all:#?}");
    let top: Vec<&str> =
        bom["components"].as_array().unwrap().iter().map(|one| one["bom-ref"].as_str().unwrap()).collect();
    let contained = &bom["dependencies"][0];
    assert_eq!(contained["ref"], CLUSTER);
    assert_eq!(contained["dependsOn"].as_array().unwrap().len(), top.len());
}

#[test]
fn an_etcd_member_has_no_kubernetes() {
    let (mut lab, lock) = lab();
    let name = names_of(&lab, profiles::node::Role::Master);
    for node in &mut lab.cluster.node {
        node.roles = BTreeSet::from([profiles::node::Role::Etcd]);
    }
    let bom = written(&lab, &lock, &[&name], true);
    let mut all = vec![];
    references(&bom, &mut all);
    all.sort();
    assert_eq!(
        all,
        [
            "input/motd/inputs/motd",
            "input/tools/inputs/t.tar",
            "os",
            "payload/opt/imgbuild/bin/firstboot",
            "root/base-files",
            "root/etcd-server",
        ]
    );
}

/// What a host gets from a bundle is the programs of some packages.
#[test]
fn a_bundle_has_no_operating_system() {
    let (lab, lock) = lab();
    let master = names_of(&lab, profiles::node::Role::Master);
    let bom = written(&lab, &lock, &[&master], false);
    assert!(find(&bom, "os").is_none() && find(&bom, "root/base-files").is_none());
    assert!(find(&bom, "root/etcd-server").is_some());
    assert!(find(&bom, "payload/opt/imgbuild/bin/kubelet").is_some());
}

#[test]
fn images_are_named_by_their_references() {
    let digest = Digest::of(b"m");
    let of = |reference: &str| {
        let image = container(reference, &digest, "amd64");
        (image.name, image.version, image.purl)
    };
    let purl = |name: &str, more: &str| format!("pkg:oci/{name}@sha256:{digest}?arch=amd64&repository_url={more}");
    assert_eq!(
        of("localhost:5000/Team/Busy:1"),
        ("localhost:5000/Team/Busy".to_owned(), "1".to_owned(), purl("busy", "localhost:5000/Team/Busy&tag=1"))
    );
    let pinned = format!("localhost:5000/a@sha256:{digest}");
    assert_eq!(of(&pinned), ("localhost:5000/a".to_owned(), String::new(), purl("a", "localhost:5000/a")));
}
