// SPDX-License-Identifier: MIT OR Apache-2.0

//! The installer where something is in its way: disks that hold data, disks that cannot be told apart, power cuts, a
//! person who wants a shell; and the installer on loongarch64. One machine at a time: `etcd-1`, the quickest node to
//! converge. `vm_iso` has three machines and nothing in their way.
//!
//! `tests/run-install` runs all of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use imgbuild_tests::build::folder;
use imgbuild_tests::cli::contents;
use imgbuild_tests::cluster::{Built, logs, replace_once};
use imgbuild_tests::disk::{first_mib, is_unchanged, partitions, with_default_entry};
use imgbuild_tests::qemu::{Architecture, Disk, Medium, Vm, VmBuilder, overlay, turn};
use imgbuild_tests::random::Random;
use imgbuild_tests::tool::{run, tool};
use imgbuild_tests::workload::COMMAND;

/// For one machine with KVM, as all limits: until the installer has said where the node goes, or why nowhere. Where
/// nothing is certain it waits 30 s for what may turn up late.
const INSTALLER: Duration = Duration::from_secs(90);
/// Until the node is on the disk: the image is read twice and written once, perhaps slowly.
const INSTALL: Duration = Duration::from_secs(120);
/// Until the node, which was installed a moment ago, has converged.
const CONVERGE: Duration = Duration::from_secs(120);

const NODE: &str = "etcd-1";
/// Larger than the image, which has 16 GiB: the data partition has to grow.
const DISK: u64 = 18 << 30;
/// Bytes per second of a disk on which writing takes long enough to be cut short: 200 MB are 12 s.
const SLOW: u64 = 16 << 20;
/// The power is cut when at most this much is written, in MiB. The node has more, so the cut always is in the middle.
const CUT_WITHIN: usize = 140;

/// What the partitions of an installed node are called, in their order.
const PARTITIONS: [&str; 7] = ["ESP", "root-a", "root-b", "payload-a", "payload-b", "CIDATA", "data"];

/// A disk of a machine, and what was on it before.
struct TestDisk {
    before: PathBuf,
    disk: Disk,
}

impl TestDisk {
    /// Zeros.
    fn empty(folder: &Path, serial: &str) -> Self {
        let before = folder.join(format!("{serial}.raw"));
        File::create(&before).unwrap().set_len(DISK).unwrap();
        Self::over(before, serial)
    }

    /// Somebody's filesystem with a file.
    fn foreign(folder: &Path, serial: &str) -> Self {
        let (before, files) = (folder.join(format!("{serial}.raw")), folder.join(format!("{serial}.files")));
        fs::create_dir(&files).unwrap();
        fs::write(files.join("the-only-copy"), "nobody has another one\n".repeat(1000)).unwrap();
        run(tool("mke2fs").args(["-q", "-t", "ext4", "-d"]).args([&files, &before]).arg("18G"));
        assert_eq!(fs::metadata(&before).unwrap().len(), DISK);
        Self::over(before, serial)
    }

    fn over(before: PathBuf, serial: &str) -> Self {
        let file = before.with_extension("qcow2");
        overlay(&before, &file);
        Self { before, disk: Disk { serial: Some(serial.to_owned()), ..Disk::new(&file) } }
    }

    /// Every byte is what it was. The machine is off.
    fn is_unchanged(&self) {
        is_unchanged(&self.disk.file, &self.before);
    }

    /// The node's partition table is on it. The machine is off.
    fn holds_the_node(&self) {
        let found = partitions(&first_mib(&self.disk.file, &self.before.with_extension("first")));
        let names: Vec<&str> = found.iter().map(|partition| partition.name.as_str()).collect();
        assert_eq!(names, PARTITIONS, "the node is not on {}", self.disk.file.display());
    }

    /// Its first sector says that an installation did not end (docs/contracts.md, section 11). The machine is off.
    fn is_begun(&self) {
        let first = fs::read(first_mib(&self.disk.file, &self.before.with_extension("first"))).unwrap();
        let line = String::from_utf8_lossy(first[..512].split(|byte| *byte == b'\n').next().unwrap());
        let is_marker = line.starts_with("imgbuild: installing ") && line.ends_with(&format!(" {NODE}"));
        assert!(is_marker, "{} begins with `{}`", self.disk.file.display(), line.escape_debug());
    }
}

