// SPDX-License-Identifier: MIT OR Apache-2.0

//! From names to the full set of packages they need. Pure: an index goes in, a set or all of the problems come out.
//!
//! The rules, which give one answer for one index:
//! 1. Of each package the highest version counts, unless a wanted package names one (`name=version`).
//! 2. `Pre-Depends` and `Depends` are followed, `Recommends` are not. Dependencies that leave no choice come first.
//! 3. A dependency with a choice is satisfied by what is chosen already; otherwise by its first alternative that can be
//!    had and conflicts with nothing chosen: a real package, or else the most important provider, by name.
//! 4. An excluded package counts as if it were there already, with no content: nothing pulls it in.
//! 5. Packages that conflict with or break each other are an error.
//!
//! Relations: Debian Policy 7.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::index::{Package, Universe};
use super::relation::{Relation, groups};
use crate::error::Failure;

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The architecture, in Debian's spelling.
    pub architecture: String,
    /// Names of packages, each perhaps with `=version`.
    pub packages: Vec<String>,
    /// Packages that are never pulled in.
    pub excludes: BTreeSet<String>,
    /// Whether to add all essential packages.
    pub essential: bool,
}

/// The packages that `wanted` needs, sorted by name.
///
/// # Errors
/// One that lists every problem, each with the chain of packages that led to it.
pub fn resolve<'a>(universe: &'a Universe, wanted: &Wanted) -> Result<Vec<&'a Package>, Failure> {
    let mut solver = Solver {
        universe,
        wanted,
        pins: BTreeMap::new(),
        chosen: BTreeMap::new(),
        forced: VecDeque::new(),
        choices: VecDeque::new(),
        problems: BTreeSet::new(),
        excluded: Vec::new(),
    };
    solver.run();
    solver.check_conflicts();
    if solver.problems.is_empty() {
        return Ok(solver.chosen.values().map(|chosen| universe.package(chosen.number)).collect());
    }
    let count = solver.problems.len();
    let problems: Vec<String> = solver.problems.into_iter().map(|problem| format!("\n  {problem}")).collect();
    let what = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
    Err(Failure::user(format!("the packages cannot be put together, {what}:{}", problems.concat())).hint(format!(
        "suites looked at: {}; correct the package list or the suites of the cluster file",
        universe.suites.join(", ")
    )))
}

struct Chosen {
    number: u32,
    /// The package that asked for it first; `None` for what was wanted by name.
    asked_by: Option<u32>,
}

/// A dependency that is not followed yet.
struct Open<'a> {
    group: Vec<Relation<'a>>,
    asked_by: u32,
}

struct Solver<'a, 'w> {
    universe: &'a Universe,
    wanted: &'w Wanted,
    /// Versions wanted by name.
    pins: BTreeMap<&'w str, &'w str>,
    chosen: BTreeMap<&'a str, Chosen>,
    forced: VecDeque<Open<'a>>,
    choices: VecDeque<Open<'a>>,
    problems: BTreeSet<String>,
    /// What the excluded packages are, for what they provide.
    excluded: Vec<u32>,
}

