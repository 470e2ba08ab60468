// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Seek, SeekFrom};

use proptest::prelude::*;
use tar::EntryType as T;

use super::super::fixtures::{deb, entry, gzip, xz};
use super::super::names::clean;
use super::*;
use crate::error::{self, ErrorKind};

const CONTROL: &str = "Package: tiny\nVersion: 1-1\nDescription: a\n test\n";

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

type Raw<'a> = (&'a str, T, &'a str, &'a [u8]);

fn tar(entries: &[Raw<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, link, data) in entries {
        entry(&mut builder, path, *kind, link, data);
    }
    builder.into_inner().unwrap()
}

fn good() -> Vec<u8> {
    tar(&[
        ("./", T::Directory, "", b""),
        ("./usr/", T::Directory, "", b""),
        ("./usr/file", T::Regular, "", b"content"),
        ("./usr/second", T::Regular, "", b"more"),
        ("./usr/hard", T::Link, "./usr/file", b""),
        ("./usr/soft", T::Symlink, "../etc/x", b""),
        ("./usr/absolute", T::Symlink, "/etc/x", b""),
        ("./usr/pipe", T::Fifo, "", b""),
    ])
}

fn unpack_bytes(bytes: &[u8]) -> Result<Archive> {
    let (_dir, store) = store();
    let digest = store.put_bytes(bytes).unwrap();
    unpack(&store, &digest)
}

#[test]
fn entries_and_slices_for_every_compression() {
    let plain = good();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    let mut archives = Vec::new();
    for (name, data) in [
        ("data.tar", plain.clone()),
        ("data.tar.gz", gzip(&plain)),
        ("data.tar.xz", xz(&plain)),
        ("data.tar.zst", zstd),
    ] {
        let (_dir, store) = store();
        let digest = store.put_bytes(&deb(CONTROL, name, &data)).unwrap();
        let archive = unpack(&store, &digest).unwrap();
        assert_eq!(unpack(&store, &digest).unwrap(), archive, "from the step cache");
        let ArchiveKind::File { offset, len } = archive.entries[3].kind else { unreachable!() };
        let mut object = store.open_object(&archive.tar).unwrap();
        object.seek(SeekFrom::Start(offset)).unwrap();
        let mut text = String::new();
        object.take(len).read_to_string(&mut text).unwrap();
        assert_eq!((archive.entries[3].path.as_str(), text.as_str()), ("usr/second", "more"));
        archives.push(archive);
    }
    assert!(archives.windows(2).all(|pair| pair[0] == pair[1]), "the same tar is the same object");
    let entries = &archives[0].entries;
    assert_eq!((entries[0].path.as_str(), entries[0].mode), ("", 0o755));
    let file = &entries[2];
    assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o644, 0, 42, 1_700_000_000));
    let kinds: Vec<&ArchiveKind> = entries[4..].iter().map(|entry| &entry.kind).collect();
    assert_eq!(
        kinds,
        [
            &ArchiveKind::HardLink("usr/file".into()),
            &ArchiveKind::Symlink("../etc/x".into()),
            &ArchiveKind::Symlink("/etc/x".into()),
            &ArchiveKind::Fifo,
        ]
    );
}

#[test]
fn long_names_and_extended_attributes() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("usr/{}/file", "d".repeat(150));
    let capability: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, b'\n', 0];
    builder.append_pax_extensions([("SCHILY.xattr.security.capability", capability), ("comment", b"x")]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o4755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, &long, &b"x"[..]).unwrap();
    let (_dir, store) = store();
    let archive = unpack_tar(&store, &builder.into_inner().unwrap()[..]).unwrap();
    assert_eq!(archive.entries.len(), 1);
    let entry = &archive.entries[0];
    assert_eq!((entry.path.as_str(), entry.mode), (long.as_str(), 0o4755));
    assert_eq!(entry.xattrs["security.capability"], capability);
    assert_eq!(entry.xattrs.len(), 1);
}

