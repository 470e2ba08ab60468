// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names of images, as the grammar of <https://github.com/distribution/reference> has them.
//!
//! In a room without internet, a name that is completed differently by two programs is an image that is not found. So
//! only full references are let in: with a registry, and with a tag or a digest.

use thiserror::Error;

/// Why a name is not a full reference.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{reference}` is not a full image reference (registry/repository:tag): {problem}")]
pub struct ReferenceError {
    reference: String,
    problem: &'static str,
}

/// A full reference in its parts: at least one of tag and digest is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference<'a> {
    /// Host, perhaps with a port: `docker.io`, `lab:5000`.
    pub registry: &'a str,
    /// `calico/node`.
    pub repository: &'a str,
    /// `v3.29.1`.
    pub tag: Option<&'a str>,
    /// `sha256:` and 64 hex digits.
    pub digest: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// The parts of `reference`.
    ///
    /// # Errors
    /// If it has no registry, no repository, or neither tag nor digest, or one of them is malformed.
    pub fn parse(reference: &'a str) -> Result<Self, ReferenceError> {
        examine(reference).map_err(|problem| ReferenceError { reference: reference.to_owned(), problem })
    }

    /// The full names that programs ask for it by: with its tag, and with its digest. No program asks for both at once:
    /// given both, `docker`, `ctr` and kubelet's runtime leave the tag away (`ParseDockerRef` of
    /// distribution/reference).
    pub fn names(&self) -> Vec<String> {
        let name = format!("{}/{}", self.registry, self.repository);
        let tag = self.tag.map(|tag| format!("{name}:{tag}"));
        let digest = self.digest.map(|digest| format!("{name}@{digest}"));
        tag.into_iter().chain(digest).collect()
    }
}

/// Checks that `reference` has a registry, a repository, and a tag or a digest or both.
///
/// # Errors
/// If it has not, or one of them is malformed.
pub fn check(reference: &str) -> Result<(), ReferenceError> {
    Reference::parse(reference).map(drop)
}

/// The full reference that `docker`, `ctr` and kubelet make of a short one: `calico/cni:v3.26.1` is of docker.io,
/// `busybox` is `docker.io/library/busybox:latest`, and of tag and digest the digest counts. (`ParseDockerRef` of
/// distribution/reference.) What is no name at all stays as it is.
pub fn completed(reference: &str) -> String {
    let (registry, rest) = match reference.split_once('/') {
        Some(("docker.io", rest)) if !rest.contains('/') => ("docker.io", format!("library/{rest}")),
        Some((registry, rest)) if registry == "localhost" || registry.contains(['.', ':']) => {
            (registry, rest.to_owned())
        }
        Some(_) => ("docker.io", reference.to_owned()),
        None => ("docker.io", format!("library/{reference}")),
    };
    let (name, digest) = match rest.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (&*rest, None),
    };
    let full = match digest {
        Some(digest) => format!("{registry}/{}@{digest}", name.split_once(':').map_or(name, |(name, _)| name)),
        None if name.contains(':') => format!("{registry}/{name}"),
        None => format!("{registry}/{name}:latest"),
    };
    if examine(&full).is_ok() { full } else { reference.to_owned() }
}

fn examine(reference: &str) -> Result<Reference<'_>, &'static str> {
    // The grammar's NameTotalLengthMax is of the name alone; a reference that is longer than both is of nobody.
    if reference.len() > 255 + 128 + 72 {
        return Err("too long");
    }
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    let (registry, rest) = rest.split_once('/').ok_or("there is no registry")?;
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    if !is_registry(registry) {
        return Err("what is before the first slash is not a registry");
    }
    if registry.len() + 1 + repository.len() > 255 || !repository.split('/').all(is_component) {
        return Err("the repository is malformed");
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag is malformed");
    }
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("the digest is not a sha256");
    }
    if tag.is_none() && digest.is_none() {
        return Err("there is neither a tag nor a digest");
    }
    Ok(Reference { registry, repository, tag, digest })
}

