// SPDX-License-Identifier: MIT OR Apache-2.0
//! This node: firstboot, units, disks, memory, swap.

use super::collect::{Disk, Facts};
use super::{Check, Level, Source};
use crate::status::{Phase, Status};

/// kubelet evicts pods when a tenth of the disk is left, and removes images earlier.
const DISK_ERROR_PERCENT: u64 = 10;
const DISK_WARNING_PERCENT: u64 = 20;
/// kubelet evicts pods at 100 MiB.
const MEMORY_ERROR_KIB: u64 = 200 << 10;
const MEMORY_WARNING_PERCENT: u64 = 10;

pub(super) fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![firstboot(&facts.firstboot)];
    checks.extend(units(&facts.units));
    for disk in &facts.disks {
        checks.push(judge_disk(disk));
    }
    checks.extend(memory(&facts.memory));
    checks.extend(swap(&facts.swaps));
    checks
}

fn firstboot(status: &Source<Status>) -> Check {
    const ID: &str = "machine.firstboot";
    let status = match status {
        Source::Known(status) => status,
        Source::Failed(why) => {
            return Check::unknown(
                ID,
                "",
                format!("firstboot's state is unknown: {why}"),
                "`systemctl status firstboot`",
            );
        }
        Source::NotAsked => return Check::info(ID, "", "firstboot was not asked"),
    };
    match status.phase {
        Phase::Converged => Check::ok(ID, "", "this node is what its profile says"),
        Phase::Running => {
            let step = status.step.as_deref().unwrap_or("start");
            let wait = status.waiting_for.as_deref().map(|what| format!(", waiting for {what}")).unwrap_or_default();
            Check::warning(
                ID,
                "",
                format!("firstboot is at the step {step}{wait}"),
                "`firstboot status` shows how it goes on",
            )
        }
        Phase::Failed => match &status.failure {
            Some(failure) => {
                let finding = format!("firstboot failed at the step {}: {}", failure.step, failure.reason);
                Check::error(ID, "", finding, &failure.hint)
            }
            None => Check::error(ID, "", "firstboot failed", "`firstboot status`"),
        },
    }
}

fn units(answer: &Source<String>) -> Vec<Check> {
    const ID: &str = "machine.unit";
    let text = match answer {
        Source::Known(text) => text,
        Source::Failed(why) => {
            return vec![Check::unknown(ID, "", format!("systemd does not answer: {why}"), "`systemctl --failed`")];
        }
        Source::NotAsked => return Vec::new(),
    };
    let mut checks = Vec::new();
    let mut active = Vec::new();
    for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let value =
            |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
        let unit = value("Id").trim_end_matches(".service");
        let (state, sub, restarts) = (value("ActiveState"), value("SubState"), value("NRestarts"));
        if state == "active" {
            active.push(unit);
            continue;
        }
        let result = match value("Result") {
            "" | "success" => String::new(),
            result => format!(", {result}"),
        };
        let again = match restarts.parse::<u64>() {
            Ok(count) if count > 0 => format!(", started again {count} times"),
            _ => String::new(),
        };
        let finding = format!("is {state} ({sub}{result}{again})");
        let advice = format!("`journalctl -u {unit} -e`");
        checks.push(Check::error(ID, unit, finding, advice));
    }
    if !active.is_empty() {
        checks.push(Check::ok(
            ID,
            "",
            format!("{} {} active", active.join(", "), if active.len() == 1 { "is" } else { "are" }),
        ));
    }
    checks
}

fn judge_disk(disk: &Disk) -> Check {
    const ID: &str = "machine.disk";
    let share = |free: u64, all: u64| free.saturating_mul(100).checked_div(all).unwrap_or(100);
    let (space, inodes) = (share(disk.free, disk.bytes), share(disk.free_inodes, disk.inodes));
    let subject = disk.paths.join(", ");
    let mut finding = format!("{:.1} of {:.1} GiB free ({space} %)", gib(disk.free), gib(disk.bytes));
    if inodes < DISK_WARNING_PERCENT {
        finding += &format!(", {inodes} % of the inodes");
    }
    let level = match space.min(inodes) {
        0..DISK_ERROR_PERCENT => Level::Error,
        DISK_ERROR_PERCENT..DISK_WARNING_PERCENT => Level::Warning,
        _ => Level::Ok,
    };
    let advice = match level {
        Level::Ok => "",
        _ => "`du -xh /var --max-depth 3 | sort -h | tail`; at 10 % kubelet evicts pods, at 0 etcd stops",
    };
    Check::new(ID, level, &subject, &finding, advice)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn memory(meminfo: &str) -> Option<Check> {
    const ID: &str = "machine.memory";
    let kib = |name: &str| -> Option<u64> {
        meminfo.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok())
    };
    let (total, available) = (kib("MemTotal:")?, kib("MemAvailable:")?);
    let finding = format!("{} of {} MiB available", available >> 10, total >> 10);
    let advice = "`systemd-cgtop -m` shows who uses it; at 100 MiB kubelet evicts pods";
    Some(if available < MEMORY_ERROR_KIB {
        Check::error(ID, "", finding, advice)
    } else if available.saturating_mul(100) < total.saturating_mul(MEMORY_WARNING_PERCENT) {
        Check::warning(ID, "", finding, advice)
    } else {
        Check::ok(ID, "", finding)
    })
}

/// kubelet refuses to start beside swap.
fn swap(swaps: &str) -> Vec<Check> {
    let on = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    on.map(|name| {
        let advice = "`swapoff -a`, and take it out of /etc/fstab: kubelet will not start again beside it";
        Check::error("machine.swap", name, "swap is on", advice)
    })
    .collect()
}
