// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which mirror serves a suite: what the person names, or what the host's own apt is configured for. Mirrors are never
//! written to the lock. Formats: sources.list(5), apt.conf(5).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::deb::control::{fields, paragraphs};
use super::http::host_and_path;
use crate::error::Failure;

/// The keyring of Debian's own archives, where its package puts it.
pub const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A mirror of one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The base: `dists/` and `pool/` are below it. No trailing slash.
    pub uri: String,
    /// What its Release files are signed with.
    pub keys: Keys,
    /// Whether an outdated suite is refused.
    pub check_valid_until: bool,
}

/// Where the keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// A keyring file.
    File(PathBuf),
    /// An armored key, written into the source stanza.
    Inline(String),
}

/// Proxies by the scheme of what is fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For http.
    pub http: Option<String>,
    /// For https.
    pub https: Option<String>,
    /// Hosts that are reached directly.
    pub direct: Vec<String>,
}

/// All that is known about mirrors.
#[derive(Debug, Clone, Default)]
pub struct Mirrors {
    /// `--mirror`: a name (suite, archive, input or host) or none, and a base.
    overrides: Vec<(Option<String>, String)>,
    sources: Vec<Source>,
    /// Repositories of RPM packages: the addresses that the cluster file gives, by name of the input.
    repositories: BTreeMap<String, String>,
    /// apt's `Acquire::Check-Valid-Until`.
    check_valid_until: bool,
    proxies: Proxies,
}

/// A source of apt's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    keys: Option<Keys>,
    check_valid_until: Option<bool>,
}

/// The archive a suite belongs to: `debian-security` is served beside `debian`, with a pool of its own.
pub fn archive_of(suite: &str) -> &'static str {
    if suite.contains("-security") || suite.ends_with("/updates") { "debian-security" } else { "debian" }
}

impl Mirrors {
    /// From what the person named (`URL` or `NAME=URL`, the name being a suite, an archive, an input or a host), the
    /// apt configuration below `root` (normally `/`), and the environment, as `env` looks it up.
    ///
    /// # Errors
    /// If an override is no URL.
    pub fn discover(overrides: &[String], root: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let conf = apt_conf(root);
        Ok(Self {
            overrides: overrides.iter().map(|text| parse_override(text)).collect::<Result<_, _>>()?,
            sources: apt_sources(root),
            repositories: BTreeMap::new(),
            check_valid_until: !conf.get("acquire::check-valid-until").is_some_and(|value| is_no(value)),
            proxies: proxies(&conf, env),
        })
    }

    /// The proxies to use.
    pub fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// The mirrors of a suite, the preferred one first.
    ///
    /// # Errors
    /// If none is known.
    pub fn of_suite(&self, suite: &str) -> Result<Vec<Mirror>, Failure> {
        let archive = archive_of(suite);
        let plain = self.overrides.iter().filter(|(name, _)| name.is_none());
        let named = self.named(suite).into_iter().chain(self.named(archive));
        let mut out: Vec<Mirror> = named.map(|uri| self.mirror(uri, None)).collect();
        if out.is_empty() {
            out.extend(plain.map(|(_, uri)| self.mirror(sibling(uri, archive), None)));
        }
        if out.is_empty() {
            // A mirror that serves another suite of the same archive serves this one, too.
            let exact = self.sources.iter().filter(|source| source.suites.iter().any(|s| s == suite));
            let same = self.sources.iter().filter(|source| {
                source.uri.ends_with(&format!("/{archive}")) && source.suites.iter().any(|s| archive_of(s) == archive)
            });
            out.extend(exact.chain(same).map(|source| self.mirror(source.uri.clone(), Some(source))));
        }
        let mut seen = Vec::new();
        out.retain(|mirror| {
            let new = !seen.contains(&mirror.uri);
            seen.push(mirror.uri.clone());
            new
        });
        if out.is_empty() {
            return Err(Failure::user(format!("no mirror is known for the suite `{suite}`")).hint(format!(
                "this host's apt has none: name one with --mirror URL, --mirror {suite}=URL or IMGBUILD_MIRROR"
            )));
        }
        Ok(out)
    }

    /// Adds a repository of RPM packages: the input `name`, at `url`.
    pub fn add_repository(&mut self, name: &str, url: &str) {
        self.repositories.insert(name.to_owned(), base(url));
    }

