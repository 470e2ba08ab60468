// SPDX-License-Identifier: MIT OR Apache-2.0

//! Does to a tree what depmod(8) does to a system: writes the indices of kernel modules that modprobe and udev read.
//!
//! Sources: depmod(8), modules.dep(5), and kmod's description of its index format (see [`super::kmod_index`]).
//! The result is compared with the real depmod, byte by byte, in the tests.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::kmod_index::{Index, normalized_alias};
use super::modules::{Modules, closure, load_order, module_name, read, versions};
use super::{Content, Entry, FileTree, Kind};
use crate::store::{Digest, Store, step_key};

/// Bumped when the same modules would give other files.
const STEP_VERSION: u32 = 1;

/// What the step made: files below the kernel's folder, and [`Modules`] as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    files: Vec<(String, Digest, u64)>,
    modules: Digest,
}

/// Indexes the modules of every kernel in the tree. Cached by the modules' files.
///
/// # Errors
/// A module that cannot be read, or modules that need each other.
pub fn depmod(store: &Store, tree: &mut FileTree) -> Result<Vec<Modules>> {
    let mut all = Vec::new();
    for version in versions(tree) {
        all.push(depmod_version(store, tree, &version).with_context(|| format!("indexing modules of {version}"))?);
    }
    Ok(all)
}

fn depmod_version(store: &Store, tree: &mut FileTree, version: &str) -> Result<Modules> {
    let folder = format!("usr/lib/modules/{version}");
    let key = key(tree, version)?;
    let made: Made = match store.step(&key) {
        Some(made) => made,
        None => {
            let modules = read(store, tree, version)?;
            let mut files = Vec::new();
            for (name, bytes) in render(store, tree, &modules)? {
                files.push((name.to_owned(), store.put_bytes(&bytes)?, bytes.len() as u64));
            }
            let json = serde_json::to_vec(&modules).context("describing modules")?;
            let made = Made { files, modules: store.put_bytes(&json)? };
            store.record_step(&key, &made)?;
            made
        }
    };
    for (name, object, len) in made.files {
        let content = Content::Slice { object, offset: 0, len };
        tree.insert(&format!("{folder}/{name}"), Entry::new(Kind::File(content), 0o644))?;
    }
    serde_json::from_reader(std::io::BufReader::new(store.open_object(&made.modules)?)).context("reading modules")
}

/// The key of the step: every module and every list of the kernel's build.
fn key(tree: &FileTree, version: &str) -> Result<Digest> {
    let folder = format!("usr/lib/modules/{version}");
    let mut inputs = Vec::new();
    for (path, entry) in tree.below(&folder) {
        let lists = ["modules.order", "modules.builtin", "modules.builtin.modinfo"];
        if module_name(path).is_none() && !lists.iter().any(|list| path == format!("{folder}/{list}")) {
            continue;
        }
        if let Kind::File(content) = &entry.kind {
            inputs.push((path, identity(content)));
        }
    }
    step_key("depmod", STEP_VERSION, &(version, inputs))
}

fn identity(content: &Content) -> (Digest, u64, u64) {
    match content {
        Content::Bytes(bytes) => (Digest::of(bytes), 0, bytes.len() as u64),
        Content::Slice { object, offset, len } => (*object, *offset, *len),
    }
}

/// All files depmod writes.
pub fn render(store: &Store, tree: &FileTree, modules: &Modules) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let folder = modules.folder();
    let info = tree.content(&format!("{folder}/modules.builtin.modinfo"));
    let info = info.map(|content| content.read(store)).transpose()?.unwrap_or_default();
    let mut files = Vec::new();
    let (text, index) = dependencies(modules)?;
    files.push(("modules.dep", text));
    files.push(("modules.dep.bin", index));
    let (text, index) = aliases(modules)?;
    files.push(("modules.alias", text));
    files.push(("modules.alias.bin", index));
    files.push(("modules.softdep", soft_dependencies(modules).into_bytes()));
    if let Some(text) = weak_dependencies(modules) {
        files.push(("modules.weakdep", text.into_bytes()));
    }
    let (text, index) = symbols(modules)?;
    files.push(("modules.symbols", text));
    files.push(("modules.symbols.bin", index));
    let mut index = Index::default();
    for name in &modules.builtin {
        index.insert(name, "", 0)?;
    }
    files.push(("modules.builtin.bin", index.write()?));
    files.push(("modules.builtin.alias.bin", builtin_aliases(&info)?));
    files.push(("modules.devname", device_names(modules).into_bytes()));
    Ok(files)
}

