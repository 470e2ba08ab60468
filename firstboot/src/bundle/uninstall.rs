// SPDX-License-Identifier: MIT OR Apache-2.0
//! `firstboot host-uninstall`: gives the host back as it was. May run again after a power cut or a failure at any point; the
//! record of the installation is the last thing that goes.

use std::path::Path;

use anyhow::{Context, Result};

use super::disk::{Disk, unfinished};
use super::install::{UNIT, has_etcd};
use super::known::{self, is_meant};
use super::record::{Phase, Record, SAVED};
use super::{HOSTS, Machine, without_block};
use crate::cli;
use crate::context::{RUN_DIR, STATE_DIR, below};
use crate::failure::{Exit, Failure};
use crate::files::Owner;
use crate::journal::{Journal, Progress};
use crate::runner::Command;
use crate::steps::{CONTROL_PLANE, ETCD, JOIN};

const RUNTIME: &str = "unix:///run/containerd/containerd.sock";
/// Where pods' processes are, by the two drivers of control groups.
const PODS_CGROUPS: [&str; 2] = ["/sys/fs/cgroup/kubepods.slice", "/sys/fs/cgroup/kubepods"];
/// Marks of rules that kube-proxy, Calico and CNI plugins make.
const RULES: [&str; 4] = ["KUBE-", "cali-", "CNI-", "cali:"];
/// Routes of `firstboot routes`, by their protocol numbers.
const ROUTES: [&str; 2] = ["173", "174"];

/// How to go about it.
#[derive(Debug, Clone, Copy)]
pub struct Uninstall {
    /// Also if the node belongs to a cluster.
    pub yes: bool,
}

/// Takes everything back.
///
/// # Errors
/// Exit code 20: the node belongs to a cluster and nobody said yes. 30: something does not stop or is still mounted; what was done is
/// done, and the same again goes on.
pub fn uninstall(machine: &Machine<'_>, options: Uninstall) -> Result<()> {
    if !machine.is_root {
        return Err(Failure::preflight("you are not root", "run it as root, or with sudo").into());
    }
    let disk = &machine.disk;
    let Some(mut record) = Record::read(disk.root())? else {
        // Copies of an installation that never began to change anything.
        if disk.names(STATE_DIR).iter().all(|name| name == SAVED || name.starts_with('.')) {
            disk.remove_all(STATE_DIR, false)?;
        }
        machine.console.say("uninstall", "no bundle is installed on this machine");
        return Ok(());
    };
    machine.console.set_who(&record.node);
    let say = |text: &str| machine.console.say("uninstall", text);
    if record.phase != Phase::Restored {
        if record.phase != Phase::Uninstalling && !options.yes {
            refuse_a_member(disk.root(), &record)?;
        }
        // Before anything else: from here on nothing may converge.
        record.enter(Phase::Uninstalling, disk)?;
        take_back(machine, &record)?;
        record.enter(Phase::Restored, disk)?;
    }
    disk.remove_all(RUN_DIR, false)?;
    forget(disk)?;
    say("done: this machine is as it was; kernel modules stay loaded until it restarts");
    Ok(())
}

/// Stops everything, and puts everything back.
fn take_back(machine: &Machine<'_>, record: &Record) -> Result<()> {
    let disk = &machine.disk;
    let say = |text: &str| machine.console.say("uninstall", text);
    say("stopping services and pods");
    stop(machine, UNIT)?;
    let _lock = cli::lock(disk.root())?;
    stop_all(machine)?;
    let run = |error: anyhow::Error| Failure::from_error(&error, Exit::Step, "mend what it names and run it again");
    unmount(machine, record).map_err(run)?;
    clean_network(machine, record)?;
    say("putting files back");
    put_back(machine, record).map_err(run)?;
    machine.run("systemctl", ["daemon-reload"])?;
    machine.run("udevadm", ["control", "--reload"])?;
    if machine.runs("NetworkManager")? {
        machine.run("systemctl", ["reload", "NetworkManager"])?;
    }
    for unit in &record.ran {
        machine.run("systemctl", ["start", unit])?;
    }
    Ok(())
}

