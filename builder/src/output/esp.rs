// SPDX-License-Identifier: MIT OR Apache-2.0

//! What lies on the EFI system partition: systemd-boot, its configuration, and kernel and initramfs of slot a.

use anyhow::{Result, bail};
use profiles::node::Architecture;
use uuid::Uuid;

use crate::tree::{Content, Entry, FileTree, Kind};

/// Boots tried before systemd-boot counts an entry as bad (`+3` in its name; systemd.io/AUTOMATIC_BOOT_ASSESSMENT).
const TRIES: u32 = 3;
/// Seconds the boot menu is shown.
const MENU_SECONDS: u32 = 3;
/// The screen, and the serial line that servers' management controllers show; the last one is /dev/console.
const CONSOLES: &str = "console=tty0 console=ttyS0,115200";

/// What goes onto the partition.
#[derive(Debug, Clone)]
pub struct EspParts {
    /// CPU architecture.
    pub architecture: Architecture,
    /// systemd-boot for it.
    pub boot_loader: Content,
    /// The kernel, an EFI program.
    pub kernel: Content,
    /// The initramfs.
    pub initramfs: Content,
    /// GUID of the disk: how the initramfs finds its partitions.
    pub disk: Uuid,
    /// Name in the boot menu.
    pub title: String,
    /// Version of the image; systemd-boot sorts by it.
    pub version: String,
    /// Further kernel arguments, from the cluster file.
    pub kernel_args: Vec<String>,
}

/// The kernel command line of slot a (docs/contracts.md, section 4).
///
/// # Errors
/// A kernel argument that would break a boot loader entry.
fn kernel_command_line(disk: Uuid, kernel_args: &[String]) -> Result<String> {
    kernel_options(&format!("imgbuild.disk={disk} imgbuild.slot=a"), kernel_args)
}

/// Our own arguments, the consoles, and the cluster file's arguments.
///
/// # Errors
/// A kernel argument that would break a boot loader entry.
pub(super) fn kernel_options(ours: &str, kernel_args: &[String]) -> Result<String> {
    kernel_args.iter().try_for_each(|argument| check(argument))?;
    let all = [ours, CONSOLES].into_iter().chain(kernel_args.iter().map(String::as_str));
    Ok(all.collect::<Vec<_>>().join(" "))
}

/// A value in a boot loader entry ends with its line.
fn check(value: &str) -> Result<()> {
    if value.contains(['\n', '\r', '\0']) || value.trim().is_empty() {
        bail!("{value:?} cannot stand in a boot loader entry");
    }
    Ok(())
}

/// Where firmware looks for a boot loader on a disk it does not know (UEFI 3.5.1.1; LoongArch: edk2's `UefiSpec.h`), and
/// where systemd-boot's own tools look for it. Some early LoongArch firmware knows only the shorter name.
fn loader_paths(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::Amd64 => &["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"],
        Architecture::Loong64 => {
            &["EFI/BOOT/BOOTLOONGARCH64.EFI", "EFI/BOOT/BOOTLOONGARCH.EFI", "EFI/systemd/systemd-bootloongarch64.efi"]
        }
    }
}

/// The files of the EFI system partition.
///
/// # Errors
/// A title, version or kernel argument that would break a boot loader entry.
pub fn esp_tree(parts: &EspParts) -> Result<FileTree> {
    Menu {
        architecture: parts.architecture,
        boot_loader: &parts.boot_loader,
        kernel: &parts.kernel,
        initramfs: &parts.initramfs,
        folder: "imgbuild/a",
        version: &parts.version,
        seconds: MENU_SECONDS,
        default: "imgbuild-*",
        entries: vec![MenuEntry {
            name: format!("imgbuild-a+{TRIES}"),
            sort_key: "imgbuild".to_owned(),
            title: parts.title.clone(),
            options: kernel_command_line(parts.disk, &parts.kernel_args)?,
        }],
    }
    .tree()
}

/// systemd-boot, and what it offers: several ways to start one kernel with one initramfs.
pub(super) struct Menu<'a> {
    pub architecture: Architecture,
    pub boot_loader: &'a Content,
    pub kernel: &'a Content,
    pub initramfs: &'a Content,
    /// Where kernel and initramfs lie.
    pub folder: &'a str,
    /// Version of the image; systemd-boot sorts by it.
    pub version: &'a str,
    /// How long the menu is shown.
    pub seconds: u32,
    /// The entry that is started then: a pattern for file names.
    pub default: &'a str,
    pub entries: Vec<MenuEntry>,
}

