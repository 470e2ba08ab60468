// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files that the cluster file names by address: who vouches for them, and, when they are locked, whether all that is
//! said of them is true. Once locked, a sha256 is all there is to them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest as _, Sha512};

use super::checksums::{Checksum, List};
use super::download::Item;
use super::mirror::Mirrors;
use super::request::{Session, missing_file};
use crate::error::Failure;
use crate::lock::{ItemKind, LockedItem};
use crate::store::{Digest, Store};

/// A list has some hundred bytes for each file; that of a whole release of Kubernetes is below 1 MiB.
const LIST_LIMIT: u64 = 8 << 20;

/// What to do about an address that has nothing.
const GONE: &str =
    "see what its makers have now, and correct `url` of the input; or name a copy with --mirror HOST=URL";

/// A file at an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UrlRequest {
    /// The address.
    pub url: String,
    /// What it must be; without it, what it is when it is locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// Lists of checksums that name it: addresses, or paths relative to the cluster file.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub checksums: BTreeSet<String>,
}

/// What somebody says that the file is.
struct Claim {
    by: String,
    checksum: Checksum,
}

/// Fetches the file that the input `name` wants, and says what it is.
///
/// # Errors
/// If nobody on whom it relies vouches for it; if a list of checksums does not name it; if anything that is said of it
/// is not true: all of that; if it cannot be had.
pub(super) fn resolve(session: &Session<'_>, name: &str, wanted: &UrlRequest) -> Result<LockedItem> {
    let urls = session.mirrors.of_url(&wanted.url);
    let is_vouched = wanted.sha256.is_some() || wanted.checksums.iter().any(|place| is_safe(session.mirrors, place));
    if !is_vouched && !is_safe(session.mirrors, &wanted.url) {
        return Err(unsafe_way(wanted, &urls).into());
    }
    let claims = claims(session, wanted)?;
    let sha256s: BTreeSet<Digest> = claims.iter().filter_map(|claim| claim.checksum.sha256()).collect();
    let claimed = if sha256s.len() == 1 { sha256s.first().copied() } else { None };
    let (sha256, size) = session.downloader.fetch_new(&wanted.url, &urls, claimed, GONE)?;
    compare(session.downloader.store(), wanted, &claims, (sha256, size))?;
    if claims.is_empty() {
        tracing::warn!(
            "warning: input `{name}`: only the connection vouches for {}, which has sha256 {sha256} ({size} bytes); \
             write that as its `sha256` if its makers say so, too, or name their list of checksums as `checksums`",
            wanted.url
        );
    }
    Ok(LockedItem {
        kind: ItemKind::Url,
        name: file_name(&wanted.url).to_owned(),
        version: String::new(),
        architecture: String::new(),
        archive: String::new(),
        path: wanted.url.clone(),
        size,
        sha256,
    })
}

/// How to fetch what is locked.
pub(super) fn item(mirrors: &Mirrors, locked: &LockedItem) -> Item {
    Item {
        name: locked.describe(),
        urls: mirrors.of_url(&locked.path),
        sha256: locked.sha256,
        size: locked.size,
        missing_hint: GONE.to_owned(),
    }
}

fn file_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

fn is_url(place: &str) -> bool {
    place.contains("://")
}

/// Whether nobody on the way can change what comes from a place: it lies here, or every server that may be asked is
/// known by its certificate.
fn is_safe(mirrors: &Mirrors, place: &str) -> bool {
    let is_safe = |url: &String| url.starts_with("https://") || url.starts_with("file://");
    !is_url(place) || mirrors.of_url(place).iter().all(is_safe)
}

fn unsafe_way(wanted: &UrlRequest, urls: &[String]) -> Failure {
    let way = if urls == [wanted.url.clone()] { String::new() } else { format!(" (from {})", urls.join(", ")) };
    let lists = if wanted.checksums.is_empty() { "" } else { ", and so do all the lists of its checksums" };
    Failure::user(format!(
        "nothing says that {} is the right file: it comes by http{way}{lists}, which anybody on the way can change",
        wanted.url
    ))
    .hint(
        "write its `sha256`, or `checksums` that come by https or lie beside the cluster file; or take it by https: see `url` and --mirror",
    )
}

/// All that is said of the file.
fn claims(session: &Session<'_>, wanted: &UrlRequest) -> Result<Vec<Claim>> {
    let by_file = |sha256| Claim { by: "the cluster file".to_owned(), checksum: Checksum::Sha256(sha256) };
    let mut claims: Vec<Claim> = wanted.sha256.map(by_file).into_iter().collect();
    let mut problems = Vec::new();
    for place in &wanted.checksums {
        match List::parse(&list(session, place)?).of(&wanted.url) {
            Ok(found) => claims.extend(found.into_iter().map(|checksum| Claim { by: place.clone(), checksum })),
            Err(silence) => problems.push(format!("{place} {silence}")),
        }
    }
    if problems.is_empty() {
        return Ok(claims);
    }
    Err(Failure::user(problems.join("\n"))
        .hint("see what the list has: `checksums` of the input are lists that name the last part of `url`; or write its `sha256` instead")
        .into())
}

/// A list of checksums.
fn list(session: &Session<'_>, place: &str) -> Result<Vec<u8>> {
    if is_url(place) {
        let urls = session.mirrors.of_url(place);
        return session.downloader.fetch_unverified(&format!("the checksums {place}"), &urls, LIST_LIMIT);
    }
    let mut list = Vec::new();
    let file = File::open(session.base.join(place)).map_err(|e| missing_file(place, e))?;
    file.take(LIST_LIMIT + 1).read_to_end(&mut list).map_err(|e| Failure::io(format!("reading {place}"), e))?;
    if list.len() as u64 > LIST_LIMIT {
        let message = format!("{place} has more than {LIST_LIMIT} bytes, and so is no list of checksums");
        return Err(Failure::user(message).hint("see `checksums` of the input").into());
    }
    Ok(list)
}

/// Compares what came with what is said of it, and that with each other.
fn compare(store: &Store, wanted: &UrlRequest, claims: &[Claim], (sha256, size): (Digest, u64)) -> Result<()> {
    let mut found = vec![Checksum::Sha256(sha256)];
    if claims.iter().any(|claim| matches!(claim.checksum, Checksum::Sha512(_))) {
        found.push(sha512(store, &sha256)?);
    }
    if claims.iter().all(|claim| found.contains(&claim.checksum)) {
        return Ok(());
    }
    let said = claims.iter().map(|claim| {
        let verdict = if found.contains(&claim.checksum) { "" } else { ", which is not so" };
        format!("\n  {} by {}{verdict}", claim.checksum, claim.by)
    });
    let is = found.iter().map(|checksum| format!("\n  {checksum} is what came ({size} bytes)"));
    let lines: String = said.chain(is).collect();
    Err(Failure::verification(format!("{} is not what it is said to be:{lines}", wanted.url))
        .hint(
            "the file or a list was changed or damaged, or they are of different versions: compare with what its makers \
             publish, and correct `url`, `sha256` or `checksums` of the input; a mirror may be out of step",
        )
        .into())
}

fn sha512(store: &Store, object: &Digest) -> Result<Checksum> {
    let (mut file, mut hasher) = (store.open_object(object)?, Sha512::new());
    let mut buf = vec![0; 128 << 10];
    loop {
        match file.read(&mut buf).context("reading a store object")? {
            0 => return Ok(Checksum::of_sha512(hasher)),
            n => hasher.update(&buf[..n]),
        }
    }
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
