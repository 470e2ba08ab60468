// SPDX-License-Identifier: MIT OR Apache-2.0

//! What lies beside outputs, judged by coreutils and minisign.

use crate::image::testing::{store, text as path_text, tool_ok};
use crate::output::cyclonedx::{Component, Metadata, Tools};
use crate::output::verify::verify;
use crate::signing::tests::signer;

use super::*;

fn bom() -> Bom {
    let component = |name: &str| Component { name: name.to_owned(), ..Component::default() };
    let tools = Tools { components: vec![component("imgbuild")] };
    Bom::new(Metadata { timestamp: None, tools, component: component("lab") }, vec![])
}

fn manifest() -> Manifest {
    let mut manifest = Manifest::new("lab", Architecture::Amd64, Digest::of(b"file"), Digest::of(b"lock"));
    manifest.nodes.push("master-1".to_owned());
    let images = Images { root: Digest::of(b"root"), payload: Digest::of(b"payload") };
    manifest.images.insert("pods", images);
    manifest
}

/// A folder with outputs of every form.
fn outputs(out: &Path) -> Vec<PathBuf> {
    for (path, content) in [
        ("master-1.img", "raw"),
        ("lab.iso", "image"),
        ("lab-pxe/SHA256SUMS", "list"),
        ("lab-pxe/vmlinuz", "kernel"),
        ("master-1-seed/user-data", "#cloud-config\n"),
    ] {
        let path = out.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    ["master-1.img", "lab.iso", "lab-pxe", "master-1-seed"].map(|name| out.join(name)).into()
}

fn names(list: &Path) -> Vec<String> {
    let text = fs::read_to_string(list).unwrap();
    text.lines().map(|line| line.split_once("  ").unwrap().1.to_owned()).collect()
}

#[test]
fn a_list_names_what_was_written() {
    let (dir, _store) = store();
    let out = dir.path().join("out");
    let outputs = outputs(&out);
    let list = write(&out, &bom(), manifest(), &outputs, None).unwrap();
    assert_eq!(list, out.join("lab.SHA256SUMS"));
    let wanted = ["lab-pxe/SHA256SUMS", "lab.cdx.json", "lab.iso", "lab.manifest.json", "master-1-seed/user-data"];
    assert_eq!(names(&list), wanted, "a raw image is only hashed to be signed");
    tool_ok(
        "sh",
        "coreutils",
        &["-ec", "cd \"$1\" && sha256sum --quiet --strict -c lab.SHA256SUMS", "sh", path_text(&out)],
    );
    for name in ["lab.cdx.json", "lab.manifest.json", "lab.SHA256SUMS"] {
        assert_eq!(fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777, 0o644, "{name}");
    }
    let text = fs::read_to_string(out.join("lab.manifest.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sbom = Digest::of(&fs::read(out.join("lab.cdx.json")).unwrap());
    assert_eq!(
        value,
        serde_json::json!({
            "schema": 1,
            "imgbuild": env!("CARGO_PKG_VERSION"),
            "cluster": "lab",
            "architecture": "amd64",
            "source_epoch": 0,
            "nodes": ["master-1"],
            "cluster_file": Digest::of(b"file").to_string(),
            "lock": Digest::of(b"lock").to_string(),
            "images": {
                "pods": { "root": Digest::of(b"root").to_string(), "payload": Digest::of(b"payload").to_string() },
            },
            "sbom": { "file": "lab.cdx.json", "sha256": sbom.to_string() },
        })
    );
    // Once more into the same folder.
    write(&out, &bom(), manifest(), &outputs, None).unwrap();
    assert_eq!(names(&list), wanted);
    let verified = verify(&list, None).unwrap();
    assert_eq!((verified.kind, verified.checked, verified.problems), ("a list of checksums", wanted.len(), vec![]));
    fs::write(out.join("lab.iso"), "imagE").unwrap();
    fs::remove_file(out.join("lab.cdx.json")).unwrap();
    let problems = verify(&list, None).unwrap().problems;
    assert!(problems.len() == 2 && problems[0] == "lab.cdx.json: is not there", "{problems:?}");
}

#[test]
fn a_signed_list_is_verified_by_minisign() {
    let (dir, _store) = store();
    let out = dir.path().join("out");
    let outputs = outputs(&out);
    let (signer, key) = (signer(), signer().public_key());
    let list = write(&out, &bom(), manifest(), &outputs, Some(&signer)).unwrap();
    assert!(names(&list).contains(&"master-1.img".to_owned()));
    let said = tool_ok("minisign", "minisign", &["-V", "-m", path_text(&list), "-P", &key.to_string()]);
    assert!(said.contains("cluster:lab\tfile:lab.SHA256SUMS\tsha256:"), "{said}");
    let verified = verify(&list, Some(&key)).unwrap();
    assert_eq!(verified.problems, [""; 0]);
    assert!(verified.signatures[0].starts_with(&format!("lab.SHA256SUMS is signed by {}", key.id())));
    // Without a key it is said who is said to have signed it.
    let verified = verify(&list, None).unwrap();
    assert!(verified.signatures[0].contains("was not verified"), "{verified:?}");
    // The same again, bit for bit.
    let signature = out.join("lab.SHA256SUMS.minisig");
    let before = fs::read(&signature).unwrap();
    write(&out, &bom(), manifest(), &outputs, Some(&signer)).unwrap();
    assert_eq!(fs::read(&signature).unwrap(), before);
    // A list that was changed.
    let text = fs::read_to_string(&list).unwrap();
    fs::write(&list, text.replace("lab.iso", "lab.isO")).unwrap();
    let problems = verify(&list, Some(&key)).unwrap().problems;
    assert!(problems.iter().any(|problem| problem.contains("is not signed by")), "{problems:?}");
    // A build without a key leaves no signature that does not fit.
    write(&out, &bom(), manifest(), &outputs, None).unwrap();
    assert!(!signature.exists());
    let problems = verify(&list, Some(&key)).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].contains("there is no lab.SHA256SUMS.minisig"), "{problems:?}");
}
