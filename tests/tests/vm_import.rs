// SPDX-License-Identifier: MIT OR Apache-2.0

//! How long the import of images takes a node, beside what `ctr images import` takes for the same images, one archive after the
//! other, on the same machine.
//!
//! `tests/run-import` runs it. It is a measurement: it fails where the import is not twice as fast.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::Duration;

use imgbuild_tests::build::{folder, lab};
use imgbuild_tests::disk::debug_overlay;
use imgbuild_tests::qemu::{Vm, overlay, turn};
use imgbuild_tests::workload::{COMMAND, POD};

/// For one machine with KVM, as all limits; the harness makes more of it.
const CONVERGE: Duration = Duration::from_secs(240);
/// Six archives.
const IMPORT: Duration = Duration::from_secs(120);

/// Another containerd beside the node's, with nothing in it.
const SECOND: &str = "mkdir -p /var/lib/second /run/second
printf 'version = 2\\nroot = \"/var/lib/second\"\\nstate = \"/run/second\"\\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\\n[grpc]\\naddress = \"/run/second/sock\"\\n' > /run/second/config.toml
systemd-run --quiet --unit=second containerd --config /run/second/config.toml
until ctr -a /run/second/sock version > /dev/null 2>&1; do sleep 0.2; done";

#[test]
#[ignore = "a measurement: run it with tests/run-import"]
fn booted_import_is_twice_as_fast_as_that_of_archives() {
    let _turn = turn();
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let base = scratch.path().join("base.qcow2");
    debug_overlay(&lab().image, &base);
    let disk = scratch.path().join("disk.qcow2");
    overlay(&base, &disk);
    let mut vm = Vm::builder("import").disk(&disk).logs(&folder().join("logs")).start();
    vm.wait_for("firstboot: master-1: converged in", CONVERGE);
    // From the journal of firstboot: to the second, as it says it itself.
    let ours = vm.output("grep '\"event\":\"done\",\"step\":\"images\"' /var/lib/imgbuild/journal.jsonl", COMMAND);
    let ours: f64 = between(&ours, "\"detail\":\"", " s\"").parse().unwrap();

    // Nothing else may run beside the other one either: no kubelet, no pods.
    vm.output("systemctl stop kubelet", COMMAND);
    let kill = "for task in $(ctr -n k8s.io tasks ls -q); do ctr -n k8s.io tasks kill -s SIGKILL $task; done; ctr -n k8s.io tasks ls";
    vm.until(kill, POD, |done| done.status == 0 && !done.output.contains("RUNNING"));
    let names = vm.output("ctr -n k8s.io images ls -q | grep -v sha256:", COMMAND);
    let names: Vec<&str> = names.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    assert!(names.len() >= 6, "{names:?}");
    vm.output("mkdir -p /var/lib/archives", COMMAND);
    for (number, name) in names.iter().enumerate() {
        done(&mut vm, &format!("ctr -n k8s.io images export /var/lib/archives/{number}.tar {name}"));
    }
    done(&mut vm, SECOND);
    done(&mut vm, "sync; echo 3 > /proc/sys/vm/drop_caches");
    let import = "begin=$(date +%s.%N); for archive in /var/lib/archives/*.tar; do ctr -a /run/second/sock -n k8s.io images import $archive > /dev/null || exit 1; done; \
                  sync -f /var/lib/second; echo took $(date +%s.%N) $begin";
    let took = vm.until(import, IMPORT, |done| done.status == 0);
    let times: Vec<f64> =
        took.trim().trim_start_matches("took ").split(' ').map(|time| time.parse().unwrap()).collect();
    let theirs = times[0] - times[1];
    let listed = vm.output("ctr -a /run/second/sock -n k8s.io images ls -q", COMMAND);
    assert!(names.iter().all(|name| listed.lines().any(|line| line.trim() == *name)), "{listed}");
    println!(
        "{} images: firstboot {ours} s, ctr images import {theirs:.1} s, {:.2} times as long ({:?})",
        names.len(),
        theirs / ours,
        vm.accelerator()
    );
    assert!(theirs / ours >= 2.0, "firstboot {ours} s, ctr {theirs:.1} s");
}

fn done(vm: &mut Vm, command: &str) {
    vm.until(command, IMPORT, |done| done.status == 0);
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.rsplit_once(before).unwrap_or_else(|| panic!("no {before} in {text}")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("no {after} in {rest}")).0
}