    /// Where the repository `name` is, the preferred place first: what the person names for it (`NAME=URL`), or else the
    /// address that it was added with. Empty if it was not.
    pub fn of_repository(&self, name: &str) -> Vec<String> {
        let named = self.named(name);
        if !named.is_empty() {
            return named;
        }
        self.repositories.get(name).map(|url| self.of_url(url)).unwrap_or_default()
    }

    /// Where that may be had which the cluster file names as `url`: in the places that the person names for its host
    /// (`HOST=URL`, or `HOST:PORT=URL` if the address has a port), in their order, or else there.
    pub fn of_url(&self, url: &str) -> Vec<String> {
        let (host, path) = host_and_path(url);
        let is_host = |name: &Option<String>| name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(host));
        let named = self.overrides.iter().filter(|(name, _)| is_host(name));
        let named: Vec<String> = named.map(|(_, base)| format!("{base}{path}")).collect();
        if named.is_empty() { vec![url.to_owned()] } else { named }
    }

    /// The addresses that the person names for the registry of images `host` (`HOST=URL`), the preferred one first.
    /// Empty where the registry itself is asked.
    pub fn of_registry(&self, host: &str) -> Vec<String> {
        self.named(host)
    }

    /// What the person names for `name` (`NAME=URL`), in their order.
    fn named(&self, name: &str) -> Vec<String> {
        let named = self.overrides.iter().filter(|(own, _)| own.as_deref() == Some(name));
        named.map(|(_, uri)| uri.clone()).collect()
    }

    fn mirror(&self, uri: String, source: Option<&Source>) -> Mirror {
        let keys = source.and_then(|source| source.keys.clone()).unwrap_or(Keys::File(DEBIAN_KEYRING.into()));
        let check = match source {
            Some(source) => source.check_valid_until.unwrap_or(self.check_valid_until),
            None => true,
        };
        Mirror { uri, keys, check_valid_until: check }
    }
}

/// The base of another archive, beside that of `debian`.
fn sibling(uri: &str, archive: &str) -> String {
    let Some(extra) = archive.strip_prefix("debian") else { return uri.to_owned() };
    if extra.is_empty() || uri.ends_with(extra) { uri.to_owned() } else { format!("{uri}{extra}") }
}

fn parse_override(text: &str) -> Result<(Option<String>, String), Failure> {
    let (name, uri) = match text.split_once('=') {
        // A host may have a port; a URL with an equals sign in it has a slash before that.
        Some((name, uri)) if !name.contains('/') => (Some(name.to_owned()), uri),
        _ => (None, text),
    };
    if !["http://", "https://", "file://"].iter().any(|scheme| uri.starts_with(scheme)) {
        return Err(Failure::user(format!("`{text}` is no mirror: http://, https:// or file:// wanted"))
            .hint("a mirror is a URL, or NAME=URL for one suite, input or host"));
    }
    Ok((name, base(uri)))
}

fn base(uri: &str) -> String {
    // apt writes local mirrors with one slash.
    let uri = match uri.strip_prefix("file:/") {
        Some(path) if !path.starts_with('/') => format!("file:///{path}"),
        _ => uri.to_owned(),
    };
    uri.trim_end_matches('/').to_owned()
}

fn is_no(value: &str) -> bool {
    // apt's StringToBool.
    ["no", "false", "without", "off", "disable", "0"].iter().any(|no| value.eq_ignore_ascii_case(no))
}

/// The files of an apt `….d` folder in apt's order: those whose names apt accepts.
fn parts(dir: &Path, extension: &str, bare: bool) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| match path.extension() {
            Some(found) => found == extension,
            None => bare,
        })
        .collect();
    out.sort();
    out
}

/// apt's sources. What cannot be read or understood is left out: it is apt's to complain.
fn apt_sources(root: &Path) -> Vec<Source> {
    let dir = root.join("etc/apt/sources.list.d");
    let mut out = Vec::new();
    for path in std::iter::once(root.join("etc/apt/sources.list")).chain(parts(&dir, "list", false)) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        out.extend(text.lines().filter_map(one_line_source));
    }
    for path in parts(&dir, "sources", false) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        out.extend(paragraphs(&text).flat_map(deb822_sources));
    }
    out
}

/// `deb [ option=value … ] uri suite [component …]`
fn one_line_source(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.strip_prefix("-src").unwrap_or(rest);
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let option = |name: &str| {
        options
            .split_whitespace()
            .find_map(|option| option.split_once('=').filter(|(key, _)| *key == name))
            .map(|o| o.1)
    };
    Some(Source {
        uri: base(uri),
        suites: vec![suite.to_owned()],
        keys: option("signed-by").and_then(signed_by),
        check_valid_until: option("check-valid-until").map(|value| !is_no(value)),
    })
}

