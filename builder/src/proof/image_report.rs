// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which container images a payload has and which it lacks: for each who asks for it, where it comes from, and what to write
//! where it is missing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use profiles::node::Architecture;
use serde::Serialize;

use crate::inputs::source::golang::goarch;
use crate::proof::images::Wanted;
use crate::store::Digest;

/// An image of the payload, by one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// Its full name.
    pub reference: String,
    /// What it runs on.
    pub architecture: Architecture,
    /// Where it comes from.
    pub from: Origin,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// `[[image]]`, or the path of an archive.
    pub source: String,
    /// The name of the input, if it is of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// What it is called there, where `names` of the input gives it another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub called: Option<String>,
    /// SHA-256 of its manifest in the payload; not known of images that the build has yet to assemble.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
}

impl Offered {
    /// One that imgbuild assembles.
    pub fn assembled(reference: &str, architecture: Architecture) -> Self {
        let from = Origin { source: "[[image]]".to_owned(), input: None, called: None, manifest: None };
        Self { reference: reference.to_owned(), architecture, from }
    }
}

/// How it is with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is asked for, and there.
    Present,
    /// It is asked for, and not there.
    Missing,
    /// It is asked for, and there for another machine.
    OtherArchitecture,
    /// It may be asked for, and is not there.
    PerhapsMissing,
    /// It is there, and nothing known asks for it.
    Unasked,
}

impl State {
    /// Whether a node would look for it in vain.
    pub fn is_missing(self) -> bool {
        matches!(self, Self::Missing | Self::OtherArchitecture)
    }
}

/// An image by one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Its full name.
    pub reference: String,
    /// How it is with it.
    pub state: State,
    /// Who asks for it.
    pub asked_by: Vec<Asker>,
    /// Where it comes from, if it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
    /// What to add to the cluster file, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add: Option<String>,
}

/// Who asks for an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asker {
    /// For people.
    pub who: String,
    /// Whether it is known that it will.
    pub certain: bool,
}

impl Image {
    /// All who ask for it.
    pub fn askers(&self) -> String {
        let names: Vec<&str> = self.asked_by.iter().map(|asker| asker.who.as_str()).collect();
        match names.split_last() {
            Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
            _ => names.concat(),
        }
    }
}

/// All images of a payload, and all that it lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// OCI name of the architecture of the nodes.
    pub architecture: &'static str,
    /// The images by name.
    pub images: Vec<Image>,
}

impl Report {
    /// What comes of `wanted` and `offered` on nodes of that architecture.
    pub fn of(wanted: &[Wanted], offered: &[Offered], node: Architecture) -> Self {
        let mut asked: BTreeMap<&str, Vec<Asker>> = BTreeMap::new();
        for one in wanted {
            let askers = asked.entry(&one.reference).or_default();
            let asker = Asker { who: one.by.clone(), certain: one.certain };
            if !askers.contains(&asker) {
                askers.push(asker);
            }
        }
        for one in offered {
            asked.entry(&one.reference).or_default();
        }
        let image = |(reference, asked_by): (&str, Vec<Asker>)| {
            let found = offered.iter().find(|one| one.reference == reference);
            let certain = asked_by.iter().any(|asker| asker.certain);
            let state = match found {
                Some(_) if asked_by.is_empty() => State::Unasked,
                Some(found) if found.architecture != node => State::OtherArchitecture,
                Some(_) => State::Present,
                None if certain => State::Missing,
                None => State::PerhapsMissing,
            };
            let add =
                (found.is_none() || state == State::OtherArchitecture).then(|| addition(reference, offered, node));
            Image { reference: reference.to_owned(), state, asked_by, from: found.map(|found| found.from.clone()), add }
        };
        Self { architecture: goarch(node), images: asked.into_iter().map(image).collect() }
    }

    /// How many images a node would look for in vain.
    pub fn missing(&self) -> usize {
        self.images.iter().filter(|image| image.state.is_missing()).count()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for image in &self.images {
            let mark = match image.state {
                State::Present => "ok      ",
                State::Missing => "MISSING ",
                State::OtherArchitecture => "MACHINE ",
                State::PerhapsMissing => "perhaps ",
                State::Unasked => "unasked ",
            };
            // Writing to a string cannot fail.
            _ = writeln!(text, "{mark}{}", image.reference);
            for asker in &image.asked_by {
                _ = writeln!(text, "        {} {}", if asker.certain { "for" } else { "perhaps for" }, asker.who);
            }
            if let Some(from) = &image.from {
                let input = from.input.as_ref().map(|name| format!("input `{name}`, ")).unwrap_or_default();
                let called = from.called.as_ref().map(|name| format!(", called {name} there")).unwrap_or_default();
                let manifest = from.manifest.map(|digest| format!(", sha256:{digest}")).unwrap_or_default();
                _ = writeln!(text, "        from {input}{}{called}{manifest}", from.source);
            }
            if let Some(add) = &image.add {
                _ = writeln!(text, "        add: {}", add.replace('\n', "\n             "));
            }
        }
        let count = |wanted: fn(State) -> bool| self.images.iter().filter(|image| wanted(image.state)).count();
        _ = write!(
            text,
            "{} images for linux/{}: {} missing, {} perhaps missing, {} that nothing known asks for",
            count(|state| !state.is_missing() && state != State::PerhapsMissing),
            self.architecture,
            self.missing(),
            count(|state| state == State::PerhapsMissing),
            count(|state| state == State::Unasked)
        );
        text
    }
}

