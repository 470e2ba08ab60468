// SPDX-License-Identifier: MIT OR Apache-2.0

//! Unified diffs, as a Debian source package carries them (`debian/patches`, format "3.0 (quilt)").
//!
//! Owns parsing a diff and applying it to the bytes of a file. A hunk may have moved, since patches before it may have
//! added lines; it never matches loosely, which is also what `dpkg-source` insists on ("no fuzz"). Knows nothing of
//! Kubernetes, Go or where files are.

use thiserror::Error;

/// Why a diff could not be read or applied.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PatchError {
    /// The diff itself is malformed.
    #[error("line {line}: {problem}")]
    Malformed {
        /// Line of the diff, from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file does not contain what the hunk expects.
    #[error("hunk {hunk} of {path} does not match the file")]
    Mismatch {
        /// File the hunk is for.
        path: String,
        /// Number of the hunk in its file, from 1.
        hunk: usize,
    },
    /// The diff changes or removes a file that does not exist, or creates one that does.
    #[error("{path} {}", if *.expected { "does not exist" } else { "exists already" })]
    Existence {
        /// File the diff is for.
        path: String,
        /// Whether the diff expects it to exist.
        expected: bool,
    },
}

/// The changes of one diff to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePatch {
    /// Path below the top of the tree (the diff's, without its first component, as `patch -p1`).
    pub path: String,
    creates: bool,
    removes: bool,
    hunks: Vec<Hunk>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hunk {
    /// Where the old lines are, from 0.
    start: usize,
    old: Vec<Vec<u8>>,
    new: Vec<Vec<u8>>,
}

impl FilePatch {
    /// Gives the file's new content, or `None` if the diff removes it. `old` is `None` where there is no such file.
    ///
    /// # Errors
    /// If a hunk does not match the file exactly, wherever in it, or the file's existence is not what the diff expects.
    pub fn apply(&self, old: Option<&[u8]>) -> Result<Option<Vec<u8>>, PatchError> {
        if old.is_some() == self.creates {
            return Err(PatchError::Existence { path: self.path.clone(), expected: !self.creates });
        }
        let old = lines(old.unwrap_or_default());
        let mut new: Vec<&[u8]> = Vec::with_capacity(old.len());
        let mut taken = 0;
        let mut offset = 0;
        for (index, hunk) in self.hunks.iter().enumerate() {
            let at = hunk
                .find(&old, taken, offset)
                .ok_or_else(|| PatchError::Mismatch { path: self.path.clone(), hunk: index + 1 })?;
            new.extend(&old[taken..at]);
            new.extend(hunk.new.iter().map(Vec::as_slice));
            taken = at + hunk.old.len();
            offset = at as isize - hunk.start as isize;
        }
        new.extend(&old[taken..]);
        if !self.removes {
            return Ok(Some(new.concat()));
        }
        if new.is_empty() {
            Ok(None)
        } else {
            Err(PatchError::Mismatch { path: self.path.clone(), hunk: self.hunks.len() })
        }
    }
}

impl Hunk {
    /// Finds the hunk's old lines at or after `from`, as near as possible to where the diff and the drift of the hunk
    /// before it say.
    fn find(&self, lines: &[&[u8]], from: usize, offset: isize) -> Option<usize> {
        let expected = self.start.saturating_add_signed(offset);
        let last = lines.len().checked_sub(self.old.len())?;
        (from..=last)
            .filter(|at| lines[*at..at + self.old.len()].iter().zip(&self.old).all(|(have, want)| have == want))
            .min_by_key(|at| at.abs_diff(expected))
    }
}

/// Reads a diff. Text around the file sections (a commit message, `diff --git` and `index` lines) is skipped.
///
/// # Errors
/// If a file section has no hunk, a hunk is cut short, or a path leads out of the tree.
pub fn parse(diff: &[u8]) -> Result<Vec<FilePatch>, PatchError> {
    let mut reader = Reader { lines: lines(diff), next: 0 };
    let mut files = Vec::new();
    while let Some(line) = reader.take() {
        let Some(old) = line.strip_prefix(b"--- ") else { continue };
        // Without its partner this is text: a message may have such a line.
        let Some(new) = reader.peek().and_then(|line| line.strip_prefix(b"+++ ")) else { continue };
        let (old, new) = (reader.path(old)?, reader.path(new)?);
        reader.next += 1;
        let path = new.clone().or(old.clone()).ok_or(reader.malformed("both sides are /dev/null"))?;
        let mut hunks = Vec::new();
        while reader.peek().is_some_and(|line| line.starts_with(b"@@ ")) {
            hunks.push(reader.hunk()?);
        }
        if hunks.is_empty() {
            return Err(reader.malformed("file section without a hunk"));
        }
        files.push(FilePatch { path, creates: old.is_none(), removes: new.is_none(), hunks });
    }
    Ok(files)
}

