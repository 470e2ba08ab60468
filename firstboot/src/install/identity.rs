// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a disk is called: serial number, world wide name, model, and the names that udev would give it below
//! `/dev/disk/by-id`. There is no udev in the initramfs; these are the forms of its `60-persistent-storage.rules` that
//! are computed here:
//!
//! | disk | names |
//! |---|---|
//! | NVMe | `nvme-MODEL_SERIAL`, `nvme-MODEL_SERIAL_NSID`, `nvme-WWID` |
//! | virtio | `virtio-SERIAL` |
//! | SATA, also behind a SAS controller | `ata-MODEL_SERIAL` |
//! | SCSI, SAS, RAID controllers, SATA | `wwn-0xNAA`, `scsi-3NAA`, `scsi-2EUI`, `scsi-1T10` |
//! | SCSI without such a name | `scsi-0VENDOR_MODEL_SERIAL`, `scsi-SVENDOR_MODEL_SERIAL` |
//! | SD card, eMMC | `mmc-NAME_SERIAL` |
//!
//! Not known are names of USB enclosures (`usb-…`), FireWire, Xen and IBM Z.

use std::fs;
use std::path::Path;

/// How a disk is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Names below `/dev/disk/by-id`, the most telling first.
    pub ids: Vec<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// World wide name as the kernel has it: `naa.5000…`, `eui.0025…`.
    pub wwn: Option<String>,
    /// Models: the full one, and what the kernel makes of it (SCSI: 16 characters).
    pub models: Vec<String>,
}

/// Reads `block`, which is `/sys/block/<name>`.
pub fn read(block: &Path, name: &str) -> Identity {
    let device = block.join("device");
    if name.starts_with("nvme") {
        nvme(block, &device)
    } else if name.starts_with("mmcblk") {
        mmc(&device)
    } else if device.join("vendor").exists() && device.join("model").exists() {
        scsi(&device)
    } else {
        // virtio; others have no serial number.
        let serial = text(&block.join("serial"));
        let ids = serial.iter().map(|serial| format!("virtio-{}", squash(serial))).collect();
        Identity { ids, serial, ..Identity::default() }
    }
}

fn nvme(block: &Path, device: &Path) -> Identity {
    let (serial, model) = (text(&device.join("serial")), text(&device.join("model")));
    let wwn = text(&block.join("wwid"));
    let mut ids = Vec::new();
    if let (Some(serial), Some(model)) = (&serial, &model) {
        let id = format!("nvme-{}_{}", squash(model), squash(serial));
        if let Some(namespace) = text(&block.join("nsid")) {
            ids.push(format!("{id}_{namespace}"));
        }
        ids.insert(0, id);
    }
    ids.extend(wwn.iter().map(|wwid| format!("nvme-{}", squash(wwid))));
    Identity { ids, serial, wwn, models: model.into_iter().collect() }
}

fn mmc(device: &Path) -> Identity {
    let (serial, name) = (text(&device.join("serial")), text(&device.join("name")));
    let id =
        name.as_ref().zip(serial.as_ref()).map(|(name, serial)| format!("mmc-{}_{}", squash(name), squash(serial)));
    Identity { ids: id.into_iter().collect(), serial, wwn: None, models: name.into_iter().collect() }
}

fn scsi(device: &Path) -> Identity {
    let (vendor, model) = (text(&device.join("vendor")), text(&device.join("model")));
    let wwn = text(&device.join("wwid"));
    let mut serial = fs::read(device.join("vpd_pg80")).ok().and_then(|page| unit_serial(&page));
    let mut models = Vec::new();
    let mut ids = Vec::new();
    if vendor.as_deref() == Some("ATA")
        && let Some(ata) = fs::read(device.join("vpd_pg89")).ok().and_then(|page| ata(&page))
    {
        ids.push(format!("ata-{}_{}", squash(&ata.model), squash(&ata.serial)));
        models.push(ata.model);
        serial = Some(ata.serial);
    }
    if let Some(wwn) = &wwn {
        if let Some(naa) = wwn.strip_prefix("naa.") {
            ids.extend([format!("wwn-0x{naa}"), format!("scsi-3{naa}")]);
        } else if let Some(eui) = wwn.strip_prefix("eui.") {
            ids.push(format!("scsi-2{eui}"));
        } else if let Some(t10) = wwn.strip_prefix("t10.") {
            ids.push(format!("scsi-1{}", squash(t10)));
        }
    }
    if let (Some(vendor), Some(model), Some(serial)) = (&vendor, &model, &serial)
        && vendor != "ATA"
    {
        // Page 0x83 with nothing but the vendor's own name of the disk, and no page 0x83 at all.
        let rest = squash(&format!("{vendor} {model} {serial}"));
        ids.extend([format!("scsi-0{rest}"), format!("scsi-S{rest}")]);
    }
    models.extend(model);
    models.dedup();
    Identity { ids, serial, wwn, models }
}

