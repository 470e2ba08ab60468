// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads kernel modules: their `.modinfo`, what they export, what they need. Knows nothing of index files.
//!
//! Sources: modinfo(8), modprobe.d(5) on soft dependencies, the kernel's Documentation/kbuild/modules.rst.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Content, FileTree, Kind, OpenContent};
use crate::elf::Elf;
use crate::store::Store;

/// A module bigger than this, decompressed, is none.
const LARGEST_MODULE: u64 = 256 << 20;

/// One kernel module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its name: the file's name without suffixes, `-` written `_`.
    pub name: String,
    /// Path below `usr/lib/modules/<version>`.
    pub path: String,
    /// Patterns it is loaded for.
    pub aliases: Vec<String>,
    /// Soft dependencies as written: `pre: a b post: c`.
    pub softdeps: Vec<String>,
    /// Weak dependencies as written.
    pub weakdeps: Vec<String>,
    /// The modules it needs directly, as indices into [`Modules::modules`], ascending.
    pub needs: Vec<u32>,
}

impl Module {
    /// Modules to be loaded before this one if they are there.
    pub fn soft_before(&self) -> impl Iterator<Item = &str> {
        self.softdeps.iter().flat_map(|line| {
            let mut before = false;
            line.split_whitespace().filter(move |word| {
                match *word {
                    "pre:" => before = true,
                    "post:" => before = false,
                    _ => return before,
                }
                false
            })
        })
    }
}

/// All modules of one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modules {
    /// The kernel's release: `6.1.0-39-amd64`.
    pub version: String,
    /// In the order of `modules.order`, then by path.
    pub modules: Vec<Module>,
    /// Exported symbol to module, as indices.
    #[serde(skip)]
    pub exports: BTreeMap<String, u32>,
    /// Names of what is built into the kernel.
    pub builtin: Vec<String>,
}

impl Modules {
    /// The module of this name; `-` and `_` are the same.
    pub fn find(&self, name: &str) -> Option<usize> {
        let name = name.replace('-', "_");
        self.modules.iter().position(|module| module.name == name)
    }
    /// Whether the kernel has this built in.
    pub fn is_builtin(&self, name: &str) -> bool {
        let name = name.replace('-', "_");
        self.builtin.contains(&name)
    }
    /// The folder in the tree.
    pub fn folder(&self) -> String {
        format!("usr/lib/modules/{}", self.version)
    }
}

/// What a module's file says.
#[derive(Debug, Default)]
struct Facts {
    aliases: Vec<String>,
    softdeps: Vec<String>,
    weakdeps: Vec<String>,
    exports: Vec<String>,
    wants: Vec<String>,
}

/// The releases of the kernels whose modules are in the tree.
pub fn versions(tree: &FileTree) -> Vec<String> {
    let below = tree.below("usr/lib/modules");
    below
        .filter(|(_, entry)| entry.kind == Kind::Dir)
        .filter_map(|(path, _)| path.strip_prefix("usr/lib/modules/"))
        .filter(|version| !version.contains('/'))
        .map(str::to_owned)
        .collect()
}

/// A module's name, from its path; `None` if it is not the path of a module.
pub fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    (!stem.is_empty()).then(|| stem.replace('-', "_"))
}

/// The files of all modules of this kernel, by path below its folder.
pub fn files<'a>(tree: &'a FileTree, version: &str) -> BTreeMap<String, &'a Content> {
    let folder = format!("usr/lib/modules/{version}");
    tree.below(&folder)
        .filter_map(|(path, entry)| match &entry.kind {
            Kind::File(content) if module_name(path).is_some() => Some((path[folder.len() + 1..].to_owned(), content)),
            _ => None,
        })
        .collect()
}

