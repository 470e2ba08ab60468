// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads `.deb` packages and tar archives: decompresses them once into the store and says what is where in them.
//! Nothing is unpacked onto the host. Knows nothing of repositories, and nothing of what a tree does with the entries.
//!
//! Formats: deb(5) (an ar archive with `debian-binary`, `control.tar.*`, `data.tar.*`), tar as POSIX.1-2001 pax and as
//! GNU tar writes it.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom, Take, Write};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::names::{LONGEST_PATH, Names, Rules, What};
use super::pax::Extra;
use crate::error::Failure;
use crate::store::{Digest, Store, step_key};

/// Bumped when the same archive would be read differently.
const STEP_VERSION: u32 = 1;

/// How much memory an xz stream may ask for, in KiB. `xz -9` asks for 65 MiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// The longest control files are those that provide hundreds of packages: some 100 KiB.
const LARGEST_CONTROL: u64 = 4 << 20;

/// Most entries of an archive: a whole system has some 500 000.
const MOST_ENTRIES: usize = 1 << 22;

/// A decompressed tar archive in the store, and what is where in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// The decompressed tar: the object that the offsets of [`ArchiveKind::File`] point into.
    pub tar: Digest,
    /// The entries in the order of the archive, with all pax and GNU extensions resolved.
    pub entries: Vec<ArchiveEntry>,
}

/// One entry of an [`Archive`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveEntry {
    /// Normalised path relative to the root: no leading `/` or `./`, no `..`, no trailing `/`; the root is empty.
    /// Never leads through a symbolic link of the same archive.
    pub path: String,
    /// What it is.
    pub kind: ArchiveKind,
    /// Permission bits, 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u32,
    /// Extended attributes by full name (`security.capability`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// What an [`ArchiveEntry`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveKind {
    /// A directory.
    Dir,
    /// A regular file: `len` bytes at `offset` of the tar object.
    File {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A symbolic link with its target, as written. Relative targets don't climb above the root.
    Symlink(String),
    /// A further name of the regular file at this path, which comes earlier in the archive or, in a layer of an image, is in a
    /// lower one.
    HardLink(String),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Decompresses the files of the package `deb` into the store, or finds that this was done before.
///
/// # Errors
/// If it is no package, or has a member with an unsafe path; the error names package and member.
pub fn unpack(store: &Store, deb: &Digest) -> Result<Archive> {
    let key = step_key("deb-unpack", STEP_VERSION, deb)?;
    let made = store.cached(&key, "unpacking a package", || unpack_new(store, deb));
    made.with_context(|| {
        let name = control_field(store, deb, "Package").ok().flatten();
        format!("unpacking package {} ({deb})", name.as_deref().unwrap_or("of unknown name"))
    })
}

fn unpack_new(store: &Store, deb: &Digest) -> Result<Archive> {
    let member = member(store.open_object(deb)?, "data.tar")?;
    index(store, decompress(member)?, Rules::Package)
}

/// [`unpack`] for many packages, in parallel. The result is in the order of `debs`.
pub fn unpack_all(store: &Store, debs: &[Digest]) -> Result<Vec<Archive>> {
    // The biggest first, so that no core is left alone with the kernel at the end.
    let size = |deb: &Digest| std::fs::metadata(store.path(deb)).map_or(0, |meta| meta.len());
    let mut order: Vec<(usize, &Digest)> = debs.iter().enumerate().collect();
    order.sort_by_key(|(_, deb)| std::cmp::Reverse(size(deb)));
    let mut done = order
        .into_iter()
        .par_bridge()
        .map(|(at, deb)| Ok((at, unpack(store, deb)?)))
        .collect::<Result<Vec<(usize, Archive)>>>()?;
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, archive)| archive).collect())
}

/// Decompresses the tar archive `object` (plain, gzip, xz or zstd), for example an upstream source archive, or finds
/// that this was done before.
pub fn unpack_tar_object(store: &Store, object: &Digest) -> Result<Archive> {
    let key = step_key("tar-unpack", STEP_VERSION, object)?;
    let made = store.cached(&key, "unpacking an archive", || unpack_tar(store, store.open_object(object)?));
    made.with_context(|| format!("unpacking archive {object}"))
}

/// Decompresses a tar archive (plain, gzip, xz or zstd) into the store.
pub fn unpack_tar(store: &Store, reader: impl Read + Send) -> Result<Archive> {
    index(store, decompress(reader)?, Rules::Package)
}

/// As [`unpack_tar_object`], for a whole system that somebody packed: see [`Rules::System`] for what it may hold.
pub fn unpack_system(store: &Store, object: &Digest) -> Result<Archive> {
    let key = step_key("system-unpack", STEP_VERSION, object)?;
    store.cached(&key, "unpacking a root filesystem", || unpack_layer(store, store.open_object(object)?))
}

/// As [`unpack_tar`], for a layer of a container image; its whiteouts are files like any other.
pub fn unpack_layer(store: &Store, reader: impl Read + Send) -> Result<Archive> {
    index(store, decompress(reader)?, Rules::System)
}

