// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads the parts of ELF files that building needs: header, sections, symbols, and what the dynamic linker is asked
//! for. Reads by position, so that a large file costs only its tables. Knows nothing of trees or modules.
//!
//! Source: System V ABI, chapters 4 and 5 (ELF header, sections, program loading, dynamic linking).

use anyhow::{Context, Result, bail};

use crate::tree::OpenContent;

/// `e_machine` of the architectures imgbuild builds for.
pub mod machine {
    /// AMD x86-64.
    pub const X86_64: u16 = 62;
    /// LoongArch.
    pub const LOONGARCH: u16 = 258;
    /// 64-bit ARM.
    pub const AARCH64: u16 = 183;
    /// RISC-V.
    pub const RISCV: u16 = 243;
}

/// An open ELF file.
#[derive(Debug)]
pub struct Elf<'a> {
    from: &'a OpenContent,
    /// 64-bit.
    pub wide: bool,
    /// Least significant byte first.
    pub little: bool,
    /// `e_type`: 1 relocatable, 2 executable, 3 shared.
    pub kind: u16,
    /// `e_machine`; see [`machine`].
    pub machine: u16,
    /// `e_flags`.
    pub flags: u32,
    programs: Table,
    sections: Table,
    names: u16,
}

#[derive(Debug, Clone, Copy)]
struct Table {
    at: u64,
    size: u16,
    count: u16,
}

/// A section header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: String,
    kind: u32,
    at: u64,
    len: u64,
    link: u32,
}

/// A program header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    kind: u32,
    at: u64,
    address: u64,
    len: u64,
}

/// A named symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether this file defines it.
    pub defined: bool,
}

/// What a file asks of the dynamic linker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// The program interpreter (`PT_INTERP`).
    pub interpreter: Option<String>,
    /// The file's own name as a library (`DT_SONAME`).
    pub soname: Option<String>,
    /// Libraries it needs (`DT_NEEDED`).
    pub needed: Vec<String>,
    /// Where to look first (`DT_RUNPATH`, or `DT_RPATH`), split at colons.
    pub runpath: Vec<String>,
}

/// No name of a section, symbol or library is longer; the longest are C++'s. Without a bound, many names could share one string.
const LONGEST_NAME: usize = 4096;

const SYMTAB: u32 = 2;
const NOBITS: u32 = 8;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

/// A cursor over bytes in the file's byte order; running off the end is an error.
struct Fields<'a> {
    bytes: &'a [u8],
    little: bool,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().context("an ELF table ends too early")?;
        self.bytes = rest;
        Ok(*head)
    }
    fn u16(&mut self) -> Result<u16> {
        let raw = self.take()?;
        Ok(if self.little { u16::from_le_bytes(raw) } else { u16::from_be_bytes(raw) })
    }
    fn u32(&mut self) -> Result<u32> {
        let raw = self.take()?;
        Ok(if self.little { u32::from_le_bytes(raw) } else { u32::from_be_bytes(raw) })
    }
    fn u64(&mut self) -> Result<u64> {
        let raw = self.take()?;
        Ok(if self.little { u64::from_le_bytes(raw) } else { u64::from_be_bytes(raw) })
    }
    /// An address or offset: as wide as the file's class.
    fn word(&mut self, wide: bool) -> Result<u64> {
        if wide { self.u64() } else { Ok(self.u32()?.into()) }
    }
}

impl<'a> Elf<'a> {
    /// Reads the header. `None` if the file does not begin with the ELF magic.
    pub fn read(from: &'a OpenContent) -> Result<Option<Self>> {
        if from.len() < 16 {
            return Ok(None);
        }
        let head = from.read_at(0, from.len().min(64))?;
        if !head.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        let wide = match head[4] {
            1 => false,
            2 => true,
            class => bail!("ELF class {class} does not exist"),
        };
        let little = match head[5] {
            1 => true,
            2 => false,
            data => bail!("ELF byte order {data} does not exist"),
        };
        let mut f = Fields { bytes: &head[16..], little };
        let (kind, machine) = (f.u16()?, f.u16()?);
        f.u32()?;
        f.word(wide)?;
        let (phoff, shoff) = (f.word(wide)?, f.word(wide)?);
        let flags = f.u32()?;
        f.u16()?;
        let programs = Table { at: phoff, size: f.u16()?, count: f.u16()? };
        let sections = Table { at: shoff, size: f.u16()?, count: f.u16()? };
        let names = f.u16()?;
        Ok(Some(Self { from, wide, little, kind, machine, flags, programs, sections, names }))
    }