/// A way to start it.
pub(super) struct MenuEntry {
    /// File name without `.conf`.
    pub name: String,
    /// The menu is sorted by it.
    pub sort_key: String,
    /// Name in the menu.
    pub title: String,
    /// The kernel command line.
    pub options: String,
}

impl Menu<'_> {
    /// The files of an EFI system partition.
    ///
    /// # Errors
    /// A title, version or command line that would break a boot loader entry.
    pub(super) fn tree(&self) -> Result<FileTree> {
        let Self { folder, version, seconds, default, .. } = self;
        let mut tree = FileTree::new();
        for path in loader_paths(self.architecture) {
            tree.insert(path, file(self.boot_loader))?;
        }
        tree.insert(&format!("{folder}/vmlinuz"), file(self.kernel))?;
        tree.insert(&format!("{folder}/initramfs.cpio.zst"), file(self.initramfs))?;
        let loader = format!("timeout {seconds}\ndefault {default}\nconsole-mode keep\n");
        tree.insert("loader/loader.conf", Entry::file(loader.into_bytes(), 0o644))?;
        for MenuEntry { name, sort_key, title, options } in &self.entries {
            [title.as_str(), *version, options.as_str()].into_iter().try_for_each(check)?;
            // The Boot Loader Specification, type 1 (uapi-group.org/specifications/specs/boot_loader_specification).
            let entry = format!(
                "title {title}\nsort-key {sort_key}\nversion {version}\nlinux /{folder}/vmlinuz\n\
                 initrd /{folder}/initramfs.cpio.zst\noptions {options}\n"
            );
            tree.insert(&format!("loader/entries/{name}.conf"), Entry::file(entry.into_bytes(), 0o644))?;
        }
        Ok(tree)
    }
}

fn file(content: &Content) -> Entry {
    Entry::new(Kind::File(content.clone()), 0o644)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::store::Store;

    fn parts(architecture: Architecture) -> EspParts {
        let bytes = |text: &str| Content::Bytes(text.as_bytes().into());
        EspParts {
            architecture,
            boot_loader: bytes("loader"),
            kernel: bytes("kernel"),
            initramfs: bytes("initramfs"),
            disk: crate::image::gpt::derive_guid("lab", "n", "disk"),
            title: "lab master-1".into(),
            version: "0.1.0".into(),
            kernel_args: vec!["quiet".into(), "mitigations=off".into()],
        }
    }

    fn names(tree: &FileTree) -> Vec<&str> {
        tree.iter().filter(|(_, entry)| matches!(entry.kind, Kind::File(_))).map(|(path, _)| path).collect()
    }

    #[test]
    fn each_architecture_has_its_names() {
        let common = [
            "imgbuild/a/initramfs.cpio.zst",
            "imgbuild/a/vmlinuz",
            "loader/entries/imgbuild-a+3.conf",
            "loader/loader.conf",
        ];
        let tree = esp_tree(&parts(Architecture::Amd64)).unwrap();
        assert_eq!(names(&tree), [&["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"][..], &common].concat());
        let tree = esp_tree(&parts(Architecture::Loong64)).unwrap();
        let own =
            ["EFI/BOOT/BOOTLOONGARCH.EFI", "EFI/BOOT/BOOTLOONGARCH64.EFI", "EFI/systemd/systemd-bootloongarch64.efi"];
        assert_eq!(names(&tree), [&own[..], &common].concat());
    }

    #[test]
    fn the_entry_reads_as_the_specification_says() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let parts = parts(Architecture::Amd64);
        let disk = parts.disk.to_string();
        let tree = esp_tree(&parts).unwrap();
        let Kind::File(content) = &tree.get("loader/entries/imgbuild-a+3.conf").unwrap().kind else { panic!() };
        assert_eq!(
            String::from_utf8(content.read(&store).unwrap()).unwrap().replace(&disk, "DISK"),
            "title lab master-1\nsort-key imgbuild\nversion 0.1.0\nlinux /imgbuild/a/vmlinuz\n\
             initrd /imgbuild/a/initramfs.cpio.zst\noptions imgbuild.disk=DISK \
             imgbuild.slot=a console=tty0 console=ttyS0,115200 quiet mitigations=off\n"
        );
    }

    #[test]
    fn a_line_break_in_an_argument_is_refused() {
        let mut parts = parts(Architecture::Amd64);
        parts.kernel_args.push("a\nlinux /evil".into());
        assert_eq!(
            esp_tree(&parts).unwrap_err().to_string(),
            "\"a\\nlinux /evil\" cannot stand in a boot loader entry"
        );
    }
}
