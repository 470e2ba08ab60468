// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--offline` opens no socket, as strace sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use imgbuild_tests::archive::Package;
use imgbuild_tests::archive_room::Room;
use imgbuild_tests::build::{binary, folder, lab};
use imgbuild_tests::cli::{Outcome, code};
use imgbuild_tests::tool::tool;

/// Runs a command and everything it starts, and gives what it said with the sockets that were asked for and are no local ones.
fn traced(command: &Command, log: &Path) -> (Outcome, Vec<String>) {
    let mut strace = tool("strace");
    strace.args(["--follow-forks", "--quiet=all", "--seccomp-bpf", "--trace=socket,execve", "--output"]).arg(log);
    strace.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        strace.current_dir(folder);
    }
    let outcome = Outcome::of(&mut strace);
    let calls = fs::read_to_string(log).unwrap();
    // Had strace seen nothing, there would be no proof.
    assert!(calls.lines().any(|call| call.contains("execve(") && call.contains("imgbuild")), "{calls}\n{outcome}");
    let sockets = calls.lines().filter(|call| call.contains("socket(") && !call.contains("socket(AF_UNIX"));
    (outcome, sockets.map(str::to_owned).collect())
}

fn opens_none(command: &Command, log: &Path) -> Outcome {
    let (outcome, sockets) = traced(command, log);
    assert_eq!(sockets, [""; 0], "{outcome}");
    outcome
}

#[test]
fn no_command_opens_a_socket_when_offline() {
    let room = Room::new(&[Package::new("hello", 5000)]);
    let log = room.path("calls");
    let offline = |arguments: &[&str]| {
        let mut command = room.command(arguments[0]);
        command.args(&arguments[1..]).arg("--offline");
        opens_none(&command, &log)
    };
    // Not even where a network is what is missing.
    for verb in ["lock", "fetch", "build"] {
        offline(&[verb, "--profile", "master-1"]).fails(code::USER, &["--offline"]);
    }
    let (fetched, sockets) = traced(&room.command("fetch"), &log);
    fetched.succeeds();
    assert!(sockets.iter().any(|call| call.contains("AF_INET")), "with a network there are some: {sockets:?}");

    offline(&["fetch"]).succeeds();
    offline(&["lock"]).succeeds();
    offline(&["lock", "--check"]).fails(code::USER, &["--offline"]);
    offline(&["lock", "--update"]).fails(code::USER, &["--offline"]);
    offline(&["validate"]).succeeds();
    offline(&["render", "--all"]).succeeds();
    offline(&["build", "--output", "seed", "--all"]).succeeds();
    // The cluster of this room is no whole node: the build ends when it looks into the packages.
    let asked = room.archive.requests().len();
    let built = offline(&["build", "--profile", "master-1"]);
    assert!(!built.stderr.contains("--offline"), "everything it needs is there: {built}");
    for arguments in [&["list"][..], &["verify"], &["gc", "cluster"], &["export", "drive"], &["import", "drive"]] {
        let mut command = Command::new(binary());
        command.arg("store").args(arguments).arg("--offline").arg("--store").arg(room.path("store"));
        command.arg("--cluster").arg(room.path("cluster")).current_dir(room.folder());
        opens_none(&command, &log).succeeds();
    }
    assert_eq!(room.archive.requests().len(), asked);
}

#[test]
fn built_lab_a_whole_build_opens_no_socket_when_offline() {
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let mut command = Command::new(binary());
    command.args([
        "build",
        "--offline",
        "--profile",
        "master-1",
        "--output",
        "disk,iso,pxe,bundle,qcow2,seed",
        "--cluster",
    ]);
    command.arg(&lab().cluster).arg("--out").arg(scratch.path().join("out")).current_dir(folder());
    opens_none(&command, &scratch.path().join("calls")).succeeds();
}
