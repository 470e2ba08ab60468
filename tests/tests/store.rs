// SPDX-License-Identifier: MIT OR Apache-2.0

//! The store from outside: what is in it, what is damaged, what nobody needs, and how it gets into a room without a network
//! (docs/air-gap.md).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use imgbuild_tests::archive::{Package, cluster_folder};
use imgbuild_tests::archive_room::{Room, deb};
use imgbuild_tests::build::{binary, copy_cluster, folder, repository, users_store};
use imgbuild_tests::cli::{Outcome, check_store, code, contents, files_below, in_own_mounts};
use imgbuild_tests::tool::{command, run, tool};

/// `imgbuild store <arguments>` with the store of this name in the room.
fn store(room: &Room, name: &str, arguments: &[&str]) -> Outcome {
    Outcome::of(&mut store_command(room, name, arguments))
}

fn store_command(room: &Room, name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("store").args(arguments).arg("--store").arg(room.path(name));
    command.arg("--cluster").arg(room.path("cluster")).current_dir(room.folder());
    command
}

/// Bytes of all files below a folder.
fn bytes_below(folder: &Path) -> u64 {
    files_below(folder).iter().map(|path| fs::metadata(folder.join(path)).unwrap().len()).sum()
}

#[test]
fn what_the_other_side_lacks_is_carried_there_and_suffices() {
    let room = Room::new(&[Package::new("hello", 5000), Package::new("world", 7000)]);
    cluster_folder(room.folder(), &["hello"]);
    room.run("fetch").succeeds();
    // In the room with nothing at all.
    let list = store(&room, "far", &["list", "--json"]).succeeds().stdout.clone();
    fs::write(room.path("far.json"), list).unwrap();
    store(&room, "store", &["export", "--since", "far.json", "drive"]).succeeds();
    let checked = run(command("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(room.path("drive")));
    assert_eq!(checked.lines().count(), 2, "the package and index.json, and no index of the archive:\n{checked}");
    let index: serde_json::Value = serde_json::from_slice(&fs::read(room.path("drive/index.json")).unwrap()).unwrap();
    assert_eq!(index["objects"][0]["name"], "hello 1.0-1 (amd64)");

    let asked = room.archive.requests().len();
    let offline = |verb: &str| {
        let mut command = Command::new(binary());
        command.args([verb, "--offline", "--cluster"]).arg(room.path("cluster")).arg("--store").arg(room.path("far"));
        Outcome::of(command.current_dir(room.folder()))
    };
    offline("fetch").fails(code::USER, &["hello 1.0-1 (amd64)"]);
    store(&room, "far", &["import", "drive"]).succeeds();
    offline("fetch").succeeds();
    check_store(&room.path("far"));

    // A month later the cluster wants more: only that travels.
    cluster_folder(room.folder(), &["hello", "world"]);
    store(&room, "store", &["export", "drive"])
        .fails(code::USER, &["the lock does not fit the cluster file", "imgbuild lock"]);
    room.run("lock").succeeds();
    room.run("fetch").succeeds();
    let list = store(&room, "far", &["list", "--json"]).succeeds().stdout.clone();
    fs::write(room.path("far.json"), list).unwrap();
    store(&room, "store", &["export", "--since", "far.json", "second"]).succeeds();
    let object = room.object(&deb("world"));
    let carried = files_below(&room.path("second/objects"));
    assert_eq!(carried, [object.strip_prefix(room.path("store/objects")).unwrap()]);
    offline("fetch").fails(code::USER, &["world 1.0-1 (amd64)"]);
    store(&room, "far", &["import", "second"]).succeeds();
    offline("fetch").succeeds();
    assert!(room.archive.requests().len() > asked, "the lock was made with a network");
    check_store(&room.path("far"));
}

#[test]
fn an_export_that_is_killed_goes_on_and_one_that_was_damaged_on_the_way_is_refused() {
    let packages: Vec<Package> = (0..8).map(|n| Package::new(&format!("hello-{n}"), 4 << 20)).collect();
    let room = Room::new(&packages);
    room.run("fetch").succeeds();
    let mut export = store_command(&room, "store", &["export", "drive"]).spawn().unwrap();
    let first = std::time::Instant::now();
    while files_below(&room.path("drive/objects")).is_empty() && export.try_wait().unwrap().is_none() {
        assert!(first.elapsed().as_secs() < 60, "nothing is written");
    }
    // Too late when it was faster; then it is the second one that writes nothing.
    _ = export.kill();
    export.wait().unwrap();
    if !room.path("drive/index.json").exists() {
        store(&room, "far", &["import", "drive"]).fails(code::USER, &["holds no export", "interrupted"]);
    }
    store(&room, "store", &["export", "drive"]).succeeds();
    let index: serde_json::Value = serde_json::from_slice(&fs::read(room.path("drive/index.json")).unwrap()).unwrap();
    assert_eq!(index["objects"].as_array().unwrap().len(), 8);
    let files = files_below(&room.path("drive/objects"));
    assert_eq!(files.len(), 8, "nothing but whole objects: {files:?}");

    let damaged = room.path("drive/objects").join(&files[3]);
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[100] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let outcome = store(&room, "far", &["import", "drive"]);
    outcome
        .fails(code::VERIFICATION, &["1 is damaged", " 1.0-1 (amd64)", "sha256 is", "Export to the same folder again"]);
    check_store(&room.path("far"));
    assert_eq!(files_below(&room.path("far/objects")).len(), 7);
    store(&room, "store", &["export", "drive"]).succeeds();
    store(&room, "far", &["import", "drive"]).succeeds();
    assert_eq!(files_below(&room.path("far/objects")).len(), 8);
    check_store(&room.path("far"));
}

#[test]
fn a_drive_that_is_too_small_is_said_before_anything_is_written() {
    let room = Room::new(&[Package::new("hello", 3 << 20)]);
    room.run("fetch").succeeds();
    let drive = room.path("drive");
    fs::create_dir(&drive).unwrap();
    let script = r#"mount -t tmpfs -o size=1m none "$1" || exit 99; drive=$1; shift; "$@"; code=$?
                    find "$drive" -type f; exit $code"#;
    let mut command = in_own_mounts(script, &[&drive]);
    let export = store_command(&room, "store", &["export", "drive"]);
    command.arg(export.get_program()).args(export.get_args()).current_dir(room.folder());
    let outcome = Outcome::of(&mut command);
    outcome.fails(code::ENVIRONMENT, &["of free space, and the export needs 3.", "--since"]);
    assert_eq!(outcome.stdout, "", "left behind");
}

#[test]
fn a_damaged_object_is_named_moved_away_and_fetched_again() {
    let room = Room::new(&[Package::new("hello", 5000)]);
    room.run("fetch").succeeds();
    store(&room, "store", &["verify"]).succeeds();
    let object = room.object(&deb("hello"));
    let mut bytes = fs::read(&object).unwrap();
    bytes[100] ^= 1;
    fs::remove_file(&object).unwrap();
    fs::write(&object, &bytes).unwrap();
    let digest = object.strip_prefix(room.path("store/objects")).unwrap().to_str().unwrap().replace('/', "");
    store(&room, "store", &["verify"])
        .fails(code::VERIFICATION, &[&digest, "have sha256", "damaged/", "imgbuild fetch"]);
    assert!(!object.exists());
    assert_eq!(fs::read(room.path("store/damaged").join(&digest)).unwrap(), bytes);
    store(&room, "store", &["verify"]).succeeds();
    room.run("fetch").succeeds();
    check_store(&room.path("store"));
    assert!(object.exists());
}

#[test]
fn what_nobody_needs_goes_and_what_the_lock_names_stays() {
    let room = Room::new(&[Package::new("hello", 5000)]);
    room.run("fetch").succeeds();
    let objects = room.path("store/objects");
    let before = bytes_below(&objects);
    store(&room, "store", &["gc", "cluster", "elsewhere"]).fails(code::USER, &["there is no elsewhere"]);
    assert_eq!(bytes_below(&objects), before);
    store(&room, "store", &["gc"]).fails(code::USER, &["LOCK"]);
    let dry = store(&room, "store", &["gc", "--dry-run", "cluster"]);
    assert_eq!(bytes_below(&objects), before);
    let done = store(&room, "store", &["gc", "cluster/imgbuild.lock"]);
    let freed = before - bytes_below(&objects);
    // The archive's index is what nobody needs any more.
    assert!(freed > 0);
    assert!(dry.succeeds().stderr.contains(&format!("would remove {freed} bytes; 1 file")), "{dry}");
    assert!(done.succeeds().stderr.contains(&format!("removed {freed} bytes; 1 file")), "{done}");
    Outcome::of(room.command("fetch").arg("--offline")).succeeds();
}

/// The whole way, with a real node: fetched here, carried on a drive, built where there is no network, not even loopback.
#[test]
fn built_lab_a_node_from_a_carried_store_is_the_same() {
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let cluster = scratch.path().join("cluster");
    copy_cluster(&repository().join("profiles/lab-split"), &cluster);
    let imgbuild = |mut command: Command, arguments: &[&str], store: &Path| {
        command.args(arguments).arg("--store").arg(store).arg("--cluster").arg(&cluster);
        Outcome::of(command.current_dir(scratch.path())).succeeds().clone()
    };
    let here = || Command::new(binary());
    // An etcd member: nothing is compiled for it.
    let build = ["build", "--profile", "etcd-1", "--out"];
    imgbuild(here(), &[&build[..], &["here"]].concat(), &users_store());
    imgbuild(here(), &["fetch"], &users_store());
    imgbuild(here(), &["store", "export", "drive"], &users_store());

    let far = scratch.path().join("far");
    let isolated = || {
        let mut command = tool("unshare");
        command.arg("--net");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.arg(binary());
        command
    };
    imgbuild(isolated(), &["store", "import", "drive"], &far);
    imgbuild(isolated(), &[&build[..], &["far-out", "--offline"]].concat(), &far);
    assert_eq!(contents(&scratch.path().join("far-out/etcd-1.img")), contents(&scratch.path().join("here/etcd-1.img")));
}
