// SPDX-License-Identifier: MIT OR Apache-2.0

//! GUID partition tables (UEFI specification, chapter 5). Every GUID is given by the caller: nothing here is random.
//! gptman writes; reading is our own, since a table from elsewhere may be wrong in any byte and must end in an error.

use std::io::{Read, Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail};
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid, uuid};

/// Sector size of the images we make.
pub const SECTOR: u64 = 512;
/// Partitions begin on multiples of this, as every partitioning tool has done since 2010.
pub const ALIGN: u64 = 1 << 20;
/// Sectors at the end of a disk that hold the backup: 32 of entries, one header.
pub const BACKUP_SECTORS: u64 = 33;
/// Sectors before the first usable one: protective MBR, header, 32 of entries.
const HEAD_SECTORS: u64 = 34;
/// Entries in a table, and bytes in an entry (UEFI 5.3.2 wants at least 16 KiB of entries).
const ENTRIES: u32 = 128;
const ENTRY_SIZE: u32 = 128;

/// Attribute bit 63, `no-auto`: systemd-gpt-auto-generator leaves the partition alone (Discoverable Partitions Specification).
pub const NO_AUTO: u64 = 1 << 63;

/// Partition types. Source: UEFI specification table 5.7; Discoverable Partitions Specification; Linux generic data and
/// Microsoft basic data as in util-linux's `gpt-partition-types` list.
pub mod types {
    use uuid::{Uuid, uuid};

    /// EFI system partition.
    pub const ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    /// Root of x86_64.
    pub const ROOT_X86_64: Uuid = uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
    /// Root of loongarch64.
    pub const ROOT_LOONGARCH64: Uuid = uuid!("77055800-792c-4f94-b39a-98c91b762bb6");
    /// Linux filesystem data.
    pub const LINUX: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");
    /// Microsoft basic data.
    pub const BASIC_DATA: Uuid = uuid!("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7");
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Name: at most 36 UTF-16 units.
    pub label: String,
    /// Type, one of [`types`].
    #[serde(rename = "type", serialize_with = "as_text")]
    pub kind: Uuid,
    /// Its own GUID.
    #[serde(serialize_with = "as_text")]
    pub guid: Uuid,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Attribute bits.
    pub attributes: u64,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// GUID of the disk.
    #[serde(serialize_with = "as_text")]
    pub disk: Uuid,
    /// The partitions in order.
    pub partitions: Vec<Partition>,
}

fn as_text<S: Serializer>(guid: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(guid)
}

