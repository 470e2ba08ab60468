// SPDX-License-Identifier: MIT OR Apache-2.0

//! newc cpio archives, as the Linux kernel reads them for an initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` and `init/initramfs.c` of Linux).

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result, bail};

use super::zst;
use crate::store::Store;
use crate::tree::{Entry, FileTree, Kind};

/// Window of the zstd frame: 8 MiB, the largest every zstd decoder must take (RFC 8878, 3.1.1.1.2). The kernel would take
/// 128 MiB (`lib/decompress_unzstd.c`), and needs that much memory beside the unpacked files for it.
const WINDOW_LOG: u32 = 23;

/// Writes the archive of `tree`: sorted, inode numbers in order, no time after `epoch`, device numbers 0.
///
/// # Errors
/// A file of 4 GiB or more, a hard link that leads nowhere, or failing I/O. Extended attributes have no place and are left out.
pub fn write(tree: &FileTree, store: &Store, epoch: u32, out: &mut impl Write) -> Result<()> {
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    let mut links: BTreeMap<&str, u32> = BTreeMap::new();
    for (_, entry) in tree.iter() {
        if let Kind::HardLink(target) = &entry.kind {
            *links.entry(target).or_insert(1) += 1;
        }
    }
    let mut next = 0;
    for (path, entry) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let (file, entry) = match &entry.kind {
            Kind::HardLink(target) => (target.as_str(), tree.get(target).context("a hard link leads nowhere")?),
            _ => (path, entry),
        };
        // The first name brings the bytes; the kernel links the others to it by inode number.
        let known = numbers.get(file).copied();
        let number = known.unwrap_or_else(|| {
            next += 1;
            numbers.insert(file, next);
            next
        });
        let header = Header { number, links: links.get(file).copied().unwrap_or(1), epoch, first: known.is_none() };
        put_entry(out, store, path, entry, &header).with_context(|| format!("archiving `{path}`"))?;
    }
    let end = header_text(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], "TRAILER!!!");
    out.write_all(&end).context("writing the cpio archive")
}

/// As [`write`](fn@write), compressed with zstd: the same bytes for any number of `jobs`.
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_zstd(
    tree: &FileTree,
    store: &Store,
    epoch: u32,
    level: i32,
    jobs: usize,
    out: &mut impl Write,
) -> Result<()> {
    // A job bounds memory: by default it is four windows, and several are in flight.
    let options = zst::Options { level, window_log: WINDOW_LOG, job_size: 4 << 20, jobs };
    zst::compress(out, &options, |out| write(tree, store, epoch, out)).context("compressing the cpio archive")
}

struct Header {
    number: u32,
    links: u32,
    epoch: u32,
    first: bool,
}

fn put_entry(out: &mut impl Write, store: &Store, path: &str, entry: &Entry, header: &Header) -> Result<()> {
    // File types of `sys/stat.h`.
    let (kind, device) = match &entry.kind {
        Kind::Dir => (0o040_000, (0, 0)),
        Kind::File(_) => (0o100_000, (0, 0)),
        Kind::Symlink(_) => (0o120_000, (0, 0)),
        Kind::CharDevice { major, minor } => (0o020_000, (*major, *minor)),
        Kind::BlockDevice { major, minor } => (0o060_000, (*major, *minor)),
        Kind::Fifo => (0o010_000, (0, 0)),
        Kind::HardLink(_) => bail!("a hard link to a hard link"),
    };
    let len = match &entry.kind {
        Kind::File(content) if header.first => content.len(),
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    };
    let len = u32::try_from(len).context("a file of 4 GiB or more does not fit into a cpio archive")?;
    let links = if matches!(entry.kind, Kind::Dir) { 2 } else { header.links };
    let fields = [
        header.number,
        kind | u32::from(entry.mode & 0o7777),
        entry.uid,
        entry.gid,
        links,
        entry.mtime.min(header.epoch),
        len,
        0,
        0,
        device.0,
        device.1,
    ];
    out.write_all(&header_text(&fields, path)).context("writing the cpio archive")?;
    match &entry.kind {
        Kind::File(content) if header.first => {
            let copied = std::io::copy(&mut content.reader(store)?, out).context("copying a file")?;
            if copied != u64::from(len) {
                bail!("the file has {copied} bytes, expected {len}");
            }
        }
        Kind::Symlink(target) => out.write_all(target.as_bytes()).context("writing the cpio archive")?,
        _ => {}
    }
    out.write_all(&[0; 3][..pad(len as usize)]).context("writing the cpio archive")
}

