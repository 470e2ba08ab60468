// SPDX-License-Identifier: MIT OR Apache-2.0

//! qcow2 disk images, version 3 (`docs/interop/qcow2.rst` of QEMU): a raw image in clusters, without those that are all
//! zeros. The same bytes for the same content, whatever holes the raw file has. Not compressed, no backing file.
//!
//! Layout: header, the guest's clusters in order, then the tables that lead to them, then the reference counts.
//! Everything is big-endian and begins on a cluster.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use rustix::fs::SeekFrom;

use crate::error::Failure;

/// log2 of a cluster: 64 KiB, as `qemu-img create` makes them.
const CLUSTER_BITS: u32 = 16;
/// Reference counts have 16 bits (`refcount_order` 4), which every reader of version 2 and 3 knows.
const REFCOUNT_ORDER: u32 = 4;
/// Length of the header of version 3, without extensions.
const HEADER_LEN: u32 = 104;
/// Bit 63 of a table's entry: its cluster's reference count is exactly one, so that it may be written in place.
const COPIED: u64 = 1 << 63;
/// Most entries of the L1 table that QEMU opens: 32 MiB of it (`QCOW_MAX_L1_SIZE` in `block/qcow2.h`).
const L1_MAX: u64 = (32 << 20) / 8;

/// Writes the raw image `raw` as qcow2 to `out`, which is empty. Gives the length of the result.
///
/// # Errors
/// A raw image of no whole number of sectors or beyond 2 PiB; failing I/O.
pub fn write(raw: &File, out: &File) -> Result<u64> {
    write_clusters(raw, out, CLUSTER_BITS)
}

/// As [`write`], with clusters of another size: in tests, small ones fill every kind of table.
fn write_clusters(raw: &File, out: &File, bits: u32) -> Result<u64> {
    let size = raw.metadata().context("measuring the raw image")?.len();
    if size % 512 != 0 || size == 0 {
        bail!("a disk of {size} bytes is not a whole number of sectors");
    }
    let cluster = 1 << bits;
    let l1_entries = size.div_ceil(cluster * (cluster / 8));
    if l1_entries > L1_MAX {
        bail!("a disk of {size} bytes is too large for qcow2 with clusters of {cluster} bytes");
    }
    let mut writer = Writer { out: BufWriter::with_capacity(1 << 20, out), cluster, clusters: 1 };
    writer.out.seek(std::io::SeekFrom::Start(cluster)).map_err(failed)?;
    let tables = writer.data(raw, size)?;

    // The tables, after the data: L2, L1, then what counts all of them.
    let mut l1 = vec![0; l1_entries as usize];
    for (index, table) in tables {
        l1[index as usize] = writer.position() | COPIED;
        writer.entries(&table)?;
    }
    let l1_at = writer.position();
    writer.entries(&l1)?;
    let (table_at, table_clusters) = writer.refcounts()?;

    let length = writer.position();
    writer.out.seek(std::io::SeekFrom::Start(0)).map_err(failed)?;
    let header = header(size, bits, l1_entries as u32, l1_at, table_at, table_clusters as u32);
    writer.out.write_all(&header).and_then(|()| writer.out.flush()).map_err(failed)?;
    Ok(length)
}

fn failed(error: std::io::Error) -> Failure {
    Failure::io("writing the qcow2 image", error)
}

struct Writer<'a> {
    out: BufWriter<&'a File>,
    /// Bytes of a cluster.
    cluster: u64,
    /// Clusters so far, the header's among them.
    clusters: u64,
}

