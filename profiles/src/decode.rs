// SPDX-License-Identifier: MIT OR Apache-2.0
//! An accumulating decoder over toml's spanned document: where serde stops at the first mistake, this one notes it,
//! goes on with a placeholder, and remembers where every key stands. Knows TOML, not clusters.
//!
//! A key whose value could not be read is *broken*: later checks may use its placeholder freely, because
//! [`Decoder::report`] drops every problem that involves a broken key.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Problem, Report};
use crate::text;

/// What stands in for a value that could not be read.
pub(crate) trait Placeholder {
    fn placeholder() -> Self;
}

/// A value with its place.
pub(crate) struct Item<'a> {
    pub(crate) value: &'a DeValue<'a>,
    span: Range<usize>,
    key: String,
}

/// Collects problems and the places of keys.
pub(crate) struct Decoder {
    problems: Vec<Problem>,
    spans: BTreeMap<String, Range<usize>>,
    broken: BTreeSet<String>,
    /// Lines that the TOML parser complained of: what it recovered from them means nothing.
    syntax_lines: Vec<Range<usize>>,
}

/// Reads one table key by key.
pub(crate) struct Table<'d, 'a> {
    decoder: &'d mut Decoder,
    entries: Option<&'a DeTable<'a>>,
    key: String,
    known: Vec<&'static str>,
    /// Required keys that are absent, and what to say of them.
    missing: Vec<(&'static str, String)>,
    abandoned: bool,
}

/// Reads `text` with `read`. The problems go through [`Decoder::into_report`].
pub(crate) fn document<T>(text: &str, read: impl FnOnce(&mut Table<'_, '_>) -> T) -> (T, Decoder) {
    let mut decoder =
        Decoder { problems: Vec::new(), spans: BTreeMap::new(), broken: BTreeSet::new(), syntax_lines: Vec::new() };
    let (root, errors) = DeTable::parse_recoverable(text);
    decoder.syntax(text, errors);
    decoder.spans.insert(String::new(), 0..0);
    let mut table = Table::new(&mut decoder, Some(root.get_ref()), String::new());
    let value = read(&mut table);
    table.finish();
    (value, decoder)
}

impl Decoder {
    fn syntax(&mut self, text: &str, errors: Vec<toml::de::Error>) {
        for error in errors {
            let span = error.span().unwrap_or(text.len()..text.len());
            let start = text.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
            let end = text.get(span.end..).and_then(|after| after.find('\n')).map_or(text.len(), |at| span.end + at);
            // A parser that lost its way complains several times about the same line; the first time tells.
            if self.syntax_lines.contains(&(start..end)) {
                continue;
            }
            self.syntax_lines.push(start..end);
            let what = format!("this is not TOML: {}", error.message());
            self.problems.push(Problem { span, key: String::new(), what, why: String::new(), fix: String::new() });
        }
    }

    /// Whether the text is TOML at all. If not, keys may seem missing that are only unreadable.
    pub(crate) fn is_toml(&self) -> bool {
        self.syntax_lines.is_empty()
    }

    /// Notes a problem of `keys`; it is shown at the first one. Ignored when one of them is broken.
    pub(crate) fn report(
        &mut self,
        keys: &[&str],
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let key = keys.first().copied().unwrap_or("");
        if keys.iter().any(|key| self.is_broken(key)) {
            return;
        }
        let span = self.span(key);
        self.push(span, key, what.into(), why.into(), fix.into());
    }

    /// The report, if anything is wrong.
    pub(crate) fn into_report(self, file: &str, text: &str) -> Option<Report> {
        if self.problems.is_empty() { None } else { Some(Report::new(file, text, self.problems)) }
    }

    fn push(&mut self, span: Range<usize>, key: &str, what: String, why: String, fix: String) {
        // What the parser made up to go on has no place at all.
        let unreadable = !self.is_toml() && span.is_empty()
            || self.syntax_lines.iter().any(|line| line.start <= span.start && span.start <= line.end);
        if !unreadable {
            self.problems.push(Problem { span, key: key.to_owned(), what, why, fix });
        }
    }

    /// A key is broken when it, something it is in, or something in it is.
    fn is_broken(&self, key: &str) -> bool {
        self.is_in_broken(key) || self.broken.iter().any(|broken| is_inside(key, broken))
    }

    fn is_in_broken(&self, key: &str) -> bool {
        self.broken.iter().any(|broken| is_inside(broken, key))
    }

    /// Where `key` stands, or else the nearest table around it that is there.
    fn span(&self, key: &str) -> Range<usize> {
        let mut key = key;
        loop {
            if let Some(span) = self.spans.get(key) {
                return span.clone();
            }
            key = key.rfind(['.', '[']).map_or("", |at| &key[..at]);
            if key.is_empty() {
                return 0..0;
            }
        }
    }

    /// Notes that `item` cannot be used.
    pub(crate) fn bad<T>(&mut self, item: &Item<'_>, what: impl Into<String>, fix: impl Into<String>) -> Option<T> {
        self.broken.insert(item.key.clone());
        self.push(item.span.clone(), &item.key, what.into(), String::new(), fix.into());
        None
    }