/// The control file of the package `deb`: field to value; continuation lines are joined with line ends.
pub fn control(store: &Store, deb: &Digest) -> Result<BTreeMap<String, String>> {
    control_of(store.open_object(deb)?)
}

/// [`control`] of an open package.
fn control_of(deb: impl Read + Seek + Send) -> Result<BTreeMap<String, String>> {
    let member = member(deb, "control.tar")?;
    let mut found = None;
    each_entry(decompress(member)?, |entry, content| {
        if entry.path == "control" && found.is_none() {
            let mut text = String::new();
            content.take(LARGEST_CONTROL + 1).read_to_string(&mut text).context("reading the control file")?;
            ensure!(text.len() as u64 <= LARGEST_CONTROL, "the control file has more than {LARGEST_CONTROL} bytes");
            let fields = super::control::fields(&text);
            found = Some(fields.map(|(name, value)| (name.to_owned(), value.into_owned())).collect());
        }
        Ok(())
    })
    .context("reading control.tar")?;
    found.context("control.tar has no control file")
}

/// One field of the control file of the package `deb`.
pub fn control_field(store: &Store, deb: &Digest, field: &str) -> Result<Option<String>> {
    Ok(control(store, deb)?.remove(field))
}

/// Copies a tar stream into the store and lists its entries on the way.
fn index(store: &Store, stream: impl Read, rules: Rules) -> Result<Archive> {
    let mut writer = store.writer()?;
    let mut entries = Vec::new();
    entries_of(Tee { from: stream, to: &mut writer }, rules, |entry, _| {
        entries.push(entry);
        Ok(())
    })?;
    Ok(Archive { tar: writer.commit(None)?.0, entries })
}

/// Gives each entry of a tar stream, with its content, to `visit`: by the rules of packages, nothing is odd in it.
pub(crate) fn each_entry(
    stream: impl Read,
    visit: impl FnMut(ArchiveEntry, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    entries_of(stream, Rules::Package, visit)
}

fn entries_of(
    stream: impl Read,
    rules: Rules,
    mut visit: impl FnMut(ArchiveEntry, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut tar = tar::Archive::new(stream);
    let mut names = Names::new(rules);
    let mut extra = Extra::default();
    // Raw: the crate's own handling of pax records takes a line end inside a value, as binary attributes may have, for
    // the end of the record.
    for (number, entry) in tar.entries().context("reading a tar archive")?.raw(true).enumerate() {
        ensure!(number < MOST_ENTRIES, "the archive has more than {MOST_ENTRIES} entries");
        let mut entry = entry.context("reading a tar archive")?;
        if extra.read(&mut entry)? {
            continue;
        }
        let extra = std::mem::take(&mut extra);
        let path = extra.path.clone().unwrap_or_else(|| entry.path_bytes().into_owned());
        let about = || format!("reading member `{}`", String::from_utf8_lossy(&path[..path.len().min(LONGEST_PATH)]));
        let read = read_entry(&entry, &path, extra, &mut names).with_context(about)?;
        visit(read, &mut entry)?;
    }
    // The padding after the last entry belongs to the object, and decompressors check their sums at its end.
    io::copy(&mut tar.into_inner(), &mut io::sink()).context("reading the end of a tar archive")?;
    Ok(())
}

/// Turns a tar header, and the headers that came before it, into an entry.
fn read_entry(
    entry: &tar::Entry<'_, impl Read>,
    raw_path: &[u8],
    extra: Extra,
    names: &mut Names,
) -> Result<ArchiveEntry> {
    use tar::EntryType;
    let path = names.clean(raw_path)?;
    let header = entry.header();
    if extra.size.is_some_and(|size| Some(size) != header.entry_size().ok()) {
        bail!("files of 8 GiB and more in tar archives are not supported");
    }
    let link = || match extra.link.clone().or_else(|| header.link_name_bytes().map(|name| name.into_owned())) {
        Some(name) => Ok(name),
        None => bail!("a link without a target"),
    };
    let device = || -> Result<(u32, u32)> {
        Ok((
            header.device_major()?.context("a device without a major number")?,
            header.device_minor()?.context("a device without a minor number")?,
        ))
    };
    let (what, kind) = match header.entry_type() {
        EntryType::Directory => (What::Dir, ArchiveKind::Dir),
        // Before ustar, a directory was a file whose name ends in a slash.
        EntryType::Regular if raw_path.ends_with(b"/") => (What::Dir, ArchiveKind::Dir),
        EntryType::Regular | EntryType::Continuous => {
            (What::File, ArchiveKind::File { offset: entry.raw_file_position(), len: entry.size() })
        }
        EntryType::Symlink => (What::Symlink, ArchiveKind::Symlink(names.symlink_target(&path, &link()?)?)),
        EntryType::Link => (What::File, ArchiveKind::HardLink(names.hard_link_target(&link()?)?)),
        EntryType::Char => {
            let (major, minor) = device()?;
            (What::Special, ArchiveKind::CharDevice { major, minor })
        }
        EntryType::Block => {
            let (major, minor) = device()?;
            (What::Special, ArchiveKind::BlockDevice { major, minor })
        }
        EntryType::Fifo => (What::Special, ArchiveKind::Fifo),
        EntryType::GNUSparse => bail!("sparse files in tar archives are not supported: pack it without --sparse"),
        other => bail!("tar entries of type {other:?} are not supported"),
    };
    names.add(&path, what)?;
    let number = |value: u64, what: &str| u32::try_from(value).with_context(|| format!("{what} {value} is too big"));
    Ok(ArchiveEntry {
        path,
        kind,
        mode: (header.mode()? & 0o7777) as u16,
        uid: number(extra.uid.map_or_else(|| header.uid(), Ok)?, "user id")?,
        gid: number(extra.gid.map_or_else(|| header.gid(), Ok)?, "group id")?,
        mtime: u32::try_from(extra.mtime.map_or_else(|| header.mtime(), Ok)?).unwrap_or(u32::MAX),
        xattrs: extra.xattrs,
    })
}

/// Passes on what it reads.
struct Tee<R, W> {
    from: R,
    to: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.to.write_all(&buf[..n])?;
        Ok(n)
    }
}

/// The member of an ar archive whose name is `wanted`, or `wanted` with an extension.
///
/// ar(5): the magic, then for each member a header of 60 bytes (name 16, mtime 12, uid 6, gid 6, mode 8, size 10,
/// end `` `\n ``) and the data, padded to an even length.
fn member<F: Read + Seek>(mut file: F, wanted: &str) -> Result<Take<F>> {
    let broken = |what: &str| Failure::verification(format!("not a Debian package: {what}"));
    let mut magic = [0; 8];
    file.read_exact(&mut magic).map_err(|e| broken("too short").caused_by(e))?;
    if &magic != b"!<arch>\n" {
        return Err(broken("no ar archive").into());
    }
    let mut first = true;
    loop {
        let mut header = [0; 60];
        match file.read_exact(&mut header) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(broken(&format!("it has no member {wanted}")).into());
            }
            other => other.context("reading an ar header")?,
        }
        let text = std::str::from_utf8(&header).map_err(|e| broken("garbled ar header").caused_by(e))?;
        // Only ASCII makes byte offsets into the text safe.
        if !text.is_ascii() || &text[58..] != "`\n" {
            return Err(broken("garbled ar header").into());
        }
        let name = text[..16].trim_end().trim_end_matches('/');
        let size: u64 = text[48..58].trim_end().parse().map_err(|e| broken("garbled ar size").caused_by(e))?;
        if first && name != "debian-binary" {
            return Err(broken(&format!("its first member is `{name}`")).into());
        }
        first = false;
        if name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            return Ok(file.take(size));
        }
        let skip = i64::try_from(size + size % 2).context("skipping an ar member")?;
        file.seek(SeekFrom::Current(skip)).context("skipping an ar member")?;
    }
}

