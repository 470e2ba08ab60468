// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a user may get wrong, and what the world may do to a build: each ends with one clear message, the documented
//! exit code, and nothing half-made left behind.
//!
//! Where packages are needed, they come from an archive of the test's own, signed with a key of its own, on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use imgbuild_tests::archive::{Archive, Fault, Package, SUITE, cluster_file, cluster_folder};
use imgbuild_tests::archive_room::{Room, deb};
use imgbuild_tests::build::{binary, copy_cluster, folder, lab, repository};
use imgbuild_tests::cli::{Outcome, as_nobody, check_store, code, contents, files_below, in_own_mounts, sha256};

// ---- The cluster file ----

/// `validate` on a cluster file, which it names by path.
fn validate(text: &str) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cluster.toml"), text).unwrap();
    Outcome::of(Command::new(binary()).args(["validate", "--cluster"]).arg(dir.path()).current_dir(dir.path()))
}

#[test]
fn the_cluster_file_of_these_tests_is_valid() {
    validate(&cluster_file(&["hello"])).succeeds();
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_key() {
    let text = cluster_file(&["hello"]).replace("pod_subnets", "pod_subnet");
    let line = text.lines().position(|line| line.starts_with("pod_subnet")).unwrap() + 1;
    let place = format!("cluster.toml:{line}:");
    validate(&text).fails_with_several(code::USER, &["`pod_subnet`", &place, "pod_subnets"]);
}

#[test]
fn a_wrong_type_is_named_with_its_place() {
    let text = cluster_file(&["hello"]).replace("schema = 1", "schema = \"one\"");
    validate(&text).fails(code::USER, &["schema", "cluster.toml:1:"]);
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = cluster_file(&["hello"])
        .replace("10.0.2.15", "10.0.3.15")
        .replace("dns = \"none\"", "dns = 7")
        .replace("name = \"bad-input\"", "name = \"Bad_Input\"");
    validate(&text).fails_with_several(code::USER, &["10.0.3.15", "dns", "Bad_Input"]);
}

#[test]
fn text_that_is_no_toml_is_shown_with_its_place() {
    validate("schema = = 1\n").fails(code::USER, &["cluster.toml:1:"]);
}

#[test]
fn a_missing_cluster_file_is_named() {
    let outcome = Outcome::of(Command::new(binary()).args(["validate", "--cluster", "/no/such/cluster"]));
    outcome.fails(code::USER, &["/no/such/cluster"]);
}

#[test]
fn a_missing_node_is_answered_with_the_names_there_are() {
    let room = Room::new(&[Package::new("hello", 100)]);
    let outcome = Outcome::of(room.command("build").args(["--profile", "master-2"]));
    outcome.fails(code::USER, &["`master-2`", "`master-1`"]);
    room.nothing_is_half_made();
    assert!(room.archive.requests().is_empty(), "asked the mirror before looking for the node");
}

#[test]
fn an_unknown_option_is_a_users_mistake() {
    let outcome = Outcome::of(Command::new(binary()).args(["build", "--profil", "master-1"]));
    outcome.fails(code::USER, &["--profil", "--profile"]);
}

// ---- The mirror ----

#[test]
fn a_good_archive_is_locked_and_fetched() {
    let room = Room::new(&[Package::new("hello", 5000), Package::new("world", 5000)]);
    room.run("fetch").succeeds();
    check_store(&room.path("store"));
    assert!(room.object(&deb("hello")).exists() && room.object(&deb("world")).exists());
    let lock = fs::read_to_string(room.path("cluster/imgbuild.lock")).unwrap();
    assert!(lock.contains(&deb("hello")) && !lock.contains("127.0.0.1"), "a lock is independent of mirrors:\n{lock}");
    // And from now on no network is needed.
    let asked = room.archive.requests().len();
    Outcome::of(room.command("fetch").arg("--offline")).succeeds();
    assert_eq!(room.archive.requests().len(), asked);
}

#[test]
fn an_unreachable_mirror_is_named() {
    let room = Room::new(&[Package::new("hello", 100)]);
    // A port that was free a moment ago and that nobody listens on.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new(binary());
    command.args(["lock", "--mirror", &format!("http://{address}/debian"), "--cluster"]);
    command.arg(room.path("cluster")).arg("--store").arg(room.path("store"));
    Outcome::of(&mut command).fails(code::ENVIRONMENT, &[&address.to_string(), "hint:"]);
    room.nothing_is_half_made();
}

#[test]
fn offline_refuses_the_network_and_says_what_is_missing() {
    let room = Room::new(&[Package::new("hello", 100)]);
    Outcome::of(room.command("fetch").arg("--offline")).fails(code::USER, &["imgbuild.lock", "hint:", "--offline"]);
    assert!(room.archive.requests().is_empty());
    room.nothing_is_half_made();
}

#[test]
fn a_changed_release_has_a_bad_signature() {
    let room = Room::new(&[Package::new("hello", 100)]);
    let path = format!("dists/{SUITE}/InRelease");
    let forged = String::from_utf8(room.archive.file(&path)).unwrap().replace("Label: Test", "Label: Best");
    room.archive.replace(&path, forged.into_bytes());
    room.run("lock").fails(code::VERIFICATION, &["InRelease", "signature"]);
    room.nothing_is_half_made();
}

#[test]
fn a_release_signed_by_a_stranger_is_refused() {
    let (room, stranger) = (Room::new(&[Package::new("hello", 100)]), Archive::serve(&[]));
    let path = format!("dists/{SUITE}/InRelease");
    room.archive.replace(&path, stranger.file(&path));
    room.run("lock").fails(code::VERIFICATION, &["InRelease", "key"]);
    room.nothing_is_half_made();
}

#[test]
fn a_release_without_signature_is_refused() {
    let room = Room::new(&[Package::new("hello", 100)]);
    let path = format!("dists/{SUITE}/InRelease");
    let signed = String::from_utf8(room.archive.file(&path)).unwrap();
    let body = signed.split_once("\n\n").unwrap().1.split_once("-----BEGIN PGP SIGNATURE").unwrap().0.to_owned();
    room.archive.replace(&path, body.into_bytes());
    room.run("lock").fails(code::VERIFICATION, &["InRelease", "sign"]);
    room.nothing_is_half_made();
}

#[test]
fn a_package_with_the_wrong_hash_is_refused() {
    let room = Room::new(&[Package::new("hello", 5000)]);
    room.archive.misbehave(".deb", Fault::Corrupt);
    room.run("fetch").fails(code::VERIFICATION, &["hello_1.0-1_amd64.deb", "sha256"]);
    check_store(&room.path("store"));
    assert!(!room.object(&deb("hello")).exists());
}

#[test]
fn a_download_that_always_ends_early_fails_and_resumes_later() {
    let room = Room::new(&[Package::new("hello", 200_000)]);
    room.archive.misbehave(".deb", Fault::Truncate);
    room.run("fetch").fails(code::ENVIRONMENT, &["hello_1.0-1_amd64.deb"]);
    check_store(&room.path("store"));
    assert!(!room.object(&deb("hello")).exists());
    room.archive.behave();
    room.run("fetch").succeeds();
    assert!(room.object(&deb("hello")).exists());
}

#[test]
fn a_package_that_is_not_there_is_named() {
    let room = Room::new(&[Package::new("hello", 100)]);
    cluster_folder(room.folder(), &["hello", "no-such-package"]);
    room.run("lock").fails(code::USER, &["no-such-package", SUITE]);
    room.nothing_is_half_made();
}

#[test]
fn a_file_that_the_index_promises_and_the_mirror_lacks_is_named() {
    let room = Room::new(&[Package::new("hello", 100)]);
    room.archive.misbehave(".deb", Fault::Missing);
    room.run("fetch").fails(code::ENVIRONMENT, &["hello_1.0-1_amd64.deb", "404"]);
    check_store(&room.path("store"));
}

#[test]
fn a_package_with_paths_that_climb_out_is_refused() {
    for path in ["../../evil", "./../evil", "usr/../../evil"] {
        let evil = Package { files: vec![(path.to_owned(), b"evil".to_vec())], ..Package::new("evil", 0) };
        let room = Room::new(&[evil]);
        let outcome = Outcome::of(room.command("build").args(["--profile", "master-1"]));
        outcome.fails(code::VERIFICATION, &["package evil", path, "hint:"]);
        check_store(&room.path("store"));
        assert_eq!(files_below(&room.path("out")), [""; 0].map(PathBuf::from));
        assert!(!room.path("evil").exists() && !room.folder().parent().unwrap().join("evil").exists());
    }
}

// ---- Store and disk ----

#[test]
fn a_corrupt_object_is_found_and_replaced() {
    let room = Room::new(&[Package::new("hello", 5000)]);
    room.run("fetch").succeeds();
    let object = room.object(&deb("hello"));
    let mut bytes = fs::read(&object).unwrap();
    bytes[100] ^= 1;
    let digest = sha256(&room.path("wanted"));
    for verb in ["fetch", "build"] {
        // A corrupt object is removed when it is found, so each verb gets one.
        if object.exists() {
            fs::remove_file(&object).unwrap();
        }
        fs::write(&object, &bytes).unwrap();
        let offline = Outcome::of(room.command(verb).args(["--offline", "--profile", "master-1"]));
        offline.fails(code::VERIFICATION, &[&digest[..12]]);
    }
    // With a mirror at hand there is no reason to bother anybody.
    room.run("fetch").succeeds();
    check_store(&room.path("store"));
}

#[test]
fn a_full_disk_below_the_store_is_said_and_leaves_nothing() {
    let room = Room::new(&[Package::new("hello", 3 << 20)]);
    let store = room.path("store");
    fs::create_dir(&store).unwrap();
    // The small filesystem is gone when the script ends, so that the script itself lists what is left.
    let script = r#"mount -t tmpfs -o size=1m none "$1" || exit 99; store=$1; shift; "$@"; code=$?
                    find "$store" -type f; exit $code"#;
    let mut command = room.arguments(room.with_key(script, &[&store, binary()]), "fetch");
    let outcome = Outcome::of(&mut command);
    outcome.fails(code::ENVIRONMENT, &["No space left on device", store.to_str().unwrap()]);
    // Objects that fitted may stay; they are index files, whole.
    assert!(!outcome.stdout.contains("/work/"), "{outcome}");
}

#[test]
fn a_store_without_write_permission_is_named() {
    let room = Room::new(&[Package::new("hello", 100)]);
    // Nobody must be able to run the program, and not to write the store.
    let program = room.path("imgbuild");
    fs::copy(binary(), &program).unwrap();
    let open =
        |path: &Path, mode| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    open(room.folder(), 0o755);
    fs::create_dir(room.path("locked")).unwrap();
    open(&room.path("locked"), 0o555);
    let store = room.path("locked/store");
    let mut command = as_nobody(&program);
    command.args(["fetch", "--mirror", &room.archive.url, "--cluster"]).arg(room.path("cluster"));
    command.arg("--store").arg(&store).env("HOME", "/nonexistent").current_dir("/");
    Outcome::of(&mut command).fails(code::ENVIRONMENT, &["Permission denied", store.to_str().unwrap()]);
}

#[test]
fn two_at_once_on_one_store_both_succeed() {
    let room = Room::new(&[Package::new("hello", 300_000), Package::new("world", 300_000)]);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| room.run("fetch"))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for outcome in outcomes {
        outcome.succeeds();
    }
    check_store(&room.path("store"));
}

