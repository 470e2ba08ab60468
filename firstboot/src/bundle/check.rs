// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a host can become a node. Only looks: nothing is changed, and everything is found at once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use profiles::bundle::PayloadKind;
use profiles::node::{Architecture, LoadBalancer, NetworkPlugin, Role};

use super::known::{self, Needed, is_meant};
use super::media::Unpacked;
use super::record::SAVED;
use super::{Machine, old_world};
use crate::context::{Cx, RUN_DIR, STATE_DIR};
use crate::journal::Journal;
use crate::node::NodePlan;
use crate::runner::{Command, PATH};
use crate::status::StatusFile;
use crate::steps::kernel;
use crate::steps::preflight::{self, Finding};

/// Beside the payload and its images unpacked: logs, etcd, what pods write. As `disk.space` wants on an image's first boot.
const LEAST_FREE: u64 = 1 << 30;

/// What is looked at.
pub(super) struct Checks<'a> {
    pub machine: &'a Machine<'a>,
    pub bundle: &'a Unpacked,
    pub kind: PayloadKind,
    pub plan: &'a NodePlan,
}

/// Everything that is in the way, and what should be known.
pub(super) fn findings(checks: &Checks<'_>) -> Result<Vec<Finding>> {
    let mut findings = system(checks.machine);
    findings.extend(of_steps(checks)?);
    findings.extend(security(checks)?);
    findings.extend(network(checks));
    findings.extend(software(checks)?);
    findings.extend(left_overs(checks));
    findings.extend(space(checks));
    Ok(findings)
}

/// What decides whether firstboot can run here at all.
pub(super) fn system(machine: &Machine<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !machine.is_root {
        findings.push(Finding::error("os.root", "you are not root", "run it as root, or with sudo"));
    }
    if Architecture::of_machine(&machine.architecture).is_none() {
        let text = format!("there are no bundles for {}", machine.architecture);
        findings.push(Finding::error("os.arch", text, "use an x86_64 or a loongarch64 machine"));
    }
    if machine.architecture == "loongarch64"
        && let Some(why) = old_world::why(machine.disk.root(), &machine.kernel)
    {
        let fix = "install a system of the new world (kernel 5.19 or later), such as Kylin Server V11";
        findings.push(Finding::error("os.world", why, fix));
    }
    if !machine.disk.exists("/run/systemd/system") {
        findings.push(Finding::error("os.systemd", "systemd does not run here", "use a system that systemd starts"));
    }
    findings
}

/// Checks of the step `preflight` that need nothing on the disk, and modules that the kernel does not have.
fn of_steps(checks: &Checks<'_>) -> Result<Vec<Finding>> {
    let machine = checks.machine;
    // A journal without records, which nobody writes to.
    let cx = Cx {
        root: machine.disk.root().to_owned(),
        plan: checks.plan,
        runner: machine.runner,
        host: machine.host,
        console: machine.console,
        journal: RefCell::new(Journal::open(Path::new("/dev/null"))?),
        status: RefCell::new(StatusFile::new(Path::new("/dev/null"))),
        step: RefCell::new("check"),
        interrupted: RefCell::new(BTreeSet::new()),
    };
    let mut findings = preflight::beforehand(&cx);
    let mut missing = Vec::new();
    for module in kernel::missing_modules(&cx) {
        // Says whether it could be loaded, and does not.
        if !machine.ask("modprobe", ["--dry-run", "--quiet", &module])?.success() {
            missing.push(module);
        }
    }
    if !missing.is_empty() {
        let text = format!("the kernel {} has no module {}", machine.kernel, missing.join(", "));
        let fix = "install the package with this kernel's further modules (kernel-modules, linux-modules-extra)";
        findings.push(Finding::error("mod.kernel", text, fix));
    }
    Ok(findings)
}

fn security(checks: &Checks<'_>) -> Result<Vec<Finding>> {
    let (machine, mut findings) = (checks.machine, Vec::new());
    let enforcing = fs::read_to_string(machine.disk.path("/sys/fs/selinux/enforce"));
    if enforcing.is_ok_and(|text| text.trim() == "1") {
        let fix = "setenforce 0, and SELINUX=permissive in /etc/selinux/config";
        findings.push(Finding::error("sec.selinux", "SELinux is enforcing", fix));
    }
    for unit in ["firewalld", "ufw"] {
        if machine.runs(unit)? {
            let text = format!("{unit} is active: it drops what nodes and pods say to each other");
            findings.push(Finding::error("sec.firewall", text, format!("systemctl disable --now {unit}")));
        }
    }
    for unit in ["nftables", "iptables"] {
        if machine.runs(unit)? {
            let text = format!("{unit} is active: its rules must let the nodes of the cluster talk to each other");
            findings.push(Finding::warning("sec.firewall", text, "see docs/cluster-file.md for the ports"));
        }
    }
    let swaps = fs::read_to_string(machine.disk.path("/proc/swaps")).unwrap_or_default();
    let used: Vec<_> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if !used.is_empty() {
        let text = format!("swap is in use: {}", used.join(", "));
        findings.push(Finding::error("swap", text, "swapoff -a, and remove it from /etc/fstab"));
    }
    Ok(findings)
}

