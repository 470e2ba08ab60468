// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stand-ins for what others publish and this repository has not: programs that run, and archives as GNU tar packs
//! them.

use std::path::Path;
use std::process::Command;

use crate::tool::run;

/// A static program for x86-64 that ends at once and well. It has `name` in it, and so is no other's.
///
/// Source: System V ABI, chapters 4 and 5, and its supplement for AMD64: a header, one segment, and no section.
pub fn program(name: &str) -> Vec<u8> {
    /// Where programs are loaded that do not care.
    const ADDRESS: u64 = 0x40_0000;
    /// Bytes of an ELF header, of a program header, and of a section header, of which there is none.
    const SIZES: [u16; 3] = [64, 56, 64];
    /// `mov $60,%eax; xor %edi,%edi; syscall`: exit(0).
    const CODE: [u8; 9] = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let [header, segment, section] = SIZES;
    let start = u64::from(header + segment);
    let len = start + CODE.len() as u64 + name.len() as u64;
    // 64-bit, least significant byte first, version 1; then zeros.
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // An executable, for machine 62.
    for half in [2, 62_u16] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes());
    // Where it begins, where the segments are described, where the sections are.
    for word in [ADDRESS + start, u64::from(header), 0] {
        elf.extend(word.to_le_bytes());
    }
    // No flags.
    elf.extend(0_u32.to_le_bytes());
    for half in [header, segment, 1, section, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // The segment: loaded, to be read and executed; the whole file.
    for half in [1, 5_u32] {
        elf.extend(half.to_le_bytes());
    }
    for word in [0, ADDRESS, ADDRESS, len, len, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(CODE);
    elf.extend(name.as_bytes());
    elf
}

/// GNU tar: `paths` of `folder` into `to`, compressed as its name says, everything root's.
pub fn pack(folder: &Path, to: &Path, paths: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--auto-compress",
        "--sort=name",
        "--numeric-owner",
        "--owner=0",
        "--group=0",
        "--mtime=@1750000000",
    ]);
    tar.env("ZSTD_CLEVEL", "1").arg("--file").arg(to).arg("--directory").arg(folder).args(paths);
    run(&mut tar);
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::tool::command;

    #[test]
    fn a_program_runs_and_is_no_other() {
        assert_ne!(program("kubeadm"), program("kubelet"));
        let folder = tempfile::tempdir().unwrap();
        let (bytes, runs) = (folder.path().join("bytes"), folder.path().join("program"));
        fs::write(&bytes, program("kubeadm")).unwrap();
        fs::set_permissions(&bytes, fs::Permissions::from_mode(0o755)).unwrap();
        // A copy by another process: what this one had open to write, a child of another test may still have open.
        run(Command::new("cp").args([&bytes, &runs]));
        assert_eq!(run(&mut command(&runs)), "");
    }
}
