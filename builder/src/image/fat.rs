// SPDX-License-Identifier: MIT OR Apache-2.0

//! FAT volumes inside a disk image: FAT32 for the EFI system partition, FAT16 for a seed. Written and read by hadris-fat, a
//! pinned release candidate kept behind this module; tests hold its output against dosfstools and mtools.

use std::collections::BTreeMap;
use std::fs::File;

use anyhow::{Context, Result, anyhow, bail};
use hadris_fat::sync::{FatFs, format};
use hadris_fat::{FatKind, FatOptions, VolumeLabel};
use hadris_fs::sync::{FileSystem, Volume};
use hadris_fs::{MountOptions, OpenOptions};
use hadris_storage::host::FileDevice;
use hadris_storage::{BlockSize, Partition};

use super::squashfs::Source;
use super::volume;
pub use super::volume::Contents;
use crate::store::Store;
use crate::tree::{Content, FileTree, Kind};

/// Sector size of the images we make.
const SECTOR: u64 = 512;
/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;
/// Most a file may have: its directory entry has 32 bits for the size.
const FILE_MAX: u64 = u32::MAX as u64;

/// Which FAT. A volume is FAT32 by its number of clusters alone, at least 65525 (Microsoft's FAT specification, 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// At most 65524 clusters.
    Fat16,
    /// 65525 clusters or more.
    Fat32,
}

/// How to make a volume. It follows from these and the tree alone; all times are 1980-01-01, the earliest FAT knows.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which FAT.
    pub variant: Variant,
    /// Volume label: at most 11 upper-case characters.
    pub label: String,
    /// Serial number.
    pub serial: u32,
    /// First byte in the file.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

impl Options {
    /// Cluster size in bytes: the largest up to 4 KiB that gives the variant its number of clusters.
    ///
    /// # Errors
    /// A size for which there is none.
    pub fn cluster_size(&self) -> Result<u64> {
        // Without the reserved sectors and tables, at most 3 % of the size: enough to stay clear of the limits, where
        // implementations disagree (Microsoft's specification asks for 16 clusters of distance).
        let data = self.size / 100 * 97;
        let found = match self.variant {
            Variant::Fat32 => [4096, 2048, 1024, 512].into_iter().find(|cluster| data / cluster > 65_541),
            Variant::Fat16 => [512, 1024, 2048, 4096, 8192, 16_384, 32_768]
                .into_iter()
                .find(|cluster| data / cluster > 4_101 && self.size / cluster < 65_509),
        };
        found.with_context(|| format!("{} bytes are too few or too many for {:?}", self.size, self.variant))
    }
}

/// Bytes of clusters that `tree` needs at this cluster size, with directories; an upper bound.
pub fn needed(tree: &FileTree, cluster: u64) -> u64 {
    let mut folders: BTreeMap<&str, u64> = BTreeMap::new();
    let mut bytes = 0;
    for (path, entry) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        // A 32-byte entry, and one for every 13 characters of a long name.
        *folders.entry(dir).or_insert(64) += 32 * (1 + name.encode_utf16().count().div_ceil(13) as u64);
        match &entry.kind {
            Kind::Dir => {
                folders.entry(path).or_insert(64);
            }
            Kind::File(content) => bytes += content.len().next_multiple_of(cluster),
            _ => {}
        }
    }
    bytes + folders.values().map(|len| len.next_multiple_of(cluster)).sum::<u64>()
}

/// Bytes of clusters that a volume with these options has; a lower bound.
///
/// # Errors
/// As [`Options::cluster_size`].
pub fn capacity(options: &Options) -> Result<u64> {
    let cluster = options.cluster_size()?;
    let clusters = options.size / cluster;
    let entry = if options.variant == Variant::Fat32 { 4 } else { 2 };
    // Two tables, at most 64 reserved sectors, a root directory of 512 entries, and the rounding of each.
    let overhead = 2 * (clusters + 2) * entry + 64 * SECTOR + 512 * 32 + 4 * SECTOR + 2 * cluster;
    Ok(options.size.saturating_sub(overhead))
}

fn device(file: &File, offset: u64, size: u64) -> Result<Partition<FileDevice>> {
    let file = file.try_clone().context("opening the volume")?;
    let block = BlockSize::new(SECTOR as u32).context("a sector size")?;
    let device = FileDevice::with_block_size(file, block).context("opening the volume")?;
    Ok(Partition::new(device, offset, size))
}

