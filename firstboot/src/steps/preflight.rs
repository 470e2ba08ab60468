// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether this machine fits its profile. Each check has a name, a level, a finding and a fix.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use profiles::node::{LoadBalancer, Role};
use profiles::render::DISCOVERY_CONFIG;

use super::{CONTROL_PLANE, JOIN, LOAD_BALANCER, kernel};
use crate::cert::{Validity, kubeconfig_client_validity, show_time, validity};
use crate::context::{Cx, Poll, STATE_DIR};
use crate::engine::{State, Step};
use crate::failure::Failure;
use crate::journal::Progress;

/// kubeadm's minimum is 1700 MB as the kernel counts it; the kernel itself takes some of a machine of that size.
const MASTER_MEMORY_KIB: u64 = 1700 * 1000;
const NODE_MEMORY_KIB: u64 = 700 * 1000;
/// Images are imported, logs are written: with less, containerd or etcd would fail half-way.
const LEAST_FREE: u64 = 1 << 30;
/// What is named when the disk is full: no more entries than this are looked at.
const ENTRIES_COUNTED: usize = 100_000;
/// kubeadm refuses fewer on a control plane.
const MASTER_CPUS: usize = 2;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Said, and gone on.
    Warning,
    /// Refused.
    Error,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable name of the check.
    pub id: &'static str,
    /// Whether it refuses.
    pub level: Level,
    /// What is so.
    pub text: String,
    /// What to do about it.
    pub fix: String,
}

impl Finding {
    /// One that refuses.
    pub fn error(id: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, level: Level::Error, text: text.into(), fix: fix.into() }
    }

    /// One that is only said.
    pub fn warning(id: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, level: Level::Warning, text: text.into(), fix: fix.into() }
    }
}

const CHECKS: [fn(&Cx<'_>) -> Vec<Finding>; 10] =
    [memory, cpus, disk, cgroup, kernel_modules, modules, ports, hostname, peers, clock];
/// Those that need nothing of what the steps before this one make.
const BEFOREHAND: [fn(&Cx<'_>) -> Vec<Finding>; 7] = [memory, cpus, cgroup, ports, hostname, peers, clock];

/// What can be found on a host before anything of ours is on it.
pub fn beforehand(cx: &Cx<'_>) -> Vec<Finding> {
    BEFOREHAND.iter().flat_map(|check| check(cx)).collect()
}

pub(super) struct Preflight;

impl Step for Preflight {
    fn id(&self) -> &'static str {
        "preflight"
    }

    fn title(&self) -> &'static str {
        "checking that this machine fits"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        let findings: Vec<_> = CHECKS.iter().flat_map(|check| check(cx)).collect();
        for finding in findings.iter().filter(|finding| finding.level == Level::Warning) {
            cx.say(&format!("warning {}: {}; {}", finding.id, finding.text, finding.fix));
        }
        let errors: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Error).collect();
        Ok(match errors.as_slice() {
            [] => State::Done,
            [first, ..] => State::Needed(format!("{} of {} checks: {}", errors.len(), CHECKS.len(), first.text)),
        })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        if !clock(cx).is_empty() && !cx.profile().network.ntp_servers.is_empty() {
            // A deadline here is no failure of its own: the refusal below says what is wrong.
            let _ =
                cx.wait_for("the clock to be set by NTP", Duration::from_secs(60), Duration::from_secs(1), "", || {
                    Ok(if clock(cx).is_empty() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending(show_time(cx.host.unix_time()))
                    })
                });
        }
        let errors: Vec<_> =
            CHECKS.iter().flat_map(|check| check(cx)).filter(|finding| finding.level == Level::Error).collect();
        if errors.is_empty() {
            return Ok(());
        }
        let reasons: Vec<_> = errors.iter().map(|finding| format!("{}: {}", finding.id, finding.text)).collect();
        let fixes: Vec<_> = errors.iter().map(|finding| finding.fix.as_str()).collect();
        Err(Failure::preflight(reasons.join(", "), fixes.join(", ")).into())
    }
}

fn memory(cx: &Cx<'_>) -> Vec<Finding> {
    let text = fs::read_to_string(cx.path("/proc/meminfo")).unwrap_or_default();
    let total: Option<u64> =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let Some(total) = total else { return Vec::new() };
    let least = if cx.profile().has(Role::Master) { MASTER_MEMORY_KIB } else { NODE_MEMORY_KIB };
    if total >= least {
        return Vec::new();
    }
    let text = format!("{} MB of memory, at least {} MB are needed", total / 1000, least / 1000);
    vec![Finding::error("hw.mem", text, "give the machine more memory")]
}

