// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our disk among those of the machine, found by the GUID of its partition table.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::gpt::{self, Partition, Table};
use super::modules::Modules;
use crate::console::Console;

/// How long a disk or medium may take to turn up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// How often it is said what is waited for.
pub(crate) const NEWS_EVERY: Duration = Duration::from_secs(5);
/// Block devices that are no disks.
const NOT_DISKS: [&str; 7] = ["loop", "ram", "zram", "nbd", "md", "dm-", "fd"];

/// A disk and its table.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its device node.
    pub device: PathBuf,
    name: String,
    table: Table,
}

/// Waits for the disk with this GUID, and loads drivers as devices turn up.
pub fn wait_for(guid: &str, modules: &mut Modules, console: &Console) -> Result<Disk> {
    let started = Instant::now();
    let mut said = Instant::now();
    loop {
        // A new driver may bring new devices, which want drivers: at once, without a pause.
        while modules.load_matching(console) {}
        let (found, seen) = scan(Path::new("/sys/block"), Path::new("/dev"), guid);
        if let [first, others @ ..] = found.as_slice() {
            for other in others {
                console.line(&format!("{} has the same GUID and is ignored", other.device.display()));
            }
            first.wait_for_nodes()?;
            return Ok(first.clone());
        }
        let seen = if seen.is_empty() { "no disk at all".to_owned() } else { seen.join(", ") };
        if started.elapsed() >= DEADLINE {
            bail!("no disk with GUID {guid} in {} s; seen: {seen}", DEADLINE.as_secs());
        }
        if said.elapsed() >= NEWS_EVERY {
            said = Instant::now();
            let waited = started.elapsed().as_secs();
            console.line(&format!("waiting for the disk {guid}, {waited} of {} s; seen: {seen}", DEADLINE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The kernel's names of all that may be a disk or a drive, in a directory of sysfs; with `/sys/class/block` partitions too.
pub(crate) fn block_devices(sys: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(sys)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    names
}

/// Disks with this GUID, and what all disks are, for a person who wonders.
fn scan(sys_block: &Path, dev: &Path, guid: &str) -> (Vec<Disk>, Vec<String>) {
    let (mut found, mut seen) = (Vec::new(), Vec::new());
    for name in block_devices(sys_block) {
        let device = dev.join(name.replace('!', "/"));
        match File::open(&device).map(|mut file| gpt::read(&mut file)) {
            Ok(Some(table)) => {
                seen.push(format!("{name} {}", table.guid));
                if table.guid == guid {
                    found.push(Disk { device, name, table });
                }
            }
            Ok(None) => seen.push(format!("{name} without a partition table")),
            Err(error) => seen.push(format!("{name} unreadable ({error})")),
        }
    }
    (found, seen)
}

impl Disk {
    fn entry(&self, name: &str) -> Result<&Partition> {
        let mut matching = self.table.partitions.iter().filter(|partition| partition.name == name);
        match (matching.next(), matching.next()) {
            (Some(partition), None) => Ok(partition),
            (None, _) => bail!("{} has no partition `{name}`", self.device.display()),
            (Some(_), Some(_)) => bail!("{} has two partitions `{name}`", self.device.display()),
        }
    }

    /// Device node of the partition with this GPT name.
    pub fn partition(&self, name: &str) -> Result<PathBuf> {
        let number = self.entry(name)?.number;
        let node = partition_name(&Path::new("/sys/block").join(&self.name), number);
        let node =
            node.with_context(|| format!("the kernel does not show partition {number} of {}", self.device.display()))?;
        Ok(Path::new("/dev").join(node.replace('!', "/")))
    }

    /// GUID of the partition with this GPT name.
    pub fn partition_guid(&self, name: &str) -> Result<String> {
        Ok(self.entry(name)?.guid.clone())
    }

    /// The kernel shows partitions a moment after their disk.
    fn wait_for_nodes(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            let missing = self.table.partitions.iter().find(|partition| match self.partition(&partition.name) {
                Ok(node) => !node.exists(),
                Err(_) => true,
            });
            match missing {
                None => return Ok(()),
                Some(_) if started.elapsed() < Duration::from_secs(10) => std::thread::sleep(Duration::from_millis(50)),
                Some(partition) => bail!("{} does not show its partition `{}`", self.device.display(), partition.name),
            }
        }
    }

    /// Grows the data partition to the end of the disk, on the disk and in the kernel. Nothing of it is mounted yet.
    pub fn grow_data(self, console: &Console) -> Result<Disk> {
        let open = || OpenOptions::new().read(true).write(true).open(&self.device);
        let mut file = open().with_context(|| format!("opening {} for writing", self.device.display()))?;
        let gain = gpt::grow_data(&mut file)?;
        if gain == 0 {
            return Ok(self);
        }
        console.line(&format!(
            "the data partition grows by {} MB to the end of {}",
            gain / 1_000_000,
            self.device.display()
        ));
        gptman::linux::reread_partition_table(&mut file).context("telling the kernel of the new partition table")?;
        let table = gpt::read(&mut file).context("reading the new partition table")?;
        let disk = Disk { table, ..self };
        disk.wait_for_nodes()?;
        Ok(disk)
    }
}

/// The kernel's name of a partition: `vda7`, `nvme0n1p7`.
fn partition_name(sys_disk: &Path, number: u32) -> Option<String> {
    fs::read_dir(sys_disk).ok()?.flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("partition")).ok()?;
        (text.trim().parse() == Ok(number)).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_have_the_kernels_names() {
        let dir = tempfile::tempdir().unwrap();
        for (name, number) in [("nvme0n1p1", "1\n"), ("nvme0n1p7", "7\n")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("partition"), number).unwrap();
        }
        fs::create_dir(dir.path().join("queue")).unwrap();
        assert_eq!(partition_name(dir.path(), 7).as_deref(), Some("nvme0n1p7"));
        assert_eq!(partition_name(dir.path(), 2), None);
    }

    #[test]
    fn only_the_disk_with_the_guid_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (sys, dev) = (dir.path().join("sys"), dir.path().join("dev"));
        fs::create_dir_all(&dev).unwrap();
        for (name, guid) in [("vda", [1; 16]), ("vdb", [2; 16]), ("loop0", [2; 16])] {
            fs::create_dir_all(sys.join(name)).unwrap();
            let mut file = File::options().read(true).write(true).create_new(true).open(dev.join(name)).unwrap();
            file.set_len(4 << 20).unwrap();
            gptman::GPT::new_from(&mut file, 512, guid).unwrap().write_into(&mut file).unwrap();
        }
        fs::create_dir_all(sys.join("sr0")).unwrap();
        let (found, seen) = scan(&sys, &dev, &gpt::guid_text([2; 16]));
        assert_eq!(found.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["vdb"]);
        assert!(seen[0].starts_with("sr0 unreadable"));
        assert_eq!(seen[1..], [1, 2].map(|n| format!("vd{} {}", ["a", "b"][n - 1], gpt::guid_text([n as u8; 16]))));
    }
}
