// SPDX-License-Identifier: MIT OR Apache-2.0
//! `firstboot host-install`: looks, refuses or notes what the host is like, and only then changes it. May run again after a
//! power cut at any point.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiles::bundle::{HOST_FILES, PayloadKind};
use profiles::node::{Architecture, Role};
use profiles::signing::PublicKey;

use super::check::{self, Checks};
use super::known;
use super::media::Unpacked;
use super::record::{Phase, Record, SAVED};
use super::{HOSTS, Machine, Origin, hosts};
use crate::cli;
use crate::context::{PAYLOAD_DIR, STATE_DIR};
use crate::failure::Failure;
use crate::files::Owner;
use crate::node::NodePlan;
use crate::rendered;
use crate::seed::RawSeed;
use crate::steps::kernel;
use crate::steps::preflight::{Finding, Level};

/// firstboot's own unit.
pub(super) const UNIT: &str = "firstboot.service";
/// Where a link of each program is, as in an image: units name programs there.
const PROGRAM_LINKS: &str = "/usr/bin";
/// Configuration of NetworkManager, for hosts that have one.
const NETWORK_MANAGER: &str = "/etc/NetworkManager";
/// Links by which systemd starts what firstboot enables.
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";
const ENABLED: [&str; 6] = ["containerd", "etcd", "firstboot", "haproxy", "keepalived", "kubelet"];
/// Of those that firstboot takes over, what a host may have had running.
const TAKEN_OVER: [&str; 2] = ["haproxy.service", "keepalived.service"];
/// The administrator's kubeconfig, and what kubectl keeps beside it.
const KUBE: &str = "/root/.kube";

/// What to install.
#[derive(Debug)]
pub struct Install {
    /// The unpacked bundle.
    pub bundle: PathBuf,
    /// Which node; found out if nothing is said.
    pub profile: Option<String>,
    /// Changes nothing.
    pub check_only: bool,
    /// What must have signed the bundle, whatever it says itself.
    pub key: Option<PublicKey>,
}

/// What becomes of the machine.
struct Node<'a> {
    machine: &'a Machine<'a>,
    bundle: &'a Unpacked,
    kind: PayloadKind,
    raw: RawSeed,
    plan: NodePlan,
}

/// Makes the machine a node, or says why not.
///
/// # Errors
/// Exit code 10: a damaged bundle, no such node. 20: the host does not fit, with every finding said before. 30, 50: a change failed;
/// the same again goes on.
pub fn install(machine: &Machine<'_>, options: &Install) -> Result<()> {
    let system = check::system(machine);
    let (Some(architecture), []) = (Architecture::of_machine(&machine.architecture), system.as_slice()) else {
        return refuse(machine, &system);
    };
    let bundle = Unpacked::open(&options.bundle, architecture, options.key.as_ref())?;
    if let Some(key) = bundle.signed_by {
        machine.console.say("install", &format!("the bundle is signed by {key}"));
    }
    let name = bundle.choose(machine, options.profile.as_deref())?;
    machine.console.set_who(&name);
    let (raw, seed) = bundle.seed(&name)?;
    if seed.expects_secrets() && !seed.has_secrets() {
        let reason = format!("the seed of {name} has no keys");
        return Err(Failure::seed(reason, "unpack the bundle again: somebody took them out of this folder").into());
    }
    let kind = bundle.kind(&name).context("a chosen node is in the index")?;
    let plan = rendered::plan(&seed, bundle.description(kind)?, Origin::Bundle)?;
    let node = Node { machine, bundle: &bundle, kind, raw, plan };
    let record = Record::read(machine.disk.root())?;
    if let Some(record) = &record {
        node.refuse_another(record)?;
    } else {
        let findings = check::findings(&Checks { machine, bundle: &bundle, kind, plan: &node.plan })?;
        refuse(machine, &findings)?;
    }
    if options.check_only {
        machine.console.say(
            "check",
            match record.map(|record| record.phase) {
                None => "nothing is in the way",
                Some(Phase::Installed) => "it is installed",
                Some(_) => "an installation is half done: ./install goes on with it",
            },
        );
        return Ok(());
    }
    let lock = cli::lock(machine.disk.root())?;
    let mut record = match record {
        Some(record) => record,
        None => node.note()?,
    };
    if record.phase == Phase::Installing {
        node.change(&record)?;
        record.enter(Phase::Installed, &machine.disk)?;
    }
    drop(lock);
    node.start()
}

