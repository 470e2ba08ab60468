// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::error::hint;
use crate::store::check::check;
use crate::store::inventory::Listing;
use crate::store::tests::{damage, store};

const QUIET: Tick<'static> = &|_| {};

/// An inventory of objects that are put into the store.
fn put(store: &Store, contents: &[&[u8]]) -> Inventory {
    let about = |bytes: &&[u8]| {
        let about = About { size: bytes.len() as u64, name: format!("file of {}", bytes.len()) };
        (store.put_bytes(bytes).unwrap(), about)
    };
    Inventory { objects: contents.iter().map(about).collect() }
}

fn listed(store: &Store) -> BTreeSet<Digest> {
    Listing::of(&store.root().join(OBJECTS)).unwrap().inventory.objects.into_keys().collect()
}

fn is_sound(store: &Store) -> bool {
    check(&Store::open(store.root()).unwrap(), 1, QUIET).unwrap().damaged.is_empty()
}

/// What the index lists is whole, whenever one looks.
fn index_is_true(folder: &Path) {
    if folder.join(INDEX).exists() {
        for (digest, about) in &Inventory::at(folder).unwrap().objects {
            let bytes = fs::read(place(&folder.join(OBJECTS), digest)).unwrap();
            assert_eq!((Digest::of(&bytes), bytes.len() as u64), (*digest, about.size));
        }
    }
}

#[test]
fn only_what_the_other_side_lacks_is_written_and_all_of_it_arrives() {
    let ((_here_dir, here), (_there_dir, there)) = (store(), store());
    let wanted = put(&here, &[b"one", b"two", b"three", b""]);
    here.put_bytes(b"of another cluster").unwrap();
    put(&there, &[b"two"]);
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().join("export");
    let other = Inventory::at(there.root()).unwrap();

    let exported = export(&here, &wanted, &other, &folder, QUIET).unwrap();
    assert_eq!(exported, Exported { written: (3, 8), there: 0, not_needed: 1 });
    let names: BTreeSet<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, BTreeSet::from([INDEX, OBJECTS, SUMS].map(OsString::from)));
    let sums = fs::read_to_string(folder.join(SUMS)).unwrap();
    let one = Digest::of(b"one").to_string();
    assert!(sums.contains(&format!("{one}  objects/{}/{}\n", &one[..2], &one[2..])), "{sums}");

    let imported = import(&there, &folder, &index(&folder).unwrap(), QUIET).unwrap();
    assert_eq!((imported.new, imported.there, imported.damaged.len()), ((3, 8), 0, 0));
    assert_eq!(listed(&there), wanted.objects.keys().copied().collect::<BTreeSet<_>>());
    assert!(is_sound(&there));
    let again = import(&there, &folder, &index(&folder).unwrap(), QUIET).unwrap();
    assert_eq!((again.new, again.there), ((0, 0), 3));
    // Now the export itself says what the other side has.
    let exported = export(&here, &wanted, &Inventory::at(&folder).unwrap(), &drive.path().join("next"), QUIET).unwrap();
    assert_eq!(exported.written, (1, 3));
}

#[test]
fn a_second_export_adds_to_the_first_and_mends_it() {
    let (_dir, here) = store();
    let first = put(&here, &[b"one", b"two", b"three"]);
    let drive = tempfile::tempdir().unwrap();
    let none = Inventory::default();
    export(&here, &first, &none, drive.path(), QUIET).unwrap();
    let at = |bytes: &[u8]| place(&drive.path().join(OBJECTS), &Digest::of(bytes));
    // A bit of one has changed, another was taken away.
    fs::write(at(b"one"), b"0ne").unwrap();
    fs::remove_file(at(b"two")).unwrap();
    let second = put(&here, &[b"one", b"four"]);
    let exported = export(&here, &second, &none, drive.path(), QUIET).unwrap();
    assert_eq!(exported.written, (2, 7));
    let listed: Vec<_> = index(drive.path()).unwrap().objects.into_keys().collect();
    let mut wanted = [b"one".as_slice(), b"three", b"four"].map(Digest::of);
    wanted.sort_unstable();
    assert_eq!(listed, wanted);
    index_is_true(drive.path());
}

