// SPDX-License-Identifier: MIT OR Apache-2.0

//! For tests: tiny packages, keys, and suites published on a fake mirror.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;

use p256::elliptic_curve::rand_core::OsRng;
use pgp::composed::{
    ArmorOptions, CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedSecretKey, SubkeyParamsBuilder,
};
use pgp::types::Password;

use crate::inputs::fake_mirror::FakeMirror;
use crate::store::Digest;

/// An entry of a test archive, with the path written as it is, however unsafe.
pub(crate) fn entry(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, link: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(42);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

/// An archive of regular files.
pub(crate) fn tar(files: &[(impl AsRef<str>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, data) in files {
        entry(&mut tar, path.as_ref(), tar::EntryType::Regular, "", data.as_ref());
    }
    tar.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A package from its control file and its `data.tar`, compressed as `name` says.
pub(crate) fn deb(control: &str, data_name: &str, data: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, "./", tar::EntryType::Directory, "", b"");
    entry(&mut tar, "./control", tar::EntryType::Regular, "", control.as_bytes());
    let control = gzip(&tar.into_inner().unwrap());
    let mut out = b"!<arch>\n".to_vec();
    for (name, bytes) in [("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", &control), (data_name, data)] {
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len()).bytes());
        out.extend(bytes);
        if bytes.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

/// A key that signs, with a subkey that signs.
pub(crate) fn key(name: &str) -> SignedSecretKey {
    let subkey = SubkeyParamsBuilder::default().key_type(KeyType::Ed25519Legacy).can_sign(true).build().unwrap();
    let mut params = SecretKeyParamsBuilder::default();
    params.key_type(KeyType::Ed25519Legacy).can_sign(true).can_certify(true).subkeys(vec![subkey]);
    params.primary_user_id(format!("{name} <{name}@example>"));
    params.build().unwrap().generate(OsRng).unwrap()
}

/// The public half, as a keyring file has it.
pub(crate) fn keyring(keys: &[&SignedSecretKey]) -> Vec<u8> {
    keys.iter().flat_map(|key| pgp::ser::Serialize::to_bytes(&key.to_public_key()).unwrap()).collect()
}

/// `text`, signed by the primary key.
pub(crate) fn sign(key: &SignedSecretKey, text: &str) -> String {
    let message = CleartextSignedMessage::sign(OsRng, text, &**key, &Password::empty()).unwrap();
    message.to_armored_string(ArmorOptions::default()).unwrap()
}

/// A suite being put on a mirror.
pub(crate) struct Publisher<'a> {
    pub(crate) mirror: &'a FakeMirror,
    pub(crate) key: &'a SignedSecretKey,
    pub(crate) suite: &'a str,
    /// Folder of the archive on the mirror: `debian`.
    pub(crate) archive: &'a str,
    pub(crate) valid_until: &'a str,
}

impl Publisher<'_> {
    /// Publishes packages, given as control files without the fields of an index, and a `Sources` index.
    pub(crate) fn publish(&self, packages: &[&str], sources: &str) {
        let mut index = String::new();
        for control in packages {
            let name = super::control::field(control, "Package").unwrap();
            let version = super::control::field(control, "Version").unwrap();
            let bytes = deb(control, "data.tar", &tar(&[(format!("./{name}"), &*version)]));
            let path = format!("pool/main/{name}_{version}.deb");
            index += &format!("{control}Filename: {path}\nSize: {}\nSHA256: {}\n\n", bytes.len(), Digest::of(&bytes));
            self.mirror.put(&format!("{}/{path}", self.archive), bytes);
        }
        let mut list = String::new();
        let dists = format!("{}/dists/{}", self.archive, self.suite);
        for (dir, name, text) in
            [("main/binary-amd64", "Packages.xz", index.as_str()), ("main/source", "Sources.xz", sources)]
        {
            let bytes = xz(text.as_bytes());
            let digest = Digest::of(&bytes);
            list += &format!(" {digest} {} {dir}/{name}\n", bytes.len());
            self.mirror.put(&format!("{dists}/{dir}/by-hash/SHA256/{digest}"), bytes);
        }
        let release = format!(
            "Origin: Test\nSuite: {0}\nCodename: {0}\nDate: Sat, 10 Jan 2026 09:55:12 UTC\n{1}Acquire-By-Hash: yes\n\
             Architectures: amd64\nComponents: main\nSHA256:\n{list}",
            self.suite, self.valid_until
        );
        self.mirror.put(&format!("{dists}/InRelease"), sign(self.key, &release));
    }
}