/// The serial number of VPD page 0x80: a header of four bytes, of which the last two are the length.
fn unit_serial(page: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    printable(page.get(4..4 + length)?)
}

struct Ata {
    model: String,
    serial: String,
}

/// What an ATA disk says of itself, of VPD page 0x89 (SAT-3, 12.4.2): from byte 60 on it is the answer to IDENTIFY
/// DEVICE, whose words 10 to 19 are the serial number and 27 to 46 the model, two characters a word, the second first.
fn ata(page: &[u8]) -> Option<Ata> {
    let words = |from: usize, to: usize| {
        let bytes = page.get(60 + 2 * from..60 + 2 * to)?;
        printable(&bytes.chunks_exact(2).flat_map(|pair| [pair[1], pair[0]]).collect::<Vec<u8>>())
    };
    Some(Ata { serial: words(10, 20)?, model: words(27, 47)? })
}

fn printable(bytes: &[u8]) -> Option<String> {
    let text: String = bytes.iter().map(|byte| char::from(*byte)).filter(|c| c.is_ascii() && !c.is_control()).collect();
    let text = text.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn text(path: &Path) -> Option<String> {
    printable(&fs::read(path).ok()?)
}

/// As udev makes names: blanks around it go, blanks in it become one `_`, and so does every other character that a name
/// may not have.
pub fn squash(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !name.is_empty() {
            name.push('_');
        }
        name.extend(word.chars().map(|c| if c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) { c } else { '_' }));
    }
    name
}

/// Whether two names mean the same, however blanks were written.
pub fn same(a: &str, b: &str) -> bool {
    let plain = |text: &str| squash(text).split('_').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
    plain(a) == plain(b)
}

/// Whether two world wide names are the same, however they are introduced (`0x`, `naa.`, `eui.`, `wwn-`, `nvme-`).
pub fn same_wwn(a: &str, b: &str) -> bool {
    let plain = |text: &str| {
        let mut text = text.trim().to_ascii_lowercase();
        for prefix in ["nvme-", "wwn-", "naa.", "eui.", "0x"] {
            if let Some(rest) = text.strip_prefix(prefix) {
                text = rest.to_owned();
            }
        }
        text
    };
    same(&plain(a), &plain(b))
}

