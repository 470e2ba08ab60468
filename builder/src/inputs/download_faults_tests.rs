// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whatever servers do, and whenever the process ends: the right bytes, or an error.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::error;
use crate::inputs::fake_mirror::{FakeMirror, Mood};

const NAME: &str = "a";

/// Some bytes that do not repeat.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A store, and a server with one file.
struct Setup {
    mirror: FakeMirror,
    dir: tempfile::TempDir,
}

impl Setup {
    fn new(bytes: &[u8], moods: &[Mood]) -> Self {
        let setup = Self { mirror: FakeMirror::start(), dir: tempfile::tempdir().unwrap() };
        setup.mirror.put(NAME, bytes);
        setup.mirror.moods(NAME, moods);
        setup
    }

    /// What a process does.
    fn process<T>(&self, attempts: u32, act: impl FnOnce(&Downloader) -> Result<T>) -> Result<T> {
        let options = Options {
            attempts,
            backoff: Duration::from_millis(1),
            stall: Duration::from_secs(60),
            ..Options::default()
        };
        let store = Store::open(self.dir.path()).unwrap();
        act(&Downloader::new(&store, &Proxies::default(), options, Progress::hidden()).unwrap())
    }

    /// Every object's content.
    fn objects(&self) -> Vec<Vec<u8>> {
        let folders = fs::read_dir(self.dir.path().join("objects")).unwrap().map(|entry| entry.unwrap().path());
        let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
        files.map(|path| fs::read(path).unwrap()).collect()
    }

    fn new_file(&self, attempts: u32, claimed: Option<Digest>) -> Result<(Digest, u64)> {
        self.process(attempts, |downloader| downloader.fetch_new(NAME, &[self.mirror.url(NAME)], claimed, "hint"))
    }
}

fn cut() -> impl Strategy<Value = Mood> {
    (0_usize..400_000).prop_map(Mood::Truncate)
}

/// What hides or delays a file, and does not change it.
fn nuisance() -> impl Strategy<Value = Mood> {
    prop_oneof![
        3 => cut(),
        1 => Just(Mood::IgnoreRange),
        1 => Just(Mood::WrongStart),
        1 => Just(Mood::IgnoreVersion),
        1 => Just(Mood::Chunked),
        1 => prop::sample::select(vec![408, 416, 429, 500, 503]).prop_map(Mood::Status),
    ]
}

fn fault() -> impl Strategy<Value = Mood> {
    prop_oneof![
        8 => nuisance(),
        1 => (0_usize..400_000).prop_map(Mood::Flip),
        1 => (1_usize..200_000).prop_map(Mood::Longer),
        1 => (1_usize..200_000).prop_map(Mood::Shorter),
    ]
}