/// Makes a volume with the files of `tree` in a file that is at least as long as `offset + size`. What was there must be zeros.
///
/// # Errors
/// What FAT cannot hold (links, devices, a file of 4 GiB), a tree too large, or failing I/O.
pub fn write(tree: &FileTree, store: &Store, options: &Options, file: &File) -> Result<()> {
    let cluster = options.cluster_size()?;
    let label = VolumeLabel::new(&options.label).map_err(|_| anyhow!("`{}` is no FAT volume label", options.label))?;
    let kind = match options.variant {
        Variant::Fat16 => FatKind::Fat16,
        Variant::Fat32 => FatKind::Fat32,
    };
    for (path, entry) in tree.iter() {
        match &entry.kind {
            Kind::Dir => {}
            Kind::File(content) if content.len() <= FILE_MAX => {}
            Kind::File(_) => bail!("`{path}` is too large for FAT: 4 GiB or more"),
            _ => bail!("`{path}` is neither file nor directory: FAT cannot hold it"),
        }
    }
    let (need, have) = (needed(tree, cluster), capacity(options)?);
    if need > have {
        bail!("the files need {need} bytes and the FAT volume `{}` has {have}", options.label);
    }
    let format_options = FatOptions::new()
        .with_kind(kind)
        .with_label(label)
        .with_serial(options.serial)
        .with_cluster_size(u32::try_from(cluster)?)
        // The name that every FAT driver takes (Microsoft's FAT specification, BS_OEMName).
        .with_oem_name(*b"MSWIN4.1");
    let mut device = device(file, options.offset, options.size)?;
    format(&mut device, &format_options).map_err(|e| anyhow!("formatting `{}`: {e}", options.label))?;
    let fs = FatFs::mount(device, MountOptions::new()).map_err(|e| anyhow!("opening `{}`: {e}", options.label))?;
    let volume = Volume::new(fs);
    let source = Source::new(store);
    for (path, entry) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        match &entry.kind {
            Kind::Dir => volume.create_dir(path).map_err(|e| anyhow!("creating `{path}`: {e}"))?,
            Kind::File(content) => copy(&volume, &source, path, content)?,
            _ => {}
        }
    }
    let fs = volume.into_inner().map_err(|_| anyhow!("a file of `{}` is still open", options.label))?;
    fs.unmount().map_err(|e| anyhow!("closing `{}`: {e}", options.label))?;
    Ok(())
}

fn copy<F: FileSystem>(volume: &Volume<F>, source: &Source<'_>, path: &str, content: &Content) -> Result<()> {
    let options = OpenOptions::new().write().create_new();
    let mut out = volume.open(path, options).map_err(|e| anyhow!("creating `{path}`: {e}"))?;
    let (mut at, mut buffer) = (0, Vec::new());
    while at < content.len() {
        let n = CHUNK.min(content.len() - at);
        buffer.clear();
        source.read(content, at, n as usize, &mut buffer)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let written = out.write(rest).map_err(|e| anyhow!("writing `{path}`: {e}"))?;
            if written == 0 {
                bail!("writing `{path}`: nothing is taken any more");
            }
            rest = &rest[written..];
        }
        at += n;
    }
    out.close().map_err(|e| anyhow!("closing `{path}`: {e}"))
}

