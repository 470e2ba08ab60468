// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packages of Debian's (ar, tar, gzip, xz, zstd), tar archives of systems and layers, bundles.

use std::io::Write;

use imgbuild::store::Digest;
use tar::{Builder, EntryType, Header};

/// Reads `data` as each of them.
pub fn run(data: &[u8]) {
    imgbuild::fuzz::package(data);
    imgbuild::fuzz::archive(data);
}

fn entry(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, link: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(42);
    header.set_mtime(1_700_000_000);
    if kind.is_character_special() || kind.is_block_special() {
        header.set_device_major(8).expect("a header");
        header.set_device_minor(1).expect("a header");
    }
    let added = match link {
        "" => tar.append_data(&mut header, path, data),
        link => tar.append_link(&mut header, path, link),
    };
    added.expect("adding an entry");
}

fn system() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, "./usr/", EntryType::Directory, "", b"");
    entry(&mut tar, "./usr/bin/sh", EntryType::Regular, "", b"#!/bin/true\n");
    entry(&mut tar, "./usr/bin/bash", EntryType::Link, "./usr/bin/sh", b"");
    entry(&mut tar, "./etc/os-release", EntryType::Symlink, "../usr/lib/os-release", b"");
    entry(&mut tar, "./etc/.wh.passwd", EntryType::Regular, "", b"");
    entry(&mut tar, "./var/.wh..wh..opq", EntryType::Regular, "", b"");
    entry(&mut tar, "./dev/sda1", EntryType::Block, "", b"");
    entry(&mut tar, "./run/pipe", EntryType::Fifo, "", b"");
    entry(&mut tar, "./boot/vmlinuz-6.1", EntryType::Regular, "", b"MZ");
    entry(&mut tar, "./usr/lib/modules/6.1/a.ko", EntryType::Regular, "", b"\x7fELF");
    // Longer than its header: GNU's long name, then a pax header.
    entry(&mut tar, &format!("./usr/share/{}/file", "long/".repeat(30)), EntryType::Regular, "", b"x");
    tar.append_pax_extensions([("SCHILY.xattr.user.a", &b"b\n"[..]), ("mtime", b"1700000000.5"), ("path", b"./opt/x")])
        .expect("adding an extension");
    entry(&mut tar, "./opt/y", EntryType::Regular, "", b"x");
    tar.into_inner().expect("writing an archive")
}

fn bundle() -> Vec<u8> {
    let index = serde_json::json!({
        "schema": 1, "cluster": "lab", "cluster_id": "0".repeat(32), "architecture": "amd64",
        "nodes": [{ "name": "master-1", "payload": "pods" }],
    });
    let files = [
        ("install", b"#!/bin/sh\n".to_vec()),
        ("uninstall", b"#!/bin/sh\n".to_vec()),
        ("amd64/bundle.json", index.to_string().into_bytes()),
    ];
    let mut sums = String::new();
    let mut tar = Builder::new(Vec::new());
    for (path, bytes) in &files {
        entry(&mut tar, &format!("imgbuild-lab/{path}"), EntryType::Regular, "", bytes);
        sums += &format!("{}  {path}\n", Digest::of(bytes));
    }
    entry(&mut tar, "imgbuild-lab/SHA256SUMS.amd64", EntryType::Regular, "", sums.as_bytes());
    tar.into_inner().expect("writing an archive")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("compressing");
    encoder.finish().expect("compressing")
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder =
        lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).expect("compressing");
    encoder.write_all(bytes).expect("compressing");
    encoder.finish().expect("compressing")
}

fn package(data_name: &str, data: &[u8]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, "./control", EntryType::Regular, "", b"Package: tiny\nVersion: 1-1\nDescription: a\n test\n");
    let control = gzip(&tar.into_inner().expect("writing an archive"));
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

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let zstd = zstd::encode_all(&system()[..], 3).expect("compressing");
    vec![
        system(),
        bundle(),
        gzip(&system()),
        package("data.tar", &system()),
        package("data.tar.gz", &gzip(&system())),
        package("data.tar.xz", &xz(&system())),
        package("data.tar.zst", &zstd),
    ]
}
