// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::*;
use crate::error;

pub(super) fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// Changes an object behind the store's back.
pub(super) fn damage(store: &Store, digest: &Digest, bytes: &[u8]) {
    let path = store.path(digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, bytes).unwrap();
}

/// Makes a file look as if it was last changed so long ago.
pub(super) fn age(path: &Path, by: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
}

#[test]
fn digests_parse_and_print() {
    let digest = Digest::of(b"x");
    assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    assert_eq!(digest.to_string().to_uppercase().parse::<Digest>().unwrap(), digest);
    for bad in ["", "00", &"zz".repeat(32), &"+1".repeat(32), &"é".repeat(32)] {
        assert!(bad.parse::<Digest>().unwrap_err().to_string().contains("64 hex digits wanted"), "{bad}");
    }
}

#[test]
fn objects_are_read_only_and_complete_or_absent() {
    let (_dir, store) = store();
    let digest = store.put_bytes(b"content").unwrap();
    assert_eq!(fs::metadata(store.path(&digest)).unwrap().permissions().mode() & 0o7777, 0o444);
    assert_eq!(store.size(&digest), Some(7));
    let mut text = String::new();
    store.open_object(&digest).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");

    // A writer that is dropped, as after Ctrl-C, leaves nothing.
    let mut writer = store.writer().unwrap();
    writer.write_all(b"half").unwrap();
    drop(writer);
    assert_eq!(files(&store.root().join("work")), 0);
    assert!(!store.has(&Digest::of(b"half")));
}

#[test]
fn a_wrong_sha256_leaves_nothing() {
    let (_dir, store) = store();
    let e = store.put_reader(&b"other"[..], Some(&Digest::of(b"wanted"))).unwrap_err();
    assert!(e.to_string().contains("expected"), "{e}");
    assert_eq!(error::kind(&e), error::ErrorKind::Verification);
    assert!(!store.has(&Digest::of(b"other")) && !store.has(&Digest::of(b"wanted")));
    assert_eq!(files(&store.root().join("work")), 0);
}

#[test]
fn a_corrupt_object_is_found_removed_and_can_be_put_again() {
    let (dir, first) = store();
    let digest = first.put_bytes(b"content").unwrap();
    damage(&first, &digest, b"tnetnoc");
    // Another process.
    let store = Store::open(dir.path()).unwrap();
    let e = store.open_object(&digest).unwrap_err();
    assert!(e.to_string().contains(&format!("store object {digest} is corrupt")), "{e}");
    assert_eq!(error::kind(&e), error::ErrorKind::Verification);
    assert!(error::hint(&e).unwrap().contains("run the same command again"));
    assert!(!store.has(&digest));

    let e = store.open_object(&digest).unwrap_err();
    assert!(e.to_string().contains("is not in the store"), "{e}");
    store.put_bytes(b"content").unwrap();
    store.open_object(&digest).unwrap();
}

#[test]
fn a_corrupt_object_is_replaced_when_it_is_put() {
    let (dir, first) = store();
    let digest = first.put_bytes(b"content").unwrap();
    for damaged in [&b"tnetnoc"[..], b"cont"] {
        damage(&first, &digest, damaged);
        let store = Store::open(dir.path()).unwrap();
        store.put_bytes(b"content").unwrap();
        Store::open(dir.path()).unwrap().verify(&digest).unwrap();
    }
}

#[test]
fn step_records_count_while_their_objects_are_there() {
    let (_dir, store) = store();
    let object = store.put_bytes(b"made").unwrap();
    let key = step_key("test", 1, &"input").unwrap();
    let elsewhere = Digest::of(b"not an object");
    store.record_step(&key, &(object, elsewhere)).unwrap();
    assert_eq!(store.step::<(Digest, Digest)>(&key), Some((object, elsewhere)));
    assert_eq!(store.step::<(Digest, Digest)>(&step_key("test", 2, &"input").unwrap()), None);
    // An object that appears later is no condition.
    store.put_bytes(b"not an object").unwrap();
    fs::remove_file(store.path(&elsewhere)).unwrap();
    assert!(store.step::<(Digest, Digest)>(&key).is_some());

    damage(&store, &object, b"mad");
    assert_eq!(store.step::<(Digest, Digest)>(&key), None, "an object of another size");
    fs::remove_file(store.path(&object)).unwrap();
    assert_eq!(store.step::<(Digest, Digest)>(&key), None);
    fs::write(store.step_path(&key), b"{\"objects\":[").unwrap();
    assert_eq!(store.step::<(Digest, Digest)>(&key), None, "a garbled record");
}

#[test]
fn the_time_of_a_record_is_that_of_its_last_use() {
    let (_dir, store) = store();
    let key = step_key("test", 1, &()).unwrap();
    store.record_step(&key, &1).unwrap();
    let modified = || store.step_path(&key).metadata().unwrap().modified().unwrap();
    for (hours, noted) in [(1, false), (25, true)] {
        age(&store.step_path(&key), Duration::from_secs(hours * 3600));
        let before = modified();
        assert_eq!(store.step::<u32>(&key), Some(1));
        assert_eq!(modified() > before, noted, "{hours} hours");
    }
}

