// SPDX-License-Identifier: MIT OR Apache-2.0

//! The deb822 format of control files, `Packages`, `Sources` and `Release`: paragraphs of fields.
//! Format: deb822(5). Borrows from the text: an archive's index is some 60 000 paragraphs.

use std::borrow::Cow;

/// The paragraphs of a file, as text. Comment lines are left in; [`fields`] skips them.
pub fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        // Blank lines may hold spaces (deb822(5)); indices never do, so the fast search covers nearly all.
        rest = rest.trim_start_matches(['\n', '\r']);
        if rest.is_empty() {
            return None;
        }
        let end = end_of_paragraph(rest);
        let (paragraph, tail) = rest.split_at(end);
        rest = tail;
        Some(paragraph)
    })
    .filter(|paragraph| !paragraph.trim().is_empty())
}

fn end_of_paragraph(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(newline) = bytes[at..].iter().position(|b| *b == b'\n') {
        at += newline + 1;
        let line = bytes[at..].split(|b| *b == b'\n').next().unwrap_or_default();
        if line.iter().all(|b| matches!(b, b' ' | b'\t' | b'\r')) {
            return at;
        }
    }
    text.len()
}

/// The fields of a paragraph in order: name and value. Continuation lines are joined with line ends; their first
/// blank is removed.
pub fn fields(paragraph: &str) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
    let mut lines = paragraph.lines().filter(|line| !line.starts_with('#')).peekable();
    std::iter::from_fn(move || {
        loop {
            let line = lines.next()?;
            let Some((name, value)) = line.split_once(':') else { continue };
            if name.starts_with([' ', '\t']) {
                continue;
            }
            let mut value = Cow::Borrowed(value.trim());
            while let Some(more) = lines.next_if(|line| line.starts_with([' ', '\t'])) {
                let value = value.to_mut();
                value.push('\n');
                value.push_str(more[1..].trim_end());
            }
            return Some((name.trim_end(), value));
        }
    })
}

/// One field of a paragraph; names are compared without regard to case.
pub fn field<'a>(paragraph: &'a str, name: &str) -> Option<Cow<'a, str>> {
    fields(paragraph).find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paragraphs_and_fields() {
        let text = "# comment\nA: 1\nB:\n x\n  y\n# comment\n z\n\n \nC: 2\r\n\n\n";
        let found: Vec<Vec<(String, String)>> = paragraphs(text)
            .map(|paragraph| fields(paragraph).map(|(name, value)| (name.to_owned(), value.into_owned())).collect())
            .collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(found, [vec![pair("A", "1"), pair("B", "\nx\n y\nz")], vec![pair("C", "2")]]);
        assert_eq!(field("a: 1\nVersion: 2", "version").as_deref(), Some("2"));
    }

    proptest! {
        #[test]
        fn it_never_panics(text in "([A-Z]:| |\n|#|\\PC){0,30}") {
            for paragraph in paragraphs(&text) {
                fields(paragraph).count();
            }
        }
    }
}