    fn table(&self, table: Table, least: u16) -> Result<Vec<u8>> {
        if table.count > 0 && table.size < least {
            bail!("ELF table entries of {} bytes are too small", table.size);
        }
        self.from.read_at(table.at, u64::from(table.size) * u64::from(table.count)).context("reading an ELF table")
    }

    /// All section headers.
    pub fn sections(&self) -> Result<Vec<Section>> {
        let raw = self.table(self.sections, if self.wide { 64 } else { 40 })?;
        let mut sections = Vec::with_capacity(self.sections.count.into());
        let mut names = Vec::with_capacity(self.sections.count.into());
        for header in raw.chunks_exact(usize::from(self.sections.size).max(1)) {
            let mut f = Fields { bytes: header, little: self.little };
            names.push(f.u32()?);
            let kind = f.u32()?;
            f.word(self.wide)?;
            f.word(self.wide)?;
            let (at, len) = (f.word(self.wide)?, f.word(self.wide)?);
            sections.push(Section { name: String::new(), kind, at, len, link: f.u32()? });
        }
        let Some(table) = sections.get(usize::from(self.names)) else { return Ok(sections) };
        let table = self.data(table)?;
        for (section, name) in sections.iter_mut().zip(names) {
            section.name = text_at(&table, name.into())?.to_owned();
        }
        Ok(sections)
    }

    /// The bytes of a section.
    pub fn data(&self, section: &Section) -> Result<Vec<u8>> {
        if section.kind == NOBITS {
            return Ok(Vec::new());
        }
        self.from.read_at(section.at, section.len).with_context(|| format!("reading ELF section `{}`", section.name))
    }