#[test]
fn two_builds_of_one_step_do_it_once() {
    let (dir, _) = store();
    let done = AtomicUsize::new(0);
    let key = step_key("slow", 1, &()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Each with its own handle, as different processes have: flock is per open file.
                let store = Store::open(dir.path()).unwrap();
                let made = store.cached(&key, "a slow step", || {
                    done.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(100));
                    store.put_bytes(b"slowly made")
                });
                assert_eq!(made.unwrap(), Digest::of(b"slowly made"));
            });
        }
    });
    assert_eq!(done.load(Ordering::SeqCst), 1);
    assert_eq!(files(&dir.path().join("locks")), 0);
}

#[test]
fn nested_steps_and_failed_steps_do_not_block() {
    let (_dir, store) = store();
    let key = step_key("outer", 1, &()).unwrap();
    assert!(store.cached::<u32>(&key, "outer", || anyhow::bail!("no")).is_err());
    // The inner one is the same step: as if a worker had picked it up.
    let outer = store.cached(&key, "outer", || store.cached(&key, "inner", || Ok(1)));
    assert_eq!(outer.unwrap(), 1);
}

#[test]
fn the_dead_are_swept_and_the_living_are_not() {
    let (dir, store) = store();
    let work = dir.path().join("work");
    let age = |path: &Path| age(path, Duration::from_secs(3600));
    fs::write(work.join("dead"), b"").unwrap();
    fs::create_dir(work.join("dead-dir")).unwrap();
    fs::write(work.join("dead-dir/file"), b"").unwrap();
    let writer = store.writer().unwrap();
    let scratch = store.scratch().unwrap();
    for entry in fs::read_dir(&work).unwrap() {
        age(&entry.unwrap().path());
    }
    fs::write(work.join("just-made"), b"").unwrap();
    fs::write(dir.path().join("partial/resumable"), b"").unwrap();
    age(&dir.path().join("partial/resumable"));

    Store::open(dir.path()).unwrap();
    assert!(!work.join("dead").exists() && !work.join("dead-dir").exists());
    assert!(work.join("just-made").exists() && scratch.path().exists());
    assert!(dir.path().join("partial/resumable").exists());
    writer.commit(None).unwrap();
    drop(scratch);
    assert_eq!(files(&work), 1);
}

#[test]
fn partials_continue_and_appear_when_complete() {
    let (_dir, store) = store();
    let digest = Digest::of(b"two halves");
    let mut partial = store.partial(&digest).unwrap();
    partial.write_all(b"two ").unwrap();
    drop(partial);
    assert!(!store.has(&digest));
    let mut partial = store.partial(&digest).unwrap();
    assert_eq!(partial.len(), 4);
    partial.write_all(b"halves").unwrap();
    partial.commit().unwrap();
    store.verify(&digest).unwrap();
    assert_eq!(files(&store.root().join("partial")), 0);

    let mut wrong = store.partial(&digest).unwrap();
    wrong.write_all(b"three halves").unwrap();
    assert!(wrong.commit().unwrap_err().to_string().contains("expected"));
    assert_eq!(files(&store.root().join("partial")), 0);
}

#[test]
fn a_download_of_nobody_knows_what_gets_the_name_it_deserves() {
    let (_dir, store) = store();
    let (name, digest) = (Digest::of(b"https://example.org/x"), Digest::of(b"two halves"));
    let mut partial = store.unknown_partial(&name).unwrap();
    partial.write_all(b"two ").unwrap();
    partial.set_note(b"first").unwrap();
    drop(partial);
    let mut partial = store.unknown_partial(&name).unwrap();
    assert_eq!((partial.len(), partial.note().unwrap(), partial.digest()), (4, b"first".to_vec(), Digest::of(b"two ")));
    partial.restart().unwrap();
    assert_eq!((partial.len(), partial.note()), (0, None));
    partial.set_note(b"second").unwrap();
    partial.write_all(b"two halves").unwrap();
    partial.commit().unwrap();
    store.verify(&digest).unwrap();
    assert!(!store.has(&name));
    assert_eq!(files(&store.root().join("partial")), 0);
}

#[test]
fn a_download_that_was_killed_while_it_got_its_name_can_be_continued() {
    let (_dir, store) = store();
    let digest = Digest::of(b"whole");
    let mut partial = store.partial(&digest).unwrap();
    partial.write_all(b"whole").unwrap();
    drop(partial);
    let path = store.root().join("partial").join(digest.to_string());
    fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    let partial = store.partial(&digest).unwrap();
    // Root could have opened it in any case; whoever is not root needs this.
    assert_eq!((partial.len(), fs::metadata(&path).unwrap().permissions().mode() & 0o200), (5, 0o200));
    partial.commit().unwrap();
    assert_eq!(fs::metadata(store.path(&digest)).unwrap().permissions().mode() & 0o777, 0o444);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    // Nobody may make folders in sysfs, not even root.
    let e = Store::open(Path::new("/sys/imgbuild")).unwrap_err();
    assert!(e.to_string().contains("making the store folder /sys/imgbuild"), "{e}");
    assert_eq!(error::kind(&e), error::ErrorKind::Environment);
    assert!(error::hint(&e).unwrap().contains("--store"));
}
