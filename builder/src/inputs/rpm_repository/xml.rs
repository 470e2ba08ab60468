// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pulls the parts of an XML document, with bounds on what one part and the whole may take: indices come from strangers. Knows
//! nothing of what the document means.

use std::io::{self, BufRead, Read};

use anyhow::{Context, Result, bail, ensure};
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

/// No tag and no text of a package list is near this: the longest are descriptions of some KiB.
const LONGEST_PART: u64 = 1 << 20;

/// Metadata, package, format, list, entry are five.
const DEEPEST: usize = 32;

/// A document being read.
pub(super) struct Xml<R> {
    reader: Reader<Bounded<R>>,
    buffer: Vec<u8>,
    depth: usize,
}

/// A part of a document.
pub(super) enum Part {
    /// An element begins.
    Open(Tag),
    /// An element ends. Every [`Part::Open`] has one.
    Close,
    /// Text in an element; may come in pieces.
    Text(String),
}

/// The beginning of an element.
pub(super) struct Tag(BytesStart<'static>);

impl Tag {
    /// Its name, without a namespace's prefix.
    pub(super) fn name(&self) -> &str {
        self.0.local_name().into_inner()
    }

    /// An attribute, by the name it is written with.
    pub(super) fn attribute(&self, name: &str) -> Result<Option<String>> {
        let Some(found) = self.0.try_get_attribute(name)? else { return Ok(None) };
        Ok(Some(found.normalized_value(XmlVersion::Implicit1_0)?.into_owned()))
    }
}

impl<R: BufRead> Xml<R> {
    /// A document of at most `limit` bytes.
    pub(super) fn new(inner: R, limit: u64) -> Self {
        let mut reader = Reader::from_reader(Bounded { inner, part: 0, whole: limit });
        reader.config_mut().expand_empty_elements = true;
        Self { reader, buffer: Vec::new(), depth: 0 }
    }

    /// The next part; `None` at the end of the document.
    ///
    /// # Errors
    /// What is no XML, ends early, defines entities, or goes beyond a bound.
    pub(super) fn pull(&mut self) -> Result<Option<Part>> {
        loop {
            self.buffer.clear();
            self.reader.get_mut().part = LONGEST_PART;
            let event = self.reader.read_event_into(&mut self.buffer).map(Event::into_owned);
            let at = self.reader.buffer_position();
            match event.with_context(|| format!("reading XML, byte {at}"))? {
                Event::Start(tag) => {
                    self.depth += 1;
                    ensure!(self.depth <= DEEPEST, "elements in more than {DEEPEST} others, byte {at}");
                    return Ok(Some(Part::Open(Tag(tag))));
                }
                Event::End(_) => {
                    self.depth -= 1;
                    return Ok(Some(Part::Close));
                }
                Event::Text(text) => return Ok(Some(Part::Text(text.xml10_content().into_owned()))),
                Event::CData(text) => return Ok(Some(Part::Text(text.xml10_content().into_owned()))),
                Event::GeneralRef(reference) => {
                    let own = match reference.resolve_char_ref()? {
                        Some(character) => Some(character.to_string()),
                        None => {
                            quick_xml::escape::resolve_predefined_entity(&reference.xml10_content()).map(str::to_owned)
                        }
                    };
                    return Ok(Some(Part::Text(
                        own.with_context(|| format!("an entity that XML has not, byte {at}"))?,
                    )));
                }
                Event::DocType(_) => bail!("it has a document type, as no index has"),
                Event::Eof => {
                    ensure!(self.depth == 0, "it ends in an element, byte {at}");
                    return Ok(None);
                }
                Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
    }
}

/// A reader that fails once a part, or the whole, is longer than it may be.
struct Bounded<R> {
    inner: R,
    /// Bytes that the part under way may still have.
    part: u64,
    /// Bytes that the document may still have.
    whole: u64,
}

impl<R: BufRead> BufRead for Bounded<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let left = self.part.min(self.whole);
        let buffer = self.inner.fill_buf()?;
        if left == 0 && !buffer.is_empty() {
            let what = if self.whole == 0 { "it is too long" } else { "a tag or text in it is too long" };
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(&buffer[..buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX))])
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.part -= amount as u64;
        self.whole -= amount as u64;
    }
}

impl<R: BufRead> Read for Bounded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut buffer = self.fill_buf()?;
        let read = buffer.read(out)?;
        self.consume(read);
        Ok(read)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// One line for each part: a tag with its attribute `a`, a text, or `/`.
    fn parts(text: &str, limit: u64) -> Result<Vec<String>> {
        let mut xml = Xml::new(text.as_bytes(), limit);
        let mut out = Vec::new();
        while let Some(part) = xml.pull()? {
            out.push(match part {
                Part::Open(tag) => format!("<{} {}>", tag.name(), tag.attribute("a")?.unwrap_or_default()),
                Part::Close => "/".to_owned(),
                Part::Text(text) => text,
            });
        }
        Ok(out)
    }

    #[test]
    fn tags_attributes_and_text() {
        let text = "<?xml version=\"1.0\"?><!-- c --><x:t a=\"&lt;1&#x3e;\" b=''><e a='&amp;'/>q&amp;&#65;<![CDATA[<]]></x:t>\n";
        assert_eq!(parts(text, 1000).unwrap().join("|"), "<t <1>>|<e &>|/|q|&|A|<|/|\n");
    }

    #[test]
    fn what_is_no_good_document_is_refused() {
        let deep = "<a>".repeat(DEEPEST + 1);
        let long = format!("<a b='{}'/>", "x".repeat(LONGEST_PART as usize));
        let long_text = format!("<a>{}</a>", "x".repeat(LONGEST_PART as usize + 1));
        for (text, limit, problem) in [
            ("<a><b></b>", 1000, "it ends in an element"),
            ("<a></b>", 1000, "reading XML"),
            ("<a><b", 1000, "reading XML"),
            ("<a>&x;</a>", 1000, "an entity that XML has not"),
            ("<!DOCTYPE a [<!ENTITY x \"y\">]><a/>", 1000, "it has a document type"),
            (deep.as_str(), 1000, "more than 32 others"),
            (long.as_str(), u64::MAX, "a tag or text in it is too long"),
            (long_text.as_str(), u64::MAX, "a tag or text in it is too long"),
            ("<a></a>", 6, "it is too long"),
        ] {
            let error = format!("{:#}", parts(text, limit).unwrap_err());
            assert!(error.contains(problem), "{problem}: {error}");
        }
        parts("<a></a>", 7).unwrap();
    }
}
