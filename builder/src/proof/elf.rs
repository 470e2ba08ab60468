// SPDX-License-Identifier: MIT OR Apache-2.0

//! Proves that every program of a tree can run: right machine, class and ABI, and every library it asks for is there.
//!
//! The dynamic linker works without `/etc/ld.so.cache`: it looks in `DT_RUNPATH` and its default folders (ld.so(8)).
//! LoongArch has two worlds that cannot run each other's programs: the interpreter and bits 6-7 of `e_flags` (the object
//! file ABI) tell them apart (the LoongArch ELF psABI, "e_flags").

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rayon::prelude::*;

use crate::elf::{Dynamic, Elf, machine};
use crate::error::Failure;
use crate::store::Store;
use crate::tree::{Content, FileTree, Kind};

/// What programs must be built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Debian's name of the architecture.
    pub name: &'static str,
    machine: u16,
    /// The linker's default folders.
    folders: &'static [&'static str],
}

const TARGETS: [Target; 2] = [
    Target {
        name: "amd64",
        machine: machine::X86_64,
        folders: &["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib", "usr/lib", "lib64", "usr/lib64"],
    },
    Target {
        name: "loong64",
        machine: machine::LOONGARCH,
        folders: &[
            "lib/loongarch64-linux-gnu",
            "usr/lib/loongarch64-linux-gnu",
            "lib",
            "usr/lib",
            "lib64",
            "usr/lib64",
        ],
    },
];

impl Target {
    /// The target of Debian's architecture `name`.
    pub fn of(name: &str) -> Result<Self> {
        let found = TARGETS.into_iter().find(|target| target.name == name);
        found.with_context(|| format!("there is no target `{name}`; there are amd64 and loong64"))
    }
}

/// `e_machine` of BPF programs, which run in the kernel of any machine.
const BPF: u16 = 247;

/// Where files may be for other processors: firmware runs on devices.
const FOREIGN: [&str; 2] = ["usr/lib/firmware/", "usr/share/"];

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// ELF files found.
    pub files: usize,
    /// Of these, with a dynamic section.
    pub dynamic: usize,
}

/// Says which package, or other input, a file is from; asked only for files that cannot run.
pub type Origin<'a> = &'a dyn Fn(&Content) -> Option<String>;

/// What is known of the files of a tree.
#[derive(Clone, Copy)]
pub struct Files<'a> {
    /// Where a file is from.
    pub origin: Origin<'a>,
    /// Whether somebody else vouches for the libraries of a file: a vendor, for its own system. Machine and ABI are looked at
    /// all the same.
    pub vouched: &'a dyn Fn(&Content) -> bool,
    /// Folders, as absolute paths, whose programs are meant for other machines.
    pub foreign: &'a [String],
}

impl std::fmt::Debug for Files<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("foreign", &self.foreign).finish_non_exhaustive()
    }
}

impl<'a> Files<'a> {
    /// Files for which nobody vouches.
    pub fn of(origin: Origin<'a>) -> Self {
        Self { origin, vouched: &|_| false, foreign: &[] }
    }
}