    /// Calls `each` with every named symbol of the static symbol table.
    pub fn symbols(&self, sections: &[Section], mut each: impl FnMut(Symbol<'_>)) -> Result<()> {
        for table in sections.iter().filter(|section| section.kind == SYMTAB) {
            let strings = sections.get(table.link as usize).context("a symbol table without strings")?;
            let (strings, raw) = (self.data(strings)?, self.data(table)?);
            for entry in raw.chunks_exact(if self.wide { 24 } else { 16 }) {
                let mut f = Fields { bytes: entry, little: self.little };
                let name = f.u32()?;
                // 64-bit: info, other, index; 32-bit: value, size, info, other, index.
                f.bytes = if self.wide { &f.bytes[2..] } else { &f.bytes[10..] };
                let index = f.u16()?;
                if name != 0 {
                    each(Symbol { name: text_at(&strings, name.into())?, defined: index != 0 });
                }
            }
        }
        Ok(())
    }

    fn segments(&self) -> Result<Vec<Segment>> {
        let raw = self.table(self.programs, if self.wide { 56 } else { 32 })?;
        raw.chunks_exact(usize::from(self.programs.size).max(1))
            .map(|header| {
                let mut f = Fields { bytes: header, little: self.little };
                let kind = f.u32()?;
                if self.wide {
                    f.u32()?;
                }
                let (at, address) = (f.word(self.wide)?, f.word(self.wide)?);
                f.word(self.wide)?;
                Ok(Segment { kind, at, address, len: f.word(self.wide)? })
            })
            .collect()
    }

    /// What the file asks of the dynamic linker; all empty for a static one.
    pub fn dynamic(&self) -> Result<Dynamic> {
        let segments = self.segments()?;
        let mut out = Dynamic::default();
        if let Some(interp) = segments.iter().find(|segment| segment.kind == PT_INTERP) {
            let raw = self.from.read_at(interp.at, interp.len).context("reading the program interpreter")?;
            out.interpreter = Some(text_at(&raw, 0)?.to_owned());
        }
        let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else { return Ok(out) };
        let raw = self.from.read_at(dynamic.at, dynamic.len).context("reading the dynamic section")?;
        let mut tags = Vec::new();
        for pair in raw.chunks_exact(if self.wide { 16 } else { 8 }) {
            let mut f = Fields { bytes: pair, little: self.little };
            match (f.word(self.wide)?, f.word(self.wide)?) {
                (0, _) => break,
                pair => tags.push(pair),
            }
        }
        let value = |tag: u64| tags.iter().find(|(t, _)| *t == tag).map(|(_, value)| *value);
        let (Some(address), Some(size)) = (value(5), value(10)) else { return Ok(out) };
        let at = segments
            .iter()
            .filter(|segment| segment.kind == PT_LOAD)
            .find_map(|segment| {
                let into = address.checked_sub(segment.address)?;
                (into < segment.len).then(|| segment.at.checked_add(into))?
            })
            .context("the dynamic string table is in no segment")?;
        let strings = self.from.read_at(at, size).context("reading the dynamic string table")?;
        for (tag, value) in &tags {
            match tag {
                1 => out.needed.push(text_at(&strings, *value)?.to_owned()),
                14 => out.soname = Some(text_at(&strings, *value)?.to_owned()),
                // DT_RPATH is ignored where there is a DT_RUNPATH (ld.so(8)).
                29 => out.runpath = text_at(&strings, *value)?.split(':').map(str::to_owned).collect(),
                15 if !tags.iter().any(|(tag, _)| *tag == 29) => {
                    out.runpath = text_at(&strings, *value)?.split(':').map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        Ok(out)
    }
}

/// The zero-terminated string at `at` of a string table.
fn text_at(table: &[u8], at: u64) -> Result<&str> {
    let tail = usize::try_from(at).ok().and_then(|at| table.get(at..)).context("a name outside of its string table")?;
    let end = tail.iter().take(LONGEST_NAME + 1).position(|byte| *byte == 0).unwrap_or(tail.len());
    if end > LONGEST_NAME {
        bail!("a name of more than {LONGEST_NAME} bytes");
    }
    std::str::from_utf8(&tail[..end]).context("a name that is not UTF-8")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use proptest::sample::Index;

    use super::{Elf, LONGEST_NAME, machine, text_at};
    use crate::tree::{Content, OpenContent};

    fn all(bytes: &[u8]) {
        let content = OpenContent::Bytes(bytes.into());
        if let Ok(Some(elf)) = Elf::read(&content) {
            let _ = elf.dynamic();
            if let Ok(sections) = elf.sections() {
                let _ = elf.symbols(&sections, |_| {});
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, head: bool, class in 1_u8..3, order in 1_u8..3) {
            if head {
                bytes.splice(0..0, [0x7f, b'E', b'L', b'F', class, order]);
            }
            all(&bytes);
        }

        #[test]
        fn a_damaged_file_never_panics(at: Index, value in any::<u8>(), cut: Index) {
            let mut bytes = std::fs::read("/bin/true").unwrap();
            // Headers are where damage hurts.
            let place = at.index(2048.min(bytes.len()));
            bytes[place] = value;
            all(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            all(&bytes);
        }
    }

    #[test]
    fn names_are_short() {
        let mut table = vec![b'a'; 3 * LONGEST_NAME];
        assert!(text_at(&table, 0).is_err());
        assert_eq!(text_at(&table, 2 * LONGEST_NAME as u64).unwrap().len(), LONGEST_NAME);
        table[LONGEST_NAME] = 0;
        assert_eq!(text_at(&table, 0).unwrap().len(), LONGEST_NAME);
        assert!(text_at(&table, u64::MAX).is_err());
    }

    #[test]
    fn reads_the_running_test() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let content = Content::Bytes(bytes.into());
        let store = tempfile::tempdir().unwrap();
        let content = content.open(&crate::store::Store::open(store.path()).unwrap()).unwrap();
        let elf = Elf::read(&content).unwrap().unwrap();
        let dynamic = elf.dynamic().unwrap();
        assert!(dynamic.needed.iter().any(|name| name.starts_with("libc.so")), "{dynamic:?}");
        assert!(dynamic.interpreter.is_some());
        assert!(elf.wide);
        assert_ne!(elf.machine, machine::RISCV + 1);
        assert!(elf.sections().unwrap().iter().any(|section| section.name == ".text"));
    }
}
