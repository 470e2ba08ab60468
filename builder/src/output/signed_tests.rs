// SPDX-License-Identifier: MIT OR Apache-2.0

//! Signed media and folders: minisign verifies what is signed here, what minisign signed is verified here, and every
//! change is found.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use profiles::signing::PublicKey;

use super::verify::verify;
use super::{iso, iso_tests, pxe, pxe_tests};
use crate::image::testing::{store, text, tool_ok};
use crate::signing::{Signer, tests::signer};

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn position(path: &Path, bytes: &[u8]) -> u64 {
    let content = fs::read(path).unwrap();
    content.windows(bytes.len()).position(|window| window == bytes).unwrap() as u64
}

fn minisign(folder: &Path, key: &PublicKey) -> String {
    let list = folder.join("SHA256SUMS");
    tool_ok("minisign", "minisign", &["-V", "-m", text(&list), "-P", &key.to_string()])
}

/// A key that minisign made.
fn key_of_minisign(dir: &Path) -> (Signer, PublicKey) {
    let (public, secret) = (dir.join("minisign.pub"), dir.join("minisign.key"));
    tool_ok("minisign", "minisign", &["-G", "-W", "-p", text(&public), "-s", text(&secret)]);
    let signer = Signer::open(&secret, || panic!("it has no password")).unwrap();
    let key = PublicKey::from_file(&fs::read_to_string(public).unwrap()).unwrap();
    assert_eq!(signer.public_key(), key);
    (signer, key)
}

#[test]
fn a_pxe_folder_is_signed_and_so_is_the_medium_in_it() {
    let (dir, store) = store();
    let folder = dir.path().join("out/lab-pxe");
    let (signer, key) = key_of_minisign(dir.path());
    let mut plan = pxe_tests::plan(&store, &pxe_tests::THREE);
    plan.medium.signer = Some(signer);
    let pxe = pxe::write(&plan, &store, &folder).unwrap();
    let all = tool_ok("find", "findutils", &[text(&folder), "-type", "f"]);
    assert_eq!(pxe.size, all.lines().map(|file| fs::metadata(file).unwrap().len()).sum::<u64>());
    let said = minisign(&folder, &key);
    assert!(said.contains("Trusted comment: cluster:lab\tfile:SHA256SUMS\tsha256:"), "{said}");
    let verified = verify(&folder, Some(&key)).unwrap();
    assert_eq!(verified.problems, [""; 0]);
    assert_eq!(verified.signatures.len(), 1);

    // What a machine loads has a signed index in it.
    let target = dir.path().join("medium");
    fs::create_dir(&target).unwrap();
    for archive in ["medium-etcd.cpio", "medium-pods.cpio", "blocks.cpio", "nodes/etcd-1.cpio"] {
        let script = "cpio -idu --quiet -D \"$2\" < \"$1\"";
        tool_ok("sh", "cpio", &["-ec", script, "sh", text(&folder.join(archive)), text(&target)]);
    }
    minisign(&target.join("imgbuild"), &key);
    let list = fs::read_to_string(target.join("imgbuild/SHA256SUMS")).unwrap();
    let script = "cd \"$1\" && grep -v nodes/[mw] SHA256SUMS | sha256sum --quiet --strict -c";
    tool_ok("sh", "coreutils", &["-ec", script, "sh", text(&target.join("imgbuild"))]);
    assert!(list.contains("  medium.json\n") && list.contains("  nodes/worker-1.bin\n"), "{list}");

    // Signed by minisign itself, with another key: that is as good.
    let list = folder.join("SHA256SUMS");
    fs::create_dir(dir.path().join("other")).unwrap();
    let (_, other) = key_of_minisign(&dir.path().join("other"));
    let problems = verify(&folder, Some(&other)).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].contains("signed by another key"), "{problems:?}");
    let secret = dir.path().join("other/minisign.key");
    tool_ok("minisign", "minisign", &["-S", "-s", text(&secret), "-m", text(&list), "-t", "by hand"]);
    let verified = verify(&folder, Some(&other)).unwrap();
    assert_eq!(verified.problems, [""; 0]);
    assert_eq!(verified.signatures, [format!("SHA256SUMS is signed by {} (by hand)", other.id())]);

    // Without a key, the folder is what it was before there were signatures.
    plan.medium.signer = None;
    pxe::write(&plan, &store, &folder).unwrap();
    assert!(!folder.join("SHA256SUMS.minisig").exists());
    let problems = verify(&folder, Some(&key)).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].contains("there is no SHA256SUMS.minisig"), "{problems:?}");
}

