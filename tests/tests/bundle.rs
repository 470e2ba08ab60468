// SPDX-License-Identifier: MIT OR Apache-2.0

//! The bundle of the lab, judged by GNU tar, zstd and coreutils, and its scripts on this machine, which must not change.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use imgbuild_tests::build::{build_bundle, bundle, folder};
use imgbuild_tests::cli::{Outcome, contents, files_below};
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
