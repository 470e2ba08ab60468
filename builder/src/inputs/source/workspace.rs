// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writing file trees to disk, which compilers need and nothing else does.
//!
//! A tree comes from an archive of others: what is written stays below the directory it is written to, links included.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::store::Store;
use crate::tree::{FileTree, Kind};

/// Writes the files, directories and links of `tree` at and below `top` into the new directory `target`. Owners, times
/// and attributes are of no use to a compiler and are not kept.
pub(super) fn write_tree(store: &Store, tree: &FileTree, top: &str, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    let mut hard_links = Vec::new();
    for (path, entry) in tree.iter() {
        let Some(path) = below(path, top) else { continue };
        let to = target.join(path);
        let written = match &entry.kind {
            Kind::Dir => fs::create_dir(&to).context("creating a directory"),
            Kind::File(content) => content.reader(store).and_then(|mut reader| {
                let mode = if entry.mode & 0o111 == 0 { 0o644 } else { 0o755 };
                let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&to)?;
                let copied = io::copy(&mut reader, &mut file)?;
                if copied != content.len() {
                    bail!("store object is shorter than its index says: {copied} of {} bytes", content.len());
                }
                Ok(())
            }),
            Kind::Symlink(link) if stays_inside(path, link) => symlink(link, &to).context("creating a link"),
            Kind::Symlink(link) => Err(anyhow::anyhow!("link to {link} leads out of the tree")),
            Kind::HardLink(other) => {
                hard_links.push((other.as_str(), to.clone()));
                Ok(())
            }
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {
                Err(anyhow::anyhow!("neither a file, a directory nor a link"))
            }
        };
        written.with_context(|| format!("writing {path} of an unpacked archive"))?;
    }
    for (other, to) in hard_links {
        let from = below(other, top).with_context(|| format!("hard link to {other} leads out of the tree"))?;
        fs::hard_link(target.join(from), &to).with_context(|| format!("linking {} to {from}", to.display()))?;
    }
    Ok(())
}

/// The path below `top`; `None` for `top` itself and anything beside it.
fn below<'a>(path: &'a str, top: &str) -> Option<&'a str> {
    if top.is_empty() {
        return Some(path).filter(|path| !path.is_empty());
    }
    path.strip_prefix(top)?.strip_prefix('/')
}

/// The single directory at the top of `tree` that everything is in, or the root if there is more than one entry: an
/// upstream archive usually has one named for the release, and `dpkg-source` ignores its name, too.
pub(super) fn single_top(tree: &FileTree) -> &str {
    let mut tops = tree.iter().filter(|(path, _)| !path.is_empty() && !path.contains('/'));
    match (tops.next(), tops.next()) {
        (Some((path, entry)), None) if entry.kind == Kind::Dir => path,
        _ => "",
    }
}

/// Whether a symbolic link at `path` leads to something in the same tree, as far as its own text says.
fn stays_inside(path: &str, link: &str) -> bool {
    let mut depth = path.split('/').count() - 1;
    for part in link.split('/') {
        match part {
            ".." if depth == 0 => return false,
            ".." => depth -= 1,
            "." | "" => {}
            _ => depth += 1,
        }
    }
    !link.starts_with('/')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::tree::Entry;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    #[test]
    fn writes_what_is_below_the_single_top() {
        let (dir, store) = store();
        let mut tree = FileTree::new();
        tree.insert("top-1.0/bin/tool", Entry::file(*b"#!", 0o755)).unwrap();
        tree.insert("top-1.0/bin/again", Entry::new(Kind::HardLink("top-1.0/bin/tool".into()), 0o755)).unwrap();
        tree.insert("top-1.0/link", Entry::symlink("bin/../bin/tool")).unwrap();
        assert_eq!(single_top(&tree), "top-1.0");
        let to = dir.path().join("to");
        write_tree(&store, &tree, "top-1.0", &to).unwrap();
        assert_eq!(fs::read(to.join("link")).unwrap(), b"#!");
        assert_eq!(fs::read(to.join("bin/again")).unwrap(), b"#!");
        assert_eq!(fs::metadata(to.join("bin/tool")).unwrap().permissions().mode() & 0o100, 0o100);

        tree.insert("other", Entry::file(*b"", 0o644)).unwrap();
        assert_eq!(single_top(&tree), "");
        assert_eq!(single_top(&FileTree::new()), "");
    }

    #[test]
    fn refuses_links_that_lead_out_and_devices() {
        let (dir, store) = store();
        for (name, kind, problem) in [
            ("absolute", Kind::Symlink("/etc".into()), "leads out of the tree"),
            ("above", Kind::Symlink("a/../../etc".into()), "leads out of the tree"),
            ("device", Kind::CharDevice { major: 1, minor: 3 }, "neither a file"),
            ("hard", Kind::HardLink("beside".into()), "leads out of the tree"),
        ] {
            let mut tree = FileTree::new();
            tree.insert(&format!("top/{name}"), Entry::new(kind, 0o777)).unwrap();
            let error = write_tree(&store, &tree, "top", &dir.path().join(name)).unwrap_err();
            assert!(format!("{error:#}").contains(problem), "{error:#}");
        }
    }

    #[test]
    fn links_are_followed_by_their_text() {
        assert!(stays_inside("vendor/k8s.io/api", "../../staging/src/k8s.io/api"));
        assert!(!stays_inside("vendor/k8s.io/api", "../../../staging"));
        assert!(stays_inside("a", "./b//c"));
        assert!(!stays_inside("a", ".."));
    }
}
