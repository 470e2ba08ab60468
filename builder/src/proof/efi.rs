// SPDX-License-Identifier: MIT OR Apache-2.0

//! Proves that what the firmware is to start can be started: a PE program for the right machine.
//!
//! Sources: the PE format's DOS stub, `e_lfanew` at 0x3c and `Machine` after the signature; UEFI specification, table
//! "PE32+ Machine Types". Kernels of LoongArch's old world are ELF files, which neither firmware nor systemd-boot start.

use anyhow::Result;
use profiles::node::Architecture;

use crate::error::Failure;
use crate::inputs::source::golang::goarch;
use crate::store::Store;
use crate::tree::Content;

/// `Machine` of a PE program.
pub(crate) fn machine(architecture: Architecture) -> u16 {
    match architecture {
        Architecture::Amd64 => 0x8664,
        Architecture::Loong64 => 0x6264,
    }
}

/// # Errors
/// If `content`, called `name` in the message, is no EFI program for `architecture`.
pub fn check(store: &Store, content: &Content, architecture: Architecture, name: &str) -> Result<()> {
    let open = content.open(store)?;
    let number = |at: u64, len: u64| -> Result<u64> {
        let bytes = open.read_at(at, len)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let wanted = goarch(architecture);
    let refuse = |what: String| {
        Failure::verification(format!("{name} {what}"))
            .hint("firmware and systemd-boot start EFI programs: bring one with an EFI stub (CONFIG_EFI_STUB), of the new world")
    };
    let magic = if open.len() < 0x40 { Vec::new() } else { open.read_at(0, 4)? };
    if !magic.starts_with(b"MZ") {
        let what = if magic == b"\x7fELF" { "is an ELF file" } else { "is no EFI program" };
        return Err(refuse(format!("{what}: it cannot be started")).into());
    }
    let header = number(0x3c, 4)?;
    if header.checked_add(6).is_none_or(|end| end > open.len())
        || number(header, 4)? != u64::from(u32::from_le_bytes(*b"PE\0\0"))
    {
        return Err(refuse("is no EFI program: it has no PE header".into()).into());
    }
    let found = number(header + 4, 2)?;
    if found != u64::from(machine(architecture)) {
        return Err(refuse(format!("is for another machine than {wanted} (PE machine {found:#x})")).into());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use super::*;

    /// An EFI program for a machine, as far as anybody looks.
    pub(crate) fn pe(machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 0x80];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x40;
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        bytes[0x44..0x46].copy_from_slice(&machine.to_le_bytes());
        bytes
    }

    #[test]
    fn only_a_program_of_the_right_machine_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let look = |bytes: Vec<u8>| {
            check(&store, &Content::Bytes(bytes.into()), Architecture::Loong64, "the kernel 1")
                .map_err(|e| e.to_string())
        };
        assert_eq!(look(pe(0x6264)), Ok(()));
        let mut elf = b"\x7fELF".to_vec();
        elf.resize(100, 0);
        let mut far = pe(0x6264);
        far[0x3c..0x40].fill(0xff);
        for (bytes, problem) in [
            (pe(0x8664), "the kernel 1 is for another machine than loong64 (PE machine 0x8664)"),
            (elf, "the kernel 1 is an ELF file: it cannot be started"),
            (far, "the kernel 1 is no EFI program: it has no PE header"),
            (b"MZ".to_vec(), "the kernel 1 is no EFI program: it cannot be started"),
            (vec![], "the kernel 1 is no EFI program: it cannot be started"),
        ] {
            assert_eq!(look(bytes).unwrap_err(), problem);
        }
    }
}
