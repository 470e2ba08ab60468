// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads `.rpm` packages: what they say of themselves, whether a trusted key signed them, and their files, decompressed
//! once into the store. Runs no script of theirs, and knows nothing of repositories.
//!
//! Format: rpm's docs/manual/format_v4.md (lead, signature header, header, payload), format_header.md, and tags.md for the
//! tags. The payload is a newc cpio archive (cpio(5)). The crate `rpm` is not used: it reads payloads into memory, and checks
//! signatures with another OpenPGP than the rest of this program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail};
use profiles::node::Architecture;
use serde::{Deserialize, Serialize};

use super::deb::archive::{Archive, ArchiveEntry, ArchiveKind, decompress};
use super::deb::names::{LONGEST_PATH, Names, Rules, What};
use super::deb::openpgp::Keyring;
use crate::error::Failure;
use crate::store::{Digest, Store, step_key};

/// Bumped when the same package would be read differently.
const STEP_VERSION: u32 = 1;

/// A header is some hundred KiB even for a kernel's package.
const LARGEST_HEADER: u64 = 64 << 20;

/// A package's files, and who owns them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// `name-version-release.architecture`.
    pub name: String,
    /// Its files. The offsets point into the decompressed payload; all ids are 0.
    pub archive: Archive,
    /// Owner and group by name, of the paths that are not root's.
    pub owners: BTreeMap<String, (String, String)>,
}

mod tag {
    pub(super) const NAME: u32 = 1000;
    pub(super) const VERSION: u32 = 1001;
    pub(super) const RELEASE: u32 = 1002;
    pub(super) const EPOCH: u32 = 1003;
    pub(super) const VENDOR: u32 = 1011;
    pub(super) const LICENSE: u32 = 1014;
    pub(super) const ARCH: u32 = 1022;
    pub(super) const FILE_USER: u32 = 1039;
    pub(super) const FILE_GROUP: u32 = 1040;
    pub(super) const SOURCE_RPM: u32 = 1044;
    pub(super) const DIR_INDEXES: u32 = 1116;
    /// Only source packages have it.
    pub(super) const SOURCE_PACKAGE: u32 = 1106;
    pub(super) const BASE_NAMES: u32 = 1117;
    pub(super) const DIR_NAMES: u32 = 1118;
    pub(super) const PAYLOAD_FORMAT: u32 = 1124;
    pub(super) const FILE_CAPS: u32 = 5010;
    pub(super) const PAYLOAD_DIGEST: u32 = 5092;
    pub(super) const PAYLOAD_DIGEST_ALGORITHM: u32 = 5093;
    /// Signatures, of the signature header: over the header alone, and over header and payload.
    pub(super) const OF_HEADER: [u32; 2] = [267, 268];
    pub(super) const OF_ALL: [u32; 2] = [1002, 1005];
}

/// SHA-256 among OpenPGP's hash algorithms (RFC 9580, 9.5), which rpm's tags use.
const SHA256: u64 = 8;

fn broken(what: impl std::fmt::Display) -> anyhow::Error {
    Failure::verification(format!("it is no RPM package, or a damaged one: {what}")).into()
}

/// A header structure: values by tag.
struct Header {
    /// Type, count, and where the value begins in `store`.
    entries: BTreeMap<u32, (u32, usize, usize)>,
    store: Vec<u8>,
    /// The structure as it is in the file.
    bytes: Vec<u8>,
}

