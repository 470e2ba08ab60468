// SPDX-License-Identifier: MIT OR Apache-2.0

//! What changes from one lock to another, for people who review it: one line for each package or file, in a fixed order.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{ItemKind, Lock, LockedInput, LockedItem};
use crate::inputs::deb;
use crate::inputs::rpm_repository;
use crate::store::Digest;

/// What changes from one lock to another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Inputs in which something changes, by name.
    inputs: BTreeMap<String, InputDiff>,
    /// Objects that the newer lock names and the older does not, and their bytes: what there is to fetch.
    new: (usize, u64),
}

/// What changes in one input.
#[derive(Debug, Clone, PartialEq, Eq)]
struct InputDiff {
    state: State,
    /// Facts about the whole input that change.
    notes: Vec<String>,
    changes: Vec<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Added,
    Removed,
    Kept,
}

/// What changes about one package or file. The order is that of names, as a lock has it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Added(String),
    Removed(String),
    Changed(String),
}

/// What stays the same when a package or a file changes: kind, name or path, architecture.
type Identity<'a> = (&'a str, ItemKind, &'a str);

impl Diff {
    /// From `old` to `new`.
    pub fn of(old: &Lock, new: &Lock) -> Self {
        let names: BTreeSet<&String> = old.inputs.keys().chain(new.inputs.keys()).collect();
        let none = LockedInput { request: Digest::of(b""), suites: vec![], date: 0, items: vec![] };
        let mut inputs = BTreeMap::new();
        for name in names {
            let found = match (old.inputs.get(name), new.inputs.get(name)) {
                (Some(old), Some(new)) => InputDiff::of(State::Kept, old, new),
                (Some(old), None) => InputDiff::of(State::Removed, old, &none),
                (None, Some(new)) => InputDiff::of(State::Added, &none, new),
                (None, None) => continue,
            };
            if found.state != State::Kept || !found.notes.is_empty() || !found.changes.is_empty() {
                inputs.insert(name.clone(), found);
            }
        }
        let known: BTreeSet<&Digest> = old.items().map(|item| &item.sha256).collect();
        let fresh: BTreeMap<&Digest, u64> =
            new.items().filter(|item| !known.contains(&item.sha256)).map(|item| (&item.sha256, item.size)).collect();
        Self { inputs, new: (fresh.len(), fresh.values().fold(0, |sum, size| sum.saturating_add(*size))) }
    }

    /// Whether nothing changes at all.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// Whether a file changes, comes or goes. Archives sign their indexes anew every few hours, with a new date: that alone
    /// is nothing to fetch.
    pub fn changes_files(&self) -> bool {
        self.inputs.values().any(|input| !input.changes.is_empty())
    }
}

impl InputDiff {
    fn of(state: State, old: &LockedInput, new: &LockedInput) -> Self {
        let mut notes = Vec::new();
        if state == State::Kept {
            if old.request != new.request {
                notes.push("the cluster file asks for something else".to_owned());
            }
            if old.suites != new.suites {
                notes.push(format!("suites {} -> {}", old.suites.join(", "), new.suites.join(", ")));
            }
            if old.date != new.date {
                notes.push(format!("date {} -> {}", date(old.date), date(new.date)));
            }
        }
        let (before, after) = (groups(&old.items), groups(&new.items));
        let identities: BTreeSet<&Identity<'_>> = before.keys().chain(after.keys()).collect();
        let changes = identities.into_iter().filter_map(|identity| {
            let (old, new) = (before.get(identity), after.get(identity));
            match (old.map(Vec::as_slice), new.map(Vec::as_slice)) {
                (Some(old), Some(new)) if old == new => None,
                (Some(old), Some(new)) => Some(Change::Changed(changed(identity, old, new))),
                (Some(old), None) => Some(Change::Removed(described(identity, old))),
                (None, Some(new)) => Some(Change::Added(described(identity, new))),
                (None, None) => None,
            }
        });
        Self { state, notes, changes: changes.collect() }
    }
}

/// Items by what stays the same: source packages and images have several files, everything else one.
fn groups(items: &[LockedItem]) -> BTreeMap<Identity<'_>, Vec<&LockedItem>> {
    let mut out: BTreeMap<Identity<'_>, Vec<&LockedItem>> = BTreeMap::new();
    for item in items {
        let name = match item.kind {
            ItemKind::File => &item.path,
            // A later version of a file has another address; an input has one.
            ItemKind::Url => "",
            ItemKind::Deb | ItemKind::Rpm | ItemKind::Source | ItemKind::Oci => &item.name,
        };
        out.entry((name, item.kind, &item.architecture)).or_default().push(item);
    }
    out
}