/// Magic, 13 numbers of 8 hex digits (the last two: length of the name, checksum), the name, and zeros to a multiple of 4.
fn header_text(fields: &[u32; 11], name: &str) -> Vec<u8> {
    let mut out = b"070701".to_vec();
    for field in fields.iter().chain(&[name.len() as u32 + 1, 0]) {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len() + pad(out.len()), 0);
    out
}

fn pad(len: usize) -> usize {
    len.next_multiple_of(4) - len
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::image::testing::{store, text, tool_ok};

    fn sample() -> FileTree {
        let mut tree = FileTree::new();
        let mut put = |path: &str, entry: Entry| tree.insert(path, entry).unwrap();
        put("init", Entry { mtime: u32::MAX, ..Entry::file(*b"#!x", 0o755) });
        put("dev/console", Entry::new(Kind::CharDevice { major: 5, minor: 1 }, 0o600));
        put("sbin/init", Entry::symlink("../init"));
        put("run", Entry::dir(0o1777));
        put("lib/modules/a.ko", Entry::file(vec![7; 100_000], 0o644));
        put("lib/modules/b.ko", Entry::new(Kind::HardLink("lib/modules/a.ko".into()), 0));
        tree
    }

    #[test]
    fn cpio_lists_and_unpacks_it() {
        let (dir, store) = store();
        let file = dir.path().join("initramfs.cpio.zst");
        let mut out = Vec::new();
        write_zstd(&sample(), &store, 1_600_000_000, 3, 2, &mut out).unwrap();
        std::fs::write(&file, &out).unwrap();
        let plain = dir.path().join("plain");
        let script = format!("zstdcat {} > {}", text(&file), text(&plain));
        tool_ok("sh", "zstd (for zstdcat)", &["-ec", &script]);
        let mut direct = Vec::new();
        write(&sample(), &store, 1_600_000_000, &mut direct).unwrap();
        assert_eq!(std::fs::read(&plain).unwrap(), direct);

        let list = tool_ok("cpio", "cpio", &["-itv", "-n", "--quiet", "-F", text(&plain)]);
        let lines: Vec<String> =
            list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for want in [
            "crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
            "-rwxr-xr-x 1 0 0 3 Sep 13 2020 init",
            "lrwxrwxrwx 1 0 0 7 Jan 1 1970 sbin/init -> ../init",
            "drwxrwxrwt 2 0 0 0 Jan 1 1970 run",
            "-rw-r--r-- 2 0 0 100000 Jan 1 1970 lib/modules/a.ko",
        ] {
            assert!(lines.iter().any(|line| line == want), "{want}\n{list}");
        }
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let names = ["-idu", "--quiet", "-D", text(&out), "-F", text(&plain), "lib/*", "init"];
        tool_ok("cpio", "cpio", &names);
        assert_eq!(std::fs::read(out.join("lib/modules/b.ko")).unwrap(), vec![7; 100_000]);
        assert_eq!(std::fs::read(out.join("init")).unwrap(), b"#!x");
    }

    #[test]
    fn jobs_do_not_show_and_the_window_stays_small() {
        let (_dir, store) = store();
        let mut tree = sample();
        let noise: Vec<u8> = (0..20_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        tree.insert("big", Entry::file(noise, 0o644)).unwrap();
        let pack = |jobs| {
            let mut out = Vec::new();
            write_zstd(&tree, &store, 0, 1, jobs, &mut out).unwrap();
            out
        };
        let one = pack(1);
        assert_eq!(one, pack(5));
        let mut decoder = zstd::stream::Decoder::new(&one[..]).unwrap();
        decoder.window_log_max(WINDOW_LOG).unwrap();
        std::io::copy(&mut decoder, &mut std::io::sink()).unwrap();
    }
}