/// A big-endian number.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Header {
    fn read(file: &mut impl Read) -> Result<Self> {
        let mut intro = [0; 16];
        file.read_exact(&mut intro).map_err(broken)?;
        if intro[..4] != [0x8e, 0xad, 0xe8, 0x01] {
            return Err(broken("a header is missing"));
        }
        let (count, size) = (number(&intro[8..12]), number(&intro[12..]));
        let len = count * 16 + size;
        if len > LARGEST_HEADER {
            return Err(broken(format_args!("a header of {len} bytes")));
        }
        let mut bytes = intro.to_vec();
        if file.take(len).read_to_end(&mut bytes).context("reading a header")? as u64 != len {
            return Err(broken("it ends in a header"));
        }
        let (index, store) = bytes[16..].split_at(usize::try_from(count * 16)?);
        let mut entries = BTreeMap::new();
        for entry in index.chunks_exact(16) {
            let field = |at: usize| number(&entry[at..at + 4]) as usize;
            if field(8) > store.len() {
                return Err(broken("a value outside of its header"));
            }
            entries.insert(number(&entry[..4]) as u32, (field(4) as u32, field(12), field(8)));
        }
        Ok(Self { entries, store: store.to_vec(), bytes })
    }

    /// A value of bytes (type 7).
    fn binary(&self, tag: u32) -> Option<&[u8]> {
        let (kind, count, at) = *self.entries.get(&tag)?;
        (kind == 7).then(|| self.store.get(at..at.checked_add(count)?)).flatten()
    }

    /// Strings (types 6, 8 and 9); empty where there is no such tag.
    fn strings(&self, tag: u32) -> Result<Vec<&str>> {
        let Some((kind, count, at)) = self.entries.get(&tag).copied() else { return Ok(Vec::new()) };
        let count = if kind == 6 { 1 } else { count };
        let mut strings = self.store[at..].split(|byte| *byte == 0);
        let texts = strings.by_ref().take(count).map(|bytes| std::str::from_utf8(bytes).map_err(broken));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        if ![6, 8, 9].contains(&kind) || texts.len() != count {
            return Err(broken(format_args!("tag {tag} is not text")));
        }
        Ok(texts)
    }

    fn string(&self, tag: u32) -> Result<&str> {
        self.strings(tag)?.first().copied().ok_or_else(|| broken(format_args!("tag {tag} is missing")))
    }

    /// Numbers of 32 bits (type 4); empty where there is no such tag.
    fn numbers(&self, tag: u32) -> Result<Vec<u64>> {
        let Some((kind, count, at)) = self.entries.get(&tag).copied() else { return Ok(Vec::new()) };
        let bytes = count.checked_mul(4).and_then(|len| self.store.get(at..at.checked_add(len)?));
        match bytes {
            Some(bytes) if kind == 4 => Ok(bytes.chunks_exact(4).map(number).collect()),
            _ => Err(broken(format_args!("tag {tag} is not a list of numbers"))),
        }
    }

    /// Paths of the package's files, as the payload has them but without `./`, in the order of all lists of files.
    fn paths(&self) -> Result<Vec<String>> {
        let folders = self.strings(tag::DIR_NAMES)?;
        let (names, indexes) = (self.strings(tag::BASE_NAMES)?, self.numbers(tag::DIR_INDEXES)?);
        if names.len() != indexes.len() {
            return Err(broken("its list of files is torn"));
        }
        // Many files may share one folder, whose name comes once in the header and in each of their paths.
        let mut left = LARGEST_HEADER as usize;
        let path = |(name, index): (&&str, &u64)| {
            let folder = usize::try_from(*index).ok().and_then(|index| folders.get(index));
            let folder = folder.ok_or_else(|| broken("a file without a folder"))?;
            let len = left.checked_sub(folder.len() + name.len()).filter(|_| folder.len() + name.len() <= LONGEST_PATH);
            left = len.ok_or_else(|| broken("its paths are longer than any package's"))?;
            Ok(format!("{}{name}", folder.trim_start_matches('/')))
        };
        names.iter().zip(&indexes).map(path).collect()
    }
}

/// An open package, before its payload.
struct Opened<F> {
    file: F,
    signatures: Header,
    header: Header,
}

fn open(store: &Store, object: &Digest) -> Result<Opened<File>> {
    read_headers(store.open_object(object)?)
}

