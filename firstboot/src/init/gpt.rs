// SPDX-License-Identifier: MIT OR Apache-2.0
//! The partition table: reading it, and growing the last partition to the end of the disk.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, ensure};
use gptman::{GPTHeader, GPTPartitionEntry};

/// Name of the partition that grows.
pub const DATA: &str = "data";
/// Less than this is no growth: images end at an alignment boundary, disks do not.
const LEAST_GAIN: u64 = 4 << 20;
const ALIGNMENT: u64 = 1 << 20;
/// Sizes of sectors that disks have.
const SECTORS: [u64; 2] = [512, 4096];
/// The one size of an entry that Linux reads, too (`block/partitions/efi.c`), though UEFI allows others.
const ENTRY_SIZE: u32 = 128;
/// Most entries of a table. Every tool writes 128.
const MOST_ENTRIES: u32 = 4096;

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

/// A header with its entries, as they are on a disk with sectors of this size.
struct Found {
    header: GPTHeader,
    entries: Vec<GPTPartitionEntry>,
    sector: u64,
}

impl Found {
    /// The entries that are partitions, with their numbers from 1.
    fn used(&self) -> impl Iterator<Item = (u32, &GPTPartitionEntry)> {
        (1..).zip(&self.entries).filter(|(_, entry)| entry.is_used())
    }
}

/// The table of a disk: the first one that is valid, by the size of sectors, and the backup after the primary.
///
/// Not by gptman's own `GPT::find_from`: that takes memory for as many entries as a header claims, and panics where entries are
/// of another size, or no partition has a place. A stranger's stick must not end the initramfs.
fn find(disk: &mut (impl Read + Seek)) -> Result<Found> {
    let length = disk.seek(SeekFrom::End(0)).context("measuring the disk")?;
    let mut first = None;
    for sector in SECTORS {
        let sectors = length / sector;
        for lba in [1, sectors.saturating_sub(1)] {
            match read_at(disk, lba, sector, sectors) {
                Ok(found) => return Ok(found),
                Err(error) => first = first.or(Some(error)),
            }
        }
    }
    Err(first.context("a disk without sectors")?)
}

fn read_at(disk: &mut (impl Read + Seek), lba: u64, sector: u64, sectors: u64) -> Result<Found> {
    disk.seek(SeekFrom::Start(lba * sector)).context("seeking to a partition table")?;
    let header = GPTHeader::read_from(disk)?;
    ensure!(header.primary_lba == lba, "the partition table says that it lies elsewhere");
    let (count, size) = (header.number_of_partition_entries, header.size_of_partition_entry);
    ensure!(
        size == ENTRY_SIZE && count <= MOST_ENTRIES && header.partition_entry_lba < sectors,
        "a partition table of {count} entries of {size} bytes cannot be read"
    );
    let entries = header.read_partitions(disk, sector)?;
    Ok(Found { header, entries, sector })
}

/// Reads the table of a disk; `None` if it has none.
pub fn read(disk: &mut (impl Read + Seek)) -> Option<Table> {
    let found = find(disk).ok()?;
    let partition = |(number, entry): (u32, &GPTPartitionEntry)| Partition {
        number,
        name: entry.partition_name.as_str().to_owned(),
        guid: guid_text(entry.unique_partition_guid),
        size: entry.ending_lba.saturating_add(1).saturating_sub(entry.starting_lba).saturating_mul(found.sector),
    };
    Some(Table { guid: guid_text(found.header.disk_guid), partitions: found.used().map(partition).collect() })
}