    fn wrong_type<T>(&mut self, item: &Item<'_>, wanted: &str, example: &str) -> Option<T> {
        let what = format!("`{}` must be {wanted}, this is {}", item.key, type_name(item.value));
        self.bad(item, what, example)
    }
}

impl<'a> Item<'a> {
    pub(crate) fn key(&self) -> &str {
        &self.key
    }
}

impl<'d, 'a> Table<'d, 'a> {
    fn new(decoder: &'d mut Decoder, entries: Option<&'a DeTable<'a>>, key: String) -> Self {
        Self { decoder, entries, key, known: vec![], missing: vec![], abandoned: false }
    }

    fn path(&self, key: &str) -> String {
        if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) }
    }

    /// Nothing more can be said of this table: what its keys mean depends on one that is broken.
    pub(crate) fn abandon(&mut self) {
        self.abandoned = true;
        self.entries = None;
    }

    fn place(&self) -> String {
        if self.key.is_empty() { "the file".to_owned() } else { format!("`{}`", self.key) }
    }

    /// Whether the file says anything of `key`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    fn take(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.known.push(key);
        let value: &'a Spanned<DeValue<'a>> = self.entries?.get(key)?;
        let item = Item { value: value.get_ref(), span: value.span(), key: self.path(key) };
        self.decoder.spans.insert(item.key.clone(), item.span.clone());
        Some(item)
    }

    /// A value that must be there.
    pub(crate) fn required<T: Placeholder>(
        &mut self,
        key: &'static str,
        decode: impl FnOnce(&mut Decoder, &Item<'a>) -> Option<T>,
    ) -> T {
        match self.take(key) {
            Some(item) => decode(self.decoder, &item).unwrap_or_else(T::placeholder),
            None => {
                self.missing.push((key, format!("{} has no `{key}`, which is required", self.place())));
                T::placeholder()
            }
        }
    }

    /// A value that may be absent.
    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        decode: impl FnOnce(&mut Decoder, &Item<'a>) -> Option<T>,
    ) -> Option<T> {
        let item = self.take(key)?;
        decode(self.decoder, &item)
    }

    /// A value with a default.
    pub(crate) fn with_default<T>(
        &mut self,
        key: &'static str,
        default: T,
        decode: impl FnOnce(&mut Decoder, &Item<'a>) -> Option<T>,
    ) -> T {
        self.optional(key, decode).unwrap_or(default)
    }

    /// A table that must be there.
    pub(crate) fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'_, 'a>) -> T) -> T {
        let item = self.take(key);
        if item.is_none() {
            self.missing.push((key, format!("the table `[{}]` is missing, which is required", self.path(key))));
            self.decoder.broken.insert(self.path(key));
        }
        self.subtable(key, item, read)
    }

    /// A table whose keys all have defaults, and which may be absent altogether.
    pub(crate) fn optional_section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'_, 'a>) -> T) -> T {
        let item = self.take(key);
        self.subtable(key, item, read)
    }

    fn subtable<T>(&mut self, key: &str, item: Option<Item<'a>>, read: impl FnOnce(&mut Table<'_, 'a>) -> T) -> T {
        let path = self.path(key);
        let entries = item.and_then(|item| match item.value {
            DeValue::Table(table) => Some(table),
            _ => self.decoder.wrong_type(&item, "a table", &format!("write it as `[{path}]`")),
        });
        let mut table = Table::new(self.decoder, entries, path);
        let value = read(&mut table);
        table.finish();
        value
    }

    /// An array of tables, `[[key]]`.
    pub(crate) fn tables<T>(&mut self, key: &'static str, read: impl Fn(&mut Table<'_, 'a>) -> T) -> Vec<T> {
        let Some(item) = self.take(key) else { return Vec::new() };
        let DeValue::Array(elements) = item.value else {
            self.decoder.wrong_type::<()>(&item, "an array of tables", &format!("write each as `[[{key}]]`"));
            return Vec::new();
        };
        let mut values = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let path = format!("{}[{index}]", item.key);
            self.decoder.spans.insert(path.clone(), element.span());
            let element = Item { value: element.get_ref(), span: element.span(), key: path };
            let entries = match element.value {
                DeValue::Table(entries) => Some(entries),
                _ => self.decoder.wrong_type(&element, "a table", &format!("write it as `[[{key}]]`")),
            };
            let mut table = Table::new(self.decoder, entries, element.key);
            values.push(read(&mut table));
            table.finish();
        }
        values
    }

    /// Complains of keys nobody asked for and of those that are missing.
    fn finish(mut self) {
        for key in self.entries.into_iter().flat_map(DeTable::keys) {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let fix = match text::closest(name, &self.known) {
                Some(near) => {
                    // The key that was meant is there under another name: its absence is no news.
                    self.decoder.broken.insert(self.path(near));
                    self.missing.retain(|(key, _)| *key != near);
                    format!("did you mean `{near}`?")
                }
                None => format!("the keys here are {}", text::list(&self.known)),
            };
            let what = format!("{} has no key `{name}`", self.place());
            self.decoder.push(key.span(), &self.path(name), what, String::new(), fix);
        }
        // In a table that is broken itself, and in a text that is not TOML, absence says nothing.
        let silent = !self.decoder.is_toml() || self.decoder.is_in_broken(&self.key);
        for (key, what) in std::mem::take(&mut self.missing) {
            let path = self.path(key);
            if !silent {
                self.decoder.push(self.decoder.span(&self.key), &path, what, String::new(), String::new());
            }
            self.decoder.broken.insert(path);
        }
        if self.abandoned {
            self.decoder.broken.insert(self.key);
        }
    }
}