/// A machine that is to be `etcd-1`.
struct Machine {
    label: &'static str,
    architecture: Architecture,
    mac: String,
    disks: Vec<TestDisk>,
    /// How often it was switched on.
    boots: u32,
}

impl Machine {
    fn new(label: &'static str, built: &Built, disks: Vec<TestDisk>) -> Self {
        let mac = built.node(NODE).mac.clone();
        Self { label, architecture: built.architecture, mac, disks, boots: 0 }
    }

    /// Switches it on with a stick, which the firmware tries after the disks.
    fn on(&mut self, medium: &Path) -> Vm {
        self.on_with(|machine| machine.medium(medium, Medium::UsbStick))
    }

    fn on_with(&mut self, attach: impl FnOnce(VmBuilder) -> VmBuilder) -> Vm {
        self.boots += 1;
        let memory_mib = match self.architecture {
            Architecture::Amd64 => 1536,
            // Its pages have 16 KiB.
            Architecture::Loong64 => 2048,
        };
        let name = format!("{}.{NODE}.{}", self.label, self.boots);
        let mut builder = Vm::builder(&name).architecture(self.architecture).logs(&logs()).size(2, memory_mib);
        builder.mac.clone_from(&self.mac);
        builder.disks = self.disks.iter().map(|disk| disk.disk.clone()).collect();
        let vm = attach(builder).start();
        println!("{name} is on");
        vm
    }
}

/// An installation image of `etcd-1` of `lab-split`, with these lines in the cluster file's `[node.install]`. It is
/// overwritten by the next one.
fn lab_split(install: &[&str]) -> (Built, PathBuf) {
    let mac = "mac = \"52:54:00:77:00:0b\"\n";
    let table = if install.is_empty() { String::new() } else { format!("\n[node.install]\n{}\n", install.join("\n")) };
    Built::iso_of("lab-split", "lab-split-etcd-1", NODE, |text| replace_once(text, mac, &format!("{mac}{table}")))
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(folder()).expect("making a temporary folder")
}

/// Waits until the installer has chosen a disk, and checks that it is this one, with what it says of it.
fn goes_to(vm: &mut Vm, disk: &str, said: &str) {
    let line = vm.wait_for(&format!("firstboot: install: {NODE} goes to "), INSTALLER);
    println!("{}: {}", vm.name(), line.trim());
    assert!(line.contains(&format!(" goes to {disk} (")) && line.contains(said), "not {disk} with `{said}`: {line}");
}

/// Waits until the installer, which the firmware has started although there is a node on the disk, leaves that node alone.
/// `medium` is how the kernel calls what the installer came from.
fn leaves_the_node_alone(vm: &mut Vm, medium: &str) {
    // Were the disk started, no installer would say anything.
    let line = vm.wait_for_words(&["firstboot: install: the medium is|firstboot: node: seed:|converged"], 0, INSTALLER);
    assert!(line.contains(&format!("firstboot: install: the medium is {medium}")), "not from {medium}: {line}");
    let line = vm.wait_for_words(
        &["firstboot: install: etcd-1 goes to|firstboot: install: failed|nothing is written"],
        0,
        INSTALLER,
    );
    assert!(line.contains(&format!("{NODE} is installed already: nothing is written")), "{line}");
}

fn is_installed_on(vm: &mut Vm, disk: &str) {
    vm.wait_for(&format!("firstboot: install: {NODE} is installed on {disk}"), INSTALL);
    println!("{}: installed {} s after power on", vm.name(), vm.uptime().as_secs());
}

/// Waits until the installer has refused, for the reason `why` and with every one of `parts` in what it says, and gives all
/// that. No disk was written to.
fn refuses(vm: &mut Vm, disks: usize, why: &str, parts: &[&str]) -> String {
    let failed = "firstboot: install: FAILED:";
    // Whatever it does instead is seen at once.
    let either = format!("{failed}|firstboot: install: {NODE} goes to|is installed already");
    let line = vm.wait_for_words(&[&either], 0, INSTALLER);
    assert!(line.contains(failed) && line.contains(why), "a refusal with `{why}` wanted: {line}");
    vm.wait_for_words(&["firstboot: install: no disk was written; press Enter to restart the machine"], 0, COMMAND);
    let console = vm.console.since(0);
    let said = console[console.find(failed).unwrap()..].to_owned();
    println!("{}: {said}", vm.name());
    for part in parts {
        assert!(said.contains(part), "no `{part}` in what the installer says:\n{said}");
    }
    for disk in 0..disks {
        assert_eq!(vm.written(disk), 0, "disk {disk} was written to");
    }
    said
}