fn cpus(cx: &Cx<'_>) -> Vec<Finding> {
    let text = fs::read_to_string(cx.path("/proc/cpuinfo")).unwrap_or_default();
    let count = text.lines().filter(|line| line.starts_with("processor") && line.contains(':')).count();
    if count == 0 || count >= MASTER_CPUS {
        return Vec::new();
    }
    let text = format!("{count} CPU");
    if cx.profile().has(Role::Master) && !ignored(cx, "NumCPU") {
        let text = format!("{text}, kubeadm refuses fewer than {MASTER_CPUS} on a master");
        return vec![Finding::error("hw.cpu", text, "give the machine more CPUs")];
    }
    vec![Finding::warning("hw.cpu", text, "two or more are better")]
}

fn ignored(cx: &Cx<'_>, name: &str) -> bool {
    let lists = cx.plan.kubeadm.init.iter().filter_map(|arg| arg.strip_prefix("--ignore-preflight-errors="));
    lists.flat_map(|list| list.split(',')).any(|ignored| ignored.eq_ignore_ascii_case(name))
}

fn cgroup(cx: &Cx<'_>) -> Vec<Finding> {
    if !cx.profile().has(Role::Master) {
        return Vec::new();
    }
    let Ok(text) = fs::read_to_string(cx.path("/sys/fs/cgroup/cgroup.controllers")) else {
        let text = "cgroup v2 is not mounted at /sys/fs/cgroup".to_owned();
        return vec![Finding::error("os.cgroup", text, "boot without systemd.unified_cgroup_hierarchy=0")];
    };
    let missing: Vec<_> = ["cpu", "cpuset", "memory", "pids"]
        .into_iter()
        .filter(|wanted| !text.split_whitespace().any(|found| found == *wanted))
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let text = format!("cgroup v2 lacks {}", missing.join(", "));
    vec![Finding::error("os.cgroup", text, "boot without cgroup_disable= and with a kernel that has them")]
}

/// What kubeadm 1.32 and later no longer check: bridged pod traffic must pass iptables.
fn modules(cx: &Cx<'_>) -> Vec<Finding> {
    let wanted = ["/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/ipv4/ip_forward"];
    if !cx.profile().has(Role::Master) {
        return Vec::new();
    }
    let off = |path: &&str| !fs::read_to_string(cx.path(path)).is_ok_and(|value| value.trim() == "1");
    wanted
        .into_iter()
        .filter(off)
        .map(|path| {
            let text = format!("{path} is not 1");
            Finding::error("mod.bridge", text, "check the br_netfilter module and /etc/sysctl.d")
        })
        .collect()
}

/// Modules that the step before this one loaded. One that the kernel has not at all is found here, not by kubelet.
fn kernel_modules(cx: &Cx<'_>) -> Vec<Finding> {
    let missing = kernel::missing_modules(cx);
    if missing.is_empty() {
        return Vec::new();
    }
    let text = format!("kernel modules {} are not loaded", missing.join(", "));
    vec![Finding::error(
        "mod.kernel",
        text,
        "use an image whose kernel has them (see `modprobe <name>` for the reason)",
    )]
}

/// The data partition, where images, containers, logs and etcd are.
fn disk(cx: &Cx<'_>) -> Vec<Finding> {
    let free = match cx.host.free_space(&cx.path(STATE_DIR)) {
        Ok(free) => free,
        Err(error) => {
            let text = format!("{error:#}");
            return vec![Finding::error("disk.space", text, "check the data partition (`findmnt /var`, `dmesg`)")];
        }
    };
    if free >= LEAST_FREE {
        return Vec::new();
    }
    let mebibytes = |bytes: u64| bytes >> 20;
    let mut text = format!(
        "{} MiB are free on the data partition (/var), at least {} MiB are needed",
        mebibytes(free),
        mebibytes(LEAST_FREE)
    );
    let largest = largest_below(&cx.path("/var"));
    if !largest.is_empty() {
        let shown = largest.iter().map(|(path, bytes)| format!("{path} {} MiB", mebibytes(*bytes)));
        text += &format!("; it holds {}", shown.collect::<Vec<_>>().join(", "));
    }
    vec![Finding::error("disk.space", text, "use a larger disk, or remove what does not belong there")]
}

