// SPDX-License-Identifier: MIT OR Apache-2.0

//! Licences out of Debian's machine-readable copyright files
//! (<https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/>). What is not simple is left out: a wrong
//! licence is worse than none.

use std::collections::BTreeSet;

use crate::inputs::deb::control::{field, paragraphs};

/// The format that is understood, whatever the address it is named by begins with.
const FORMAT: &str = "copyright-format/1.0";

/// Short names of the licences of a package's files, as its copyright file has them; none if it is not in that format,
/// or says of some files no licence by a short name.
pub(super) fn licenses(text: &str) -> Vec<String> {
    let mut names = BTreeSet::new();
    let mut paragraphs = paragraphs(text);
    let is_machine_readable = |header: &str| field(header, "Format").is_some_and(|format| format.contains(FORMAT));
    if !paragraphs.next().is_some_and(is_machine_readable) {
        return Vec::new();
    }
    // Paragraphs without `Files` are texts of licences that the others name.
    for paragraph in paragraphs.filter(|paragraph| field(paragraph, "Files").is_some()) {
        // The first line is the short name; what follows is the text.
        let license = field(paragraph, "License").unwrap_or_default();
        let name = license.lines().next().unwrap_or_default().trim();
        if !is_short_name(name) {
            return Vec::new();
        }
        names.insert(name.to_owned());
    }
    names.into_iter().collect()
}

/// Names of licences, perhaps joined by "or", "and" and "with".
fn is_short_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || " .,+-_/()'\"".contains(c);
    !text.is_empty() && text.len() <= 200 && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str =
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: x\n";

    #[test]
    fn short_names_of_all_files_are_taken() {
        let text = format!(
            "{HEADER}\nFiles: *\nCopyright: 2020 A\nLicense: GPL-2+ or Artistic\n\nFiles: debian/*\nCopyright: 2021 B\n\
             License: Expat\n Permission is hereby granted\n .\n and so on\n\nFiles: b c\nCopyright: C\nLicense: Expat\n\n\
             License: GPL-2+\n On Debian systems: see /usr/share/common-licenses/GPL-2\n"
        );
        assert_eq!(licenses(&text), ["Expat", "GPL-2+ or Artistic"]);
    }

    #[test]
    fn what_is_not_simple_is_left_out() {
        for text in [
            "",
            "This is Debian's package of bash.\n\nLicense: GPL\n",
            "Format: http://dep.debian.net/deps/dep5\n\nFiles: *\nLicense: Expat\n",
            &format!("{HEADER}\nFiles: *\nCopyright: A\n"),
            &format!("{HEADER}\nFiles: *\nLicense:\n Do what you want.\n"),
            &format!("{HEADER}\nFiles: *\nLicense: Expat\n\nFiles: a\nLicense: see the file; it is long\n"),
            HEADER,
        ] {
            assert_eq!(licenses(text), [""; 0], "{text}");
        }
    }
}