/// Somebody has read it.
fn press_enter(vm: Vm) {
    vm.console.send("\n");
    vm.wait_until_off(COMMAND);
}

#[test]
#[ignore = "installs a machine: run it with tests/run-install"]
fn booted_install_takes_the_empty_disk_and_leaves_the_other_alone() {
    let _turn = turn();
    let (built, iso) = lab_split(&[]);
    let scratch = scratch();
    let disks = vec![TestDisk::foreign(scratch.path(), "DATA-1"), TestDisk::empty(scratch.path(), "EMPTY-1")];
    let mut machine = Machine::new("install-empty", &built, disks);

    let mut vm = machine.on(&iso);
    goes_to(&mut vm, "vdb", "virtio-EMPTY-1; empty");
    is_installed_on(&mut vm, "vdb");
    // Of the system that runs then, too.
    vm.wait_for(&format!("firstboot: {NODE}: converged in"), CONVERGE);
    let labels = vm.output("lsblk --noheadings --output PARTLABEL /dev/vdb", COMMAND);
    assert_eq!(labels.split_whitespace().collect::<Vec<_>>(), PARTITIONS);
    vm.output("sync", COMMAND);
    assert_eq!(vm.written(0), 0, "the disk with data was written to");
    assert!(vm.written(1) > 0, "nothing was written to the empty disk");
    vm.cut_power();
    machine.disks[0].is_unchanged();
    machine.disks[1].holds_the_node();
}

#[test]
#[ignore = "installs a machine: run it with tests/run-install"]
fn booted_install_refuses_a_disk_with_data_until_the_cluster_file_says_wipe() {
    let _turn = turn();
    let (built, iso) = lab_split(&[]);
    let scratch = scratch();
    let mut machine = Machine::new("install-wipe", &built, vec![TestDisk::foreign(scratch.path(), "DATA-1")]);

    let mut vm = machine.on(&iso);
    let parts = [
        "\n  vda: 19 GB, serial DATA-1, id virtio-DATA-1; holds an ext2, ext3 or ext4 filesystem\n",
        "not taken: what is on it would be lost",
        "`wipe = true`, which loses what is on it",
        "below [node.install] of etcd-1",
    ];
    let said = refuses(&mut vm, 1, "no disk of this machine is one for etcd-1", &parts);
    press_enter(vm);
    machine.disks[0].is_unchanged();

    // The line is copied from the console. It means that disk and no other, also when others are put in beside it.
    let line = said.split_once("to have it taken: `").and_then(|(_, rest)| rest.split_once('`')).unwrap().0;
    assert_eq!(line, "disk = { id = \"virtio-DATA-1\" }");
    let (_, iso) = lab_split(&[line, "wipe = true"]);
    machine.disks.insert(0, TestDisk::foreign(scratch.path(), "DATA-0"));
    machine.disks.push(TestDisk::empty(scratch.path(), "EMPTY-2"));
    let mut vm = machine.on(&iso);
    goes_to(&mut vm, "vdb", "virtio-DATA-1; holds an ext2, ext3 or ext4 filesystem");
    is_installed_on(&mut vm, "vdb");
    vm.cut_power();
    machine.disks[0].is_unchanged();
    machine.disks[1].holds_the_node();
    machine.disks[2].is_unchanged();
}

