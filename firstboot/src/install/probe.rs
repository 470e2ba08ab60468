// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is on a disk: the node itself, a beginning of it, nothing, or something that is not ours. Whatever is not zeros
//! in the first and the last MiB is something.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use profiles::medium::{Medium, MediumNode};

use super::write::{MARGIN, Marker};
use crate::init::gpt;

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The node: its table has the node's GUID.
    Installed,
    /// An installation of this very node that did not come to its end.
    UnderWay,
    /// Zeros at both ends.
    Empty,
    /// Something else; says what.
    Foreign(String),
    /// It cannot be read; says why.
    Unreadable(String),
}

/// Looks at a disk of `size` bytes.
pub fn state(file: &mut File, size: u64, node: &MediumNode, medium: &Medium) -> State {
    match judge(file, size, node, medium) {
        Ok(state) => state,
        Err(error) => State::Unreadable(error.to_string()),
    }
}

fn judge(file: &mut File, size: u64, node: &MediumNode, medium: &Medium) -> io::Result<State> {
    let span = MARGIN.min(size) as usize;
    let mut first = vec![0; span];
    let mut last = vec![0; span];
    file.read_exact_at(&mut first, 0)?;
    file.read_exact_at(&mut last, size - span as u64)?;
    if let Some(marker) = Marker::read(&first) {
        let ours = marker == Marker::of(medium, node);
        return Ok(if ours { State::UnderWay } else { State::Foreign(format!("a beginning of {marker}")) });
    }
    if let Some(table) = gpt::read(file) {
        if table.guid == node.disk_guid {
            return Ok(State::Installed);
        }
        return Ok(State::Foreign(match medium.nodes.iter().find(|other| other.disk_guid == table.guid) {
            Some(other) => format!("the installed node {} of this cluster", other.name),
            None => format!("a partition table (GPT) with {} partitions", table.partitions.len()),
        }));
    }
    if first.iter().chain(&last).all(|byte| *byte == 0) {
        return Ok(State::Empty);
    }
    Ok(State::Foreign(name(&first, &last).unwrap_or("data of an unknown kind").to_owned()))
}