/// Splits into lines that keep their newline: joined again they are the same bytes.
fn lines(content: &[u8]) -> Vec<&[u8]> {
    content.split_inclusive(|byte| *byte == b'\n').collect()
}

struct Reader<'a> {
    lines: Vec<&'a [u8]>,
    next: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&'a [u8]> {
        self.lines.get(self.next).copied()
    }

    fn take(&mut self) -> Option<&'a [u8]> {
        let line = self.peek()?;
        self.next += 1;
        Some(line)
    }

    fn malformed(&self, problem: &'static str) -> PatchError {
        PatchError::Malformed { line: self.next, problem }
    }

    /// The path of a `---` or `+++` line without its first component, or `None` for `/dev/null`.
    fn path(&self, field: &[u8]) -> Result<Option<String>, PatchError> {
        let end = field.iter().position(|byte| matches!(byte, b'\t' | b'\n' | b'\r')).unwrap_or(field.len());
        let path = std::str::from_utf8(&field[..end]).map_err(|_| self.malformed("path is not UTF-8"))?;
        if path == "/dev/null" {
            return Ok(None);
        }
        let (_, path) = path.split_once('/').ok_or(self.malformed("path has no first component to strip"))?;
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(self.malformed("path is not a plain relative one"));
        }
        Ok(Some(path.to_owned()))
    }

    fn hunk(&mut self) -> Result<Hunk, PatchError> {
        let header = self.take().unwrap_or_default();
        let (start, mut old_count, mut new_count) =
            ranges(header).ok_or(self.malformed("hunk header is not '@@ -start,count +start,count @@'"))?;
        // An empty range names the line after which it is, any other its first line.
        let mut hunk =
            Hunk { start: if old_count == 0 { start } else { start.saturating_sub(1) }, old: vec![], new: vec![] };
        while old_count > 0 || new_count > 0 {
            let line = self.take().ok_or(self.malformed("hunk is cut short"))?;
            let (mark, text) = match line.split_first() {
                // An editor may have stripped the blank of an empty context line.
                Some((b'\n', _)) => (b' ', line),
                Some((mark, text)) => (*mark, text),
                None => return Err(self.malformed("hunk is cut short")),
            };
            let mut text = text.to_vec();
            if self.peek().is_some_and(|line| line.starts_with(b"\\ ")) {
                self.next += 1;
                text.pop_if(|byte| *byte == b'\n');
            }
            if matches!(mark, b' ' | b'-') {
                old_count = old_count.checked_sub(1).ok_or(self.malformed("hunk has more old lines than it says"))?;
                hunk.old.push(text.clone());
            }
            if matches!(mark, b' ' | b'+') {
                new_count = new_count.checked_sub(1).ok_or(self.malformed("hunk has more new lines than it says"))?;
                hunk.new.push(text);
            } else if mark != b'-' {
                return Err(self.malformed("hunk line starts with none of ' ', '+', '-'"));
            }
        }
        Ok(hunk)
    }
}

/// Reads `@@ -start[,count] +start[,count] @@`: old start, old count, new count.
fn ranges(header: &[u8]) -> Option<(usize, usize, usize)> {
    let header = std::str::from_utf8(header).ok()?;
    let mut fields = header.strip_prefix("@@ -")?.split(' ');
    let (start, old) = range(fields.next()?)?;
    let (_, new) = range(fields.next()?.strip_prefix('+')?)?;
    fields.next()?.starts_with("@@").then_some((start, old, new))
}