#[test]
#[ignore = "installs a machine: run it with tests/run-install"]
fn booted_install_refuses_two_empty_disks_until_the_cluster_file_names_one() {
    let _turn = turn();
    let (built, iso) = lab_split(&[]);
    let scratch = scratch();
    let disks = ["EMPTY-1", "EMPTY-2"].map(|serial| TestDisk::empty(scratch.path(), serial));
    let mut machine = Machine::new("install-two", &built, disks.into());

    let mut vm = machine.on(&iso);
    let parts = [
        "\n  vda: 19 GB, serial EMPTY-1, id virtio-EMPTY-1; empty\n",
        "to have it taken: `disk = { id = \"virtio-EMPTY-1\" }`\n",
        "\n  vdb: 19 GB, serial EMPTY-2, id virtio-EMPTY-2; empty\n",
        "to have it taken: `disk = { id = \"virtio-EMPTY-2\" }`\n",
        "not taken: it holds the installation medium",
        "below [node.install] of etcd-1",
    ];
    refuses(&mut vm, 2, "etcd-1 could go to vda or vdb", &parts);
    vm.cut_power();
    machine.disks.iter().for_each(TestDisk::is_unchanged);

    let (_, iso) = lab_split(&["disk = { serial = \"EMPTY-2\" }"]);
    let mut vm = machine.on(&iso);
    goes_to(&mut vm, "vdb", "virtio-EMPTY-2; empty");
    is_installed_on(&mut vm, "vdb");
    vm.cut_power();
    machine.disks[0].is_unchanged();
    machine.disks[1].holds_the_node();
}

/// Three power cuts: while the node is written, while it is read back, and when it is installed and was never booted.
/// Twice the same medium begins again; then it leaves the disk alone, whichever of the two the firmware starts.
#[test]
#[ignore = "installs a machine: run it with tests/run-install"]
fn booted_install_begins_again_after_a_power_cut_and_never_after_its_end() {
    let _turn = turn();
    let mut random = Random::from_environment();
    let (built, iso) = lab_split(&[]);
    let scratch = scratch();
    let mut disk = TestDisk::empty(scratch.path(), "DISK-1");
    disk.disk.speed = Some(SLOW);
    let mut machine = Machine::new("install-cut", &built, vec![disk]);

    let mut vm = machine.on(&iso);
    goes_to(&mut vm, "vda", "virtio-DISK-1; empty");
    vm.wait_for("firstboot: install: checking the medium: done", INSTALL);
    cut_while_writing(vm, 1 + random.below(CUT_WITHIN));
    machine.disks[0].is_begun();

    let mut vm = machine.on(&iso);
    goes_to(&mut vm, "vda", "an installation of this node that did not end");
    vm.wait_for("firstboot: install: writing the disk: done", INSTALL);
    cut_before(vm, "is installed on");
    machine.disks[0].is_begun();

    machine.disks[0].disk.speed = None;
    let mut vm = machine.on(&iso);
    goes_to(&mut vm, "vda", "an installation of this node that did not end");
    is_installed_on(&mut vm, "vda");
    vm.cut_power();
    machine.disks[0].holds_the_node();

    let mut vm = machine.on_with(|vm| vm.medium_before_disks(&iso, Medium::UsbStick));
    leaves_the_node_alone(&mut vm, "sda");
    vm.wait_for(&format!("firstboot: {NODE}: converged in"), CONVERGE);
    vm.output("echo kept >/root/kept && sync", COMMAND);
    vm.cut_power();

    let mut vm = machine.on(&iso);
    vm.wait_for(&format!("firstboot: {NODE}: already converged, nothing to do"), CONVERGE);
    assert!(!vm.console.since(0).contains("firstboot: install:"), "the firmware has started the medium, not the disk");
    assert_eq!(vm.output("cat /root/kept", COMMAND), "kept\n");
}

/// Cuts the power when the disk has got this much of the node. The installer's own progress cannot say when that is: a
/// small node is in the page cache before the first line of progress, which comes after 5 s, and on the disk after the
/// sync that follows.
fn cut_while_writing(mut vm: Vm, mib: usize) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while vm.written(0) < (mib as u64) << 20 {
        let written = vm.written(0);
        assert!(Instant::now() < deadline, "{written} bytes of {mib} MiB written:\n{}", vm.console.tail(20));
        thread::sleep(Duration::from_millis(50));
    }
    println!("{}: the power is cut when {mib} MiB are written", vm.name());
    cut_before(vm, "writing the disk: done");
}

/// Cuts the power. The installer has not said `line` until then, or this is not the moment that the test is about.
fn cut_before(vm: Vm, line: &str) {
    let console = vm.console.clone();
    vm.cut_power();
    assert!(!console.since(0).contains(line), "the installer was faster than the power cut:\n{}", console.tail(20));
}

