// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use super::*;
use crate::error;
use crate::inputs::fake_mirror::{FakeMirror, Mood};

struct Setup {
    mirror: FakeMirror,
    store: Store,
    _dir: tempfile::TempDir,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    Setup { mirror: FakeMirror::start(), store: Store::open(dir.path()).unwrap(), _dir: dir }
}

fn options() -> Options {
    Options { backoff: Duration::from_millis(1), stall: Duration::from_millis(300), ..Options::default() }
}

impl Setup {
    fn item(&self, path: &str, bytes: &[u8]) -> Item {
        self.mirror.put(path, bytes);
        Item {
            name: path.to_owned(),
            urls: vec![self.mirror.url(path)],
            sha256: Digest::of(bytes),
            size: bytes.len() as u64,
            missing_hint: "update the lock".to_owned(),
        }
    }
    fn downloader(&self, options: Options) -> Downloader {
        Downloader::new(&self.store, &Proxies::default(), options, Progress::hidden()).unwrap()
    }
    fn fetch(&self, items: &[Item]) -> Result<()> {
        self.downloader(options()).fetch(items)
    }
    fn leftovers(&self) -> usize {
        fs::read_dir(self.store.root().join("partial")).unwrap().count()
    }
}

const BYTES: &[u8] = b"some content of a package";

#[test]
fn many_files_in_parallel_and_only_once() {
    let s = setup();
    let mut items: Vec<Item> = (0..20).map(|i| s.item(&format!("f{i}"), format!("file {i}").as_bytes())).collect();
    items.push(items[0].clone());
    s.fetch(&items).unwrap();
    assert!(items.iter().all(|item| s.store.has(&item.sha256)));
    assert_eq!(s.mirror.requests().len(), 20);
    s.fetch(&items).unwrap();
    assert_eq!(s.mirror.requests().len(), 20, "what is there is not fetched");
    assert_eq!(s.leftovers(), 0);
}

#[test]
fn a_truncated_download_is_continued() {
    let s = setup();
    let item = s.item("a", BYTES);
    s.mirror.moods("a", &[Mood::Truncate(5), Mood::Truncate(4)]);
    s.fetch(std::slice::from_ref(&item)).unwrap();
    assert_eq!(s.mirror.requests(), ["/a", "/a 5-", "/a 9-"]);
    s.store.verify(&item.sha256).unwrap();
}

#[test]
fn a_download_is_continued_by_the_next_run() {
    let s = setup();
    let item = s.item("a", BYTES);
    s.mirror.moods("a", &[Mood::Truncate(5), Mood::Status(503), Mood::Status(503), Mood::Status(503)]);
    let e = s.fetch(std::slice::from_ref(&item)).unwrap_err();
    assert!(
        e.to_string().contains("downloading a from http://127.0.0.1") && e.to_string().ends_with("HTTP 503"),
        "{e}"
    );
    assert_eq!(error::kind(&e).exit_code(), 3);
    assert!(error::hint(&e).unwrap().contains("the next run continues it"));
    assert!(!s.store.has(&item.sha256));
    assert_eq!(s.leftovers(), 1);
    s.fetch(std::slice::from_ref(&item)).unwrap();
    assert_eq!(s.mirror.requests().last().unwrap(), "/a 5-");
    assert_eq!(s.leftovers(), 0);
}

#[test]
fn a_server_without_ranges_starts_over() {
    let s = setup();
    let item = s.item("a", BYTES);
    s.mirror.moods("a", &[Mood::Truncate(5), Mood::IgnoreRange]);
    s.fetch(std::slice::from_ref(&item)).unwrap();
    s.store.verify(&item.sha256).unwrap();
}

#[test]
fn a_continued_download_of_another_file_starts_over() {
    let s = setup();
    let item = s.item("a", BYTES);
    let mut partial = s.store.partial(&item.sha256).unwrap();
    partial.write_all(b"other").unwrap();
    drop(partial);
    s.fetch(std::slice::from_ref(&item)).unwrap();
    assert_eq!(s.mirror.requests(), ["/a 5-", "/a"]);
    // One that is longer than the file can only be of another.
    let item = s.item("b", b"short");
    let mut partial = s.store.partial(&item.sha256).unwrap();
    partial.write_all(BYTES).unwrap();
    drop(partial);
    s.fetch(&[item]).unwrap();
}

#[test]
fn stalled_and_busy_servers_are_tried_again() {
    let s = setup();
    let item = s.item("a", BYTES);
    s.mirror.moods("a", &[Mood::Stall(3), Mood::Status(503), Mood::Chunked]);
    s.fetch(&[item]).unwrap();
    assert_eq!(s.mirror.requests().len(), 3);
}

#[test]
fn wrong_content_is_refused_and_leaves_nothing() {
    let s = setup();
    let item = s.item("a", BYTES);
    s.mirror.moods("a", &[Mood::Lie, Mood::Lie]);
    let e = s.fetch(std::slice::from_ref(&item)).unwrap_err();
    assert!(e.to_string().contains("sha256 is") && e.to_string().contains("expected"), "{e}");
    assert_eq!(error::kind(&e).exit_code(), 4);
    assert!(error::hint(&e).unwrap().contains("another with --mirror"));
    assert!(!s.store.has(&item.sha256));
    s.mirror.put("a", b"too short".as_slice());
    let e = s.fetch(std::slice::from_ref(&item)).unwrap_err();
    assert!(e.to_string().contains("the mirror's file has 9 bytes, expected 25"), "{e}");
    assert_eq!(s.leftovers(), 0);
}