fn title((name, kind, architecture): &Identity<'_>) -> (String, String) {
    match kind {
        ItemKind::Deb | ItemKind::Rpm => ((*name).to_owned(), format!(" ({architecture})")),
        ItemKind::Source => (format!("source package {name}"), String::new()),
        ItemKind::File => (format!("file {name}"), String::new()),
        ItemKind::Url => ("file".to_owned(), String::new()),
        ItemKind::Oci => (format!("image {name}"), format!(" ({architecture})")),
    }
}

fn versions<'a>(items: &[&'a LockedItem]) -> Vec<&'a str> {
    // The name of an image has its tag.
    let items = items.iter().filter(|item| item.kind != ItemKind::Oci);
    let versions: BTreeSet<&str> = items.map(|item| item.version.as_str()).filter(|v| !v.is_empty()).collect();
    versions.into_iter().collect()
}

fn described(identity: &Identity<'_>, items: &[&LockedItem]) -> String {
    let (name, suffix) = title(identity);
    let mut out = name;
    if identity.1 == ItemKind::Url {
        out += &format!(" {}", addresses(items));
    }
    for version in versions(items) {
        out += &format!(" {version}");
    }
    out + &suffix
}

fn addresses(items: &[&LockedItem]) -> String {
    items.iter().map(|item| item.path.as_str()).collect::<Vec<_>>().join(", ")
}

fn changed(identity: &Identity<'_>, old: &[&LockedItem], new: &[&LockedItem]) -> String {
    let (name, suffix) = title(identity);
    let (before, after) = (versions(old), versions(new));
    if before != after {
        let older = match (before.as_slice(), after.as_slice()) {
            ([before], [after]) if compare(identity.1, before, after) == Ordering::Greater => ", OLDER",
            _ => "",
        };
        return format!("{name} {} -> {}{suffix}{older}", before.join(", "), after.join(", "));
    }
    let contents = |items: &[&LockedItem]| items.iter().map(|item| (item.sha256, item.size)).collect::<BTreeSet<_>>();
    let described = described(identity, old);
    let moved = identity.1 == ItemKind::Url && addresses(old) != addresses(new);
    if moved {
        let same = if contents(old) == contents(new) { ": the same content" } else { "" };
        return format!("{described} -> {}{same}", addresses(new));
    }
    if contents(old) == contents(new) {
        return format!("{described}: the same content from another place in the archive");
    }
    let size = |items: &[&LockedItem]| items.iter().fold(0_u64, |sum, item| sum.saturating_add(item.size));
    let what = match identity.1 {
        ItemKind::File => "other content",
        // Whoever publishes versions does not change them; somebody has to look at this, too.
        ItemKind::Url => "OTHER CONTENT UNDER THE SAME ADDRESS",
        // A version is one content, for ever: somebody has to look at this.
        ItemKind::Deb | ItemKind::Rpm | ItemKind::Source => "OTHER CONTENT UNDER THE SAME VERSION",
        ItemKind::Oci => "the tag has moved",
    };
    format!("{described}: {what}, {} -> {} bytes", size(old), size(new))
}

/// Debian and rpm order versions differently: `1.0^a` is after `1.0-1` for rpm.
fn compare(kind: ItemKind, a: &str, b: &str) -> Ordering {
    match kind {
        ItemKind::Rpm => rpm_repository::version::compare(a, b),
        ItemKind::Deb | ItemKind::Source | ItemKind::File | ItemKind::Url | ItemKind::Oci => {
            deb::version::compare(a, b)
        }
    }
}