/// Whoever uninstalls a member of a cluster should mean it.
fn refuse_a_member(root: &Path, record: &Record) -> Result<()> {
    let path = below(root, STATE_DIR).join("journal.jsonl");
    if !path.exists() {
        return Ok(());
    }
    let journal = Journal::open(&path)?;
    let parts: Vec<&str> = [(ETCD, "an etcd member"), (CONTROL_PLANE, "a control plane"), (JOIN, "a worker")]
        .into_iter()
        .filter(|(step, _)| journal.progress(step) != Progress::Never)
        .map(|(_, what)| what)
        .collect();
    if parts.is_empty() {
        return Ok(());
    }
    Err(Failure::preflight(
        format!("{} is {} of cluster {}: its data would go", record.node, parts.join(" and "), record.cluster_id),
        "take it out of the cluster first (kubectl drain, kubectl delete node, etcdctl member remove), then: ./uninstall --yes",
    )
    .into())
}

/// Stops a unit that systemd knows.
fn stop(machine: &Machine<'_>, unit: &str) -> Result<()> {
    let known = machine.ask("systemctl", ["show", "--property=LoadState", "--value", unit])?;
    if known.stdout.trim() == "loaded" {
        let command = Command::new("systemctl", ["stop", unit]).timeout(300);
        let output = machine.runner.run(&command, None, &mut |_| {})?;
        if !output.success() {
            let reason = format!("`{command}` exited with {}: {}", output.status, output.stderr_tail.trim());
            return Err(Failure::new(Exit::Step, reason, format!("see `systemctl status {unit}`")).into());
        }
    }
    Ok(())
}

fn stop_all(machine: &Machine<'_>) -> Result<()> {
    for unit in known::STARTED {
        if unit == "containerd.service" {
            // Nothing starts them any more, and containerd can still take them down in order.
            remove_pods(machine)?;
        }
        stop(machine, unit)?;
    }
    for group in PODS_CGROUPS {
        let kill = machine.disk.path(&format!("{group}/cgroup.kill"));
        if kill.exists() {
            std::fs::write(&kill, "1").with_context(|| format!("ending the processes of {group}"))?;
        }
    }
    Ok(())
}

fn remove_pods(machine: &Machine<'_>) -> Result<()> {
    if !machine.runs("containerd.service")? {
        return Ok(());
    }
    let crictl = |args: &[&str]| {
        let all = ["--runtime-endpoint", RUNTIME, "--timeout", "60s"].iter().chain(args);
        machine.runner.run(&Command::new("crictl", all).timeout(300), None, &mut |_| {})
    };
    let listed = crictl(&["pods", "-q"])?.stdout;
    let pods: Vec<&str> = listed.split_whitespace().collect();
    for verb in [&["stopp"][..], &["rmp", "-f"]] {
        if !pods.is_empty() {
            let output = crictl(&[verb, &pods].concat())?;
            if !output.success() {
                // Their control groups are ended below, and what stays mounted is refused.
                let said = output.stderr_tail.trim().to_owned();
                machine.console.say("uninstall", &format!("crictl {}: {said}", verb.join(" ")));
            }
        }
    }
    Ok(())
}