/// Says every finding; fails if one refuses.
fn refuse(machine: &Machine<'_>, findings: &[Finding]) -> Result<()> {
    let mut errors = Vec::new();
    for finding in findings {
        let level = match finding.level {
            Level::Warning => "warning",
            Level::Error => {
                errors.push(finding.id);
                "error"
            }
        };
        machine.console.say("check", &format!("{level} {}: {}; {}", finding.id, finding.text, finding.fix));
    }
    if errors.is_empty() {
        return Ok(());
    }
    errors.dedup();
    let reason = format!("this machine cannot become a node yet: {}", errors.join(", "));
    Err(Failure::preflight(reason, "do what each line says; nothing was changed").into())
}

impl Node<'_> {
    fn name(&self) -> &str {
        &self.plan.profile.node.name
    }

    /// A machine is one node of one bundle, and a removal comes to its end first.
    fn refuse_another(&self, record: &Record) -> Result<()> {
        let (reason, fix) = if matches!(record.phase, Phase::Uninstalling | Phase::Restored) {
            ("the removal of a bundle did not come to its end".to_owned(), "run `./uninstall` again, then this")
        } else if record.node != self.name() || record.bundle != self.bundle.digest {
            let other = if record.node == self.name() { "another bundle" } else { "this or another bundle" };
            (format!("this machine is {} of {other} already", record.node), "run `./uninstall` first")
        } else {
            return Ok(());
        };
        Err(Failure::preflight(reason, fix).into())
    }

    /// Files for `/`: where to, and where they are in the bundle.
    fn host_files(&self) -> Vec<(String, PathBuf)> {
        let prefix = format!("{HOST_FILES}/");
        let files = self.bundle.payload(self.kind);
        let files = files.filter_map(|(path, source)| Some((format!("/{}", path.strip_prefix(&prefix)?), source)));
        let has_manager = self.machine.disk.exists(NETWORK_MANAGER);
        files.filter(|(path, _)| has_manager || !path.starts_with(NETWORK_MANAGER)).collect()
    }

    /// Links to programs of the payload: where, and to what.
    fn links(&self) -> Vec<(String, String)> {
        let programs = self.bundle.payload(self.kind).filter_map(|(path, _)| path.strip_prefix("bin/"));
        programs.map(|name| (format!("{PROGRAM_LINKS}/{name}"), format!("{PAYLOAD_DIR}/bin/{name}"))).collect()
    }

    /// Notes what the host is like. When this returns, the note is on the disk, and nothing else is changed.
    fn note(&self) -> Result<Record> {
        let (machine, disk) = (self.machine, &self.machine.disk);
        let profile = &self.plan.profile;
        disk.private_dir(STATE_DIR)?;
        // Of an attempt whose note never came to the disk.
        disk.remove_all(&format!("{STATE_DIR}/{SAVED}"), false)?;
        disk.private_dir(&format!("{STATE_DIR}/{SAVED}"))?;
        let mut record = Record::new(self.bundle.digest.clone(), profile.cluster.id.clone(), self.name().to_owned());
        known::OWNED.iter().for_each(|path| record.own(disk, path));
        // kubectl leaves more there than the file that firstboot writes.
        let cache = format!("{KUBE}/cache");
        record.own(disk, if disk.exists(KUBE) { &cache } else { KUBE });
        let planned = self.plan.files.iter().map(|file| file.path.clone());
        let written = self.host_files().into_iter().chain(self.links().into_iter().map(|(path, to)| (path, to.into())));
        let wants = ENABLED.iter().map(|unit| format!("{WANTS}/{unit}.service"));
        let others = [HOSTS.to_owned(), format!("{KUBE}/config")];
        for path in planned.chain(written.map(|(path, _)| path)).chain(wants).chain(others) {
            record.note(disk, &path)?;
        }
        record.user = profile.has(Role::Etcd) && !has_etcd(machine, "/etc/passwd");
        record.hostname = machine.host.hostname();
        for key in kernel::planned_settings(&self.plan).into_keys() {
            // A parameter of a module that is not loaded yet has no value to go back to.
            if let Ok(value) = fs::read_to_string(disk.path(&format!("/proc/sys/{key}"))) {
                record.sysctl.insert(key, value.trim().to_owned());
            }
        }
        record.interfaces = machine.interfaces();
        record.mounts = machine.mounts().into_iter().collect();
        for unit in TAKEN_OVER {
            if machine.runs(unit)? {
                record.ran.insert(unit.to_owned());
            }
        }
        record.write(disk)?;
        Ok(record)
    }

    /// Makes all changes; each as good as done if it is done already.
    fn change(&self, record: &Record) -> Result<()> {
        let (machine, disk) = (self.machine, &self.machine.disk);
        let say = |text: &str| machine.console.say("install", text);
        say(&format!("copying the payload to {PAYLOAD_DIR}"));
        disk.copy_all(PAYLOAD_DIR, self.bundle.payload(self.kind))?;
        disk.apply(|root| self.raw.adopt(root))?;
        let files = self.host_files();
        for (path, source) in &files {
            disk.write(path, &read(source)?, 0o644, Owner::ROOT)?;
        }
        for (path, target) in self.links() {
            disk.link(&path, &target)?;
        }
        let before = record.saved_text(disk, HOSTS)?;
        disk.write(HOSTS, hosts(&before, &self.plan.profile).as_bytes(), 0o644, Owner::ROOT)?;
        if record.user && !has_etcd(machine, "/etc/passwd") {
            say("adding the user etcd");
            // A group of that name without the user is taken as it is.
            let group = if has_etcd(machine, "/etc/group") { "--no-user-group --gid=etcd" } else { "--user-group" };
            let fixed = ["--system", "--no-create-home", "--home-dir=/var/lib/etcd", "--shell=/usr/sbin/nologin"];
            let args = fixed.into_iter().chain(group.split(' ')).chain(["etcd"]);
            disk.apply(|_| machine.run("useradd", args))?;
        }
        let tmpfiles: Vec<&str> =
            files.iter().map(|(path, _)| path.as_str()).filter(|path| path.starts_with("/etc/tmpfiles.d/")).collect();
        disk.apply(|_| machine.run("systemd-tmpfiles", ["--create"].into_iter().chain(tmpfiles)))?;
        Ok(())
    }

    /// Hands over to firstboot.
    fn start(&self) -> Result<()> {
        let machine = self.machine;
        machine.run("systemctl", ["daemon-reload"])?;
        machine.run("udevadm", ["control", "--reload"])?;
        if machine.runs("NetworkManager")? {
            machine.run("systemctl", ["reload", "NetworkManager"])?;
        }
        machine.run("systemctl", ["enable", "--quiet", UNIT])?;
        machine.run("systemctl", ["start", "--no-block", UNIT])?;
        let say = |text: &str| machine.console.say("install", text);
        say("the host keeps its network, resolver, time and root's authorized_keys");
        say("firstboot makes this machine a node now: `firstboot status`, or `journalctl -u firstboot -f`");
        say("this folder holds the keys of every node in it: remove it when you are done");
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Whether the user or group database has a line of etcd.
pub(super) fn has_etcd(machine: &Machine<'_>, file: &str) -> bool {
    let text = fs::read_to_string(machine.disk.path(file)).unwrap_or_default();
    text.lines().any(|line| line.starts_with("etcd:"))
}