/// What a server may do to a file of which nothing is known, and yet be believed: no lie about content.
fn honest_fault() -> impl Strategy<Value = Mood> {
    prop_oneof![
        8 => nuisance(),
        2 => (1_usize..300_000, any::<u64>()).prop_map(|(len, seed)| Mood::Change(noise(len, seed))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_locked_file_is_the_right_one_or_none(
        len in 0_usize..300_000, seed: u64, moods in prop::collection::vec(fault(), 0..7), attempts in 1_u32..4, tags: bool,
    ) {
        let bytes = noise(len, seed);
        let s = Setup::new(&bytes, &moods);
        if tags {
            s.mirror.send_tags();
        }
        let item = Item {
            name: NAME.to_owned(),
            urls: vec![s.mirror.url(NAME)],
            sha256: Digest::of(&bytes),
            size: len as u64,
            missing_hint: String::new(),
        };
        // Every run has at least one request, so the last one meets a server that has come to its senses.
        for _ in 0..=moods.len() {
            let done = s.process(attempts, |downloader| downloader.fetch(std::slice::from_ref(&item)));
            prop_assert!(s.objects().iter().all(|object| *object == bytes));
            if done.is_ok() {
                break;
            }
        }
        prop_assert_eq!(s.objects(), [bytes]);
        prop_assert_eq!(fs::read_dir(s.dir.path().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn cuts_alone_cost_less_than_a_block_each(
        len in 1_usize..600_000, seed: u64, cuts in prop::collection::vec(cut(), 0..6), attempts in 1_u32..4, known in 0..3,
    ) {
        let bytes = noise(len, seed);
        let s = Setup::new(&bytes, &cuts);
        s.mirror.send_tags();
        let sha256 = Digest::of(&bytes);
        let item = Item {
            name: NAME.to_owned(),
            urls: vec![s.mirror.url(NAME)],
            sha256,
            size: len as u64,
            missing_hint: String::new(),
        };
        for _ in 0..=cuts.len() {
            let done = match known {
                0 => s.process(attempts, |downloader| downloader.fetch(std::slice::from_ref(&item))),
                1 => s.new_file(attempts, Some(sha256)).map(drop),
                _ => s.new_file(attempts, None).map(drop),
            };
            if done.is_ok() {
                break;
            }
        }
        prop_assert_eq!(s.objects(), [bytes]);
        prop_assert_eq!(fs::read_dir(s.dir.path().join("partial")).unwrap().count(), 0);
        let again = s.mirror.served(NAME) - len as u64;
        prop_assert!(again <= (BLOCK as u64 - 1) * cuts.len() as u64, "{} bytes came again", again);
    }

    #[test]
    fn a_file_nobody_knows_is_one_that_the_server_had_and_no_mixture(
        len in 0_usize..300_000, seed: u64, moods in prop::collection::vec(honest_fault(), 0..8), attempts in 1_u32..4,
        tags: bool,
    ) {
        let bytes = noise(len, seed);
        let s = Setup::new(&bytes, &moods);
        if tags {
            s.mirror.send_tags();
        }
        let mut versions = vec![bytes];
        versions.extend(moods.iter().filter_map(|mood| if let Mood::Change(bytes) = mood { Some(bytes.clone()) } else { None }));
        let mut found = None;
        for _ in 0..=moods.len() {
            match s.new_file(attempts, None) {
                Ok(done) => {
                    found = Some(done);
                    break;
                }
                Err(e) => prop_assert_eq!(error::kind(&e), ErrorKind::Environment, "{:#}", e),
            }
        }
        let (sha256, size) = found.unwrap();
        let objects = s.objects();
        prop_assert_eq!(objects.len(), 1);
        prop_assert_eq!((Digest::of(&objects[0]), objects[0].len() as u64), (sha256, size));
        prop_assert!(versions.contains(&objects[0]), "{} bytes that the server never had", size);
        prop_assert_eq!(fs::read_dir(s.dir.path().join("partial")).unwrap().count(), 0);
    }
}

#[test]
fn a_file_that_changes_under_the_same_address_is_not_continued() {
    let (first, second) = (noise(300_000, 1), noise(310_000, 2));
    for (then, requests) in [
        // By the server, which sees that another version was asked for.
        (Mood::Good, &["/a", "/a 200000-"][..]),
        // By us, where the server does not look at that.
        (Mood::IgnoreVersion, &["/a", "/a 200000-", "/a"]),
    ] {
        let s = Setup::new(&first, &[Mood::Truncate(200_000)]);
        s.mirror.send_tags();
        let e = s.new_file(1, None).unwrap_err();
        assert_eq!(error::kind(&e), ErrorKind::Environment, "{e:#}");
        s.mirror.put(NAME, second.clone());
        s.mirror.moods(NAME, &[then]);
        assert_eq!(s.new_file(2, None).unwrap(), (Digest::of(&second), 310_000));
        assert_eq!(s.mirror.requests(), requests);
    }
}

#[test]
fn without_a_version_or_after_a_crash_it_starts_over() {
    let bytes = noise(300_000, 1);
    let s = Setup::new(&bytes, &[Mood::Truncate(200_000)]);
    s.new_file(1, None).unwrap_err();
    s.new_file(1, None).unwrap();
    assert_eq!(s.mirror.requests(), ["/a", "/a"]);

    let s = Setup::new(&bytes, &[Mood::Truncate(200_000)]);
    s.mirror.send_tags();
    s.new_file(1, None).unwrap_err();
    let note = s.dir.path().join("partial").join(format!("{}.note", Digest::of(s.mirror.url(NAME).as_bytes())));
    let mut version: Version = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
    assert_eq!((version.size, &version.boot), (Some(300_000), &boot().unwrap()));
    version.boot = "another".to_owned();
    fs::write(&note, serde_json::to_vec(&version).unwrap()).unwrap();
    s.new_file(1, None).unwrap();
    assert_eq!(s.mirror.requests(), ["/a", "/a"]);
}

#[test]
fn what_is_only_claimed_is_taken_as_it_comes() {
    let bytes = noise(300_000, 1);
    let s = Setup::new(&bytes, &[Mood::Truncate(200_000)]);
    let claimed = Digest::of(b"something else");
    s.new_file(1, Some(claimed)).unwrap_err();
    // What was continued may have been of another file: all of it comes once more before that is said.
    assert_eq!(s.new_file(1, Some(claimed)).unwrap(), (Digest::of(&bytes), 300_000));
    assert_eq!(s.mirror.requests(), ["/a", "/a 200000-", "/a"]);
    assert_eq!(s.objects(), std::slice::from_ref(&bytes));
    // And what the store has need not come at all.
    assert_eq!(s.new_file(1, Some(Digest::of(&bytes))).unwrap(), (Digest::of(&bytes), 300_000));
    assert_eq!(s.mirror.requests().len(), 3);
}

#[test]
fn a_download_that_was_killed_at_its_end_needs_no_more() {
    let bytes = noise(300_000, 1);
    for claimed in [None, Some(Digest::of(&bytes))] {
        let s = Setup::new(&bytes, &[Mood::Truncate(200_000)]);
        s.mirror.send_tags();
        s.new_file(1, claimed).unwrap_err();
        let name = claimed.unwrap_or(Digest::of(s.mirror.url(NAME).as_bytes()));
        let partial = s.dir.path().join("partial").join(name.to_string());
        fs::write(&partial, &bytes).unwrap();
        assert_eq!(s.new_file(1, claimed).unwrap(), (Digest::of(&bytes), 300_000));
        assert_eq!((s.mirror.requests().len(), s.mirror.served(NAME)), (1, 200_000));
        // Also where nothing is noted: the server says that there is no more.
        if claimed.is_some() {
            fs::remove_dir_all(s.dir.path().join("objects")).unwrap();
            fs::write(&partial, &bytes).unwrap();
            assert_eq!(s.new_file(1, claimed).unwrap(), (Digest::of(&bytes), 300_000));
            assert_eq!((s.mirror.requests().len(), s.mirror.served(NAME)), (2, 200_000));
        }
    }
}

#[test]
fn a_server_that_never_comes_to_an_end_is_given_up() {
    let bytes = noise(300_000, 1);
    let moods: Vec<Mood> = std::iter::repeat_n([Mood::Truncate(200_000), Mood::WrongStart], 50).flatten().collect();
    let s = Setup::new(&bytes, &moods);
    let e = s.new_file(4, Some(Digest::of(&bytes))).unwrap_err();
    assert_eq!(error::kind(&e), ErrorKind::Environment, "{e:#}");
    assert!(s.mirror.requests().len() < 10, "{:?}", s.mirror.requests());
}