/// A date of a lock.
fn date(seconds: u32) -> String {
    match jiff::Timestamp::from_second(seconds.into()) {
        Ok(time) if seconds != 0 => time.to_string(),
        _ => "none".to_owned(),
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, input) in &self.inputs {
            let sign = match input.state {
                State::Added => "+ ",
                State::Removed => "- ",
                State::Kept => "",
            };
            writeln!(f, "{sign}input {name}")?;
            input.notes.iter().try_for_each(|note| writeln!(f, "    {note}"))?;
            for change in &input.changes {
                let (sign, text) = match change {
                    Change::Added(text) => ('+', text),
                    Change::Removed(text) => ('-', text),
                    Change::Changed(text) => ('~', text),
                };
                writeln!(f, "  {sign} {text}")?;
            }
        }
        let (mut added, mut removed, mut changed) = (0, 0, 0);
        for change in self.inputs.values().flat_map(|input| &input.changes) {
            match change {
                Change::Added(_) => added += 1,
                Change::Removed(_) => removed += 1,
                Change::Changed(_) => changed += 1,
            }
        }
        let (files, bytes) = self.new;
        write!(f, "{changed} changed, {added} added, {removed} removed; new files to fetch: {files} ({bytes} bytes)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(kind: ItemKind, name: &str, version: &str, content: &str) -> LockedItem {
        let (architecture, path) = match kind {
            ItemKind::Deb => ("amd64", format!("pool/{name}_{version}.deb")),
            ItemKind::Rpm => ("x86_64", format!("Packages/{name}-{version}.x86_64.rpm")),
            ItemKind::Source => ("", format!("pool/{name}_{version}.{content}")),
            ItemKind::File => ("", name.to_owned()),
            ItemKind::Url => ("", format!("https://example.org/{version}/{name}")),
            ItemKind::Oci => ("amd64", format!("{name}/blobs/{content}")),
        };
        LockedItem {
            kind,
            name: name.rsplit('/').next().unwrap().to_owned(),
            version: version.to_owned(),
            architecture: architecture.to_owned(),
            archive: String::new(),
            path,
            size: content.len() as u64,
            sha256: Digest::of(format!("{name} {version} {content}").as_bytes()),
        }
    }

    fn unversioned(item: LockedItem) -> LockedItem {
        LockedItem { version: String::new(), ..item }
    }

    fn lock(inputs: &[(&str, u32, Vec<LockedItem>)]) -> Lock {
        let mut lock = Lock::default();
        for (name, date, items) in inputs {
            let suites = vec!["bookworm".to_owned()];
            let input = LockedInput { request: Digest::of(b"r"), suites, date: *date, items: items.clone() };
            lock.inputs.insert((*name).to_owned(), input);
        }
        lock
    }

    #[test]
    fn every_kind_of_change_has_its_line() {
        use ItemKind::{Deb, File, Oci, Rpm, Source, Url};
        let image = |content| item(Oci, "a.io:1", "1", content);
        let old = lock(&[
            ("calico", 0, vec![image("index"), image("layer")]),
            ("gone", 0, vec![item(File, "files/motd", "", "x")]),
            (
                "os",
                1_768_038_912,
                vec![
                    item(Deb, "bash", "5.2-2", "b"),
                    item(Deb, "curl", "7:8-1", "c"),
                    item(Deb, "kept", "1", "k"),
                    item(Deb, "old", "1.0~rc1", "o"),
                    item(Deb, "same", "1", "s"),
                ],
            ),
            ("kubernetes", 0, vec![item(Source, "k8s", "1.20.2-1", "dsc"), item(Source, "k8s", "1.20.2-1", "orig")]),
            ("kubeadm", 0, vec![unversioned(item(Url, "kubeadm", "1.32.1", "k"))]),
            ("moved", 0, vec![item(File, "files/moved", "", "m")]),
            ("motd", 0, vec![item(File, "files/motd", "", "hello")]),
            ("same", 0, vec![item(File, "files/same", "", "same")]),
            ("vendor", 0, vec![item(Rpm, "haproxy", "2.4^git-1", "h"), item(Rpm, "ipset", "1:7-2", "i")]),
        ]);
        let moved = LockedItem { path: "pool/elsewhere".into(), ..item(Deb, "kept", "1", "k") };
        let mut new = lock(&[
            ("calico", 0, vec![image("other"), image("layer")]),
            ("new", 0, vec![item(File, "files/x", "", "x")]),
            (
                "os",
                1_770_000_000,
                vec![
                    item(Deb, "bash", "5.2-10", "bb"),
                    item(Deb, "curl", "7:7-9", "c"),
                    item(Deb, "dash", "1", "d"),
                    moved,
                    item(Deb, "same", "1", "other"),
                ],
            ),
            ("kubernetes", 0, vec![item(Source, "k8s", "1.20.3-1", "dsc"), item(Source, "k8s", "1.20.3-1", "orig")]),
            ("kubeadm", 0, vec![unversioned(item(Url, "kubeadm", "1.32.2", "kk"))]),
            ("moved", 0, vec![unversioned(item(Url, "moved", "1", "m"))]),
            ("motd", 0, vec![item(File, "files/motd", "", "hello!")]),
            ("same", 0, vec![item(File, "files/same", "", "same")]),
            ("vendor", 0, vec![item(Rpm, "haproxy", "2.4-1", "h"), item(Rpm, "ipset", "1:7-10", "ii")]),
        ]);
        new.inputs.get_mut("kubernetes").unwrap().request = Digest::of(b"another");
        let diff = Diff::of(&old, &new);
        assert!(diff.changes_files());
        insta::assert_snapshot!(diff, @r"
        input calico
          ~ image a.io:1 (amd64): the tag has moved, 10 -> 10 bytes
        - input gone
          - file files/motd
        input kubeadm
          ~ file https://example.org/1.32.1/kubeadm -> https://example.org/1.32.2/kubeadm
        input kubernetes
            the cluster file asks for something else
          ~ source package k8s 1.20.2-1 -> 1.20.3-1
        input motd
          ~ file files/motd: other content, 5 -> 6 bytes
        input moved
          + file https://example.org/1/moved
          - file files/moved
        + input new
          + file files/x
        input os
            date 2026-01-10T09:55:12Z -> 2026-02-02T02:40:00Z
          ~ bash 5.2-2 -> 5.2-10 (amd64)
          ~ curl 7:8-1 -> 7:7-9 (amd64), OLDER
          + dash 1 (amd64)
          ~ kept 1 (amd64): the same content from another place in the archive
          - old 1.0~rc1 (amd64)
          ~ same 1 (amd64): OTHER CONTENT UNDER THE SAME VERSION, 1 -> 5 bytes
        input vendor
          ~ haproxy 2.4^git-1 -> 2.4-1 (x86_64), OLDER
          ~ ipset 1:7-2 -> 1:7-10 (x86_64)
        10 changed, 3 added, 3 removed; new files to fetch: 13 (34 bytes)
        ");
    }

    #[test]
    fn an_address_that_has_something_else_now_is_worth_a_look() {
        let old = unversioned(item(ItemKind::Url, "kubeadm", "1.32.1", "k"));
        let other = LockedItem { sha256: Digest::of(b"other"), size: 9, ..old.clone() };
        let moved = LockedItem { path: "http://copy.example.org/kubeadm".into(), ..old.clone() };
        let lines = |new: LockedItem| {
            let diff = Diff::of(&lock(&[("k", 0, vec![old.clone()])]), &lock(&[("k", 0, vec![new])]));
            assert!(diff.changes_files());
            diff.to_string().lines().nth(1).unwrap().to_owned()
        };
        let address = "  ~ file https://example.org/1.32.1/kubeadm";
        assert_eq!(lines(other), format!("{address}: OTHER CONTENT UNDER THE SAME ADDRESS, 1 -> 9 bytes"));
        assert_eq!(lines(moved), format!("{address} -> http://copy.example.org/kubeadm: the same content"));
    }

    #[test]
    fn a_new_date_alone_changes_no_file() {
        let items = vec![item(ItemKind::Deb, "bash", "5.2-2", "b")];
        let diff = Diff::of(&lock(&[("os", 1, items.clone())]), &lock(&[("os", 2, items)]));
        assert!(!diff.is_empty() && !diff.changes_files());
        assert!(
            Diff::of(&Lock::default(), &lock(&[("os", 1, vec![])])).to_string().starts_with("+ input os\n0 changed")
        );
    }

    proptest! {
        #[test]
        fn nothing_changes_from_a_lock_to_itself_and_something_to_any_other(
            a in prop::collection::btree_set((0_u8..6, 0_u8..3), 0..6),
            b in prop::collection::btree_set((0_u8..6, 0_u8..3), 0..6),
        ) {
            let of = |set: &BTreeSet<(u8, u8)>| {
                let items = set.iter().map(|(name, v)| item(ItemKind::Deb, &format!("p{name}"), &v.to_string(), "x"));
                lock(&[("os", 0, items.collect())])
            };
            prop_assert!(Diff::of(&of(&a), &of(&a)).is_empty());
            let (there, back) = (Diff::of(&of(&a), &of(&b)), Diff::of(&of(&b), &of(&a)));
            prop_assert_eq!(there.is_empty(), a == b);
            prop_assert_eq!(back.is_empty(), a == b);
            prop_assert_eq!(there.new.0, b.difference(&a).count());
        }
    }
}
