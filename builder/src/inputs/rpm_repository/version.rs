// SPDX-License-Identifier: MIT OR Apache-2.0

//! Version numbers of RPM packages. Order: rpmvercmp() of rpm's rpmio/rpmvercmp.c, as docs/manual/dependencies.md of rpm explains it.

use std::cmp::Ordering;
use std::fmt;

/// Epoch, version and release of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Evr {
    /// 0 where a package says none.
    pub(super) epoch: u32,
    pub(super) version: String,
    pub(super) release: String,
}

impl Evr {
    /// Reads what [`fmt::Display`] writes, as locks have it. Anything is read as something.
    fn read(text: &str) -> Self {
        let (epoch, rest) = text.split_once(':').unwrap_or(("0", text));
        let (version, release) = rest.rsplit_once('-').unwrap_or((rest, ""));
        Self { epoch: epoch.parse().unwrap_or(0), version: version.to_owned(), release: release.to_owned() }
    }

    /// Whether `text` names this version: `[epoch:]version[-release]`; what it leaves out does not matter.
    pub(super) fn is(&self, text: &str) -> bool {
        let (epoch, rest) = text.split_once(':').map_or((None, text), |(epoch, rest)| (Some(epoch), rest));
        let (version, release) =
            rest.rsplit_once('-').map_or((rest, None), |(version, release)| (version, Some(release)));
        epoch.is_none_or(|epoch| epoch.parse() == Ok(self.epoch))
            && version == self.version
            && release.is_none_or(|release| release == self.release)
    }

    /// What the whole says of the order.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        self.epoch
            .cmp(&other.epoch)
            .then_with(|| compare_part(&self.version, &other.version))
            .then_with(|| compare_part(&self.release, &other.release))
    }
}

/// As rpm writes it: an epoch of 0 is not said.
impl fmt::Display for Evr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.epoch != 0 {
            write!(f, "{}:", self.epoch)?;
        }
        write!(f, "{}-{}", self.version, self.release)
    }
}

/// What the whole says of the order of two versions as locks have them.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    Evr::read(a).compare(&Evr::read(b))
}

