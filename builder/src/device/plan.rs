// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which bytes of an image a disk needs, when the disk is not empty.
//!
//! A new disk is zeros, and the holes of a sparse image can be left out. A used disk has old data there, and some of it
//! would be taken for ours. So:
//! - a partition with content is written whole: its data copied, its holes zeroed;
//! - of an empty partition, the first and the last MiB are zeroed, where filesystems, RAID, LVM and ZFS have what they
//!   are known by: an old filesystem on the data partition would otherwise be mounted;
//! - so are the first MiB of the disk, before anything else, and its last MiB: with a valid backup of the old partition
//!   table there, firmware repairs the table of a disk that was interrupted in the middle, and boots a mixture.
//!
//! The first MiB of the image comes last. A disk that was interrupted has no partition table and no ISO 9660 volume.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use rustix::fs::SeekFrom;

use crate::error::Failure;
use crate::image::gpt::{self, Table};

const MIB: u64 = 1 << 20;
/// Data and holes are told apart in blocks of this size: no filesystem of today has smaller ones, and no disk larger
/// sectors.
const BLOCK: u64 = 4096;
/// Where an ISO 9660 volume says that it is one: the primary volume descriptor is sector 16 (ECMA-119, 7.2 and 8.4).
const ISO_DESCRIPTOR: u64 = 16 * ISO_SECTOR;
const ISO_SECTOR: u64 = 2048;

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// A disk image with this partition table.
    Disk(Table),
    /// An ISO 9660 volume, for a disk as well as for a CD.
    Iso,
}

/// Tells what an image is, and that nothing of it is missing.
///
/// # Errors
/// Neither kind, a kind that cannot be copied to a disk, a file that was cut short, or failing I/O.
pub fn identify(file: &File) -> Result<Image> {
    let size = file.metadata().context("measuring the image")?.len();
    let at = |offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes).unwrap_or_default()
    };
    let descriptor = at(ISO_DESCRIPTOR, ISO_SECTOR as usize);
    if descriptor.get(1..6) == Some(b"CD001".as_slice()) {
        // Volume space size, in sectors (ECMA-119, 8.4.8; little-endian half).
        let sectors = u32::from_le_bytes([80, 81, 82, 83].map(|i| descriptor[i]));
        let whole = u64::from(sectors) * ISO_SECTOR;
        if size < whole {
            let message = format!("the ISO image has {size} bytes and says it has {whole}: it was cut short");
            return Err(Failure::verification(message).hint("copy it again").into());
        }
        return Ok(Image::Iso);
    }
    if at(0, 4) == *b"QFI\xfb" {
        let message = "the image is a qcow2 file, for virtual machines";
        return Err(Failure::user(message).hint("build it with `--output disk`").into());
    }
    if at(512, 8) != *b"EFI PART" {
        let message = "the image has no partition table and is no ISO 9660 volume";
        return Err(Failure::user(message).hint("give an image that `imgbuild build` made").into());
    }
    let mut reader = file;
    let table = gpt::read(&mut reader).map_err(|error| {
        let failure =
            Failure::verification("the image is damaged or was cut short").hint("copy it again, or build it again");
        failure.caused_by(error)
    })?;
    Ok(Image::Disk(table))
}

/// What happens to a part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It gets the image's bytes.
    Copy,
    /// It gets zeros.
    Zero,
}

/// A part of the disk and what happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// What happens.
    pub action: Action,
}

/// What a disk needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Bytes at the beginning that come last.
    pub head: u64,
    /// Zeroed before anything else, with the head: the end of the disk, as far as the image does not reach.
    pub tail: Step,
    /// Everything between, in ascending order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The plan of an image for a disk of `disk` bytes, which is not smaller.
    ///
    /// # Errors
    /// Failing I/O.
    pub fn new(image: &Image, file: &File, disk: u64) -> Result<Self> {
        let size = file.metadata().context("measuring the image")?.len();
        let head = MIB.min(size);
        let tail = size.max(disk.saturating_sub(MIB));
        let tail = Step { at: tail, len: disk.saturating_sub(tail), action: Action::Zero };
        let mut steps = Vec::new();
        match image {
            Image::Iso => extents(file, head, size, &mut steps)?,
            Image::Disk(table) => {
                let mut at = head;
                let mut partitions: Vec<_> = table.partitions.iter().collect();
                partitions.sort_by_key(|partition| partition.offset);
                for partition in partitions {
                    let to = partition.offset.saturating_add(partition.len).clamp(at, size);
                    let from = partition.offset.clamp(at, to);
                    extents(file, at, from, &mut steps)?;
                    let begun = steps.len();
                    extents(file, from, to, &mut steps)?;
                    let empty = steps[begun..].iter().all(|step| step.action == Action::Zero);
                    if empty && to - from > 2 * MIB {
                        steps.truncate(begun);
                        steps.push(Step { at: from, len: MIB, action: Action::Zero });
                        steps.push(Step { at: to - MIB, len: MIB, action: Action::Zero });
                    }
                    at = to;
                }
                extents(file, at, size, &mut steps)?;
            }
        }
        Ok(Self { head, tail, steps })
    }

    /// Bytes that are written.
    pub fn bytes(&self) -> u64 {
        self.head + self.tail.len + self.steps.iter().map(|step| step.len).sum::<u64>()
    }
}

