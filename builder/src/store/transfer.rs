// SPDX-License-Identifier: MIT OR Apache-2.0

//! Objects on a drive, for a store without a network: export writes what the other side lacks, import takes what is right.
//!
//! An export is a folder that any filesystem can hold, FAT included: no links, no permissions, names of hex digits.
//! ```text
//! objects/ab/cdef…    the objects, under their sha256, as in a store
//! SHA256SUMS          the same, for `sha256sum -c`
//! index.json          the inventory; written last, so what it lists is whole
//! ```
//! What is there already is read and not written again, so an export that was interrupted goes on where it stopped, and a
//! second one into the same folder adds to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::HumanBytes;
use rustix::fs::{Advice, Mode, OFlags};

use super::inventory::{About, INDEX, Inventory, OBJECTS, place};
use super::{Digest, Partial, Store, Tick};
use crate::error::{ErrorKind, Failure, kind};

/// The digests in the form that coreutils check.
const SUMS: &str = "SHA256SUMS";
/// The end of the name of an object that is being written.
const PART: &str = "part";
/// Bytes read at a time.
const CHUNK: usize = 128 << 10;

/// What an export wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Objects written now, and their bytes.
    pub written: (usize, u64),
    /// Objects that were in the folder already, and are right.
    pub there: usize,
    /// Objects that the other side has.
    pub not_needed: usize,
}

/// Writes those objects of `wanted` to the folder `target` that `other` has not, and reads back what was written.
/// `tick` is told of each byte written and each byte read back.
///
/// # Errors
/// If an object is not in the store (all that are missing), is damaged, or the drive does not keep what is written to it; if the
/// drive has too little space; failing I/O.
pub fn export(store: &Store, wanted: &Inventory, other: &Inventory, target: &Path, tick: Tick<'_>) -> Result<Exported> {
    let missing: Vec<String> = wanted
        .objects
        .iter()
        .filter(|(digest, about)| store.size(digest) != Some(about.size))
        .map(|(digest, about)| format!("\n  {} ({digest})", about.name))
        .collect();
    if !missing.is_empty() {
        let message =
            format!("not in the store {}: {} files:{}", store.root().display(), missing.len(), missing.concat());
        return Err(Failure::user(message).hint("run `imgbuild fetch` first, with a network").into());
    }
    let (not_needed, lacking): (Vec<_>, Vec<_>) =
        wanted.objects.iter().partition(|(digest, about)| other.has(digest, about.size));

    let target = Target::open(target)?;
    let mut index = target.index()?;
    let to_write =
        lacking.iter().filter(|(digest, about)| !target.has(digest, about.size)).map(|(_, about)| about.size);
    check_space(
        &target.root,
        to_write.sum(),
        "the export",
        "use a bigger drive; or give --since, so that only what the other side lacks is written",
    )?;
    let mut exported = Exported { written: (0, 0), there: 0, not_needed: not_needed.len() };
    let mut folders = BTreeSet::new();
    for (digest, about) in lacking {
        let path = place(&target.objects, digest);
        if target.has(digest, about.size) && target.reads_back(&path, digest, tick)? {
            exported.there += 1;
        } else {
            target.write(store, digest, &path, tick)?;
            exported.written.0 += 1;
            exported.written.1 += about.size;
            folders.extend(path.parent().map(Path::to_owned));
        }
        index.objects.insert(*digest, about.clone());
    }
    folders.extend([target.objects.clone(), target.root.clone()]);
    for folder in &folders {
        target.sync(folder)?;
    }
    target.finish(&index)?;
    Ok(exported)
}

/// The folder of an export, for this process alone.
struct Target {
    root: PathBuf,
    objects: PathBuf,
    _lock: File,
}

impl Target {
    fn open(root: &Path) -> Result<Self> {
        let doing = |e| Failure::io(format!("making the folder {}", root.display()), e);
        // Their objects look alike, but those of a store are read-only and checked when they are opened.
        if root.join("steps").is_dir() {
            let message = format!("{} is a store", root.display());
            return Err(Failure::user(message)
                .hint("export to a folder of its own, and `imgbuild store import` that")
                .into());
        }
        let objects = root.join(OBJECTS);
        fs::create_dir_all(&objects).map_err(doing)?;
        let lock = File::open(root).map_err(doing)?;
        lock.try_lock().map_err(|e| match e {
            fs::TryLockError::WouldBlock => {
                Failure::environment(format!("another export writes to {}", root.display()))
                    .hint("wait for it, or name another folder")
            }
            fs::TryLockError::Error(e) => Failure::io(format!("locking {}", root.display()), e),
        })?;
        Ok(Self { root: root.to_owned(), objects, _lock: lock })
    }

