// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::error::{self, ErrorKind};
use crate::inputs::download::{Downloader, Options, Progress};
use crate::inputs::fake_mirror::{FakeMirror, Mood};
use crate::inputs::mirror::Proxies;
use crate::inputs::request::{Request, Update};
use crate::lock::Lock;

const CONTENT: &[u8] = b"a program, once compiled";
const URL: &str = "https://dl.example/v1.32.1/bin/linux/amd64/kubeadm";

/// A server that stands for `dl.example`, a folder with a cluster file, and a store.
struct World {
    mirror: FakeMirror,
    dir: tempfile::TempDir,
    mirrors: Mirrors,
}

fn world() -> World {
    let mirror = FakeMirror::start();
    mirror.put("k8s/v1.32.1/bin/linux/amd64/kubeadm", CONTENT);
    let dir = tempfile::tempdir().unwrap();
    let overrides = [format!("dl.example={}/k8s", mirror.uri), format!("safe.example=file://{}", dir.path().display())];
    let mirrors = Mirrors::discover(&overrides, Path::new("/nonexistent"), |_| None).unwrap();
    World { mirror, dir, mirrors }
}

impl World {
    fn downloader(&self, offline: bool) -> Downloader {
        let options = Options { offline, backoff: Duration::from_millis(1), attempts: 2, ..Options::default() };
        let store = Store::open(&self.dir.path().join("store")).unwrap();
        Downloader::new(&store, &Proxies::default(), options, Progress::hidden()).unwrap()
    }

