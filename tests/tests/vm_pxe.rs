// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine with an empty disk that boots from the network: firmware asks for an address and is told what to boot by
//! `imgbuild serve`, iPXE loads the lab's PXE folder from it, and the node is installed and converges. Then three machines at once, one of which runs from memory.
//!
//! `tests/run-pxe` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use imgbuild_tests::build::{binary, folder};
use imgbuild_tests::cli::contents;
use imgbuild_tests::cluster::{Built, logs, replace_once, with_shell};
use imgbuild_tests::disk::DEBUG_SHELL;
use imgbuild_tests::qemu::{Vm, VmBuilder, blank, turn};
use imgbuild_tests::room::{INTERFACE, Room, Service};
use imgbuild_tests::tool::{command, run, unpacked};
use imgbuild_tests::workload::{
    COMMAND, boot_id, busybox, is_ready_again, node_reaches, nodes_are_ready, state_but_for_its_origin,
    state_of_the_lab, the_seed_is_erased, web_pod,
};

/// Time limits as they would be with KVM; the harness multiplies them for TCG. Loading comes on top of all.
const CONVERGE: Duration = Duration::from_secs(400);
/// Of three machines.
const SPLIT: Duration = Duration::from_secs(600);
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

fn machine(room: &Room, name: &str, mac: &str) -> VmBuilder {
    Vm::builder(&format!("pxe.{name}")).logs(&logs()).room(room, mac)
}

/// The lab's cluster file, with the node's MAC address and the tests' shell.
fn with_mac(text: &str) -> String {
    let [node, os] = ["address = \"10.0.2.15\"\n", "[os]\n"];
    let text = replace_once(text, node, &format!("{node}mac = \"{MAC}\"\n"));
    replace_once(&text, os, &format!("{os}kernel_args = [\"{DEBUG_SHELL}\"]\n"))
}

#[test]
#[ignore = "boots from a network: run it with tests/run-pxe"]
fn booted_pxe_installs_a_node_and_boots_its_disk_afterwards() {
    let _turn = turn();
    let (_, pxe) = Built::pxe("lab", "lab-pxe", with_mac);
    run(command("sha256sum").args(["--quiet", "-c", "SHA256SUMS"]).current_dir(&pxe));
    let room = Room::new(&logs());
    let mut laptop = serve(&room, &pxe);
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let disk = scratch.path().join("disk.qcow2");
    blank(&disk, "18G");

    let mut vm = machine(&room, "1-installs", MAC).disk(&disk).start();
    vm.wait_for(KNOWN, BOOT);
    vm.wait_for("firstboot: master-1: converged in", CONVERGE);
    println!("installed from the network and converged {} s after power on", vm.uptime().as_secs());
    assert_eq!(state_but_for_its_origin(&mut vm, "image"), state_of_the_lab());
    nodes_are_ready(&mut vm, &["master-1"]);
    the_seed_is_erased(&mut vm);
    vm.output("sync", BOOT);
    vm.cut_power();

    // The network is still first, and the disk is not touched.
    let mut vm = machine(&room, "2-again", MAC).disk(&disk).start();
    vm.wait_for(KNOWN, BOOT);
    vm.wait_for("firstboot: master-1: already converged, nothing to do", BOOT);
    nodes_are_ready(&mut vm, &["master-1"]);
    assert!(laptop.runs(), "imgbuild serve has ended");
    vm.power_down(BOOT);

    // Nor does the installed machine need the laptop.
    drop(laptop);
    let mut vm = machine(&room, "3-alone", MAC).disk(&disk).start();
    vm.wait_for("firstboot: master-1: already converged, nothing to do", BOOT);
    nodes_are_ready(&mut vm, &["master-1"]);
    let image = busybox(&mut vm);
    let pod = web_pod(&mut vm, "after-the-network", "master-1", &image);
    node_reaches(&mut vm, &pod, 8080, "after-the-network");
    vm.power_down(BOOT);
}

/// One folder for a whole room: two machines install themselves, the third one, whose menu somebody asks for it, runs from memory,
/// joins, and joins again when it has forgotten everything.
#[test]
#[ignore = "boots from a network: run it with tests/run-pxe"]
fn booted_pxe_forms_a_cluster_with_a_worker_that_has_no_use_for_its_disk() {
    let _turn = turn();
    let (built, pxe) = Built::pxe("lab-split", "lab-split-pxe", with_shell);
    let room = Room::new(&logs());
    let _laptop = serve(&room, &pxe);
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let disk_of = |name: &str| scratch.path().join(format!("{name}.qcow2"));
    for node in &built.nodes {
        blank(&disk_of(&node.name), "18G");
    }
    // It belongs to somebody, and must stay as it is.
    let before = contents(&disk_of("worker-1"));
    let on = |boot: &str, name: &str, memory_mib: u32| {
        machine(&room, boot, &built.node(name).mac).disk(&disk_of(name)).size(2, memory_mib).start()
    };
    let from_memory = || {
        let mut worker = on("split.worker-1", "worker-1", 4096);
        // The menu waits five seconds: one entry down.
        worker.wait_for_menu("this machine is worker-1", BOOT);
        worker.console.send("\x1b[B\r");
        worker.wait_for("imgbuild.diskless=worker-1", BOOT);
        worker
    };

    let mut worker = from_memory();
    let mut etcd = on("split.etcd-1", "etcd-1", 1536);
    let mut master = on("split.master-1", "master-1", 3072);
    etcd.wait_for("firstboot: etcd-1: converged in", CONVERGE);
    master.wait_for("firstboot: master-1: converged in", SPLIT);
    worker.wait_for("firstboot: worker-1: converged in", SPLIT);
    println!("installed or loaded, and converged, {} s after the first power on", worker.uptime().as_secs());
    nodes_are_ready(&mut master, &["master-1", "worker-1"]);
    let image = busybox(&mut master);
    let pod = web_pod(&mut master, "in-memory", "worker-1", &image);
    node_reaches(&mut master, &pod, 8080, "in-memory");
    let root = worker.output("findmnt --noheadings --output FSTYPE --target /var/lib", COMMAND);
    assert_eq!(root.trim(), "tmpfs", "what worker-1 writes is not in memory");

    let boot = boot_id(&mut master, "worker-1");
    worker.cut_power();
    assert_eq!(contents(&disk_of("worker-1")), before, "the disk of worker-1 was written to");
    let mut worker = from_memory();
    worker.wait_for("firstboot: worker-1: converged in", SPLIT);
    println!("forgot everything and converged again {} s after power on", worker.uptime().as_secs());
    is_ready_again(&mut master, "worker-1", &boot);
    worker.cut_power();
    assert_eq!(contents(&disk_of("worker-1")), before, "the disk of worker-1 was written to");
}