/// Reads the volume at `offset` of `file`: all names, and the bytes of those files of at most 1 MiB that `want` picks.
///
/// # Errors
/// No FAT volume, a damaged one, or failing I/O.
pub fn read(file: &File, offset: u64, size: u64, want: impl Fn(&str) -> bool) -> Result<Contents> {
    let device = device(file, offset, size)?;
    let mut fs =
        FatFs::mount(device, MountOptions::new().read_only()).map_err(|e| anyhow!("opening the volume: {e}"))?;
    let mut name = [0; 64];
    let label = fs.label(&mut name).map_err(|e| anyhow!("reading the label: {e}"))?.unwrap_or_default().to_owned();
    volume::contents(label, &Volume::new(fs), CHUNK, want)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::testing::{store, text, tool, tool_ok};
    use crate::tree::Entry;

    const OFFSET: u64 = 1 << 20;

    fn esp() -> (FileTree, Options) {
        let mut tree = FileTree::new();
        tree.insert("EFI/BOOT/BOOTX64.EFI", Entry::file(vec![1; 100_000], 0o644)).unwrap();
        tree.insert("loader/entries/imgbuild-a+3.conf", Entry::file(*b"title x\n", 0o644)).unwrap();
        tree.insert("imgbuild/a/initramfs.cpio.zst", Entry::file(vec![2; 3_000_000], 0o644)).unwrap();
        let options = Options {
            variant: Variant::Fat32,
            label: "ESP".into(),
            serial: 0x1234_abcd,
            offset: OFFSET,
            size: 256 << 20,
        };
        (tree, options)
    }

    fn seed() -> (FileTree, Options) {
        let mut tree = FileTree::new();
        for name in ["meta-data", "user-data", "network-config"] {
            tree.insert(name, Entry::file(name.as_bytes(), 0o600)).unwrap();
        }
        let options = Options { variant: Variant::Fat16, label: "CIDATA".into(), serial: 7, offset: 0, size: 8 << 20 };
        (tree, options)
    }

    fn volume(tree: &FileTree, options: &Options) -> (tempfile::TempDir, std::path::PathBuf) {
        let (dir, store) = store();
        let path = dir.path().join("volume");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(options.offset + options.size).unwrap();
        write(tree, &store, options, &file).unwrap();
        (dir, path)
    }

    /// The volume alone, as a file.
    fn cut_out(dir: &tempfile::TempDir, path: &std::path::Path, options: &Options) -> std::path::PathBuf {
        let alone = dir.path().join("alone");
        std::fs::write(&alone, &std::fs::read(path).unwrap()[options.offset as usize..]).unwrap();
        alone
    }

    #[test]
    fn other_tools_accept_both_variants() {
        for ((tree, options), kind) in [(esp(), "FAT32"), (seed(), "FAT16")] {
            let (dir, path) = volume(&tree, &options);
            let alone = cut_out(&dir, &path, &options);
            let check = tool("fsck.vfat", "dosfstools", &["-n", "-v", text(&alone)]);
            let said = String::from_utf8_lossy(&check.stdout).into_owned();
            assert!(check.status.success(), "{said}");
            assert!(said.contains(if kind == "FAT32" { "32 bit" } else { "16 bit" }), "{said}");
            let probe = tool_ok("blkid", "util-linux", &["-p", "-o", "export", text(&alone)]);
            let lines: Vec<&str> = probe.lines().collect();
            assert!(lines.contains(&format!("VERSION={kind}").as_str()), "{probe}");
            for key in ["LABEL", "LABEL_FATBOOT"] {
                assert!(lines.contains(&format!("{key}={}", options.label).as_str()), "{probe}");
            }
        }
    }

    #[test]
    fn mtools_sees_the_names_and_the_bytes() {
        let (tree, options) = esp();
        let (_dir, path) = volume(&tree, &options);
        let at = format!("{}@@1M", text(&path));
        let names = tool_ok("mdir", "mtools", &["-/", "-b", "-i", &at, "::"]);
        let names: Vec<&str> = names.lines().collect();
        for want in
            ["::/EFI/BOOT/BOOTX64.EFI", "::/loader/entries/imgbuild-a+3.conf", "::/imgbuild/a/initramfs.cpio.zst"]
        {
            assert!(names.contains(&want), "{want} in {names:?}");
        }
        let entry = tool_ok("mtype", "mtools", &["-i", &at, "::/loader/entries/imgbuild-a+3.conf"]);
        assert_eq!(entry, "title x\n");
        let (tree, options) = seed();
        let (_dir, path) = volume(&tree, &options);
        let names = tool_ok("mdir", "mtools", &["-b", "-i", text(&path), "::"]);
        assert_eq!(names.lines().collect::<Vec<_>>(), ["::/meta-data", "::/network-config", "::/user-data"]);
    }

    #[test]
    fn what_is_written_is_read_and_twice_the_same() {
        let (tree, options) = esp();
        let (_dir, path) = volume(&tree, &options);
        let (_dir2, again) = volume(&tree, &options);
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap());
        let file = File::open(&path).unwrap();
        let contents = read(&file, options.offset, options.size, |path| path.ends_with(".conf")).unwrap();
        assert_eq!(contents.label, "ESP");
        let files: Vec<(&str, u64)> = contents.files.iter().map(|(path, len)| (path.as_str(), *len)).collect();
        let want = [
            ("EFI/BOOT/BOOTX64.EFI", 100_000),
            ("imgbuild/a/initramfs.cpio.zst", 3_000_000),
            ("loader/entries/imgbuild-a+3.conf", 8),
        ];
        assert_eq!(files, want);
        assert_eq!(contents.bytes["loader/entries/imgbuild-a+3.conf"], b"title x\n");
    }

    #[test]
    fn the_capacity_is_a_promise() {
        let (_, options) = seed();
        let cluster = options.cluster_size().unwrap();
        let mut tree = FileTree::new();
        let room = capacity(&options).unwrap() - 2 * cluster;
        tree.insert("big", Entry::file(vec![3; room as usize / 512 * 512], 0o644)).unwrap();
        assert!(needed(&tree, cluster) <= capacity(&options).unwrap());
        let (_dir, _path) = volume(&tree, &options);
        tree.insert("more", Entry::file(vec![4; 2048], 0o644)).unwrap();
        let (_dir, store) = store();
        let error = write(&tree, &store, &options, &tempfile::tempfile().unwrap()).unwrap_err().to_string();
        assert!(error.contains("the FAT volume `CIDATA` has"), "{error}");
    }

    #[test]
    fn fat32_has_enough_clusters_at_every_size() {
        for mib in [64, 100, 128, 200, 256, 512, 1024, 4096] {
            let (_, options) = esp();
            let options = Options { size: mib << 20, ..options };
            assert!(options.size / options.cluster_size().unwrap() > 65_525, "{mib}");
        }
        assert!(Options { size: 16 << 20, ..esp().1 }.cluster_size().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_volume_never_panics(damage in proptest::collection::vec((0usize..64 << 10, any::<u8>()), 1..40)) {
            let (tree, options) = seed();
            let options = Options { size: 3 << 20, ..options };
            let (_dir, path) = volume(&tree, &options);
            let mut bytes = std::fs::read(&path).unwrap();
            for (at, value) in damage {
                // Every other time in the boot sector and the root directory, where it matters most.
                let at = if value & 1 == 0 { at } else { [at % 512, 25 * 1024 + at % 2048][usize::from(value >> 7)] };
                bytes[at] = value;
            }
            std::fs::write(&path, &bytes).unwrap();
            let _ = read(&File::open(&path).unwrap(), 0, options.size, |_| true);
        }
    }
}
