// SPDX-License-Identifier: MIT OR Apache-2.0

//! The files that are handed out: those below one folder, and boot programs by their names. What a client asks for is
//! never joined to a path: the kernel resolves it, below the folder and without following links.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiles::node::Architecture;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::error::Failure;
use crate::proof::efi;

/// What a boot program runs on, by how firmware asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Firmware {
    /// x86 BIOS.
    Bios,
    /// UEFI on x86_64.
    Amd64,
    /// UEFI on loongarch64.
    Loong64,
}

/// What is handed out.
#[derive(Debug)]
pub struct Folder {
    folder: OwnedFd,
    /// Boot programs from elsewhere: file, and the firmware that runs it, by name.
    extra: BTreeMap<String, (PathBuf, Firmware)>,
}

/// A file to hand out.
#[derive(Debug)]
pub struct Found {
    /// It, open for reading.
    pub file: File,
    /// Its length in bytes.
    pub len: u64,
}

impl Folder {
    /// The files below `folder`, and `boot_files`.
    ///
    /// # Errors
    /// A folder without a boot menu, a boot program that is no file or has the name of another.
    pub fn open(folder: &Path, boot_files: &[PathBuf]) -> Result<Self> {
        let shown = folder.display();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| {
            Failure::user(format!("opening the folder {shown}"))
                .hint("`imgbuild build --output pxe` makes one, <out>/<cluster>-pxe")
                .caused_by(error)
        })?;
        let mut found = Self { folder: fd, extra: BTreeMap::new() };
        for path in boot_files {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let firmware = firmware(path)?;
            if found.get(&name).is_ok() {
                let message = format!("{name} is the name of two files that would be handed out");
                return Err(Failure::user(message).hint("rename one of them").into());
            }
            found.extra.insert(name, (path.clone(), firmware));
        }
        Ok(found)
    }

    /// The boot program for each kind of firmware: of several, the last given.
    pub fn boot_files(&self) -> BTreeMap<Firmware, String> {
        self.extra.iter().map(|(name, (_, firmware))| (*firmware, name.clone())).collect()
    }

    /// The file that a client calls `name`: a path from the folder, with or without a leading slash.
    ///
    /// # Errors
    /// `NotFound` for what is not there, leads out of the folder or through a link, or is no file; else failing I/O.
    pub fn get(&self, name: &str) -> io::Result<Found> {
        let none = || io::Error::from(io::ErrorKind::NotFound);
        let name = name.trim_start_matches('/');
        if name.is_empty() || name.contains('\0') {
            return Err(none());
        }
        let file = match self.extra.get(name) {
            Some((path, _)) => File::open(path)?,
            None => {
                // Not blocking: a pipe in the folder must not hold a server up.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                match openat2(&self.folder, name, flags, Mode::empty(), inside) {
                    Ok(file) => File::from(file),
                    Err(
                        rustix::io::Errno::XDEV
                        | rustix::io::Errno::LOOP
                        | rustix::io::Errno::NOTDIR
                        | rustix::io::Errno::NAMETOOLONG
                        | rustix::io::Errno::NXIO,
                    ) => return Err(none()),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(none());
        }
        Ok(Found { len: meta.len(), file })
    }
}

/// What runs a boot program: a PE program says so itself (`Machine` of the PE format), anything else is for a BIOS.
fn firmware(path: &Path) -> Result<Firmware> {
    let opening = || format!("opening the boot program {}", path.display());
    let file = File::open(path).map_err(|e| Failure::user(opening()).caused_by(e))?;
    let mut head = vec![0; 4096];
    let len = file.read_at(&mut head, 0).with_context(opening)?;
    head.truncate(len);
    if !head.starts_with(b"MZ") {
        return Ok(Firmware::Bios);
    }
    let at = head.get(0x3c..0x40).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes) as usize;
    let header = head.get(at..).unwrap_or_default();
    let machine = header.get(4..6).filter(|_| header.starts_with(b"PE\0\0"));
    match machine.map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])) {
        Some(machine) if machine == efi::machine(Architecture::Amd64) => Ok(Firmware::Amd64),
        Some(machine) if machine == efi::machine(Architecture::Loong64) => Ok(Firmware::Loong64),
        _ => {
            let message = format!("{} is an EFI program, but neither for x86_64 nor for loongarch64", path.display());
            Err(Failure::user(message).hint("give iPXE or GRUB for the machines' own processor").into())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::proof::efi::tests::pe;

    #[test]
    fn only_files_below_the_folder_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("pxe");
        std::fs::create_dir_all(root.join("nodes")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::write(root.join("nodes/a"), "inside").unwrap();
        symlink("../secret", root.join("link")).unwrap();
        symlink("nodes", root.join("folder-link")).unwrap();
        symlink("nodes/a", root.join("inner-link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), Mode::RUSR).unwrap();
        let folder = Folder::open(&root, &[]).unwrap();
        let read = |name: &str| {
            let mut text = String::new();
            folder.get(name).map(|mut found| {
                found.file.read_to_string(&mut text).unwrap();
                assert_eq!(found.len, text.len() as u64);
                text
            })
        };
        for name in ["nodes/a", "/nodes/a", "//nodes/a", "./nodes/a", "nodes/../nodes/a"] {
            assert_eq!(read(name).unwrap(), "inside", "{name}");
        }
        let secret = dir.path().join("secret");
        let absolute = format!("nodes/../..{}", secret.display());
        for name in [
            "../secret",
            "/../secret",
            "nodes/../../secret",
            "link",
            "folder-link/a",
            "inner-link",
            "pipe",
            "nodes",
            "",
            "/",
            ".",
            "none",
            "nodes/a/b",
            "a\0b",
            &absolute,
            &"x".repeat(10_000),
            "/etc/passwd",
            "//etc/passwd",
            "/proc/self/root/etc/passwd",
        ] {
            let error = read(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name}: {error}");
        }
    }

    #[test]
    fn boot_programs_are_known_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            dir.path().join(name)
        };
        let root = dir.path().join("pxe");
        std::fs::create_dir(&root).unwrap();
        let files = [
            put("ipxe.efi", &pe(0x8664)),
            put("grubloongarch64.efi", &pe(0x6264)),
            put("undionly.kpxe", b"\xea\x05\x00"),
        ];
        let folder = Folder::open(&root, &files).unwrap();
        let names: Vec<_> = folder.boot_files().into_iter().collect();
        let wanted = [
            (Firmware::Bios, "undionly.kpxe"),
            (Firmware::Amd64, "ipxe.efi"),
            (Firmware::Loong64, "grubloongarch64.efi"),
        ];
        assert_eq!(names, wanted.map(|(firmware, name)| (firmware, name.to_owned())));
        assert_eq!(folder.get("ipxe.efi").unwrap().len, 0x80);
        let refused = |files: &[PathBuf]| Folder::open(&root, files).unwrap_err().to_string();
        assert!(refused(&[put("arm.efi", &pe(0xaa64))]).contains("neither for x86_64"));
        assert!(refused(&[put("cut.efi", b"MZ")]).contains("neither for x86_64"));
        assert!(refused(&[dir.path().join("none")]).contains("opening the boot program"));
        std::fs::write(root.join("ipxe.efi"), "x").unwrap();
        assert!(refused(&files).contains("ipxe.efi is the name of two files"));
        assert!(Folder::open(&dir.path().join("none"), &[]).is_err());
    }
}
