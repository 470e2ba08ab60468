// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lab's node in a virtual machine: it boots through UEFI firmware into a working Kubernetes node, with no way to any
//! network, and a power cut costs it nothing but time.
//!
//! One test does it all in order, because every boot takes minutes where KVM is not to be had; the other one is a measurement
//! that is asked for by name. Console logs stay in `target/<profile>/imgbuild-tests/logs`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use imgbuild_tests::build::{folder, lab};
use imgbuild_tests::cli::contents;
use imgbuild_tests::disk::debug_overlay;
use imgbuild_tests::qemu::{Vm, overlay, turn};
use imgbuild_tests::workload::{
    COMMAND, POD, busybox, no_secret_is_left_on_the_seed, node_reaches, nodes_are_ready, service, web_pod,
};

/// Time limits as they would be with KVM; the harness multiplies them for TCG.
const CONVERGE: Duration = Duration::from_secs(240);
const BOOT: Duration = Duration::from_secs(60);

const CONVERGED: &str = "firstboot: master-1: converged in";
const NOTHING_TO_DO: &str = "firstboot: master-1: already converged, nothing to do";

#[test]
fn booted_lab_converges_survives_power_cuts_and_serves_a_pod() {
    let _turn = turn();
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let base = scratch.path().join("base.qcow2");
    let before = contents(&lab().image);
    debug_overlay(&lab().image, &base);
    let disk = scratch.path().join("disk.qcow2");
    overlay(&base, &disk);

    // The first cut comes while images are imported or files written, the second while kubeadm runs.
    let mut vm = switch_on("1-cut-early", &disk);
    vm.wait_for("firstboot: master-1: ", BOOT);
    // Not at the first step's first write: it would mostly repeat the second boot.
    std::thread::sleep(Duration::from_secs(5));
    report(&vm, "cut early");
    vm.cut_power();

    let mut vm = switch_on("2-cut-kubeadm", &disk);
    vm.wait_for("firstboot: master-1: control-plane: ", CONVERGE);
    // kubeadm writes certificates and static pods for about a minute from here under TCG.
    vm.until("ls /etc/kubernetes/manifests/kube-apiserver.yaml", CONVERGE, |done| done.status == 0);
    report(&vm, "cut during kubeadm");
    vm.cut_power();

    let mut vm = switch_on("3-converges", &disk);
    vm.wait_for(CONVERGED, CONVERGE);
    report(&vm, "converged after two power cuts");
    node_is_ready(&mut vm);
    no_secret_is_left_on_the_seed(&mut vm, &lab().image);
    a_pod_answers(&mut vm);
    vm.power_down(BOOT);

    let mut vm = switch_on("4-nothing-to-do", &disk);
    vm.wait_for(NOTHING_TO_DO, BOOT);
    report(&vm, "nothing to do");
    firstboot_took_under_two_seconds(&mut vm);
    node_is_ready(&mut vm);
    the_pod_answers_again(&mut vm);
    drop(vm);

    assert_eq!(contents(&lab().image), before, "the image under test was written to");
}

/// The way a user sees it: no power cut, and a time worth writing down; then what the node costs that does nothing.
#[test]
#[ignore = "a measurement: docs/testing.md has the command"]
fn booted_lab_converges_undisturbed() {
    let _turn = turn();
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let base = scratch.path().join("base.qcow2");
    debug_overlay(&lab().image, &base);
    let disk = scratch.path().join("disk.qcow2");
    overlay(&base, &disk);
    let mut vm = switch_on("0-undisturbed", &disk);
    let line = vm.wait_for(CONVERGED, CONVERGE);
    report(&vm, line.trim());
    node_is_ready(&mut vm);
    println!("{}", vm.output("firstboot status", COMMAND));
    std::thread::sleep(SETTLE);
    let before = processor_time(&mut vm);
    std::thread::sleep(IDLE);
    let after = processor_time(&mut vm);
    println!("with nothing to do, in % of a processor ({:?}):", vm.accelerator());
    let share = |(name, time): (&String, &u64)| {
        let used = time.saturating_sub(before.get(name).copied().unwrap_or_default());
        (used as f64 / IDLE.as_micros() as f64 * 100.0, name.clone())
    };
    let mut shares: Vec<(f64, String)> = after.iter().map(share).collect();
    shares.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (percent, name) in shares.into_iter().filter(|(percent, _)| *percent >= 0.1) {
        println!("{percent:6.1}  {name}");
    }
}

