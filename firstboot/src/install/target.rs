// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which disk of the machine. Whatever is not certain is an error that lists every disk, with the line that would
//! make it certain.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use profiles::medium::{Medium, MediumNode, Target};

use super::identity::{self, Identity, same, same_wwn};
use super::probe::{self, State};
use super::progress::megabytes;
use crate::init::disk::block_devices;

const MIB: u64 = 1 << 20;
/// Images have a partition table for sectors of this size.
const LOGICAL_SECTOR: u64 = 512;

/// A disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The kernel's name, `sda`.
    pub name: String,
    /// Its device node.
    pub device: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// How it is called.
    pub identity: Identity,
    /// What is on it.
    pub state: State,
    /// Why it never is a target, whatever the cluster file says.
    pub never: Option<String>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The node is on a disk of this machine.
    Boot,
    /// It goes to this disk.
    Install(Box<Candidate>),
}

/// The disks of the machine: those of `sys_block` (`/sys/block`), with device nodes in `dev`. `medium_disk` is the one
/// that the medium is on.
pub fn list(
    sys_block: &Path,
    dev: &Path,
    medium_disk: Option<&str>,
    node: &MediumNode,
    medium: &Medium,
) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for name in block_devices(sys_block).into_iter().filter(|name| !name.starts_with("sr")) {
        let sys = sys_block.join(&name);
        let number = |path: &str| fs::read_to_string(sys.join(path)).ok()?.trim().parse::<u64>().ok();
        // The kernel counts in 512 bytes, whatever the disk's sectors are. A card reader without a card has none.
        let size = number("size").unwrap_or_default() * 512;
        if size == 0 {
            continue;
        }
        let device = dev.join(name.replace('!', "/"));
        let identity = identity::read(&sys, &name);
        let sector = number("queue/logical_block_size").unwrap_or(LOGICAL_SECTOR);
        let path = identity.wwn.as_ref().and_then(|wwn| {
            let same = |other: &&Candidate| {
                let own = &other.identity;
                other.size == size && own.wwn.as_ref() == Some(wwn) && own.serial == identity.serial
            };
            found.iter().find(same)
        });
        let never = if medium_disk == Some(name.as_str()) {
            Some("it holds the installation medium".to_owned())
        } else if number("ro") == Some(1) {
            Some("it is read-only".to_owned())
        } else if sector != LOGICAL_SECTOR {
            Some(format!("it has sectors of {sector} bytes, an image is for {LOGICAL_SECTOR}"))
        } else {
            path.map(|other| format!("it is {} by another path", other.name))
        };
        let state = match File::open(&device) {
            Ok(mut file) => probe::state(&mut file, size, node, medium),
            Err(error) => State::Unreadable(error.to_string()),
        };
        found.push(Candidate { name, device, size, identity, state, never });
    }
    found
}

/// What to do with these disks for `node`.
pub fn decide(candidates: &[Candidate], node: &MediumNode) -> Result<Decision> {
    if candidates.iter().any(|disk| disk.state == State::Installed && disk.never.is_none()) {
        return Ok(Decision::Boot);
    }
    let usable: Vec<&Candidate> = candidates.iter().filter(|disk| why_not(disk, node).is_none()).collect();
    // What was begun is gone on with: it was certain then.
    let begun: Vec<&Candidate> = usable.iter().filter(|disk| disk.state == State::UnderWay).copied().collect();
    match (begun.as_slice(), usable.as_slice()) {
        ([disk], _) | ([], [disk]) => Ok(Decision::Install(Box::new((*disk).clone()))),
        (_, []) => bail!("no disk of this machine is one for {}\n{}", node.name, explain(candidates, node)),
        (_, several) => {
            let names: Vec<&str> = several.iter().map(|disk| disk.name.as_str()).collect();
            bail!("{} could go to {}\n{}", node.name, names.join(" or "), explain(candidates, node))
        }
    }
}