fn is_inside(outer: &str, inner: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A string.
pub(crate) fn string(decoder: &mut Decoder, item: &Item<'_>) -> Option<String> {
    match item.value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        _ => decoder.wrong_type(item, "a string", "put it in double quotes"),
    }
}

pub(crate) fn boolean(decoder: &mut Decoder, item: &Item<'_>) -> Option<bool> {
    match item.value {
        DeValue::Boolean(value) => Some(*value),
        _ => decoder.wrong_type(item, "true or false", "write it without quotes"),
    }
}

/// A string that is not empty and has no control characters or surrounding blanks.
pub(crate) fn word(decoder: &mut Decoder, item: &Item<'_>) -> Option<String> {
    let text = string(decoder, item)?;
    if text.is_empty() || text.trim() != text || text.contains(char::is_control) {
        let what = format!("`{}` is empty, or has blanks around it or control characters in it", item.key);
        return decoder.bad(item, what, "");
    }
    Some(text)
}

/// An integer within bounds.
pub(crate) fn integer<T: TryFrom<u64>>(
    bounds: std::ops::RangeInclusive<u64>,
) -> impl Fn(&mut Decoder, &Item<'_>) -> Option<T> {
    move |decoder, item| {
        let DeValue::Integer(number) = item.value else {
            return decoder.wrong_type(item, "an integer", "write it without quotes");
        };
        let value = u64::from_str_radix(number.as_str(), number.radix()).ok().filter(|value| bounds.contains(value));
        match value.and_then(|value| T::try_from(value).ok()) {
            Some(value) => Some(value),
            None => {
                let what = format!("`{}` is {number}, out of bounds", item.key);
                decoder.bad(item, what, format!("choose {} to {}", bounds.start(), bounds.end()))
            }
        }
    }
}

/// A string that parses, such as an address; `example` is shown in the fix.
pub(crate) fn parsed<T: std::str::FromStr>(
    what: &'static str,
    example: &'static str,
) -> impl Fn(&mut Decoder, &Item<'_>) -> Option<T> {
    move |decoder, item| {
        let text = string(decoder, item)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(_) => {
                let what = format!("`{}` is \"{text}\", which is not {what}", item.key);
                decoder.bad(item, what, format!("write it like \"{example}\""))
            }
        }
    }
}

/// One of some words.
pub(crate) fn choice<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&mut Decoder, &Item<'_>) -> Option<T> {
    move |decoder, item| {
        let text = string(decoder, item)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let fix = match text::closest(&text, &names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("choose one of {}", text::list(&names)),
        };
        decoder.bad(item, format!("`{}` cannot be \"{text}\"", item.key), fix)
    }
}

/// An array, each element read with `decode`. Broken elements are left out.
pub(crate) fn array<'a, T>(
    decode: impl Fn(&mut Decoder, &Item<'a>) -> Option<T>,
) -> impl Fn(&mut Decoder, &Item<'a>) -> Option<Vec<T>> {
    move |decoder, item| {
        let DeValue::Array(elements) = item.value else {
            return decoder.wrong_type(item, "an array", "put it in [ ]");
        };
        let mut values = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let key = format!("{}[{index}]", item.key);
            decoder.spans.insert(key.clone(), element.span());
            values.extend(decode(decoder, &Item { value: element.get_ref(), span: element.span(), key }));
        }
        Some(values)
    }
}

/// A table of strings with free keys.
pub(crate) fn strings(decoder: &mut Decoder, item: &Item<'_>) -> Option<BTreeMap<String, String>> {
    entries("a table of strings", string)(decoder, item)
}

/// A table with free keys, which is to be `what`, each value read with `decode`. Broken values are left out.
pub(crate) fn entries<'a, T>(
    what: &'static str,
    decode: impl Fn(&mut Decoder, &Item<'a>) -> Option<T>,
) -> impl Fn(&mut Decoder, &Item<'a>) -> Option<BTreeMap<String, T>> {
    move |decoder, item| {
        let DeValue::Table(entries) = item.value else {
            return decoder.wrong_type(item, what, "write it as { \"name\" = \"value\" }");
        };
        let mut values = BTreeMap::new();
        for (name, value) in entries {
            let key = format!("{}.{}", item.key, name.get_ref());
            decoder.spans.insert(key.clone(), value.span());
            let value = decode(decoder, &Item { value: value.get_ref(), span: value.span(), key });
            values.extend(value.map(|value| (name.get_ref().clone().into_owned(), value)));
        }
        Some(values)
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