/// The three largest of the directories two levels below `var` (/var/lib/etcd, /var/log/journal), in bytes on the disk.
fn largest_below(var: &Path) -> Vec<(String, u64)> {
    let directories = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
    };
    let mut left = ENTRIES_COUNTED;
    let mut sizes: Vec<_> = directories(var)
        .iter()
        .flat_map(|dir| directories(dir))
        .map(|dir| {
            let name = dir.strip_prefix(var).unwrap_or(&dir).display().to_string();
            (format!("/var/{name}"), size_on_disk(dir, &mut left))
        })
        .filter(|(_, bytes)| *bytes >= 10 << 20)
        .collect();
    sizes.sort_by_key(|(path, bytes)| (std::cmp::Reverse(*bytes), path.clone()));
    sizes.truncate(3);
    sizes
}

/// Bytes below a directory, without following links.
fn size_on_disk(dir: PathBuf, left: &mut usize) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut pending = vec![dir];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if *left == 0 {
                return bytes;
            }
            *left -= 1;
            let Ok(meta) = entry.metadata() else { continue };
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    bytes
}

/// Ports that must be free before the daemons that own them were ever started, each with the step that starts the owner.
fn wanted_ports(cx: &Cx<'_>) -> Vec<(u16, &'static str)> {
    let profile = cx.profile();
    let mut ports = Vec::new();
    if profile.has(Role::Etcd) {
        ports.extend([2379, 2380, 2381].map(|port| (port, "etcd")));
    }
    let pods = if profile.has(Role::Master) { CONTROL_PLANE } else { JOIN };
    if profile.has(Role::Master) {
        ports.extend([profile.kubernetes.apiserver_port, 10257, 10259].map(|port| (port, pods)));
        if let LoadBalancer::Keepalived { port, .. } = profile.load_balancer {
            ports.push((port, LOAD_BALANCER));
        }
    }
    if profile.has(Role::Master) || profile.has(Role::Worker) {
        // kubelet, its health, and kube-proxy's metrics and health.
        ports.extend([10250, 10248, 10249, 10256].map(|port| (port, pods)));
    }
    ports
}

fn ports(cx: &Cx<'_>) -> Vec<Finding> {
    let busy = |(port, step): &(u16, &str)| cx.progress(step) == Progress::Never && !cx.host.port_is_free(*port);
    wanted_ports(cx)
        .into_iter()
        .filter(busy)
        .map(|(port, _)| {
            let id = if cx.profile().has(Role::Master) || cx.profile().has(Role::Etcd) { "port.cp" } else { "port.wk" };
            let text = format!("TCP port {port} is in use");
            Finding::error(id, text, "stop what listens there (see `ss -ltnp`)")
        })
        .collect()
}

/// A seed may have been edited by hand: two nodes of one name or address would take each other's place.
fn peers(cx: &Cx<'_>) -> Vec<Finding> {
    let peers = &cx.profile().peers;
    let mut findings = Vec::new();
    for (index, peer) in peers.iter().enumerate() {
        for other in &peers[index + 1..] {
            let text = match (peer.name == other.name, peer.address == other.address) {
                (true, _) => format!("two nodes of the cluster are called {}", peer.name),
                (false, true) => format!("{} and {} have the same address {}", peer.name, other.name, peer.address),
                (false, false) => continue,
            };
            findings.push(Finding::error("x.hostname", text, "correct the cluster file and build the seeds again"));
        }
    }
    let node = &cx.profile().node;
    if !peers.iter().any(|peer| peer.name == node.name && peer.address == node.address.addr()) {
        let text = format!("the cluster's list of nodes has no {} with the address {}", node.name, node.address.addr());
        findings.push(Finding::error("x.hostname", text, "build this node's seed again"));
    }
    findings
}

/// The ACP rules, which are also Kubernetes' own but for the length.
fn hostname(cx: &Cx<'_>) -> Vec<Finding> {
    let name = &cx.profile().node.name;
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let good = name.len() <= 63
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
        && edge(name.chars().next())
        && edge(name.chars().last())
        && ![".-", "..", "-."].iter().any(|bad| name.contains(bad));
    if good {
        return Vec::new();
    }
    let text = format!("`{name}` is no valid node name");
    vec![Finding::error("net.hostname", text, "rename the node in the cluster file")]
}

