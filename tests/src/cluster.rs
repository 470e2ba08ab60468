// SPDX-License-Identifier: MIT OR Apache-2.0

//! A cluster of virtual machines on a switch of their own: built from a shipped cluster file, switched on in any order, cut
//! off the power, re-imaged.
//!
//! Consoles are copied to `target/<profile>/imgbuild-tests/logs/<label>.<node>.<boot>.console.log`. With
//! `IMGBUILD_TEST_PCAP=1`, what passes the switch is kept beside them, in `<label>.pcap`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::build::{binary, copy_cluster, folder, repository};
use crate::cli::Outcome;
use crate::disk::{DEBUG_SHELL, copy, debug_overlay};
use crate::qemu::{Accelerator, Architecture, Done, Vm, VmBuilder, blank, overlay, scale};
use crate::random::Random;
use crate::switch::Switch;
use crate::uml;

/// How the kernel's arguments begin in a cluster file.
const KERNEL_ARGS: &str = "kernel_args = [";

/// Images of nodes of a cluster.
#[derive(Debug, Clone)]
pub struct Built {
    /// A copy of the shipped cluster folder, with a lock and secrets of its own.
    pub cluster: PathBuf,
    /// The architecture of all of them.
    pub architecture: Architecture,
    /// What executes them.
    pub accelerator: Accelerator,
    /// In the cluster file's order.
    pub nodes: Vec<BuiltNode>,
}

/// A node of a built cluster.
#[derive(Debug, Clone)]
pub struct BuiltNode {
    /// Name in the cluster file.
    pub name: String,
    /// Roles in the cluster file.
    pub roles: Vec<String>,
    /// IP address.
    pub address: String,
    /// Ethernet address; one of QEMU's where the cluster file names none.
    pub mac: String,
    /// The disk image. Not to be written to.
    pub image: PathBuf,
}

impl BuiltNode {
    fn has(&self, role: &str) -> bool {
        self.roles.iter().any(|own| own == role)
    }

    /// Processors, and memory in MiB: what its roles need, and no more, since seven of them share one computer.
    fn size(&self, architecture: Architecture) -> (u32, u32) {
        let (master, worker) = (self.has("master"), self.has("worker"));
        match architecture {
            Architecture::Amd64 if master => (2, 2560),
            Architecture::Amd64 if worker => (1, 1536),
            Architecture::Amd64 => (1, 1024),
            // Its pages have 16 KiB, and it is patience that is scarce.
            Architecture::Loong64 if master || worker => (2, 6144),
            Architecture::Loong64 => (2, 2048),
        }
    }
}

impl Built {
    /// Builds all images of the cluster `profiles/<profile>` as a user does, in the user's store. The cluster folder is a
    /// copy called `name`: each name has secrets of its own, so that two of them are two clusters.
    pub fn new(profile: &str, name: &str) -> Self {
        Self::build(profile, name, &["--all"], |_| true)
    }

    /// As [`Built::new`], where the machines are many: see [`Accelerator::of_many`].
    pub fn many(profile: &str, name: &str) -> Self {
        match Accelerator::of_many() {
            Accelerator::Uml => {
                // Another cluster file wants another lock.
                let name = &format!("{name}-uml");
                let change = |text: &str| uml::cluster_file(text, &folder().join(name));
                let built = Self::build_changed(profile, name, &["--all"], |_| true, change);
                Self { accelerator: Accelerator::Uml, ..built }
            }
            _ => Self::new(profile, name),
        }
    }

    /// As [`Built::new`], of one node alone.
    pub fn only(profile: &str, name: &str, node: &str) -> Self {
        Self::build(profile, name, &["--profile", node], |built| built.name == node)
    }

    /// Builds one installation image of all nodes instead: see [`TestCluster::blank`]. Installed systems have the tests' shell,
    /// by a kernel argument in the copy of the cluster file.
    pub fn iso(profile: &str, name: &str) -> (Self, PathBuf) {
        Self::build_iso(profile, name, &["--all"], |_| true, str::to_owned)
    }

