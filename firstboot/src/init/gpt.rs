// SPDX-License-Identifier: MIT OR Apache-2.0
//! The partition table: reading it, and growing the last partition to the end of the disk.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use anyhow::{Context, Result, ensure};
use gptman::{GPT, GPTPartitionEntry};

/// Name of the partition that grows.
pub const DATA: &str = "data";
/// Less than this is no growth: images end at an alignment boundary, disks do not.
const LEAST_GAIN: u64 = 4 << 20;
const ALIGNMENT: u64 = 1 << 20;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its GPT name.
    pub name: String,
    /// Its GUID, lower case.
    pub guid: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What a partition table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The disk's GUID, lower case.
    pub guid: String,
    /// Its partitions.
    pub partitions: Vec<Partition>,
}

/// Reads the table of a disk; `None` if it has none.
pub fn read(disk: &mut File) -> Option<Table> {
    let gpt = GPT::find_from(disk).ok()?;
    let partitions = gpt
        .iter()
        .filter(|(_, entry)| entry.is_used())
        .map(|(number, entry)| Partition {
            number,
            name: entry.partition_name.as_str().to_owned(),
            guid: guid_text(entry.unique_partition_guid),
            size: (entry.ending_lba + 1).saturating_sub(entry.starting_lba) * gpt.sector_size,
        })
        .collect();
    Some(Table { guid: guid_text(gpt.header.disk_guid), partitions })
}

/// Grows the partition `data` to the end of the disk; says by how many bytes, 0 if the disk was full already, and then
/// nothing is written.
///
/// The backup goes to the new end and to the disk before the primary changes: after a power cut in between, the kernel
/// and firmware find a valid table either at the beginning or at the very end.
pub fn grow_data(disk: &mut File) -> Result<u64> {
    let mut gpt = GPT::find_from(disk).context("reading the partition table")?;
    let sector = gpt.sector_size;
    let length = disk.seek(SeekFrom::End(0)).context("measuring the disk")?;
    let from_backup = gpt.header.primary_lba != 1;
    let number = gpt.iter().find(|(_, entry)| entry.is_used() && entry.partition_name.as_str() == DATA);
    let (number, old) =
        number.map(|(number, entry)| (number, entry.clone())).context("finding the partition `data`")?;
    let last = gpt.iter().filter(|(_, entry)| entry.is_used()).map(|(_, entry)| entry.ending_lba).max();
    ensure!(last == Some(old.ending_lba), "the partition `data` is not the last one on the disk");

    // One header sector and the entries stay free at the end for the backup.
    let entries = u64::from(gpt.header.number_of_partition_entries) * u64::from(gpt.header.size_of_partition_entry);
    let last_usable = (length / sector).checked_sub(entries.div_ceil(sector) + 2).context("the disk is too small")?;
    let per_alignment = ALIGNMENT / sector;
    let ending = (last_usable + 1) / per_alignment * per_alignment - 1;
    let gain = ending.saturating_sub(old.ending_lba) * sector;
    if gain < LEAST_GAIN && !from_backup {
        return Ok(0);
    }
    let grown = gain >= LEAST_GAIN;
    if grown {
        gpt[number].ending_lba = ending;
    }
    if grown || from_backup {
        write(disk, gpt, length / sector, last_usable)?;
    }
    Ok(if grown { gain } else { 0 })
}

fn write(disk: &mut File, gpt: GPT, sectors: u64, last_usable: u64) -> Result<()> {
    let partitions: Vec<GPTPartitionEntry> = gpt.iter().map(|(_, entry)| entry.clone()).collect();
    let mut primary = gpt.header.clone();
    primary.primary_lba = 1;
    primary.backup_lba = sectors - 1;
    primary.partition_entry_lba = 2;
    primary.last_usable_lba = last_usable;
    let mut backup = primary.clone();
    backup.primary_lba = sectors - 1;
    backup.backup_lba = 1;
    backup.partition_entry_lba = last_usable + 1;
    for (header, what) in [(&mut backup, "backup"), (&mut primary, "primary")] {
        header
            .write_into(disk, gpt.sector_size, &partitions)
            .with_context(|| format!("writing the {what} partition table"))?;
        disk.sync_all().with_context(|| format!("syncing the {what} partition table"))?;
    }
    Ok(())
}