/// Magic numbers by their offset from the beginning, from each format's own documentation; only for the message.
const MAGIC: &[(usize, &[u8], &str)] = &[
    (0, b"XFSB", "an XFS filesystem"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (3, b"EXFAT   ", "an exFAT filesystem"),
    (54, b"FAT", "a FAT filesystem"),
    (82, b"FAT32", "a FAT filesystem"),
    (512, b"LABELONE", "an LVM physical volume"),
    (512, b"EFI PART", "a damaged partition table (GPT)"),
    (1024 + 0x38, b"\x53\xef", "an ext2, ext3 or ext4 filesystem"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (16_384 - 10, b"SWAPSPACE2", "swap space"),
    (65_536 - 10, b"SWAPSPACE2", "swap space"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (65_536 + 64, b"_BHRfS_M", "a btrfs filesystem"),
    // The first uberblock of a ZFS label.
    (128 << 10, b"\x0c\xb1\xba\0\0\0\0\0", "a ZFS pool"),
    (510, b"\x55\xaa", "a partition table (MBR) or boot sector"),
];

/// Superblocks at the end: magic number, its distance from there, and the alignment of that place.
const MAGIC_AT_END: &[(usize, &[u8], &str)] = &[
    (512, b"EFI PART", "the copy of a partition table (GPT)"),
    (512, b"\xde\x11\xde\x11", "a member of a RAID (DDF)"),
    (1024, b"Intel Raid ISM Cfg Sig. ", "a member of a RAID (Intel)"),
];

/// md's superblock in the last 64 KiB (versions 0.90 and 1.0).
const MD_MAGIC: &[u8] = b"\xfc\x4e\x2b\xa9";

fn name(first: &[u8], last: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| first.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let from_end = |offset: usize, magic: &[u8]| {
        last.len().checked_sub(offset).and_then(|at| last.get(at..)).is_some_and(|rest| rest.starts_with(magic))
    };
    let found = MAGIC.iter().find(|(offset, magic, _)| at(*offset, magic));
    let found = found.or_else(|| MAGIC_AT_END.iter().find(|(offset, magic, _)| from_end(*offset, magic)));
    found.map(|(_, _, name)| *name).or_else(|| {
        let tail = &last[last.len().saturating_sub(128 << 10)..];
        let md = tail.chunks(4096).any(|block| block.starts_with(MD_MAGIC));
        md.then_some("a member of a RAID (md)")
    })
}

impl State {
    /// A few words.
    pub fn show(&self) -> String {
        match self {
            Self::Installed => "installed".to_owned(),
            Self::UnderWay => "an installation of this node that did not end".to_owned(),
            Self::Empty => "empty".to_owned(),
            Self::Foreign(what) => format!("holds {what}"),
            Self::Unreadable(why) => format!("cannot be read: {why}"),
        }
    }
}

/// For tests/fuzz.
#[cfg(fuzzing)]
pub(crate) fn fuzz(first: &[u8], last: &[u8]) {
    name(first, last);
    Marker::read(first);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::install::testing::{GUID, medium};

    const SIZE: u64 = 64 << 20;

    fn tool(argv: &[&str]) {
        let output = Command::new(argv[0])
            .args(&argv[1..])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap_or_else(|error| panic!("{} does not run: {error}", argv[0]));
        assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A disk that `make` wrote to, and what it is taken for.
    fn judged(make: impl FnOnce(&str)) -> State {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        make(path.to_str().unwrap());
        let medium = medium(&["master-1", "worker-1"]);
        state(&mut File::open(&path).unwrap(), SIZE, &medium.nodes[0], &medium)
    }

    fn foreign(what: &str) -> State {
        State::Foreign(what.to_owned())
    }

    fn patched(at: u64, bytes: &[u8]) -> State {
        judged(|path| File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap())
    }

    #[test]
    fn zeros_are_empty() {
        assert_eq!(judged(|_| {}), State::Empty);
        // What lies in the middle is what deleted partitions leave: nothing leads to it.
        assert_eq!(patched(SIZE / 2, b"x"), State::Empty);
    }

    #[test]
    fn our_table_is_an_installed_node_and_others_are_not() {
        assert_eq!(judged(|path| tool(&["sgdisk", "-o", "-U", GUID, "-n", "1:1M:+16M", path])), State::Installed);
        let other = medium(&["a", "b"]).nodes[1].disk_guid.clone();
        assert_eq!(
            judged(|path| tool(&["sgdisk", "-o", "-U", &other, path])),
            foreign("the installed node worker-1 of this cluster")
        );
        assert_eq!(
            judged(|path| tool(&["sgdisk", "-o", "-n", "1:1M:+16M", path])),
            foreign("a partition table (GPT) with 1 partitions")
        );
        // Its copy at the end alone.
        let first_lost = judged(|path| {
            tool(&["sgdisk", "-o", "-n", "1:1M:+16M", path]);
            File::options().write(true).open(path).unwrap().write_all_at(&[0; 1 << 20], 0).unwrap();
        });
        assert_eq!(first_lost, foreign("a partition table (GPT) with 1 partitions"));
    }

    #[test]
    fn a_marker_is_ours_or_a_strangers() {
        let medium = medium(&["master-1", "worker-1"]);
        let sector = |index: usize| Marker::of(&medium, &medium.nodes[index]).sector();
        assert_eq!(patched(0, &sector(0)), State::UnderWay);
        let State::Foreign(what) = patched(0, &sector(1)) else { panic!() };
        assert!(what.contains("worker-1"), "{what}");
        // Even over a whole table with our GUID: it is not known to be complete.
        let state = judged(|path| {
            tool(&["sgdisk", "-o", "-U", GUID, path]);
            File::options().write(true).open(path).unwrap().write_all_at(&sector(0), 0).unwrap();
        });
        assert_eq!(state, State::UnderWay);
    }

    #[test]
    fn other_peoples_formats_are_named() {
        assert_eq!(judged(|path| tool(&["mkfs.ext4", "-q", path])), foreign("an ext2, ext3 or ext4 filesystem"));
        assert_eq!(judged(|path| tool(&["mkswap", path])), foreign("swap space"));
        assert_eq!(judged(|path| tool(&["mkfs.vfat", path])), foreign("a FAT filesystem"));
        assert_eq!(patched(SIZE - 8192, MD_MAGIC), foreign("a member of a RAID (md)"));
        assert_eq!(patched(SIZE - 65_536, MD_MAGIC), foreign("a member of a RAID (md)"));
        assert_eq!(patched(512, b"LABELONE"), foreign("an LVM physical volume"));
        assert_eq!(patched(510, b"\x55\xaa"), foreign("a partition table (MBR) or boot sector"));
    }

    #[test]
    fn a_short_or_unreadable_disk_is_no_empty_one() {
        let medium = medium(&["master-1"]);
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("disk")).unwrap();
        file.set_len(4096).unwrap();
        assert!(
            matches!(state(&mut file, 4096, &medium.nodes[0], &medium), State::Unreadable(_)),
            "opened to write only"
        );
        let mut file = File::open(dir.path().join("disk")).unwrap();
        assert_eq!(state(&mut file, 4096, &medium.nodes[0], &medium), State::Empty);
        assert!(matches!(state(&mut file, 1 << 20, &medium.nodes[0], &medium), State::Unreadable(_)));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

        /// One byte anywhere in the first or last MiB, and the disk is not empty.
        #[test]
        fn any_byte_counts(at in 0..2 * MARGIN, byte in 1u8..) {
            let at = if at < MARGIN { at } else { SIZE - 2 * MARGIN + at };
            proptest::prop_assert!(matches!(patched(at, &[byte]), State::Foreign(_)));
        }
    }
}
