// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::super::fixtures::{Publisher, key, keyring};
use super::*;
use crate::error::{self, ErrorKind};
use crate::inputs::download::{Options, Progress};
use crate::inputs::fake_mirror::FakeMirror;
use crate::inputs::request::{DebRequest, FileRequest, Origin, Request, Session, SourceRequest, Update, digests};
use crate::lock::Lock;
use crate::store::Store;

const NOW: u32 = 1_768_050_000; // 10 January 2026

struct World {
    mirror: FakeMirror,
    mirrors: Mirrors,
    downloader: Downloader,
    dir: tempfile::TempDir,
}

const APP_1: &str = "Package: app\nVersion: 1.0\nArchitecture: amd64\nDepends: lib (>= 1), awk\n";
const APP_2: &str = "Package: app\nVersion: 1.0+deb1\nArchitecture: amd64\nDepends: lib (>= 1), awk\n";
const LIB: &str = "Package: lib\nVersion: 2:1.5\nArchitecture: all\n";
const MAWK: &str = "Package: mawk\nVersion: 3\nArchitecture: amd64\nProvides: awk\n";
const SOURCES: &str = "\
Package: app
Version: 1.2+really1.0.3-1
Directory: pool/main/a/app
Checksums-Sha256:
 0000000000000000000000000000000000000000000000000000000000000001 10 app.dsc
 0000000000000000000000000000000000000000000000000000000000000002 20 app.orig.tar.gz

Package: app
Version: 1.0.2-1
Directory: pool/main/a/app
Checksums-Sha256:
 0000000000000000000000000000000000000000000000000000000000000003 30 app2.dsc
";

/// A mirror with the suites `test` and `test-security`, and everything that is needed to build from it.
fn world(publish: impl FnOnce(&FakeMirror, &pgp::composed::SignedSecretKey)) -> World {
    let (mirror, key) = (FakeMirror::start(), key("archive"));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("keys.gpg"), keyring(&[&key])).unwrap();
    publish(&mirror, &key);
    let mirrors = Mirrors::discover(&[mirror.url("debian")], dir.path(), |_| None).unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let downloader = downloader(&store, &mirrors, false);
    World { mirror, mirrors, downloader, dir }
}

fn downloader(store: &Store, mirrors: &Mirrors, offline: bool) -> Downloader {
    let options = Options { offline, backoff: Duration::from_millis(1), ..Options::default() };
    Downloader::new(store, mirrors.proxies(), options, Progress::hidden()).unwrap()
}

fn both_suites(mirror: &FakeMirror, key: &pgp::composed::SignedSecretKey) {
    let main = Publisher { mirror, key, suite: "test", archive: "debian", valid_until: "" };
    main.publish(&[APP_1, LIB, MAWK], SOURCES);
    let valid_until = "Valid-Until: Sat, 17 Jan 2026 09:55:12 UTC\n";
    let security = Publisher { mirror, key, suite: "test-security", archive: "debian-security", valid_until };
    security.publish(&[APP_2], "");
}

fn origin(suites: &[&str]) -> Origin {
    Origin {
        suites: suites.iter().map(ToString::to_string).collect(),
        components: vec!["main".into()],
        keyring: Some(PathBuf::from("keys.gpg")),
        check_valid_until: true,
    }
}

fn debs(packages: &[&str]) -> Request {
    Request::Deb(DebRequest {
        origin: origin(&["test", "test-security"]),
        architecture: "amd64".into(),
        packages: packages.iter().map(ToString::to_string).collect(),
        dependencies: true,
        excludes: [].into(),
        essential: false,
    })
}

fn source(version: &str) -> Request {
    let (package, version) = ("app".to_owned(), version.to_owned());
    Request::Source(SourceRequest { origin: origin(&["test"]), package, version })
}

fn requests(list: &[(&str, Request)]) -> BTreeMap<String, Request> {
    list.iter().map(|(name, request)| ((*name).to_owned(), request.clone())).collect()
}