    /// What an earlier export has left here. What was taken away since does not count.
    fn index(&self) -> Result<Inventory> {
        let path = self.root.join(INDEX);
        if !path.exists() {
            return Ok(Inventory::default());
        }
        let mut index = Inventory::at(&path)?;
        index.objects.retain(|digest, about| self.has(digest, about.size));
        Ok(index)
    }

    fn has(&self, digest: &Digest, size: u64) -> bool {
        place(&self.objects, digest).symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == size)
    }

    /// Whether the drive has the object.
    fn reads_back(&self, path: &Path, digest: &Digest, tick: Tick<'_>) -> Result<bool> {
        let reading = |e| Failure::io(format!("reading back {}", path.display()), e);
        let file = File::open(path).map_err(reading)?;
        forget_pages(&file).map_err(reading)?;
        let mut file = Ticking { file, tick };
        Ok(Digest::of_reader(&mut file).map_err(reading)?.0 == *digest)
    }

    fn write(&self, store: &Store, digest: &Digest, path: &Path, tick: Tick<'_>) -> Result<()> {
        // Checked against its name.
        let object = store.open_object(digest)?;
        let part = path.with_extension(PART);
        let writing = |e| {
            let failure = Failure::io(format!("writing {}", part.display()), e);
            match failure.source.as_ref().and_then(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind) {
                Some(io::ErrorKind::FileTooLarge) => {
                    failure.hint("FAT holds no file of 4 GiB or more: use exFAT or ext4 on this drive")
                }
                Some(io::ErrorKind::StorageFull) => failure.hint("the drive is full: use a bigger one"),
                _ => failure,
            }
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(writing)?;
        }
        let mut file = File::create(&part).map_err(writing)?;
        // The drive's own mistakes are ours to find before the old content, if there is one, is gone.
        let written = io::copy(&mut Ticking { file: object, tick }, &mut file).and_then(|_| file.sync_all());
        if let Err(e) = written {
            _ = fs::remove_file(&part);
            return Err(writing(e).into());
        }
        drop(file);
        if !self.reads_back(&part, digest, tick)? {
            _ = fs::remove_file(&part);
            let message = format!("the drive did not keep what was written to {}", part.display());
            return Err(Failure::verification(message)
                .hint("the drive, its cable or its adapter is broken: use another one")
                .into());
        }
        fs::rename(&part, path).map_err(writing)?;
        Ok(())
    }

    /// Makes names durable.
    fn sync(&self, folder: &Path) -> Result<(), Failure> {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|e| Failure::io(format!("writing {}", folder.display()), e))
    }

    /// Writes the index, which makes it an export.
    fn finish(&self, index: &Inventory) -> Result<()> {
        let index_text = index.to_text()?;
        let mut sums = format!("{}  {INDEX}\n", Digest::of(index_text.as_bytes()));
        for digest in index.objects.keys() {
            let hex = digest.to_string();
            writeln!(sums, "{hex}  {OBJECTS}/{}/{}", &hex[..2], &hex[2..])?;
        }
        for (name, text) in [(SUMS, sums), (INDEX, index_text)] {
            let path = self.root.join(name);
            let writing = |e| Failure::io(format!("writing {}", path.display()), e);
            let part = path.with_extension(PART);
            let mut file = File::create(&part).map_err(writing)?;
            file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(writing)?;
            fs::rename(&part, &path).map_err(writing)?;
            self.sync(&self.root)?;
        }
        Ok(())
    }
}

/// Makes the next read come from the drive, as far as the kernel lets itself be told.
fn forget_pages(file: &File) -> io::Result<()> {
    match rustix::fs::fadvise(file, 0, None, Advice::DontNeed) {
        // Some filesystems know no advice: they are read as they are.
        Ok(()) | Err(rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Tells of every byte that is read.
struct Ticking<'a> {
    file: File,
    tick: Tick<'a>,
}

impl Read for Ticking<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        (self.tick)(n as u64);
        Ok(n)
    }
}

/// What an import brought.
#[derive(Debug, Clone, Default)]
pub struct Imported {
    /// Objects that are in the store now, and their bytes.
    pub new: (usize, u64),
    /// Objects that were there before.
    pub there: usize,
    /// Objects of the index that the export does not have as they should be, each with what is wrong.
    pub damaged: BTreeMap<Digest, (About, String)>,
}

/// What the export in `folder` lists.
///
/// # Errors
/// If it is no export.
pub fn index(folder: &Path) -> Result<Inventory> {
    let index = folder.join(INDEX);
    if !index.exists() {
        let message = format!("{} holds no export: there is no {INDEX}", folder.display());
        let hint = "name the folder that `imgbuild store export` wrote; it writes this file last: one that was interrupted has none, \
                    so run it again";
        return Err(Failure::user(message).hint(hint).into());
    }
    Inventory::at(&index)
}

