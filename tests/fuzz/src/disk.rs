// SPDX-License-Identifier: MIT OR Apache-2.0

//! Disks and media: partition tables, FAT, ISO 9660, ext4's superblock, squashfs, as `inspect` and `verify` read them, and as
//! firstboot looks at every disk of a machine.
//!
//! An input is a disk with its holes left out: a byte for the size, and pieces of a place, a length and so many bytes. The
//! checksums of its partition tables are made right, as no fuzzer does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;

use firstboot::init::{ext4, gpt as node_gpt};
use firstboot::seed::label;
use imgbuild::image::fat::{self, Variant};
use imgbuild::image::gpt::{self, Partition, Table, derive_guid, types};
use imgbuild::image::iso9660::{self, Source};
use imgbuild::output::{inspect, inspect_iso, verify};
use imgbuild::tree::{Entry, FileTree};
use uuid::Uuid;

use crate::{MemoryFile, squashfs, store};

const SECTOR: usize = 512;
/// Unit of a disk's size.
const UNIT: usize = 64 << 10;
/// Sizes of sectors that tables are looked for with.
const SECTORS: [usize; 2] = [512, 4096];

/// Looks at the disk with everything that looks at disks.
pub fn run(data: &[u8]) {
    let mut disk = expand(data);
    mend_checksums(&mut disk);
    let file = MemoryFile::new(&disk);
    let path = file.path();
    // Both read the same: one of them for each input.
    match (data.len() % 2, inspect_iso::is_iso(&path)) {
        (0, _) => drop(verify::verify(&path, None)),
        (_, Ok(true)) => drop(inspect_iso::inspect(&path).map(|found| found.to_string())),
        _ => drop(inspect::inspect(&path).map(|found| found.to_string())),
    }
    tables(&disk);
    let mut disk = Cursor::new(disk);
    let _ = label::read(&mut disk);
    let _ = ext4::judge(&mut disk, "0c12d0e5-1111-4222-8333-444455556666");
    let bytes = disk.get_ref();
    let margin = bytes.len().min(1 << 20);
    firstboot::fuzz::probe(&bytes[..margin], &bytes[bytes.len() - margin..]);
    // Last, as it writes.
    let mut file = file.0;
    if node_gpt::grow_data(&mut file).is_ok_and(|gain| gain > 0) {
        assert!(node_gpt::read(&mut file).is_some(), "a table that has grown is one");
    }
}

/// What both of our readers say of a table, and that it reads the same once it is written again.
fn tables(disk: &[u8]) {
    let node = node_gpt::read(&mut Cursor::new(disk));
    let Ok(table) = gpt::read(&mut Cursor::new(disk)) else { return };
    // gptman knows one length of header, and the builder any that UEFI allows.
    let Some(node) = node else { return };
    assert_eq!(node.guid, table.disk.to_string());
    let guids: Vec<String> = table.partitions.iter().map(|partition| partition.guid.to_string()).collect();
    let others: Vec<String> = node.partitions.iter().map(|partition| partition.guid.clone()).collect();
    assert_eq!(guids, others);
    let mut again = Cursor::new(vec![0; disk.len()]);
    if gpt::write(&mut again, &table).is_ok() {
        let read = gpt::read(&mut again).expect("a table that was written is read");
        // A name that is no UTF-16 is read with replacements; all else is as it was.
        assert_eq!(read, table);
    }
}

/// The disk of an input.
fn expand(data: &[u8]) -> Vec<u8> {
    let Some((size, mut rest)) = data.split_first() else { return Vec::new() };
    let mut disk = vec![0; usize::from(*size) * UNIT];
    while let Some((head, after)) = rest.split_first_chunk::<4>() {
        let at = usize::from(u16::from_le_bytes([head[0], head[1]])) * SECTOR;
        let len = usize::from(u16::from_le_bytes([head[2], head[3]])).min(after.len());
        let (piece, after) = after.split_at(len);
        if let Some(place) = disk.get_mut(at..).filter(|place| !place.is_empty()) {
            let len = len.min(place.len());
            place[..len].copy_from_slice(&piece[..len]);
        }
        rest = after;
    }
    disk
}

/// The input of a disk: [`expand`] the other way round.
fn shrink(disk: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::try_from(disk.len().div_ceil(UNIT)).expect("a disk of at most 16 MiB")];
    let sectors: Vec<&[u8]> = disk.chunks(SECTOR).collect();
    let is_empty = |sector: &&[u8]| sector.iter().all(|byte| *byte == 0);
    let mut at = 0;
    while at < sectors.len() {
        let full: Vec<u8> =
            sectors[at..].iter().take(64).take_while(|sector| !is_empty(sector)).copied().collect::<Vec<_>>().concat();
        if full.is_empty() {
            at += 1;
            continue;
        }
        let end = full.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        out.extend((at as u16).to_le_bytes());
        out.extend((end as u16).to_le_bytes());
        out.extend(&full[..end]);
        at += full.len().div_ceil(SECTOR);
    }
    out
}

/// Makes the checksums of partition tables right, wherever a table is.
fn mend_checksums(disk: &mut [u8]) {
    for sector in SECTORS {
        for lba in [1, (disk.len() / sector).saturating_sub(1)] {
            mend_checksum(disk, lba * sector, sector);
        }
    }
}