#[test]
fn unsafe_paths_name_package_and_member() {
    let cases: &[(&[Raw<'_>], &str)] = &[
        (&[("../evil", T::Regular, "", b"")], "reading member `../evil`: `../evil` leads out of the archive"),
        (&[("./a/../../evil", T::Regular, "", b"")], "`./a/../../evil` leads out of the archive"),
        (&[("/etc/evil", T::Regular, "", b"")], "`/etc/evil` is an absolute path"),
        (
            &[("./a", T::Symlink, "/etc", b""), ("./a/evil", T::Regular, "", b"")],
            "`a/evil` leads through a symbolic link of the archive",
        ),
        (
            &[("./a/b", T::Regular, "", b""), ("./a", T::Symlink, "/etc", b"")],
            "`a` is in the archive twice, as different things",
        ),
        (&[("./a", T::Regular, "", b""), ("./a/b", T::Regular, "", b"")], "`a/b` leads through something"),
        (&[("./a", T::Symlink, "../x", b"")], "`a` is a symbolic link to `../x`, above the root"),
        (&[("./b/a", T::Symlink, "c/../../../x", b"")], "above the root"),
        (&[("./a", T::Link, "../../etc/shadow", b"")], "`../../etc/shadow` leads out of the archive"),
        (&[("./a", T::Link, "etc/shadow", b"")], "is the target of a hard link, but no earlier file"),
        (&[("./a", T::Symlink, "/etc", b""), ("./b", T::Link, "./a", b"")], "but no earlier file of the archive"),
    ];
    for (entries, wanted) in cases {
        let e = unpack_bytes(&deb(CONTROL, "data.tar", &tar(entries))).unwrap_err();
        let text = format!("{e:#}");
        assert!(text.contains("unpacking package tiny (") && text.contains(wanted), "{text}");
        assert_eq!(error::kind(&e), ErrorKind::Verification, "{text}");
        assert!(error::hint(&e).unwrap().contains("broken or malicious"));
    }
}

#[test]
fn broken_packages() {
    let bytes = deb(CONTROL, "data.tar.xz", &xz(&good()));
    for (bytes, wanted) in [
        (&b""[..], "not a Debian package: too short"),
        (b"<html>not found</html>", "not a Debian package: no ar archive"),
        (&bytes[..200], "not a Debian package"),
        (&bytes[..bytes.len() - 40], "unpacking package tiny"),
        (&deb(CONTROL, "data.txt", b""), "it has no member data.tar"),
        (&deb(CONTROL, "data.tar", &good()[..1600]), "reading a tar archive"),
    ] {
        let text = format!("{:#}", unpack_bytes(bytes).unwrap_err());
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn nothing_of_a_broken_package_stays() {
    let (dir, store) = store();
    let bytes = deb(CONTROL, "data.tar", &tar(&[("a", T::Regular, "", b"x"), ("../b", T::Regular, "", b"")]));
    let digest = store.put_bytes(&bytes).unwrap();
    unpack(&store, &digest).unwrap_err();
    for folder in ["work", "steps", "locks"] {
        assert_eq!(std::fs::read_dir(dir.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
}

#[test]
fn many_at_once_in_order() {
    let (_dir, store) = store();
    let debs: Vec<Digest> = (0..10)
        .map(|i| {
            let data = tar(&[(&format!("file{i}"), T::Regular, "", &vec![b'x'; i * 100])]);
            store.put_bytes(&deb(CONTROL, "data.tar", &data)).unwrap()
        })
        .collect();
    let archives = unpack_all(&store, &debs).unwrap();
    let paths: Vec<&str> = archives.iter().map(|archive| archive.entries[0].path.as_str()).collect();
    assert_eq!(paths, (0..10).map(|i| format!("file{i}")).collect::<Vec<_>>());
}

#[test]
fn control_fields() {
    let (_dir, store) = store();
    let digest = store.put_bytes(&deb(CONTROL, "data.tar", &good())).unwrap();
    assert_eq!(control_field(&store, &digest, "Version").unwrap().as_deref(), Some("1-1"));
    assert_eq!(control_field(&store, &digest, "Description").unwrap().as_deref(), Some("a\ntest"));
    assert_eq!(control_field(&store, &digest, "Depends").unwrap(), None);
}

#[test]
fn a_control_file_without_end_is_refused() {
    let control = format!("Package: a\nDescription: {}\n", "x".repeat(LARGEST_CONTROL as usize));
    let error = format!("{:#}", control_of(Cursor::new(deb(&control, "data.tar", &good()))).unwrap_err());
    assert!(error.contains("the control file has more than"), "{error}");
}

#[test]
fn paths_that_cost_more_than_they_are_worth_are_refused() {
    clean("a/".repeat(100).as_bytes()).unwrap();
    clean("x".repeat(4096).as_bytes()).unwrap();
    // A megabyte in a pax header would be half a million folders, each with the path that leads to it.
    for path in ["a/".repeat(500_000), "a/".repeat(129), "x".repeat(4097)] {
        let error = clean(path.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("longer or deeper than any path") && error.len() < 200, "{error}");
    }
    assert!(Names::new(Rules::System).symlink_target("a", "x/".repeat(3000).as_bytes()).is_err());
}

#[test]
fn a_corrupt_package_is_found() {
    let (dir, store) = store();
    let digest = store.put_bytes(&deb(CONTROL, "data.tar", &good())).unwrap();
    let mut bytes = std::fs::read(store.path(&digest)).unwrap();
    bytes[300] ^= 1;
    std::fs::remove_file(store.path(&digest)).unwrap();
    std::fs::write(store.path(&digest), bytes).unwrap();
    let e = unpack(&Store::open(dir.path()).unwrap(), &digest).unwrap_err();
    assert!(format!("{e:#}").contains("is corrupt"), "{e:#}");
}

proptest! {
    #[test]
    fn it_never_panics(mut bytes in Just(deb(CONTROL, "data.tar", &good())), at in 0..5000_usize, with in any::<u8>(), end in 0..20_000_usize) {
        let at = at % bytes.len();
        bytes[at] = with;
        bytes.truncate(end.max(1));
        let mut paths = Vec::new();
        if let Ok(archive) = unpack_bytes(&bytes) {
            paths.extend(archive.entries.into_iter().map(|entry| entry.path));
        }
        for path in paths {
            prop_assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."));
        }
    }

    #[test]
    fn paths_are_clean_or_refused(raw in "[a./]{0,12}") {
        if let Ok(path) = clean(raw.as_bytes()) {
            prop_assert!(path.is_empty() || path.split('/').all(|part| !matches!(part, "" | "." | "..")));
        }
    }
}
