// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::Write;

use super::*;
use crate::store::check::check;
use crate::store::step_key;
use crate::store::tests::{age, damage, store};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn record(store: &Store, name: &str, objects: &[Digest]) -> Digest {
    let key = step_key(name, 1, &()).unwrap();
    store.record_step(&key, &objects).unwrap();
    key
}

#[test]
fn what_no_list_and_no_record_names_is_removed() {
    let (dir, store) = store();
    let put = |text: &str| store.put_bytes(text.as_bytes()).unwrap();
    let (listed, made, lost) = (put("listed"), put("made"), put("lost"));
    let (with_lost, nobodys, garbled) = (put("with lost"), put("nobody's"), put("garbled"));
    let good = record(&store, "good", &[made]);
    // Half of its result is gone: the step will run again.
    let broken = record(&store, "broken", &[lost, with_lost]);
    let unreadable = record(&store, "unreadable", &[garbled]);
    fs::write(store.step_path(&unreadable), "{").unwrap();
    damage(&store, &lost, b"l0st");
    check(&store, 1, &|_| {}).unwrap();
    let [kept, dropped] = ["kept", "dropped"].map(|text| {
        let digest = Digest::of(text.as_bytes());
        store.partial(&digest).unwrap().write_all(b"half").unwrap();
        digest
    });
    fs::write(dir.path().join("steps/README"), "mine").unwrap();

    let keep = Keep { objects: BTreeSet::from([listed, kept, Digest::of(b"not here")]), steps_used_within: None };
    let steps: u64 = [broken, unreadable].map(|key| store.step_path(&key).metadata().unwrap().len()).iter().sum();
    let objects = (with_lost, nobodys, garbled);
    let wanted = Collected {
        objects: Tally { count: 3, bytes: 9 + 8 + 7 },
        steps: Tally { count: 2, bytes: steps },
        downloads: Tally { count: 1, bytes: 4 },
        damaged: Tally { count: 1, bytes: 4 },
        kept: Tally { count: 2, bytes: 6 + 4 },
    };
    let before = Listing::of(&dir.path().join(OBJECTS)).unwrap().inventory;
    assert_eq!(collect(&store, &keep, true).unwrap(), wanted);
    assert_eq!(Listing::of(&dir.path().join(OBJECTS)).unwrap().inventory, before, "a dry run removes nothing");
    assert_eq!(collect(&store, &keep, false).unwrap(), wanted);
    assert_eq!(wanted.bytes(), 24 + steps + 8);
    for digest in [objects.0, objects.1, objects.2] {
        assert!(!store.has(&digest));
    }
    assert!(store.has(&listed) && store.step::<Vec<Digest>>(&good) == Some(vec![made]));
    let partial = dir.path().join("partial");
    assert!(partial.join(kept.to_string()).exists() && !partial.join(dropped.to_string()).exists());
    assert!(dir.path().join("steps/README").exists());

    let nothing = collect(&store, &keep, false).unwrap();
    assert_eq!((nothing.bytes(), nothing.kept), (0, wanted.kept));
    // What was removed can be made again by this very process.
    assert_eq!(store.put_bytes(b"nobody's").unwrap(), nobodys);
    store.open_object(&nobodys).unwrap();
}

#[test]
fn results_that_no_build_used_for_long_go_when_that_is_said() {
    let (_dir, store) = store();
    let (old, used) = (store.put_bytes(b"old").unwrap(), store.put_bytes(b"used").unwrap());
    let (old_key, used_key) = (record(&store, "old", &[old]), record(&store, "used", &[used]));
    for key in [old_key, used_key] {
        age(&store.step_path(&key), 40 * DAY);
    }
    assert!(store.step::<Vec<Digest>>(&used_key).is_some());
    assert_eq!(collect(&store, &Keep::default(), false).unwrap().bytes(), 0, "by default all count");

    let keep = Keep { steps_used_within: Some(30 * DAY), ..Keep::default() };
    let collected = collect(&store, &keep, false).unwrap();
    assert_eq!((collected.objects.count, collected.steps.count, collected.kept.count), (1, 1, 1));
    assert!(!store.has(&old) && store.step::<Vec<Digest>>(&used_key).is_some());

    let none = Keep { steps_used_within: Some(Duration::ZERO), ..Keep::default() };
    assert_eq!(collect(&store, &none, false).unwrap().kept, Tally::default());
}

#[test]
fn a_build_that_runs_loses_nothing() {
    let (dir, build) = store();
    // Another process: locks are by open file.
    let collector = Store::open(dir.path()).unwrap();
    let opened = build.put_bytes(b"opened, and in no record yet").unwrap();
    let made = std::thread::scope(|scope| {
        let collecting = scope.spawn(|| collect(&collector, &Keep::default(), false).unwrap());
        std::thread::sleep(Duration::from_millis(100));
        assert!(!collecting.is_finished());
        build.open_object(&opened).unwrap();
        let made = build.put_bytes(b"made meanwhile").unwrap();
        record(&build, "meanwhile", &[made]);
        drop(build);
        let collected = collecting.join().unwrap();
        assert_eq!((collected.objects.count, collected.kept.count), (1, 1));
        made
    });
    assert!(collector.has(&made) && !collector.has(&opened));

    // And nobody comes in while it is at work.
    let file = File::open(dir.path().join("in-use")).unwrap();
    assert!(file.try_lock_shared().is_err());
    std::thread::scope(|scope| {
        let next = scope.spawn(|| Store::open(dir.path()).unwrap().has(&made));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!next.is_finished());
        drop(collector);
        assert!(next.join().unwrap());
    });
}
