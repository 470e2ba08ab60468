// SPDX-License-Identifier: MIT OR Apache-2.0
//! The installer: what the initramfs does when it was booted from an installation medium (docs/contracts.md, section
//! 11; docs/installer.md). Nothing is written to a disk before the medium, the node and the disk are certain.

pub mod device;
pub mod identity;
pub mod index;
pub mod loop_device;
pub mod machine;
pub mod medium;
pub mod pause;
pub mod probe;
pub mod progress;
pub mod ram;
pub mod request;
pub mod signature;
pub mod target;
pub mod verify;
pub mod write;

#[cfg(test)]
mod testing;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use profiles::medium::{Medium, MediumNode};

use crate::console::Console;
use crate::init::SYSROOT;
use crate::init::disk::DEADLINE;
use crate::init::modules::Modules;
use device::Device;
use machine::Facts;
use medium::Found;
use progress::megabytes;
use ram::Purpose;
use request::{Request, Task, Which};
use target::{Candidate, Decision};
use write::Source;

/// How long nothing new turns up until all disks are believed to be there.
const QUIET: Duration = Duration::from_secs(5);
/// How long what is missing or not certain may still turn up: slow disks and network cards.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked.
const POLL: Duration = Duration::from_millis(500);

/// How the boot goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// From the disk with this GUID, slot a.
    Disk(String),
    /// From what is mounted below `/sysroot`; systemd starts this unit instead of its default one.
    Memory(Option<&'static str>),
}

/// What kept the installer from its work.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: anyhow::Error,
    /// Whether it wrote to a disk: then it does not try again by itself.
    pub wrote: bool,
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self { error, wrote: false }
    }
}

/// Does what the kernel command line asks for.
pub fn run(request: &Request, modules: &mut Modules, console: &Console) -> Result<Next, Failed> {
    console.set_who("install");
    let key = signature::key(Path::new("/"))?;
    let found = medium::wait_for(&request.medium, key.as_ref(), modules, console)?;
    if let Some(key) = key {
        console.line(&format!("the medium is signed by {}", key.id()));
    }
    console.line(&format!("cluster {}, {} nodes on the medium", found.index.cluster, found.index.nodes.len()));
    match &request.task {
        Task::Install(which) => install(which, found, modules, console),
        Task::Diskless(which) => {
            diskless(which, &found, modules, console)?;
            Ok(Next::Memory(None))
        }
        Task::Rescue => {
            rescue(&found, console)?;
            Ok(Next::Memory(Some("rescue.target")))
        }
    }
}

fn install(which: &Which, found: Found, modules: &mut Modules, console: &Console) -> Result<Next, Failed> {
    let node = choose(which, &found.index, modules, console)?.clone();
    let next = Next::Disk(node.disk_guid.clone());
    let Decision::Install(disk) = decide(&found, &node, modules, console)? else {
        console.line(&format!("{} is installed already: nothing is written", node.name));
        found.release(console);
        return Ok(next);
    };
    console.line(&format!("{} goes to {}", node.name, show(&disk)));
    let names = verify::files_of(&node);
    let verified = verify::files(&found.dir, &found.index, &names, &node.pieces, console)?;
    let device = still_the_same(&disk, &found, &node)?;
    let source = Source { dir: &found.dir, verified: &verified };
    write_to(device, &source, &found.index, &node, console).map_err(|error| Failed { error, wrote: true })?;
    // From here on a restart boots the disk.
    console.line(&format!("{} is installed on {}", node.name, disk.name));
    found.release(console);
    Ok(next)
}

fn write_to(
    mut device: Device,
    source: &Source<'_>,
    medium: &Medium,
    node: &MediumNode,
    console: &Console,
) -> Result<()> {
    write::install(&mut device, source, medium, node, console)?;
    device.reread_table()
}

/// While the medium was checked, somebody may have changed disks.
fn still_the_same(disk: &Candidate, found: &Found, node: &MediumNode) -> Result<Device> {
    let again = list(found, node);
    let same = again.iter().any(|other| other == disk);
    ensure!(same, "{} changed while the medium was checked; nothing was written", disk.name);
    Device::open(&disk.device, disk.size)
}

