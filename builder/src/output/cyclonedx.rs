// SPDX-License-Identifier: MIT OR Apache-2.0

//! Software bills of materials in CycloneDX 1.6 (<https://cyclonedx.org/docs/1.6/json/>), as much of it as we say, and
//! package URLs (<https://github.com/package-url/purl-spec>). Knows the formats, and not what a node holds.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Builder;

use crate::store::Digest;

/// A bill of materials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bom {
    #[serde(rename = "$schema")]
    schema: &'static str,
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    /// What it is about.
    pub metadata: Metadata,
    /// What that consists of.
    pub components: Vec<Component>,
    /// What contains what: by [`Component::reference`].
    pub dependencies: Vec<Dependency>,
    /// Of what not everything is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub compositions: Vec<Composition>,
}

impl Bom {
    /// A bill without a serial number; [`Self::to_json`] gives it one.
    pub fn new(metadata: Metadata, components: Vec<Component>) -> Self {
        Self {
            schema: "http://cyclonedx.org/schema/bom-1.6.schema.json",
            bom_format: "CycloneDX",
            spec_version: "1.6",
            serial_number: String::new(),
            version: 1,
            metadata,
            components,
            dependencies: Vec::new(),
            compositions: Vec::new(),
        }
    }

    /// The document. Its serial number follows from its content: the same content gives the same bytes.
    ///
    /// # Errors
    /// Only if JSON cannot be written.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let json = |bom: &Self| serde_json::to_vec_pretty(bom).context("writing the bill of materials");
        let hash = Sha256::digest(json(&Self { serial_number: String::new(), ..self.clone() })?);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        // RFC 9562, 5.8: bits of our own making, as partitions have them (image::gpt).
        let serial = Builder::from_custom_bytes(bytes).into_uuid();
        let mut out = json(&Self { serial_number: serial.urn().to_string(), ..self.clone() })?;
        out.push(b'\n');
        Ok(out)
    }
}

/// What a bill is about, and what made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// RFC 3339; none where the build knows no time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// What wrote it.
    pub tools: Tools,
    /// What it is about.
    pub component: Component,
}

/// Programs that made a bill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tools {
    /// The programs.
    pub components: Vec<Component>,
}

/// Kinds of components.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A program, or a package of some.
    #[default]
    Application,
    /// A container image.
    Container,
    /// A file, or an archive of some.
    File,
    /// Something to link with.
    Library,
    /// An operating system.
    OperatingSystem,
    /// What other things run on.
    Platform,
}

/// One thing, and what it consists of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Component {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// A name that nothing else in the document has; empty where nothing refers to it.
    #[serde(rename = "bom-ref", skip_serializing_if = "String::is_empty")]
    pub reference: String,
    /// Who supplied it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supplier: Option<Supplier>,
    /// Its name.
    pub name: String,
    /// Its version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// What a reader should know.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Hashes of the file it came in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hashes: Vec<Hash>,
    /// Its licences, all of which count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub licenses: Vec<LicenseChoice>,
    /// Its package URL.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub purl: String,
    /// What it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pedigree: Option<Pedigree>,
    /// What else is known, by names of ours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub properties: Vec<Property>,
    /// What it consists of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<Component>,
}

impl Component {
    /// Adds a property unless its value is empty.
    pub fn property(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.properties.push(Property { name: format!("imgbuild:{name}"), value });
        }
    }
}

/// Who supplied something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Supplier {
    /// The name.
    pub name: String,
}

/// A hash of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hash {
    alg: &'static str,
    content: String,
}

impl From<Digest> for Hash {
    fn from(digest: Digest) -> Self {
        Self { alg: "SHA-256", content: digest.to_string() }
    }
}

/// A licence, as [`Component::licenses`] wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LicenseChoice {
    license: License,
}