    fn act<T>(&self, downloader: &Downloader, act: impl FnOnce(&Session<'_>) -> Result<T>) -> Result<T> {
        act(&Session { downloader, mirrors: &self.mirrors, base: self.dir.path(), now: 0 })
    }

    fn lock(&self, wanted: &UrlRequest) -> Result<LockedItem> {
        let requests = BTreeMap::from([("kubeadm".to_owned(), Request::Url(wanted.clone()))]);
        let lock = self.act(&self.downloader(false), |session| session.lock(&requests, None, &Update::Stale))?;
        Ok(lock.inputs["kubeadm"].items[0].clone())
    }

    fn file(&self, path: &str, text: impl AsRef<[u8]>) {
        fs::write(self.dir.path().join(path), text).unwrap();
    }

    fn requests(&self) -> Vec<String> {
        self.mirror.requests()
    }
}

fn wanted(url: &str, sha256: Option<&[u8]>, checksums: &[&str]) -> UrlRequest {
    UrlRequest {
        url: url.to_owned(),
        sha256: sha256.map(Digest::of),
        checksums: checksums.iter().map(ToString::to_string).collect(),
    }
}

fn sha512(content: &[u8]) -> String {
    Checksum::of_sha512(Sha512::new_with_prefix(content)).to_string().replace("sha512 ", "")
}

#[test]
fn what_all_agree_on_is_locked_by_its_own_address_and_fetched_from_a_mirror() {
    let w = world();
    w.file("SHA512SUMS", format!("{}  v1.32.1/bin/linux/amd64/kubeadm\n", sha512(CONTENT)));
    w.mirror.put("k8s/v1.32.1/bin/linux/amd64/kubeadm.sha256", Digest::of(CONTENT).to_string());
    let item = w.lock(&wanted(URL, Some(CONTENT), &["SHA512SUMS", &format!("{URL}.sha256")])).unwrap();
    let expected = LockedItem {
        kind: ItemKind::Url,
        name: "kubeadm".into(),
        version: String::new(),
        architecture: String::new(),
        archive: String::new(),
        path: URL.into(),
        size: CONTENT.len() as u64,
        sha256: Digest::of(CONTENT),
    };
    assert_eq!(item, expected);
    let (list, file) = ("/k8s/v1.32.1/bin/linux/amd64/kubeadm.sha256", "/k8s/v1.32.1/bin/linux/amd64/kubeadm");
    assert_eq!(w.requests(), [list, file]);

    // On another machine, with the lock alone.
    fs::remove_dir_all(w.dir.path().join("store")).unwrap();
    let mut lock = Lock::default();
    let input = crate::lock::LockedInput { request: Digest::of(b""), suites: vec![], date: 0, items: vec![item] };
    lock.inputs.insert("kubeadm".into(), input);
    assert_eq!(Lock::parse(&lock.to_text().unwrap()).unwrap(), lock);
    let e = w.act(&w.downloader(true), |session| session.fetch(&lock)).unwrap_err();
    assert!(e.to_string().contains(&format!("\n  {URL} (24 bytes, sha256 ")), "{e}");
    w.act(&w.downloader(false), |session| session.fetch(&lock)).unwrap();
    assert_eq!(w.requests(), [list, file, file]);
    w.downloader(true).store().verify(&Digest::of(CONTENT)).unwrap();

    w.mirror.remove("k8s/v1.32.1/bin/linux/amd64/kubeadm");
    fs::remove_dir_all(w.dir.path().join("store")).unwrap();
    let e = w.act(&w.downloader(false), |session| session.fetch(&lock)).unwrap_err();
    assert!(e.to_string().contains("HTTP 404") && error::hint(&e).unwrap().contains("--mirror HOST=URL"), "{e:#}");
}

#[test]
fn what_the_store_has_is_not_downloaded_again() {
    let w = world();
    let request = wanted(URL, Some(CONTENT), &[]);
    w.lock(&request).unwrap();
    w.lock(&request).unwrap();
    assert_eq!(w.requests().len(), 1);
    let requests = BTreeMap::from([("kubeadm".to_owned(), Request::Url(request))]);
    let offline = |requests: &BTreeMap<String, Request>| {
        w.act(&w.downloader(true), |session| session.lock(requests, None, &Update::All))
    };
    offline(&requests).unwrap();
    let other = BTreeMap::from([("kubeadm".to_owned(), Request::Url(wanted(URL, Some(b"other"), &[])))]);
    let e = offline(&other).unwrap_err();
    assert!(e.to_string().contains("--offline") && error::kind(&e) == ErrorKind::User, "{e:#}");
}

#[test]
fn every_contradiction_of_every_input_is_said_at_once() {
    let w = world();
    w.file("right", format!("{}  kubeadm\n", Digest::of(CONTENT)));
    w.file("wrong", format!("{}  kubeadm\n", Digest::of(b"other")));
    w.file("wrong512", sha512(b"another"));
    let one = wanted(URL, Some(CONTENT), &["right", "wrong", "wrong512"]);
    let two = wanted(URL, Some(b"never"), &["right"]);
    let requests = BTreeMap::from([("one".to_owned(), Request::Url(one)), ("two".to_owned(), Request::Url(two))]);
    let e = w.act(&w.downloader(false), |session| session.lock(&requests, None, &Update::Stale)).unwrap_err();
    assert_eq!(error::kind(&e).exit_code(), 4, "{e:#}");
    let (is, wrong, never) = (Digest::of(CONTENT), Digest::of(b"other"), Digest::of(b"never"));
    let expected = format!(
        "input `one`: {URL} is not what it is said to be:\n\
         \x20 sha256 {is} by the cluster file\n\
         \x20 sha256 {is} by right\n\
         \x20 sha256 {wrong} by wrong, which is not so\n\
         \x20 sha512 {} by wrong512, which is not so\n\
         \x20 sha256 {is} is what came (24 bytes)\n\
         \x20 sha512 {} is what came (24 bytes)\n\
         input `two`: {URL} is not what it is said to be:\n\
         \x20 sha256 {never} by the cluster file, which is not so\n\
         \x20 sha256 {is} by right\n\
         \x20 sha256 {is} is what came (24 bytes)",
        sha512(b"another"),
        sha512(CONTENT),
    );
    assert_eq!(e.to_string(), expected);
    // One claim alone, which is wrong.
    let e = w.lock(&wanted(URL, Some(b"never"), &[])).unwrap_err();
    assert_eq!(error::kind(&e), ErrorKind::Verification);
    assert!(e.to_string().contains(&format!("sha256 {never} by the cluster file, which is not so")), "{e}");
}

#[test]
fn lists_that_do_not_name_the_file_are_all_said() {
    let w = world();
    let digest = Digest::of(CONTENT);
    w.file("of-others", format!("{digest}  kubelet\n{digest}  kubeadm.exe\n"));
    w.file("page", "<html>");
    let e = w.lock(&wanted(URL, None, &["of-others", "page"])).unwrap_err();
    assert_eq!(error::kind(&e), ErrorKind::User, "{e:#}");
    assert_eq!(
        e.to_string(),
        "input `kubeadm`: of-others has no checksum of `kubeadm` (it has `kubelet`, `kubeadm.exe`)\n\
         page is no list of checksums: no line of it has a SHA-256 or a SHA-512"
    );
    assert_eq!(w.requests(), [""; 0], "nothing is downloaded for that");
    let e = w.lock(&wanted(URL, None, &["nowhere"])).unwrap_err();
    assert_eq!(e.to_string(), "input `kubeadm`: reading the input file nowhere");
    let e = w.lock(&wanted(URL, Some(CONTENT), &["https://dl.example/missing"])).unwrap_err();
    let text = format!("{e:#}");
    assert!(text.contains("downloading the checksums https://dl.example/missing from http://127"), "{text}");
    w.file("long", vec![b'a'; 9 << 20]);
    let e = w.lock(&wanted(URL, None, &["long"])).unwrap_err();
    assert!(e.to_string().contains("long has more than 8388608 bytes"), "{e}");
}

#[test]
fn by_http_something_else_must_vouch_for_it() {
    let w = world();
    let lists = format!("{}  kubeadm\n", Digest::of(CONTENT));
    w.mirror.put("k8s/SHA256SUMS", lists.as_str());
    w.file("SHA256SUMS", &lists);
    let plain = w.mirror.url("k8s/v1.32.1/bin/linux/amd64/kubeadm");
    let over_http = "https://dl.example/SHA256SUMS";
    for (url, checksums) in [(URL, &[][..]), (URL, &[over_http]), (plain.as_str(), &[]), (plain.as_str(), &[over_http])]
    {
        let e = w.lock(&wanted(url, None, checksums)).unwrap_err();
        assert_eq!(error::kind(&e), ErrorKind::User, "{e:#}");
        let text = e.to_string();
        assert!(text.starts_with(&format!("input `kubeadm`: nothing says that {url} is the right file")), "{text}");
        assert_eq!(text.contains(&format!("(from {plain})")), url == URL, "{text}");
        assert_eq!(text.contains("so do all the lists"), !checksums.is_empty(), "{text}");
        assert!(error::hint(&e).unwrap().starts_with("write its `sha256`"));
    }
    assert_eq!(w.requests(), [""; 0]);
    for url in [URL, plain.as_str()] {
        for (sha256, checksums) in
            [(Some(CONTENT), &[][..]), (None, &["SHA256SUMS"]), (None, &["https://safe.example/SHA256SUMS", over_http])]
        {
            assert_eq!(w.lock(&wanted(url, sha256, checksums)).unwrap().sha256, Digest::of(CONTENT));
        }
    }
}

#[test]
fn a_safe_connection_alone_is_believed_and_locked() {
    let w = world();
    let url = "https://safe.example/tool";
    w.file("tool", b"first");
    let requests = BTreeMap::from([("tool".to_owned(), Request::Url(wanted(url, None, &[])))]);
    let lock = |previous: Option<&Lock>, update: &Update| {
        w.act(&w.downloader(false), |session| session.lock(&requests, previous, update)).unwrap()
    };
    let first = lock(None, &Update::Stale);
    assert_eq!(first.inputs["tool"].items[0].sha256, Digest::of(b"first"));
    w.file("tool", b"second");
    assert_eq!(lock(Some(&first), &Update::Stale), first, "what is locked stays");
    assert_eq!(lock(Some(&first), &Update::All).inputs["tool"].items[0].sha256, Digest::of(b"second"));
    // And what is fetched by the first lock is the first, or nothing.
    fs::remove_dir_all(w.dir.path().join("store")).unwrap();
    let e = w.act(&w.downloader(false), |session| session.fetch(&first)).unwrap_err();
    assert_eq!(error::kind(&e), ErrorKind::Verification, "{e:#}");
}

#[test]
fn a_file_of_which_only_a_sha512_is_known_is_continued_and_checked() {
    let w = world();
    w.mirror.send_tags();
    let path = "k8s/v1.32.1/bin/linux/amd64/kubeadm";
    w.file("sums", sha512(CONTENT));
    let request = wanted(URL, None, &["sums"]);
    w.mirror.moods(path, &[Mood::Truncate(10), Mood::Status(500), Mood::Status(500)]);
    let e = w.lock(&request).unwrap_err();
    assert_eq!(error::kind(&e), ErrorKind::Environment, "{e:#}");
    w.lock(&request).unwrap();
    assert_eq!(w.mirror.served(path), CONTENT.len() as u64);
    w.mirror.moods(path, &[Mood::Flip(3)]);
    let e = w.lock(&request).unwrap_err();
    assert_eq!(error::kind(&e), ErrorKind::Verification, "{e:#}");
}