/// The bytes of a module, decompressed if need be.
pub fn decompressed(store: &Store, path: &str, content: &Content) -> Result<OpenContent> {
    if path.ends_with(".ko") {
        return content.open(store);
    }
    let reader = crate::inputs::deb::archive::decompress(content.reader(store)?)?;
    let mut bytes = Vec::new();
    reader.take(LARGEST_MODULE + 1).read_to_end(&mut bytes).context("decompressing a module")?;
    if bytes.len() as u64 > LARGEST_MODULE {
        bail!("a module of more than {} MiB", LARGEST_MODULE >> 20);
    }
    Ok(OpenContent::Bytes(bytes.into()))
}

/// The value pairs of a `.modinfo` section.
fn modinfo(raw: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    raw.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='))
}

fn read_module(store: &Store, path: &str, content: &Content) -> Result<Facts> {
    let open = decompressed(store, path, content)?;
    let elf = Elf::read(&open)?.context("not an ELF file")?;
    let sections = elf.sections()?;
    let mut facts = Facts::default();
    if let Some(info) = sections.iter().find(|section| section.name == ".modinfo") {
        for (key, value) in modinfo(&elf.data(info)?) {
            match key {
                "alias" => facts.aliases.push(value.to_owned()),
                "softdep" => facts.softdeps.push(value.to_owned()),
                "weakdep" => facts.weakdeps.push(value.to_owned()),
                _ => {}
            }
        }
    }
    elf.symbols(&sections, |symbol| {
        if !symbol.defined {
            facts.wants.push(symbol.name.to_owned());
        } else if let Some(name) = symbol.name.strip_prefix("__ksymtab_") {
            facts.exports.push(name.to_owned());
        }
    })?;
    Ok(facts)
}

/// Reads all modules of the kernel `version`, in parallel.
///
/// # Errors
/// No modules there, a file that is no module, two modules of one name.
pub fn read(store: &Store, tree: &FileTree, version: &str) -> Result<Modules> {
    let folder = format!("usr/lib/modules/{version}");
    let mut files: Vec<(String, &Content)> = files(tree, version).into_iter().collect();
    if files.is_empty() {
        bail!("there are no kernel modules in /{folder}");
    }
    // modules.order names the files as the kernel's build made them: uncompressed.
    let order = tree.text(store, &format!("{folder}/modules.order"))?.unwrap_or_default();
    let order: BTreeMap<&str, usize> = order.lines().enumerate().map(|(at, line)| (line, at)).collect();
    files.sort_by_cached_key(|(path, _)| {
        let end = path.rfind(".ko").map_or(path.len(), |at| at + 3);
        (order.get(&path[..end]).copied().unwrap_or(usize::MAX), path.clone())
    });
    let facts = files
        .par_iter()
        .map(|(path, content)| read_module(store, path, content).with_context(|| format!("reading /{folder}/{path}")))
        .collect::<Result<Vec<Facts>>>()?;
    let builtin = tree.text(store, &format!("{folder}/modules.builtin"))?.unwrap_or_default();
    let builtin = builtin.lines().filter_map(module_name).collect();
    connect(version, files.into_iter().map(|(path, _)| path).zip(facts).collect(), builtin)
}

/// Resolves symbols between modules.
fn connect(version: &str, found: Vec<(String, Facts)>, builtin: Vec<String>) -> Result<Modules> {
    let mut exports = BTreeMap::new();
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for (index, (path, facts)) in found.iter().enumerate() {
        let name = module_name(path).with_context(|| format!("`{path}` is not a module's name"))?;
        if let Some(other) = names.insert(name, path) {
            bail!("`{other}` and `{path}` are the same module");
        }
        for symbol in &facts.exports {
            exports.insert(symbol.clone(), u32::try_from(index).context("too many modules")?);
        }
    }
    let mut modules = Vec::with_capacity(found.len());
    for (index, (path, facts)) in found.into_iter().enumerate() {
        let mut needs: Vec<u32> = facts.wants.iter().filter_map(|symbol| exports.get(symbol)).copied().collect();
        needs.sort_unstable();
        needs.dedup();
        needs.retain(|need| *need as usize != index);
        let name = module_name(&path).unwrap_or_default();
        let Facts { aliases, softdeps, weakdeps, .. } = facts;
        modules.push(Module { name, path, aliases, softdeps, weakdeps, needs });
    }
    Ok(Modules { version: version.to_owned(), modules, exports, builtin })
}