fn read_headers<F: Read + Seek>(mut file: F) -> Result<Opened<F>> {
    let mut lead = [0; 96];
    file.read_exact(&mut lead).map_err(broken)?;
    if lead[..4] != [0xed, 0xab, 0xee, 0xdb] {
        return Err(broken("it does not begin as one"));
    }
    let signatures = Header::read(&mut file)?;
    // The signature header is padded to 8 bytes.
    let padding = i64::try_from(signatures.bytes.len().next_multiple_of(8) - signatures.bytes.len())?;
    file.seek(SeekFrom::Current(padding)).context("reading a package")?;
    let header = Header::read(&mut file)?;
    if header.entries.contains_key(&tag::SOURCE_PACKAGE) {
        bail!(Failure::user("it is a source package").hint("name the binary package"));
    }
    Ok(Opened { file, signatures, header })
}

/// What a package says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub name: String,
    /// What comes before everything else when versions are compared.
    pub epoch: Option<u64>,
    /// Its version.
    pub version: String,
    /// Its release.
    pub release: String,
    /// Its architecture, or `noarch`.
    pub architecture: String,
    /// Its licence, in words of its distribution.
    pub license: Option<String>,
    /// Who made it.
    pub vendor: Option<String>,
    /// File name of the source package.
    pub source: Option<String>,
}

/// What the package `object` says of itself.
///
/// # Errors
/// If it is no package, or a damaged one.
pub fn about(store: &Store, object: &Digest) -> Result<About> {
    let Opened { header, .. } = open(store, object)?;
    let text = |tag| header.string(tag).map(str::to_owned);
    let maybe = |tag| -> Result<Option<String>> {
        let value = header.strings(tag)?.first().map(|text| text.trim().to_owned());
        Ok(value.filter(|text| !text.is_empty()))
    };
    Ok(About {
        name: text(tag::NAME)?,
        epoch: header.numbers(tag::EPOCH)?.first().copied(),
        version: text(tag::VERSION)?,
        release: text(tag::RELEASE)?,
        architecture: text(tag::ARCH)?,
        license: maybe(tag::LICENSE)?,
        vendor: maybe(tag::VENDOR)?,
        source: maybe(tag::SOURCE_RPM)?,
    })
}

/// Checks that a key of the ring signed the package: its header, which has the payload's digest; or, as older packages have
/// it, all of it. Gives the key's fingerprint.
///
/// # Errors
/// No good signature by one of the keys; a payload that is not the header's.
pub fn verify(store: &Store, object: &Digest, keys: &Keyring) -> Result<String> {
    let Opened { mut file, signatures, header } = open(store, object)?;
    let mut payload = Vec::new();
    file.read_to_end(&mut payload).context("reading a package")?;
    let find = |tags: [u32; 2]| tags.into_iter().find_map(|tag| signatures.binary(tag));
    if let Some(signature) = find(tag::OF_HEADER) {
        let key = keys.verify_detached(signature, &header.bytes)?;
        let algorithm = header.numbers(tag::PAYLOAD_DIGEST_ALGORITHM)?;
        if algorithm != [SHA256] {
            bail!(
                Failure::verification("its signed header has no SHA-256 of its payload")
                    .hint("take a newer build of the package, or leave out `keys` and check it another way")
            );
        }
        if header.string(tag::PAYLOAD_DIGEST)? != Digest::of(&payload).to_string() {
            bail!(Failure::verification("its payload is not the one that was signed").hint("fetch the package again"));
        }
        return Ok(key);
    }
    let Some(signature) = find(tag::OF_ALL) else {
        bail!(
            Failure::verification("it is not signed")
                .hint("take the vendor's own build; or leave out `keys`: then the lock alone says what it is")
        );
    };
    let mut signed = header.bytes;
    signed.extend(payload);
    Ok(keys.verify_detached(signature, &signed)?)
}

