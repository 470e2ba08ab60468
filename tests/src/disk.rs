// SPDX-License-Identifier: MIT OR Apache-2.0

//! Looks into a disk image and takes partitions out of it, independent of the builder's own code.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::qemu::overlay;
use crate::tool::{run, run_bytes, tool};

const SECTOR: u64 = 512;
/// The kernel argument for which systemd starts a root shell on the second serial line (systemd-debug-generator(8)).
pub const DEBUG_SHELL: &str = "systemd.debug_shell=ttyS1";

/// An entry of a partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Label.
    pub name: String,
    /// Type, as stored: mixed-endian.
    pub kind: [u8; 16],
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Reads the GPT at the start of `image`. `sgdisk -v` judges it; this only finds things.
pub fn partitions(image: &Path) -> Vec<Partition> {
    let file = File::open(image).unwrap_or_else(|error| panic!("opening {}: {error}", image.display()));
    let read = |offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).expect("reading the partition table");
        bytes
    };
    let u32_at = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let header = read(SECTOR, 92);
    assert_eq!(&header[..8], b"EFI PART", "no GPT in {}", image.display());
    let (first, count, size) = (u64_at(&header, 72), u32_at(&header, 80) as usize, u32_at(&header, 84) as usize);
    read(first * SECTOR, count * size)
        .chunks(size)
        .filter(|entry| entry[..16] != [0; 16])
        .map(|entry| {
            let name = entry[56..128].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).take_while(|c| *c != 0);
            Partition {
                name: String::from_utf16(&name.collect::<Vec<u16>>()).expect("labels are UTF-16"),
                kind: entry[..16].try_into().unwrap(),
                offset: u64_at(entry, 32) * SECTOR,
                len: (u64_at(entry, 40) + 1 - u64_at(entry, 32)) * SECTOR,
            }
        })
        .collect()
}

/// The partition labelled `name`.
pub fn partition(image: &Path, name: &str) -> Partition {
    let all = partitions(image);
    let found = all.iter().find(|p| p.name == name).cloned();
    found.unwrap_or_else(|| panic!("no partition `{name}` in {}, but {all:?}", image.display()))
}

/// Copies the partition labelled `name` to a file of its own, holes as holes.
pub fn extract(image: &Path, name: &str, target: &Path) -> PathBuf {
    let found = partition(image, name);
    let mut from = File::open(image).unwrap();
    from.seek(SeekFrom::Start(found.offset)).unwrap();
    let mut to = File::create(target).unwrap_or_else(|error| panic!("creating {}: {error}", target.display()));
    to.set_len(found.len).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut left = found.len;
    while left > 0 {
        let n = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        from.read_exact(&mut buffer[..n]).expect("the image ends inside a partition");
        if buffer[..n].iter().any(|byte| *byte != 0) {
            to.write_all(&buffer[..n]).unwrap();
        } else {
            to.seek(SeekFrom::Current(n as i64)).unwrap();
        }
        left -= n as u64;
    }
    target.to_owned()
}

/// Copies one file out of the FAT filesystem in the partition labelled `name`.
pub fn read_fat(image: &Path, name: &str, path: &str) -> Vec<u8> {
    run_bytes(tool("mcopy").env("MTOOLS_SKIP_CHECK", "1").args(["-i", &fat(image, name), &format!("::{path}"), "-"]))
}

/// Makes a qcow2 overlay over `image` that gives the kernel one more argument, so that systemd starts a root shell on the
/// second serial line. No other byte differs, and the image is not written to.
pub fn debug_overlay(image: &Path, target: &Path) {
    overlay(image, target);
    let esp = partition(image, "ESP");
    let scratch = tempfile::tempdir().expect("making a temporary folder");
    let old = extract(image, "ESP", &scratch.path().join("old"));
    let new = scratch.path().join("new");
    copy(&old, &new);
    let file = new.to_str().expect("paths of the tests are UTF-8");
    let listing = run(tool("mdir").args(["-b", "-i", file, "::loader/entries"]));
    let entries: Vec<&str> = listing.lines().filter(|line| line.ends_with(".conf")).collect();
    assert!(!entries.is_empty(), "no boot entry in {}", image.display());
    for entry in entries {
        let path = entry.trim_start_matches("::").trim_start_matches('/');
        let text = String::from_utf8(read_fat(image, "ESP", path)).expect("boot entries are text");
        let own = scratch.path().join("entry");
        fs::write(
            &own,
            one_more_argument(&text).unwrap_or_else(|| panic!("boot entry {path} has no options:\n{text}")),
        )
        .unwrap();
        run(tool("mcopy").args(["-o", "-i", file]).arg(own).arg(format!("::{path}")));
    }
    for (offset, bytes) in differences(&old, &new) {
        let changed = scratch.path().join("changed");
        fs::write(&changed, &bytes).unwrap();
        let write = format!("write -q -s {} {} {}", changed.display(), esp.offset + offset, bytes.len());
        run(tool("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(target));
    }
}

/// A boot entry whose kernel starts a root shell on the second serial line; nothing if it has no options.
fn one_more_argument(entry: &str) -> Option<String> {
    let line = |line: &str| match line.starts_with("options") {
        true => format!("{line} {DEBUG_SHELL}\n"),
        false => format!("{line}\n"),
    };
    entry.lines().any(|line| line.starts_with("options")).then(|| entry.lines().map(line).collect())
}

/// The blocks in which two files of one length differ, with their offsets: from the second file.
fn differences(old: &Path, new: &Path) -> Vec<(u64, Vec<u8>)> {
    const BLOCK: usize = 64 << 10;
    let [mut old, mut new] = [old, new].map(|path| File::open(path).unwrap());
    let len = new.metadata().unwrap().len();
    assert_eq!(old.metadata().unwrap().len(), len, "files of one length");
    let (mut found, mut at) = (vec![], 0);
    while at < len {
        let size = BLOCK.min(usize::try_from(len - at).unwrap_or(BLOCK));
        let [ours, theirs] = [&mut new, &mut old].map(|file| {
            let mut bytes = vec![0; size];
            file.read_exact(&mut bytes).unwrap();
            bytes
        });
        if ours != theirs {
            found.push((at, ours));
        }
        at += size as u64;
    }
    found
}

/// Copies a file, shared blocks or holes where the filesystem has them.
pub fn copy(from: &Path, to: &Path) {
    let mut command = std::process::Command::new("cp");
    run(command.args(["--reflink=auto", "--sparse=always"]).args([from, to]));
}

/// How mtools names a filesystem inside an image.
fn fat(image: &Path, name: &str) -> String {
    format!("{}@@{}", image.display(), partition(image, name).offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gets_one_more_argument() {
        let entry = "title imgbuild\nlinux /a\noptions imgbuild.slot=a console=ttyS0\n";
        let with = "title imgbuild\nlinux /a\noptions imgbuild.slot=a console=ttyS0 systemd.debug_shell=ttyS1\n";
        assert_eq!(one_more_argument(entry).unwrap(), with);
        assert_eq!(one_more_argument("title imgbuild\n"), None);
    }

    #[test]
    fn only_blocks_that_differ_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let mut bytes = vec![1; (64 << 10) * 2 + 10];
        fs::write(&old, &bytes).unwrap();
        bytes[(64 << 10) * 2 + 3] = 2;
        fs::write(&new, &bytes).unwrap();
        assert_eq!(differences(&old, &new), [((64 << 10) * 2, bytes[(64 << 10) * 2..].to_vec())]);
        assert_eq!(differences(&old, &old), []);
    }
}
