// SPDX-License-Identifier: MIT OR Apache-2.0

//! Inputs that are far larger than the memory that `imgbuild` may take. They are sparse: making them costs nothing, and
//! reading them is as much work as if they were not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use imgbuild_tests::build::{MEMBER_NAME, binary, copy_whole, folder, linked_store, member};
use imgbuild_tests::cli::{Outcome, files_below};
use imgbuild_tests::disk::extract;
use imgbuild_tests::memory::{holes, peak_of, sha256_of_zeros, tar_of_holes};
use imgbuild_tests::place::Place;
use imgbuild_tests::tool::{run, tool};
use serde_json::{Value, json};

/// The most memory that a command may take, in bytes, whatever the size of inputs and outputs.
const BUDGET: u64 = 500_000_000;
const GIB: u64 = 1 << 30;
/// Sets the size of the inputs, in GiB.
const VARIABLE: &str = "IMGBUILD_TEST_SPARSE_GIB";

/// The size of an input.
fn size() -> u64 {
    let gib: u64 = match std::env::var(VARIABLE) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{VARIABLE} is `{text}`; a whole number of GiB wanted")),
        // Four times the budget; the store has them as they are read, without holes.
        Err(_) => 2,
    };
    assert!(gib * GIB > 2 * BUDGET, "{VARIABLE} is {gib}: no file of that size says anything of the memory it takes");
    gib * GIB
}

/// The SHA-256 of an input of nothing but zeros.
fn sha256() -> &'static str {
    static SHA256: OnceLock<String> = OnceLock::new();
    SHA256.get_or_init(|| sha256_of_zeros(size()))
}

/// These tests take turns, as their files would fill a disk together. What the one whose turn it is needs is free.
fn turn(needed: u64) -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stat = rustix::fs::statvfs(folder()).unwrap();
    let free = stat.f_bavail * stat.f_frsize;
    assert!(
        free > needed,
        "{} has {} GiB of free space, and this test needs {}; {VARIABLE} sets the size of its inputs, now {} GiB",
        folder().display(),
        free / GIB,
        needed.div_ceil(GIB),
        size() / GIB
    );
    turn
}

/// Runs a command within the budget.
fn within_budget(command: &Command) -> Outcome {
    let (outcome, peak) = peak_of(command);
    let arguments: Vec<_> = command.get_args().take(2).collect();
    println!("{arguments:?} took {} MB at its peak", peak / 1_000_000);
    assert!(peak < BUDGET, "{arguments:?} took {peak} bytes of memory, and may take {BUDGET}\n{outcome}");
    outcome
}

/// Bytes of the disk that a store's objects take.
fn stored(store: &Path) -> u64 {
    let objects = store.join("objects");
    files_below(&objects).iter().map(|path| fs::metadata(objects.join(path)).unwrap().blocks() * 512).sum()
}

#[test]
fn a_large_file_is_locked_and_verified_within_the_budget() {
    let size = size();
    let _turn = turn(size + GIB);
    let from = |path: &str| format!("path = \"{path}\"");
    let place = Place::below(&folder(), &[("root", from("root.tar")), ("big", from("big"))]);
    fs::write(place.path("cluster/root.tar"), "a root filesystem, which nobody reads here").unwrap();
    holes(&place.path("cluster/big"), size);
    within_budget(&place.command(&["lock"])).succeeds();
    let line = format!("size = {size}, sha256 = \"{}\"", sha256());
    assert!(place.lock().contains(&line), "{line} wanted in\n{}", place.lock());
    println!("the store takes {} MB of the disk for {} MB", stored(&place.path("store")) / 1_000_000, size / 1_000_000);
    within_budget(&place.command(&["store", "verify"])).succeeds();
}

/// An archive as Docker saves it, of an image with one layer that is nothing but the end of an archive, very long.
#[test]
fn a_large_layer_is_found_in_an_archive_of_images_within_the_budget() {
    const IMAGE: &str = "k8s.gcr.io/pause:3.2";
    let size = size();
    // The archive, and once more while it is read.
    let _turn = turn(2 * size + GIB);
    let place = Place::below(&folder(), &[("root", "path = \"root.tar\"".to_owned())]);
    place.append("[[input]]\nkind = \"image-archive\"\nname = \"images\"\npath = \"images.tar\"\n");
    let layers = json!({ "type": "layers", "diff_ids": [format!("sha256:{}", sha256())] });
    let config = json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": layers }).to_string();
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]).to_string();
    let small = [("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes())];
    tar_of_holes(&place.path("cluster/images.tar"), &small, ("layer.tar", size));
    // Other images are missing, which is what its exit code says; this one is there.
    let outcome = within_budget(&place.command(&["images", "--json"]));
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}\n{outcome}"));
    let images = report["images"].as_array().unwrap();
    let image = images.iter().find(|image| image["reference"] == IMAGE).unwrap_or_else(|| panic!("{outcome}"));
    assert_eq!((&image["state"], &image["from"]["source"]), (&json!("present"), &json!("images.tar")), "{outcome}");
}

/// Whether a listing has the large file with its size.
fn lists(listing: &str, size: u64) -> bool {
    listing.lines().any(|line| line.contains(&format!(" {size} ")) && line.ends_with("/share/big"))
}

/// A whole build, of the smallest node: the file is in the payload, and so in the disk image and in the bundle.
#[test]
fn built_lab_a_node_with_a_large_file_is_built_within_the_budget() {
    let size = size();
    // The archive with the file, and as much again: while it is read, and for a bundle, which might not shrink.
    let _turn = turn(2 * size + 2 * GIB);
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let path = |name: &str| scratch.path().join(name);
    copy_whole(member(), &path("cluster"));
    let file = path("cluster/cluster.toml");
    let input = "[[input]]\nkind = \"tar\"\nname = \"big\"\npath = \"big.tar\"\nto = \"/opt/imgbuild/share\"\n";
    fs::write(&file, format!("{}\n{input}", fs::read_to_string(&file).unwrap())).unwrap();
    tar_of_holes(&path("cluster/big.tar"), &[("small", b"beside it".as_slice())], ("big", size));
    linked_store(&path("store"), |_| true, |_| true);
    let imgbuild = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--cluster").arg(path("cluster")).arg("--store").arg(path("store"));
        command.arg("--out").arg(path("out")).current_dir(scratch.path());
        within_budget(&command).succeeds();
    };
    imgbuild(&["lock"]);
    imgbuild(&["build", "--offline", "--profile", MEMBER_NAME, "--output", "disk,bundle"]);

    // Other people's tools find it in both, as long as it is.
    let payload = path("payload");
    extract(&path(&format!("out/{MEMBER_NAME}.img")), "payload-a", &payload);
    let listed = run(tool("unsquashfs").arg("-lln").arg(&payload));
    assert!(lists(&listed, size), "{listed}");
    let bundle = path("out/imgbuild-lab-split-amd64.tar.zst");
    let listed = run(Command::new("tar").args(["--zstd", "--list", "--verbose", "--file"]).arg(bundle));
    assert!(lists(&listed, size), "{listed}");
}