impl<'a> Solver<'a, '_> {
    fn run(&mut self) {
        for name in &self.wanted.packages {
            if let Some((name, version)) = name.split_once('=') {
                self.pins.insert(name, version);
            }
        }
        self.excluded = self.wanted.excludes.iter().filter_map(|name| self.candidate(name)).collect();
        if self.wanted.essential {
            let essential = |number: &u32| self.universe.package(*number).essential;
            for number in self.universe.numbers().filter(essential).collect::<Vec<_>>() {
                let name = &*self.universe.package(number).name;
                if self.candidate(name) == Some(number) && !self.wanted.excludes.contains(name) {
                    self.choose(number, None);
                }
            }
        }
        for name in &self.wanted.packages {
            let name = name.split_once('=').map_or(name.as_str(), |(name, _)| name);
            match self.candidate(name) {
                Some(number) => self.choose(number, None),
                None => self.problem_unknown(name),
            }
        }
        loop {
            if let Some(open) = self.forced.pop_front() {
                self.follow(&open);
            } else if let Some(open) = self.choices.pop_front() {
                self.follow(&open);
            } else {
                return;
            }
        }
    }

    /// The version of a real package that counts.
    fn candidate(&self, name: &str) -> Option<u32> {
        let versions = self.universe.versions(name);
        match self.pins.get(name) {
            Some(pin) => versions.iter().copied().find(|number| *self.universe.package(*number).version == **pin),
            None => versions.first().copied(),
        }
    }

    /// Everything that would satisfy a relation, in order of preference.
    fn candidates(&self, relation: &Relation<'_>) -> Vec<u32> {
        if relation.qualifier.is_some_and(|q| !matches!(q, "any" | "native") && q != self.wanted.architecture) {
            return Vec::new();
        }
        let real = self.candidate(relation.name).into_iter();
        let providers = self.universe.providers(relation.name).iter().copied();
        real.chain(providers.filter(|number| self.candidate(&self.universe.package(*number).name) == Some(*number)))
            .filter(|number| self.universe.package(*number).satisfies(relation))
            .collect()
    }

    fn choose(&mut self, number: u32, asked_by: Option<u32>) {
        let universe = self.universe;
        let package = universe.package(number);
        if self.chosen.contains_key(&*package.name) {
            return;
        }
        self.chosen.insert(&package.name, Chosen { number, asked_by });
        for group in groups(&package.depends) {
            let open = Open { group, asked_by: number };
            let one = match open.group.as_slice() {
                [relation] => self.candidates(relation).len() <= 1,
                _ => false,
            };
            if one { self.forced.push_back(open) } else { self.choices.push_back(open) }
        }
    }

    fn follow(&mut self, open: &Open<'a>) {
        let met = |relation: &Relation<'_>| {
            self.wanted.excludes.contains(relation.name)
                || self.excluded.iter().any(|number| self.universe.package(*number).satisfies(relation))
                || self.is_chosen(relation)
        };
        if open.group.iter().any(met) {
            return;
        }
        let candidates: Vec<u32> = open.group.iter().flat_map(|relation| self.candidates(relation)).collect();
        let fits = |number: &&u32| self.conflict_with_chosen(**number).is_none();
        // Where everything conflicts, the conflict is what has to be reported.
        match candidates.iter().find(fits).or(candidates.first()) {
            Some(number) => self.choose(*number, Some(open.asked_by)),
            None => self.problem_unmet(open),
        }
    }

    fn is_chosen(&self, relation: &Relation<'_>) -> bool {
        let satisfied = |name: &str| {
            self.chosen.get(name).is_some_and(|chosen| self.universe.package(chosen.number).satisfies(relation))
        };
        satisfied(relation.name)
            || self
                .universe
                .providers(relation.name)
                .iter()
                .any(|number| satisfied(&self.universe.package(*number).name))
    }

    /// The names under which a package is known: its own and those it provides.
    fn names(package: &'a Package) -> impl Iterator<Item = &'a str> {
        std::iter::once(&*package.name).chain(groups(&package.provides).flatten().map(|relation| relation.name))
    }

    /// A chosen package that the given one conflicts with, either way.
    fn conflict_with_chosen(&self, number: u32) -> Option<u32> {
        let package = self.universe.package(number);
        if let Some((_, other)) = self.conflicts_of(number) {
            return Some(other);
        }
        let mut others = self.chosen.values().map(|chosen| chosen.number).filter(|other| *other != number);
        others.find(|other| {
            let other = self.universe.package(*other);
            Self::names(package).any(|name| other.conflicts.contains(name))
                && groups(&other.conflicts).flatten().any(|relation| package.satisfies(&relation))
        })
    }

    /// A chosen package that the given one says it conflicts with.
    fn conflicts_of(&self, number: u32) -> Option<(Relation<'a>, u32)> {
        groups(&self.universe.package(number).conflicts).flatten().find_map(|relation| {
            let providers = self.universe.providers(relation.name).iter().map(|n| &*self.universe.package(*n).name);
            let names = std::iter::once(relation.name).chain(providers);
            let other = names
                .filter_map(|name| self.chosen.get(name))
                .map(|chosen| chosen.number)
                // A package may conflict with a virtual package it provides itself (Policy 7.4).
                .find(|other| *other != number && self.universe.package(*other).satisfies(&relation))?;
            Some((relation, other))
        })
    }

    fn check_conflicts(&mut self) {
        let numbers: Vec<u32> = self.chosen.values().map(|chosen| chosen.number).collect();
        for number in numbers {
            if let Some((relation, other)) = self.conflicts_of(number) {
                let (package, against) = (self.universe.package(number), self.universe.package(other));
                let problem = format!(
                    "`{}` {} conflicts with `{relation}`, which is `{}` {} (wanted: {}; and: {})",
                    package.name,
                    package.version,
                    against.name,
                    against.version,
                    self.chain(number),
                    self.chain(other)
                );
                self.problems.insert(problem);
            }
        }
    }

    /// Who asked for a package: `systemd-sysv → systemd → libc6`.
    fn chain(&self, number: u32) -> String {
        let mut names = Vec::new();
        let mut at = Some(number);
        while let Some(number) = at {
            let name = &*self.universe.package(number).name;
            names.push(name);
            at = self.chosen.get(name).and_then(|chosen| chosen.asked_by);
        }
        names.reverse();
        names.join(" → ")
    }

    fn problem_unknown(&mut self, name: &str) {
        let versions: Vec<&str> =
            self.universe.versions(name).iter().map(|number| &*self.universe.package(*number).version).collect();
        let providers: Vec<&str> =
            self.universe.providers(name).iter().map(|number| &*self.universe.package(*number).name).collect();
        self.problems.insert(match self.pins.get(name) {
            Some(pin) if !versions.is_empty() => {
                format!("`{name}` is not there in version {pin}, only in {}", versions.join(", "))
            }
            _ if !providers.is_empty() => {
                format!("`{name}` is virtual: name one of {} instead", some(&providers))
            }
            _ => format!("there is no package `{name}` for {}", self.wanted.architecture),
        });
    }

    fn problem_unmet(&mut self, open: &Open<'_>) {
        let package = self.universe.package(open.asked_by);
        let wanted: Vec<String> = open.group.iter().map(ToString::to_string).collect();
        let there: Vec<String> = open
            .group
            .iter()
            .filter_map(|relation| self.candidate(relation.name))
            .map(|number| self.universe.package(number))
            .map(|package| format!("`{}` is there in version {}", package.name, package.version))
            .collect();
        let there = if there.is_empty() { "nothing provides it".to_owned() } else { there.join(", ") };
        self.problems.insert(format!(
            "`{}` {} needs `{}`, but {there} (wanted: {})",
            package.name,
            package.version,
            wanted.join(" | "),
            self.chain(open.asked_by)
        ));
    }
}

/// A few names of many.
fn some(names: &[&str]) -> String {
    let mut names: Vec<&str> = names.to_vec();
    names.dedup();
    let more = names.len().saturating_sub(5);
    names.truncate(5);
    if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