/// Unmounts what was not mounted before, in the directories that go and in those of network namespaces.
fn unmount(machine: &Machine<'_>, record: &Record) -> Result<()> {
    let ours = |path: &&String| {
        let is_below = record
            .owned
            .keys()
            .any(|dir| path.strip_prefix(dir.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
        !record.mounts.contains(*path) && (is_below || path.starts_with("/run/netns/cni-"))
    };
    // Several may lie over each other at one path: the last one is on top.
    for path in machine.mounts().iter().rev().filter(ours) {
        machine.run("umount", [path.as_str()])?;
    }
    let left: Vec<String> = machine.mounts().iter().filter(ours).cloned().collect();
    anyhow::ensure!(left.is_empty(), "still mounted: {}", left.join(", "));
    Ok(())
}

fn clean_network(machine: &Machine<'_>, record: &Record) -> Result<()> {
    for name in machine.interfaces().difference(&record.interfaces) {
        if is_meant(name, &known::INTERFACES) {
            let output = machine.ask("ip", ["link", "delete", name])?;
            // tunl0 belongs to its module, and goes with it.
            if !output.success() && machine.interfaces().contains(name) {
                machine.console.say("uninstall", &format!("interface {name} stays until the machine restarts"));
            }
        }
    }
    for family in ["-4", "-6"] {
        for protocol in ROUTES {
            // Without routes, or without IPv6, there is nothing to flush, which `ip` calls an error.
            let _ = machine.ask("ip", [family, "route", "flush", "proto", protocol])?;
        }
    }
    for family in ["ip", "ip6"] {
        if machine.ask("nft", ["list", "table", family, "imgbuild"]).is_ok_and(|output| output.success()) {
            machine.run("nft", ["delete", "table", family, "imgbuild"])?;
        }
    }
    for (save, restore) in [("iptables-save", "iptables-restore"), ("ip6tables-save", "ip6tables-restore")] {
        let Ok(saved) = machine.ask(save, []) else { continue };
        let Some(rules) = without_ours(&saved.stdout).filter(|_| saved.success()) else { continue };
        let command = Command::new::<&str>(restore, []);
        let mut feed = |stdin: &mut dyn std::io::Write| stdin.write_all(rules.as_bytes());
        let output = machine.runner.run(&command, Some(&mut feed), &mut |_| {})?;
        anyhow::ensure!(output.success(), "`{command}` exited with {}: {}", output.status, output.stderr_tail.trim());
    }
    let virtual_servers = std::fs::read_to_string(machine.disk.path("/proc/net/ip_vs")).unwrap_or_default();
    // Three lines are its heading.
    if virtual_servers.lines().count() > 3 && machine.ask("ipvsadm", ["--clear"]).is_err() {
        machine.console.say("uninstall", "virtual servers of kube-proxy stay until the machine restarts");
    }
    Ok(())
}

/// Rules without those of pods, for `iptables-restore`; `None` if there are none of pods.
fn without_ours(saved: &str) -> Option<String> {
    let is_ours = |line: &str| RULES.iter().any(|mark| line.contains(mark));
    saved
        .lines()
        .any(is_ours)
        .then(|| saved.lines().filter(|line| !is_ours(line)).map(|line| format!("{line}\n")).collect())
}

fn put_back(machine: &Machine<'_>, record: &Record) -> Result<()> {
    let disk = &machine.disk;
    for path in record.paths.keys() {
        if path == HOSTS {
            restore_hosts(disk, record)?;
        } else {
            record.restore(disk, path)?;
        }
    }
    for (path, existed) in &record.owned {
        // The lock is in it until the end.
        if path != RUN_DIR {
            disk.remove_all(path, *existed)?;
        }
    }
    if let Some(path) = unfinished(crate::context::PAYLOAD_DIR) {
        disk.remove_all(&path, false)?;
    }
    // Children first.
    for folder in record.folders.iter().rev() {
        disk.remove(folder)?;
    }
    if record.user && has_etcd(machine, "/etc/passwd") {
        disk.apply(|_| machine.run("userdel", ["etcd"]))?;
    }
    if machine.host.hostname() != record.hostname {
        machine.host.set_hostname(&record.hostname)?;
    }
    for (key, value) in &record.sysctl {
        let path = disk.path(&format!("/proc/sys/{key}"));
        if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() != value) {
            std::fs::write(&path, value).with_context(|| format!("setting {} to {value}", path.display()))?;
        }
    }
    Ok(())
}

/// What somebody else wrote to `/etc/hosts` since stays; without that, it is the file of before.
fn restore_hosts(disk: &Disk, record: &Record) -> Result<()> {
    let now = std::fs::read_to_string(disk.path(HOSTS)).unwrap_or_default();
    let before = record.saved_text(disk, HOSTS)?;
    match without_block(&now) {
        Some(rest) if rest.trim_end() != before.trim_end() => disk.write(HOSTS, rest.as_bytes(), 0o644, Owner::ROOT),
        // Restored by an attempt before this one, with what somebody added since.
        None if !now.is_empty() && now.trim_end() != before.trim_end() => Ok(()),
        _ => record.restore(disk, HOSTS),
    }
}

/// Removes the node's state, the record last.
fn forget(disk: &Disk) -> Result<()> {
    for name in disk.names(STATE_DIR).iter().filter(|name| *name != super::record::FILE) {
        disk.remove_all(&format!("{STATE_DIR}/{name}"), false)?;
    }
    Record::remove(disk)?;
    disk.remove(STATE_DIR)
}