impl LicenseChoice {
    /// A licence as the package itself names it. Such names are not SPDX's, though many look alike.
    pub fn declared(name: &str) -> Self {
        Self { license: License { name: name.to_owned(), acknowledgement: "declared" } }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct License {
    name: String,
    acknowledgement: &'static str,
}

/// What something was made from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Pedigree {
    /// The things.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Component>,
    /// How.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub notes: String,
}

/// A value with a name of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Property {
    name: String,
    value: String,
}

/// What something contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// The thing.
    #[serde(rename = "ref")]
    pub reference: String,
    /// What is in it.
    pub depends_on: Vec<String>,
}

/// How much is known of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Composition {
    aggregate: &'static str,
    assemblies: Vec<String>,
}

impl Composition {
    /// There is more in these things than the document says.
    pub fn incomplete(assemblies: Vec<String>) -> Self {
        Self { aggregate: "incomplete", assemblies }
    }
}

/// A package URL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Purl<'a> {
    /// `deb`, `rpm`, `oci`.
    pub kind: &'static str,
    /// Whose packages they are; empty for none.
    pub namespace: &'a str,
    /// Name of the package.
    pub name: &'a str,
    /// Its version.
    pub version: &'a str,
    /// What else tells it from others; empty values are left out.
    pub qualifiers: BTreeMap<&'static str, String>,
}

impl fmt::Display for Purl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pkg:{}/", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", encoded(self.namespace, ""))?;
        }
        write!(f, "{}@{}", encoded(self.name, ""), encoded(self.version, ""))?;
        let qualifiers = self.qualifiers.iter().filter(|(_, value)| !value.is_empty());
        for (separator, (name, value)) in std::iter::once('?').chain(std::iter::repeat('&')).zip(qualifiers) {
            write!(f, "{separator}{name}={}", encoded(value, "/"))?;
        }
        Ok(())
    }
}

/// Percent-encoded, but for what the specification leaves as it is, and `more`.
fn encoded(text: &str, more: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b".-_~:".contains(&byte) || more.as_bytes().contains(&byte);
        if plain {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn bom(name: &str) -> Bom {
        let component = |name: &str| Component { name: name.to_owned(), ..Component::default() };
        let metadata =
            Metadata { timestamp: None, tools: Tools { components: vec![component("t")] }, component: component(name) };
        Bom::new(metadata, vec![component("bash")])
    }

    #[test]
    fn the_serial_number_follows_from_the_content() {
        let json = bom("lab").to_json().unwrap();
        assert_eq!(json, bom("lab").to_json().unwrap());
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let serial = value["serialNumber"].as_str().unwrap();
        let uuid: uuid::Uuid = serial.strip_prefix("urn:uuid:").unwrap().parse().unwrap();
        assert_eq!(uuid.get_version_num(), 8);
        let other: serde_json::Value = serde_json::from_slice(&bom("other").to_json().unwrap()).unwrap();
        assert_ne!(other["serialNumber"], serial);
        assert_eq!((&value["bomFormat"], &value["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
        assert!(value["components"][0].get("version").is_none(), "what is not known is not said");
    }

    #[test]
    fn package_urls_are_written_as_their_specification_wants() {
        let qualifiers = BTreeMap::from([("arch", "amd64".to_owned()), ("distro", "bookworm".to_owned())]);
        let purl = Purl { kind: "deb", namespace: "debian", name: "bash", version: "1:5.2.15-2+b2~x", qualifiers };
        assert_eq!(purl.to_string(), "pkg:deb/debian/bash@1:5.2.15-2%2Bb2~x?arch=amd64&distro=bookworm");
        let qualifiers =
            BTreeMap::from([("repository_url", "k8s.gcr.io/kube proxy".to_owned()), ("tag", String::new())]);
        let purl = Purl { kind: "oci", name: "kube-proxy", version: "sha256:ab", qualifiers, ..Purl::default() };
        assert_eq!(purl.to_string(), "pkg:oci/kube-proxy@sha256:ab?repository_url=k8s.gcr.io/kube%20proxy");
    }
}