/// Why `disk` is not taken; `None` if it could be.
fn why_not(disk: &Candidate, node: &MediumNode) -> Option<String> {
    if disk.never.is_some() {
        return disk.never.clone();
    }
    if let Some(why) = mismatch(disk, &node.target) {
        return Some(why);
    }
    if disk.size < node.disk_size {
        // Rounded down: what fits.
        return Some(format!(
            "it is too small, the image has {} MiB: set `disk_size = \"{}MiB\"` for {}, if its partitions fit",
            node.disk_size.div_ceil(MIB),
            disk.size / MIB,
            node.name
        ));
    }
    match &disk.state {
        State::Foreign(_) if !node.target.wipe => Some("what is on it would be lost".to_owned()),
        State::Unreadable(why) => Some(format!("it cannot be read: {why}")),
        State::Installed | State::UnderWay | State::Empty | State::Foreign(_) => None,
    }
}

/// In what `disk` is not the one that the cluster file means.
fn mismatch(disk: &Candidate, target: &Target) -> Option<String> {
    let own = &disk.identity;
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    if let Some(id) = &target.id
        && !own.ids.iter().any(|own| same(own, id))
    {
        return Some(format!("its id is not {id}"));
    }
    if let Some(serial) = &target.serial
        && !own.serial.as_ref().is_some_and(|own| same(own, serial))
    {
        return Some(format!("its serial number is {}, not {serial}", or_none(&own.serial)));
    }
    if let Some(wwn) = &target.wwn
        && !own.wwn.as_ref().is_some_and(|own| same_wwn(own, wwn))
    {
        return Some(format!("its world wide name is {}, not {wwn}", or_none(&own.wwn)));
    }
    if let Some(model) = &target.model
        && !own.models.iter().any(|own| same(own, model))
    {
        return Some(format!("its model is {}, not {model}", or_none(&own.models.first().cloned())));
    }
    if let Some(least) = target.min_size.filter(|least| disk.size < *least) {
        return Some(format!("it is smaller than min_size, {}", megabytes(least)));
    }
    if let Some(most) = target.max_size.filter(|most| disk.size > *most) {
        return Some(format!("it is larger than max_size, {}", megabytes(most)));
    }
    None
}

