// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether an output is still what the build wrote, by the checksums it carries itself. They find what broke on the way;
//! against somebody who changes output and checksums, a signature over them helps whoever knows the public key.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use profiles::medium::{FOLDER, INDEX, Medium};
use profiles::signing::{PublicKey, SIGNATURE_MAX, SUFFIX, SUMS, Signature};
use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};

use super::inspect::{self, Volume};
use super::inspect_iso;
use super::place::folder as folder_of;
use super::sums::{is_list, is_list_name, parse as parse_sums, signature_of};
use crate::error::Failure;
use crate::image::iso9660;
use crate::image::squashfs::read::{NodeKind, Reader};
use crate::inputs::deb::archive::{ArchiveKind, each_entry};
use crate::store::Digest;

/// Longest list that is read, and most of all lists of a bundle: some 500 000 files.
const SUMS_MAX: u64 = 64 << 20;
/// Largest index of a medium that is read, as `inspect` has it.
const INDEX_MAX: u64 = 64 << 20;
/// Most files of a bundle.
const FILES_MAX: usize = 1 << 20;
/// First bytes of a zstd frame (RFC 8878, 3.1.1) and of a qcow2 image.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const QCOW2: [u8; 4] = *b"QFI\xfb";
/// Blobs of the images on a payload: named by their own SHA-256 (OCI image layout).
const BLOBS: &str = "images/blobs/sha256/";

/// What was found about an output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// What kind of output it is.
    pub kind: &'static str,
    /// Files, partitions or blobs that were compared with a checksum, and are right.
    pub checked: usize,
    /// What carries no checksum: only its structure was read.
    pub unchecked: Vec<String>,
    /// What is wrong, sorted.
    pub problems: Vec<String>,
    /// What is to be said of signatures: who signed what, and whether that was verified.
    pub signatures: Vec<String>,
}

/// Verifies the output at `path`: a folder with a list of checksums, such a list, a bundle, an installation image or a disk
/// image. With a `key`, every list must be signed with it.
///
/// # Errors
/// An output that carries nothing to verify it by; failing I/O. Damage is no error, nor is a signature that is missing:
/// they are in the result.
pub fn verify(path: &Path, key: Option<&PublicKey>) -> Result<Verified> {
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Failure::user(format!("there is no {}", path.display())).caused_by(e),
        _ => Failure::io(format!("looking at {}", path.display()), e),
    })?;
    if meta.is_dir() {
        return folder(path, key);
    }
    if path.file_name().and_then(|name| name.to_str()).is_some_and(is_list_name) {
        return list(path, key);
    }
    let opening = |e| Failure::io(format!("reading {}", path.display()), e);
    let mut file = File::open(path).map_err(opening)?;
    let mut start = Vec::new();
    (&mut file).take(4).read_to_end(&mut start).map_err(opening)?;
    file.seek(SeekFrom::Start(0)).map_err(opening)?;
    match start.as_slice() {
        start if start == ZSTD => Ok(Verified::of("a bundle", |out| read_bundle(file, key, out))),
        start if start == QCOW2 => {
            Err(Failure::user(format!("{} is a qcow2 image, which carries no checksums", path.display()))
                .hint("`qemu-img convert -O raw` makes a disk image of it, which can be looked into")
                .into())
        }
        _ if inspect_iso::is_iso(path)? => {
            Ok(Verified::of("an installation image", |out| read_iso(path, &file, key, out)))
        }
        _ => Ok(Verified::of("a disk image", |out| {
            if key.is_some() {
                let list = format!("<cluster>.{SUMS}");
                out.problems
                    .push(format!("it carries no signature: verify the {list} beside it, which says what it is"));
            }
            read_disk(path, &file, out)
        })),
    }
}

// ---- Lists of checksums ----

impl Verified {
    fn new(kind: &'static str) -> Self {
        Self { kind, ..Self::default() }
    }