/// A number that sorts values in an index: the module's place.
fn priority(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn dependencies(modules: &Modules) -> Result<(Vec<u8>, Vec<u8>)> {
    let place = load_order(&modules.modules)?;
    let (mut text, mut index) = (String::new(), Index::default());
    for (at, module) in modules.modules.iter().enumerate() {
        let mut line = format!("{}:", module.path);
        for need in closure(&modules.modules, &place, at) {
            line.push(' ');
            line.push_str(&modules.modules[need].path);
        }
        index.insert(&module.name, &line, priority(at))?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok((text.into_bytes(), index.write()?))
}

fn aliases(modules: &Modules) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut text = String::from("# Aliases extracted from modules themselves.\n");
    let mut index = Index::default();
    for (at, module) in modules.modules.iter().enumerate() {
        for alias in &module.aliases {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "alias {alias} {}", module.name);
            match normalized_alias(alias).filter(|alias| alias.is_ascii()) {
                Some(alias) => index.insert(&alias, &module.name, priority(at))?,
                None => tracing::warn!("module {} has an alias that nothing can match: {alias}", module.name),
            }
        }
    }
    Ok((text.into_bytes(), index.write()?))
}

fn soft_dependencies(modules: &Modules) -> String {
    let mut text = String::from("# Soft dependencies extracted from modules themselves.\n");
    for module in &modules.modules {
        for line in &module.softdeps {
            let _ = writeln!(text, "softdep {} {line}", module.name);
        }
    }
    text
}

/// Older kernels have none, and older kmod does not know the file.
fn weak_dependencies(modules: &Modules) -> Option<String> {
    let mut text = String::from("# Weak dependencies extracted from modules themselves.\n");
    let empty = text.len();
    for module in &modules.modules {
        for line in &module.weakdeps {
            let _ = writeln!(text, "weakdep {} {line}", module.name);
        }
    }
    (text.len() > empty).then_some(text)
}

fn symbols(modules: &Modules) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut text = String::from("# Aliases for symbols, used by symbol_request().\n");
    let mut index = Index::default();
    for (symbol, at) in &modules.exports {
        let name = &modules.modules[*at as usize].name;
        let _ = writeln!(text, "alias symbol:{symbol} {name}");
        index.insert(&format!("symbol:{symbol}"), name, *at)?;
    }
    Ok((text.into_bytes(), index.write()?))
}

/// From `modules.builtin.modinfo`: `module.key=value`, zero-terminated.
fn builtin_aliases(info: &[u8]) -> Result<Vec<u8>> {
    let mut index = Index::default();
    for pair in info.split(|byte| *byte == 0) {
        let Some((key, value)) = std::str::from_utf8(pair).ok().and_then(|pair| pair.split_once('=')) else { continue };
        if let Some((name, "alias")) = key.split_once('.')
            && let Some(alias) = normalized_alias(value)
        {
            index.insert(&alias, name, 0)?;
        }
    }
    index.write()
}

/// Device nodes that load a module when opened: kmod's `static-nodes` reads them.
fn device_names(modules: &Modules) -> String {
    let mut text = String::new();
    for module in &modules.modules {
        let name = module.aliases.iter().find_map(|alias| alias.strip_prefix("devname:"));
        let number = module.aliases.iter().find_map(|alias| {
            let (kind, numbers) = match alias.strip_prefix("char-major-") {
                Some(numbers) => ('c', numbers),
                None => ('b', alias.strip_prefix("block-major-")?),
            };
            let (major, minor) = numbers.split_once('-')?;
            Some((kind, major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        });
        if let (Some(name), Some((kind, major, minor))) = (name, number) {
            if text.is_empty() {
                text.push_str("# Device nodes to trigger on-demand module loading.\n");
            }
            let _ = writeln!(text, "{} {name} {kind}{major}:{minor}", module.name);
        }
    }
    text
}