/// Grows the partition `data` to the end of the disk; says by how many bytes, 0 if the disk was full already, and then
/// nothing is written.
///
/// The backup goes to the new end and to the disk before the primary changes: after a power cut in between, the kernel
/// and firmware find a valid table either at the beginning or at the very end.
pub fn grow_data(disk: &mut File) -> Result<u64> {
    let mut found = find(disk).context("reading the partition table")?;
    let sector = found.sector;
    let length = disk.seek(SeekFrom::End(0)).context("measuring the disk")?;
    let from_backup = found.header.primary_lba != 1;
    let number = found.used().find(|(_, entry)| entry.partition_name.as_str() == DATA);
    let (number, old) =
        number.map(|(number, entry)| (number, entry.ending_lba)).context("finding the partition `data`")?;
    let last = found.used().map(|(_, entry)| entry.ending_lba).max();
    ensure!(last == Some(old), "the partition `data` is not the last one on the disk");

    // One header sector and the entries stay free at the end for the backup.
    let entries = u64::from(found.header.number_of_partition_entries) * u64::from(ENTRY_SIZE);
    let last_usable = (length / sector).checked_sub(entries.div_ceil(sector) + 2).context("the disk is too small")?;
    let per_alignment = ALIGNMENT / sector;
    let ending = (last_usable + 1) / per_alignment * per_alignment;
    let ending = ending.checked_sub(1).context("the disk is too small")?;
    let gain = ending.saturating_sub(old) * sector;
    if gain < LEAST_GAIN && !from_backup {
        return Ok(0);
    }
    let grown = gain >= LEAST_GAIN;
    if grown {
        found.entries[number as usize - 1].ending_lba = ending;
    }
    if grown || from_backup {
        write(disk, &found, length / sector, last_usable)?;
    }
    Ok(if grown { gain } else { 0 })
}

fn write(disk: &mut File, table: &Found, sectors: u64, last_usable: u64) -> Result<()> {
    let mut primary = table.header.clone();
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
            .write_into(disk, table.sector, &table.entries)
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
    use std::io::Cursor;
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

    /// A disk of 1 MiB whose table has one partition, after `change` of its header, and the place of that partition.
    fn strange(place: u64, change: impl Fn(&mut GPTHeader)) -> Cursor<Vec<u8>> {
        let mut disk = Cursor::new(vec![0; 1 << 20]);
        let mut gpt = gptman::GPT::new_from(&mut disk, 512, [1; 16]).unwrap();
        gpt.header.number_of_partition_entries = 4;
        let mut entries: Vec<GPTPartitionEntry> = gpt.iter().map(|(_, entry)| entry.clone()).collect();
        entries.truncate(4);
        entries[0].partition_type_guid = [2; 16];
        (entries[0].starting_lba, entries[0].ending_lba) = (place, place);
        gpt.header.write_into(&mut disk, 512, &entries).unwrap();
        // With a checksum that is right, as anybody can make it.
        change(&mut gpt.header);
        gpt.header.update_crc32_checksum();
        let crc = gpt.header.crc32_checksum;
        let bytes = disk.get_mut();
        bytes[512 + 16..][..4].copy_from_slice(&crc.to_le_bytes());
        bytes[512 + 24..][..8].copy_from_slice(&gpt.header.primary_lba.to_le_bytes());
        bytes[512 + 72..][..8].copy_from_slice(&gpt.header.partition_entry_lba.to_le_bytes());
        bytes[512 + 80..][..4].copy_from_slice(&gpt.header.number_of_partition_entries.to_le_bytes());
        bytes[512 + 84..][..4].copy_from_slice(&gpt.header.size_of_partition_entry.to_le_bytes());
        disk
    }

    #[test]
    fn tables_that_gptman_does_not_bear_are_none() {
        assert_eq!(read(&mut strange(100, |_| {})).unwrap().partitions.len(), 1);
        // As many entries as there is no memory for; entries of a size that UEFI allows; a place nowhere.
        assert_eq!(read(&mut strange(100, |header| header.number_of_partition_entries = u32::MAX)), None);
        assert_eq!(read(&mut strange(100, |header| header.size_of_partition_entry = 256)), None);
        assert_eq!(read(&mut strange(100, |header| header.partition_entry_lba = u64::MAX)), None);
        assert_eq!(read(&mut strange(100, |header| header.primary_lba = 2)), None);
        // A partition that begins nowhere, and one that ends nowhere.
        assert_eq!(read(&mut strange(0, |_| {})).unwrap().partitions.len(), 1);
        assert_eq!(read(&mut strange(u64::MAX, |_| {})).unwrap().partitions[0].size, 0);
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
