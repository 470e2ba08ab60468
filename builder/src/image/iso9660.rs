// SPDX-License-Identifier: MIT OR Apache-2.0

//! ISO 9660 images that UEFI firmware boots from a CD as from a USB stick: Rock Ridge names, one EFI system partition that both
//! El Torito and a GPT point at. Written and read by hadris-iso, a pinned release candidate kept behind this module; tests hold
//! its output against xorriso, isoinfo and sgdisk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use hadris_fs::sync::Volume;
use hadris_fs::{Content, DateTime, MountOptions, Node, OpenOptions, Owner, Permissions, SetAttr, Tree};
use hadris_iso::sync::{IsoFs, write};
use hadris_iso::{AppendedPartition, BootEntry, ElTorito, Hybrid, IsoId, IsoLevel, IsoOptions, Relocation};
use hadris_storage::host::FileDevice;

use super::volume::{self, Contents};
use crate::store::Digest;

/// Where the first volume descriptor lies: sector 16 of 2048 bytes (ECMA-119, 8.1).
const DESCRIPTOR: u64 = 16 * 2048;
/// What an El Torito entry can say of the length of an image: 16 bits, in units of 512 bytes.
const LOAD_MAX: u64 = 0xFFFF * 512;

/// Where the bytes of a file are.
#[derive(Debug)]
pub enum Source<'a> {
    /// A file of the host, read when the image is written.
    Path(PathBuf),
    /// An open one, read likewise; it may have no name.
    File(&'a File),
    /// In memory.
    Bytes(&'a [u8]),
}

impl Source<'_> {
    fn content(&self) -> Result<Content> {
        let host = |path: &Path| hadris_fs::host::file(path).map_err(anyhow::Error::new);
        match self {
            Self::Path(path) => host(path).with_context(|| format!("opening {}", path.display())),
            Self::File(file) => {
                host(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))).context("opening a file without a name")
            }
            Self::Bytes(bytes) => Ok(Content::bytes(*bytes)),
        }
    }
}

/// How to make an image. It follows from these, the files and the EFI system partition alone.
#[derive(Debug, Clone)]
pub struct Options {
    /// Volume label: at most 32 upper-case letters, digits and underscores.
    pub label: String,
    /// Of everything, seconds since 1970.
    pub time: u32,
    /// What the GUIDs of the partition table are derived from, with names and sizes of the files.
    pub seed: u64,
}

/// An image that is laid out.
#[derive(Debug)]
pub struct Image {
    tree: Tree,
    options: IsoOptions,
    size: u64,
}

impl Image {
    /// Lays out an image of `files`, by path, each with its permissions, and a FAT volume to boot from.
    ///
    /// # Errors
    /// What ISO 9660 cannot hold, or files that cannot be opened.
    pub fn new(files: &BTreeMap<String, (u16, Source<'_>)>, esp: &Source<'_>, options: &Options) -> Result<Self> {
        let attributes =
            |mode: u16| SetAttr::new().with_permissions(Permissions::new(u32::from(mode))).with_owner(Owner::new(0, 0));
        let mut tree = Tree::new();
        for (path, (mode, source)) in files {
            let node = Node::file(source.content()?).with_attrs(attributes(*mode));
            tree.insert(path, node).map_err(anyhow::Error::new).with_context(|| format!("adding `{path}`"))?;
        }
        let esp = esp.content().context("the EFI system partition")?;
        let mut entry = BootEntry::uefi_appended(0);
        if esp.len() > LOAD_MAX {
            // "0 or 1": from here to the end of the medium (UEFI specification, 13.3.2.1). The FAT volume knows its length.
            entry = entry.with_load_size(1);
        }
        let time =
            DateTime::from_unix_seconds(i64::from(options.time)).map_err(|e| anyhow!("the image's time: {e:?}"))?;
        let options = IsoOptions::new()
            .with_id(IsoId::Volume, &options.label)
            .with_id(IsoId::Application, "IMGBUILD")
            // Files of 4 GiB and more.
            .with_level(IsoLevel::L3)
            .with_rock_ridge()
            .with_relocation(Relocation::Refuse)
            .with_time(time)
            .with_seed(options.seed)
            .with_el_torito(ElTorito::new().with_entry(entry))
            .with_hybrid(Hybrid::gpt().with_appended(AppendedPartition::esp(esp)));
        let report =
            hadris_iso::plan(&tree, &options).map_err(anyhow::Error::new).context("laying out the ISO image")?;
        if let Some(warning) = report.warnings().first() {
            bail!("the ISO image would not hold what it should: {warning}");
        }
        Ok(Self { tree, options, size: report.size() })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes it to an empty file.
    ///
    /// # Errors
    /// Failing I/O.
    pub fn write(&self, out: &File) -> Result<()> {
        let file = out.try_clone().context("opening the ISO image")?;
        let device = FileDevice::new(file).context("opening the ISO image")?;
        let report = write(device, &self.tree, &self.options).map_err(anyhow::Error::new);
        let written = report.context("writing the ISO image")?.size();
        if written != self.size {
            bail!("the ISO image has {written} bytes, expected {}", self.size);
        }
        Ok(())
    }
}

/// Whether a file begins as an ISO 9660 image does.
///
/// # Errors
/// Failing I/O; that a file is short is none.
pub fn is_image(file: &mut File) -> Result<bool> {
    let mut magic = [0; 6];
    file.seek(SeekFrom::Start(DESCRIPTOR)).context("seeking to the volume descriptor")?;
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(magic == *b"\x01CD001"),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error).context("reading the volume descriptor"),
    }
}