/// Every disk, why it is not taken, and what to write to have it taken.
fn explain(candidates: &[Candidate], node: &MediumNode) -> String {
    let mut text = String::new();
    if candidates.is_empty() {
        text += "  this machine has no disk that its kernel can see\n";
    }
    let mut can_help = false;
    for disk in candidates {
        let own = &disk.identity;
        let part =
            |name: &str, value: Option<&String>| value.map(|value| format!(", {name} {value}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "  {}: {}{}{}{}{}; {}",
            disk.name,
            megabytes(disk.size),
            part("model", own.models.first()),
            part("serial", own.serial.as_ref()),
            part("wwn", own.wwn.as_ref()),
            part("id", own.ids.first()),
            disk.state.show()
        );
        if let Some(why) = why_not(disk, node) {
            let _ = writeln!(text, "    not taken: {why}");
        }
        if let Some(line) = line_for(disk, node) {
            can_help = true;
            let _ = writeln!(text, "    to have it taken: {line}");
        }
    }
    if can_help {
        let _ = write!(
            text,
            "write that below [node.install] of {} in the cluster file, and build the medium again",
            node.name
        );
    } else {
        text += "put an empty disk into the machine, or make one empty from the rescue entry of the boot menu: zeros in its \
                 first and last MiB";
    }
    text
}

/// What the cluster file has to say for exactly this disk; nothing if no words can help.
fn line_for(disk: &Candidate, node: &MediumNode) -> Option<String> {
    if disk.never.is_some() || matches!(disk.state, State::Unreadable(_)) || disk.size < node.disk_size {
        return None;
    }
    let own = &disk.identity;
    let (key, value) = [("id", own.ids.first()), ("serial", own.serial.as_ref()), ("wwn", own.wwn.as_ref())]
        .into_iter()
        .find_map(|(key, value)| Some((key, value?)))?;
    let wipe =
        if matches!(disk.state, State::Foreign(_)) { " and `wipe = true`, which loses what is on it" } else { "" };
    Some(format!("`disk = {{ {key} = \"{value}\" }}`{wipe}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::testing::{IMAGE, medium};

    fn disk(name: &str, state: State) -> Candidate {
        let identity = Identity {
            ids: vec![format!("ata-M_{name}1")],
            serial: Some(format!("{name}1")),
            wwn: Some(format!("naa.5000{name}")),
            models: vec!["MODEL 1".into()],
        };
        let device = Path::new("/dev").join(name);
        Candidate { name: name.into(), device, size: 10 << 30, identity, state, never: None }
    }

    fn foreign() -> State {
        State::Foreign("an XFS filesystem".into())
    }

    fn decided(disks: &[Candidate], target: Target) -> Result<String, String> {
        let mut node = medium(&["master-1"]).nodes.remove(0);
        node.target = target;
        match decide(disks, &node) {
            Ok(Decision::Boot) => Ok("boot".into()),
            Ok(Decision::Install(disk)) => Ok(disk.name),
            Err(error) => Err(error.to_string()),
        }
    }

    fn serial(serial: &str, wipe: bool) -> Target {
        Target { serial: Some(serial.into()), wipe, ..Target::default() }
    }

    #[test]
    fn the_only_empty_disk_is_taken() {
        let disks = [disk("sda", foreign()), disk("sdb", State::Empty)];
        assert_eq!(decided(&disks, Target::default()).unwrap(), "sdb");
        let disks = [disk("sda", State::UnderWay), disk("sdb", State::Empty)];
        assert_eq!(decided(&disks, Target::default()).unwrap(), "sda", "what was begun is gone on with");
    }

    #[test]
    fn an_installed_node_is_booted_and_nothing_is_written() {
        let disks = [disk("sda", State::Empty), disk("sdb", State::Installed), disk("sdc", State::UnderWay)];
        assert_eq!(decided(&disks, Target::default()).unwrap(), "boot");
        assert_eq!(decided(&disks, serial("sda1", true)).unwrap(), "boot");
    }

    #[test]
    fn ambiguity_lists_every_disk_and_the_line_to_write() {
        let disks = [disk("sda", State::Empty), disk("sdb", State::Empty), disk("sdc", foreign())];
        let error = decided(&disks, Target::default()).unwrap_err();
        for said in [
            "master-1 could go to sda or sdb",
            "sda: 10 GB, model MODEL 1, serial sda1, wwn naa.5000sda, id ata-M_sda1; empty",
            "to have it taken: `disk = { id = \"ata-M_sdb1\" }`\n",
            "sdc: 10 GB, model MODEL 1, serial sdc1, wwn naa.5000sdc, id ata-M_sdc1; holds an XFS filesystem",
            "not taken: what is on it would be lost",
            "`disk = { id = \"ata-M_sdc1\" }` and `wipe = true`, which loses what is on it",
            "below [node.install] of master-1",
        ] {
            assert!(error.contains(said), "{said}:\n{error}");
        }
    }

    #[test]
    fn foreign_data_is_safe_without_wipe_for_that_very_disk() {
        let disks = [disk("sda", foreign()), disk("sdb", foreign())];
        let error = decided(&disks, Target::default()).unwrap_err();
        assert!(error.contains("no disk of this machine is one for master-1"), "{error}");
        let error = decided(&disks, serial("sdb1", false)).unwrap_err();
        assert!(error.contains("its serial number is sda1, not sdb1") && error.contains("would be lost"), "{error}");
        assert_eq!(decided(&disks, serial("sdb1", true)).unwrap(), "sdb");
        // Two disks of one serial number: not certain.
        let mut twins = [disk("sda", foreign()), disk("sdb", foreign())];
        twins[1].identity.serial = Some("sda1".into());
        assert!(decided(&twins, serial("sda1", true)).unwrap_err().contains("sda or sdb"));
    }

    #[test]
    fn every_selector_counts() {
        let mut disks = [disk("sda", State::Empty), disk("sdb", State::Empty)];
        disks[1].identity.models = vec!["OTHER  2".into()];
        disks[1].size = 20 << 30;
        let target = |edit: fn(&mut Target)| {
            let mut target = Target::default();
            edit(&mut target);
            decided(&disks, target)
        };
        assert_eq!(target(|t| t.id = Some("ata-M_sda1".into())).unwrap(), "sda");
        assert_eq!(target(|t| t.wwn = Some("0x5000sdb".into())).unwrap(), "sdb");
        assert_eq!(target(|t| t.model = Some("OTHER_2".into())).unwrap(), "sdb");
        assert_eq!(target(|t| t.min_size = Some(15 << 30)).unwrap(), "sdb");
        assert_eq!(target(|t| t.max_size = Some(15 << 30)).unwrap(), "sda");
        let error = target(|t| (t.min_size, t.model) = (Some(15 << 30), Some("MODEL 1".into()))).unwrap_err();
        for said in ["smaller than min_size, 16 GB", "its model is OTHER  2, not MODEL 1"] {
            assert!(error.contains(said), "{said}: {error}");
        }
        assert!(target(|t| t.id = Some("ata-M_x".into())).unwrap_err().contains("its id is not ata-M_x"));
    }

    #[test]
    fn a_small_disk_is_refused_with_the_number_to_set() {
        let mut small = disk("sda", State::Empty);
        small.size = IMAGE - 1;
        let error = decided(&[small.clone()], Target::default()).unwrap_err();
        assert!(error.contains("the image has 4 MiB: set `disk_size = \"3MiB\"` for master-1"), "{error}");
        assert!(error.contains("put an empty disk"), "{error}");
        assert_eq!(decided(&[small, disk("sdb", State::Empty)], Target::default()).unwrap(), "sdb");
    }

    #[test]
    fn what_never_is_a_target_is_none() {
        let mut medium = disk("sda", State::Empty);
        medium.never = Some("it holds the installation medium".into());
        let unreadable = disk("sdb", State::Unreadable("I/O error".into()));
        let error = decided(&[medium, unreadable], Target::default()).unwrap_err();
        assert!(error.contains("not taken: it holds the installation medium"), "{error}");
        assert!(error.contains("sdb1; cannot be read: I/O error"), "{error}");
        assert!(!error.contains("to have it taken"), "{error}");
        assert!(decided(&[], Target::default()).unwrap_err().contains("has no disk"));
    }

    #[test]
    fn disks_are_listed_from_sysfs() {
        let dir = tempfile::tempdir().unwrap();
        let (sys, dev) = (dir.path().join("sys"), dir.path().join("dev"));
        fs::create_dir_all(&dev).unwrap();
        let add = |name: &str, files: &[(&str, &str)]| {
            let block = sys.join(name);
            for (path, text) in
                [("size", "16384\n"), ("ro", "0\n"), ("queue/logical_block_size", "512\n")].iter().chain(files)
            {
                let path = block.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            File::create(dev.join(name)).unwrap().set_len(16_384 * 512).unwrap();
        };
        let san = [("device/vendor", "X\n"), ("device/model", "Y\n"), ("device/wwid", "naa.6000\n")];
        add("vda", &[("serial", "S1")]);
        add("vdb", &[("ro", "1\n")]);
        add("vdc", &[("size", "0\n")]);
        add("sda", &san);
        add("sdb", &san);
        add("sdc", &[]);
        add("nvme0n1", &[("queue/logical_block_size", "4096\n")]);
        for other in ["sr0", "loop0", "zram0", "md127", "dm-0", "nbd0", "fd0", "ram0"] {
            add(other, &[]);
        }
        let medium = medium(&["master-1"]);
        let disks = list(&sys, &dev, Some("sdc"), &medium.nodes[0], &medium);
        let shown: Vec<(&str, Option<&str>)> =
            disks.iter().map(|disk| (disk.name.as_str(), disk.never.as_deref())).collect();
        let expected = [
            ("nvme0n1", Some("it has sectors of 4096 bytes, an image is for 512")),
            ("sda", None),
            ("sdb", Some("it is sda by another path")),
            ("sdc", Some("it holds the installation medium")),
            ("vda", None),
            ("vdb", Some("it is read-only")),
        ];
        assert_eq!(shown, expected);
        assert!(disks.iter().all(|disk| disk.state == State::Empty));
        assert_eq!(disks[4].identity.ids, ["virtio-S1"]);
    }
}