#[test]
fn every_change_of_a_signed_image_is_found() {
    let (dir, store) = store();
    let key = signer().public_key();
    let mut plan = iso_tests::plan(&store);
    plan.medium.signer = Some(signer());
    let [path, again] = ["a.iso", "b.iso"].map(|name| dir.path().join(name));
    iso::write(&plan, &store, &path).unwrap();
    iso::write(&plan, &store, &again).unwrap();
    assert!(Command::new("cmp").args([&path, &again]).status().unwrap().success(), "the same key, the same bytes");
    let tree = dir.path().join("tree");
    tool_ok("xorriso", "xorriso", &["-osirrox", "on", "-indev", text(&path), "-extract", "/", text(&tree)]);
    minisign(&tree.join("imgbuild"), &key);
    let script = "cd \"$1\" && sha256sum --quiet --strict -c SHA256SUMS";
    tool_ok("sh", "coreutils", &["-ec", script, "sh", text(&tree.join("imgbuild"))]);

    let problems = |key: &PublicKey| verify(&path, Some(key)).unwrap().problems;
    assert_eq!(problems(&key), [""; 0]);
    assert_eq!(verify(&path, None).unwrap().problems, [""; 0]);
    let list = fs::read_to_string(tree.join("imgbuild/SHA256SUMS")).unwrap();
    let signature = fs::read_to_string(tree.join("imgbuild/SHA256SUMS.minisig")).unwrap();
    for (part, wanted) in [
        (list.lines().last().unwrap(), "SHA256SUMS: is not signed by"),
        (signature.lines().nth(1).unwrap(), "SHA256SUMS"),
        (signature.lines().nth(2).unwrap(), "SHA256SUMS"),
        (signature.lines().nth(3).unwrap(), "SHA256SUMS"),
    ] {
        // In the middle of a line: a digit of a hash, a sign of base64, a letter of the comment.
        let at = position(&path, part.as_bytes()) + part.len() as u64 / 3;
        flip(&path, at);
        let found = problems(&key);
        assert!(found.iter().any(|found| found.contains(wanted)), "{part}: {found:#?}");
        flip(&path, at);
    }
    assert_eq!(problems(&key), [""; 0]);

    // An image that nobody signed.
    plan.medium.signer = None;
    iso::write(&plan, &store, &path).unwrap();
    let found = problems(&key);
    assert!(found.len() == 1 && found[0].contains("there is no SHA256SUMS"), "{found:?}");
    assert_eq!(verify(&path, None).unwrap().problems, [""; 0]);
}

#[test]
fn a_bundle_with_a_signature_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (_, key) = key_of_minisign(dir.path());
    let pack = |script: &str| {
        let make = format!(
            "cd \"$1\"; rm -rf top a.tar.zst; mkdir -p top/amd64; echo one > top/amd64/one; \
             (cd top; sha256sum amd64/one > SHA256SUMS.amd64; \
             minisign -S -s ../minisign.key -m SHA256SUMS.amd64 >/dev/null; {script})\n\
             tar --sort=name -cf - top | zstd -q --check -o a.tar.zst"
        );
        tool_ok("sh", "tar, zstd, minisign", &["-ec", &make, "sh", text(dir.path())]);
        dir.path().join("a.tar.zst")
    };
    let good = pack("true");
    for path in [&good, &dir.path().join("top")] {
        let verified = verify(path, Some(&key)).unwrap();
        assert_eq!((verified.checked, verified.problems.len()), (2, 0), "{:?}", verified.problems);
        assert!(verify(path, None).unwrap().problems.is_empty());
    }
    for (script, wanted) in [
        ("rm SHA256SUMS.amd64.minisig", "there is no SHA256SUMS.amd64.minisig"),
        ("echo two > amd64/two; sha256sum amd64/* > SHA256SUMS.amd64", "does not fit"),
        ("echo x > SHA256SUMS.amd64.minisig", "it is no signature"),
        ("cp SHA256SUMS.amd64.minisig SHA256SUMS.loong64.minisig", "SHA256SUMS.loong64.minisig: is in no list"),
    ] {
        let archive = pack(script);
        for path in [&archive, &dir.path().join("top")] {
            let problems = verify(path, Some(&key)).unwrap().problems;
            assert!(problems.len() == 1 && problems[0].contains(wanted), "{wanted}: {problems:?}");
        }
    }
}
