// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::store::tests::{damage, store};

#[test]
fn every_damaged_object_is_named_and_moved_away() {
    let (dir, store) = store();
    let good = store.put_bytes(b"good").unwrap();
    let (flipped, short) = (store.put_bytes(b"flipped").unwrap(), store.put_bytes(b"short").unwrap());
    damage(&store, &flipped, b"fl1pped");
    damage(&store, &short, b"sho");
    fs::write(dir.path().join("objects/notes.txt"), "mine").unwrap();

    let seen = AtomicU64::new(0);
    let tick = |bytes| {
        seen.fetch_add(bytes, Ordering::Relaxed);
    };
    let checked = check(&store, 2, &tick).unwrap();
    assert_eq!((checked.objects, checked.bytes, seen.into_inner()), (3, 14, 14));
    let mut wanted = vec![(flipped, "its 7 bytes have sha256 "), (short, "its 3 bytes have sha256 ")];
    wanted.sort_unstable();
    for (damaged, (digest, problem)) in checked.damaged.iter().zip(&wanted) {
        assert_eq!(damaged.digest, *digest);
        assert!(damaged.problem.starts_with(problem), "{}", damaged.problem);
        assert!(damaged.moved.as_ref().unwrap().ends_with(format!("damaged/{digest}")));
        assert!(damaged.moved.as_ref().unwrap().exists() && !store.has(digest));
    }
    assert_eq!(checked.damaged.len(), 2);
    assert_eq!(checked.strangers, [store.root().join("objects/notes.txt")]);
    assert!(checked.strangers[0].exists());

    // The same process, which had trusted what it wrote, makes it again.
    assert_eq!(store.put_bytes(b"flipped").unwrap(), flipped);
    let again = check(&store, 1, &|_| {}).unwrap();
    assert_eq!((again.objects, again.damaged), (2, vec![]));
    store.open_object(&good).unwrap();
}

#[test]
fn an_object_that_cannot_be_moved_is_named_all_the_same() {
    let (dir, store) = store();
    let digest = store.put_bytes(b"content").unwrap();
    damage(&store, &digest, b"c0ntent");
    // A file where the folder would be: not even root can move something into it.
    fs::write(dir.path().join(DAMAGED), "").unwrap();
    let checked = check(&store, 1, &|_| {}).unwrap();
    assert!(checked.damaged[0].moved.is_err());
    assert!(store.has(&digest));
}
