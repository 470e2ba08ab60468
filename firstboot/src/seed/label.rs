// SPDX-License-Identifier: MIT OR Apache-2.0
//! Filesystem labels of vfat and ISO 9660, read from the raw device.

use std::io::{self, Read, Seek, SeekFrom};

/// A filesystem that may hold a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// FAT12, FAT16 or FAT32.
    Vfat,
    /// ISO 9660.
    Iso9660,
}

impl Kind {
    /// Its name for mount(2).
    pub fn name(self) -> &'static str {
        match self {
            Kind::Vfat => "vfat",
            Kind::Iso9660 => "iso9660",
        }
    }
}

/// Largest FAT root directory that is searched for a label.
const ROOT_LIMIT: u64 = 1 << 20;

/// Kind and labels of the filesystem on `device`: for FAT the root directory's label and the boot sector's, which tools
/// do not always keep equal.
pub fn read(device: &mut (impl Read + Seek)) -> io::Result<Option<(Kind, Vec<String>)>> {
    let mut descriptor = [0; 2048];
    if read_at(device, 16 * 2048, &mut descriptor)? && descriptor[..7] == *b"\x01CD001\x01" {
        return Ok(Some((Kind::Iso9660, vec![text(&descriptor[40..72])])));
    }
    let mut boot = [0; 512];
    if !read_at(device, 0, &mut boot)? {
        return Ok(None);
    }
    let Some(fat) = Fat::parse(&boot) else { return Ok(None) };
    let mut labels = Vec::new();
    if let Some(label) = fat.root_label(device)? {
        labels.push(label);
    }
    labels.push(fat.boot_label);
    labels.retain(|label| !label.is_empty() && label != "NO NAME");
    Ok(Some((Kind::Vfat, labels)))
}

/// Whether `label` marks a NoCloud seed: all upper or all lower case, nothing between, as cloud-init has it.
pub fn is_seed(label: &str) -> bool {
    label == "CIDATA" || label == "cidata"
}

struct Fat {
    root_offset: u64,
    root_length: u64,
    boot_label: String,
}

impl Fat {
    fn parse(boot: &[u8; 512]) -> Option<Self> {
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let u32_at = |at: usize| u64::from(u32::from_le_bytes([boot[at], boot[at + 1], boot[at + 2], boot[at + 3]]));
        let jump = (boot[0] == 0xeb && boot[2] == 0x90) || boot[0] == 0xe9;
        let (sector, cluster, reserved, fats) = (u16_at(11), u64::from(boot[13]), u16_at(14), u64::from(boot[16]));
        let sane = boot[510..] == [0x55, 0xaa]
            && jump
            && matches!(sector, 512 | 1024 | 2048 | 4096)
            && cluster.is_power_of_two()
            && reserved > 0
            && matches!(fats, 1 | 2);
        if !sane {
            return None;
        }
        let entries = u16_at(17);
        let fat32 = u16_at(22) == 0;
        let fat_sectors = if fat32 { u32_at(36) } else { u16_at(22) };
        let after_fats = (reserved + fats * fat_sectors) * sector;
        let (root_offset, root_length, label) = if fat32 {
            // The first cluster of the root directory is enough: mkfs and labelling tools put the label there.
            let root = u32_at(44).checked_sub(2)?;
            (after_fats + root * cluster * sector, cluster * sector, &boot[71..82])
        } else {
            (after_fats, entries * 32, &boot[43..54])
        };
        // The label fields exist only behind the extended boot signature.
        let signature = boot[if fat32 { 66 } else { 38 }];
        let boot_label = if signature == 0x29 { text(label) } else { String::new() };
        Some(Self { root_offset, root_length: root_length.min(ROOT_LIMIT), boot_label })
    }