fn diskless(which: &Which, found: &Found, modules: &mut Modules, console: &Console) -> Result<()> {
    let node = choose(which, &found.index, modules, console)?;
    let budget = ram::budget(machine::memory(Path::new("/proc"))?, found, node, Purpose::Node)?;
    let seed = ram::seed(&found.dir, &found.index, node)?;
    in_memory(found, node, budget, console)?;
    ram::put_seed(Path::new(SYSROOT), &seed)?;
    console.line(&format!("{} runs in memory and keeps nothing; {} for its data", node.name, megabytes(budget)));
    Ok(())
}

fn rescue(found: &Found, console: &Console) -> Result<()> {
    let node = found.index.nodes.first().context("the medium has no node, and so no root to start")?;
    let budget = ram::budget(machine::memory(Path::new("/proc"))?, found, node, Purpose::Rescue)?;
    in_memory(found, node, budget, console)?;
    ram::make_rescue(Path::new(SYSROOT))?;
    console.line("a root shell follows; no disk is touched");
    Ok(())
}

fn in_memory(found: &Found, node: &MediumNode, budget: u64, console: &Console) -> Result<()> {
    let names = BTreeSet::from([node.root.as_str(), node.payload.as_str()]);
    verify::files(&found.dir, &found.index, &names, &[], console)?;
    ram::mount(found, node, budget, console)
}

/// The node this machine is to be. Network cards may be late, and so may their drivers.
fn choose<'m>(which: &Which, medium: &'m Medium, modules: &mut Modules, console: &Console) -> Result<&'m MediumNode> {
    let started = Instant::now();
    let node = loop {
        while modules.load_matching(console) {}
        match machine::choose(medium, which, &Facts::read(Path::new("/sys"))) {
            Err(_) if started.elapsed() < PATIENCE => std::thread::sleep(POLL),
            other => break other?,
        }
    };
    let facts = Facts::read(Path::new("/sys"));
    console.line(&format!("this machine ({}) is to be {}", facts.show(), node.name));
    if let Some(warning) = machine::doubt(node, &facts) {
        console.line(&warning);
    }
    Ok(node)
}

/// What to do with the machine's disks: at once if the node is on one, else when nothing new has turned up for a while.
fn decide(found: &Found, node: &MediumNode, modules: &mut Modules, console: &Console) -> Result<Decision> {
    let started = Instant::now();
    let mut settled = Settled::default();
    loop {
        while modules.load_matching(console) {}
        let candidates = list(found, node);
        let decision = target::decide(&candidates, node);
        let names = candidates.into_iter().map(|disk| disk.name).collect();
        let patience = match &decision {
            Ok(Decision::Boot) => return decision,
            Ok(Decision::Install(_)) if settled.after(names, Instant::now()) => return decision,
            Ok(Decision::Install(_)) => DEADLINE,
            Err(_) => PATIENCE,
        };
        if started.elapsed() >= patience {
            return decision;
        }
        std::thread::sleep(POLL);
    }
}

/// Whether the machine's disks stay the same.
#[derive(Debug, Default)]
struct Settled {
    names: Vec<String>,
    since: Option<Instant>,
}

impl Settled {
    /// Whether they have been these for [`QUIET`].
    fn after(&mut self, names: Vec<String>, now: Instant) -> bool {
        let since = match self.since {
            Some(since) if self.names == names => since,
            _ => now,
        };
        self.since = Some(since);
        self.names = names;
        now.duration_since(since) >= QUIET
    }
}

fn list(found: &Found, node: &MediumNode) -> Vec<Candidate> {
    target::list(Path::new("/sys/block"), Path::new("/dev"), found.disk.as_deref(), node, &found.index)
}

fn show(disk: &Candidate) -> String {
    let id = disk.identity.ids.first().map(|id| format!(", {id}")).unwrap_or_default();
    format!("{} ({}{id}; {})", disk.name, megabytes(disk.size), disk.state.show())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_settle_when_nothing_new_turns_up() {
        let mut settled = Settled::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let names = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(!settled.after(names("sda"), at(0)));
        assert!(!settled.after(names("sda"), at(4)));
        assert!(!settled.after(names("sda sdb"), at(5)), "a late disk begins the wait anew");
        assert!(!settled.after(names("sda sdb"), at(9)));
        assert!(settled.after(names("sda sdb"), at(10)));
    }
}