impl World {
    fn session<'a>(&'a self, downloader: &'a Downloader) -> Session<'a> {
        Session { downloader, mirrors: &self.mirrors, base: self.dir.path(), now: NOW }
    }
    fn lock(&self, requests: &BTreeMap<String, Request>) -> Result<Lock> {
        self.session(&self.downloader).lock(requests, None, &Update::Stale)
    }
    fn fails(&self, request: Request) -> anyhow::Error {
        self.lock(&requests(&[("os", request)])).unwrap_err()
    }
}

fn lines(lock: &Lock, input: &str) -> Vec<String> {
    lock.inputs[input].items.iter().map(|item| format!("{} {} {}", item.describe(), item.archive, item.path)).collect()
}

#[test]
fn suites_are_merged_locked_and_fetched() {
    let w = world(both_suites);
    let lock = w.lock(&requests(&[("os", debs(&["app"])), ("src", source("1.0.3"))])).unwrap();
    assert_eq!(
        lines(&lock, "os"),
        [
            "app 1.0+deb1 (amd64) debian-security pool/main/app_1.0+deb1.deb",
            "lib 2:1.5 (all) debian pool/main/lib_2:1.5.deb",
            "mawk 3 (amd64) debian pool/main/mawk_3.deb",
        ]
    );
    assert_eq!(
        lines(&lock, "src"),
        [
            "app.dsc of source package app 1.2+really1.0.3-1 debian pool/main/a/app/app.dsc",
            "app.orig.tar.gz of source package app 1.2+really1.0.3-1 debian pool/main/a/app/app.orig.tar.gz",
        ]
    );
    assert_eq!(lock.inputs["os"].date, 1_768_038_912, "the date of the suites");
    let Request::Deb(mut alone) = debs(&["app=1.0"]) else { unreachable!() };
    alone.dependencies = false;
    let alone = w.lock(&requests(&[("app", Request::Deb(alone))])).unwrap();
    assert_eq!(lines(&alone, "app"), ["app 1.0 (amd64) debian pool/main/app_1.0.deb"]);
    let text = lock.to_text().unwrap();
    assert!(!text.contains("127.0.0.1") && !text.contains("http"), "a lock names no host");
    let mut only_debs = lock.clone();
    only_debs.inputs.remove("src");
    w.session(&w.downloader).fetch(&only_debs).unwrap();
    let store = w.downloader.store();
    assert!(lock.inputs["os"].items.iter().all(|item| store.has(&item.sha256)));

    // With everything in the store, neither network nor index nor mirror is needed.
    let before = w.mirror.requests().len();
    let offline = downloader(store, &w.mirrors, true);
    let nowhere = Mirrors::default();
    let session = Session { mirrors: &nowhere, ..w.session(&offline) };
    session.fetch(&only_debs).unwrap();
    let e = session.fetch(&lock).unwrap_err();
    assert!(e.to_string().contains("--offline: 2 files are not in the store:\n  app.dsc of source package"), "{e}");
    assert_eq!(w.mirror.requests().len(), before);
}

#[test]
fn only_what_is_asked_for_is_updated() {
    let w = world(both_suites);
    let wanted = requests(&[("a", debs(&["lib"])), ("b", debs(&["mawk"]))]);
    let lock = w.lock(&wanted).unwrap();
    lock.check(&digests(&wanted).unwrap()).unwrap();
    let before = w.mirror.requests().len();
    let session = w.session(&w.downloader);
    assert_eq!(session.lock(&wanted, Some(&lock), &Update::Stale).unwrap(), lock);
    assert_eq!(w.mirror.requests().len(), before, "nothing to resolve");

    let mut old = lock.clone();
    old.inputs.values_mut().for_each(|input| input.items[0].version = "0".to_owned());
    let named = session.lock(&wanted, Some(&old), &Update::Named(["b".to_owned()].into())).unwrap();
    assert_eq!((&named.inputs["a"], &named.inputs["b"]), (&old.inputs["a"], &lock.inputs["b"]));
    assert_eq!(session.lock(&wanted, Some(&old), &Update::All).unwrap(), lock);
    let e = session.lock(&wanted, Some(&old), &Update::Named(["c".to_owned()].into())).unwrap_err();
    assert_eq!(e.to_string(), "there is no input `c`");

    // Another request is a stale lock; how it is verified is not part of the request.
    let changed = requests(&[("a", debs(&["lib", "mawk"])), ("b", debs(&["mawk"]))]);
    let e = lock.check(&digests(&changed).unwrap()).unwrap_err();
    assert_eq!(e.to_string(), "the lock does not fit the cluster file: input `a` has changed");
    let mut unchecked = debs(&["lib"]);
    if let Request::Deb(deb) = &mut unchecked {
        deb.origin.check_valid_until = false;
    }
    assert_eq!(unchecked.digest().unwrap(), wanted["a"].digest().unwrap());
}