fn network(checks: &Checks<'_>) -> Vec<Finding> {
    let (machine, mut findings) = (checks.machine, Vec::new());
    for address in checks.plan.profile.node.addresses() {
        if !machine.host.has_address(address.addr()) {
            let text = format!("{address} of {} is on no interface", checks.plan.profile.node.name);
            let fix = "configure it with this system's own tools: a bundle leaves the network as it is";
            findings.push(Finding::error("net.address", text, fix));
        }
    }
    let v6 = checks.plan.profile.node.address.addr().is_ipv6();
    if !has_default_route(machine, v6) {
        let fix = "give the node's network card a gateway: without one there is no route to services";
        findings.push(Finding::error("net.route", "there is no default route", fix));
    }
    if !machine.disk.path("/etc/resolv.conf").exists() {
        let fix = "make one, empty if there is no DNS server: kubelet hands it to pods";
        findings.push(Finding::error("net.resolv", "/etc/resolv.conf does not exist", fix));
    }
    if machine.disk.path("/etc/hosts").is_symlink() {
        let fix = "make it a file: the nodes of the cluster are added to it";
        findings.push(Finding::error("net.hosts", "/etc/hosts is a link", fix));
    }
    let left: Vec<_> = machine.interfaces().into_iter().filter(|name| is_meant(name, &known::INTERFACES)).collect();
    if !left.is_empty() {
        let text = format!("network interfaces of another pod network: {}", left.join(", "));
        findings.push(Finding::error("net.residue", text, "ip link delete NAME, or restart the machine"));
    }
    findings
}

/// By the kernel's tables: of IPv4 lines of interface, destination, gateway, flags; of IPv6 lines of destination and prefix
/// length first, and the interface last.
fn has_default_route(machine: &Machine<'_>, v6: bool) -> bool {
    let table = if v6 { "/proc/net/ipv6_route" } else { "/proc/net/route" };
    let text = fs::read_to_string(machine.disk.path(table)).unwrap_or_default();
    text.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        if v6 {
            fields.first().is_some_and(|to| to.bytes().all(|byte| byte == b'0'))
                && fields.get(1) == Some(&"00")
                && fields.last() != Some(&"lo")
        } else {
            fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")
        }
    })
}

fn software(checks: &Checks<'_>) -> Result<Vec<Finding>> {
    let machine = checks.machine;
    let mut findings = Vec::new();
    let (packages, remove) = packages(machine)?;
    let conflicts: BTreeSet<_> =
        packages.iter().filter(|name| is_meant(name, &known::PACKAGES)).map(String::as_str).collect();
    if !conflicts.is_empty() {
        let names = conflicts.into_iter().collect::<Vec<_>>().join(" ");
        let fix = format!("move what runs in them elsewhere, back up their data, then: {remove} {names}");
        findings.push(Finding::error("sw.conflict", format!("conflicting packages: {names}"), fix));
    }
    let snaps = if has_command(machine, "snap") { machine.ask("snap", ["list"])?.stdout } else { String::new() };
    let snaps: Vec<_> = snaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| known::SNAPS.contains(name))
        .collect();
    if !snaps.is_empty() {
        let names = snaps.join(" ");
        let fix = format!("snap remove --purge {names}");
        findings.push(Finding::error("sw.conflict", format!("conflicting snaps: {names}"), fix));
    }
    findings.extend(commands(checks, &packages, remove));
    findings.extend(carried(checks)?);
    findings.extend(balancer(checks)?);
    Ok(findings)
}

/// Names of the installed packages, and what removes one.
fn packages(machine: &Machine<'_>) -> Result<(BTreeSet<String>, &'static str)> {
    if has_command(machine, "rpm") && machine.disk.exists("/var/lib/rpm") {
        let names = machine.run("rpm", ["-qa", "--qf", "%{NAME}\\n"])?;
        return Ok((names.lines().map(str::to_owned).collect(), "dnf remove"));
    }
    if has_command(machine, "dpkg-query") {
        let names = machine.run("dpkg-query", ["-W", "-f", "${db:Status-Status} ${Package}\\n"])?;
        let installed = names.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned);
        return Ok((installed.collect(), "apt-get purge"));
    }
    Ok((BTreeSet::new(), "remove"))
}