#[test]
fn what_is_missing_or_damaged_here_is_said_at_once() {
    let (_dir, here) = store();
    let mut wanted = put(&here, &[b"one"]);
    for (text, name) in [("x", "bash 5.2 (amd64)"), ("y", "curl 7 (amd64)")] {
        wanted.objects.insert(Digest::of(text.as_bytes()), About { size: 1, name: name.into() });
    }
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().join("export");
    let e = export(&here, &wanted, &Inventory::default(), &folder, QUIET).unwrap_err();
    assert!(e.to_string().contains("2 files") && e.to_string().contains("bash 5.2 (amd64)"), "{e}");
    assert!(hint(&e).unwrap().contains("imgbuild fetch"));
    assert!(!folder.exists());

    let digest = Digest::of(b"one");
    damage(&here, &digest, b"0ne");
    let here = Store::open(here.root()).unwrap();
    wanted.objects.retain(|found, _| *found == digest);
    let e = export(&here, &wanted, &Inventory::default(), &folder, QUIET).unwrap_err();
    assert_eq!(kind(&e), ErrorKind::Verification);
    assert!(!folder.join(INDEX).exists() && !place(&folder.join(OBJECTS), &digest).exists());
}

#[test]
fn a_folder_that_is_no_place_for_an_export_is_refused() {
    let (_dir, here) = store();
    let wanted = put(&here, &[b"one"]);
    let refused = |folder: &Path| {
        let e = export(&here, &wanted, &Inventory::default(), folder, QUIET).unwrap_err();
        (kind(&e).exit_code(), e.to_string())
    };
    let (code, message) = refused(here.root());
    assert!(code == 1 && message.ends_with("is a store"), "{message}");
    let drive = tempfile::tempdir().unwrap();
    let lock = File::open(drive.path()).unwrap();
    lock.try_lock().unwrap();
    let (code, message) = refused(drive.path());
    assert!(code == 3 && message.contains("another export"), "{message}");
    drop(lock);
    fs::write(drive.path().join(INDEX), "{}").unwrap();
    let (code, message) = refused(drive.path());
    assert!(code == 1 && message.contains("index.json is no inventory: missing field"), "{message}");
    let (code, message) = refused(Path::new("/sys/imgbuild"));
    assert!(code == 3 && message.contains("making the folder /sys/imgbuild"), "{message}");
}

#[test]
fn damaged_objects_are_named_and_stay_outside_while_the_others_enter() {
    let ((_here_dir, here), (_there_dir, there)) = (store(), store());
    let texts: [&[u8]; 7] = [b"good", b"flipped", b"short", b"long", b"link", b"folder", b"gone"];
    let wanted = put(&here, &texts);
    let drive = tempfile::tempdir().unwrap();
    export(&here, &wanted, &Inventory::default(), drive.path(), QUIET).unwrap();
    let at = |bytes: &[u8]| place(&drive.path().join(OBJECTS), &Digest::of(bytes));
    fs::write(at(b"flipped"), b"fl1pped").unwrap();
    fs::write(at(b"short"), b"sho").unwrap();
    fs::write(at(b"long"), b"longer").unwrap();
    let elsewhere = drive.path().join("elsewhere");
    fs::rename(at(b"link"), &elsewhere).unwrap();
    symlink(&elsewhere, at(b"link")).unwrap();
    fs::remove_file(at(b"folder")).unwrap();
    fs::create_dir(at(b"folder")).unwrap();
    fs::remove_file(at(b"gone")).unwrap();

    let index = index(drive.path()).unwrap();
    let imported = import(&there, drive.path(), &index, QUIET).unwrap();
    assert_eq!(imported.new, (1, 4));
    for (bytes, problem) in texts[1..].iter().zip([
        "expected",
        "it has 3 bytes, expected 5",
        "it has 6 bytes, expected 4",
        "it is a symbolic link",
        "it is no file",
        "it is not there",
    ]) {
        let (about, found) = &imported.damaged[&Digest::of(bytes)];
        assert!(found.contains(problem), "{found}");
        assert_eq!(about.name, format!("file of {}", bytes.len()));
    }
    assert_eq!(listed(&there), BTreeSet::from([Digest::of(b"good")]));
    assert!(is_sound(&there));
    assert_eq!(fs::read_dir(there.root().join("work")).unwrap().count(), 0);

    // Exported once more, the same folder brings the rest.
    fs::remove_dir(at(b"folder")).unwrap();
    fs::remove_file(at(b"link")).unwrap();
    export(&here, &wanted, &Inventory::default(), drive.path(), QUIET).unwrap();
    let imported = import(&there, drive.path(), &index, QUIET).unwrap();
    assert_eq!((imported.new.0, imported.there, imported.damaged.len()), (6, 1, 0));
}