    fn root_label(&self, device: &mut (impl Read + Seek)) -> io::Result<Option<String>> {
        let mut root = Vec::new();
        device.seek(SeekFrom::Start(self.root_offset))?;
        device.take(self.root_length).read_to_end(&mut root)?;
        Ok(root
            .chunks_exact(32)
            .take_while(|entry| entry[0] != 0)
            // Attribute "volume id", but not the four bits that mark a long name.
            .find(|entry| entry[0] != 0xe5 && entry[11] & 0x3f != 0x0f && entry[11] & 0x18 == 0x08)
            .map(|entry| text(&entry[..11])))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches([' ', '\0']).to_owned()
}

/// Fills `buffer`; `false` if the device ends before.
fn read_at(device: &mut (impl Read + Seek), offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
    device.seek(SeekFrom::Start(offset))?;
    match device.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn tool(package: &str, argv: &[&str]) {
        let output = Command::new(argv[0])
            .args(&argv[1..])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap_or_else(|error| panic!("{} does not run ({error}): install the package `{package}`", argv[0]));
        assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn label_of(path: &Path) -> Option<(Kind, Vec<String>)> {
        read(&mut std::fs::File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn vfat_by_mkfs() {
        let dir = tempfile::tempdir().unwrap();
        for (bits, size) in [("12", 1 << 20), ("16", 16 << 20), ("32", 64 << 20)] {
            for label in ["CIDATA", "cidata"] {
                let path = dir.path().join(format!("fat{bits}{label}"));
                std::fs::File::create(&path).unwrap().set_len(size).unwrap();
                tool("dosfstools", &["mkfs.vfat", "-F", bits, "-n", label, path.to_str().unwrap()]);
                let (kind, labels) = label_of(&path).unwrap();
                assert_eq!(kind, Kind::Vfat);
                assert!(labels.iter().any(|label| is_seed(label)), "FAT{bits} {label}: {labels:?}");
            }
            let path = dir.path().join(format!("fat{bits}none"));
            std::fs::File::create(&path).unwrap().set_len(size).unwrap();
            tool("dosfstools", &["mkfs.vfat", "-F", bits, path.to_str().unwrap()]);
            assert_eq!(label_of(&path), Some((Kind::Vfat, vec![])));
        }
    }

    #[test]
    fn a_label_in_the_root_directory_alone_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fat");
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        tool("dosfstools", &["mkfs.vfat", "-n", "CIDATA", path.to_str().unwrap()]);
        let mut image = std::fs::read(&path).unwrap();
        image[43..54].copy_from_slice(b"NO NAME    ");
        std::fs::write(&path, image).unwrap();
        assert_eq!(label_of(&path), Some((Kind::Vfat, vec!["CIDATA".to_owned()])));
    }

    #[test]
    fn iso9660_by_genisoimage_and_xorriso() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("user-data"), "#cloud-config\n").unwrap();
        let source = dir.path().join("user-data");
        let image = dir.path().join("seed.iso");
        let (source, image) = (source.to_str().unwrap(), image.to_str().unwrap());
        tool("genisoimage", &["genisoimage", "-quiet", "-o", image, "-V", "cidata", "-J", "-R", source]);
        assert_eq!(label_of(Path::new(image)), Some((Kind::Iso9660, vec!["cidata".to_owned()])));
        tool("xorriso", &["xorriso", "-as", "mkisofs", "-o", image, "-V", "CIDATA", "-J", "-r", source]);
        assert_eq!(label_of(Path::new(image)), Some((Kind::Iso9660, vec!["CIDATA".to_owned()])));
    }

    #[test]
    fn other_things_have_no_label() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        for content in [vec![], vec![0; 100], vec![0; 100_000], vec![0xeb; 100_000]] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(label_of(&path), None);
        }
        std::fs::File::create(&path).unwrap().set_len(32 << 20).unwrap();
        tool("e2fsprogs", &["mkfs.ext4", "-q", "-L", "CIDATA", path.to_str().unwrap()]);
        assert_eq!(label_of(&path), None);
    }

    #[test]
    fn the_label_is_all_upper_or_all_lower() {
        assert!(is_seed("CIDATA") && is_seed("cidata"));
        assert!(!is_seed("CiData") && !is_seed("CIDATA2") && !is_seed("") && !is_seed("config-2"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 512)) {
            bytes[0] = 0xeb;
            bytes[2] = 0x90;
            bytes[510] = 0x55;
            bytes[511] = 0xaa;
            let _ = read(&mut std::io::Cursor::new(bytes));
        }
    }
}