    /// What `read` finds. That it cannot read on is one problem more.
    fn of(kind: &'static str, read: impl FnOnce(&mut Self) -> Result<()>) -> Self {
        let mut out = Self::new(kind);
        if let Err(e) = read(&mut out) {
            out.problems.push(format!("{e:#}"));
        }
        out.sorted()
    }

    /// Compares what was found with what is listed.
    fn compare(&mut self, path: &str, wanted: &Digest, found: Result<Digest, String>) {
        match found {
            Ok(found) if found == *wanted => self.checked += 1,
            Ok(found) => self.problems.push(format!("{path}: sha256 is {found}, expected {wanted}")),
            Err(why) => self.problems.push(format!("{path}: {why}")),
        }
    }

    /// Looks at the signature over a list, if there is one: a file, or why it cannot be read.
    fn compare_signature(
        &mut self,
        list: &str,
        text: &str,
        signature: Option<Result<String, String>>,
        key: Option<&PublicKey>,
    ) {
        let name = signature_of(list);
        let signature = match (signature, key) {
            (None, None) => return,
            (None, Some(key)) => {
                return self.problems.push(format!("{list}: is not signed by {}: there is no {name}", key.id()));
            }
            (Some(signature), _) => signature,
        };
        let signature = match signature.and_then(|text| Signature::parse(&text).map_err(|e| e.to_string())) {
            Ok(signature) => signature,
            Err(why) => return self.problems.push(format!("{name}: {why}")),
        };
        let Some(key) = key else {
            let id = signature.key();
            return self.signatures.push(format!("{list} names the key {id} as its signer, which was not verified"));
        };
        match key.verify(text.as_bytes(), &signature) {
            Ok(()) => {
                self.checked += 1;
                self.signatures.push(format!("{list} is signed by {} ({})", key.id(), signature.comment()));
            }
            Err(why) => self.problems.push(format!("{list}: is not signed by {}: {why}", key.id())),
        }
    }

    fn sorted(mut self) -> Self {
        self.problems.sort();
        self
    }
}

/// The signature beside the list at `path`, if there is one.
fn signature_beside(path: &Path) -> Option<Result<String, String>> {
    let path = path.with_file_name(signature_of(path.file_name()?.to_str()?));
    path.symlink_metadata().is_ok().then(|| read_text(open_plain(&path), SIGNATURE_MAX))
}

/// A list of files that lie beside it, among others.
fn list(path: &Path, key: Option<&PublicKey>) -> Result<Verified> {
    Ok(Verified::of("a list of checksums", |out| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = match read_text(open_plain(path), SUMS_MAX) {
            Ok(text) => text,
            Err(why) => {
                out.problems.push(format!("{name}: {why}"));
                return Ok(());
            }
        };
        out.compare_signature(&name, &text, signature_beside(path), key);
        match parse_sums(&text) {
            Ok(sums) => sums.iter().for_each(|(name, wanted)| {
                let found = open_plain(&folder_of(path).join(name)).and_then(|mut file| digest(&mut file));
                out.compare(name, wanted, found);
            }),
            Err(why) => out.problems.push(format!("{name}: {why}")),
        }
        Ok(())
    }))
}

fn folder(path: &Path, key: Option<&PublicKey>) -> Result<Verified> {
    let mut files = BTreeSet::new();
    let mut out = Verified::new("a folder with a list of checksums");
    walk(path, "", &mut files, &mut out.problems)?;
    let lists: Vec<&String> = files.iter().filter(|name| is_list(name)).collect();
    if lists.is_empty() {
        let message = format!("{} has no list of checksums ({SUMS})", path.display());
        return Err(Failure::user(message)
            .hint(
                "folders that are verified are those of `--output pxe`, an unpacked bundle, and an export of the store",
            )
            .into());
    }
    let mut listed = BTreeSet::new();
    for list in lists {
        let text = read_text(open_plain(&path.join(list)), SUMS_MAX);
        if let Ok(text) = &text {
            out.compare_signature(list, text, signature_beside(&path.join(list)), key);
        }
        listed.insert(signature_of(list));
        match text.and_then(|text| parse_sums(&text)) {
            Ok(sums) => {
                for (name, wanted) in sums {
                    let found = open_plain(&path.join(&name)).and_then(|mut file| digest(&mut file));
                    out.compare(&name, &wanted, found);
                    listed.insert(name);
                }
            }
            Err(why) => out.problems.push(format!("{list}: {why}")),
        }
    }
    let unlisted = files.iter().filter(|name| !is_list(name) && !listed.contains(*name));
    out.problems.extend(unlisted.map(|name| format!("{name}: is in no list of checksums")));
    Ok(out.sorted())
}

