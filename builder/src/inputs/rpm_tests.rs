// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use p256::elliptic_curve::rand_core::OsRng;
use pgp::composed::{Deserializable, DetachedSignature, SignedSecretKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::ser::Serialize as _;
use pgp::types::Password;
use proptest::prelude::*;

use super::super::deb::fixtures::{key, keyring};
use super::*;
use crate::tree::{FileTree, layers};

/// A value of a header: tag, type, count, bytes.
type Value = (u32, u32, u32, Vec<u8>);

fn strings(tag: u32, values: &[&str]) -> Value {
    let bytes = values.iter().flat_map(|value| value.bytes().chain([0])).collect();
    (tag, 8, values.len() as u32, bytes)
}

fn string(tag: u32, value: &str) -> Value {
    (tag, 6, 1, value.bytes().chain([0]).collect())
}

fn numbers(tag: u32, values: &[u32]) -> Value {
    (tag, 4, values.len() as u32, values.iter().flat_map(|value| value.to_be_bytes()).collect())
}

fn header(values: &[Value]) -> Vec<u8> {
    let (mut index, mut store) = (Vec::new(), Vec::new());
    for (tag, kind, count, bytes) in values {
        for word in [*tag, *kind, store.len() as u32, *count] {
            index.extend(word.to_be_bytes());
        }
        store.extend(bytes);
    }
    let mut out = vec![0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0];
    out.extend((values.len() as u32).to_be_bytes());
    out.extend((store.len() as u32).to_be_bytes());
    [out, index, store].concat()
}

/// A member: path, mode, inode, links, content.
fn cpio(members: &[(&str, u32, u32, u32, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4), 0);
    for (path, mode, inode, links, content) in members.iter().chain(&[("TRAILER!!!", 0, 0, 1, "")]) {
        let fields = [*inode, *mode, 0, 0, *links, 7, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        out.extend(b"070701");
        fields.iter().for_each(|field| out.extend(format!("{field:08x}").bytes()));
        out.extend(path.bytes().chain([0]));
        pad(&mut out);
        out.extend(content.bytes());
        pad(&mut out);
    }
    out
}

fn about(arch: &str, payload: &[u8]) -> Vec<Value> {
    vec![
        string(tag::NAME, "haproxy"),
        string(tag::VERSION, "2.6.6"),
        string(tag::RELEASE, "1.ky11"),
        string(tag::ARCH, arch),
        string(tag::PAYLOAD_FORMAT, "cpio"),
        strings(tag::DIR_NAMES, &["/usr/sbin/", "/var/lib/"]),
        strings(tag::BASE_NAMES, &["haproxy", "haproxy"]),
        numbers(tag::DIR_INDEXES, &[0, 1]),
        strings(tag::FILE_USER, &["root", "haproxy"]),
        strings(tag::FILE_GROUP, &["root", "haproxy"]),
        strings(tag::PAYLOAD_DIGEST, &[&Digest::of(payload).to_string()]),
        numbers(tag::PAYLOAD_DIGEST_ALGORITHM, &[8]),
    ]
}

fn rpm(signatures: &[Value], header_bytes: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0xed, 0xab, 0xee, 0xdb];
    out.resize(96, 0);
    out.extend(header(signatures));
    out.resize(out.len().next_multiple_of(8), 0);
    out.extend(header_bytes);
    out.extend(payload);
    out
}

const FILE: u32 = 0o100_755;
const DIR: u32 = 0o040_700;
const LINK: u32 = 0o120_777;

fn payload() -> Vec<u8> {
    let members = [
        ("./usr/sbin/haproxy", FILE, 1, 1, "#!/bin/sh\n"),
        ("./usr/sbin/halog", LINK, 2, 1, "haproxy"),
        ("./var/lib/haproxy", DIR, 3, 2, ""),
        ("./usr/share/a", FILE, 4, 3, ""),
        ("./usr/share/b", FILE, 4, 3, ""),
        ("./usr/share/c", FILE, 4, 3, "three names"),
    ];
    zstd::encode_all(&cpio(&members)[..], 1).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn unpacked(store: &Store, bytes: &[u8]) -> Result<Package> {
    unpack(store, &store.put_bytes(bytes).unwrap(), Architecture::Loong64)
}

#[test]
fn files_with_names_owners_and_links() {
    let (_dir, store) = store();
    let payload = payload();
    let package = unpacked(&store, &rpm(&[], &header(&about("loongarch64", &payload)), &payload)).unwrap();
    assert_eq!(package.name, "haproxy-2.6.6-1.ky11.loongarch64");
    assert_eq!(package.owners, BTreeMap::from([("var/lib/haproxy".into(), ("haproxy".into(), "haproxy".into()))]));
    let of = layers::Package { name: "haproxy", archive: &package.archive, replaces: &[] };
    let tree = layers::merge_over(FileTree::new(), &[of]).unwrap();
    for (path, text) in
        [("usr/sbin/halog", "#!/bin/sh\n"), ("usr/share/a", "three names"), ("usr/share/c", "three names")]
    {
        assert_eq!(tree.text(&store, path).unwrap().unwrap(), text, "{path}");
    }
    assert_eq!(tree.get("var/lib/haproxy").unwrap().mode, 0o700);
}

/// A package with so many files in one folder.
fn with_files(folder: &str, count: usize) -> Vec<u8> {
    let mut values = about("noarch", b"");
    values.retain(|(tag, ..)| ![tag::DIR_NAMES, tag::BASE_NAMES, tag::DIR_INDEXES].contains(tag));
    values.push(strings(tag::DIR_NAMES, &[folder]));
    values.push(strings(tag::BASE_NAMES, &vec!["a"; count]));
    values.push(numbers(tag::DIR_INDEXES, &vec![0; count]));
    rpm(&[], &header(&values), b"")
}

#[test]
fn what_is_no_package_for_the_machine_is_refused() {
    let (_dir, store) = store();
    let payload = payload();
    let about = |arch: &str| about(arch, &payload);
    let with = |value: Value| {
        let mut values = about("noarch");
        values.push(value);
        rpm(&[], &header(&values), &payload)
    };
    unpacked(&store, &rpm(&[], &header(&about("noarch")), &payload)).unwrap();
    let climbing = cpio(&[("./../etc/passwd", FILE, 1, 1, "x")]);
    let device = cpio(&[("./dev/null", 0o020_666, 1, 1, "")]);
    for (bytes, problem) in [
        (rpm(&[], &header(&about("x86_64")), &payload), "is for x86_64, not for loongarch64"),
        (with(string(tag::SOURCE_PACKAGE, "")), "it is a source package"),
        (with(strings(tag::FILE_CAPS, &["cap_net_raw=ep", ""])), "gives file capabilities to /usr/sbin/haproxy"),
        (rpm(&[], &header(&about("noarch")), &climbing), "leads out of the archive"),
        (rpm(&[], &header(&about("noarch")), &device), "`dev/null` is neither a file"),
        (b"!<arch>\n".to_vec(), "it is no RPM package"),
        // A header of some KiB, whose paths would have gigabytes.
        (with_files(&"x/".repeat(2000), 20_000), "its paths are longer than any package's"),
        (with_files(&"x/".repeat(2049), 1), "its paths are longer than any package's"),
    ] {
        let error = format!("{:#}", unpacked(&store, &bytes).unwrap_err());
        assert!(error.contains(problem), "{error}");
    }
}

fn signature(key: &SignedSecretKey, bytes: &[u8]) -> Vec<u8> {
    let signature =
        DetachedSignature::sign_binary_data(OsRng, &**key, &Password::empty(), HashAlgorithm::Sha256, bytes).unwrap();
    let bytes = signature.to_bytes().unwrap();
    DetachedSignature::from_bytes(&bytes[..]).unwrap();
    bytes
}

#[test]
fn signatures_of_header_and_of_all() {
    let (_dir, store) = store();
    let (ours, theirs) = (key("vendor"), key("other"));
    let ring = Keyring::parse(&keyring(&[&ours]), "vendor.asc").unwrap();
    let payload = payload();
    let header_bytes = header(&about("loongarch64", &payload));
    let check = |signatures: &[Value], payload: &[u8]| {
        let object = store.put_bytes(&rpm(signatures, &header_bytes, payload)).unwrap();
        verify(&store, &object, &ring).map_err(|error| format!("{error:#}"))
    };
    let binary = |tag: u32, bytes: Vec<u8>| (tag, 7, bytes.len() as u32, bytes);
    let all = [header_bytes.clone(), payload.clone()].concat();
    let of_header = || binary(268, signature(&ours, &header_bytes));
    check(&[of_header()], &payload).unwrap();
    check(&[binary(1002, signature(&ours, &all))], &payload).unwrap();
    let mut changed = payload.clone();
    changed.push(0);
    for (signatures, payload, problem) in [
        (vec![of_header()], &changed, "its payload is not the one that was signed"),
        (vec![binary(1002, signature(&ours, &all))], &changed, "BAD signature"),
        (vec![binary(268, signature(&theirs, &header_bytes))], &payload, "is not in it"),
        (vec![binary(268, vec![1, 2, 3])], &payload, "signature"),
        (vec![], &payload, "it is not signed"),
    ] {
        let error = check(&signatures, payload).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
}

proptest! {
    /// One byte of a package changed: an error or a package, never a panic.
    #[test]
    fn any_damage(at in any::<prop::sample::Index>(), byte: u8) {
        let (_dir, store) = store();
        let payload = cpio(&[("./a", FILE, 1, 1, "x"), ("./b", LINK, 2, 1, "a")]);
        let mut bytes = rpm(&[], &header(&about("noarch", &payload)), &payload);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = unpacked(&store, &bytes);
    }
}

#[test]
fn a_package_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let payload = cpio(&[]);
    let of = |more: &[Value]| {
        let values = [about("x86_64", &payload), more.to_vec()].concat();
        let object = store.put_bytes(&rpm(&[], &header(&values), &payload)).unwrap();
        super::about(&store, &object).unwrap()
    };
    let bare = About {
        name: "haproxy".into(),
        epoch: None,
        version: "2.6.6".into(),
        release: "1.ky11".into(),
        architecture: "x86_64".into(),
        license: None,
        vendor: None,
        source: None,
    };
    assert_eq!(of(&[string(tag::VENDOR, " ")]), bare);
    let more = [
        numbers(tag::EPOCH, &[2]),
        string(tag::VENDOR, "A vendor"),
        string(tag::LICENSE, "GPL-2.0-or-later"),
        string(tag::SOURCE_RPM, "haproxy-2.6.6-1.ky11.src.rpm"),
    ];
    let wanted = About {
        epoch: Some(2),
        license: Some("GPL-2.0-or-later".into()),
        vendor: Some("A vendor".into()),
        source: Some("haproxy-2.6.6-1.ky11.src.rpm".into()),
        ..bare
    };
    assert_eq!(of(&more), wanted);
    let object = store.put_bytes(b"no package").unwrap();
    assert!(super::about(&store, &object).is_err());
}