/// Reads the image in `file`: all names, and the bytes of those files of at most `limit` bytes that `want` picks.
///
/// # Errors
/// No image, a damaged one, or failing I/O.
pub fn read(file: &File, limit: u64, want: impl Fn(&str) -> bool) -> Result<Contents> {
    let device = FileDevice::new(file.try_clone().context("opening the image")?).context("opening the image")?;
    let fs = IsoFs::mount(device, MountOptions::new().read_only()).map_err(|e| anyhow!("opening the image: {e}"))?;
    let label = String::from_utf8_lossy(fs.info().id(IsoId::Volume)).into_owned();
    volume::contents(label, &Volume::new(fs), limit, want)
}

/// SHA-256 and length of the files at `paths` of the image in `file`; what cannot be read is an error of its own.
///
/// # Errors
/// No image, or one that cannot be opened.
pub fn digests<'a>(
    file: &File,
    paths: impl Iterator<Item = &'a str>,
) -> Result<BTreeMap<&'a str, Result<(Digest, u64)>>> {
    let device = FileDevice::new(file.try_clone().context("opening the image")?).context("opening the image")?;
    let fs = IsoFs::mount(device, MountOptions::new().read_only()).map_err(|e| anyhow!("opening the image: {e}"))?;
    let volume = Volume::new(fs);
    let digest = |path: &str| -> Result<(Digest, u64)> {
        let mut file =
            volume.open(format!("/{path}"), OpenOptions::new().read()).map_err(|e| anyhow!("opening it: {e}"))?;
        Ok(Digest::of_reader(&mut file)?)
    };
    Ok(paths.map(|path| (path, digest(path))).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: &str = "a folder/With.A.Rather-Long_name that ISO 9660 alone would cut.tar.zst";

    fn image() -> File {
        let options = Options { label: "TEST".into(), time: 1_600_000_000, seed: 7 };
        let files = BTreeMap::from([
            ("empty".to_owned(), (0o444, Source::Bytes(b""))),
            ("imgbuild/medium.json".to_owned(), (0o444, Source::Bytes(b"{}"))),
            (LONG.to_owned(), (0o400, Source::Bytes(&[5; 5000]))),
        ]);
        let image = Image::new(&files, &Source::Bytes(&[0xE5; 8192]), &options).unwrap();
        let file = tempfile::tempfile().unwrap();
        image.write(&file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), image.size());
        file
    }

    fn bytes(mut file: &File) -> Vec<u8> {
        let mut bytes = vec![];
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read_and_twice_the_same() {
        let mut file = image();
        assert!(is_image(&mut file).unwrap());
        let found = read(&file, 5000, |path| path == LONG).unwrap();
        assert_eq!(found.label, "TEST");
        let files: Vec<(&str, u64)> = found.files.iter().map(|(path, len)| (path.as_str(), *len)).collect();
        assert_eq!(files, [(LONG, 5000), ("empty", 0), ("imgbuild/medium.json", 2)]);
        assert_eq!(found.bytes, BTreeMap::from([(LONG.to_owned(), vec![5; 5000])]));
        assert!(!read(&file, 4999, |_| true).unwrap().bytes.contains_key(LONG), "larger than the limit");
        assert!(bytes(&file) == bytes(&image()));
        let digests = digests(&file, [LONG, "empty", "none"].into_iter()).unwrap();
        let found: Vec<_> = digests.into_iter().map(|(path, found)| (path, found.ok())).collect();
        let (long, empty) = ((Digest::of(&[5; 5000]), 5000), (Digest::of(b""), 0));
        assert_eq!(found, [(LONG, Some(long)), ("empty", Some(empty)), ("none", None)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_image_never_panics(damage in proptest::collection::vec((0usize..16 << 10, any::<u8>()), 1..40)) {
            let mut bytes = bytes(&image());
            for (at, value) in damage {
                // Descriptors and directories: what is read.
                bytes[DESCRIPTOR as usize + at] = value;
            }
            let file = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
            let _ = read(&file, 1 << 20, |_| true);
        }
    }
}