fn deb822_sources(stanza: &str) -> Vec<Source> {
    let fields: BTreeMap<String, String> =
        fields(stanza).map(|(name, value)| (name.to_ascii_lowercase(), value.into_owned())).collect();
    let get = |name: &str| fields.get(name).map(String::as_str);
    if get("enabled").is_some_and(is_no) {
        return Vec::new();
    }
    let suites: Vec<String> = get("suites").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let source = |uri: &str| Source {
        uri: base(uri),
        suites: suites.clone(),
        keys: get("signed-by").and_then(signed_by),
        check_valid_until: get("check-valid-until").map(|value| !is_no(value)),
    };
    get("uris").unwrap_or_default().split_whitespace().map(source).collect()
}

/// `Signed-By`: a keyring file, or an armored key. Lists of fingerprints narrow apt's own keyrings, which we don't use.
fn signed_by(value: &str) -> Option<Keys> {
    if value.contains("-----BEGIN PGP PUBLIC KEY BLOCK-----") {
        // deb822 has a dot for an empty line.
        let lines: Vec<&str> =
            value.trim().lines().map(|line| if line.trim() == "." { "" } else { line.trim() }).collect();
        return Some(Keys::Inline(lines.join("\n") + "\n"));
    }
    let file = value.split([',', ' ', '\n', '\t']).find(|part| part.starts_with('/'))?;
    Some(Keys::File(file.into()))
}

fn apt_conf(root: &Path) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for path in parts(&root.join("etc/apt/apt.conf.d"), "conf", true).into_iter().chain([root.join("etc/apt/apt.conf")])
    {
        read_conf(&std::fs::read_to_string(path).unwrap_or_default(), &mut out);
    }
    out
}

/// Reads the values of an apt.conf(5) text, by full name in lower case: `Acquire { http { Proxy "x"; }; };` and
/// `Acquire::http::Proxy "x";` are the same.
fn read_conf(text: &str, out: &mut BTreeMap<String, String>) {
    let mut scopes: Vec<String> = Vec::new();
    let (mut name, mut value) = (String::new(), None::<String>);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") || c == '#' {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
            continue;
        }
        if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => {
                let (text, after) = rest.split_once('"').unwrap_or((rest, ""));
                value = Some(text.to_owned());
                rest = after;
            }
            '{' => scopes.push(std::mem::take(&mut name)),
            '}' | ';' => {
                if let (false, Some(value)) = (name.is_empty(), value.take()) {
                    let full: Vec<&str> = scopes.iter().map(String::as_str).chain([name.as_str()]).collect();
                    out.insert(full.join("::").to_lowercase(), value);
                }
                name.clear();
                value = None;
                if c == '}' {
                    scopes.pop();
                }
            }
            c if c.is_whitespace() => {}
            c => name.push(c),
        }
    }
}

/// apt's proxies, or else those of the environment.
fn proxies(conf: &BTreeMap<String, String>, env: impl Fn(&str) -> Option<String>) -> Proxies {
    let pick = |scheme: &str| {
        let from_env = || env(&format!("{scheme}_proxy")).or_else(|| env(&format!("{}_PROXY", scheme.to_uppercase())));
        let value = conf.get(&format!("acquire::{scheme}::proxy")).cloned().or_else(from_env)?;
        (!value.is_empty() && !value.eq_ignore_ascii_case("direct") && value != "false").then_some(value)
    };
    let mut direct: Vec<String> = conf
        .iter()
        .filter(|(_, value)| value.eq_ignore_ascii_case("direct"))
        .filter_map(|(key, _)| {
            key.strip_prefix("acquire::http::proxy::").or_else(|| key.strip_prefix("acquire::https::proxy::"))
        })
        .map(str::to_owned)
        .collect();
    let no_proxy = env("no_proxy").or_else(|| env("NO_PROXY")).unwrap_or_default();
    direct.extend(no_proxy.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned));
    let http = pick("http");
    // apt uses the http proxy for https, too, unless there is one of its own.
    let https = pick("https").or_else(|| conf.contains_key("acquire::http::proxy").then(|| http.clone()).flatten());
    Proxies { http, https, direct }
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