#[test]
fn the_second_mirror_helps() {
    let s = setup();
    let mut item = s.item("a", BYTES);
    item.urls = vec![s.mirror.url("nowhere"), "http://127.0.0.1:1/a".into(), s.mirror.url("lie"), s.mirror.url("a")];
    s.mirror.put("lie", BYTES);
    s.mirror.moods("lie", &[Mood::Lie]);
    s.fetch(&[item]).unwrap();
}

#[test]
fn files_that_are_gone_are_all_named() {
    let s = setup();
    let (a, b, c) = (s.item("a", b"a"), s.item("b", b"b"), s.item("c", b"c"));
    s.mirror.remove("a");
    let e = s.fetch(&[a.clone(), c.clone()]).unwrap_err();
    assert!(e.to_string().contains("the mirror does not have it (HTTP 404)"), "{e}");
    assert_eq!(error::hint(&e).unwrap(), "update the lock");
    assert_eq!(error::kind(&e).exit_code(), 3);
    s.mirror.remove("b");
    let e = s.fetch(&[a, b, c]).unwrap_err();
    assert!(e.to_string().starts_with("2 files are not on the mirror:\n  downloading a from"), "{e}");
}

#[test]
fn an_unreachable_mirror_is_one_message() {
    let s = setup();
    let mut items: Vec<Item> = (0..9).map(|i| s.item(&format!("f{i}"), format!("file {i}").as_bytes())).collect();
    items.iter_mut().for_each(|item| item.urls = vec![format!("http://127.0.0.1:1/{}", item.name)]);
    let e = s.fetch(&items).unwrap_err();
    assert!(e.to_string().contains("from http://127.0.0.1:1/f"), "{e}");
    assert_eq!((error::kind(&e).exit_code(), e.to_string().lines().count()), (3, 1));
    assert!(error::hint(&e).unwrap().contains("check the network and the mirror's address"));
}

#[test]
fn offline_lists_all_that_is_missing_and_opens_no_connection() {
    let s = setup();
    let (a, b) = (s.item("a", b"a"), s.item("b", b"b"));
    s.fetch(std::slice::from_ref(&a)).unwrap();
    let offline = s.downloader(Options { offline: true, ..options() });
    offline.fetch(std::slice::from_ref(&a)).unwrap();
    let e = offline.fetch(&[a, b, s.item("c", b"c")]).unwrap_err();
    assert!(e.to_string().starts_with("--offline: 2 files are not in the store:\n  b (1 bytes, sha256 3e23"), "{e}");
    assert!(
        offline.fetch_unverified("InRelease", &[s.mirror.url("a")], 9).unwrap_err().to_string().contains("--offline")
    );
    assert_eq!(s.mirror.requests().len(), 1);
}

#[test]
fn a_corrupt_object_is_fetched_again() {
    let s = setup();
    let item = s.item("a", BYTES);
    s.fetch(std::slice::from_ref(&item)).unwrap();
    fs::remove_file(s.store.path(&item.sha256)).unwrap();
    fs::write(s.store.path(&item.sha256), b"xxxx content of a package").unwrap();
    let items = [item.clone()];
    let open = || Store::open(s.store.root()).unwrap();
    let fetch =
        |options| Downloader::new(&open(), &Proxies::default(), options, Progress::hidden()).unwrap().fetch(&items);
    fetch(options()).unwrap();
    assert!(open().has(&item.sha256), "only looked at");
    fetch(Options { recheck: true, ..options() }).unwrap();
    open().verify(&item.sha256).unwrap();
    // Another size is always seen.
    fs::remove_file(s.store.path(&item.sha256)).unwrap();
    fs::write(s.store.path(&item.sha256), b"x").unwrap();
    fetch(options()).unwrap();
    open().verify(&item.sha256).unwrap();
}

#[test]
fn two_builds_fetch_a_file_once() {
    let s = setup();
    let item = s.item("a", BYTES);
    s.mirror.moods("a", &[Mood::Stall(3)]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let store = Store::open(s.store.root()).unwrap();
                let downloader = Downloader::new(&store, &Proxies::default(), options(), Progress::hidden()).unwrap();
                downloader.fetch(std::slice::from_ref(&item)).unwrap();
            });
        }
    });
    assert_eq!(s.mirror.requests(), ["/a", "/a 3-"]);
    assert_eq!(s.leftovers(), 0);
}

#[test]
fn files_and_proxies() {
    let s = setup();
    let mut item = s.item("dir/a", BYTES);
    let file = s.store.root().join("plain");
    fs::write(&file, BYTES).unwrap();
    item.urls = vec![format!("file://{}", file.display())];
    let mut partial = s.store.partial(&item.sha256).unwrap();
    partial.write_all(&BYTES[..3]).unwrap();
    drop(partial);
    s.fetch(&[item]).unwrap();

    let mut item = s.item("dir/b", b"by proxy");
    item.urls = vec!["http://mirror.example/dir/b".into()];
    s.mirror.moods("dir/b", &[Mood::Truncate(2), Mood::Chunked]);
    let proxies = Proxies { http: Some(s.mirror.uri.clone()), ..Proxies::default() };
    Downloader::new(&s.store, &proxies, options(), Progress::hidden()).unwrap().fetch(&[item]).unwrap();
    assert_eq!(s.mirror.requests(), ["http://mirror.example/dir/b", "http://mirror.example/dir/b 2-"]);
}
