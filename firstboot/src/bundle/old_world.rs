// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a LoongArch host is of the old world: its own ABI of kernel and C library, with which nothing of ours runs.
//!
//! Kernels of the new world begin with 5.19, C libraries with glibc 2.36. The two C libraries have dynamic loaders of
//! different names, so the loader of any program of the host says which one it is (docs of "Are We Loong Yet", "old and new
//! worlds"). The object ABI version in the ELF header is no sure sign: early programs of the new world lack it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};

/// The dynamic loader of the old world.
const OLD_LOADER: &str = "/lib64/ld.so.1";
/// `PT_INTERP` of the ELF specification.
const INTERPRETER: u32 = 3;
/// A loader's path is never longer (`PATH_MAX`).
const LONGEST_PATH: u64 = 4096;

/// Why the host below `root`, whose kernel calls itself `release`, is of the old world; `None` if it is not.
pub(super) fn why(root: &Path, release: &str) -> Option<String> {
    if let Some((major, minor)) = version(release).filter(|version| *version < (5, 19)) {
        return Some(format!(
            "kernel {major}.{minor} ({release}) is of the old world, the first of the new one is 5.19"
        ));
    }
    // A shell that cannot be read or is static says nothing.
    let loader = loader(&root.join("bin/sh")).ok().flatten()?;
    (loader == OLD_LOADER).then(|| format!("/bin/sh has the loader {loader}: the C library is of the old world"))
}

/// `(6, 6)` of `6.6.0-32.7.v2505.ky11.loongarch64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

/// The dynamic loader that a 64-bit little-endian program asks for.
fn loader(program: &Path) -> Result<Option<String>> {
    let mut file = File::open(program).with_context(|| format!("opening {}", program.display()))?;
    let mut header = [0; 64];
    file.read_exact(&mut header).context("reading the ELF header")?;
    anyhow::ensure!(header.starts_with(b"\x7fELF\x02\x01"), "no 64-bit little-endian ELF file");
    let (table, size, count) = (u64_at(&header, 0x20), u16_at(&header, 0x36), u16_at(&header, 0x38));
    for index in 0..u64::from(count) {
        let at = index.checked_mul(size.into()).and_then(|skip| table.checked_add(skip)).context("a bad ELF header")?;
        let mut entry = [0; 56];
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut entry)).context("reading program headers")?;
        if u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) != INTERPRETER {
            continue;
        }
        let (offset, len) = (u64_at(&entry, 0x08), u64_at(&entry, 0x20).min(LONGEST_PATH));
        let mut path = Vec::new();
        file.seek(SeekFrom::Start(offset)).context("seeking to the loader's path")?;
        (&mut file).take(len).read_to_end(&mut path).context("reading the loader's path")?;
        path.truncate(path.iter().position(|byte| *byte == 0).unwrap_or(path.len()));
        return Ok(Some(String::from_utf8_lossy(&path).into_owned()));
    }
    Ok(None)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of one program header, which names `loader`.
    pub(crate) fn program(loader: &str) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[0x20] = 64;
        (bytes[0x36], bytes[0x38]) = (56, 1);
        bytes[64] = 3;
        bytes[64 + 0x08] = 64 + 56;
        bytes[64 + 0x20] = loader.len() as u8 + 1;
        bytes.extend_from_slice(loader.as_bytes());
        bytes.push(0);
        bytes
    }

    #[test]
    fn kernel_and_loader_tell() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("bin")).unwrap();
        let why = |loader: &str, release: &str| {
            std::fs::write(root.path().join("bin/sh"), program(loader)).unwrap();
            why(root.path(), release)
        };
        let new = "/lib64/ld-linux-loongarch-lp64d.so.1";
        assert_eq!(why(new, "6.6.0-32.7.v2505.ky11.loongarch64"), None);
        assert_eq!(why(new, "5.19.0"), None);
        assert!(why(new, "4.19.90-52.22.v2207.ky10").unwrap().starts_with("kernel 4.19"));
        assert!(why(new, "5.10.0-1").unwrap().starts_with("kernel 5.10"));
        assert!(why("/lib64/ld.so.1", "6.6.0").unwrap().contains("/lib64/ld.so.1"));
        for nonsense in [&b""[..], b"#!/bin/busybox", &program(new)[..70]] {
            std::fs::write(root.path().join("bin/sh"), nonsense).unwrap();
            assert_eq!(super::why(root.path(), "6.6.0"), None);
        }
    }

    /// By a real program, for what it is worth on another architecture.
    #[test]
    fn the_loader_of_this_machines_shell() {
        let loader = loader(Path::new("/bin/sh")).unwrap().unwrap();
        assert!(Path::new(&loader).exists(), "{loader}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0..120usize, with: u8) {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            let _ = loader(file.path());
            let mut program = program("/lib64/x");
            program[at] = with;
            std::fs::write(file.path(), &program).unwrap();
            let _ = loader(file.path());
        }
    }
}