// ---- A whole build, of the lab that the other tests have built already ----

fn build_lab(out: &Path) -> Command {
    let mut command = Command::new(binary());
    command.args(["build", "--offline", "--profile", "master-1", "--cluster"]);
    command.arg(&lab().cluster).arg("--out").arg(out).current_dir(folder());
    command
}

#[test]
fn built_lab_two_builds_at_once_make_the_same_image() {
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let want = contents(&lab().image);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| Outcome::of(&mut build_lab(scratch.path())))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for outcome in outcomes {
        outcome.succeeds();
    }
    assert_eq!(contents(&scratch.path().join("master-1.img")), want);
    let left: Vec<PathBuf> = files_below(scratch.path());
    assert!(left.iter().all(|path| !path.to_string_lossy().contains("tmp")), "{left:?}");
}

#[test]
fn built_lab_a_full_disk_below_the_output_leaves_no_image() {
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let script = r#"mount -t tmpfs -o size=50m none "$1" || exit 99; out=$1; shift; "$@"; code=$?
                    find "$out" -type f; exit $code"#;
    lab();
    let mut command = in_own_mounts(script, &[scratch.path()]);
    let build = build_lab(scratch.path());
    command.arg(build.get_program()).args(build.get_args()).current_dir(folder());
    let outcome = Outcome::of(&mut command);
    // The builder knows the size before it writes, and says what is missing.
    outcome.fails(code::ENVIRONMENT, &["of free space, and the output needs", scratch.path().to_str().unwrap()]);
    let out = scratch.path().to_str().unwrap();
    assert!(!outcome.stdout.lines().any(|line| line.starts_with(out)), "left behind:\n{outcome}");
}