impl Writer<'_> {
    /// Where the next cluster begins.
    fn position(&self) -> u64 {
        self.clusters * self.cluster
    }

    /// Entries of 8 bytes in a table of one cluster.
    fn per_table(&self) -> u64 {
        self.cluster / 8
    }

    /// Writes the next cluster: these bytes, and zeros.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let rest = self.cluster as usize - bytes.len();
        self.out.write_all(bytes).and_then(|()| self.out.write_all(&vec![0; rest])).map_err(failed)?;
        self.clusters += 1;
        Ok(())
    }

    /// Writes every cluster that is not all zeros, and gives the L2 tables by their index in L1.
    fn data(&mut self, raw: &File, size: u64) -> Result<Vec<(u64, Vec<u64>)>> {
        let (cluster, per_table) = (self.cluster, self.per_table());
        let mut tables: Vec<(u64, Vec<u64>)> = Vec::new();
        let mut buffer = vec![0; cluster as usize];
        let (mut at, mut data_end) = (0, 0);
        while at < size {
            // Holes need not be read. Where there is data is the filesystem's affair; whether a cluster is stored is
            // not.
            if at >= data_end {
                let Some((data, hole)) = next_data(raw, at, size)? else { break };
                (at, data_end) = (data.max(at) / cluster * cluster, hole);
            }
            let len = cluster.min(size - at) as usize;
            let bytes = &mut buffer[..len];
            raw.read_exact_at(bytes, at).context("reading the raw image")?;
            if bytes.iter().any(|byte| *byte != 0) {
                let (table, entry) = (at / cluster / per_table, at / cluster % per_table);
                if tables.last().is_none_or(|(last, _)| *last != table) {
                    tables.push((table, vec![0; per_table as usize]));
                }
                if let Some((_, entries)) = tables.last_mut() {
                    entries[entry as usize] = self.position() | COPIED;
                }
                self.put(bytes)?;
            }
            at += cluster;
        }
        Ok(tables)
    }

    /// A table, filled up with zeros to whole clusters.
    fn entries(&mut self, entries: &[u64]) -> Result<()> {
        for part in entries.chunks(self.per_table() as usize) {
            let bytes: Vec<u8> = part.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            self.put(&bytes)?;
        }
        Ok(())
    }

    /// Counts every cluster, these included, once. Gives the place and the clusters of the table of counts.
    fn refcounts(&mut self) -> Result<(u64, u64)> {
        let per_block = self.cluster / 2;
        // The counts count themselves: more of them until they are enough.
        let (mut blocks, mut table) = (0, 0);
        let total = loop {
            let total = self.clusters + blocks + table;
            let needed = total.div_ceil(per_block);
            let needed = (needed, needed.div_ceil(self.per_table()));
            if needed == (blocks, table) {
                break total;
            }
            (blocks, table) = needed;
        };
        let mut places = Vec::new();
        for block in 0..blocks {
            places.push(self.position());
            let counted = (total - block * per_block).min(per_block);
            self.put(&[0, 1].repeat(counted as usize))?;
        }
        let at = self.position();
        self.entries(&places)?;
        Ok((at, table))
    }
}

/// The next data of a file at or after `at`, and where it ends; none to the end.
fn next_data(file: &File, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    let looking = "looking for the holes of the raw image";
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A filesystem without holes.
        Err(rustix::io::Errno::INVAL) => return Ok(Some((at, size))),
        Err(error) => return Err(error).context(looking),
    };
    Ok(Some((data, rustix::fs::seek(file, SeekFrom::Hole(data)).context(looking)?)))
}

