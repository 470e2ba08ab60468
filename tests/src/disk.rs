// SPDX-License-Identifier: MIT OR Apache-2.0

//! Looks into a disk image and takes partitions out of it, independent of the builder's own code.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::qemu::overlay;
use crate::tool::{run, run_bytes, tool};

const SECTOR: u64 = 512;
/// Type of an EFI system partition, C12A7328-F81F-11D2-BA4B-00A0C93EC93B, as a GPT stores it.
const ESP: [u8; 16] = [0x28, 0x73, 0x2A, 0xC1, 0x1F, 0xF8, 0xD2, 0x11, 0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B];
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

/// The EFI system partition, by its type, whatever its label is.
pub fn esp(image: &Path) -> Partition {
    let all = partitions(image);
    let found = all.iter().find(|p| p.kind == ESP).cloned();
    found.unwrap_or_else(|| panic!("no EFI system partition in {}, but {all:?}", image.display()))
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
    run_bytes(tool("mcopy").env("MTOOLS_SKIP_CHECK", "1").args([
        "-i",
        &fat(image, &partition(image, name)),
        &format!("::{path}"),
        "-",
    ]))
}

/// Files of a squashfs, by `unsquashfs -lln`: the path of each without a slash before it, and its line.
pub fn listing(image: &Path) -> Vec<(String, String)> {
    let text = run(tool("unsquashfs").arg("-lln").arg(image));
    let lines = text.lines().filter_map(|line| Some((line.split_once("squashfs-root")?.1.to_owned(), line.to_owned())));
    lines.map(|(path, line)| (path.split(" -> ").next().unwrap().trim_start_matches('/').to_owned(), line)).collect()
}

/// A file of a squashfs that is text.
pub fn cat(image: &Path, path: &str) -> String {
    String::from_utf8(cat_bytes(image, path)).unwrap_or_else(|error| panic!("{path} is no text: {error}"))
}

/// A file of a squashfs.
pub fn cat_bytes(image: &Path, path: &str) -> Vec<u8> {
    run_bytes(tool("unsquashfs").arg("-cat").arg(image).arg(path))
}

/// Paths of the boot entries on the EFI system partition, of which there is at least one.
pub fn boot_entries(image: &Path) -> Vec<String> {
    let entries = ["-b", "-i", &fat(image, &esp(image)), "::loader/entries"];
    let listing = run(tool("mdir").env("MTOOLS_SKIP_CHECK", "1").args(entries));
    let entries = listing.lines().filter(|line| line.ends_with(".conf"));
    let entries: Vec<String> =
        entries.map(|entry| entry.trim_start_matches("::").trim_start_matches('/').to_owned()).collect();
    assert!(!entries.is_empty(), "no boot entry in {}", image.display());
    entries
}