fn mend_checksum(disk: &mut [u8], at: usize, sector: usize) {
    let Some(header) = disk.get(at..at + SECTOR).filter(|header| header.starts_with(b"EFI PART")) else { return };
    let mut header = header.to_vec();
    let u32_at =
        |header: &[u8], at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (first, count, size) = (u32_at(&header, 72) as usize, u32_at(&header, 80), u32_at(&header, 84));
    let len = u64::from(count).saturating_mul(u64::from(size)).min(1 << 20) as usize;
    let entries = first.checked_mul(sector).and_then(|from| disk.get(from..from.checked_add(len)?));
    if let Some(entries) = entries {
        header[88..92].copy_from_slice(&crc(entries).to_le_bytes());
    }
    let size = (u32_at(&header, 12) as usize).min(SECTOR);
    header[16..20].fill(0);
    let sum = crc(&header[..size]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk[at..at + SECTOR].copy_from_slice(&header);
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

const MIB: u64 = 1 << 20;
/// A FAT16 volume with the smallest clusters is hardly smaller.
const FAT: u64 = 5 * MIB / 2;

fn fat_volume(disk: &File, label: &str, offset: u64, files: &[(&str, &[u8])]) {
    let mut tree = FileTree::new();
    for (path, bytes) in files {
        tree.insert(path, Entry::file(*bytes, 0o644)).expect("a plain path");
    }
    let options = fat::Options { variant: Variant::Fat16, label: label.to_owned(), serial: 7, offset, size: FAT };
    fat::write(&tree, store(), &options, disk).expect("writing a FAT volume");
}

fn read_all(file: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().expect("a file").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("reading a file");
    bytes
}

/// A disk image with these partitions: label, type, offset, length.
fn disk(file: &File, partitions: &[(&str, Uuid, u64, u64)]) -> Vec<u8> {
    let partition = |(label, kind, offset, len): &(&str, Uuid, u64, u64)| {
        let (label, guid) = ((*label).to_owned(), derive_guid("lab", "a", label));
        Partition { label, kind: *kind, guid, offset: *offset, len: *len, attributes: gpt::NO_AUTO }
    };
    let partitions = partitions.iter().map(partition).collect();
    let mut disk = Cursor::new(read_all(file));
    gpt::write(&mut disk, &Table { disk: derive_guid("lab", "a", ""), partitions }).expect("writing a table");
    disk.into_inner()
}

fn esp_disk() -> Vec<u8> {
    let file = MemoryFile::new(&vec![0; 5 << 20]).0;
    fat_volume(&file, "ESP", MIB, &[("loader/loader.conf", b"timeout 3\n"), ("EFI/BOOT/BOOTX64.EFI", b"MZ")]);
    disk(&file, &[("ESP", types::ESP, MIB, FAT)])
}

fn seed_disk() -> Vec<u8> {
    let file = MemoryFile::new(&vec![0; 5 << 20]).0;
    let user = b"#cloud-config\nimgbuild: {profile: {}, secrets: {a: b}}\n";
    fat_volume(&file, "CIDATA", MIB, &[("meta-data", b"instance-id: a\n"), ("user-data", user)]);
    disk(&file, &[("CIDATA", types::BASIC_DATA, MIB, FAT)])
}

fn payload_disk() -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    let squashfs = squashfs::image();
    bytes[1 << 20..][..squashfs.len()].copy_from_slice(&squashfs);
    disk(&MemoryFile::new(&bytes).0, &[("payload-a", types::LINUX, MIB, MIB)])
}

/// An image that was written to a larger disk, so that `data` grows.
fn larger_disk() -> Vec<u8> {
    let image = MemoryFile::new(&vec![0; 3 << 20]).0;
    let mut bytes = disk(&image, &[("data", types::LINUX, MIB, MIB)]);
    bytes.resize(8 << 20, 0);
    bytes
}

/// An installation image.
fn medium() -> Vec<u8> {
    let esp = MemoryFile::new(&vec![0; FAT as usize]).0;
    fat_volume(&esp, "IMGBOOT", 0, &[("loader/entries/a.conf", b"options imgbuild.medium=0\n")]);
    let esp = read_all(&esp);
    let index = br#"{"schema":1,"cluster":"lab","cluster_id":"00000000000000000000000000000000","architecture":"amd64","files":{},"nodes":[]}"#;
    let files = BTreeMap::from([
        ("imgbuild/medium.json".to_owned(), (0o644, Source::Bytes(index))),
        ("imgbuild/a long name with blanks".to_owned(), (0o600, Source::Bytes(b"x"))),
    ]);
    let options = iso9660::Options { label: "IMGBUILD".to_owned(), time: 1_700_000_000, seed: 7 };
    let image = iso9660::Image::new(&files, &Source::Bytes(&esp), &options).expect("laying out an ISO");
    let out = MemoryFile::new(&[]).0;
    image.write(&out).expect("writing an ISO");
    read_all(&out)
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut ext4 = vec![0; UNIT];
    ext4[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
    ext4[1024 + 0x78..][..4].copy_from_slice(b"data");
    let images = [esp_disk(), seed_disk(), payload_disk(), larger_disk(), medium(), ext4];
    images.iter().map(|image| shrink(image)).collect()
}