/// The files of the package `object`, for a machine of `architecture`.
///
/// # Errors
/// If it is no package, is for another machine, or has what cannot be carried over.
pub fn unpack(store: &Store, object: &Digest, architecture: Architecture) -> Result<Package> {
    let key = step_key("rpm-unpack", STEP_VERSION, &(object, architecture))?;
    store.cached(&key, "unpacking a package", || {
        let Opened { file, header, .. } = open(store, object)?;
        let own = header.string(tag::ARCH)?;
        let name = [tag::NAME, tag::VERSION, tag::RELEASE].map(|tag| header.string(tag));
        let [name, version, release] = name;
        let name = format!("{}-{}-{}.{own}", name?, version?, release?);
        let wanted = architecture.machine();
        if own != wanted && own != "noarch" {
            bail!(
                Failure::verification(format!("{name} is for {own}, not for {wanted}"))
                    .hint("take the package for that machine")
            );
        }
        if header.string(tag::PAYLOAD_FORMAT)? != "cpio" {
            return Err(broken("its payload is no cpio archive"));
        }
        let paths = header.paths()?;
        let capabilities = header.strings(tag::FILE_CAPS)?;
        let capable: Vec<&str> = paths
            .iter()
            .zip(&capabilities)
            .filter(|(_, caps)| !caps.is_empty())
            .map(|(path, _)| path.as_str())
            .collect();
        if !capable.is_empty() {
            bail!(
                Failure::user(format!(
                    "{name} gives file capabilities to /{}, which is not supported",
                    capable.join(", /")
                ))
                .hint("install it before the system is archived")
            );
        }
        let (users, groups) = (header.strings(tag::FILE_USER)?, header.strings(tag::FILE_GROUP)?);
        if users.len() != paths.len() || groups.len() != paths.len() {
            return Err(broken("its list of owners is torn"));
        }
        let owners = paths.iter().zip(users.iter().zip(&groups)).filter(|(_, owner)| *owner != (&"root", &"root"));
        let owners =
            owners.map(|(path, (user, group))| (path.clone(), ((*user).to_owned(), (*group).to_owned()))).collect();
        let archive = index(store, decompress(file)?).with_context(|| format!("reading the files of {name}"))?;
        Ok(Package { name, archive, owners })
    })
}

/// Copies a newc cpio archive into the store and lists its entries.
fn index(store: &Store, stream: impl Read) -> Result<Archive> {
    let mut writer = store.writer()?;
    let entries = entries(stream, &mut writer)?;
    Ok(Archive { tar: writer.commit(None)?.0, entries })
}

