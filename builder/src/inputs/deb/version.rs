// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian version numbers. Order: deb-version(7), as `dpkg --compare-versions` has it.

use std::cmp::Ordering;

/// Compares two version numbers, `[epoch:]upstream[-revision]`. Total: any two strings have an order.
pub fn compare(a: &str, b: &str) -> Ordering {
    let ((epoch_a, upstream_a, revision_a), (epoch_b, upstream_b, revision_b)) = (split(a), split(b));
    // Epochs are numbers without letters, for which the order of parts is the numerical one.
    compare_part(epoch_a, epoch_b)
        .then_with(|| compare_part(upstream_a, upstream_b))
        .then_with(|| compare_part(revision_a, revision_b))
}

/// Epoch, upstream version and revision; empty where there is none, which counts as 0.
fn split(version: &str) -> (&str, &str, &str) {
    let version = version.trim();
    let (epoch, rest) = version.split_once(':').unwrap_or(("", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// The version without its epoch, as file names have it, and without its revision: what upstream calls it.
pub fn upstream(version: &str) -> &str {
    split(version).1
}

/// Compares strings of alternating non-digit and digit runs.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        loop {
            let (x, y) = (a.first().copied(), b.first().copied());
            let digit = |c: Option<u8>| c.is_none_or(|c| c.is_ascii_digit());
            if digit(x) && digit(y) {
                break;
            }
            match weight(x).cmp(&weight(y)) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
            (a, b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default());
        }
        let (number_a, number_b);
        (number_a, a) = number(a);
        (number_b, b) = number(b);
        // Without leading zeros, the longer number is the greater.
        match number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b)) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

/// `~` before the end of the part, the end before letters, letters before everything else.
fn weight(c: Option<u8>) -> i32 {
    match c {
        Some(b'~') => -1,
        None | Some(b'0'..=b'9') => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(c),
        Some(c) => i32::from(c) + 256,
    }
}

/// The number that begins the text, without leading zeros, and what follows it.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let (digits, rest) = text.split_at(text.iter().take_while(|c| c.is_ascii_digit()).count());
    (&digits[digits.iter().take_while(|c| **c == b'0').count()..], rest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    const ASCENDING: &[&str] = &[
        "0~~",
        "0~",
        "0",
        "0+",
        "0.0",
        "0.1~rc1",
        "0.1",
        "0.1-1~bpo1",
        "0.1-1",
        "0.1-1+b1",
        "0.1-1.1",
        "0.1-2",
        "0.1-10",
        "0.1a",
        "0.1+git",
        "0.1.1",
        "0.9",
        "0.10",
        "1.0~beta1~svn1245",
        "1.0~beta1",
        "1.0",
        "1.0-1",
        "1.6.20~ds1-1+b1",
        "1.6.20~ds1-1+deb12u1",
        "1.6.20-1",
        "99999999999999999999",
        "100000000000000000000",
        "1:0",
        "1:0.1-1",
        "2:0",
    ];

    #[test]
    fn known_order() {
        for (i, a) in ASCENDING.iter().enumerate() {
            for (j, b) in ASCENDING.iter().enumerate() {
                // "0" and "0.0" and the like differ; the list has no equals but itself.
                assert_eq!(compare(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        for (a, b) in [("1.0", "1.00"), ("0:1", "1"), ("1-0", "1"), ("1.0-01", "1.0-1")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
        assert_eq!(upstream("1:1.20.2+really-1.20.2-1"), "1.20.2+really-1.20.2");
    }

    #[test]
    fn the_order_is_dpkgs() {
        if Command::new("dpkg").arg("--version").output().is_err() {
            return; // not a Debian host
        }
        for pair in ASCENDING.windows(2) {
            let less = Command::new("dpkg").args(["--compare-versions", pair[0], "lt", pair[1]]).status().unwrap();
            assert!(less.success(), "{pair:?}");
        }
    }

    proptest! {
        #[test]
        fn it_is_an_order(a in "[0-9]{0,2}:?[0-9a-c.+~-]{0,8}", b in "[0-9a-c.+~-]{0,8}", c in "[0-9a-c.+~-]{0,8}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            if compare(&a, &b) != Ordering::Greater && compare(&b, &c) != Ordering::Greater {
                prop_assert_ne!(compare(&a, &c), Ordering::Greater);
            }
        }

        #[test]
        fn it_never_panics(a in "\\PC*", b in "\\PC*") {
            compare(&a, &b);
        }
    }
}
