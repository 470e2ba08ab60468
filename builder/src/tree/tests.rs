// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::BTreeMap;

use super::layers::{Package, merge, merged_path};
use super::{Content, Entry, FileTree, Kind};
use crate::inputs::deb::archive::{Archive, ArchiveEntry, ArchiveKind};
use crate::store::Digest;

fn archive(entries: &[(&str, ArchiveKind)]) -> Archive {
    let entry = |(path, kind): &(&str, ArchiveKind)| ArchiveEntry {
        path: (*path).to_owned(),
        kind: kind.clone(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 7,
        xattrs: BTreeMap::new(),
    };
    Archive { tar: Digest::of(format!("{entries:?}").as_bytes()), entries: entries.iter().map(entry).collect() }
}

fn file() -> ArchiveKind {
    ArchiveKind::File { offset: 512, len: 3 }
}

fn link(target: &str) -> ArchiveKind {
    ArchiveKind::Symlink(target.to_owned())
}

fn merged(packages: &[(&str, &Archive, &[&str])]) -> anyhow::Result<FileTree> {
    let replaces: Vec<Vec<String>> =
        packages.iter().map(|(.., names)| names.iter().map(|name| (*name).to_owned()).collect()).collect();
    let packages: Vec<Package<'_>> = packages
        .iter()
        .zip(&replaces)
        .map(|((name, archive, _), replaces)| Package { name, archive, replaces })
        .collect();
    merge(&packages)
}

#[test]
fn packages_are_merged_into_usr() {
    let one = archive(&[
        ("", ArchiveKind::Dir),
        ("bin", ArchiveKind::Dir),
        ("bin/sh", link("dash")),
        ("bin/dash", file()),
        ("lib64", ArchiveKind::Dir),
        ("lib64/ld.so", link("/lib/arch/ld.so")),
        ("lib/arch/ld.so", file()),
        ("lib/x", link("../usr/share/x")),
        ("usr/share/man/man1/x.1", file()),
        ("usr/share/doc/one/copyright", file()),
        ("usr/share/doc/one/changelog", file()),
    ]);
    let two = archive(&[("lib", link("usr/lib")), ("usr/bin/two", ArchiveKind::HardLink("bin/dash".into()))]);
    let tree = merged(&[("one", &one, &[]), ("two", &two, &[])]).unwrap();
    let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
    let want = "\n bin lib lib64 sbin usr usr/bin usr/bin/dash usr/bin/sh usr/bin/two usr/lib usr/lib/arch usr/lib/arch/ld.so \
        usr/lib/x usr/lib64 usr/lib64/ld.so usr/sbin usr/share usr/share/doc usr/share/doc/one usr/share/doc/one/copyright";
    assert_eq!(paths.join(" ").trim(), want.trim());
    assert_eq!(tree.get("lib").unwrap().kind, Kind::Symlink("usr/lib".into()));
    assert_eq!(tree.get("usr/lib/x").unwrap().kind, Kind::Symlink("/usr/share/x".into()));
    assert_eq!(tree.get("usr/bin/two").unwrap().kind, Kind::HardLink("usr/bin/dash".into()));
    assert_eq!(tree.lookup("bin/sh").unwrap().0, "usr/bin/dash");
    assert_eq!(tree.lookup("/lib64/ld.so").unwrap().0, "usr/lib/arch/ld.so");
    assert!(tree.content("usr/bin/two").is_some());
    assert_eq!(merged_path("libx32"), "usr/libx32");
    assert_eq!(merged_path("library"), "library");
}

#[test]
fn links_to_directories_are_followed() {
    let base = archive(&[("var/run", link("/run")), ("opt/a", ArchiveKind::Dir), ("srv/a", link("../opt/a"))]);
    let more = archive(&[
        ("var/run", ArchiveKind::Dir),
        ("var/run/x", ArchiveKind::Dir),
        ("srv/a/f", file()),
        ("opt/a", link("/elsewhere")),
    ]);
    let tree = merged(&[("base", &base, &[]), ("more", &more, &[])]).unwrap();
    assert_eq!(tree.get("run/x").unwrap().kind, Kind::Dir);
    assert!(tree.get("opt/a/f").is_some());
    assert_eq!(tree.get("opt/a").unwrap().kind, Kind::Dir);
}

#[test]
fn conflicts_are_told_together_unless_replaced() {
    let one = archive(&[("etc/a", file()), ("etc/b", file())]);
    let two = archive(&[("etc/a", file()), ("etc/b", link("x"))]);
    let error = merged(&[("one", &one, &[]), ("two", &two, &[])]).unwrap_err().to_string();
    assert_eq!(error, "packages have different files at the same path:\n  /etc/a: one and two\n  /etc/b: one and two");
    for packages in [[("one", &one, &["two"][..]), ("two", &two, &[])], [("two", &two, &[]), ("one", &one, &["two"])]] {
        let tree = merged(&packages).unwrap();
        let kind = &tree.get("etc/a").unwrap().kind;
        assert!(matches!(kind, Kind::File(Content::Slice { object, .. }) if *object == one.tar));
    }
}

#[test]
fn loops_and_missing_hard_links() {
    let round = archive(&[("a", link("b")), ("b", link("a")), ("a/x", file())]);
    let error = merged(&[("round", &round, &[])]).unwrap_err();
    assert_eq!(format!("{error:#}"), "adding package round: adding /a/x: a loop of symbolic links");
    let hard = archive(&[("usr/a", ArchiveKind::HardLink("usr/share/man/b".into()))]);
    let error = merged(&[("hard", &hard, &[])]).unwrap_err().to_string();
    assert!(error.contains("/usr/a is a hard link to /usr/share/man/b"), "{error}");
}

#[test]
fn paths_resolve_inside_the_tree() {
    let mut tree = FileTree::new();
    tree.insert("a/b", Entry::dir(0o755)).unwrap();
    tree.insert("a/up", Entry::symlink("../../../a/b")).unwrap();
    assert_eq!(tree.resolve("a/up/../c").as_deref(), Some("a/c"));
    assert_eq!(tree.resolve("a/up/").as_deref(), Some("a/b"));
    assert_eq!(tree.resolve_parent("a/up").as_deref(), Some("a/up"));
    tree.insert("a/b-x", Entry::dir(0o755)).unwrap();
    tree.insert("a/b/c", Entry::dir(0o755)).unwrap();
    tree.remove("a/b");
    assert!(tree.get("a/b-x").is_some() && tree.get("a/b/c").is_none() && tree.get("a/b").is_none());
    assert_eq!(tree.below("").count() + 1, tree.len());
}

#[test]
fn overlays_follow_links_and_keep_directories() {
    let mut tree = FileTree::new();
    tree.insert("usr/lib/x", Entry::dir(0o700)).unwrap();
    tree.insert("lib", Entry::symlink("usr/lib")).unwrap();
    let mut over = FileTree::new();
    over.insert("lib/x/f", Entry::file(*b"1", 0o644)).unwrap();
    tree.overlay(over).unwrap();
    assert!(tree.get("usr/lib/x/f").is_some());
    assert_eq!(tree.get("usr/lib/x").unwrap().mode, 0o700);
    let mut over = FileTree::new();
    over.insert("usr/lib/x", Entry::symlink("y")).unwrap();
    assert_eq!(tree.overlay(over).unwrap_err().to_string(), "/usr/lib/x would replace a directory");
}

#[test]
fn content_is_read_by_position() {
    let open = super::OpenContent::Bytes((*b"abcdef").into());
    assert_eq!(open.read_at(2, 3).unwrap(), b"cde");
    assert!(open.read_at(4, 3).is_err());
    assert!(open.read_at(u64::MAX, 2).is_err());
    assert!(open.read_at(0, u64::MAX).is_err());
}

#[test]
fn a_refused_insert_changes_nothing() {
    let mut tree = FileTree::new();
    tree.insert("a", Entry::symlink("b")).unwrap();
    let before = tree.clone();
    for path in ["a/b", "a/b/c", "/x", "x//y", "x/../y", "."] {
        assert!(tree.insert(path, Entry::dir(0o755)).is_err(), "{path}");
        assert_eq!(tree, before, "{path}");
    }
}