fn entries(mut stream: impl Read, mut writer: impl Write) -> Result<Vec<ArchiveEntry>> {
    let mut names = Names::new(Rules::Package);
    let mut entries: Vec<ArchiveEntry> = Vec::new();
    // Of a file with several names, all but the last come without content: device and inode, and places in `entries`.
    let mut pending: BTreeMap<(u64, u64), Vec<usize>> = BTreeMap::new();
    let mut at = 0;
    loop {
        let header = take(&mut stream, &mut writer, &mut at, 110)?;
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            return Err(broken("its payload is not in cpio's newc format, or has files of 4 GiB and more"));
        }
        let field = |n: usize| {
            let hex = std::str::from_utf8(&header[6 + 8 * n..14 + 8 * n]).map_err(broken)?;
            u64::from_str_radix(hex, 16).map_err(broken)
        };
        let (inode, mode, links, mtime, size) = (field(0)?, field(1)?, field(4)?, field(5)?, field(6)?);
        let (device, name_len) = ((field(7)?, field(8)?), field(11)?);
        if name_len == 0 || name_len > LONGEST_PATH as u64 {
            return Err(broken("a path of no sensible length"));
        }
        let name = take(&mut stream, &mut writer, &mut at, name_len)?;
        let name = name.strip_suffix(b"\0").ok_or_else(|| broken("a path without an end"))?;
        pad(&mut stream, &mut writer, &mut at)?;
        if name == b"TRAILER!!!" {
            break;
        }
        let path = names.clean(name)?;
        let about = || format!("reading member `{path}`");
        let (offset, kind) = (at, mode & 0o170_000);
        let kind = match kind {
            0o040_000 => ArchiveKind::Dir,
            0o100_000 => ArchiveKind::File { offset, len: size },
            0o120_000 => {
                if size > LONGEST_PATH as u64 {
                    return Err(broken("a link of no sensible length"));
                }
                let target = take(&mut stream, &mut writer, &mut at, size)?;
                ArchiveKind::Symlink(names.symlink_target(&path, &target).with_context(about)?)
            }
            _ => bail!("`{path}` is neither a file, a folder nor a link: a package of such is not supported"),
        };
        let what = match kind {
            ArchiveKind::Dir => What::Dir,
            ArchiveKind::File { .. } => What::File,
            _ => What::Symlink,
        };
        names.add(&path, what).with_context(about)?;
        if what == What::File {
            let copied = std::io::copy(&mut (&mut stream).take(size), &mut writer).with_context(about)?;
            if copied != size {
                return Err(broken("its payload ends in a file"));
            }
            at += size;
        }
        pad(&mut stream, &mut writer, &mut at)?;
        let entry = ArchiveEntry {
            path,
            kind,
            mode: (mode & 0o7777) as u16,
            uid: 0,
            gid: 0,
            mtime: u32::try_from(mtime).unwrap_or(u32::MAX),
            xattrs: BTreeMap::new(),
        };
        if what == What::File && links > 1 {
            let id = (device.0 << 32 | device.1, inode);
            let others = pending.entry(id).or_default();
            // Hard links name an earlier file: the first takes the content, and the later ones its name.
            if size > 0 {
                if let [first, ..] = others[..] {
                    let first_path = entries[first].path.clone();
                    entries[first].kind = entry.kind.clone();
                    entries.push(ArchiveEntry { kind: ArchiveKind::HardLink(first_path), ..entry });
                    continue;
                }
            } else if let [first, ..] = others[..] {
                let first_path = entries[first].path.clone();
                others.push(entries.len());
                entries.push(ArchiveEntry { kind: ArchiveKind::HardLink(first_path), ..entry });
                continue;
            }
            others.push(entries.len());
        }
        entries.push(entry);
    }
    // Decompressors check their sums at the end.
    std::io::copy(&mut stream, &mut std::io::sink()).context("reading the end of a payload")?;
    Ok(entries)
}

/// Reads exactly `len` bytes and copies them.
fn take(stream: &mut impl Read, writer: &mut impl Write, at: &mut u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(len).read_to_end(&mut bytes).context("reading a payload")?;
    if bytes.len() as u64 != len {
        return Err(broken("its payload ends too early"));
    }
    writer.write_all(&bytes).context("writing to the store")?;
    *at += len;
    Ok(bytes)
}

/// Headers and contents are padded to 4 bytes.
fn pad(stream: &mut impl Read, writer: &mut impl Write, at: &mut u64) -> Result<()> {
    let len = at.next_multiple_of(4) - *at;
    take(stream, writer, at, len).map(drop)
}

/// For tests/fuzz: reads `data` as a package, without a store.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    let Ok(Opened { file, signatures, header }) = read_headers(std::io::Cursor::new(data)) else { return };
    for tag in tag::OF_HEADER.into_iter().chain(tag::OF_ALL) {
        signatures.binary(tag);
    }
    for tag in [tag::NAME, tag::FILE_USER, tag::FILE_CAPS, tag::PAYLOAD_DIGEST] {
        let _ = header.strings(tag);
    }
    let _ = header.paths();
    if let Ok(payload) = decompress(file)
        && let Ok(entries) = entries(payload.take(4 << 20), std::io::sink())
    {
        entries.iter().for_each(super::deb::archive::fuzz::check);
    }
}

#[cfg(test)]
#[path = "rpm_tests.rs"]
mod tests;
