// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

/// An index from lines like `a 1; Depends: b; Provides: c (= 2)`.
fn universe(lines: &[&str]) -> Universe {
    let mut universe = Universe::default();
    let mut text = String::new();
    for line in lines {
        let mut parts = line.split("; ");
        let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
        text +=
            &format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}.deb\nSize: 1\n");
        text += &format!("SHA256: {}\n", "0".repeat(64));
        for field in parts {
            text += &format!("{field}\n");
        }
        text += "\n";
    }
    universe.add("test", text.as_bytes()).unwrap();
    universe.finish();
    universe
}

fn wanted(packages: &[&str]) -> Wanted {
    Wanted {
        architecture: "amd64".into(),
        packages: packages.iter().map(ToString::to_string).collect(),
        ..Wanted::default()
    }
}

fn names(universe: &Universe, wanted: &Wanted) -> String {
    match resolve(universe, wanted) {
        Ok(packages) => packages.iter().map(|p| format!("{}={}", p.name, p.version)).collect::<Vec<_>>().join(" "),
        Err(failure) => failure.to_string(),
    }
}

#[test]
fn closure_with_versions_and_cycles() {
    let u = universe(&["a 1; Depends: b (>= 2), c", "b 1", "b 2; Pre-Depends: a", "c 1; Recommends: d", "d 1"]);
    assert_eq!(names(&u, &wanted(&["a"])), "a=1 b=2 c=1");
    assert_eq!(names(&u, &wanted(&["b=1"])), "b=1");
}

#[test]
fn alternatives_prefer_what_is_chosen_then_the_first_that_can_be_had() {
    let u = universe(&["a 1; Depends: x | y", "b 1; Depends: y", "x 1", "y 1", "c 1; Depends: nothing | y | x"]);
    assert_eq!(names(&u, &wanted(&["a"])), "a=1 x=1");
    assert_eq!(names(&u, &wanted(&["a", "b"])), "a=1 b=1 y=1", "y is needed anyway");
    assert_eq!(names(&u, &wanted(&["c"])), "c=1 y=1");
}

#[test]
fn virtual_packages() {
    let u = universe(&[
        "a 1; Depends: awk",
        "gawk 1; Provides: awk; Priority: optional",
        "mawk 1; Provides: awk; Priority: required",
        "v 1; Depends: api (>= 2)",
        "old 1; Provides: api (= 1)",
        "plain 1; Provides: api",
        "new 1; Provides: api (= 2)",
        "any 1; Depends: mawk:any",
        "foreign 1; Depends: mawk:arm64",
    ]);
    assert_eq!(names(&u, &wanted(&["a"])), "a=1 mawk=1");
    assert_eq!(names(&u, &wanted(&["a", "gawk"])), "a=1 gawk=1");
    assert_eq!(names(&u, &wanted(&["v"])), "new=1 v=1");
    assert_eq!(names(&u, &wanted(&["any"])), "any=1 mawk=1");
    assert!(names(&u, &wanted(&["foreign"])).contains("`foreign` 1 needs `mawk:arm64`"));
    assert!(names(&u, &wanted(&["awk"])).contains("`awk` is virtual: name one of mawk, gawk instead"));
}

#[test]
fn excluded_packages_count_as_there() {
    let u = universe(&[
        "kernel 1; Depends: kmod, initramfs-tools (>= 1) | linux-initramfs-tool",
        "kmod 1",
        "initramfs-tools 2; Depends: klibc; Provides: linux-initramfs-tool",
        "dracut 1; Provides: linux-initramfs-tool",
        "klibc 1",
        "other 1; Depends: linux-initramfs-tool",
    ]);
    let mut w = wanted(&["kernel", "other"]);
    w.excludes.insert("initramfs-tools".into());
    assert_eq!(names(&u, &w), "kernel=1 kmod=1 other=1");
}

#[test]
fn essential_packages_only_when_asked_for() {
    let u = universe(&["base 1; Essential: yes; Depends: c", "c 1", "a 1"]);
    assert_eq!(names(&u, &wanted(&["a"])), "a=1");
    assert_eq!(names(&u, &Wanted { essential: true, ..wanted(&["a"]) }), "a=1 base=1 c=1");
}

#[test]
fn conflicts_are_avoided_where_there_is_a_choice() {
    let u = universe(&[
        "a 1; Depends: x | y",
        "x 1; Conflicts: b",
        "y 1",
        "b 1",
        "mta 1; Provides: mail; Conflicts: mail",
        "mta2 1; Provides: mail",
        "breaker 1; Breaks: b (<< 2)",
        "late 1; Breaks: b (<< 1)",
    ]);
    assert_eq!(names(&u, &wanted(&["a", "b"])), "a=1 b=1 y=1");
    assert_eq!(names(&u, &wanted(&["mta"])), "mta=1", "no conflict with itself");
    assert_eq!(names(&u, &wanted(&["late", "b"])), "b=1 late=1");
    let text = names(&u, &wanted(&["mta", "mta2", "breaker", "b"]));
    assert!(text.contains("2 problems"), "{text}");
    assert!(text.contains("`breaker` 1 conflicts with `b (<< 2)`, which is `b` 1"), "{text}");
    assert!(text.contains("`mta` 1 conflicts with `mail`, which is `mta2` 1"), "{text}");
}

#[test]
fn every_problem_at_once_with_the_chain() {
    let u = universe(&["a 1; Depends: b", "b 1; Depends: c (>= 2), missing | gone (= 1)", "c 1", "d 1"]);
    let failure = resolve(&u, &wanted(&["a", "nope", "d=7"])).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the packages cannot be put together, 4 problems:
  `b` 1 needs `c (>= 2)`, but `c` is there in version 1 (wanted: a → b)
  `b` 1 needs `missing | gone (= 1)`, but nothing provides it (wanted: a → b)
  `d` is not there in version 7, only in 1
  there is no package `nope` for amd64"
    );
    assert_eq!(failure.kind.exit_code(), 1);
    assert!(failure.hint.unwrap().contains("suites looked at: test"));
}

proptest! {
    #[test]
    fn the_order_of_the_list_does_not_matter_without_choices(order in Just(["a", "b", "c", "d"]).prop_shuffle()) {
        let u = universe(&["a 1; Depends: e", "b 1; Depends: f", "c 1", "d 1; Depends: a", "e 1", "f 1"]);
        prop_assert_eq!(names(&u, &wanted(&order)), "a=1 b=1 c=1 d=1 e=1 f=1");
    }

    #[test]
    fn it_ends_and_never_panics(depends in proptest::collection::vec("[a-e]( \\| [a-e])?(, [a-f])?", 5)) {
        let lines: Vec<String> =
            depends.iter().enumerate().map(|(i, d)| format!("{} 1; Depends: {d}", ["a", "b", "c", "d", "e"][i])).collect();
        let u = universe(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let _ = resolve(&u, &wanted(&["a"]));
    }
}