/// A host that cannot be mistaken for part of a repository: with a dot or a port, or "localhost".
fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label)
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
        && (host == "localhost" || host.contains('.') || port.is_some())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let separators_are_good = bytes
        .split(is_word)
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'));
    separators_are_good && bytes.first().is_some_and(is_word) && bytes.last().is_some_and(is_word)
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn full_references_are_let_in() {
        for good in [
            "k8s.gcr.io/pause:3.2",
            "registry.k8s.io/coredns/coredns:v1.11.3",
            "localhost/pause:3.2",
            "lab:5000/a__b/c--d:latest",
            "10.0.2.2:5000/kube-apiserver-amd64:v1.20.2",
        ] {
            check(good).unwrap();
            check(&format!("{good}@sha256:{}", "0a".repeat(32))).unwrap();
        }
        check(&format!("docker.io/calico/cni@sha256:{}", "0a".repeat(32))).unwrap();
    }

    #[test]
    fn others_are_refused_with_a_reason() {
        for (bad, problem) in [
            ("", "there is no registry"),
            ("pause:3.2", "there is no registry"),
            ("calico/cni:v3.29.1", "what is before the first slash is not a registry"),
            ("k8s.gcr.io:/pause:3.2", "what is before the first slash is not a registry"),
            ("k8s..io/pause:3.2", "what is before the first slash is not a registry"),
            ("k8s.gcr.io/pause", "there is neither a tag nor a digest"),
            ("k8s.gcr.io/Pause:3.2", "the repository is malformed"),
            ("k8s.gcr.io/:3.2", "the repository is malformed"),
            ("k8s.gcr.io/a___b:3.2", "the repository is malformed"),
            ("k8s.gcr.io/a._b:3.2", "the repository is malformed"),
            ("k8s.gcr.io/pause-:3.2", "the repository is malformed"),
            ("k8s.gcr.io/pause:", "the tag is malformed"),
            ("k8s.gcr.io/pause:.2", "the tag is malformed"),
            ("k8s.gcr.io/pause:3.2/x", "the tag is malformed"),
            ("k8s.gcr.io/pause@sha256:0a", "the digest is not a sha256"),
        ] {
            assert_eq!(check(bad).unwrap_err().problem, problem, "{bad}");
        }
    }

    #[test]
    fn short_names_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("calico/cni:v3.26.1", "docker.io/calico/cni:v3.26.1"),
            ("lcr.loongnix.cn/calico/node:3.26.1", "lcr.loongnix.cn/calico/node:3.26.1"),
            ("localhost/pause", "localhost/pause:latest"),
            ("lab:5000/pause", "lab:5000/pause:latest"),
            ("docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("No Name", "No Name"),
        ] {
            assert_eq!(completed(short), full);
        }
        for short in ["calico/cni", "docker.io/calico/cni:v3.26.1"] {
            assert_eq!(completed(&format!("{short}@{digest}")), format!("docker.io/calico/cni@{digest}"));
        }
    }

    #[test]
    fn parts_and_the_names_that_are_asked_for() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let text = format!("lab:5000/a/b:1@{digest}");
        let both = Reference::parse(&text).unwrap();
        assert_eq!((both.registry, both.repository), ("lab:5000", "a/b"));
        assert_eq!((both.tag, both.digest), (Some("1"), Some(&*digest)));
        assert_eq!(both.names(), ["lab:5000/a/b:1".to_owned(), format!("lab:5000/a/b@{digest}")]);
        // Whatever a manifest says, what is asked for in the end is one of them.
        assert!(both.names().contains(&completed(&text)));
        assert_eq!(Reference::parse("lab:5000/a/b:1").unwrap().names(), ["lab:5000/a/b:1"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let parsed = Reference::parse(&text).map(|parts| parts.names().iter().all(|name| check(name).is_ok()));
            prop_assert!(parsed != Ok(false));
            let full = completed(&text);
            prop_assert!(full == text || check(&full).is_ok());
        }

        #[test]
        fn the_grammar_is_let_in(
            text in "([a-z0-9]{1,9}\\.[a-z0-9]{1,9}|localhost)(:[0-9]{1,5})?(/[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}){1,3}:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}",
        ) {
            prop_assert_eq!(check(&text), Ok(()));
        }
    }
}
