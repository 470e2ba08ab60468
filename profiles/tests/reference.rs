// SPDX-License-Identifier: MIT OR Apache-2.0
//! docs/cluster-file.md says what the doc comments of the schema say, and the schema documents what the decoder reads.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

const SCHEMA: &str = include_str!("../src/schema.rs");
const DECODER: &str = concat!(include_str!("../src/sections.rs"), include_str!("../src/addons.rs"));
const REFERENCE: &str = include_str!("../../docs/cluster-file.md");
const MARKER: &str = " cargo test -p profiles --test reference -->\n";

struct Section {
    place: String,
    purpose: String,
    /// Rows of the table: a key with its documentation, or a variant's documentation alone.
    rows: Vec<(Option<String>, String)>,
}

/// The types of the schema that say with `TOML:` where they stand in a file.
fn sections() -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let (mut doc, mut open) = (Vec::new(), false);
    for line in SCHEMA.lines() {
        let code = line.trim();
        if let Some(text) = code.strip_prefix("///") {
            doc.push(text.trim());
            continue;
        }
        if code.starts_with("pub struct") || code.starts_with("pub enum") {
            if let Some(place) = doc.iter().find_map(|line| line.strip_prefix("TOML: ")) {
                let purpose: Vec<&str> = doc.iter().take_while(|line| !line.is_empty()).copied().collect();
                sections.push(Section { place: place.to_owned(), purpose: purpose.join(" "), rows: Vec::new() });
                open = true;
            }
        } else if line == "}" {
            open = false;
        } else if let Some(section) = sections.last_mut().filter(|_| open && !doc.is_empty()) {
            let name = code.trim_start_matches("pub ").split(':').next().unwrap_or_default();
            // A field whose keys another section explains is no key itself.
            let refers = doc.first().is_some_and(|line: &&str| line.starts_with("The keys "));
            let is_key = !refers
                && code.contains(": ")
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            section.rows.push((is_key.then(|| name.to_owned()), doc.join(" ")));
        }
        if !code.starts_with("#[") {
            doc.clear();
        }
    }
    sections
}

fn generated() -> String {
    let mut text = String::new();
    for section in sections() {
        text += &format!("\n## {}\n{}\n\n| key | |\n|---|---|\n", section.place, section.purpose);
        for (key, doc) in section.rows {
            let doc = doc.replace("Required.", "**Required.**");
            match key {
                Some(key) => text += &format!("| `{key}` | {doc} |\n"),
                None => text += &format!("| | {doc} |\n"),
            }
        }
    }
    text
}

#[test]
fn the_reference_is_up_to_date() {
    let (intro, rest) = REFERENCE.split_once(MARKER).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cluster-file.md");
        std::fs::write(path, format!("{intro}{MARKER}{}", generated())).unwrap();
    } else {
        assert!(rest == generated(), "run UPDATE_DOCS=1 cargo test -p profiles --test reference");
    }
}

#[test]
fn every_key_says_whether_it_is_required() {
    for section in sections() {
        for (key, doc) in section.rows {
            let Some(key) = key else { continue };
            let starts = doc.starts_with("Required. ") || doc.starts_with("Optional, default ");
            assert!(starts, "{} {key}: {doc}", section.place);
        }
    }
}

#[test]
fn every_key_the_decoder_reads_is_documented_and_the_other_way_round() {
    let documented: BTreeSet<String> =
        sections().into_iter().flat_map(|section| section.rows).filter_map(|(key, _)| key).collect();
    let calls = ["required(\"", "optional(\"", "with_default(\"", "section(\"", "tables(\""];
    let mut read: BTreeSet<String> = calls
        .iter()
        .flat_map(|call| DECODER.split(call).skip(1))
        .map(|rest| rest.split('"').next().unwrap_or_default().to_owned())
        .collect();
    // Told apart by variants, not fields.
    assert!(read.remove("kind"));
    assert_eq!(read, documented);
}
