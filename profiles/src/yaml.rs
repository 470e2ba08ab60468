// SPDX-License-Identifier: MIT OR Apache-2.0
//! YAML that Kubernetes reads as it was meant. Kubernetes parses YAML 1.1, where a bare `no`, `on` or `12:30` is not a
//! string; the one crate that quotes all of those is behind these functions, so that it can be replaced in one place.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// YAML could not be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct YamlError(String);

/// One document, without `---`.
pub fn to_string<T: Serialize>(value: &T) -> Result<String, YamlError> {
    // Folding long strings gains nothing in files that programs read, and fails where a blank matters.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX, yaml_12: false };
    let text = serde_saphyr::to_string_with_options(value, options).map_err(|error| YamlError(error.to_string()))?;
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

/// Reads a single document.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    serde_saphyr::from_str(text).map_err(|error| YamlError(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_what_yaml_1_1_would_misread() {
        for text in [
            "yes",
            "no",
            "on",
            "off",
            "y",
            "n",
            "Y",
            "N",
            "true",
            "null",
            "~",
            "",
            "12:30",
            "12:30:45",
            "0o7",
            "010",
            "1_000",
            "0x1f",
            "1e3",
            ".5",
            "1.20",
            "2001-01-01",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "- a",
            "a: b",
            "a #b",
            "#a",
            "<<",
            "=",
            "NO",
            ".inf",
            "-.INF",
            ".nan",
            "0b1",
            "+1",
            "1.",
            "[a",
            "{a",
            ">",
            "|",
            "a\tb",
            " a",
            "a ",
        ] {
            let yaml = to_string(&BTreeMap::from([(text, text)])).unwrap();
            assert_eq!(from_str::<BTreeMap<String, String>>(&yaml).unwrap()[text], text, "{yaml}");
            let value = yaml.trim_end().rsplit(": ").next().unwrap();
            assert!(value.ends_with(['"', '\'']), "bare scalar in {yaml}");
            assert!(yaml.starts_with(['"', '\'']), "bare key in {yaml}");
        }
    }

    #[test]
    fn keeps_pem_readable() {
        let pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        let yaml = to_string(&BTreeMap::from([("ca.crt", pem)])).unwrap();
        assert!(yaml.starts_with("ca.crt: |\n"), "{yaml}");
        assert_eq!(from_str::<BTreeMap<String, String>>(&yaml).unwrap()["ca.crt"], pem);
    }

    proptest! {
        #[test]
        fn strings_survive(key in "[ -~]{0,20}", value in "\\PC{0,200}", lines in "[a-z \n\t:#'\"-]{0,60}") {
            let map = BTreeMap::from([(format!("k{key}"), value), ("lines".to_owned(), lines)]);
            let yaml = to_string(&map).unwrap();
            prop_assert_eq!(from_str::<BTreeMap<String, String>>(&yaml).unwrap(), map, "{}", yaml);
        }
    }
}