#[test]
fn an_object_is_continued_where_it_stopped_unless_that_was_another() {
    let ((_here_dir, here), (_there_dir, there)) = (store(), store());
    let wanted = put(&here, &[b"two halves"]);
    let digest = Digest::of(b"two halves");
    let drive = tempfile::tempdir().unwrap();
    export(&here, &wanted, &Inventory::default(), drive.path(), QUIET).unwrap();
    for (before, read) in [(b"two ".as_slice(), 6), (b"tow ", 6 + 10), (b"much more than two halves", 10)] {
        there.partial(&digest).unwrap().write_all(before).unwrap();
        let seen = AtomicUsize::new(0);
        let tick = |n: u64| {
            seen.fetch_add(n as usize, Ordering::Relaxed);
        };
        let imported = import(&there, drive.path(), &wanted, &tick).unwrap();
        assert_eq!((imported.new, seen.into_inner()), ((1, 10), read));
        assert!(is_sound(&there));
        fs::remove_file(there.path(&digest)).unwrap();
    }
}

#[test]
fn what_is_no_export_is_refused() {
    let (dir, _) = store();
    let e = index(dir.path()).unwrap_err();
    assert!(e.to_string().contains("holds no export"), "{e}");
    assert!(hint(&e).unwrap().contains("interrupted"));
}

#[test]
fn a_drive_that_is_too_small_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    check_space(dir.path(), 0, "the export", "").unwrap();
    let e = check_space(dir.path(), u64::MAX, "the export", "use a bigger drive").unwrap_err();
    assert_eq!(kind(&e).exit_code(), 3);
    assert!(e.to_string().contains("of free space, and the export needs 16.00 EiB"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the two sides have, and wherever the machine stops during export and import: the second attempt ends, and the
    /// other side has what is wanted, byte by byte.
    #[test]
    fn an_interruption_anywhere_costs_nothing_but_time(
        sizes in prop::collection::vec(0_usize..400_000, 1..5),
        there_has in prop::collection::vec(any::<bool>(), 5),
        stop in 0_usize..200,
    ) {
        let ((_here_dir, here), (_there_dir, there)) = (store(), store());
        let contents: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(n, size)| vec![n as u8; *size]).collect();
        let wanted = put(&here, &contents.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for (bytes, _) in contents.iter().zip(&there_has).filter(|(_, has)| **has) {
            there.put_bytes(bytes).unwrap();
        }
        let other = Inventory::at(there.root()).unwrap();
        let drive = tempfile::tempdir().unwrap();
        let count = AtomicUsize::new(0);
        // Unwinding skips what comes after, as a kill does.
        let tick = |_: u64| {
            if count.fetch_add(1, Ordering::Relaxed) == stop {
                resume_unwind(Box::new(()));
            }
        };
        let _ = catch_unwind(AssertUnwindSafe(|| export(&here, &wanted, &other, drive.path(), &tick).unwrap()));
        index_is_true(drive.path());
        export(&here, &wanted, &other, drive.path(), QUIET).unwrap();
        index_is_true(drive.path());
        count.store(0, Ordering::Relaxed);
        let index = index(drive.path()).unwrap();
        let _ = catch_unwind(AssertUnwindSafe(|| import(&there, drive.path(), &index, &tick).unwrap()));
        prop_assert!(is_sound(&there));
        let imported = import(&there, drive.path(), &index, QUIET).unwrap();
        prop_assert!(imported.damaged.is_empty());
        prop_assert!(is_sound(&there));
        prop_assert!(listed(&there).is_superset(&wanted.objects.keys().copied().collect()));
    }
}
