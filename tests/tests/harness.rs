// SPDX-License-Identifier: MIT OR Apache-2.0

//! The QEMU harness itself, on the firmware's own shell: seconds instead of minutes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use imgbuild_tests::disk::is_unchanged;
use imgbuild_tests::frames::{Arp, addresses, mac};
use imgbuild_tests::qemu::{Disk, Vm, overlay, turn};
use imgbuild_tests::switch::Switch;
use imgbuild_tests::tool::{run, tool};

/// A disk whose only content is a script for the firmware's shell.
fn disk(folder: &Path, script: &str) -> PathBuf {
    let (raw, qcow2) = (folder.join("disk.img"), folder.join("disk.qcow2"));
    fs::File::create(&raw).unwrap().set_len(64 << 20).unwrap();
    fs::write(folder.join("startup.nsh"), script.replace('\n', "\r\n")).unwrap();
    run(tool("mformat").args(["-i", raw.to_str().unwrap(), "-F", "::"]));
    run(tool("mcopy").args(["-i", raw.to_str().unwrap()]).arg(folder.join("startup.nsh")).arg("::"));
    overlay(&raw, &qcow2);
    qcow2
}

#[test]
fn a_machine_boots_through_the_firmware_from_its_overlay() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path(), "@echo -off\necho hello from the disk\nreset -s\n");
    let before = fs::read(folder.path().join("disk.img")).unwrap();
    let mut vm = Vm::builder("harness").disk(&disk).logs(folder.path()).start();
    vm.wait_for("hello from the disk", Duration::from_secs(30));
    assert!(fs::read_to_string(folder.path().join("harness.console.log")).unwrap().contains("hello from the disk"));
    drop(vm);
    assert!(fs::read(folder.path().join("disk.img")).unwrap() == before, "the backing image was written to");
}

/// The firmware's shell writes a file to the first disk, and not to the second one, which is slow and has a serial
/// number.
#[test]
fn a_machine_has_several_disks_and_a_screen() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let script = "@echo -off\necho kept > fs0:\\written.txt\necho that was all\n";
    let written = disk(folder.path(), script);
    let (raw, idle) = (folder.path().join("idle.img"), folder.path().join("idle.qcow2"));
    fs::File::create(&raw).unwrap().set_len(64 << 20).unwrap();
    overlay(&raw, &idle);
    let mut builder = Vm::builder("disks").disk(&written).size(1, 512);
    builder.disks.push(Disk { serial: Some("IDLE-1".to_owned()), speed: Some(1 << 20), ..Disk::new(&idle) });
    builder.arguments.extend(["-device", "VGA"].map(str::to_owned));
    let mut vm = builder.start();
    vm.wait_for("that was all", Duration::from_secs(30));
    assert!(vm.written(0) >= 512, "{} bytes written", vm.written(0));
    assert_eq!(vm.written(1), 0);
    let picture = folder.path().join("screen.png");
    vm.screenshot(&picture);
    assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));
    vm.cut_power();
    is_unchanged(&idle, &raw);
}

#[test]
fn a_missed_deadline_shows_the_end_of_the_console() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path(), "@echo -off\necho first\necho FAILED step=nothing\nstall 100000000\n");
    let mut vm = Vm::builder("failing").disk(&disk).start();
    let wait = catch_unwind(AssertUnwindSafe(|| vm.wait_for("converged", Duration::from_secs(30))));
    let message = *wait.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("the console says `FAILED step=nothing`"), "{message}");
    assert!(message.contains("first"), "{message}");
    vm.cut_power();
}

/// Both ways over the wire: the firmware's shell asks for an address, hears the answer, and sends its ping there.
#[test]
fn a_machine_on_the_switch_hears_and_is_heard() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let script = "@echo -off\nconnect -r\nifconfig -s eth0 static 10.77.0.5 255.255.255.0 10.77.0.1\n\
                  for %a run (1 60)\nping -n 1 10.77.0.6\nendfor\necho done\n";
    let disk = disk(folder.path(), script);
    let switch = Switch::new();
    let (ours, theirs) = ("52:54:00:77:00:06", "52:54:00:77:00:05");
    let hearer = switch.host("hearer");
    let address = Ipv4Addr::new(10, 77, 0, 6);
    let _vm = Vm::builder("on-switch").disk(&disk).size(1, 512).switch(&switch, "vm", theirs).start();
    let limit = Duration::from_secs(240);
    let asked = hearer.find(limit, |frame| Arp::parse(frame).filter(|arp| arp.request && arp.target == address));
    let asked = asked.expect("the machine asks for the address");
    assert_eq!(asked.sender_mac, mac(theirs).unwrap());
    assert_eq!(asked.sender, Ipv4Addr::new(10, 77, 0, 5));
    hearer.send(&asked.answer(&mac(ours).unwrap()).unwrap().frame(&asked.sender_mac));
    let echo = hearer.find(limit, |frame| {
        let is_icmp = frame.get(12..14)? == [8, 0] && *frame.get(23)? == 1;
        (is_icmp && addresses(frame)? == (mac(ours)?, mac(theirs)?)).then_some(())
    });
    assert!(echo.is_some(), "the machine has not heard the answer: {:?}", switch.count("vm"));
}
