// SPDX-License-Identifier: MIT OR Apache-2.0

//! Addresses of registries, and what may be sent to them.

use crate::inputs::http::{host_and_path, host_name, is_loopback};

/// The registry that holds what Docker Hub calls `docker.io`.
const DOCKER_HUB: &str = "https://registry-1.docker.io";

/// The API's root below an origin (distribution-spec, "Endpoints").
pub(super) const API: &str = "/v2";

/// Where the registry `host` of a reference is, unless somebody says otherwise. Always by TLS.
pub(super) fn of_host(host: &str) -> String {
    if host == "docker.io" { DOCKER_HUB.to_owned() } else { format!("https://{host}") }
}

/// Scheme, host and port of a URL; `None` if it is not one of http or https.
pub(super) fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let default = match scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_ascii_lowercase();
    let host = host.strip_suffix(default).unwrap_or(&host);
    (!host.is_empty()).then(|| format!("{scheme}://{host}"))
}

/// Host and port of an origin.
pub(super) fn host_of(origin: &str) -> &str {
    origin.split_once("://").map_or(origin, |(_, host)| host)
}

/// Whether what is sent there is read by nobody on the way: by TLS, or inside of this machine.
pub(super) fn is_private(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://") && is_loopback(host_name(host_and_path(url).0))
}

/// The name of the repository that a URL of the API is about: of `https://lab/v2/mirror/pause/blobs/sha256:…` it is
/// `mirror/pause`.
pub(super) fn repository(url: &str) -> Option<&str> {
    let (_, path) = url.split_once("://")?.1.split_once(API)?;
    let name = ["/manifests/", "/blobs/"].iter().find_map(|part| path.rsplit_once(part));
    name.and_then(|(name, _)| name.strip_prefix('/')).filter(|name| !name.is_empty())
}

/// Where a redirect of `url` leads (RFC 9110, section 10.2.2): absolute, or on the same host.
pub(super) fn joined(url: &str, location: &str) -> Option<String> {
    let target = if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", url.split_once("://")?.0)
    } else if location.starts_with('/') {
        format!("{}{location}", origin(url)?)
    } else {
        location.to_owned()
    };
    // A fragment is not for servers.
    let target = target.split('#').next().unwrap_or_default().to_owned();
    origin(&target).is_some().then_some(target)
}

/// For tests/fuzz: what is private is so to whoever opens the connection, too; redirects lead somewhere.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let (url, location) = text.split_once('\n').unwrap_or((text, ""));
    let _ = repository(url);
    if url.starts_with("http://") && is_private(url) {
        let own = origin(url).unwrap_or_default();
        let host = host_of(&own);
        assert!(is_loopback(host) || is_loopback(host_name(host)), "{url:?}");
    }
    if let Some(next) = joined(url, location) {
        assert!(origin(&next).is_some() && !next.contains('#'), "{next:?}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn origins_tell_ports_and_schemes_apart() {
        for (url, wanted) in [
            ("https://Lab.example:443/v2/", Some("https://lab.example")),
            ("http://lab:80", Some("http://lab")),
            ("http://lab:443/x", Some("http://lab:443")),
            ("https://user:secret@lab:5000/v2", Some("https://lab:5000")),
            ("https://lab?x=/", Some("https://lab")),
            ("ftp://lab/", None),
            ("https:///v2", None),
            ("lab:5000", None),
        ] {
            assert_eq!(origin(url).as_deref(), wanted, "{url}");
        }
        assert_eq!(of_host("docker.io"), "https://registry-1.docker.io");
        assert_eq!(of_host("lab:5000"), "https://lab:5000");
    }

    #[test]
    fn only_tls_and_loopback_are_private() {
        for good in
            ["https://lab/", "http://127.0.0.1:5000/v2", "http://localhost/", "http://[::1]:5000/", "http://127.9.9.9"]
        {
            assert!(is_private(good), "{good}");
        }
        for bad in [
            "http://lab/",
            "http://127.0.0.1.example/",
            "http://localhost.example/",
            "http://127.0.0.1@example/",
            "http://localhost:1@example:80/",
            "http://example?@127.0.0.1/",
            "http://example#@127.0.0.1/",
            "http://10.0.0.1/",
        ] {
            assert!(!is_private(bad), "{bad}");
        }
    }

    #[test]
    fn repositories_and_redirects() {
        let digest = "sha256:0a";
        assert_eq!(repository(&format!("https://lab/v2/a/b/blobs/{digest}")), Some("a/b"));
        assert_eq!(repository(&format!("https://lab/v2/a/blobs/manifests/{digest}")), Some("a/blobs"));
        assert_eq!(repository("https://lab/v2/_catalog"), None);
        let from = "https://lab:5000/v2/a/blobs/x";
        assert_eq!(joined(from, "/b?c#d").as_deref(), Some("https://lab:5000/b?c"));
        assert_eq!(joined(from, "//cdn/b").as_deref(), Some("https://cdn/b"));
        assert_eq!(joined(from, "http://cdn/b").as_deref(), Some("http://cdn/b"));
        assert_eq!(joined(from, "file:///etc/passwd"), None);
        assert_eq!(joined(from, "b"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(url in "(https?://)?\\PC{0,20}(/v2/\\PC{0,9}/blobs/)?", location in "\\PC{0,20}") {
            let _ = (origin(&url), repository(&url), is_private(&url), joined(&url, &location));
        }
    }
}
