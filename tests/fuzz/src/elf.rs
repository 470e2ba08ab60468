// SPDX-License-Identifier: MIT OR Apache-2.0

//! ELF files, as programs and as kernel modules, and the EFI programs that firmware starts.

use imgbuild::elf::Elf;
use imgbuild::proof::efi;
use imgbuild::tree::{Content, OpenContent};
use profiles::node::Architecture;

use crate::store;

/// Reads `data` as each of them.
pub fn run(data: &[u8]) {
    let open = OpenContent::Bytes(data.into());
    if let Ok(Some(elf)) = Elf::read(&open) {
        let _ = elf.dynamic();
        if let Ok(sections) = elf.sections() {
            for section in sections.iter().take(8) {
                let _ = elf.data(section);
            }
            let _ = elf.symbols(&sections, |_| {});
        }
    }
    for architecture in [Architecture::Amd64, Architecture::Loong64] {
        let _ = efi::check(store(), &Content::Bytes(data.into()), architecture, "it");
    }
}

/// What the target begins with: what the C library's packages have, where they are installed.
pub fn seeds() -> Vec<Vec<u8>> {
    let there = ["/bin/true", "/usr/lib/x86_64-linux-gnu/crt1.o", "/usr/lib/loongarch64-linux-gnu/crt1.o"];
    let mut seeds: Vec<Vec<u8>> = there.iter().filter_map(|path| std::fs::read(path).ok()).collect();
    let mut efi = vec![0; 0x86];
    efi[..2].copy_from_slice(b"MZ");
    efi[0x3c] = 0x80;
    efi[0x80..].copy_from_slice(b"PE\0\0\x64\x86");
    seeds.push(efi);
    seeds
}