    /// As [`Built::iso`], of one node alone, from a copy of the cluster file that `change` changes.
    pub fn iso_of(profile: &str, name: &str, node: &str, change: impl Fn(&str) -> String) -> (Self, PathBuf) {
        Self::build_iso(profile, name, &["--profile", node], |built| built.name == node, change)
    }

    fn build_iso(
        profile: &str,
        name: &str,
        which: &[&str],
        wanted: impl Fn(&BuiltNode) -> bool,
        change: impl Fn(&str) -> String,
    ) -> (Self, PathBuf) {
        let with_shell = |text: &str| with_shell(&change(text));
        let which = [which, &["--output", "iso"]].concat();
        let built = Self::build_changed(profile, name, &which, wanted, with_shell);
        let iso = folder().join(format!("{name}.out")).join(format!("{profile}.iso"));
        assert!(iso.exists(), "no {}", iso.display());
        (built, iso)
    }

    /// Builds the folder for network boot instead, of all nodes, from a copy of the cluster file that `change` changes.
    pub fn pxe(profile: &str, name: &str, change: impl Fn(&str) -> String) -> (Self, PathBuf) {
        let built = Self::build_changed(profile, name, &["--all", "--output", "pxe"], |_| true, change);
        let path = folder().join(format!("{name}.out")).join(format!("{profile}-pxe"));
        assert!(path.join("boot.ipxe").exists(), "no boot.ipxe in {}", path.display());
        (built, path)
    }

    fn build(profile: &str, name: &str, which: &[&str], wanted: impl Fn(&BuiltNode) -> bool) -> Self {
        Self::build_changed(profile, name, which, wanted, str::to_owned)
    }

    fn build_changed(
        profile: &str,
        name: &str,
        which: &[&str],
        wanted: impl Fn(&BuiltNode) -> bool,
        change: impl Fn(&str) -> String,
    ) -> Self {
        let cluster = folder().join(name);
        copy_cluster(&repository().join("profiles").join(profile), &cluster);
        let out = folder().join(format!("{name}.out"));
        let file = cluster.join("cluster.toml");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("reading {}: {error}", file.display()));
        let text = change(&text);
        fs::write(&file, &text).unwrap_or_else(|error| panic!("writing {}: {error}", file.display()));
        build(&cluster, &out, which);
        let (architecture, mut nodes) = read(&text, &out).unwrap_or_else(|what| panic!("{}: {what}", file.display()));
        nodes.retain(wanted);
        Self { cluster, architecture, accelerator: architecture.accelerator(), nodes }
    }

    /// Appends a node to the cluster file and builds its image alone, as a user does days later. `table` is its
    /// `[[node]]`.
    pub fn append(&self, table: &str) -> BuiltNode {
        let file = self.cluster.join("cluster.toml");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("reading {}: {error}", file.display()));
        // After the last node: its place decides a node's pod subnet.
        let last = self.nodes.last().expect("a cluster has nodes");
        let mac = format!("mac = \"{}\"\n", last.mac);
        let grown = replace_once(&text, &mac, &format!("{mac}\n{table}"));
        fs::write(&file, &grown).unwrap_or_else(|error| panic!("writing {}: {error}", file.display()));
        let out = last.image.parent().expect("an image is in a folder");
        let (_, mut nodes) = read(&grown, out).expect("a cluster file");
        let node = nodes.pop().expect("a node");
        build(&self.cluster, out, &["--profile", &node.name]);
        node
    }

    /// Names of all nodes.
    pub fn names(&self) -> Vec<&str> {
        self.nodes.iter().map(|node| node.name.as_str()).collect()
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> &BuiltNode {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("no node `{name}` in {}", self.cluster.display()))
    }
}

/// A cluster file that has kernel arguments, with the one that gives installed systems the tests' shell.
pub fn with_shell(text: &str) -> String {
    replace_once(text, KERNEL_ARGS, &format!("{KERNEL_ARGS}\"{DEBUG_SHELL}\", "))
}

/// Replaces what is in a text once.
///
/// # Panics
/// If it is not there, or more than once: the shipped file is not what the test took it for.
pub fn replace_once(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "`{old}` in\n{text}");
    text.replace(old, new)
}