/// Compares two versions, or two releases: runs of digits and runs of letters, one by one. Everything between them only separates,
/// but for `~`, which is before everything and the end, and `^`, which is after the end and before everything else.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (skip_separators(a), skip_separators(b));
        match (a.first(), b.first()) {
            (Some(b'~'), Some(b'~')) | (Some(b'^'), Some(b'^')) => {
                (a, b) = (&a[1..], &b[1..]);
                continue;
            }
            (Some(b'~'), _) => return Ordering::Less,
            (_, Some(b'~')) => return Ordering::Greater,
            (Some(b'^'), None) => return Ordering::Greater,
            (None, Some(b'^')) => return Ordering::Less,
            (Some(b'^'), Some(_)) => return Ordering::Less,
            (Some(_), Some(b'^')) => return Ordering::Greater,
            // What is left over wins.
            (Some(_), None) => return Ordering::Greater,
            (None, Some(_)) => return Ordering::Less,
            (None, None) => return Ordering::Equal,
            (Some(_), Some(_)) => {}
        }
        let numeric = a[0].is_ascii_digit();
        let in_run = |c: &&u8| if numeric { c.is_ascii_digit() } else { c.is_ascii_alphabetic() };
        let (run_a, rest_a) = a.split_at(a.iter().take_while(in_run).count());
        let (run_b, rest_b) = b.split_at(b.iter().take_while(in_run).count());
        let order = match (run_b.is_empty(), numeric) {
            // Of another kind: digits are newer than letters.
            (true, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, true) => {
                let (run_a, run_b) = (without_zeros(run_a), without_zeros(run_b));
                run_a.len().cmp(&run_b.len()).then_with(|| run_a.cmp(run_b))
            }
            (false, false) => run_a.cmp(run_b),
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

fn skip_separators(text: &[u8]) -> &[u8] {
    let separates = |c: &&u8| !c.is_ascii_alphanumeric() && !matches!(c, b'~' | b'^');
    &text[text.iter().take_while(separates).count()..]
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    &digits[digits.iter().take_while(|c| **c == b'0').count()..]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// From rpm's own tests (tests/rpmvercmp.at), with what people meet in distributions.
    const PARTS: &[&str] = &[
        "",
        "1.0",
        "1.0.0",
        "2.0",
        "2.0.1",
        "2.0.1a",
        "5.5p1",
        "5.5p2",
        "5.5p10",
        "10xyz",
        "10.1xyz",
        "xyz10",
        "xyz.4",
        "8",
        "xyz",
        "5.5p0",
        "6.0.rc1",
        "6.0",
        "10b2",
        "10a1",
        "1.0aa",
        "1.0a",
        "10.0001",
        "10.1",
        "10.0039",
        "4.999.9",
        "5.0",
        "20101121",
        "2_0",
        "2.0.1.a",
        "a",
        "a+",
        "a_",
        "+",
        "_",
        "1.0~rc1",
        "1.0~rc1~git123",
        "1.0~rc2",
        "1.0^",
        "1.0^git1",
        "1.0^git2",
        "1.0^git1~pre",
        "1.0^git1^x",
        "1.01^git1",
        "1.0^20160101",
        "1.0.1^20160101",
        "1.0~rc1^git1",
        "~",
        "^",
        "~~",
        "1~",
        "1^",
        "1..0",
        "001",
        "1",
        "999999999999999999999999999999",
        "99999999999999999999999999999",
        "2.p31.ky11",
        "1.ky11",
        "3.oe2403sp1",
        "0ubuntu1",
    ];

    /// What rpm itself says of each pair, -1, 0 or 1.
    fn rpm(pairs: &[(String, String)]) -> Vec<i8> {
        let mut said = Vec::new();
        // No argument of a program is longer than 128 KiB.
        for pairs in pairs.chunks(500) {
            let table: String = pairs.iter().map(|(a, b)| format!("{{\"{a}\",\"{b}\"}},")).collect();
            let script =
                format!("%{{lua: for _, p in ipairs({{{table}}}) do print(rpm.vercmp(p[1], p[2]) .. \"\\n\") end}}");
            let output = Command::new("rpm").args(["--eval", &script]).output();
            let output = output.expect("the program rpm of the Debian package rpm runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            said.extend(text.split_whitespace().map(|word| word.parse::<i8>().unwrap()));
        }
        assert_eq!(said.len(), pairs.len());
        said
    }

    fn number(order: Ordering) -> i8 {
        order as i8
    }

    fn evr(epoch: u32, version: &str, release: &str) -> Evr {
        Evr { epoch, version: version.to_owned(), release: release.to_owned() }
    }

    #[test]
    fn as_rpm_has_it() {
        let whole = |part: &str| format!("0:{}-1", if part.is_empty() { "0" } else { part });
        let of = |part: &str| if part.is_empty() { "0".to_owned() } else { part.to_owned() };
        let pairs: Vec<(&str, &str)> = PARTS.iter().flat_map(|a| PARTS.iter().map(move |b| (*a, *b))).collect();
        let asked: Vec<_> = pairs.iter().map(|(a, b)| (whole(a), whole(b))).collect();
        for ((a, b), said) in pairs.iter().zip(rpm(&asked)) {
            assert_eq!(number(compare_part(&of(a), &of(b))), said, "{a} {b}");
        }
        let all: Vec<Evr> = [0, 1, 10]
            .into_iter()
            .flat_map(|epoch| ["1.0", "1.0~rc1", "2"].map(|version| (epoch, version)))
            .flat_map(|(epoch, version)| {
                ["1", "1.ky11", "10.ky11", "2.ky11"].map(|release| evr(epoch, version, release))
            })
            .collect();
        let pairs: Vec<(&Evr, &Evr)> = all.iter().flat_map(|a| all.iter().map(move |b| (a, b))).collect();
        let asked: Vec<_> = pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        for ((a, b), said) in pairs.iter().zip(rpm(&asked)) {
            assert_eq!(number(a.compare(b)), said, "{a} {b}");
        }
    }

    #[test]
    fn a_version_is_named_in_part_or_in_full() {
        let own = evr(1, "2.6.6", "1.ky11");
        for text in ["2.6.6", "2.6.6-1.ky11", "1:2.6.6", "1:2.6.6-1.ky11"] {
            assert!(own.is(text), "{text}");
        }
        for text in ["2.6", "2.6.6-1", "0:2.6.6", "x:2.6.6", "2:2.6.6-1.ky11", "1.ky11", ""] {
            assert!(!own.is(text), "{text}");
        }
        assert_eq!((own.to_string(), evr(0, "1", "2").to_string()), ("1:2.6.6-1.ky11".into(), "1-2".into()));
    }

    proptest! {
        #[test]
        fn an_order_for_any_two(a in "\\PC{0,12}", b in "[0-9a-c.~^_-]{0,10}", c in "[0-9a-c.~^_-]{0,10}") {
            prop_assert_eq!(compare_part(&a, &a), Ordering::Equal);
            prop_assert_eq!(compare_part(&a, &b), compare_part(&b, &a).reverse());
            prop_assert_eq!(compare_part(&c, &b), compare_part(&b, &c).reverse());
        }
    }
}