/// For tests/fuzz.
#[cfg(fuzzing)]
pub(crate) fn fuzz(page: &[u8]) {
    let serial = unit_serial(page);
    let ata = ata(page).map(|ata| format!("{} {}", ata.model, ata.serial));
    let text = String::from_utf8_lossy(page).into_owned();
    for name in [serial, ata, Some(text)].into_iter().flatten() {
        // Names are of what udev lets through, and making a name of one changes nothing.
        let made = squash(&name);
        assert!(!made.contains(['/', ' ', '\0']) && squash(&made) == made && same(&name, &made), "{name:?}");
        same_wwn(&name, &made);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of sysfs with these files.
    fn sys(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    fn words(text: &str, length: usize) -> Vec<u8> {
        format!("{text:length$}").as_bytes().chunks_exact(2).flat_map(|pair| [pair[1], pair[0]]).collect()
    }

    #[test]
    fn nvme_has_a_name_of_model_and_serial() {
        let dir = sys(&[
            ("device/model", b"SAMSUNG MZVL21T0HCLR-00B00              \n"),
            ("device/serial", b"S676NX0R123456      \n"),
            ("wwid", b"eui.002538b111b2c3d4\n"),
            ("nsid", b"1\n"),
        ]);
        let identity = read(dir.path(), "nvme0n1");
        let expected = [
            "nvme-SAMSUNG_MZVL21T0HCLR-00B00_S676NX0R123456",
            "nvme-SAMSUNG_MZVL21T0HCLR-00B00_S676NX0R123456_1",
            "nvme-eui.002538b111b2c3d4",
        ];
        assert_eq!(identity.ids, expected);
        assert_eq!(identity.serial.as_deref(), Some("S676NX0R123456"));
        assert_eq!(identity.models, ["SAMSUNG MZVL21T0HCLR-00B00"]);
        assert!(same_wwn(identity.wwn.as_deref().unwrap(), "nvme-eui.002538B111B2C3D4"));
    }

    #[test]
    fn sata_has_the_names_of_ata_and_of_scsi() {
        let mut page89 = vec![0; 60 + 512];
        page89[60 + 20..60 + 40].copy_from_slice(&words("     WD-WX12A3456789", 20));
        page89[60 + 54..60 + 94].copy_from_slice(&words("WDC WD4003FFBX-68MU3N0", 40));
        let dir = sys(&[
            ("device/vendor", b"ATA     \n"),
            ("device/model", b"WDC WD4003FFBX-6\n"),
            ("device/wwid", b"naa.50014ee2b1c2d3e4\n"),
            ("device/vpd_pg89", &page89),
            ("device/vpd_pg80", b"\0\x80\0\x14     WD-WX12A3456789"),
        ]);
        let identity = read(dir.path(), "sda");
        let expected =
            ["ata-WDC_WD4003FFBX-68MU3N0_WD-WX12A3456789", "wwn-0x50014ee2b1c2d3e4", "scsi-350014ee2b1c2d3e4"];
        assert_eq!(identity.ids, expected);
        assert_eq!(identity.serial.as_deref(), Some("WD-WX12A3456789"));
        assert_eq!(identity.models, ["WDC WD4003FFBX-68MU3N0", "WDC WD4003FFBX-6"]);
        assert!(same_wwn(identity.wwn.as_deref().unwrap(), "0x50014ee2b1c2d3e4"));
    }

    #[test]
    fn scsi_without_a_wide_name_is_called_by_its_maker() {
        let dir = sys(&[
            ("device/vendor", b"QEMU    \n"),
            ("device/model", b"QEMU HARDDISK   \n"),
            ("device/vpd_pg80", b"\0\x80\0\x05DISK1"),
        ]);
        let identity = read(dir.path(), "sda");
        assert_eq!(identity.ids, ["scsi-0QEMU_QEMU_HARDDISK_DISK1", "scsi-SQEMU_QEMU_HARDDISK_DISK1"]);
    }

    #[test]
    fn virtio_and_cards_have_serials() {
        let dir = sys(&[("serial", b"DISK1")]);
        let identity = read(dir.path(), "vda");
        assert_eq!((identity.ids, identity.serial.as_deref()), (vec!["virtio-DISK1".to_owned()], Some("DISK1")));
        let dir = sys(&[("device/name", b"SD32G\n"), ("device/serial", b"0x1a2b\n")]);
        assert_eq!(read(dir.path(), "mmcblk0").ids, ["mmc-SD32G_0x1a2b"]);
        assert_eq!(read(Path::new("/nonexistent"), "vda"), Identity::default());
    }

    #[test]
    fn blanks_do_not_matter() {
        assert_eq!(squash("  QEMU    QEMU  HARD/DISK "), "QEMU_QEMU_HARD_DISK");
        assert!(same("QEMU HARDDISK", "QEMU_HARDDISK") && same("a__b", "a b") && !same("ab", "a b"));
        assert!(!same_wwn("0x5000c500a1b2c3d4", "0x5000c500a1b2c3d5"));
    }

    proptest::proptest! {
        #[test]
        fn hostile_pages_are_survived(page: Vec<u8>) {
            let _ = (unit_serial(&page), ata(&page));
        }
    }
}