/// Looks at every ELF file of the tree.
///
/// # Errors
/// All files for another machine or of the old world with where they are from, and all libraries that are missing with
/// those that ask for them.
pub fn check(store: &Store, tree: &FileTree, target: &Target, of: &Files<'_>) -> Result<Report> {
    let is_foreign = |path: &str| {
        let below = |top: &String| path.strip_prefix(top.trim_matches('/')).is_some_and(|rest| rest.starts_with('/'));
        may_be_foreign(path) || of.foreign.iter().any(below)
    };
    let files: Vec<(&str, &Content, bool)> = tree
        .iter()
        .filter_map(|(path, entry)| match &entry.kind {
            Kind::File(content) if !is_foreign(path) => Some((path, content, (of.vouched)(content))),
            _ => None,
        })
        .collect();
    let looked = files
        .par_iter()
        .map(|(path, content, vouched)| {
            look(store, content, target, *vouched).with_context(|| format!("reading /{path}"))
        })
        .collect::<Result<Vec<Option<Seen>>>>()?;
    let mut problems: Vec<String> = Vec::new();
    for ((path, content, _), seen) in files.iter().zip(&looked) {
        if let Some(problem) = seen.as_ref().and_then(|seen| seen.problem.as_ref()) {
            let from = (of.origin)(content).map_or(String::new(), |from| format!(" ({from})"));
            problems.push(format!("/{path}{from}: {problem}"));
        }
    }
    let seen: Vec<(&str, Seen)> =
        files.iter().zip(looked).filter_map(|((path, ..), seen)| Some((*path, seen?))).collect();
    let unresolved: Vec<Vec<String>> =
        seen.iter().map(|(path, seen)| unresolved(tree, target, path, &seen.dynamic)).collect();
    let mut report = Report { files: seen.len(), dynamic: 0 };
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for ((path, file), names) in seen.iter().zip(&unresolved) {
        report.dynamic += usize::from(!file.dynamic.needed.is_empty() || file.dynamic.interpreter.is_some());
        for library in names {
            if file.vouched {
                tracing::debug!("{library}, which /{path} asks for, is where only its vendor knows");
            } else if !loaded_before(&seen, &unresolved, path, file, library) {
                missing.entry(library).or_default().push(path);
            }
        }
    }
    problems.extend(missing.into_iter().map(|(library, by)| {
        let more = if by.len() > 3 { format!(" and {} more", by.len() - 3) } else { String::new() };
        format!("{library} is in no package; needed by /{}{more}", by[..by.len().min(3)].join(", /"))
    }));
    if !problems.is_empty() {
        let message = format!("programs that cannot run on {}:\n  {}", target.name, problems.join("\n  "));
        return Err(Failure::verification(message)
            .hint(
                "add the packages that have what is missing, leave out what asks for it, and take files for another machine or ABI \
                 from somewhere else; what is meant for another machine in a vendor's root filesystem is named in its `foreign`",
            )
            .into());
    }
    Ok(report)
}

struct Seen {
    problem: Option<String>,
    dynamic: Dynamic,
    vouched: bool,
}

/// Whether a file may be for another processor because of where it is.
fn may_be_foreign(path: &str) -> bool {
    FOREIGN.iter().any(|top| path.starts_with(top))
}

/// Why the file at `path` cannot run on `target`, if it is a program at all. Libraries are not looked for: in a layer of an image
/// of others, nobody knows where they are.
///
/// # Errors
/// Failing I/O, and an ELF file that contradicts itself.
pub fn problem(store: &Store, path: &str, content: &Content, target: &Target) -> Result<Option<String>> {
    if may_be_foreign(path) {
        return Ok(None);
    }
    Ok(look(store, content, target, true)?.and_then(|seen| seen.problem))
}

/// `None` if it is no ELF file, or one for no machine of ours to judge.
fn look(store: &Store, content: &Content, target: &Target, vouched: bool) -> Result<Option<Seen>> {
    let open = content.open(store)?;
    let Some(elf) = Elf::read(&open)? else { return Ok(None) };
    if elf.machine == BPF {
        return Ok(None);
    }
    if elf.machine != target.machine || !elf.wide || !elf.little {
        let bits = if elf.wide { 64 } else { 32 };
        let problem = Some(format!("is for another machine (e_machine {}, {bits}-bit)", elf.machine));
        return Ok(Some(Seen { problem, dynamic: Dynamic::default(), vouched }));
    }
    // Relocatable files, such as kernel modules, have no dynamic section.
    let dynamic = match elf.kind {
        1 => Dynamic::default(),
        // Debug files keep the tables of a section without its content.
        _ if vouched => elf.dynamic().unwrap_or_default(),
        _ => elf.dynamic()?,
    };
    let old = (elf.flags >> 6) & 3 == 0 || dynamic.interpreter.as_deref() == Some("/lib64/ld.so.1");
    let problem = (elf.machine == machine::LOONGARCH && old && elf.kind != 1)
        .then(|| format!("has the old-world ABI (e_flags {:#x})", elf.flags));
    Ok(Some(Seen { problem, dynamic, vouched }))
}