/// The usual text of a GUID: the first three fields are little-endian on the disk.
pub fn guid_text(bytes: [u8; 16]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::with_capacity(36);
    for (at, index) in order.into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{:02x}", bytes[index]);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    const DISK: &str = "0c12d0e5-1111-4222-8333-444455556666";

    fn sgdisk(args: &[&str], image: &Path) -> String {
        let output = Command::new("sgdisk")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(args)
            .arg(image)
            .output()
            .expect("sgdisk does not run: install the package `gdisk`");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "sgdisk {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn assert_sound(image: &Path) {
        let text = sgdisk(&["-v"], image);
        assert!(text.contains("No problems found"), "{text}");
    }

    /// An image of 64 MiB with two partitions, on a disk of `disk` MiB.
    fn image(dir: &tempfile::TempDir, disk: u64) -> (std::path::PathBuf, File) {
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        sgdisk(&["-o", "-U", DISK, "-n", "1:1M:+16M", "-c", "1:root-a", "-n", "2:17M:62M", "-c", "2:data"], &path);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.set_len(disk << 20).unwrap();
        (path, file)
    }

    #[test]
    fn reads_what_sgdisk_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut file) = image(&dir, 64);
        let table = read(&mut file).unwrap();
        assert_eq!(table.guid, DISK);
        let seen: Vec<_> = table.partitions.iter().map(|p| (p.number, p.name.as_str(), p.size >> 20)).collect();
        assert_eq!(seen, [(1, "root-a", 16), (2, "data", 45)]);
    }

    #[test]
    fn grows_to_the_end_and_keeps_every_guid() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = image(&dir, 200);
        let before = read(&mut file).unwrap();
        assert_eq!(grow_data(&mut file).unwrap() >> 20, 136);
        assert_sound(&path);
        let after = read(&mut file).unwrap();
        let guids = |table: &Table| table.partitions.iter().map(|p| p.guid.clone()).collect::<Vec<_>>();
        assert_eq!((guids(&before), before.guid), (guids(&after), after.guid));
        assert_eq!(after.partitions[1].size >> 20, 199 - 17);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(grow_data(&mut file).unwrap(), 0, "the second time there is nothing to grow");
        assert!(std::fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn a_full_disk_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = image(&dir, 64);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(grow_data(&mut file).unwrap(), 0);
        assert!(std::fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn a_power_cut_between_backup_and_primary_leaves_a_valid_table() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = image(&dir, 200);
        let old = std::fs::read(&path).unwrap();
        grow_data(&mut file).unwrap();
        // Only the first sectors go back to what they were: the backup was written, the primary was not.
        let mut mixed = std::fs::read(&path).unwrap();
        mixed[..34 * 512].copy_from_slice(&old[..34 * 512]);
        std::fs::write(&path, &mixed).unwrap();
        assert!(read(&mut file).is_some());
        assert!(grow_data(&mut file).unwrap() > 0);
        assert_sound(&path);
        // And with the primary torn in the middle: the backup at the end is found, and mends it.
        mixed[512..1024].fill(0xff);
        std::fs::write(&path, &mixed).unwrap();
        assert_eq!(read(&mut file).unwrap().guid, DISK);
        assert_eq!(grow_data(&mut file).unwrap(), 0);
        assert_sound(&path);
    }

    #[test]
    fn data_must_be_last() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = image(&dir, 64);
        sgdisk(&["-c", "1:data", "-c", "2:other"], &path);
        file.set_len(200 << 20).unwrap();
        assert!(grow_data(&mut file).unwrap_err().to_string().contains("not the last"));
    }

    #[test]
    fn other_disks_have_no_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        for size in [0, 100, 1 << 20] {
            File::create(&path).unwrap().set_len(size).unwrap();
            assert!(read(&mut File::open(&path).unwrap()).is_none());
        }
    }
}
