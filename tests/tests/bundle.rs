// SPDX-License-Identifier: MIT OR Apache-2.0

//! The bundle of the lab, judged by GNU tar, zstd and coreutils, and its scripts on this machine, which must not change.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use imgbuild_tests::build::{binary, build_bundle, bundle, folder};
use imgbuild_tests::cli::{Outcome, code, contents, files_below};
use imgbuild_tests::tool::{command, run, tool};

const SUMS: &str = "SHA256SUMS.amd64";

/// The bundle, unpacked once.
fn unpacked() -> &'static Path {
    static UNPACKED: OnceLock<PathBuf> = OnceLock::new();
    UNPACKED.get_or_init(|| {
        let target = folder().join("bundle");
        let _ = fs::remove_dir_all(&target);
        fs::create_dir_all(&target).unwrap();
        run(command("tar").args(["--zstd", "-C"]).arg(&target).arg("-xf").arg(bundle()));
        target.join("imgbuild-lab")
    })
}

#[test]
fn built_lab_bundle_is_what_its_checksums_say() {
    run(tool("zstd").args(["--test", "--quiet"]).arg(bundle()));
    let checked = run(command("sha256sum").args(["--check", "--strict", SUMS]).current_dir(unpacked()));
    let listed: BTreeSet<&str> = checked.lines().filter_map(|line| line.strip_suffix(": OK")).collect();
    let there = files_below(unpacked());
    let there: BTreeSet<&str> = there.iter().filter_map(|path| path.to_str()).filter(|path| *path != SUMS).collect();
    assert_eq!(listed, there);
    for wanted in [
        "install",
        "uninstall",
        "amd64/bundle.json",
        "amd64/firstboot",
        "amd64/pods/payload.json",
        "amd64/pods/bin/containerd",
        "amd64/pods/bin/containerd-shim-runc-v2",
        "amd64/pods/bin/ctr",
        "amd64/pods/bin/etcd",
        "amd64/pods/bin/etcdctl",
        "amd64/pods/bin/kubelet",
        "amd64/pods/bin/runc",
        "amd64/pods/host/etc/systemd/system/containerd.service",
        "amd64/pods/host/etc/systemd/system/firstboot.service",
        "amd64/pods/images/index.json",
        "amd64/seeds/master-1/user-data",
    ] {
        assert!(there.contains(wanted), "{wanted}");
    }
}

#[test]
fn built_lab_bundle_keeps_secrets_to_its_seeds_and_them_to_root() {
    assert_eq!(fs::metadata(bundle()).unwrap().permissions().mode() & 0o777, 0o600);
    let listing = run(command("tar").args(["--numeric-owner", "--zstd", "-tvf"]).arg(bundle()));
    for line in listing.lines() {
        let is_seed = line.contains("imgbuild-lab/amd64/seeds/");
        assert!(line.contains(" 0/0 "), "{line}");
        assert_eq!(
            line.starts_with("-rw-------") || line.starts_with("drwx------"),
            is_seed || line.ends_with(" imgbuild-lab/") || line.ends_with(SUMS),
            "{line}"
        );
    }
    let key: &[u8] = b"PRIVATE KEY-----\n";
    let holders: Vec<String> = files_below(unpacked())
        .into_iter()
        .map(|path| path.to_str().expect("paths of the bundle are UTF-8").to_owned())
        .filter(|path| path.contains("/seeds/") || path.contains("/host/") || !path.contains("/pods/"))
        .filter(|path| {
            let bytes = fs::read(unpacked().join(path)).unwrap();
            // firstboot has the words, and no key behind them.
            !path.ends_with("firstboot") && bytes.windows(key.len()).any(|window| window == key)
        })
        .collect();
    assert_eq!(holders, ["amd64/seeds/master-1/user-data"]);
}

#[test]
fn built_lab_bundle_is_reproducible() {
    let other = tempfile::tempdir_in(folder()).unwrap();
    let again = build_bundle(other.path());
    assert_eq!(contents(&again), contents(bundle()));
}

