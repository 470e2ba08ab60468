// SPDX-License-Identifier: MIT OR Apache-2.0

//! docs/runbook.md promises a test for each row: all of them exist.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

#[test]
fn every_row_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/runbook.md")).unwrap();
    let mut numbers = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 6, "{line}");
        let number: u32 = cells[0].parse().unwrap_or_else(|error| panic!("{error}: {line}"));
        numbers.push(number);
        let tests: Vec<&str> = cells[5].split_whitespace().collect();
        assert!(!tests.is_empty(), "row {number} names no test");
        for test in tests {
            let name =
                test.strip_prefix('`').and_then(|test| test.strip_suffix('`')).unwrap_or_else(|| panic!("{test}"));
            let (file, function) = name.rsplit_once("::").unwrap_or(("profiles/tests/runbook.rs", name));
            let source =
                fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("row {number}, {file}: {error}"));
            let declared = source.lines().zip(source.lines().skip(1)).any(|(attribute, line)| {
                attribute.trim() == "#[test]" && line.trim_start().starts_with(&format!("fn {function}("))
            });
            assert!(declared, "row {number}: {file} has no test {function}");
        }
    }
    assert_eq!(numbers, (1..=35).collect::<Vec<_>>());
}
