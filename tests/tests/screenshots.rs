// SPDX-License-Identifier: MIT OR Apache-2.0

//! What README shows: the boot menu of an installation image as a picture, and what a console says until its node has
//! converged.
//!
//! `tests/screenshots` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::time::Duration;

use imgbuild_tests::build::{folder, repository};
use imgbuild_tests::cluster::{Built, logs};
use imgbuild_tests::qemu::{Medium, Vm, blank, turn};

/// For a machine with KVM, as all limits.
const MENU: Duration = Duration::from_secs(60);
const CONVERGE: Duration = Duration::from_secs(300);
/// A picture with nothing on it, of the same size, has a third of this, in bytes.
const NOT_BLANK: usize = 5000;

const NODE: &str = "etcd-1";

#[test]
#[ignore = "writes docs/boot-menu.png: run it with tests/screenshots"]
fn booted_screenshots() {
    let _turn = turn();
    let (built, iso) = Built::iso("lab-split", "lab-split-iso");
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let disk = scratch.path().join("disk.qcow2");
    blank(&disk, "18G");
    let mut builder = Vm::builder("screenshots").disk(&disk).logs(&logs()).size(2, 1536);
    builder.mac.clone_from(&built.node(NODE).mac);
    builder.arguments.extend(["-device", "VGA"].map(str::to_owned));
    let mut vm = builder.medium(&iso, Medium::UsbStick).start();

    // The menu is on the serial line as on the screen. When it counts, it is whole.
    vm.wait_for_menu("Boot in 9 s", MENU);
    let picture = scratch.path().join("boot-menu.png");
    vm.screenshot(&picture);
    let bytes = fs::read(&picture).unwrap();
    assert!(bytes.len() >= NOT_BLANK, "the picture of the boot menu has {} bytes: the screen is blank", bytes.len());
    let place = repository().join("docs/boot-menu.png");
    fs::copy(&picture, &place).unwrap();
    println!("{} is written\n", place.display());

    vm.wait_for(&format!("firstboot: {NODE}: converged in"), CONVERGE);
    for line in vm.console.since(0).lines() {
        // What a console says may stand behind `login: `.
        if let Some(begin) = line.find("firstboot: ") {
            println!("{}", &line[begin..]);
        }
    }
}
