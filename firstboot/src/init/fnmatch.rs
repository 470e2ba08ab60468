// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of fnmatch(3) that module aliases use: `*`, `?` and `[…]`.

/// Whether `pattern` matches all of `text`.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how much of the text it has taken so far: greedy matching never needs an older one.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if let Some(length) = one(&pattern[p..], text[t]) {
            p += length;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Matches one byte against the beginning of `pattern`; the length of what matched.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => match class(&pattern[1..], byte) {
            Some((true, length)) => Some(length + 1),
            Some((false, _)) => None,
            // A bracket that never closes is a bracket.
            None => (byte == b'[').then_some(1),
        },
        literal => (literal == byte).then_some(1),
    }
}

/// The class after a `[`: whether `byte` is in it, and its length with the `]`.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let mut at = usize::from(negated);
    let first = at;
    let mut found = false;
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((found != negated, at + 1));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                found |= (low..=high).contains(&byte);
                at += 3;
            }
            _ => {
                found |= low == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn m(pattern: &str, text: &str) -> bool {
        matches(pattern.as_bytes(), text.as_bytes())
    }

    #[test]
    fn real_aliases() {
        assert!(m("virtio:d00000002v*", "virtio:d00000002v00001AF4"));
        assert!(!m("virtio:d00000002v*", "virtio:d00000001v00001AF4"));
        assert!(m("pci:v*d*sv*sd*bc01sc08i02*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02"));
        assert!(m("usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*", "usb:v0951p1666d0110dc00dsc00dp00ic08isc06ip50in00"));
        assert!(m("usb:v1058p07[0-9A-E]*", "usb:v1058p07A8d1042"));
        assert!(!m("usb:v1058p07[0-9A-E]*", "usb:v1058p07F8d1042"));
    }

    #[test]
    fn corner_cases() {
        assert!(m("", "") && m("*", "") && m("***", "x") && !m("", "x") && !m("?", ""));
        assert!(m("[]]", "]") && m("[!]]", "a") && !m("[!]]", "]") && m("[a-]", "-") && m("[", "["));
        assert!(m("a*b*c", "aXbXbXc") && !m("a*b*c", "aXbXbX"));
    }

    /// The obvious, slow way.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(b'*'), _) => slow(&pattern[1..], text) || (!text.is_empty() && slow(pattern, &text[1..])),
            (Some(_), Some(byte)) => one(pattern, *byte).is_some_and(|length| slow(&pattern[length..], &text[1..])),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_slow_way(pattern in r"[ab*?\[\]!-]{0,9}", text in "[ab-]{0,9}") {
            prop_assert_eq!(m(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_text_matches_itself_and_stars_around_it(text in "[a-z0-9:]{0,20}") {
            prop_assert!(m(&text, &text));
            let (stars, longer) = (format!("*{text}*"), format!("x{text}y"));
            prop_assert!(m(&stars, &longer));
        }

        #[test]
        fn never_panics(pattern: Vec<u8>, text: Vec<u8>) {
            matches(&pattern, &text);
        }
    }
}