/// How long a node needs until what converging has left to do is done.
const SETTLE: Duration = Duration::from_secs(120);
/// How long nothing is done, while the node is measured.
const IDLE: Duration = Duration::from_secs(180);

/// Microseconds of processor time that services and containers have used so far, with the programs they ran, and all together.
fn processor_time(vm: &mut Vm) -> BTreeMap<String, u64> {
    // Lines of identifier and image.
    let images = vm.output("ctr -n k8s.io containers ls", COMMAND);
    let image_of = |scope: &str| {
        let id = scope.strip_prefix("cri-containerd-")?.strip_suffix(".scope")?;
        images.lines().find_map(|line| line.strip_prefix(id)?.split_whitespace().next())
    };
    // cgroup-v2.rst: `usage_usec` is the first line of cpu.stat, of the group and all below it.
    let groups = "find /sys/fs/cgroup -name cpu.stat -exec awk 'FNR == 1 { print $2, FILENAME }' {} +";
    let groups = vm.output(groups, COMMAND);
    let named = |line: &str| {
        let (time, file) = line.trim().split_once(' ')?;
        let group = file.strip_prefix("/sys/fs/cgroup")?.strip_suffix("/cpu.stat")?;
        let name = match group.rsplit('/').next()? {
            "" => "all",
            name if name.ends_with(".service") => name,
            name => image_of(name)?,
        };
        Some((name.to_owned(), time.parse::<u64>().ok()?))
    };
    let mut times = BTreeMap::new();
    // Several containers may be of one image.
    for (name, time) in groups.lines().filter_map(named) {
        *times.entry(name).or_default() += time;
    }
    times
}

fn switch_on(name: &str, disk: &Path) -> Vm {
    Vm::builder(name).disk(disk).logs(&folder().join("logs")).start()
}

fn report(vm: &Vm, what: &str) {
    println!("{what}: {} s after power on ({:?})", vm.uptime().as_secs(), vm.accelerator());
}

fn node_is_ready(vm: &mut Vm) {
    nodes_are_ready(vm, &["master-1"]);
}

/// A pod of the payload's busybox answers on its own address and through a Service.
fn a_pod_answers(vm: &mut Vm) {
    let image = busybox(vm);
    web_pod(vm, "web", "master-1", &image);
    service(vm, "web");
    the_pod_answers_again(vm);
}

fn the_pod_answers_again(vm: &mut Vm) {
    let address = "kubectl get pod web -o jsonpath='{.status.podIP}'";
    let service = vm.output("kubectl get service web -o jsonpath='{.spec.clusterIP}'", COMMAND);
    // After a reboot the address may be the one from before, until kubelet has made the pod anew: asked for every time.
    let get = format!(
        "timeout 20 bash -c 'exec 3<>/dev/tcp/'$({address})'/8080; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'"
    );
    let answer = vm.until(&get, POD, |done| done.output.contains("web answers"));
    assert!(answer.contains("200 OK"), "{answer}");
    node_reaches(vm, service.trim(), 80, "web");
}

/// A second boot after success does nothing, and says so within 2 s of firstboot's start, by systemd's clock.
fn firstboot_took_under_two_seconds(vm: &mut Vm) {
    let show = "systemctl show firstboot.service -p Result -p ExecMainStartTimestampMonotonic -p ExecMainExitTimestampMonotonic";
    let show = vm.until(show, COMMAND, |done| !done.output.contains("ExitTimestampMonotonic=0"));
    let value = |key: &str| {
        let line = show.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {key} in\n{show}")).to_owned()
    };
    assert_eq!(value("Result"), "success");
    let micros = |key: &str| value(key).parse::<u64>().unwrap();
    let took = micros("ExecMainExitTimestampMonotonic") - micros("ExecMainStartTimestampMonotonic");
    println!("firstboot had nothing to do and took {} ms", took / 1000);
    assert!(took < 2_000_000, "firstboot took {took} us to find that there is nothing to do");
}