#[test]
fn built_lab_an_output_folder_without_write_permission_is_named() {
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    // Root may write anywhere but on a read-only filesystem.
    let script = r#"mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 99; shift; exec "$@""#;
    lab();
    let mut command = in_own_mounts(script, &[scratch.path()]);
    let build = build_lab(scratch.path());
    command.arg(build.get_program()).args(build.get_args()).current_dir(folder());
    let outcome = Outcome::of(&mut command);
    outcome.fails(code::ENVIRONMENT, &["Read-only file system", scratch.path().to_str().unwrap()]);
}

#[test]
fn built_lab_a_killed_build_leaves_no_image_and_the_next_one_works() {
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    lab();
    let mut child = build_lab(scratch.path()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    // Too late when the build was faster; then the image has to be whole, as is checked below.
    _ = child.kill();
    child.wait().unwrap();
    let image = scratch.path().join("master-1.img");
    assert!(!image.exists() || contents(&image) == contents(&lab().image), "a partial image under the final name");
    Outcome::of(&mut build_lab(scratch.path())).succeeds();
    assert_eq!(contents(&image), contents(&lab().image));
    let left = files_below(scratch.path());
    assert!(left.iter().all(|path| !path.to_string_lossy().contains("tmp")), "swept by the next build: {left:?}");
}

#[test]
fn built_lab_a_wrong_lock_is_refused() {
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let cluster = scratch.path().join("lab");
    copy_cluster(&lab().cluster, &cluster);
    let path = cluster.join("imgbuild.lock");
    fs::write(&path, "schema = \"of another world\"\n").unwrap();
    let mut command = Command::new(binary());
    command.args(["build", "--offline", "--profile", "master-1", "--cluster"]).arg(&cluster);
    command.arg("--out").arg(scratch.path().join("out")).current_dir(repository());
    Outcome::of(&mut command).fails(code::USER, &["imgbuild.lock", "imgbuild lock"]);
    assert!(files_below(&scratch.path().join("out")).is_empty());
}
