// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine with an empty disk that boots from the network: firmware asks for an address and is told what to boot by
//! `imgbuild serve`, iPXE loads the lab's PXE folder from it, and the node is installed and converges. Then the same from memory alone.
//!
//! `tests/run-pxe` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use imgbuild_tests::build::{binary, folder};
use imgbuild_tests::cli::contents;
use imgbuild_tests::cluster::{Built, logs};
use imgbuild_tests::qemu::{Vm, VmBuilder, blank, turn};
use imgbuild_tests::room::{INTERFACE, Room, Service};
use imgbuild_tests::tool::{command, run, unpacked};
use imgbuild_tests::workload::{
    busybox, node_reaches, nodes_are_ready, state_but_for_its_origin, state_of_the_lab, the_seed_is_erased, web_pod,
};

/// Time limits as they would be with KVM; the harness multiplies them for TCG. Loading comes on top of both.
const CONVERGE: Duration = Duration::from_secs(400);
const BOOT: Duration = Duration::from_secs(200);

const MAC: &str = "52:54:00:12:34:56";
const KNOWN: &str = "this machine is master-1";

/// The laptop of somebody in the room.
fn serve(room: &Room, folder: &Path) -> Service {
    let ipxe = unpacked("ipxe/usr/lib/ipxe/snponly.efi", "ipxe");
    let mut serve = command(binary());
    serve.arg("serve").arg(folder).args(["--interface", INTERFACE, "--boot-file"]).arg(ipxe);
    room.start(&serve, &logs().join("pxe.serve.log"))
}

fn machine(room: &Room, name: &str) -> VmBuilder {
    Vm::builder(&format!("pxe.{name}")).logs(&logs()).room(room, MAC)
}

#[test]
#[ignore = "boots from a network: run it with tests/run-pxe"]
fn booted_pxe_installs_a_node_and_boots_its_disk_afterwards() {
    let _turn = turn();
    let pxe = Built::pxe("lab-pxe", MAC);
    run(command("sha256sum").args(["--quiet", "-c", "SHA256SUMS"]).current_dir(&pxe));
    let room = Room::new(&logs());
    let mut laptop = serve(&room, &pxe);
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let disk = scratch.path().join("disk.qcow2");
    blank(&disk, "18G");

    let mut vm = machine(&room, "1-installs").disk(&disk).start();
    vm.wait_for(KNOWN, BOOT);
    vm.wait_for("firstboot: master-1: converged in", CONVERGE);
    println!("installed from the network and converged {} s after power on", vm.uptime().as_secs());
    assert_eq!(state_but_for_its_origin(&mut vm, "image"), state_of_the_lab());
    nodes_are_ready(&mut vm, &["master-1"]);
    the_seed_is_erased(&mut vm);
    vm.output("sync", BOOT);
    vm.cut_power();

    // The network is still first, and the disk is not touched.
    let mut vm = machine(&room, "2-again").disk(&disk).start();
    vm.wait_for(KNOWN, BOOT);
    vm.wait_for("firstboot: master-1: already converged, nothing to do", BOOT);
    nodes_are_ready(&mut vm, &["master-1"]);
    assert!(laptop.runs(), "imgbuild serve has ended");
    vm.power_down(BOOT);

    // Nor does the installed machine need the laptop.
    drop(laptop);
    let mut vm = machine(&room, "3-alone").disk(&disk).start();
    vm.wait_for("firstboot: master-1: already converged, nothing to do", BOOT);
    nodes_are_ready(&mut vm, &["master-1"]);
    let image = busybox(&mut vm);
    let pod = web_pod(&mut vm, "after-the-network", "master-1", &image);
    node_reaches(&mut vm, &pod, 8080, "after-the-network");
    vm.power_down(BOOT);
}

#[test]
#[ignore = "boots from a network: run it with tests/run-pxe"]
fn booted_pxe_runs_a_node_from_memory() {
    let _turn = turn();
    let pxe = Built::pxe("lab-pxe", MAC);
    let room = Room::new(&logs());
    let _laptop = serve(&room, &pxe);
    // A disk that belongs to somebody, and must stay as it is.
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let disk = scratch.path().join("disk.qcow2");
    blank(&disk, "18G");
    let before = contents(&disk);

    let mut vm = machine(&room, "diskless").disk(&disk).size(2, 8192).start();
    // The menu waits five seconds: one entry down.
    vm.wait_for_menu(KNOWN, BOOT);
    vm.console.send("\x1b[B\r");
    vm.wait_for("imgbuild.diskless=master-1", BOOT);
    vm.wait_for("firstboot: master-1: converged in", CONVERGE);
    println!("converged from memory {} s after power on", vm.uptime().as_secs());
    nodes_are_ready(&mut vm, &["master-1"]);
    vm.cut_power();
    assert_eq!(contents(&disk), before, "the disk was written to");
}
