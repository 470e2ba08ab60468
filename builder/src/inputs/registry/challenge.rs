// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a server asks for that answers 401: the header `WWW-Authenticate` (RFC 9110, section 11.6.1).

use std::collections::BTreeMap;

/// A way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case: `bearer`, `basic`.
    pub(super) scheme: String,
    /// By name in lower case.
    pub(super) parameters: BTreeMap<String, String>,
}

/// The challenges of one header line. What is malformed is left out.
pub(super) fn parse(mut text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        let (word, rest) = text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()));
        if word.is_empty() {
            // Nothing more, or a character that no name has.
            let mut rest = text.chars();
            if rest.next().is_none() {
                return found;
            }
            text = rest.as_str();
            continue;
        }
        text = rest;
        let Some(value) = rest.trim_start_matches([' ', '\t']).strip_prefix('=') else {
            found.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: BTreeMap::new() });
            continue;
        };
        let (value, rest) = value_of(value.trim_start_matches([' ', '\t']));
        text = rest;
        if let Some(challenge) = found.last_mut() {
            challenge.parameters.insert(word.to_ascii_lowercase(), value);
        }
    }
}

/// A value with or without quotes, and what comes after it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // Some servers leave the quotes away where the grammar wants them.
        let (value, rest) = text.split_at(text.find([',', ' ', '\t']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (value, chars.as_str())
}

/// `tchar` of RFC 9110.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// For tests/fuzz: what is read is read the same again once it is written by the grammar.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let found = parse(text);
    let written: Vec<String> = found.iter().map(written).collect();
    assert_eq!(parse(&written.join(", ")), found, "{text:?}");
}

/// A challenge as RFC 9110 has it.
#[cfg(fuzzing)]
fn written(challenge: &Challenge) -> String {
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
    let parameters = challenge.parameters.iter().map(|(name, value)| format!("{name}=\"{}\"", quoted(value)));
    format!("{} {}", challenge.scheme, parameters.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Challenge { scheme: scheme.to_owned(), parameters }
    }

    #[test]
    fn what_registries_say() {
        for (text, wanted) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                vec![challenge(
                    "bearer",
                    &[
                        ("realm", "https://auth.docker.io/token"),
                        ("service", "registry.docker.io"),
                        ("scope", "repository:library/busybox:pull"),
                    ],
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![challenge("basic", &[("realm", "Registry Realm")])]),
            ("BASIC", vec![challenge("basic", &[])]),
            (
                r#"Basic realm="a, \"b\"" , BEARER Realm = https://x/t,error="invalid_token""#,
                vec![
                    challenge("basic", &[("realm", "a, \"b\"")]),
                    challenge("bearer", &[("realm", "https://x/t"), ("error", "invalid_token")]),
                ],
            ),
            (r#"Bearer realm="unclosed"#, vec![challenge("bearer", &[("realm", "unclosed")])]),
            ("=,\"", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(\\PC|[\"\\\\=, ]){0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_by_the_grammar_is_read(
            scheme in "[a-z]{1,8}",
            parameters in proptest::collection::btree_map("[a-z_]{1,8}", "[ -~]{0,20}", 0..4),
        ) {
            let quote = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
            let list: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}=\"{}\"", quote(value))).collect();
            prop_assert_eq!(parse(&format!("{scheme} {}", list.join(", "))), [Challenge { scheme, parameters }]);
        }
    }
}