/// With a half for loongarch64 that sha256sum summed up and GNU tar packed: both halves are whole in the one archive, and the lab's is
/// what it was.
#[test]
fn built_lab_bundle_joins_with_one_for_the_other_architecture() {
    let room = tempfile::tempdir_in(folder()).unwrap();
    let half = room.path().join("imgbuild-lab");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(unpacked().join("amd64/bundle.json")).unwrap()).unwrap();
    let index = serde_json::json!({
        "schema": 1, "cluster": "lab", "cluster_id": index["cluster_id"], "architecture": "loong64",
        "nodes": [{ "name": "worker-l", "payload": "pods" }],
    });
    // Longer than what a header of tar has room for.
    let blob = format!("loong64/pods/images/blobs/sha256/{}", "0123456789abcdef".repeat(8));
    let index = index.to_string();
    for (path, text) in [
        ("loong64/bundle.json", index.as_str()),
        ("loong64/firstboot", "a program for loongarch64"),
        ("loong64/seeds/worker-l/user-data", "#cloud-config\n"),
        (blob.as_str(), "a blob"),
    ] {
        let path = half.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    for script in ["install", "uninstall"] {
        fs::copy(unpacked().join(script), half.join(script)).unwrap();
    }
    let sums = run(command("sha256sum").args(files_below(&half)).current_dir(&half));
    fs::write(half.join("SHA256SUMS.loong64"), sums).unwrap();
    let other = room.path().join("half.tar.zst");
    run(command("tar")
        .args(["--zstd", "--create", "--file"])
        .arg(&other)
        .arg("-C")
        .arg(room.path())
        .arg("imgbuild-lab"));
    let join = |pair: [&Path; 2], out: &str| {
        let out = room.path().join(out);
        let mut hybrid = command(binary());
        Outcome::of(hybrid.arg("hybrid").args(pair).arg("--out").arg(&out)).succeeds();
        out.join("imgbuild-lab-hybrid.tar.zst")
    };
    let joined = join([&other, bundle()], "one");
    assert_eq!(fs::metadata(&joined).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(contents(&join([bundle(), &other], "two")), contents(&joined));
    let target = room.path().join("unpacked");
    fs::create_dir(&target).unwrap();
    run(command("tar").args(["--zstd", "-C"]).arg(&target).arg("-xf").arg(&joined));
    let target = target.join("imgbuild-lab");
    for sums in [SUMS, "SHA256SUMS.loong64"] {
        run(command("sha256sum").args(["--check", "--strict", "--quiet", sums]).current_dir(&target));
    }
    let mut expected: BTreeSet<PathBuf> = files_below(unpacked()).into_iter().collect();
    expected.extend(files_below(&half));
    assert_eq!(files_below(&target).into_iter().collect::<BTreeSet<_>>(), expected);
    // Of the other half nothing is looked at: it may be damaged.
    fs::write(target.join("loong64/firstboot"), "torn").unwrap();
    let outcome = Outcome::of(command(target.join("install")).args(["--check", "--profile", "master-1"]));
    assert_eq!(outcome.code, Some(20), "{outcome}");
    assert!(!outcome.stderr.contains("damaged"), "{outcome}");
    let twice = Outcome::of(command(binary()).arg("hybrid").args([bundle(), bundle()]).arg("--out").arg(room.path()));
    twice.fails(code::USER, &["both are for amd64", "both have master-1"]);
}

/// As on any machine that is not the node: it is refused in words, and left as it was. This machine has not the address of the lab's node.
#[test]
fn built_lab_bundle_refuses_this_machine() {
    let before = traces();
    for arguments in [&["--check"][..], &["--profile", "master-1"]] {
        let outcome = Outcome::of(command(unpacked().join("install")).args(arguments));
        assert_eq!(outcome.code, Some(20), "{}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stderr.contains("this machine cannot become a node yet: "), "{}", outcome.stderr);
        assert!(outcome.stdout.contains("check: error "), "{}", outcome.stdout);
    }
    assert_eq!(traces(), before);
}

/// Where an installation would begin.
fn traces() -> Vec<bool> {
    let places = [
        "/var/lib/imgbuild",
        "/run/imgbuild",
        "/opt/imgbuild",
        "/usr/bin/kubelet",
        "/etc/systemd/system/firstboot.service",
    ];
    places.iter().map(|path| fs::symlink_metadata(path).is_ok()).collect()
}