fn header(size: u64, bits: u32, l1_entries: u32, l1_at: u64, table_at: u64, table_clusters: u32) -> Vec<u8> {
    let mut out = b"QFI\xfb".to_vec();
    let u32s = |out: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|value| out.extend(value.to_be_bytes()));
    // Version; no backing file (offset 8 bytes, length 4).
    u32s(&mut out, &[3, 0, 0, 0, bits]);
    out.extend(size.to_be_bytes());
    // Not encrypted; L1.
    u32s(&mut out, &[0, l1_entries]);
    out.extend(l1_at.to_be_bytes());
    out.extend(table_at.to_be_bytes());
    // No snapshots: number and offset. No feature of the three kinds: incompatible, compatible, autoclear.
    u32s(&mut out, &[table_clusters, 0, 0, 0, 0, 0, 0, 0, 0, 0, REFCOUNT_ORDER, HEADER_LEN]);
    // The end of header extensions: type and length 0.
    u32s(&mut out, &[0, 0]);
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::image::testing::{text, tool_ok};

    /// A raw file of `size` bytes with `parts` of non-zero data, with holes or without.
    fn raw(path: &Path, size: u64, parts: &[(u64, usize)], sparse: bool) -> File {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
        file.set_len(size).unwrap();
        if !sparse {
            file.write_all_at(&vec![0; size as usize], 0).unwrap();
        }
        for (at, len) in parts {
            let len = (*len as u64).min(size.saturating_sub(*at)) as usize;
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + 1) as u8).collect();
            file.write_all_at(&bytes, *at).unwrap();
        }
        file
    }

    /// Converts, and lets QEMU check the result and compare it with the raw file.
    fn judged(dir: &Path, raw: &File, bits: u32) -> Vec<u8> {
        let path = dir.join("out.qcow2");
        let out = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        let len = write_clusters(raw, &out, bits).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, len);
        let check = tool_ok("qemu-img", "qemu-utils", &["check", "-f", "qcow2", text(&path)]);
        assert!(check.contains("No errors were found on the image"), "{check}");
        let raw = dir.join("raw");
        // Not strictly: that would compare which zeros are stored, too.
        let compare = ["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&path)];
        let same = tool_ok("qemu-img", "qemu-utils", &compare);
        assert!(same.contains("Images are identical"), "{same}");
        let info = tool_ok("qemu-img", "qemu-utils", &["info", "--output", "json", text(&path)]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], std::fs::metadata(&raw).unwrap().len());
        bytes
    }

    #[test]
    fn qemu_finds_the_same_disk_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        let cluster = 1 << CLUSTER_BITS;
        let table = cluster * cluster / 8;
        // Sizes around a cluster, an L2 table (512 MiB) and several; data at the ends of each.
        for (size, parts) in [
            (512, vec![(0, 512)]),
            (cluster + 512, vec![(cluster, 512)]),
            (64 << 20, vec![]),
            (table, vec![(0, 1), (table - 1, 1)]),
            (5 * table + 1024, vec![(table - 10, 20), (5 * table, 1024)]),
        ] {
            judged(dir.path(), &raw(&path, size, &parts, true), CLUSTER_BITS);
        }
        // With clusters of 512 bytes, a block counts 256 of them and 64 blocks fill a table: more than one of
        // everything.
        judged(dir.path(), &raw(&path, 12 << 20, &[(0, 12 << 20)], true), 9);
        judged(dir.path(), &raw(&path, 12 << 20, &[(0, 100), (7 << 20, 100_000)], true), 9);
    }

    #[test]
    fn holes_do_not_show_and_zeros_take_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        let cluster = 1 << CLUSTER_BITS;
        let parts = [(0, 10), (3 * cluster - 1, 2), (8 << 20, 300_000)];
        let sparse = judged(dir.path(), &raw(&path, 16 << 20, &parts, true), CLUSTER_BITS);
        let dense = judged(dir.path(), &raw(&path, 16 << 20, &parts, false), CLUSTER_BITS);
        assert!(sparse == dense);
        // 1 + 2 + 5 clusters of data, and one each of header, L2, L1, counts, table of counts.
        assert_eq!(sparse.len() as u64, (8 + 5) * cluster);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = tempfile::tempfile().unwrap();
        for size in [0, 511, 513] {
            assert!(write(&raw(&dir.path().join("raw"), size, &[], true), &out).is_err());
        }
        assert_eq!(out.metadata().unwrap().len(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn any_data_survives(
            parts in proptest::collection::vec((0u64..4 << 20, 1usize..200_000), 0..6),
            sectors in 1u64..8192,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let parts: Vec<_> = parts.into_iter().filter(|(at, _)| *at < sectors * 512).collect();
            judged(dir.path(), &raw(&dir.path().join("raw"), sectors * 512, &parts, true), 9 + (sectors % 8) as u32);
        }
    }
}
