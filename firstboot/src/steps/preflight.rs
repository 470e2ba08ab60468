// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether this machine fits its profile. Each check has a name, a level, a finding and a fix.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use profiles::node::Role;

use super::INIT;
use crate::cert::{show_time, validity};
use crate::context::{Cx, Poll};
use crate::engine::{State, Step};
use crate::failure::Failure;
use crate::journal::Progress;

/// kubeadm's minimum is 1700 MB as the kernel counts it; the kernel itself takes some of a machine of that size.
const MASTER_MEMORY_KIB: u64 = 1700 * 1000;
const NODE_MEMORY_KIB: u64 = 700 * 1000;
/// kubeadm refuses fewer on a control plane.
const MASTER_CPUS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Warning,
    Error,
}

#[derive(Debug)]
struct Finding {
    id: &'static str,
    level: Level,
    text: String,
    fix: &'static str,
}

impl Finding {
    fn error(id: &'static str, text: String, fix: &'static str) -> Self {
        Self { id, level: Level::Error, text, fix }
    }

    fn warning(id: &'static str, text: String, fix: &'static str) -> Self {
        Self { id, level: Level::Warning, text, fix }
    }
}

const CHECKS: [fn(&Cx<'_>) -> Vec<Finding>; 7] = [memory, cpus, cgroup, modules, ports, hostname, clock];

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
        let fixes: Vec<_> = errors.iter().map(|finding| finding.fix).collect();
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
    let lists = cx.plan.kubeadm.iter().filter_map(|arg| arg.strip_prefix("--ignore-preflight-errors="));
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

/// Ports that must be free before the daemons that own them were ever started.
fn ports(cx: &Cx<'_>) -> Vec<Finding> {
    let mut ports = Vec::new();
    if cx.profile().has(Role::Etcd) && cx.progress("etcd") == Progress::Never {
        ports.extend([2379, 2380]);
    }
    if cx.profile().has(Role::Master) && cx.progress(INIT) == Progress::Never {
        ports.extend([cx.profile().kubernetes.apiserver_port, 10250, 10257, 10259]);
    }
    ports
        .into_iter()
        .filter(|port| !cx.host.port_is_free(*port))
        .map(|port| {
            let text = format!("TCP port {port} is in use");
            Finding::error("port.cp", text, "stop what listens there (see `ss -ltnp`)")
        })
        .collect()
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

/// A clock before the CA's birth makes every certificate invalid, and every error message misleading.
fn clock(cx: &Cx<'_>) -> Vec<Finding> {
    let now = cx.host.unix_time();
    let certificates = cx.plan.files.iter().filter(|file| file.path.ends_with("/ca.crt"));
    let mut findings = Vec::new();
    for file in certificates {
        let Some(valid) = cx.plan.text(&file.path).and_then(|pem| validity(pem).ok()) else { continue };
        let name = Path::new(&file.path).display();
        if now < valid.from {
            let text = format!("the clock says {}, but {name} begins at {}", show_time(now), show_time(valid.from));
            findings.push(Finding::error(
                "x.time",
                text,
                "set the clock (`timedatectl set-time`, or in the firmware setup)",
            ));
        } else if now > valid.until {
            let text = format!("the clock says {}, but {name} ended at {}", show_time(now), show_time(valid.until));
            findings.push(Finding::error("x.time", text, "set the clock, or renew the cluster's CA"));
        }
    }
    findings.truncate(1);
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::node::{Kind, PlannedFile};
    use crate::testing::Lab;

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
    fn a_clock_in_the_past_is_refused_with_both_times() {
        let mut lab = lab();
        // Made by openssl for 2026-01-01 to 2036-01-01.
        let pem = include_str!("../../fixtures/ca.crt");
        lab.plan.files = vec![PlannedFile {
            path: "/etc/kubernetes/pki/ca.crt".into(),
            mode: 0o644,
            owner: "root".into(),
            kind: Kind::File(pem.into()),
        }];
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