/// Data and holes of a part of a file, in order. Blocks that are only partly data count as data.
fn extents(file: &File, from: u64, to: u64, steps: &mut Vec<Step>) -> Result<()> {
    let mut at = from;
    while at < to {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => (data / BLOCK * BLOCK).clamp(at, to),
            // No data to the end of the file.
            Err(rustix::io::Errno::NXIO) => to,
            // A filesystem without holes.
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error).context("looking for the holes of the image"),
        };
        push(steps, at, data - at, Action::Zero);
        let hole = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
            Ok(hole) => hole.next_multiple_of(BLOCK).clamp(data, to),
            Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL) => to,
            Err(error) => return Err(error).context("looking for the holes of the image"),
        };
        push(steps, data, hole - data, Action::Copy);
        at = hole;
    }
    Ok(())
}

fn push(steps: &mut Vec<Step>, at: u64, len: u64, action: Action) {
    if len > 0 {
        steps.push(Step { at, len, action });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(super) mod tests {
    use super::*;
    use crate::error::{hint, kind};
    use crate::image::gpt::{Partition, derive_guid, types};

    pub(in crate::device) const SIZE: u64 = 12 * MIB;

    /// A sparse image: `a` has 5000 bytes of data in its second MiB, `b` and `c` have none, `c` is small.
    pub(in crate::device) fn image() -> File {
        let parts = [("a", MIB, 4 * MIB), ("b", 5 * MIB, 4 * MIB), ("c", 9 * MIB, MIB)];
        let partitions = parts.map(|(label, offset, len)| Partition {
            label: label.into(),
            kind: types::LINUX,
            guid: derive_guid("c", "n", label),
            offset,
            len,
            attributes: 0,
        });
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        let table = Table { disk: derive_guid("c", "n", "disk"), partitions: partitions.to_vec() };
        gpt::write(&mut file, &table).unwrap();
        file.write_all_at(&[7; 5000], 2 * MIB + 100).unwrap();
        file
    }

    #[test]
    fn content_is_written_whole_and_of_empty_partitions_both_ends() {
        let file = image();
        let image = identify(&file).unwrap();
        assert!(matches!(&image, Image::Disk(table) if table.partitions.len() == 3));
        let plan = Plan::new(&image, &file, SIZE + 10 * MIB).unwrap();
        let step = |action, at, end: u64| Step { at, len: end - at, action };
        assert_eq!(plan.head, MIB);
        assert_eq!(plan.tail, step(Action::Zero, SIZE + 9 * MIB, SIZE + 10 * MIB));
        let backup = plan.steps.last().unwrap();
        // The backup table: what lies beyond the partitions is data and holes as the filesystem has them.
        assert_eq!((backup.action, backup.at + backup.len), (Action::Copy, SIZE));
        assert_eq!(
            plan.steps[..plan.steps.len() - 2],
            [
                step(Action::Zero, MIB, 2 * MIB),
                step(Action::Copy, 2 * MIB, 2 * MIB + 8192),
                step(Action::Zero, 2 * MIB + 8192, 5 * MIB),
                step(Action::Zero, 5 * MIB, 6 * MIB),
                step(Action::Zero, 8 * MIB, 9 * MIB),
                step(Action::Zero, 9 * MIB, 10 * MIB),
            ]
        );
        // On a disk of the same size nothing is left for the tail.
        assert_eq!(Plan::new(&image, &file, SIZE).unwrap().tail.len, 0);
        assert_eq!(Plan::new(&image, &file, SIZE + 512).unwrap().tail, step(Action::Zero, SIZE, SIZE + 512));
    }

    #[test]
    fn an_iso_is_copied_whole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * MIB).unwrap();
        let mut descriptor = [0; 2048];
        descriptor[..6].copy_from_slice(b"\x01CD001");
        descriptor[80..84].copy_from_slice(&(3 * MIB as u32 / 2048).to_le_bytes());
        file.write_all_at(&descriptor, ISO_DESCRIPTOR).unwrap();
        assert_eq!(identify(&file).unwrap(), Image::Iso);
        let plan = Plan::new(&Image::Iso, &file, SIZE).unwrap();
        assert_eq!(plan.bytes(), 4 * MIB);
        file.set_len(3 * MIB - 2048).unwrap();
        let error = identify(&file).unwrap_err();
        assert_eq!((kind(&error).exit_code(), hint(&error).as_deref()), (4, Some("copy it again")));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let refused = |bytes: &[u8], code: u8, message: &str| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            let error = identify(&file).unwrap_err();
            assert_eq!(kind(&error).exit_code(), code);
            assert!(error.to_string().contains(message), "{error}");
        };
        refused(b"", 1, "no partition table");
        refused(&[0; 100_000], 1, "no partition table");
        refused(b"QFI\xfb", 1, "qcow2");
        let file = image();
        // Cut short: the backup table is gone.
        file.set_len(SIZE - 512).unwrap();
        let error = identify(&file).unwrap_err();
        assert_eq!(kind(&error).exit_code(), 4);
        assert!(error.to_string().contains("cut short"), "{error}");
    }
}