fn has_command(machine: &Machine<'_>, name: &str) -> bool {
    PATH.split(':').any(|folder| machine.disk.path(&format!("{folder}/{name}")).exists())
}

/// Commands that the host lacks.
fn commands(checks: &Checks<'_>, packages: &BTreeSet<String>, remove: &str) -> Option<Finding> {
    let profile = &checks.plan.profile;
    let pods = checks.kind == PayloadKind::Pods;
    let balancer = profile.has(Role::Master) && matches!(profile.load_balancer, LoadBalancer::Keepalived { .. });
    let lists: [(bool, &[Needed]); 5] = [
        (true, &known::NEEDED),
        (profile.has(Role::Etcd), &known::NEEDED_BY_ETCD),
        (pods, &known::NEEDED_BY_PODS),
        (pods && profile.network.plugin == NetworkPlugin::Bridge, &known::NEEDED_BY_BRIDGE),
        (balancer, &known::NEEDED_BY_BALANCER),
    ];
    let wanted = lists.iter().filter(|(wanted, _)| *wanted).flat_map(|(_, list)| list.iter());
    let missing: Vec<_> = wanted.filter(|needed| !has_command(checks.machine, needed.command)).collect();
    if missing.is_empty() {
        return None;
    }
    let is_rpm = remove.starts_with("dnf");
    let package = |needed: &&Needed| if is_rpm { needed.rpm } else { needed.deb };
    // A package that is there has its commands somewhere else.
    let install: BTreeSet<_> = missing.iter().map(package).filter(|name| !packages.contains(*name)).collect();
    let install = install.into_iter().collect::<Vec<_>>().join(" ");
    let text = missing.iter().map(|needed| needed.command).collect::<Vec<_>>().join(", ");
    let tool = if is_rpm { "dnf install" } else { "apt-get install" };
    Some(Finding::error("sw.command", format!("this host lacks {text}"), format!("{tool} {install}")))
}

/// Programs of the bundle that do not start here. Whether their libraries are there only running them tells.
fn carried(checks: &Checks<'_>) -> Result<Vec<Finding>> {
    let profile = &checks.plan.profile;
    let mut wanted = Vec::new();
    if checks.kind == PayloadKind::Pods {
        wanted.extend(known::CARRIED_FOR_PODS);
    }
    if profile.has(Role::Etcd) {
        wanted.extend(known::CARRIED_FOR_ETCD);
    } else if profile.has(Role::Master) {
        // It asks etcd who initialises.
        wanted.push("etcdctl");
    }
    let files: std::collections::BTreeMap<_, _> = checks.bundle.payload(checks.kind).collect();
    let mut findings = Vec::new();
    for (name, version) in known::CARRIED {
        let Some(path) = files.get(format!("bin/{name}").as_str()) else {
            if wanted.contains(&name) {
                let fix = "bring it to /usr/bin as an input of the cluster file, and build the bundle again";
                findings.push(Finding::error("sw.program", format!("the bundle has no {name}"), fix));
            }
            continue;
        };
        let program = path.to_string_lossy().into_owned();
        // One of its folder that is mounted noexec does not start at all.
        // Where its authors do not test etcd, it wants to be told that we know.
        let command = Command::new(&program, [version]).env("ETCD_UNSUPPORTED_ARCH", &checks.plan.payload.architecture);
        let (fails, said) = match checks.machine.runner.run(&command, None, &mut |_| {}) {
            Ok(output) => (!output.success(), output.stderr_tail),
            Err(error) => (true, format!("{error:#}")),
        };
        if fails {
            let said = said.lines().last().unwrap_or("it says nothing").to_owned();
            let text = format!("{name} of the bundle does not start here: {said}");
            let fix = "install the library that it names, or build the bundle with programs for this distribution";
            findings.push(Finding::error("sw.program", text, fix));
        }
    }
    Ok(findings)
}