/// Every certificate of the seed: its file, and from when to when it is valid.
fn certificates<'a>(cx: &'a Cx<'_>) -> Vec<(&'a str, Validity)> {
    // The credential to join with is used once: afterwards its end is of no interest.
    let joined = cx.progress(JOIN) != Progress::Never || cx.progress(CONTROL_PLANE) != Progress::Never;
    let valid = |(path, text): (&'a str, &'a str)| {
        let found = if path.ends_with(".crt") {
            validity(text).ok()
        } else if path == DISCOVERY_CONFIG && !joined {
            kubeconfig_client_validity(text)
        } else {
            None
        };
        found.map(|found| (path, found))
    };
    cx.plan.texts_below("/etc/").filter_map(valid).collect()
}

/// A clock before a certificate's birth or after its end makes every error message misleading. One finding is enough: the
/// authorities come first, since their dates say most about the clock.
fn clock(cx: &Cx<'_>) -> Vec<Finding> {
    let now = cx.host.unix_time();
    let mut certificates = certificates(cx);
    certificates.sort_by_key(|(path, _)| !path.ends_with("/ca.crt"));
    let mut findings: Vec<_> = certificates
        .into_iter()
        .filter_map(|(name, valid)| {
            let (says, fix) = if now < valid.from {
                (
                    format!("begins at {}", show_time(valid.from)),
                    "set the clock (`timedatectl set-time`, or in the firmware setup)",
                )
            } else if now > valid.until && name == DISCOVERY_CONFIG {
                let fix =
                    "set the clock, or make this node's seed again (it is valid for the cluster file's join_validity)";
                (format!("expired on {}", show_time(valid.until)), fix)
            } else if now > valid.until {
                (
                    format!("expired on {}", show_time(valid.until)),
                    "set the clock, or renew the cluster's certificates and its seeds",
                )
            } else {
                return None;
            };
            let text = format!("the clock says {}, but the certificate in {name} {says}", show_time(now));
            Some(Finding::error("x.time", text, fix))
        })
        .collect();
    findings.truncate(1);
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::journal::{Event, Record};
    use crate::testing::{Lab, planned};

    fn lab() -> Lab {
        let lab = Lab::new();
        lab.write("/proc/meminfo", "MemTotal:        4000000 kB\n");
        lab.write("/proc/cpuinfo", "processor\t: 0\n\nprocessor\t: 1\n");
        lab.write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids\n");
        lab.write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n");
        lab.write("/proc/sys/net/ipv4/ip_forward", "1\n");
        lab
    }

    fn refusal(lab: &Lab) -> Failure {
        let (step, failure) = converge(&lab.cx(), &[Box::new(Preflight)]).unwrap_err();
        assert_eq!((step, failure.exit.code()), ("preflight", 20));
        failure
    }

    #[test]
    fn a_fitting_machine_leaves_no_trace() {
        let lab = lab();
        converge(&lab.cx(), &[Box::new(Preflight)]).unwrap();
        assert!(lab.console_lines().is_empty());
    }

    #[test]
    fn every_error_is_told_at_once() {
        let lab = lab();
        lab.write("/proc/meminfo", "MemTotal:        1000000 kB\n");
        lab.write("/proc/cpuinfo", "processor\t: 0\n");
        lab.write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu\n");
        lab.write("/proc/sys/net/ipv4/ip_forward", "0\n");
        lab.host.busy_ports.borrow_mut().push(6443);
        insta::assert_snapshot!(refusal(&lab).reason, @"hw.mem: 1000 MB of memory, at least 1700 MB are needed, hw.cpu: 1 CPU, kubeadm refuses fewer than 2 on a master, os.cgroup: cgroup v2 lacks memory, pids, mod.bridge: /proc/sys/net/ipv4/ip_forward is not 1, port.cp: TCP port 6443 is in use");
    }

    #[test]
    fn an_expired_certificate_is_told_from_what_the_clock_says() {
        let mut lab = lab();
        let pem = include_str!("../../fixtures/ca.crt");
        lab.plan.files = vec![planned("/etc/etcd/pki/peer.crt", 0o600, pem)];
        lab.host.unix_time.set(2_100_000_000);
        insta::assert_snapshot!(refusal(&lab).reason, @"x.time: the clock says 2036-07-18 13:20:00 UTC, but the certificate in /etc/etcd/pki/peer.crt expired on 2036-01-01 00:00:00 UTC");
        // The credential to join with matters until the node has joined.
        lab.plan.files = vec![planned(DISCOVERY_CONFIG, 0o600, &crate::cert::tests::kubeconfig(pem))];
        let failure = refusal(&lab);
        assert!(failure.reason.contains("discovery.conf expired on 2036") && failure.hint.contains("join_validity"));
        let joined =
            Record { at: 0, event: Event::Begin, step: JOIN.into(), fingerprint: String::new(), detail: String::new() };
        let cx = lab.cx();
        cx.journal.borrow_mut().append(joined).unwrap();
        drop(cx);
        converge(&lab.cx(), &[Box::new(Preflight)]).unwrap();
    }

    #[test]
    fn a_full_disk_is_told_with_what_fills_it() {
        let lab = lab();
        lab.host.free_space.set(100 << 20);
        lab.write("/var/log/journal/x/system.journal", &"x".repeat(30 << 20));
        lab.write("/var/lib/containerd/blob", &"x".repeat(20 << 20));
        lab.write("/var/lib/kubelet/small", "x");
        let reason = refusal(&lab).reason;
        assert!(
            reason.contains("disk.space: 100 MiB are free on the data partition (/var), at least 1024 MiB are needed")
        );
        assert!(reason.contains("it holds /var/log/journal 30 MiB, /var/lib/containerd 20 MiB"), "{reason}");
    }

    #[test]
    fn modules_that_could_not_be_loaded_are_named() {
        let mut lab = lab();
        lab.plan.files = vec![planned("/etc/modules-load.d/k8s.conf", 0o600, "overlay\nip_vs\n")];
        lab.write("/sys/module/overlay/refcnt", "0");
        assert_eq!(refusal(&lab).reason, "mod.kernel: kernel modules ip_vs are not loaded");
    }

    #[test]
    fn every_roles_ports_count_until_their_owner_was_started() {
        let mut lab = lab();
        let ports =
            |lab: &Lab| wanted_ports(&lab.cx()).iter().map(|port| port.0.to_string()).collect::<Vec<_>>().join(" ");
        insta::assert_snapshot!(ports(&lab), @"2379 2380 2381 6443 10257 10259 10250 10248 10249 10256");
        lab.plan.profile.load_balancer = LoadBalancer::Keepalived {
            vip: "10.0.2.9".parse().unwrap(),
            port: 8443,
            vrid: 7,
            check_interval_seconds: 2,
        };
        lab.host.busy_ports.borrow_mut().push(8443);
        assert_eq!(refusal(&lab).reason, "port.cp: TCP port 8443 is in use");
        lab.plan.profile.node.roles = [Role::Worker].into();
        insta::assert_snapshot!(ports(&lab), @"10250 10248 10249 10256");
        lab.host.busy_ports.borrow_mut().push(10256);
        assert_eq!(refusal(&lab).reason, "port.wk: TCP port 10256 is in use");
        let begun =
            Record { at: 0, event: Event::Begin, step: JOIN.into(), fingerprint: String::new(), detail: String::new() };
        let cx = lab.cx();
        cx.journal.borrow_mut().append(begun).unwrap();
        drop(cx);
        converge(&lab.cx(), &[Box::new(Preflight)]).unwrap();
    }

    #[test]
    fn nodes_that_look_alike_are_refused() {
        let mut lab = lab();
        let other = lab.plan.profile.peers[0].clone();
        lab.plan.profile.peers.push(other.clone());
        assert_eq!(refusal(&lab).reason, "x.hostname: two nodes of the cluster are called master-1");
        lab.plan.profile.peers[1].name = "master-2".into();
        assert_eq!(refusal(&lab).reason, "x.hostname: master-1 and master-2 have the same address 10.0.2.15");
        lab.plan.profile.peers.remove(0);
        assert!(refusal(&lab).reason.contains("no master-1 with the address 10.0.2.15"));
    }

    #[test]
    fn a_clock_in_the_past_is_refused_with_both_times() {
        let mut lab = lab();
        // Made by openssl for 2026-01-01 to 2036-01-01.
        let pem = include_str!("../../fixtures/ca.crt");
        lab.plan.files = vec![planned("/etc/kubernetes/pki/ca.crt", 0o644, pem)];
        lab.host.unix_time.set(0);
        let failure = refusal(&lab);
        assert!(failure.reason.contains("1970-01-01") && failure.reason.contains("2026-01-01"), "{}", failure.reason);
        assert!(failure.hint.contains("timedatectl"));
        lab.host.unix_time.set(1_800_000_000);
        converge(&lab.cx(), &[Box::new(Preflight)]).unwrap();
        // With NTP servers the clock may still come right.
        lab.plan.profile.network.ntp_servers = vec!["10.0.2.2".into()];
        lab.host.unix_time.set(0);
        refusal(&lab);
        assert!(lab.host.slept() >= Duration::from_secs(60));
    }
}