fn build(cluster: &Path, out: &Path, what: &[&str]) {
    let start = Instant::now();
    let mut command = Command::new(binary());
    command.arg("build").args(what).arg("--cluster").args([cluster, Path::new("--out"), out]).current_dir(folder());
    let outcome = Outcome::of(&mut command);
    assert_eq!(outcome.code, Some(0), "building {}:\n{}", cluster.display(), outcome.stderr);
    println!("{} built in {:.1} s", what.join(" "), start.elapsed().as_secs_f64());
}

fn read(text: &str, out: &Path) -> Result<(Architecture, Vec<BuiltNode>), String> {
    let file: toml::Table = text.parse().map_err(|error| format!("{error}"))?;
    let name = file.get("os").and_then(|os| os.get("architecture")?.as_str()).ok_or("no architecture")?;
    let architecture = Architecture::named(name).ok_or(format!("an architecture `{name}`"))?;
    let nodes = file.get("node").and_then(|nodes| nodes.as_array()).ok_or("no nodes")?;
    let read = |(place, node): (usize, &toml::Value)| {
        let key = |key: &str| node.get(key)?.as_str().map(str::to_owned);
        let roles = node.get("roles")?.as_array()?.iter().map(|role| role.as_str().map(str::to_owned));
        let name = key("name")?;
        let image = out.join(format!("{name}.img"));
        Some(BuiltNode {
            name,
            roles: roles.collect::<Option<_>>()?,
            address: key("address")?,
            mac: key("mac").unwrap_or_else(|| format!("52:54:00:00:00:{place:02x}")),
            image,
        })
    };
    let node = |(place, node)| read((place, node)).ok_or(format!("a node without name, roles or address: {node}"));
    Ok((architecture, nodes.iter().enumerate().map(node).collect::<Result<_, _>>()?))
}

/// Whether firstboot may fail on the way: systemd starts it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failures {
    /// The first `FAILED step=` on a console fails the test.
    Refused,
    /// They are part of the test, for example after a power cut.
    Expected,
}

/// A cluster of machines. They are switched off when it goes out of scope.
pub struct TestCluster {
    label: String,
    architecture: Architecture,
    accelerator: Accelerator,
    machines: Vec<Machine>,
    /// Size of disks that are empty, as QEMU writes it; otherwise they have the nodes' images.
    blank: Option<String>,
    switch: Switch,
    scratch: tempfile::TempDir,
}

#[derive(Debug)]
struct Machine {
    node: BuiltNode,
    /// How often it was switched on.
    boots: u32,
    /// How often its disk was written anew.
    disks: u32,
    /// What a machine of User-Mode Linux boots.
    boot: Option<uml::Boot>,
    vm: Option<Vm>,
}

impl fmt::Debug for TestCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestCluster")
            .field("label", &self.label)
            .field("machines", &self.machines)
            .finish_non_exhaustive()
    }
}

impl TestCluster {
    /// All machines of a built cluster, switched off, with fresh disks.
    pub fn new(built: &Built, label: &str) -> Self {
        Self::with_disks(built, label, None)
    }

    /// The same with disks of this size (`20G`) that are empty.
    pub fn blank(built: &Built, label: &str, size: &str) -> Self {
        Self::with_disks(built, label, Some(size.to_owned()))
    }

    fn with_disks(built: &Built, label: &str, blank: Option<String>) -> Self {
        let mut cluster = Self {
            label: label.to_owned(),
            architecture: built.architecture,
            accelerator: built.accelerator,
            machines: vec![],
            blank,
            switch: Switch::new(),
            scratch: tempfile::tempdir_in(folder()).expect("making a temporary folder"),
        };
        if std::env::var_os("IMGBUILD_TEST_PCAP").is_some() {
            fs::create_dir_all(logs()).expect("making the folder for logs");
            cluster.switch.dump(&logs().join(format!("{label}.pcap")));
        }
        for node in &built.nodes {
            cluster.add(node);
        }
        cluster
    }

