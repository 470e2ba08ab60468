// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an ext4 superblock says, and what that means for the data partition.

use std::io::{self, Read, Seek, SeekFrom};

use super::gpt::guid_text;

/// Label of a filesystem that mkfs finished, and that reached the disk.
pub const LABEL: &str = "data";
/// Label while mkfs is at work.
pub const LABEL_NEW: &str = "data-new";

const SUPERBLOCK: u64 = 1024;
/// Of block groups of 32768 blocks of 4 KiB, group 1 holds the first copy.
const FIRST_BACKUP: u64 = 32768 * 4096;
/// What an installation makes zeros at the beginning of the partition (docs/contracts.md, section 11). No damage looks so:
/// group descriptors and more are in it.
const BLANKED: u64 = 1 << 20;

/// The superblock's fields that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Volume label.
    pub label: String,
    /// UUID as text; we make it the partition's GUID.
    pub uuid: String,
    /// Size of the filesystem in bytes.
    pub size: u64,
    /// Unmounted in order and without known errors.
    pub clean: bool,
}

/// What to do with the data partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Ours and whole.
    Use(Superblock),
    /// Nothing of ours is on it.
    Make,
    /// Ours, but broken: never to be overwritten by a machine.
    Refuse(String),
}

fn parse(bytes: &[u8; 1024]) -> Option<Superblock> {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if u16_at(0x38) != 0xef53 || u32_at(0x18) > 6 {
        return None;
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[0x68..0x78]);
    // A UUID is stored as it is written; a GUID's first three fields are turned.
    for (from, to) in [(0, 4), (4, 6), (6, 8)] {
        uuid[from..to].reverse();
    }
    let incompatible = u32_at(0x60);
    let high = if incompatible & 0x80 != 0 { u64::from(u32_at(0x150)) } else { 0 };
    let blocks = high << 32 | u64::from(u32_at(0x4));
    let (valid, errors, needs_recovery) = (u16_at(0x3a) & 1 != 0, u16_at(0x3a) & 2 != 0, incompatible & 4 != 0);
    Some(Superblock {
        label: String::from_utf8_lossy(&bytes[0x78..0x88]).trim_end_matches('\0').to_owned(),
        uuid: guid_text(uuid),
        size: blocks.saturating_mul(1024 << u32_at(0x18)),
        clean: valid && !errors && !needs_recovery,
    })
}

fn read_at(device: &mut (impl Read + Seek), offset: u64) -> io::Result<Option<Superblock>> {
    let mut bytes = [0; 1024];
    device.seek(SeekFrom::Start(offset))?;
    match device.read_exact(&mut bytes) {
        Ok(()) => Ok(parse(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Decides by the label and the UUID. A filesystem under our temporary label is one that a power cut left half-made; one
/// with another UUID is left over from what this disk was before.
pub fn judge(device: &mut (impl Read + Seek), partition_guid: &str) -> io::Result<Verdict> {
    let ours = |superblock: &Superblock| superblock.uuid == partition_guid && superblock.label == LABEL;
    let primary = read_at(device, SUPERBLOCK)?;
    if let Some(superblock) = primary {
        return Ok(if ours(&superblock) { Verdict::Use(superblock) } else { Verdict::Make });
    }
    if is_blank(device)? {
        return Ok(Verdict::Make);
    }
    Ok(match read_at(device, FIRST_BACKUP)? {
        Some(backup) if ours(&backup) => Verdict::Refuse(
            "the data partition's superblock is damaged, and its copy is there: repair it with `e2fsck -b 32768`"
                .to_owned(),
        ),
        _ => Verdict::Make,
    })
}

/// Whether the disk was installed anew over an older installation of the same node, whose copies of the superblock are
/// still there.
fn is_blank(device: &mut (impl Read + Seek)) -> io::Result<bool> {
    let mut first = Vec::new();
    device.seek(SeekFrom::Start(0))?;
    device.take(BLANKED).read_to_end(&mut first)?;
    Ok(first.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    const GUID: &str = "0c12d0e5-1111-4222-8333-444455556666";

    fn tool(argv: &[&str]) {
        let output = Command::new(argv[0])
            .args(&argv[1..])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap_or_else(|error| panic!("{} does not run ({error}): install the package `e2fsprogs`", argv[0]));
        assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn judged(path: &Path) -> Verdict {
        judge(&mut File::open(path).unwrap(), GUID).unwrap()
    }

    #[test]
    fn a_filesystem_counts_when_it_has_the_final_label() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let name = path.to_str().unwrap();
        File::create(&path).unwrap().set_len(256 << 20).unwrap();
        assert_eq!(judged(&path), Verdict::Make);
        tool(&["mkfs.ext4", "-q", "-F", "-b", "4096", "-L", LABEL_NEW, "-U", GUID, name]);
        assert_eq!(judged(&path), Verdict::Make, "mkfs may have been cut short");
        tool(&["tune2fs", "-L", LABEL, name]);
        let expected = Superblock { label: LABEL.into(), uuid: GUID.into(), size: 256 << 20, clean: true };
        assert_eq!(judged(&path), Verdict::Use(expected));

        let mut file = File::options().write(true).open(&path).unwrap();
        file.write_all(&[0; 4096]).unwrap();
        assert!(matches!(judged(&path), Verdict::Refuse(_)), "a damaged filesystem is not made anew");
        file.write_all(&[0; (1 << 20) - 4096]).unwrap();
        assert_eq!(judged(&path), Verdict::Make, "the node was installed anew over it");
    }

    #[test]
    fn a_filesystem_of_another_disk_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        tool(&["mkfs.ext4", "-q", "-F", "-L", LABEL, path.to_str().unwrap()]);
        assert_eq!(judged(&path), Verdict::Make);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 2048)) {
            bytes[1024 + 0x38] = 0x53;
            bytes[1024 + 0x39] = 0xef;
            let _ = judge(&mut std::io::Cursor::new(bytes), GUID);
        }
    }
}