/// The value of a key that a boot entry has once.
///
/// # Panics
/// If it has the key more often, or not.
pub fn entry_value<'a>(entry: &'a str, key: &str) -> &'a str {
    let mut values = entry.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix([' ', '\t']));
    let (value, more) = (values.next(), values.next());
    value.filter(|_| more.is_none()).unwrap_or_else(|| panic!("not one `{key}` in\n{entry}")).trim()
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
    for path in boot_entries(image) {
        let text = String::from_utf8(read_fat(image, "ESP", &path)).expect("boot entries are text");
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

/// Copies an installation image to `target` with another default in its boot menu: `entry` is the name of a file below
/// `loader/entries`. Nobody is there to press a key.
pub fn with_default_entry(image: &Path, target: &Path, entry: &str) {
    const CONFIGURATION: &str = "::loader/loader.conf";
    copy(image, target);
    let fat = fat(target, &esp(target));
    let mtool = |program: &str| {
        let mut command = tool(program);
        command.env("MTOOLS_SKIP_CHECK", "1").args(["-i", &fat]);
        command
    };
    let entries = boot_entries(target);
    assert!(entries.contains(&format!("loader/entries/{entry}")), "no boot entry {entry}, but {entries:?}");
    let old = run(mtool("mcopy").args([CONFIGURATION, "-"]));
    let new = another_default(&old, entry).unwrap_or_else(|| panic!("loader.conf has no default:\n{old}"));
    let mut file = tempfile::NamedTempFile::new().expect("making a temporary file");
    file.write_all(new.as_bytes()).unwrap();
    run(mtool("mcopy").arg("-o").arg(file.path()).arg(CONFIGURATION));
}

/// A configuration of systemd-boot whose default is `entry`; nothing if it has no default.
fn another_default(configuration: &str, entry: &str) -> Option<String> {
    let line = |line: &str| match line.starts_with("default ") {
        true => format!("default {entry}\n"),
        false => format!("{line}\n"),
    };
    configuration.lines().any(|line| line.starts_with("default ")).then(|| configuration.lines().map(line).collect())
}

/// Checks that a machine's disk, which is `overlay` over `backing`, holds what `backing` does: every byte of it.
pub fn is_unchanged(overlay: &Path, backing: &Path) {
    run(tool("qemu-img").args(["compare", "-f", "qcow2", "-F", "raw"]).args([overlay, backing]));
}

/// The first MiB of a machine's disk, which is off, as a file.
pub fn first_mib(disk: &Path, target: &Path) -> PathBuf {
    let of = |key: &str, path: &Path| format!("{key}={}", path.display());
    let files = [of("if", disk), of("of", target)];
    run(tool("qemu-img").args(["dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=1"]).args(files));
    target.to_owned()
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
fn fat(image: &Path, partition: &Partition) -> String {
    format!("{}@@{}", image.display(), partition.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_entry_is_read() {
        let entry = "title imgbuild\nlinux /a/vmlinuz\ninitrd  /a/initramfs\noptions a=1 b\n";
        assert_eq!((entry_value(entry, "initrd"), entry_value(entry, "options")), ("/a/initramfs", "a=1 b"));
    }

    #[test]
    #[should_panic(expected = "not one `initrd`")]
    fn two_initramfs_are_refused() {
        entry_value("initrd /a\ninitrd /b\n", "initrd");
    }

    #[test]
    fn the_kernel_gets_one_more_argument() {
        let entry = "title imgbuild\nlinux /a\noptions imgbuild.slot=a console=ttyS0\n";
        let with = "title imgbuild\nlinux /a\noptions imgbuild.slot=a console=ttyS0 systemd.debug_shell=ttyS1\n";
        assert_eq!(one_more_argument(entry).unwrap(), with);
        assert_eq!(one_more_argument("title imgbuild\n"), None);
    }

    #[test]
    fn the_menu_gets_another_default() {
        let old = "timeout 10\ndefault imgbuild-auto.conf\nconsole-mode keep\n";
        let new = "timeout 10\ndefault imgbuild-rescue.conf\nconsole-mode keep\n";
        assert_eq!(another_default(old, "imgbuild-rescue.conf").unwrap(), new);
        assert_eq!(another_default("timeout 10\n", "imgbuild-rescue.conf"), None);
    }

    #[test]
    fn a_disk_is_compared_with_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (raw, disk) = (folder.path().join("raw"), folder.path().join("disk.qcow2"));
        let mut bytes = vec![0; 3 << 20];
        bytes[7] = 1;
        fs::write(&raw, &bytes).unwrap();
        overlay(&raw, &disk);
        is_unchanged(&disk, &raw);
        run(tool("qemu-io").args(["-f", "qcow2", "-c", "write -q -P 5 2M 512"]).arg(&disk));
        let compared = std::panic::catch_unwind(|| is_unchanged(&disk, &raw));
        let message = *compared.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains(&(2 << 20).to_string()), "{message}");
        assert!(fs::read(first_mib(&disk, &folder.path().join("first"))).unwrap() == bytes[..1 << 20]);
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