/// The place of each module in an order where everything comes after what it needs.
///
/// # Errors
/// Modules that need each other.
pub fn load_order(modules: &[Module]) -> Result<Vec<usize>> {
    let mut order = Vec::with_capacity(modules.len());
    // 0 unseen, 1 being visited, 2 done.
    let mut state = vec![0_u8; modules.len()];
    let mut stack: Vec<(usize, usize)> = Vec::new();
    for start in 0..modules.len() {
        if state[start] == 0 {
            stack.push((start, 0));
        }
        while let Some((at, next)) = stack.pop() {
            state[at] = 1;
            let Some(need) = modules[at].needs.get(next).map(|need| *need as usize) else {
                state[at] = 2;
                order.push(at);
                continue;
            };
            stack.push((at, next + 1));
            match state.get(need) {
                Some(0) => stack.push((need, 0)),
                Some(1) => bail!("modules {} and {} need each other", modules[at].name, modules[need].name),
                Some(_) => {}
                None => bail!("module {} needs number {need}, which does not exist", modules[at].name),
            }
        }
    }
    let mut place = vec![0; modules.len()];
    for (position, index) in order.into_iter().enumerate() {
        place[index] = position;
    }
    Ok(place)
}

/// Everything module `index` needs, directly or not: those that need others come before them, as `modules.dep` lists
/// them. `place` is from [`load_order`].
pub fn closure(modules: &[Module], place: &[usize], index: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    let mut todo: Vec<usize> = vec![index];
    while let Some(at) = todo.pop() {
        for need in &modules[at].needs {
            let need = *need as usize;
            if !found.contains(&need) {
                found.push(need);
                todo.push(need);
            }
        }
    }
    found.sort_by_key(|at| std::cmp::Reverse(place[*at]));
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::{Module, closure, load_order, modinfo, module_name};

    fn module(name: &str, needs: &[u32]) -> Module {
        Module { name: name.into(), needs: needs.into(), ..Module::default() }
    }

    #[test]
    fn names() {
        assert_eq!(module_name("kernel/fs/nls/nls_iso8859-1.ko.xz").as_deref(), Some("nls_iso8859_1"));
        assert_eq!(module_name("modules.dep"), None);
        assert_eq!(module_name(".ko"), None);
    }

    #[test]
    fn order_and_closure() {
        let modules = [module("c", &[1]), module("b", &[2]), module("a", &[]), module("x", &[0, 2])];
        let place = load_order(&modules).unwrap();
        assert_eq!(place, [2, 1, 0, 3]);
        assert_eq!(closure(&modules, &place, 3), [0, 1, 2]);
        let error = load_order(&[module("a", &[1]), module("b", &[0])]).unwrap_err().to_string();
        assert_eq!(error, "modules b and a need each other");
    }

    #[test]
    fn soft_dependencies_before() {
        let ext4 = Module { softdeps: vec!["pre: crc32c a post: z pre: b".into()], ..Module::default() };
        assert_eq!(ext4.soft_before().collect::<Vec<_>>(), ["crc32c", "a", "b"]);
    }

    proptest! {
        #[test]
        fn any_modinfo_is_read(raw: Vec<u8>) {
            modinfo(&raw).count();
        }
        #[test]
        fn any_needs_are_ordered(needs in proptest::collection::vec(proptest::collection::vec(0_u32..8, 0..4), 0..8)) {
            let modules: Vec<_> = needs.iter().map(|n| module("m", n)).collect();
            let _ = load_order(&modules);
        }
    }
}
