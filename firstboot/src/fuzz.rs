// SPDX-License-Identifier: MIT OR Apache-2.0
//! For tests/fuzz: parsers that nobody else may call. There with `--cfg fuzzing` alone, and no interface of anybody.
//! They panic where a property does not hold.

/// An ARP packet.
pub fn arp(packet: &[u8]) {
    crate::arp::fuzz(packet);
}

/// Pages that a SCSI disk has of itself, and names that are made of them.
pub fn identity(page: &[u8]) {
    crate::install::identity::fuzz(page);
}

/// The beginning and the end of a disk.
pub fn probe(first: &[u8], last: &[u8]) {
    crate::install::probe::fuzz(first, last);
}

/// A list of checksums, an index and a description of a payload, a journal.
pub fn documents(bytes: &[u8]) {
    crate::bundle::fuzz(bytes);
    crate::payload::fuzz(bytes);
    crate::journal::fuzz(bytes);
    let _ = crate::install::index::parse(bytes);
}