/// Whether everything that loads the library at `path` has loaded `name` itself, from a folder of its own: the linker
/// then takes that one. systemd's private libraries find each other so.
fn loaded_before(seen: &[(&str, Seen)], unresolved: &[Vec<String>], path: &str, file: &Seen, name: &String) -> bool {
    let own = file.dynamic.soname.as_deref().or(path.rsplit('/').next()).unwrap_or(path);
    let mut users = seen.iter().zip(unresolved).filter(|((_, user), _)| user.dynamic.needed.iter().any(|n| n == own));
    let mut used = false;
    let all = users.all(|((_, user), missing)| {
        used = true;
        user.dynamic.needed.contains(name) && !missing.contains(name)
    });
    used && all
}

/// Names of libraries and the interpreter that the file at `path` asks for in vain.
fn unresolved(tree: &FileTree, target: &Target, path: &str, dynamic: &Dynamic) -> Vec<String> {
    let own = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let there = |path: &str| tree.content(path.trim_start_matches('/')).is_some();
    let mut out = Vec::new();
    for name in &dynamic.needed {
        let found = if name.contains('/') {
            there(name)
        } else {
            let runpath = dynamic.runpath.iter().filter(|folder| !folder.is_empty());
            let runpath = runpath.map(|folder| folder.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", own));
            let mut folders = runpath.chain(target.folders.iter().map(|folder| (*folder).to_owned()));
            folders.any(|folder| there(&format!("{folder}/{name}")))
        };
        if !found {
            out.push(name.clone());
        }
    }
    out.extend(dynamic.interpreter.iter().filter(|path| !there(path)).cloned());
    out
}

#[cfg(test)]
mod tests {
    use super::{Files, Target, check};
    use crate::store::Store;
    use crate::tree::{Content, Entry, FileTree};

    /// An ELF header without sections or segments.
    fn header(machine: u16, class: u8, flags: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1]);
        bytes[16] = 2;
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[48..52].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    fn nowhere(_: &Content) -> Option<String> {
        None
    }

    #[test]
    fn machines_and_worlds() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut tree = FileTree::new();
        tree.insert("usr/bin/x86", Entry::file(header(62, 2, 0), 0o755)).unwrap();
        tree.insert("usr/bin/bpf", Entry::file(header(247, 2, 0), 0o755)).unwrap();
        tree.insert("usr/bin/text", Entry::file(*b"#!/bin/sh", 0o755)).unwrap();
        assert_eq!(check(&store, &tree, &Target::of("amd64").unwrap(), &Files::of(&nowhere)).unwrap().files, 1);
        tree.insert("usr/bin/x86", Entry::file(header(258, 2, 0x3), 0o755)).unwrap();
        tree.insert("usr/bin/x32", Entry::file(header(62, 1, 0), 0o755)).unwrap();
        tree.insert("usr/bin/new", Entry::file(header(258, 2, 0x43), 0o755)).unwrap();
        let origin = |content: &Content| {
            let bytes = content.read(&store).unwrap();
            (bytes[4] == 1).then(|| "package libx32".to_owned())
        };
        let error = check(&store, &tree, &Target::of("loong64").unwrap(), &Files::of(&origin)).unwrap_err().to_string();
        assert!(error.contains("/usr/bin/x86: has the old-world ABI (e_flags 0x3)"), "{error}");
        let other = "/usr/bin/x32 (package libx32): is for another machine (e_machine 62, 32-bit)";
        assert!(error.contains(other), "{error}");
        assert!(!error.contains("/usr/bin/new"), "{error}");
        assert!(Target::of("m68k").is_err());
    }

    #[test]
    fn missing_libraries_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut tree = FileTree::new();
        // The test itself is a program of this machine.
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        tree.insert("usr/bin/prog", Entry::file(bytes, 0o755)).unwrap();
        let target = if cfg!(target_arch = "x86_64") { "amd64" } else { "loong64" };
        let error = check(&store, &tree, &Target::of(target).unwrap(), &Files::of(&nowhere)).unwrap_err().to_string();
        assert!(error.contains("libc.so.6 is in no package; needed by /usr/bin/prog"), "{error}");
    }
}