/// haproxy or keepalived that serve something else: firstboot writes their configuration.
fn balancer(checks: &Checks<'_>) -> Result<Vec<Finding>> {
    let profile = &checks.plan.profile;
    if !profile.has(Role::Master) || !matches!(profile.load_balancer, LoadBalancer::Keepalived { .. }) {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    for (unit, file, sections) in [
        ("haproxy", "/etc/haproxy/haproxy.cfg", &["frontend", "listen"][..]),
        ("keepalived", "/etc/keepalived/keepalived.conf", &["vrrp_instance", "virtual_server"]),
    ] {
        let text = fs::read_to_string(checks.machine.disk.path(file)).unwrap_or_default();
        let first = text
            .lines()
            .enumerate()
            .find(|(_, line)| line.split_whitespace().next().is_some_and(|word| sections.contains(&word)));
        if let Some((number, line)) = first
            && checks.machine.runs(unit)?
        {
            let text = format!("{unit} serves something already: {file}:{}: {}", number + 1, line.trim());
            let fix = format!("move it to another machine, then: systemctl disable --now {unit}");
            findings.push(Finding::error("sw.balancer", text, fix));
        }
    }
    Ok(findings)
}

/// What other installations left, and what would run beside ours.
fn left_overs(checks: &Checks<'_>) -> Vec<Finding> {
    let disk = &checks.machine.disk;
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    let mut places: Vec<String> = Vec::new();
    for (folders, names) in
        [(&known::PROGRAM_FOLDERS[..], &known::PROGRAMS[..]), (&known::UNIT_FOLDERS[..], &known::UNITS[..])]
    {
        for folder in folders {
            // Two names of one folder are one.
            if fs::canonicalize(disk.path(folder)).is_ok_and(|real| seen.insert(real)) {
                places.extend(names.iter().map(|name| format!("{folder}/{name}")).filter(|path| disk.exists(path)));
            }
        }
    }
    if !places.is_empty() {
        let text = format!("programs or units where the node's will be: {}", places.join(", "));
        let fix = "remove them: with their package (see sw.conflict), or by hand where no package has them";
        findings.push(Finding::error("sw.files", text, fix));
    }
    let is_empty_dir = |path: &str| disk.path(path).is_dir() && disk.names(path).is_empty();
    let used: Vec<&str> = known::OWNED
        .iter()
        .chain(&known::RESIDUE)
        .copied()
        // The lock of an attempt that failed is in that one; a node's state is looked for below.
        .filter(|path| *path != RUN_DIR && disk.exists(path) && !is_empty_dir(path))
        .collect();
    if !used.is_empty() {
        let text = format!("left by another cluster or container engine: {}", used.join(", "));
        let fix = "back up what matters, then `kubeadm reset` or what else made them, and remove them";
        findings.push(Finding::error("fs.residue", text, fix));
    }
    // A power cut before the record was on the disk leaves copies, and nothing that was changed.
    if disk.names(STATE_DIR).iter().any(|name| name != SAVED && !name.starts_with('.')) {
        let text = format!("this machine is a node already: {STATE_DIR} has a node's state, and no bundle made it");
        findings.push(Finding::error("fs.residue", text, "a node from an image needs no bundle; else remove it"));
    }
    findings
}

fn space(checks: &Checks<'_>) -> Vec<Finding> {
    let machine = checks.machine;
    let size = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let (mut payload, mut images) = (0, 0);
    for (path, source) in checks.bundle.payload(checks.kind) {
        payload += size(&source);
        if path.starts_with("images/") {
            images += size(&source);
        }
    }
    // containerd keeps an image's blobs and unpacks them. Compressed layers grow to about three times their size.
    let wanted = [("/opt", payload), ("/var/lib", LEAST_FREE + 4 * images)];
    let mut filesystems: Vec<(u64, PathBuf, u64)> = Vec::new();
    for (path, need) in wanted {
        let real = machine.disk.path(path);
        let Some(there) = real.ancestors().find(|path| path.exists()) else { continue };
        let Ok(device) = fs::metadata(there).map(|meta| meta.dev()) else { continue };
        match filesystems.iter_mut().find(|(known, ..)| *known == device) {
            Some((.., sum)) => *sum += need,
            None => filesystems.push((device, there.to_owned(), need)),
        }
    }
    let mut findings = Vec::new();
    for (_, path, need) in filesystems {
        match machine.host.free_space(&path) {
            Ok(free) if free >= need => {}
            Ok(free) => {
                let text = format!(
                    "{} MiB are free on the filesystem of {}, {} MiB are needed for payload, images and data",
                    free >> 20,
                    path.display(),
                    need >> 20
                );
                findings.push(Finding::error("disk.space", text, "make room, or use a larger disk"));
            }
            Err(error) => findings.push(Finding::error("disk.space", format!("{error:#}"), "check the disk (`dmesg`)")),
        }
    }
    findings
}
