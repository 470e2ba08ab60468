// SPDX-License-Identifier: MIT OR Apache-2.0

//! Relations between packages: `a (>= 1) | b:any, c`. Syntax: Debian Policy 7.1.

use std::cmp::Ordering;
use std::fmt;

use super::version::compare;

/// How versions are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `<<`
    Less,
    /// `<=`
    LessEqual,
    /// `=`
    Equal,
    /// `>=`
    GreaterEqual,
    /// `>>`
    Greater,
}

/// One alternative: a name and perhaps a version constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// The package, real or virtual.
    pub name: &'a str,
    /// What follows the colon: `any`, `native` or an architecture.
    pub qualifier: Option<&'a str>,
    /// The constraint.
    pub constraint: Option<(Op, &'a str)>,
}

impl Relation<'_> {
    /// Whether a package of this version satisfies the constraint.
    pub fn allows(&self, version: &str) -> bool {
        let Some((op, wanted)) = self.constraint else { return true };
        let order = compare(version, wanted);
        match op {
            Op::Less => order == Ordering::Less,
            Op::LessEqual => order != Ordering::Greater,
            Op::Equal => order == Ordering::Equal,
            Op::GreaterEqual => order != Ordering::Less,
            Op::Greater => order == Ordering::Greater,
        }
    }
}

impl fmt::Display for Relation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(qualifier) = self.qualifier {
            write!(f, ":{qualifier}")?;
        }
        let Some((op, version)) = self.constraint else { return Ok(()) };
        let op = match op {
            Op::Less => "<<",
            Op::LessEqual => "<=",
            Op::Equal => "=",
            Op::GreaterEqual => ">=",
            Op::Greater => ">>",
        };
        write!(f, " ({op} {version})")
    }
}

/// The groups of a relation field; each group is satisfied by any of its alternatives. What cannot be read is skipped:
/// an index is signed by its archive, so this is only about never panicking.
pub fn groups(field: &str) -> impl Iterator<Item = Vec<Relation<'_>>> {
    field
        .split(',')
        .map(|group| group.split('|').filter_map(parse).collect())
        .filter(|group: &Vec<_>| !group.is_empty())
}

/// One alternative.
pub fn parse(text: &str) -> Option<Relation<'_>> {
    let text = text.trim();
    let end = text.find(|c: char| c.is_whitespace() || matches!(c, '(' | '[' | '<')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let (name, qualifier) = match name.split_once(':') {
        Some((name, qualifier)) => (name, Some(qualifier)),
        None => (name, None),
    };
    if name.is_empty() {
        return None;
    }
    let mut constraint = None;
    if let Some(inner) = rest.trim_start().strip_prefix('(') {
        let inner = inner.split(')').next()?.trim();
        let at = inner.find(|c| !matches!(c, '<' | '>' | '=')).unwrap_or(inner.len());
        let (op, version) = inner.split_at(at);
        let op = match op {
            "<<" => Op::Less,
            // Policy 7.1: the obsolete `<` and `>` mean "or equal".
            "<=" | "<" => Op::LessEqual,
            "=" | "" => Op::Equal,
            ">=" | ">" => Op::GreaterEqual,
            ">>" => Op::Greater,
            _ => return None,
        };
        constraint = Some((op, version.trim()));
    }
    Some(Relation { name, qualifier, constraint })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn groups_and_alternatives() {
        let groups: Vec<_> =
            groups("libc6 (>= 2.36), default-mta | mail-transport-agent,python3:any (<<4),x(=1)").collect();
        let text: Vec<Vec<String>> = groups.iter().map(|g| g.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(
            text,
            [
                vec!["libc6 (>= 2.36)"],
                vec!["default-mta", "mail-transport-agent"],
                vec!["python3:any (<< 4)"],
                vec!["x (= 1)"]
            ]
        );
        assert!(groups[0][0].allows("2.36-9") && !groups[0][0].allows("2.35"));
        assert!(groups[2][0].allows("3.11") && !groups[2][0].allows("4"));
        assert_eq!(super::groups(" , ,").count(), 0);
    }

    proptest! {
        #[test]
        fn it_never_panics(text in "[a-z:()<>=|, \\PC]{0,40}") {
            for group in groups(&text) {
                for relation in group {
                    relation.allows("1");
                }
            }
        }
    }
}