/// All files below a folder, by relative path. What is neither file nor folder is a problem.
fn walk(root: &Path, folder: &str, files: &mut BTreeSet<String>, problems: &mut Vec<String>) -> Result<()> {
    let path = root.join(folder);
    let listing = |e| Failure::io(format!("listing {}", path.display()), e);
    for entry in fs::read_dir(&path).map_err(listing)? {
        let entry = entry.map_err(listing)?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            problems.push(format!("{}: its name is not UTF-8", entry.path().display()));
            continue;
        };
        let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        let kind = entry.file_type().map_err(listing)?;
        if kind.is_dir() {
            walk(root, &name, files, problems)?;
        } else if kind.is_file() {
            files.insert(name);
        } else {
            problems.push(format!("{name}: is neither a file nor a folder"));
        }
    }
    Ok(())
}

/// Opens a file, not what a link leads to; does not wait for a pipe.
fn open_plain(path: &Path) -> Result<File, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(file.into()),
        Err(rustix::io::Errno::NOENT) => Err("is not there".to_owned()),
        Err(e) => Err(format!("cannot be opened: {e}")),
    }
}

fn digest(reader: &mut impl Read) -> Result<Digest, String> {
    Digest::of_reader(reader).map(|(digest, _)| digest).map_err(|e| format!("cannot be read: {e}"))
}