/// Takes every object of `index`, that of the export in `folder`, which the store lacks. Each is verified before it is in the
/// store; one that was interrupted is continued. One that is damaged keeps no other from entering.
///
/// # Errors
/// If the store has too little space; failing I/O on the store's side.
pub fn import(store: &Store, folder: &Path, index: &Inventory, tick: Tick<'_>) -> Result<Imported> {
    let (there, lacking): (Vec<_>, Vec<_>) =
        index.objects.iter().partition(|(digest, about)| store.size(digest) == Some(about.size));
    let bytes = lacking.iter().fold(0_u64, |sum, (_, about)| sum.saturating_add(about.size));
    check_space(
        store.root(),
        bytes,
        "the import",
        "free some space, or name another store with --store; `imgbuild store gc` removes what no lock needs",
    )?;
    let mut imported = Imported { there: there.len(), ..Imported::default() };
    for (digest, about) in lacking {
        match import_one(store, &place(&folder.join(OBJECTS), digest), digest, about.size, tick)? {
            None => {
                imported.new.0 += 1;
                imported.new.1 += about.size;
            }
            Some(problem) => drop(imported.damaged.insert(*digest, (about.clone(), problem))),
        }
    }
    Ok(imported)
}

/// Takes one object; gives what is wrong with it.
fn import_one(store: &Store, path: &Path, digest: &Digest, size: u64, tick: Tick<'_>) -> Result<Option<String>> {
    let mut source = match open_plain(path) {
        Ok(file) => file,
        Err(why) => return Ok(Some(why)),
    };
    match source.metadata() {
        Ok(meta) if meta.is_file() && meta.len() == size => {}
        Ok(meta) if meta.is_file() => return Ok(Some(format!("it has {} bytes, expected {size}", meta.len()))),
        Ok(_) => return Ok(Some("it is no file".to_owned())),
        Err(e) => return Ok(Some(format!("it cannot be read: {e}"))),
    }
    for fresh in [false, true] {
        let mut partial = store.partial(digest)?;
        if store.size(digest) == Some(size) && store.verify(digest).is_ok() {
            // Another process was at it, and has it.
            partial.discard();
            return Ok(None);
        }
        if fresh || partial.len() > size {
            partial.restart()?;
        }
        let continued = !partial.is_empty();
        if let Some(problem) = fill(&mut partial, &mut source, size, tick)? {
            return Ok(Some(problem));
        }
        match partial.commit() {
            Ok(()) => return Ok(None),
            // What was there before may have been of something else: once more, from the start.
            Err(e) if continued && kind(&e) == ErrorKind::Verification => {}
            Err(e) if kind(&e) == ErrorKind::Verification => return Ok(Some(e.to_string())),
            Err(e) => return Err(e),
        }
    }
    Ok(Some("it changes while it is read".to_owned()))
}

/// Opens what must be a file: a link or a pipe on a stranger's drive is not followed and not waited for.
fn open_plain(path: &Path) -> Result<File, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(file.into()),
        Err(rustix::io::Errno::NOENT) => Err("it is not there".to_owned()),
        Err(rustix::io::Errno::LOOP) => Err("it is a symbolic link".to_owned()),
        Err(e) => Err(format!("it cannot be opened: {e}")),
    }
}

/// Copies the rest of `source` to `partial`. Gives what is wrong with the source, if something is; the store's own trouble is
/// an error.
fn fill(partial: &mut Partial, source: &mut File, size: u64, tick: Tick<'_>) -> Result<Option<String>> {
    if let Err(e) = source.seek(SeekFrom::Start(partial.len())) {
        return Ok(Some(format!("it cannot be read: {e}")));
    }
    let mut buffer = vec![0; CHUNK];
    while partial.len() < size {
        let most = usize::try_from(size - partial.len()).unwrap_or(CHUNK).min(CHUNK);
        let n = match source.read(&mut buffer[..most]) {
            Ok(0) => return Ok(Some(format!("it ends after {} of {size} bytes", partial.len()))),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Ok(Some(format!("it cannot be read: {e}"))),
        };
        partial.write_all(&buffer[..n]).map_err(|e| Failure::io("writing to the store", e))?;
        tick(n as u64);
    }
    Ok(None)
}

/// Bytes that can be written to the filesystem of a folder.
///
/// # Errors
/// If there is no such folder.
pub fn free_space(folder: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(folder).with_context(|| format!("measuring free space in {}", folder.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Refuses to begin what cannot end.
fn check_space(folder: &Path, needed: u64, what: &str, hint: &str) -> Result<()> {
    let free = free_space(folder)?;
    if free < needed {
        let [free, needed] = [free, needed].map(HumanBytes);
        let message = format!("{} has {free} of free space, and {what} needs {needed}", folder.display());
        return Err(Failure::environment(message).hint(hint).into());
    }
    Ok(())
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
