// SPDX-License-Identifier: MIT OR Apache-2.0

//! The `Release` file of a suite: which indices it has, with their sha256. Format: the Debian repository format
//! (wiki.debian.org/DebianRepository/Format). Knows nothing of signatures, see [`super::openpgp`].

use std::collections::BTreeMap;

use anyhow::Result;

use super::control::{field, paragraphs};
use crate::error::Failure;
use crate::store::Digest;

/// What a `Release` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `Suite` and `Codename`: the names under which the suite is known.
    pub names: Vec<String>,
    /// `Date`, as written.
    pub date: String,
    /// The same in seconds since 1970; 0 where there is none.
    pub seconds: u32,
    /// `Valid-Until`, seconds since 1970.
    pub valid_until: Option<i64>,
    /// Whether indices can be had under the name of their hash.
    pub by_hash: bool,
    /// Components of the suite.
    pub components: Vec<String>,
    /// Architectures of the suite.
    pub architectures: Vec<String>,
    /// Every index by path, with sha256 and size.
    pub indices: BTreeMap<String, (Digest, u64)>,
}

impl Release {
    /// Reads the text of a `Release` file.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let broken = |what: String| Failure::verification(format!("the Release file is broken: {what}"));
        let paragraph = paragraphs(text).next().ok_or_else(|| broken("it is empty".to_owned()))?;
        let get = |name: &str| field(paragraph, name).map(|value| value.trim().to_owned());
        let words = |name: &str| -> Vec<String> {
            get(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let valid_until = match get("Valid-Until") {
            Some(date) => Some(seconds(&date).ok_or_else(|| broken(format!("no date: `{date}`")))?),
            None => None,
        };
        let mut indices = BTreeMap::new();
        let list = get("SHA256").ok_or_else(|| broken("it has no SHA256 list".to_owned()))?;
        for line in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut parts = line.split_whitespace();
            let entry = || -> Option<(Digest, u64, &str)> {
                Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?))
            };
            let mut entry = entry;
            let (digest, size, path) = entry().ok_or_else(|| broken(format!("no index: `{line}`")))?;
            indices.insert(path.to_owned(), (digest, size));
        }
        Ok(Self {
            names: [get("Suite"), get("Codename")].into_iter().flatten().collect(),
            seconds: get("Date").and_then(|date| u32::try_from(seconds(&date)?).ok()).unwrap_or(0),
            date: get("Date").unwrap_or_default(),
            valid_until,
            by_hash: get("Acquire-By-Hash").as_deref() == Some("yes"),
            components: words("Components"),
            architectures: words("Architectures"),
            indices,
        })
    }

    /// Whether this is the suite that was asked for, and with `now` (seconds since 1970) whether it is still valid.
    ///
    /// # Errors
    /// A mirror could answer with another suite, or with an old state whose holes are known.
    pub fn check(&self, suite: &str, now: Option<u32>) -> Result<(), Failure> {
        if !self.names.iter().any(|name| name == suite) {
            let failure = format!("the mirror answers with the suite {} for `{suite}`", self.names.join("/"));
            return Err(Failure::verification(failure).hint("name the suite by its codename, or another mirror"));
        }
        if let (Some(until), Some(now)) = (self.valid_until, now)
            && until < i64::from(now)
        {
            return Err(Failure::verification(format!("suite {suite} of {} is no longer valid: the mirror is out of date", self.date))
                .hint("use another mirror; for a frozen snapshot set `check_valid_until = false`, and check this machine's clock"));
        }
        Ok(())
    }

    /// The best form of an index: its path, sha256 and size.
    pub fn index(&self, path: &str) -> Option<(String, Digest, u64)> {
        // xz is the smallest and present in every Debian suite since 2013.
        [".xz", ".gz", ""].iter().find_map(|suffix| {
            let path = format!("{path}{suffix}");
            let (digest, size) = self.indices.get(&path)?;
            Some((path, *digest, *size))
        })
    }
}

/// A date as in mail headers, in seconds since 1970: `Sat, 10 Jan 2026 09:55:12 UTC`.
pub(crate) fn seconds(date: &str) -> Option<i64> {
    // RFC 2822 has GMT and UT, but not the UTC that archives write.
    let date = date.replace("UTC", "GMT");
    let zoned = jiff::fmt::rfc2822::DateTimeParser::new().parse_zoned(&date).ok()?;
    Some(zoned.timestamp().as_second())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RELEASE: &str = "\
Origin: Debian
Suite: oldstable-security
Codename: bookworm-security
Date: Sat, 10 Jan 2026 09:55:12 UTC
Valid-Until: Sat, 17 Jan 2026 09:55:12 UTC
Acquire-By-Hash: yes
Architectures: all amd64
Components: main contrib
MD5Sum:
 0123 1 main/binary-amd64/Packages
SHA256:
 0000000000000000000000000000000000000000000000000000000000000001       12 main/binary-amd64/Packages
 0000000000000000000000000000000000000000000000000000000000000002        3 main/binary-amd64/Packages.xz
";

    #[test]
    fn fields_are_read() {
        let release = Release::parse(RELEASE).unwrap();
        assert_eq!(release.valid_until, Some(1_768_643_712));
        assert!(release.by_hash);
        assert_eq!(release.components, ["main", "contrib"]);
        let (path, _, size) = release.index("main/binary-amd64/Packages").unwrap();
        assert_eq!((path.as_str(), size), ("main/binary-amd64/Packages.xz", 3));
        assert_eq!(release.index("main/source/Sources"), None);
    }

    #[test]
    fn the_suite_and_its_age_are_checked() {
        let release = Release::parse(RELEASE).unwrap();
        release.check("bookworm-security", Some(1_768_643_000)).unwrap();
        release.check("oldstable-security", None).unwrap();
        let e = release.check("bookworm-security", Some(1_800_000_000)).unwrap_err();
        assert!(e.to_string().contains("is no longer valid: the mirror is out of date"), "{e}");
        assert!(e.hint.unwrap().contains("check_valid_until = false"));
        let e = release.check("bookworm", None).unwrap_err();
        assert!(e.to_string().contains("answers with the suite oldstable-security/bookworm-security for `bookworm`"));
    }

    proptest! {
        #[test]
        fn it_never_panics(text in "((SHA256|Suite|Date|Valid-Until):?[ a-z0-9]{0,20}\n| [0-9a-f]{0,66} [0-9]{0,3} \\PC{0,5}\n){0,8}") {
            let _ = Release::parse(&text);
        }
    }
}