/// What brings an image that is not there: another name for one that is, or an archive.
fn addition(reference: &str, offered: &[Offered], node: Architecture) -> String {
    let (name, tag) = parts(reference);
    // A registry of another machine's builds keeps the name and, mostly, the tag.
    let like = offered.iter().filter(|one| one.architecture == node && one.reference != reference);
    let like = like.filter_map(|one| Some((one, one.from.input.as_ref()?)));
    let like = like.filter(|(one, _)| {
        let (other, other_tag) = parts(&one.reference);
        !tag.is_empty() && other == name && other_tag.trim_start_matches('v').starts_with(tag.trim_start_matches('v'))
    });
    if let Some((one, input)) = like.into_iter().next() {
        let called = one.from.called.as_ref().unwrap_or(&one.reference);
        return format!("names = {{ \"{reference}\" = \"{called}\" }} to input `{input}`, if that is the same image");
    }
    let file = if tag.is_empty() { name.to_owned() } else { format!("{name}-{tag}") };
    format!(
        "[[input]]\nkind = \"oci\"\nname = \"{file}\"\nimages = [\"{reference}\"] # or kind = \"image-archive\", path = \
         \"inputs/{file}.tar\": of linux/{}, as `docker save` writes it",
        goarch(node)
    )
}

/// The last part of a name, and its tag.
fn parts(reference: &str) -> (&str, &str) {
    let name = reference.split('@').next().unwrap_or(reference);
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split_once(':').unwrap_or((last, ""))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn wanted(reference: &str, by: &str, certain: bool) -> Wanted {
        Wanted { reference: reference.into(), by: by.into(), certain }
    }

    #[test]
    fn each_image_is_said_with_who_asks_and_where_it_comes_from() {
        let of_input = Origin {
            source: "inputs/images.tar".into(),
            input: Some("images".into()),
            called: Some("lcr.example.org/calico/cni:3.26.1".into()),
            manifest: Some(Digest::of(b"")),
        };
        let offered = [
            Offered::assembled("k8s.gcr.io/pause:3.2", Architecture::Amd64),
            Offered {
                reference: "docker.io/calico/cni:v3.26.1".into(),
                architecture: Architecture::Amd64,
                from: of_input.clone(),
            },
            Offered {
                reference: "lcr.example.org/node:3.26.1".into(),
                architecture: Architecture::Amd64,
                from: Origin { called: None, ..of_input },
            },
            Offered::assembled("example.org/foreign:1", Architecture::Loong64),
        ];
        let asked = [
            wanted("k8s.gcr.io/pause:3.2", "kubelet", true),
            wanted("k8s.gcr.io/pause:3.2", "kubelet", true),
            wanted("docker.io/calico/cni:v3.26.1", "the manifest a.yaml", true),
            wanted("docker.io/calico/cni:v3.26.1", "the manifest b.yaml", false),
            wanted("docker.io/calico/node:v3.26.1", "the manifest a.yaml", true),
            wanted("quay.io/x/solver:v1", "the manifest a.yaml", false),
            wanted("example.org/foreign:1", "kubelet", true),
        ];
        let report = Report::of(&asked, &offered, Architecture::Amd64);
        assert_eq!(report.missing(), 2);
        insta::assert_snapshot!(report.text(), @r#"
        ok      docker.io/calico/cni:v3.26.1
                for the manifest a.yaml
                perhaps for the manifest b.yaml
                from input `images`, inputs/images.tar, called lcr.example.org/calico/cni:3.26.1 there, sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        MISSING docker.io/calico/node:v3.26.1
                for the manifest a.yaml
                add: names = { "docker.io/calico/node:v3.26.1" = "lcr.example.org/node:3.26.1" } to input `images`, if that is the same image
        MACHINE example.org/foreign:1
                for kubelet
                from [[image]]
                add: [[input]]
                     kind = "oci"
                     name = "foreign-1"
                     images = ["example.org/foreign:1"] # or kind = "image-archive", path = "inputs/foreign-1.tar": of linux/amd64, as `docker save` writes it
        ok      k8s.gcr.io/pause:3.2
                for kubelet
                from [[image]]
        unasked lcr.example.org/node:3.26.1
                from input `images`, inputs/images.tar, sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        perhaps quay.io/x/solver:v1
                perhaps for the manifest a.yaml
                add: [[input]]
                     kind = "oci"
                     name = "solver-v1"
                     images = ["quay.io/x/solver:v1"] # or kind = "image-archive", path = "inputs/solver-v1.tar": of linux/amd64, as `docker save` writes it
        3 images for linux/amd64: 2 missing, 1 perhaps missing, 1 that nothing known asks for
        "#);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["images"][1]["state"], "missing");
        assert_eq!(json["images"][0]["from"]["called"], "lcr.example.org/calico/cni:3.26.1");
    }
}
