// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lock from outside: what is newer upstream, and what changes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;

use imgbuild_tests::archive::Package;
use imgbuild_tests::archive_room::Room;
use imgbuild_tests::cli::{Outcome, check_store, code};

fn lock(room: &Room, arguments: &[&str]) -> Outcome {
    Outcome::of(room.command("lock").args(arguments))
}

#[test]
fn what_is_newer_upstream_is_said_and_taken_only_when_asked_for() {
    let (hello, world) = (Package::new("hello", 5000), Package::new("world", 7000));
    let room = Room::new(&[hello.clone(), world.clone()]);
    let path = room.path("cluster/imgbuild.lock");
    lock(&room, &["--check"]).fails(code::USER, &["there is no ", "imgbuild.lock", "imgbuild lock"]);
    room.run("fetch").succeeds();
    let first = fs::read_to_string(&path).unwrap();
    assert_eq!(lock(&room, &["--check"]).succeeds().stdout, "");

    // Signed anew, with the same packages: nothing to do.
    room.archive.publish(&[hello.clone(), world.clone()]);
    let outcome = lock(&room, &["--check"]);
    let date = "input os\n    date 2025-03-01T00:00:00Z -> 2025-03-02T00:00:00Z\n";
    let nothing = "0 changed, 0 added, 0 removed; new files to fetch: 0 (0 bytes)\n";
    assert_eq!(outcome.succeeds().stdout, format!("{date}{nothing}"));

    let newer = hello.version("1.0-2");
    room.archive.publish(&[newer, world]);
    let outcome = lock(&room, &["--check"]);
    outcome.fails(code::NEWER, &["older than what", "imgbuild lock --update"]);
    let size = room.archive.file("pool/main/hello_1.0-2_amd64.deb").len();
    let change = "  ~ hello 1.0-1 -> 1.0-2 (amd64)\n";
    let sum = format!("1 changed, 0 added, 0 removed; new files to fetch: 1 ({size} bytes)\n");
    assert_eq!(outcome.stdout, format!("{date}{change}{sum}"));
    assert_eq!(lock(&room, &["--diff"]).succeeds().stdout, outcome.stdout);
    assert_eq!(fs::read_to_string(&path).unwrap(), first, "asking changes nothing");
    // Neither does locking what is locked.
    assert_eq!(lock(&room, &[]).succeeds().stdout, "");
    assert_eq!(fs::read_to_string(&path).unwrap(), first);

    lock(&room, &["--update", "oss"]).fails(code::USER, &["`oss`", "os"]);
    assert_eq!(lock(&room, &["--update", "os"]).succeeds().stdout, outcome.stdout);
    lock(&room, &["--check"]).succeeds();
    check_store(&room.path("store"));

    // And what changed can be read from two locks, with no network.
    fs::write(room.path("first.lock"), &first).unwrap();
    let asked = room.archive.requests().len();
    assert_eq!(lock(&room, &["--diff", "first.lock"]).succeeds().stdout, outcome.stdout);
    assert_eq!(lock(&room, &["--diff", "first.lock", "cluster"]).succeeds().stdout, outcome.stdout);
    let back = lock(&room, &["--diff", "cluster", "first.lock"]).succeeds().stdout.clone();
    assert!(back.contains("  ~ hello 1.0-2 -> 1.0-1 (amd64), OLDER\n"), "{back}");
    assert_eq!(lock(&room, &["--diff", "first.lock", "first.lock"]).succeeds().stdout, "");
    assert_eq!(room.archive.requests().len(), asked);
}

#[test]
fn a_mirror_that_cannot_be_asked_is_not_taken_for_up_to_date() {
    let room = Room::new(&[Package::new("hello", 100)]);
    room.run("fetch").succeeds();
    lock(&room, &["--check", "--offline"]).fails(code::USER, &["--offline"]);
    room.archive.misbehave("InRelease", imgbuild_tests::archive::Fault::Missing);
    assert_ne!(lock(&room, &["--check"]).code, Some(code::OK));
    lock(&room, &["--check", "--update"]).fails(code::USER, &["--check", "--update"]);
}