#[test]
fn problems_of_all_inputs_at_once() {
    let w = world(both_suites);
    let wanted = requests(&[("a", debs(&["nope"])), ("b", debs(&["neither", "lib"])), ("c", source("7"))]);
    let e = w.lock(&wanted).unwrap_err();
    let text = e.to_string();
    for part in
        ["input `a`: ", "no package `nope` for amd64", "no package `neither`", "no source package `app` 7 in test"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(error::kind(&e), ErrorKind::User);
    let lock = w.lock(&requests(&[("older", source("1.0.2"))])).unwrap();
    assert_eq!(lines(&lock, "older"), ["app2.dsc of source package app 1.0.2-1 debian pool/main/a/app/app2.dsc"]);
}

#[test]
fn a_package_that_vanished_says_how_to_go_on() {
    let w = world(both_suites);
    let lock = w.lock(&requests(&[("os", debs(&["app"]))])).unwrap();
    w.mirror.remove("debian-security/pool/main/app_1.0+deb1.deb");
    let e = w.session(&w.downloader).fetch(&lock).unwrap_err();
    assert!(e.to_string().contains("downloading app 1.0+deb1 (amd64) from http"), "{e}");
    assert!(e.to_string().ends_with("the mirror does not have it (HTTP 404)"), "{e}");
    assert!(error::hint(&e).unwrap().contains("run `imgbuild lock --update`"));
}

#[test]
fn unsigned_foreign_outdated_and_unreachable_suites() {
    let w = world(both_suites);
    let inrelease = "debian/dists/test/InRelease";
    let publish = |key: &pgp::composed::SignedSecretKey, suite: &str, valid_until: &str| {
        let publisher = Publisher { mirror: &w.mirror, key, suite, archive: "debian", valid_until };
        publisher.publish(&[APP_1, LIB, MAWK], SOURCES);
    };
    publish(&key("stranger"), "test", "");
    let e = w.fails(debs(&["app"]));
    let text = format!("{e:#}");
    assert!(text.contains("locking input `os`: verifying http") && text.contains("is not in it"), "{text}");
    assert_eq!(error::kind(&e), ErrorKind::Verification);

    w.mirror.put(inrelease, "<html>");
    assert!(format!("{:#}", w.fails(debs(&["app"]))).contains("it is not a cleartext-signed text"));

    w.mirror.remove(inrelease);
    let e = w.fails(debs(&["app"]));
    assert!(format!("{e:#}").contains("downloading the Release file of test from http"), "{e:#}");
    assert_eq!(error::kind(&e), ErrorKind::Environment);
}

#[test]
fn valid_until_counts_unless_switched_off() {
    let w = world(|mirror, key| {
        let valid_until = "Valid-Until: Fri, 09 Jan 2026 09:55:12 UTC\n";
        Publisher { mirror, key, suite: "test", archive: "debian", valid_until }.publish(&[LIB], "");
        Publisher { mirror, key, suite: "other", archive: "debian", valid_until }.publish(&[LIB], "");
        Publisher { mirror, key, suite: "test-security", archive: "debian-security", valid_until: "" }.publish(&[], "");
    });
    let e = w.fails(debs(&["lib"]));
    assert!(format!("{e:#}").contains("is no longer valid"), "{e:#}");
    assert_eq!(error::kind(&e), ErrorKind::Verification);
    let Request::Deb(mut deb) = debs(&["lib"]) else { unreachable!() };
    deb.origin.check_valid_until = false;
    assert_eq!(w.lock(&requests(&[("os", Request::Deb(deb.clone()))])).unwrap().inputs["os"].items.len(), 1);
    deb.origin.components = vec!["contrib".into()];
    let e = w.fails(Request::Deb(deb));
    assert_eq!(e.to_string(), "input `os`: suite `test` has no contrib/binary-amd64/Packages");
    assert!(error::hint(&e).unwrap().contains("it has the components main and the architectures amd64"));
}

#[test]
fn an_index_that_is_not_what_the_release_says() {
    let w = world(both_suites);
    let by_hash = {
        w.lock(&requests(&[("os", debs(&["lib"]))])).unwrap();
        w.mirror.requests().into_iter().find(|r| r.contains("/test/main/binary-amd64/by-hash/")).unwrap()
    };
    let digest: Digest = by_hash.rsplit('/').next().unwrap().parse().unwrap();
    std::fs::remove_file(w.downloader.store().path(&digest)).unwrap();
    w.mirror.put(by_hash.trim_start_matches('/'), vec![0; 4000]);
    let e = w.fails(debs(&["lib"]));
    assert!(format!("{e:#}").contains("the mirror's file has 4000 bytes, expected"), "{e:#}");
    assert_eq!(error::kind(&e), ErrorKind::Verification);
}

#[test]
fn files_beside_the_cluster_file() {
    let w = world(|_, _| {});
    let file = |sha256| Request::File(FileRequest { path: "files/motd".into(), sha256: Some(sha256) });
    let e = w.fails(file(Digest::of(b"hello")));
    assert_eq!(e.to_string(), "input `os`: reading the input file files/motd");
    std::fs::create_dir(w.dir.path().join("files")).unwrap();
    std::fs::write(w.dir.path().join("files/motd"), b"hello").unwrap();
    let lock = w.lock(&requests(&[("motd", file(Digest::of(b"hello")))])).unwrap();
    w.session(&w.downloader).fetch(&lock).unwrap();
    assert!(w.downloader.store().has(&Digest::of(b"hello")));
    let lock = w.lock(&requests(&[("motd", file(Digest::of(b"other")))])).unwrap();
    let e = w.session(&w.downloader).fetch(&lock).unwrap_err();
    assert!(format!("{e:#}").starts_with("file files/motd is not the one that was locked: sha256 is"), "{e:#}");
    assert_eq!(error::kind(&e), ErrorKind::Verification);
}

#[test]
fn the_lock_remembers_files_that_come_without_a_sha256() {
    let w = world(|_, _| {});
    let request = Request::File(FileRequest { path: "motd".into(), sha256: None });
    assert_eq!(w.fails(request.clone()).to_string(), "input `os`: reading the input file motd");
    std::fs::write(w.dir.path().join("motd"), b"hello").unwrap();
    let lock = w.lock(&requests(&[("motd", request)])).unwrap();
    let item = &lock.inputs["motd"].items[0];
    assert_eq!((item.sha256, item.size), (Digest::of(b"hello"), 5));
    w.session(&w.downloader).fetch(&lock).unwrap();
    // On another machine, or after the store was cleaned, with another file in its place.
    std::fs::remove_file(w.downloader.store().path(&item.sha256)).unwrap();
    std::fs::write(w.dir.path().join("motd"), b"other").unwrap();
    let e = w.session(&w.downloader).fetch(&lock).unwrap_err();
    assert!(format!("{e:#}").starts_with("file motd is not the one that was locked: sha256 is"), "{e:#}");
    assert_eq!(error::kind(&e), ErrorKind::Verification);
}

#[test]
fn source_versions() {
    assert!(matches("1.20.5+really1.20.2-1.1+deb12u1", "1.20.2"));
    assert!(matches("1.20.2+dfsg-1", "1.20.2") && matches("2:1.20.2-1", "1.20.2") && matches("1.20.2-1", "1.20.2-1"));
    assert!(!matches("1.20.20-1", "1.20.2") && !matches("1.20.5+really1.20.2-1", "1.20.5"));
}