#[test]
#[ignore = "boots a machine: run it with tests/run-install"]
fn booted_rescue_is_a_shell_that_writes_nothing_and_makes_a_disk_empty() {
    let _turn = turn();
    let (built, iso) = lab_split(&[]);
    let scratch = scratch();
    let rescue = scratch.path().join("rescue.iso");
    with_default_entry(&iso, &rescue, "imgbuild-rescue.conf");
    let disks = ["KEPT-1", "GIVEN-1"].map(|serial| TestDisk::foreign(scratch.path(), serial));
    let mut machine = Machine::new("install-rescue", &built, disks.into());

    let mut vm = machine.on(&rescue);
    vm.wait_for("firstboot: install: a root shell follows; no disk is touched", INSTALLER);
    vm.open_rescue_shell(INSTALLER);
    assert_eq!(vm.output("id -u", COMMAND), "0\n");
    vm.output("test -b /dev/vda && test -b /dev/vdb", COMMAND);
    let mounts = vm.output("cat /proc/mounts", COMMAND);
    assert!(!mounts.contains("/dev/vd"), "a disk of the machine is mounted:\n{mounts}");
    // The node of the medium is not converged, nor one on a disk.
    assert_eq!(vm.exec("systemctl is-enabled firstboot.service", COMMAND).output, "masked\n");
    assert_eq!(vm.exec("systemctl is-active multi-user.target", COMMAND).output, "inactive\n");
    vm.output("sync", COMMAND);
    assert_eq!((vm.written(0), vm.written(1)), (0, 0), "the rescue system has written to a disk");

    // What docs/installer.md says, to the letter.
    let documented = include_str!("../../docs/installer.md");
    let commands: Vec<&str> = documented.lines().filter(|line| line.starts_with("blkdiscard ")).collect();
    assert_eq!(commands.len(), 2, "docs/installer.md has another way to make a disk empty");
    for command in commands {
        vm.output(&command.replace("/dev/sdX", "/dev/vdb"), COMMAND);
    }
    assert_eq!(vm.written(0), 0, "the other disk was written to");
    vm.cut_power();

    let mut vm = machine.on(&iso);
    goes_to(&mut vm, "vdb", "virtio-GIVEN-1; empty");
    is_installed_on(&mut vm, "vdb");
    vm.cut_power();
    machine.disks[0].is_unchanged();
    machine.disks[1].holds_the_node();
}

/// From a stick to a converged node; and a CD that is started before the disk leaves it alone.
#[test]
#[ignore = "installs an emulated loongarch64 machine: run it with tests/run-install loong64"]
fn booted_loong64_installs_from_a_stick_and_its_cd_leaves_the_node_alone() {
    let _turn = turn();
    // The shipped cluster file does not say which machine it is.
    let address = "address = \"10.0.2.15\"\n";
    let with_mac = |text: &str| replace_once(text, address, &format!("{address}mac = \"52:54:00:64:00:0f\"\n"));
    let (built, iso) = Built::iso_of("lab-loong64", "lab-loong64-etcd-1", NODE, with_mac);
    let before = contents(&iso);
    let scratch = scratch();
    let mut machine = Machine::new("install-loong64", &built, vec![TestDisk::empty(scratch.path(), "DISK-1")]);

    let mut vm = machine.on(&iso);
    goes_to(&mut vm, "vda", "virtio-DISK-1; empty");
    is_installed_on(&mut vm, "vda");
    vm.wait_for(&format!("firstboot: {NODE}: converged in"), CONVERGE);
    println!("converged {} s after power on", vm.uptime().as_secs());
    assert_eq!(vm.output("uname -m", COMMAND), "loongarch64\n");
    vm.output("echo kept >/root/kept && sync", COMMAND);
    vm.cut_power();
    machine.disks[0].holds_the_node();

    let mut vm = machine.on_with(|vm| vm.medium_before_disks(&iso, Medium::Cd));
    leaves_the_node_alone(&mut vm, "sr0");
    vm.wait_for(&format!("firstboot: {NODE}: already converged, nothing to do"), CONVERGE);
    assert_eq!(vm.output("cat /root/kept", COMMAND), "kept\n");
    vm.cut_power();
    assert_eq!(contents(&iso), before, "the medium was written to");
}
