// SPDX-License-Identifier: MIT OR Apache-2.0

//! What recipes have in common: reading source packages, changing what the compiler sees, keeping what it made.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::golang::Go;
use super::workspace::{single_top, write_tree};
use super::{LIBRARIES, Program, Trees, patch};
use crate::store::Store;
use crate::tree::{FileTree, Kind};

/// A scratch directory of the store with everything unpacked in it; it goes away when this is dropped.
pub(super) struct Workshop {
    /// The directory. Absolute and without symbolic links: the toolchain compares paths by their text.
    pub(super) path: PathBuf,
    /// Libraries that came as packages, by import path.
    pub(super) libraries: PathBuf,
    /// The toolchain.
    pub(super) go: Go,
    /// The source, with the distribution's patches.
    pub(super) source: PathBuf,
    _scratch: TempDir,
}

impl Workshop {
    /// Unpacks the packages, among them release `go` of Go, and the source of the import path `top`.
    pub(super) fn open(store: &Store, trees: &Trees, go: &str, top: &str, jobs: NonZeroUsize) -> Result<Self> {
        let scratch = tempfile::Builder::new()
            .prefix("source-")
            .tempdir_in(store.root().join("work"))
            .context("creating a scratch directory in the store")?;
        let path = scratch.path().canonicalize().context("finding the scratch directory")?;
        let packages = path.join("packages");
        write_tree(store, &trees.packages, "", &packages).context("writing the toolchain")?;
        let go = Go::find(&packages, go, &path, jobs)?;
        let source = go.source_dir(top);
        write_tree(store, &trees.upstream, single_top(&trees.upstream), &source).context("writing the source")?;
        apply_patches(store, &trees.packaging, &source)?;
        Ok(Self { path, libraries: packages.join(LIBRARIES), go, source, _scratch: scratch })
    }
}

/// Applies the patches of the distribution in the order of its series (dpkg-source(1), format "3.0 (quilt)").
pub(super) fn apply_patches(store: &Store, packaging: &FileTree, source: &Path) -> Result<()> {
    let series = read(store, packaging, "", "debian/patches/series")?;
    for name in series.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let context = || format!("applying debian/patches/{name}");
        if name.contains(char::is_whitespace) {
            bail!("options in debian/patches/series are not supported: {name}");
        }
        let diff = read(store, packaging, "", &format!("debian/patches/{name}"))?;
        for file in patch::parse(diff.as_bytes()).with_context(context)? {
            let path = source.join(&file.path);
            let old = match fs::read(&path) {
                Ok(content) => Some(content),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(error).with_context(|| format!("reading {}", file.path)),
            };
            match file.apply(old.as_deref()).with_context(context)? {
                Some(new) => write(&path, new).map(drop)?,
                None => fs::remove_file(&path).with_context(|| format!("removing {}", file.path))?,
            }
        }
    }
    Ok(())
}

/// Replaces the one line that is `from`.
pub(super) fn replace_line(text: &str, from: &str, to: &str) -> Result<String> {
    let count = text.lines().filter(|line| *line == from).count();
    if count != 1 {
        bail!("wanted one line `{from}`, found {count}");
    }
    Ok(text.lines().map(|line| if line == from { to } else { line }).flat_map(|line| [line, "\n"]).collect())
}

/// A text file of a tree.
pub(super) fn read(store: &Store, tree: &FileTree, top: &str, path: &str) -> Result<String> {
    let full = if top.is_empty() { path.to_owned() } else { format!("{top}/{path}") };
    let Some(Kind::File(content)) = tree.get(&full).map(|entry| &entry.kind) else {
        bail!("there is no file {path} in the archive");
    };
    String::from_utf8(content.read(store)?).with_context(|| format!("reading {path}: not UTF-8"))
}

/// Writes a file of the scratch directory and gives its path back.
pub(super) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<PathBuf> {
    let context = || format!("writing {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(context)?;
    }
    fs::write(path, content).with_context(context)?;
    Ok(path.to_owned())
}

/// Copies a compiled program into the store.
pub(super) fn keep(store: &Store, path: &Path) -> Result<Program> {
    let context = || format!("keeping compiled program {}", path.display());
    let file = fs::File::open(path).with_context(context)?;
    let (object, size) = store.put_reader(file, None).with_context(context)?;
    Ok(Program { object, size })
}

pub(super) fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("path {} is not UTF-8", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_replaced() {
        assert_eq!(replace_line("a\nb\nc\n", "b", "B").unwrap(), "a\nB\nc\n");
        assert_eq!(replace_line("a\n", "b", "B").unwrap_err().to_string(), "wanted one line `b`, found 0");
        assert!(replace_line("b\nb\n", "b", "B").is_err());
    }
}