fn range(text: &str) -> Option<(usize, usize)> {
    match text.split_once(',') {
        Some((start, count)) => Some((start.parse().ok()?, count.parse().ok()?)),
        None => Some((text.parse().ok()?, 1)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHANGE: &[u8] = b"A message with\n--- a rule\n\ndiff --git a/f b/f\nindex 1..2\n--- a/f\n+++ b/f\n@@ -1,3 +1,4 @@ func\n one\n-two\n+TWO\n+and a half\n three\n--\n2.30\n";

    fn apply(diff: &[u8], old: Option<&[u8]>) -> Result<Option<Vec<u8>>, PatchError> {
        parse(diff)?.first().expect("one file").apply(old)
    }

    #[test]
    fn changes_a_file_even_where_it_moved() {
        let new = apply(CHANGE, Some(b"one\ntwo\nthree\n")).unwrap().unwrap();
        assert_eq!(new, b"one\nTWO\nand a half\nthree\n");
        let new = apply(CHANGE, Some(b"zero\none\ntwo\nthree\nfour\n")).unwrap().unwrap();
        assert_eq!(new, b"zero\none\nTWO\nand a half\nthree\nfour\n");
    }

    #[test]
    fn refuses_what_does_not_match() {
        let mismatch = PatchError::Mismatch { path: "f".into(), hunk: 1 };
        assert_eq!(apply(CHANGE, Some(b"one\n2\nthree\n")), Err(mismatch));
        assert_eq!(apply(CHANGE, None), Err(PatchError::Existence { path: "f".into(), expected: true }));
        assert_eq!(apply(CHANGE, None).unwrap_err().to_string(), "f does not exist");
    }

    #[test]
    fn creates_and_removes() {
        let create = b"--- /dev/null\n+++ b/d/new\n@@ -0,0 +1,2 @@\n+a\n+b\n\\ No newline at end of file\n";
        assert_eq!(apply(create, None).unwrap().unwrap(), b"a\nb");
        assert_eq!(apply(create, Some(b"")), Err(PatchError::Existence { path: "d/new".into(), expected: false }));
        let remove = b"--- a/d/old\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n";
        assert_eq!(apply(remove, Some(b"a\n")), Ok(None));
        assert!(apply(remove, Some(b"a\nb\n")).is_err());
    }

    #[test]
    fn nearest_of_several_matches_wins() {
        let insert = b"--- a/f\n+++ b/f\n@@ -3 +3,2 @@\n x\n+y\n";
        assert_eq!(apply(insert, Some(b"x\n1\nx\n2\nx\n")).unwrap().unwrap(), b"x\n1\nx\ny\n2\nx\n");
    }

    #[test]
    fn refuses_malformed_diffs() {
        for (diff, problem) in [
            (&b"--- a/f\n+++ b/../f\n@@ -1 +1 @@\n-a\n+b\n"[..], "path is not a plain relative one"),
            (b"--- a/f\n+++ b//etc/f\n@@ -1 +1 @@\n-a\n+b\n", "path is not a plain relative one"),
            (b"--- f\n+++ f\n@@ -1 +1 @@\n-a\n+b\n", "path has no first component to strip"),
            (b"--- a/f\n+++ b/f\nnothing\n", "file section without a hunk"),
            (b"--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n", "hunk is cut short"),
            (b"--- a/f\n+++ b/f\n@@ -1 +1 @@\n*a\n", "hunk line starts with none of ' ', '+', '-'"),
            (b"--- a/f\n+++ b/f\n@@ -1 +x @@\n-a\n", "hunk header is not '@@ -start,count +start,count @@'"),
        ] {
            let Err(PatchError::Malformed { problem: found, .. }) = parse(diff) else { panic!("{problem}: accepted") };
            assert_eq!(found, problem);
        }
    }

    /// Lines from a small alphabet, so that hunks have several places where they would match.
    fn text() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("[ab]{0,1}", 1..20)
    }

    proptest! {
        #[test]
        fn never_panics(diff in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&diff);
            let mut with_header = b"--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n".to_vec();
            with_header.extend(&diff);
            for file in parse(&with_header).unwrap_or_default() {
                let _ = file.apply(Some(&diff));
            }
        }

        #[test]
        fn replacing_a_range_gives_the_new_text(old in text(), new in text(), cut in any::<(prop::sample::Index, prop::sample::Index)>()) {
            // One hunk with the whole file as context around one replaced range.
            let (a, b) = (cut.0.index(old.len() + 1), cut.1.index(old.len() + 1));
            let (from, to) = (a.min(b), a.max(b));
            let count = old.len() - (to - from) + new.len();
            let mut diff = format!("--- a/f\n+++ b/f\n@@ -1,{} +1,{count} @@\n", old.len());
            let mut expected = String::new();
            for line in &old[..from] { diff += &format!(" {line}\n"); expected += &format!("{line}\n"); }
            for line in &old[from..to] { diff += &format!("-{line}\n"); }
            for line in &new { diff += &format!("+{line}\n"); expected += &format!("{line}\n"); }
            for line in &old[to..] { diff += &format!(" {line}\n"); expected += &format!("{line}\n"); }
            let content: String = old.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(apply(diff.as_bytes(), Some(content.as_bytes())).unwrap().unwrap(), expected.into_bytes());
        }
    }
}
