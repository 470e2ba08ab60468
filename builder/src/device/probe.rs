// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel says of a disk: size, model, serial number, partitions, and everything of this machine that uses it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The kernel counts sectors of 512 bytes in `/sys/block/<disk>/size`, whatever the disk's own are.
const SYSFS_SECTOR: u64 = 512;
/// Mount points without which this machine does not run or does not boot again.
const SYSTEM: [&str; 5] = ["/", "/usr", "/boot", "/boot/efi", "/efi"];

/// Major and minor number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub u32, pub u32);

impl Number {
    /// The number of the block device at `path`, if it is one.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        let number = meta.rdev();
        meta.file_type().is_block_device().then(|| Self(rustix::fs::major(number), rustix::fs::minor(number)))
    }

    /// From `8:1`, as sysfs and mountinfo have it.
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// Where this machine says what it does with its disks. Tests have their own.
#[derive(Debug, Clone)]
pub struct System {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/run/udev/data`.
    pub udev: PathBuf,
    /// What is mounted, and where.
    pub mounts: Vec<(Number, String)>,
    /// Devices that are swap space.
    pub swaps: Vec<Number>,
}

impl System {
    /// Of the machine this runs on.
    ///
    /// # Errors
    /// If `/proc` cannot be read: then nothing is known to be unused.
    pub fn this_machine() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
        let by_path = |path: &str| Number::of(Path::new(path));
        let mut mounts = parse_mounts(&read("/proc/self/mountinfo")?, by_path);
        // In a container, this process sees its own mounts only; those of the machine are process 1's, where it may
        // look.
        if let Ok(machine) = fs::read_to_string("/proc/1/mountinfo") {
            mounts.extend(parse_mounts(&machine, by_path));
        }
        mounts.sort();
        mounts.dedup();
        // There is no such file where the kernel has no swap.
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let (sys, udev) = ("/sys".into(), "/run/udev/data".into());
        Ok(Self { sys, udev, mounts, swaps: parse_swaps(&swaps, by_path) })
    }
}

/// Lines of mountinfo (proc_pid_mountinfo(5)): `id parent major:minor root point options… - type source …`. A
/// filesystem over several disks (btrfs) has a number of its own, so the source counts, too.
fn parse_mounts(text: &str, number: impl Fn(&str) -> Option<Number>) -> Vec<(Number, String)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let (mount, filesystem) = line.split_once(" - ").unwrap_or((line, ""));
        let fields: Vec<&str> = mount.split(' ').collect();
        let [_, _, device, _, point, ..] = fields[..] else { continue };
        let source = filesystem.split(' ').nth(1).map(unescape);
        let source = source.filter(|path| path.starts_with('/')).and_then(|path| number(&path));
        let numbers: BTreeSet<Number> = Number::parse(device).into_iter().chain(source).collect();
        found.extend(numbers.into_iter().map(|number| (number, unescape(point))));
    }
    found
}

/// Lines of `/proc/swaps` after the first: `path type size used priority`.
fn parse_swaps(text: &str, number: impl Fn(&str) -> Option<Number>) -> Vec<Number> {
    let paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths.filter_map(|path| number(&unescape(path))).collect()
}

/// The kernel writes blanks and backslashes of a path as `\040`, three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A disk, or something else that has blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, `sda`.
    pub name: String,
    /// If it is a partition, the disk it lies on.
    pub partition_of: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical sector.
    pub sector: u64,
    /// Model, as the disk says.
    pub model: Option<String>,
    /// Serial number, as the disk says.
    pub serial: Option<String>,
    /// Whether the kernel lets nobody write.
    pub read_only: bool,
    /// Partitions: name and size in bytes.
    pub partitions: Vec<(String, u64)>,
    /// How this machine uses it, a sentence each.
    pub uses: Vec<String>,
}

impl Disk {
    /// Asks the kernel about the device with this number.
    ///
    /// # Errors
    /// If the kernel knows no such device or says nothing of its size.
    pub fn probe(number: Number, system: &System) -> Result<Self> {
        let link = system.sys.join(format!("dev/block/{}:{}", number.0, number.1));
        let dir = fs::canonicalize(&link).with_context(|| format!("looking for {}", link.display()))?;
        let sectors = read(&dir, "size").and_then(|text| text.parse::<u64>().ok());
        let size = sectors.with_context(|| format!("{} does not say its size", dir.display()))? * SYSFS_SECTOR;
        let name = base(&dir);
        // The folder of a partition lies in its disk's.
        let disk = if dir.join("partition").exists() { dir.parent().unwrap_or(&dir) } else { &dir };
        let sector = read(disk, "queue/logical_block_size").and_then(|text| text.parse().ok()).unwrap_or(SYSFS_SECTOR);
        let mut partitions = Vec::new();
        let mut uses = Vec::new();
        let mut seen = BTreeSet::new();
        system.uses(&dir, &mut seen, &mut uses);
        for child in folders(&dir).into_iter().filter(|child| child.join("partition").exists()) {
            let sectors: u64 = read(&child, "size").and_then(|text| text.parse().ok()).unwrap_or(0);
            partitions.push((base(&child), sectors * SYSFS_SECTOR));
            system.uses(&child, &mut seen, &mut uses);
        }
        Ok(Self {
            name,
            partition_of: (disk != dir).then(|| base(disk)),
            size,
            sector,
            model: read(disk, "device/model").or_else(|| system.udev_property(disk, "ID_MODEL")),
            serial: serial(disk).or_else(|| system.udev_property(disk, "ID_SERIAL_SHORT")),
            read_only: read(&dir, "ro").is_some_and(|text| text != "0"),
            partitions,
            uses,
        })
    }
}

impl System {
    /// Who uses the device of this folder, and the devices that are made of it: RAID, LVM, encryption.
    fn uses(&self, dir: &Path, seen: &mut BTreeSet<PathBuf>, uses: &mut Vec<String>) {
        if !seen.insert(dir.to_owned()) {
            return;
        }
        let name = base(dir);
        if let Some(number) = read(dir, "dev").and_then(|text| Number::parse(&text)) {
            for (_, point) in self.mounts.iter().filter(|(device, _)| *device == number) {
                uses.push(if SYSTEM.contains(&point.as_str()) {
                    format!("/dev/{name} is mounted on {point}: this machine runs from it")
                } else {
                    format!("/dev/{name} is mounted on {point}; `umount {point}` if it is not needed")
                });
            }
            if self.swaps.contains(&number) {
                uses.push(format!(
                    "/dev/{name} is swap space of this machine; `swapoff /dev/{name}` if it is not needed"
                ));
            }
        }
        for holder in folders(&dir.join("holders")) {
            let Ok(holder) = fs::canonicalize(&holder) else { continue };
            let (name, other) = (&name, base(&holder));
            uses.push(match (read(&holder, "dm/name"), holder.join("md").exists()) {
                (Some(map), _) => format!(
                    "/dev/{name} is part of /dev/mapper/{map}; deactivate that (`vgchange -an`, `cryptsetup close`, \
                     `dmsetup remove`) if it is not needed"
                ),
                (None, true) => {
                    format!(
                        "/dev/{name} is part of the RAID /dev/{other}; `mdadm --stop /dev/{other}` if it is not needed"
                    )
                }
                (None, false) => format!("/dev/{name} is part of /dev/{other}"),
            });
            self.uses(&holder, seen, uses);
        }
    }

    /// A property that udev found out about a disk: `E:ID_MODEL=…` in its database.
    fn udev_property(&self, disk: &Path, key: &str) -> Option<String> {
        let number = read(disk, "dev")?;
        let text = fs::read_to_string(self.udev.join(format!("b{number}"))).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix("E:")?.strip_prefix(key)?.strip_prefix('='))?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    }
}

/// Where drivers put a disk's serial number: virtio and NVMe in a file; SCSI and SATA in the page 0x80 of the vital
/// product data (SPC-4, 7.8.15): four bytes of header, then text.
fn serial(disk: &Path) -> Option<String> {
    let page = || {
        let bytes = fs::read(disk.join("device/vpd_pg80")).ok()?;
        let text = String::from_utf8(bytes.get(4..)?.to_vec()).ok()?;
        Some(text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()).filter(|text| !text.is_empty())
    };
    read(disk, "serial").or_else(|| read(disk, "device/serial")).or_else(page)
}

/// The text of a file of sysfs; none when it is not there or empty.
fn read(dir: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(dir.join(name)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn base(dir: &Path) -> String {
    dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The folders in a folder, by name, links to folders included; none when it is not there.
fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// The name below `by_id` (`/dev/disk/by-id`) of the device with this number. A name of the model and serial number is
/// better than one of a number that nobody can read on a label.
pub fn stable_name(by_id: &Path, number: Number) -> Option<PathBuf> {
    let entries = fs::read_dir(by_id).ok()?.flatten().map(|entry| entry.path());
    let mut names: Vec<PathBuf> = entries.filter(|path| Number::of(path) == Some(number)).collect();
    names.sort_by_key(|path| {
        let name = base(path);
        (["wwn-", "nvme-eui.", "scsi-"].iter().any(|prefix| name.starts_with(prefix)), name)
    });
    names.into_iter().next()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A `/sys` with an empty disk `sdb`, and `sda`: sda1 mounted, sda2 swap, sda3 under LVM whose root is `/`, sda4 in
    /// a RAID.
    fn machine() -> (tempfile::TempDir, System) {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path().join("sys");
        let udev = dir.path().join("udev");
        let device = |path: &str, number: &str, files: &[(&str, &str)]| {
            let path = sys.join("devices").join(path);
            for (name, text) in files.iter().chain(&[("dev", number), ("ro", "0\n")]) {
                fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
                fs::write(path.join(name), text).unwrap();
            }
            fs::create_dir_all(path.join("holders")).unwrap();
            fs::create_dir_all(sys.join("dev/block")).unwrap();
            symlink(&path, sys.join("dev/block").join(number)).unwrap();
            path
        };
        let lvm = device("virtual/dm-0", "253:0", &[("size", "100"), ("dm/name", "vg-root\n")]);
        let raid = device("virtual/md127", "9:127", &[("size", "100"), ("md/level", "raid1\n")]);
        let disk = [("size", "2097152\n"), ("queue/logical_block_size", "512\n"), ("device/model", "BIG DISK  \n")];
        let sda = device("pci/sda", "8:0", &disk);
        fs::write(sda.join("device/vpd_pg80"), b"\x00\x80\x00\x08  SER123 ").unwrap();
        for (name, number) in [("sda1", "8:1"), ("sda2", "8:2"), ("sda3", "8:3"), ("sda4", "8:4")] {
            device(&format!("pci/sda/{name}"), number, &[("size", "2048\n"), ("partition", "1\n")]);
        }
        symlink(&lvm, sda.join("sda3/holders/dm-0")).unwrap();
        symlink(&raid, sda.join("sda4/holders/md127")).unwrap();
        let sdb = device("pci/sdb", "8:16", &[("size", "8\n"), ("queue/logical_block_size", "4096\n")]);
        fs::write(sdb.join("ro"), "1\n").unwrap();
        fs::create_dir(&udev).unwrap();
        fs::write(udev.join("b8:16"), "I:1\nE:ID_MODEL=Stick\nE:ID_SERIAL=Stick_77\nE:ID_SERIAL_SHORT=77\n").unwrap();
        let mounts = vec![(Number(8, 1), "/media/my stick".into()), (Number(253, 0), "/".into())];
        (dir, System { sys, udev, mounts, swaps: vec![Number(8, 2)] })
    }

    #[test]
    fn every_use_of_a_disk_is_found() {
        let (_dir, system) = machine();
        let disk = Disk::probe(Number(8, 0), &system).unwrap();
        assert_eq!((disk.name.as_str(), disk.size, disk.sector, disk.read_only), ("sda", 1 << 30, 512, false));
        assert_eq!((disk.model.as_deref(), disk.serial.as_deref()), (Some("BIG DISK"), Some("SER123")));
        let names: Vec<&str> = disk.partitions.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["sda1", "sda2", "sda3", "sda4"]);
        assert_eq!(
            disk.uses,
            [
                "/dev/sda1 is mounted on /media/my stick; `umount /media/my stick` if it is not needed",
                "/dev/sda2 is swap space of this machine; `swapoff /dev/sda2` if it is not needed",
                "/dev/sda3 is part of /dev/mapper/vg-root; deactivate that (`vgchange -an`, `cryptsetup close`, \
                 `dmsetup remove`) if it is not needed",
                "/dev/dm-0 is mounted on /: this machine runs from it",
                "/dev/sda4 is part of the RAID /dev/md127; `mdadm --stop /dev/md127` if it is not needed",
            ]
        );
    }

    #[test]
    fn an_unused_disk_and_a_partition_are_told_apart() {
        let (_dir, system) = machine();
        let disk = Disk::probe(Number(8, 16), &system).unwrap();
        assert_eq!((disk.size, disk.sector, disk.read_only, disk.uses), (4096, 4096, true, vec![]));
        assert_eq!((disk.model.as_deref(), disk.serial.as_deref()), (Some("Stick"), Some("77")));
        assert_eq!(disk.partition_of, None);
        let partition = Disk::probe(Number(8, 2), &system).unwrap();
        assert_eq!((partition.partition_of.as_deref(), partition.serial.as_deref()), (Some("sda"), Some("SER123")));
        assert!(Disk::probe(Number(8, 99), &system).is_err());
    }

    #[test]
    fn mounts_are_read_with_their_source() {
        let text = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                    27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard\n\
                    40 27 0:55 /@ /mnt/a\\040b rw - btrfs /dev/sdc rw\n\
                    nonsense\n";
        let number = |path: &str| (path == "/dev/sdc").then_some(Number(8, 32));
        let got = parse_mounts(text, number);
        let wanted =
            [(Number(0, 21), "/proc"), (Number(254, 0), "/"), (Number(0, 55), "/mnt/a b"), (Number(8, 32), "/mnt/a b")];
        assert_eq!(got, wanted.map(|(number, point)| (number, point.to_owned())));
    }

    #[test]
    fn swaps_are_read() {
        let text = "Filename\tType\tSize\tUsed\tPriority\n/dev/sdc\\0402 partition 1 0 -2\n/swapfile file 1 0 -3\n";
        assert_eq!(parse_swaps(text, |path| (path == "/dev/sdc 2").then_some(Number(8, 34))), [Number(8, 34)]);
        assert_eq!(unescape("a\\134b\\9\\"), "a\\b\\9\\");
    }

    /// What this very machine says must be understood: the disk of its root filesystem is in use.
    #[test]
    fn the_root_filesystem_of_this_machine_is_found() {
        let system = System::this_machine().unwrap();
        assert!(system.mounts.iter().any(|(_, point)| point == "/"), "{:?}", system.mounts);
        let numbers = system.mounts.iter().filter(|(number, point)| point == "/" && number.0 != 0);
        for (number, _) in numbers {
            let uses = Disk::probe(*number, &system).unwrap().uses;
            assert!(uses.iter().any(|text| text.ends_with("mounted on /: this machine runs from it")), "{uses:?}");
        }
    }
}