fn read_text(file: Result<impl Read, String>, limit: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    file?.take(limit + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > limit {
        return Err(format!("has more than {} KiB", limit >> 10));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

// ---- Bundles ----

/// Reads the archive once, from beginning to end, whatever comes after its last entry included; zstd compares its own checksum on
/// the way.
fn read_bundle(file: impl Read, key: Option<&PublicKey>, out: &mut Verified) -> Result<()> {
    let decoder = zstd::stream::read::Decoder::new(file).context("decompressing it")?;
    let mut found: BTreeMap<String, Digest> = BTreeMap::new();
    let mut lists: BTreeMap<String, String> = BTreeMap::new();
    let mut signatures: BTreeMap<String, Result<String, String>> = BTreeMap::new();
    let mut list_bytes = 0;
    each_entry(decoder, |entry, content| {
        let path = below_top(&entry.path).to_owned();
        if found.len() > FILES_MAX {
            bail!("the archive has more than {FILES_MAX} files");
        }
        match entry.kind {
            ArchiveKind::Dir => {}
            ArchiveKind::File { .. } if is_list(&path) => {
                let text = read_text(Ok(content), SUMS_MAX).map_err(|why| anyhow::anyhow!("{path}: {why}"))?;
                list_bytes += text.len() as u64;
                if list_bytes > SUMS_MAX {
                    bail!("its lists of checksums have more than {} MiB", SUMS_MAX >> 20);
                }
                lists.insert(path, text);
            }
            ArchiveKind::File { .. } if path.strip_suffix(SUFFIX).is_some_and(is_list) => {
                signatures.insert(path, read_text(Ok(content), SIGNATURE_MAX));
            }
            ArchiveKind::File { .. } => {
                let digest = digest(&mut &mut *content).map_err(|why| anyhow::anyhow!("{path}: {why}"))?;
                if found.insert(path.clone(), digest).is_some() {
                    out.problems.push(format!("{path}: is there twice"));
                }
            }
            ArchiveKind::HardLink(target) => match found.get(below_top(&target)).copied() {
                Some(digest) => drop(found.insert(path, digest)),
                None => out.problems.push(format!("{path}: is a link to what is not before it")),
            },
            _ => out.problems.push(format!("{path}: is neither a file nor a folder")),
        }
        Ok(())
    })?;
    if lists.is_empty() {
        bail!("it holds no list of checksums ({SUMS}): no bundle of ours");
    }
    let mut listed = BTreeSet::new();
    for (list, text) in lists {
        out.compare_signature(&list, &text, signatures.remove(&signature_of(&list)), key);
        match parse_sums(&text) {
            Ok(sums) => {
                for (path, wanted) in sums {
                    let digest = found.get(&path).copied().ok_or_else(|| "is not there".to_owned());
                    out.compare(&path, &wanted, digest);
                    // Both halves of a bundle for both architectures list its scripts.
                    listed.insert(path);
                }
            }
            Err(why) => out.problems.push(format!("{list}: {why}")),
        }
    }
    let unlisted = found.into_keys().filter(|path| !listed.contains(path)).chain(signatures.into_keys());
    out.problems.extend(unlisted.map(|path| format!("{path}: is in no list of checksums")));
    Ok(())
}

/// A path of a bundle below its one top folder.
fn below_top(path: &str) -> &str {
    path.split_once('/').map_or("", |(_, rest)| rest)
}

// ---- Images ----

fn read_iso(path: &Path, file: &File, key: Option<&PublicKey>, out: &mut Verified) -> Result<()> {
    let found = inspect_iso::inspect(path)?;
    // The menu says what the index is, the index what all files are.
    let argument = "imgbuild.medium=";
    let named = found.menu.iter().flat_map(|(name, text)| text.split_whitespace().map(move |word| (name, word)));
    let mut named = named.filter_map(|(name, word)| Some((name, word.strip_prefix(argument)?))).peekable();
    if named.peek().is_none() {
        out.problems.push(format!("no entry of the menu says {argument}"));
    }
    for (name, digest) in named {
        if digest == found.medium {
            out.checked += 1;
        } else {
            out.problems.push(format!("{name}: wants the index with sha256 {digest}, and it has {}", found.medium));
        }
    }
    let [index_path, list_path] = [INDEX, SUMS].map(|name| format!("{FOLDER}/{name}"));
    let signature_path = signature_of(&list_path);
    let ours = [&index_path, &list_path, &signature_path];
    let read = iso9660::read(file, INDEX_MAX, |path| ours.iter().any(|own| *own == path))?;
    let index: Medium = serde_json::from_slice(read.bytes.get(&index_path).context("there is no index")?)?;
    let text = |path: &String| read.bytes.get(path).map(|bytes| read_text(Ok(bytes.as_slice()), INDEX_MAX));
    compare_medium_list(&found.medium, &index, text(&list_path), text(&signature_path), key, out);
    let wanted: BTreeMap<String, &str> =
        index.files.iter().map(|(path, file)| (format!("{FOLDER}/{path}"), file.sha256.as_str())).collect();
    for (path, read) in iso9660::digests(file, wanted.keys().map(String::as_str))? {
        let found = read.map(|(digest, _)| digest).map_err(|e| format!("{e:#}"));
        match wanted[path].parse() {
            Ok(wanted) => out.compare(path, &wanted, found),
            Err(e) => out.problems.push(format!("{path}: {e}")),
        }
    }
    let unlisted = found.files.keys().filter(|path| !ours.contains(path) && !wanted.contains_key(*path));
    out.problems.extend(unlisted.map(|path| format!("{path}: is not in {index_path}")));
    out.unchecked.push("the EFI system partition with kernel and initramfs".to_owned());
    Ok(())
}

/// The list of a signed medium says what its index says, and what the index is.
fn compare_medium_list(
    index_digest: &str,
    index: &Medium,
    list: Option<Result<String, String>>,
    signature: Option<Result<String, String>>,
    key: Option<&PublicKey>,
    out: &mut Verified,
) {
    let text = match list {
        Some(Ok(text)) => text,
        Some(Err(why)) => return out.problems.push(format!("{SUMS}: {why}")),
        None => {
            if let Some(key) = key {
                out.problems.push(format!("{INDEX}: is not signed by {}: there is no {SUMS}", key.id()));
            }
            return;
        }
    };
    out.compare_signature(SUMS, &text, signature, key);
    let listed = match parse_sums(&text) {
        Ok(listed) => listed,
        Err(why) => return out.problems.push(format!("{SUMS}: {why}")),
    };
    let wanted = index.files.iter().map(|(path, file)| (path.as_str(), file.sha256.as_str()));
    let wanted: BTreeMap<&str, &str> = wanted.chain([(INDEX, index_digest)]).collect();
    for path in listed.keys().map(String::as_str).chain(wanted.keys().copied()).collect::<BTreeSet<_>>() {
        let is_same = listed.get(path).map(Digest::to_string).as_deref() == wanted.get(path).copied();
        if is_same {
            out.checked += 1;
        } else {
            out.problems.push(format!("{SUMS}: does not say of {path} what {INDEX} says"));
        }
    }
}

fn read_disk(path: &Path, file: &File, out: &mut Verified) -> Result<()> {
    // Compares the checksums of both partition tables.
    let found = inspect::inspect(path)?;
    out.checked += 1;
    for partition in &found.table.partitions {
        let label = &partition.label;
        match found.contents.get(label) {
            Some(Volume::Damaged { reason }) => out.problems.push(format!("{label}: {reason}")),
            Some(Volume::Squashfs(_)) => {
                if let Err(e) = read_squashfs(file, label, partition.offset, out) {
                    out.problems.push(format!("{label}: {e:#}"));
                }
                out.unchecked.push(format!("{label}, but for the images in it"));
            }
            Some(Volume::Fat { .. }) => out.unchecked.push(label.clone()),
            Some(Volume::Empty) | None => {}
        }
    }
    // What a build leaves empty may be empty; root and seed never are.
    for label in ["ESP", "root-a", "payload-a", "CIDATA"] {
        if matches!(found.contents.get(label), Some(Volume::Empty) | None) {
            out.problems.push(format!("{label}: there is nothing in it"));
        }
    }
    Ok(())
}

/// Reads every byte of every file. Blobs of images are what their names say.
fn read_squashfs(file: &File, label: &str, offset: u64, out: &mut Verified) -> Result<()> {
    let mut reader = Reader::open(BufReader::new(file), offset)?;
    reader.walk(&mut |reader, path, node| {
        let NodeKind::File(data) = &node.kind else { return Ok(()) };
        let mut sink = Hashing(Sha256::new());
        let read = reader.copy(data, &mut sink).map_err(|e| format!("{e:#}"));
        let shown = format!("{label}: {path}");
        match (path.strip_prefix(BLOBS).map(str::parse), read) {
            (Some(Ok(wanted)), read) => out.compare(&shown, &wanted, read.map(|()| Digest::of_hasher(sink.0))),
            (_, Err(why)) => out.problems.push(format!("{shown}: {why}")),
            (_, Ok(())) => {}
        }
        Ok(())
    })
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// For tests/fuzz: reads a tar archive as a bundle, and a list of checksums.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(packed) = zstd::encode_all(data, -7) {
        Verified::of("a bundle", |out| read_bundle(&packed[..], None, out));
    }
    for path in std::str::from_utf8(data).iter().filter_map(|text| parse_sums(text).ok()).flat_map(BTreeMap::into_keys)
    {
        let clean = |part| matches!(part, std::path::Component::Normal(_));
        assert!(Path::new(&path).components().all(clean), "{path}");
    }
}