/// Decompresses a stream by its first bytes: xz, zstd, gzip, or as it is.
pub(crate) fn decompress<'a>(mut reader: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    let mut magic = Vec::with_capacity(6);
    (&mut reader).take(6).read_to_end(&mut magic).context("reading the start of an archive")?;
    let reader = BufReader::with_capacity(64 << 10, Cursor::new(magic.clone()).chain(reader));
    Ok(match magic.as_slice() {
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, XZ_MEMORY_KIB)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(reader).context("opening a zstd archive")?),
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        _ => Box::new(reader),
    })
}

/// For tests/fuzz: packages and archives without a store.
#[cfg(fuzzing)]
pub(crate) mod fuzz {
    use super::*;

    /// Decompressed bytes that are read: enough for every structure, too few to wait for.
    const LIMIT: u64 = 4 << 20;

    /// Reads `data` as a package.
    pub(crate) fn package(data: &[u8]) {
        let _ = control_of(Cursor::new(data));
        if let Ok(member) = member(Cursor::new(data), "data.tar")
            && let Ok(stream) = decompress(member)
        {
            archive(stream, Rules::Package);
        }
    }

    /// Reads `data` as an archive by the stricter and the looser rules; gives what the looser ones find.
    pub(crate) fn archives(data: &[u8]) -> Option<Archive> {
        archive(decompress(data).ok()?, Rules::Package);
        archive(decompress(data).ok()?, Rules::System)
    }

    fn archive(stream: impl Read, rules: Rules) -> Option<Archive> {
        let mut entries = Vec::new();
        let whole = entries_of(stream.take(LIMIT), rules, |entry, _| {
            check(&entry);
            entries.push(entry);
            Ok(())
        });
        whole.ok().map(|()| Archive { tar: Digest::of(b""), entries })
    }

    /// Whatever the bytes: no path leads out of the root.
    pub(crate) fn check(entry: &ArchiveEntry) {
        let clean = |path: &str| path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0');
        assert!(entry.path.is_empty() || clean(&entry.path), "{entry:?}");
        if let ArchiveKind::HardLink(target) = &entry.kind {
            assert!(target.is_empty() || clean(target), "{entry:?}");
        }
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