    /// One more machine, switched off; in place of the one of that name, if there is one.
    pub fn add(&mut self, node: &BuiltNode) {
        // Goes on counting, so that the first one's console is kept.
        let boots =
            self.machines.iter().find(|machine| machine.node.name == node.name).map_or(0, |machine| machine.boots);
        self.machines.retain(|machine| machine.node.name != node.name);
        self.switch.port(&node.name);
        self.machines.push(Machine { node: node.clone(), boots, disks: 0, boot: None, vm: None });
        self.write_image(&node.name);
    }

    /// The switch; its ports have the names of the nodes.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    fn machine(&mut self, name: &str) -> &mut Machine {
        let label = &self.label;
        let found = self.machines.iter_mut().find(|machine| machine.node.name == name);
        found.unwrap_or_else(|| panic!("no machine `{name}` in {label}"))
    }

    /// IP address of a node.
    pub fn address(&mut self, name: &str) -> String {
        self.machine(name).node.address.clone()
    }

    /// The machine, which must be on.
    pub fn vm(&mut self, name: &str) -> &mut Vm {
        self.machine(name).vm.as_mut().unwrap_or_else(|| panic!("{name} is switched off"))
    }

    /// Switches a machine on.
    pub fn switch_on(&mut self, name: &str) {
        self.switch_on_with(name, |builder| builder);
    }

    /// Switches a machine on that differs in something.
    pub fn switch_on_with(&mut self, name: &str, change: impl FnOnce(VmBuilder) -> VmBuilder) {
        let builder = self.prepare(name);
        self.machine(name).vm = Some(change(builder).start());
        println!("{}: {name} is on", self.label);
    }

    /// Switches machines on at the same instant, as near as threads come to it.
    pub fn switch_on_together(&mut self, names: &[&str]) {
        let builders: Vec<VmBuilder> = names.iter().map(|name| self.prepare(name)).collect();
        let started: Vec<Vm> = thread::scope(|scope| {
            let threads: Vec<_> = builders.into_iter().map(|builder| scope.spawn(|| builder.start())).collect();
            threads.into_iter().map(|thread| thread.join().expect("QEMU starts")).collect()
        });
        for (name, vm) in names.iter().zip(started) {
            self.machine(name).vm = Some(vm);
        }
        println!("{}: switched on {}", self.label, names.join(" and "));
    }

    /// Switches groups of machines on, in this order; each group waits up to `longest` after the one before.
    pub fn switch_on_at_random(&mut self, groups: &[Vec<&str>], random: &mut Random, longest: Duration) {
        for (i, group) in groups.iter().enumerate() {
            if i > 0 {
                thread::sleep(random.up_to(longest));
            }
            self.switch_on_together(group);
        }
    }

    fn prepare(&mut self, name: &str) -> VmBuilder {
        let disk = self.disk(name);
        let machine = self.machine(name);
        assert!(machine.vm.is_none(), "{name} is on already");
        machine.boots += 1;
        let (node, boots, boot) = (machine.node.clone(), machine.boots, machine.boot.clone());
        let (cpus, memory_mib) = node.size(self.architecture);
        let builder = Vm::builder(&format!("{}.{name}.{boots}", self.label)).architecture(self.architecture);
        builder.disk(&disk).logs(&logs()).size(cpus, memory_mib).switch(&self.switch, name, &node.mac).uml(boot)
    }

    /// Cuts the power of a machine, which must be on.
    pub fn cut_power(&mut self, name: &str) {
        let vm = self.machine(name).vm.take().unwrap_or_else(|| panic!("{name} is switched off"));
        println!("{}: power of {name} cut {} s after its start", self.label, vm.uptime().as_secs());
        vm.cut_power();
    }

    /// Cuts the power, and writes the image to an empty disk: nothing of what the node was remains.
    pub fn reimage(&mut self, name: &str) {
        if self.machine(name).vm.is_some() {
            self.cut_power(name);
        }
        _ = fs::remove_file(self.disk(name));
        self.write_image(name);
        println!("{}: {name} has a fresh disk", self.label);
    }

    fn write_image(&mut self, name: &str) {
        self.machine(name).disks += 1;
        if let Some(size) = &self.blank {
            let size = size.clone();
            blank(&self.disk(name), &size);
            return;
        }
        if self.accelerator == Accelerator::Uml {
            let (disk, folder) = (self.disk(name), self.scratch.path().join(format!("{name}.boot")));
            let machine = self.machine(name);
            if machine.disks == 1 {
                fs::create_dir_all(&folder).expect("making a folder");
                machine.boot = Some(uml::Boot::of(&machine.node.image, &folder));
            }
            copy(&machine.node.image, &disk);
            return;
        }
        let base = self.scratch.path().join(format!("{name}.base.qcow2"));
        if self.machine(name).disks == 1 {
            debug_overlay(&self.machine(name).node.image, &base);
        }
        overlay(&base, &self.disk(name));
    }

    fn disk(&mut self, name: &str) -> PathBuf {
        let disks = self.machine(name).disks;
        let format = if self.accelerator == Accelerator::Uml { "raw" } else { "qcow2" };
        self.scratch.path().join(format!("{name}.{disks}.{format}"))
    }

    /// Waits until all these machines have converged, and prints when each has. Looks at all of them all the time, so that
    /// the first failure is reported and not the first deadline.
    pub fn wait_converged(&mut self, names: &[&str], limit: Duration, failures: Failures) {
        let begun = Instant::now();
        let deadline = begun + scale(limit, self.architecture, self.accelerator);
        let mut left: Vec<&str> = names.to_vec();
        while !left.is_empty() {
            left.retain(|name| {
                let vm = self.vm(name);
                let Some(line) = converged(vm, name, failures) else { return true };
                let after = vm.uptime().as_secs();
                println!("{}: {} ({after} s after power on)", self.label, line.trim());
                false
            });
            if Instant::now() > deadline && !left.is_empty() {
                let mut consoles = String::new();
                for name in &left {
                    consoles += &format!("\nend of the console of {name}:\n{}\n", self.vm(name).console.tail(40));
                }
                panic!("{} not converged within {} s{consoles}", left.join(", "), begun.elapsed().as_secs());
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// As [`Vm::output`].
    pub fn output(&mut self, name: &str, command: &str, limit: Duration) -> String {
        self.vm(name).output(command, limit)
    }

    /// As [`Vm::until`].
    pub fn until(&mut self, name: &str, command: &str, limit: Duration, good: impl Fn(&Done) -> bool) -> String {
        self.vm(name).until(command, limit, good)
    }
}

fn converged(vm: &mut Vm, name: &str, failures: Failures) -> Option<String> {
    let expected = failures == Failures::Expected;
    let nothing = format!("firstboot: {name}: already converged");
    vm.has_said(&nothing, expected).or_else(|| vm.has_said(&format!("firstboot: {name}: converged in"), expected))
}

/// Where consoles are copied to.
pub fn logs() -> PathBuf {
    folder().join("logs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_from_a_cluster_file() {
        let text = "[os]\narchitecture = \"amd64\"\n[[node]]\nname = \"worker-1\"\nroles = [\"worker\"]\n\
                    address = \"10.77.0.31\"\nmac = \"52:54:00:77:00:1f\"\n";
        let (architecture, nodes) = read(text, Path::new("/out")).unwrap();
        let [node] = &nodes[..] else { panic!("one node") };
        assert_eq!((node.name.as_str(), node.address.as_str()), ("worker-1", "10.77.0.31"));
        assert_eq!((architecture, node.size(architecture)), (Architecture::Amd64, (1, 1536)));
        assert_eq!((node.image.as_path(), node.mac.as_str()), (Path::new("/out/worker-1.img"), "52:54:00:77:00:1f"));
        let (_, nodes) = read(&text.replace("mac", "nic"), Path::new("/out")).unwrap();
        assert_eq!(nodes[0].mac, "52:54:00:00:00:00");
        let error = read(&text.replace("address", "home"), Path::new("/out")).unwrap_err();
        assert!(error.contains("worker-1"), "{error}");
        let error = read(&text.replace("amd64", "vax"), Path::new("/out")).unwrap_err();
        assert!(error.contains("vax"), "{error}");
    }
}