/// A GUID that follows from names alone: sha256 over them, with the version and variant bits of UUIDv8 (RFC 9562, 5.8).
pub fn derive_guid(cluster: &str, node: &str, label: &str) -> Uuid {
    // Fixed, so that the GUIDs are ours and of no other tool that hashes the same names.
    const NAMESPACE: Uuid = uuid!("6d0c1a3e-7e0f-8d53-9d0b-1f6a5a9c2e71");
    let mut hasher = Sha256::new();
    hasher.update(NAMESPACE.as_bytes());
    for part in [cluster, node, label] {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let hash = hasher.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Builder::from_custom_bytes(bytes).into_uuid()
}

/// Writes protective MBR, table and backup table to a disk whose size is the length of `disk`.
///
/// # Errors
/// Partitions that overlap, are not aligned or do not fit, or failing I/O.
pub fn write(disk: &mut (impl Read + Write + Seek), table: &Table) -> Result<()> {
    let guid = table.disk.to_bytes_le();
    let mut gpt = gptman::GPT::new_from(disk, SECTOR, guid).context("laying out the partition table")?;
    for (partition, number) in table.partitions.iter().zip(1u32..) {
        let Partition { label, offset, len, .. } = partition;
        if offset % ALIGN != 0 || len % SECTOR != 0 || *len == 0 {
            bail!("partition `{label}` is not aligned: {len} bytes at {offset}");
        }
        if label.encode_utf16().count() > 36 {
            bail!("partition label `{label}` is longer than 36 characters");
        }
        gpt[number] = gptman::GPTPartitionEntry {
            partition_type_guid: partition.kind.to_bytes_le(),
            unique_partition_guid: partition.guid.to_bytes_le(),
            starting_lba: offset / SECTOR,
            ending_lba: (offset + len) / SECTOR - 1,
            attribute_bits: partition.attributes,
            partition_name: label.as_str().into(),
        };
    }
    gptman::GPT::write_protective_mbr_into(disk, SECTOR).context("writing the protective MBR")?;
    gpt.write_into(disk).context("writing the partition table")?;
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let field = bytes.get(at..at + 4).context("a partition table cut short")?;
    Ok(u32::from_le_bytes(field.try_into().context("four bytes")?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from(u32_at(bytes, at)?) | u64::from(u32_at(bytes, at + 4)?) << 32)
}

fn guid_at(bytes: &[u8], at: usize) -> Result<Uuid> {
    Uuid::from_slice_le(bytes.get(at..at + 16).context("a partition table cut short")?).context("reading a GUID")
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Reads the table of a disk with 512-byte sectors, and checks both checksums and the backup.
///
/// # Errors
/// No valid table, a backup that says something else, or failing I/O.
pub fn read(disk: &mut (impl Read + Seek)) -> Result<Table> {
    let sectors = disk.seek(SeekFrom::End(0)).context("measuring the disk")? / SECTOR;
    if sectors < HEAD_SECTORS + BACKUP_SECTORS {
        bail!("the disk is too small for a partition table");
    }
    let table = read_at(disk, 1, sectors).context("reading the partition table")?;
    let backup = read_at(disk, sectors - 1, sectors).context("reading the backup partition table")?;
    if table != backup {
        bail!("the partition table and its backup differ");
    }
    Ok(table)
}

fn read_at(disk: &mut (impl Read + Seek), lba: u64, sectors: u64) -> Result<Table> {
    let mut header = [0; SECTOR as usize];
    disk.seek(SeekFrom::Start(lba * SECTOR)).context("seeking to the header")?;
    disk.read_exact(&mut header).context("reading the header")?;
    if !header.starts_with(b"EFI PART") {
        bail!("there is no GUID partition table");
    }
    let size = u32_at(&header, 12)? as usize;
    if !(92..=512).contains(&size) {
        bail!("the header says it has {size} bytes");
    }
    let mut unsigned = header;
    unsigned[16..20].fill(0);
    if crc(&unsigned[..size]) != u32_at(&header, 16)? {
        bail!("the header's checksum is wrong");
    }
    if u64_at(&header, 24)? != lba {
        bail!("the header says it lies elsewhere");
    }
    let (entries_at, count, entry_size) = (u64_at(&header, 72)?, u32_at(&header, 80)?, u32_at(&header, 84)?);
    if count > ENTRIES || entry_size != ENTRY_SIZE || entries_at >= sectors {
        bail!("a table of {count} entries of {entry_size} bytes is not one of ours");
    }
    let mut entries = vec![0; (count * entry_size) as usize];
    disk.seek(SeekFrom::Start(entries_at * SECTOR)).context("seeking to the entries")?;
    disk.read_exact(&mut entries).context("reading the entries")?;
    if crc(&entries) != u32_at(&header, 88)? {
        bail!("the entries' checksum is wrong");
    }
    let mut partitions = Vec::new();
    for entry in entries.chunks_exact(ENTRY_SIZE as usize) {
        let kind = guid_at(entry, 0)?;
        if kind.is_nil() {
            continue;
        }
        let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
        if first < HEAD_SECTORS || last < first || last >= sectors {
            bail!("a partition lies at {first}-{last} of {sectors} sectors");
        }
        let name: Vec<u16> =
            entry[56..].as_chunks::<2>().0.iter().map(|c| u16::from_le_bytes(*c)).take_while(|c| *c != 0).collect();
        partitions.push(Partition {
            label: String::from_utf16_lossy(&name),
            kind,
            guid: guid_at(entry, 16)?,
            offset: first * SECTOR,
            len: (last - first + 1) * SECTOR,
            attributes: u64_at(entry, 48)?,
        });
    }
    Ok(Table { disk: guid_at(&header, 56)?, partitions })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::image::testing::{text, tool_ok};

    fn sample() -> Table {
        let mut offset = 0;
        let mut part = |label: &str, kind, len: u64, attributes| {
            offset += ALIGN;
            let partition =
                Partition { label: label.into(), kind, guid: derive_guid("c", "n", label), offset, len, attributes };
            offset += len.next_multiple_of(ALIGN) - ALIGN;
            partition
        };
        let partitions = vec![
            part("ESP", types::ESP, ALIGN, 0),
            part("root-a", types::ROOT_X86_64, ALIGN, NO_AUTO),
            part("CIDATA", types::BASIC_DATA, ALIGN, 0),
            part("data", types::LINUX, 2 * ALIGN - 5 * SECTOR, NO_AUTO),
        ];
        Table { disk: derive_guid("c", "n", "disk"), partitions }
    }

    fn image() -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; 8 << 20]);
        write(&mut disk, &sample()).unwrap();
        disk.into_inner()
    }

    #[test]
    fn guids_follow_from_names_and_are_version_8() {
        let guid = derive_guid("lab", "master-1", "ESP");
        assert_eq!(guid.to_string(), "e0ec7d0b-b8d9-8627-9d75-b2c2e0aa157b");
        assert_eq!(guid.get_version_num(), 8);
        assert_ne!(derive_guid("la", "bmaster-1", "ESP"), guid);
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(read(&mut Cursor::new(image())).unwrap(), sample());
    }

    #[test]
    fn sgdisk_and_sfdisk_find_nothing_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        std::fs::write(&file, image()).unwrap();
        let verify = tool_ok("sgdisk", "gdisk", &["-v", text(&file)]);
        assert!(verify.contains("No problems found"), "{verify}");
        tool_ok("sfdisk", "fdisk", &["--verify", text(&file)]);
        let info = tool_ok("sgdisk", "gdisk", &["-i", "2", text(&file)]);
        let guid = derive_guid("c", "n", "root-a").to_string().to_uppercase();
        for want in [&guid, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "Attribute flags: 8000000000000000", "'root-a'"] {
            assert!(info.contains(want), "{want}\n{info}");
        }
    }

    #[test]
    fn overlaps_are_refused() {
        let mut table = sample();
        table.partitions[1].offset = table.partitions[0].offset;
        assert!(write(&mut Cursor::new(vec![0; 8 << 20]), &table).is_err());
    }

    proptest! {
        #[test]
        fn damage_never_panics(damage in proptest::collection::vec((0usize..2048, any::<u8>()), 1..30), fix in any::<bool>()) {
            let mut bytes = image();
            for (at, value) in damage {
                bytes[at + 446] = value;
            }
            if fix {
                // With a right checksum, so that what lies behind it is reached.
                bytes[528..532].fill(0);
                let sum = crc(&bytes[512..512 + 92]);
                bytes[528..532].copy_from_slice(&sum.to_le_bytes());
            }
            let _ = read(&mut Cursor::new(bytes));
        }
    }
}
