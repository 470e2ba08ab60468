// SPDX-License-Identifier: MIT OR Apache-2.0

//! Credentials for registries, from where `docker login`, `podman login` and `skopeo login` keep them. They are looked
//! up when a registry asks for some, by the host that is asked. No message, log line or `Debug` of anything here has
//! one in it.
//!
//! Formats: containers-auth.json(5); docker's `config.json` (`auths`, `credHelpers`, `credsStore`); the protocol of
//! <https://github.com/docker/docker-credential-helpers>.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use serde::Deserialize;

use crate::error::Failure;

/// Docker's name of Docker Hub in its files and to its helpers.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What a helper says that does not know a server.
const NOT_FOUND: &str = "credentials not found";

/// User and password, or a token.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// User and password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// What goes behind `Bearer`, as it is.
    Bearer(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A secret, and which file or program has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) secret: Secret,
    /// For messages.
    pub(super) source: String,
}

/// Where credentials are looked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Credentials {
    /// Files, the preferred one first; whether each must be there.
    files: Vec<(PathBuf, bool)>,
}

/// `config.json` or `auth.json`, as far as it matters here.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    /// `user:password` in base64.
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

impl Credentials {
    /// Where the environment, as `env` looks it up, has them: in `$REGISTRY_AUTH_FILE` alone if that is set; or else in
    /// `$XDG_RUNTIME_DIR/containers/auth.json`, then `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
    pub(super) fn discover(env: impl Fn(&str) -> Option<String>) -> Self {
        let dir = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = dir("REGISTRY_AUTH_FILE") {
            return Self { files: vec![(file, true)] };
        }
        let podman = dir("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
        let docker = dir("DOCKER_CONFIG").or_else(|| dir("HOME").map(|home| home.join(".docker")));
        let docker = docker.map(|dir| dir.join("config.json"));
        Self { files: podman.into_iter().chain(docker).map(|file| (file, false)).collect() }
    }

    /// The credentials for `repository` of the server `host`, if there are any.
    ///
    /// # Errors
    /// A file that cannot be read, a helper that does not work, a form that is not known.
    pub(super) fn find(&self, host: &str, repository: &str) -> Result<Option<Found>, Failure> {
        for (file, wanted) in &self.files {
            let Some(config) = read(file, *wanted)? else { continue };
            if let Some(found) = config.find(file, &server(host), repository)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn read(file: &Path, wanted: bool) -> Result<Option<Config>, Failure> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && !wanted => return Ok(None),
        Err(error) => {
            return Err(Failure::io(format!("reading credentials for registries from {}", file.display()), error));
        }
    };
    // The parser's own message may show a value.
    let config = serde_json::from_slice(&text).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        Failure::user(format!("{} is not what `docker login` writes ({place})", file.display()))
            .hint("correct it, or name another file with REGISTRY_AUTH_FILE")
    })?;
    Ok(Some(config))
}

/// One name for each server: files have hosts, perhaps as URLs, and Docker Hub under several names.
fn server(name: &str) -> String {
    let name = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://")).unwrap_or(name);
    let name = name.trim_end_matches('/');
    let name = name.strip_suffix("/v1").or_else(|| name.strip_suffix("/v2")).unwrap_or(name);
    let (host, path) = name.split_at(name.find('/').unwrap_or(name.len()));
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    match host {
        "index.docker.io" | "registry-1.docker.io" => format!("docker.io{path}"),
        host => format!("{host}{path}"),
    }
}

impl Config {
    /// As docker and podman do: a helper for that very server; what the file says itself, for the longest part of the
    /// repository's name that it names; the helper for all servers.
    fn find(&self, file: &Path, host: &str, repository: &str) -> Result<Option<Found>, Failure> {
        let helper = self.cred_helpers.iter().find(|(name, _)| server(name) == host).map(|(_, helper)| helper);
        if let Some(helper) = helper.filter(|helper| !helper.is_empty()) {
            return helped(file, helper, host);
        }
        let whole = format!("{host}/{repository}");
        let covers = |name: &str| whole.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let named = self.auths.iter().map(|(name, auth)| (server(name), auth));
        let named = named.filter(|(name, auth)| !auth.is_empty() && covers(name));
        if let Some((name, auth)) = named.max_by_key(|(name, _)| name.len()) {
            let secret = auth.secret().map_err(|why| {
                Failure::user(format!("{}: the entry of {name} {why}", file.display()))
                    .hint(format!("`docker login {host}` with user and password, or a token as password"))
            })?;
            return Ok(Some(Found { secret, source: file.display().to_string() }));
        }
        if self.creds_store.is_empty() { Ok(None) } else { helped(file, &self.creds_store, host) }
    }
}

impl Auth {
    fn is_empty(&self) -> bool {
        [&self.auth, &self.username, &self.identitytoken, &self.registrytoken].iter().all(|text| text.is_empty())
    }

    /// The secret; or why there is none.
    fn secret(&self) -> Result<Secret, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Secret::Bearer(self.registrytoken.clone()));
        }
        if !self.identitytoken.is_empty() {
            return Err("has an identity token, which imgbuild cannot use");
        }
        if !self.auth.is_empty() {
            let bytes = Base64::decode_vec(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let text = bytes.ok_or("is not in base64")?;
            let (user, password) = text.split_once(':').ok_or("has no user and password in it")?;
            // Old versions of docker padded it.
            return Ok(basic(user, password.trim_end_matches('\0')));
        }
        Ok(basic(&self.username, &self.password))
    }
}

fn basic(user: &str, password: &str) -> Secret {
    Secret::Basic { user: user.to_owned(), password: password.to_owned() }
}

/// What the program docker-credential-`helper` has for a server.
fn helped(file: &Path, helper: &str, host: &str) -> Result<Option<Found>, Failure> {
    let program = format!("docker-credential-{helper}");
    if !helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(Failure::user(format!("{} names a credential helper that is no program's name", file.display())));
    }
    let failed = |what: String| {
        Failure::environment(format!(
            "asking {program}, which {} names, for the credentials of {host}: {what}",
            file.display()
        ))
        .hint(format!("see what `echo {host} | {program} get` says"))
    };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // It may show what it should not.
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let server = if host == "docker.io" { DOCKER_HUB } else { host };
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(server.as_bytes()) {
            // It knows the answer without reading the question.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(failed(error.to_string())),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return if text.contains(NOT_FOUND) { Ok(None) } else { Err(failed(output.status.to_string())) };
    }
    let said: Helped = serde_json::from_str(&text).map_err(|_| failed("it did not answer in JSON".to_owned()))?;
    // How helpers mark an identity token (docker's credentials/native_store.go).
    if said.username == "<token>" {
        return Err(failed("it has an identity token, which imgbuild cannot use".to_owned()));
    }
    Ok(Some(Found { secret: basic(&said.username, &said.secret), source: program }))
}

/// For tests/fuzz: an entry with a secret is found by its own name.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &[u8]) {
    let Ok(mut config) = serde_json::from_slice::<Config>(text) else { return };
    // Programs that are named are not run.
    config.cred_helpers.clear();
    config.creds_store.clear();
    for (name, auth) in config.auths.iter().take(4) {
        let name = server(name);
        let (host, repository) = name.split_once('/').unwrap_or((name.as_str(), "a"));
        let found = config.find(Path::new("config.json"), host, repository);
        assert!(auth.is_empty() || !matches!(found, Ok(None)), "{name:?}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    struct Home(tempfile::TempDir);

    impl Home {
        fn with(config: &str) -> Self {
            let home = Self(tempfile::tempdir().unwrap());
            fs::create_dir(home.0.path().join(".docker")).unwrap();
            fs::write(home.0.path().join(".docker/config.json"), config).unwrap();
            home
        }
        fn credentials(&self) -> Credentials {
            Credentials::discover(|name| (name == "HOME").then(|| self.0.path().display().to_string()))
        }
        fn find(&self, host: &str, repository: &str) -> Option<Secret> {
            self.credentials().find(host, repository).unwrap().map(|found| found.secret)
        }
        fn fails(&self, host: &str) -> String {
            let failure = self.credentials().find(host, "a").unwrap_err();
            format!("{failure} | {} | {failure:?}", failure.hint.clone().unwrap_or_default())
        }
    }

    fn auth(text: &str) -> serde_json::Value {
        json!({ "auth": Base64::encode_string(text.as_bytes()) })
    }

    #[test]
    fn servers_have_one_name() {
        for (name, wanted) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("https://Lab.example/v2/", "lab.example"),
            ("lab:5000", "lab:5000"),
            ("lab.example:443", "lab.example"),
            ("quay.io/team", "quay.io/team"),
        ] {
            assert_eq!(server(name), wanted);
        }
    }

    #[test]
    fn the_longest_name_wins() {
        let auths = json!({ "auths": {
            "https://index.docker.io/v1/": auth("hub:p:q"),
            "lab:5000": auth("lab:1\0"),
            "lab:5000/team": auth("team:2"),
            "lab:5000/team/deep": { "username": "deep", "password": "3" },
            "token.example": { "registrytoken": "T" },
            "empty.example": {},
        } });
        let home = Home::with(&auths.to_string());
        assert_eq!(home.find("registry-1.docker.io", "library/busybox"), Some(basic("hub", "p:q")));
        assert_eq!(home.find("lab:5000", "teamster/x"), Some(basic("lab", "1")));
        assert_eq!(home.find("lab:5000", "team/x"), Some(basic("team", "2")));
        assert_eq!(home.find("lab:5000", "team/deep"), Some(basic("deep", "3")));
        assert_eq!(home.find("token.example", "x"), Some(Secret::Bearer("T".into())));
        assert_eq!(home.find("empty.example", "x"), None);
        assert_eq!(home.find("lab", "x"), None, "another port is another server");
        assert_eq!(home.find("lab:5000.example", "x"), None);
    }

    #[test]
    fn messages_have_no_secret() {
        let identity = json!({ "auths": { "lab": { "identitytoken": "hunter2", "auth": "" } } });
        for config in [
            identity.to_string(),
            json!({ "auths": { "lab": { "auth": "hunter2!" } } }).to_string(),
            json!({ "auths": { "lab": auth("hunter2") } }).to_string(),
            "{ \"auths\": { \"lab\": \"hunter2\" } }".to_owned(),
            "{ \"auths\": { \"lab\": { \"auth\": hunter2 } } }".to_owned(),
        ] {
            let message = Home::with(&config).fails("lab");
            assert!(message.contains("config.json") && !message.contains("hunter2"), "{message}");
        }
        assert_eq!(format!("{:?}", Found { secret: basic("u", "hunter2"), source: "f".into() }).find("hunter2"), None);
    }

    #[test]
    fn files_by_the_environment() {
        let home = Home::with(&json!({ "auths": { "lab": auth("home:1") } }).to_string());
        let other = home.0.path().join("other.json");
        fs::write(&other, json!({ "auths": { "lab": auth("other:2") } }).to_string()).unwrap();
        let runtime = home.0.path().join("run/containers");
        fs::create_dir_all(&runtime).unwrap();
        let find = |pairs: &[(&str, &Path)]| {
            let env =
                |name: &str| pairs.iter().find(|(own, _)| *own == name).map(|(_, path)| path.display().to_string());
            Credentials::discover(env).find("lab", "x").map(|found| found.map(|found| found.secret))
        };
        let (dir, run, nowhere) = (home.0.path(), home.0.path().join("run"), home.0.path().join("nowhere"));
        assert_eq!(find(&[]).unwrap(), None);
        assert_eq!(find(&[("HOME", dir)]).unwrap(), Some(basic("home", "1")));
        assert_eq!(find(&[("HOME", dir), ("DOCKER_CONFIG", nowhere.as_path())]).unwrap(), None);
        assert_eq!(find(&[("HOME", dir), ("REGISTRY_AUTH_FILE", other.as_path())]).unwrap(), Some(basic("other", "2")));
        let podman = [("HOME", dir), ("XDG_RUNTIME_DIR", run.as_path())];
        assert_eq!(find(&podman).unwrap(), Some(basic("home", "1")));
        fs::copy(&other, runtime.join("auth.json")).unwrap();
        assert_eq!(find(&podman).unwrap(), Some(basic("other", "2")));
        let failure = find(&[("REGISTRY_AUTH_FILE", nowhere.as_path())]).unwrap_err();
        assert!(failure.to_string().contains("nowhere"), "{failure}");
    }

    #[test]
    fn helpers_that_cannot_be_asked() {
        let helper =
            |name: &str| json!({ "credHelpers": { "lab": name }, "auths": { "lab": auth("a:b") } }).to_string();
        let message = Home::with(&helper("../../bin/sh")).fails("lab");
        assert!(message.contains("no program's name"), "{message}");
        let message = Home::with(&helper("imgbuild-has-no-such")).fails("lab");
        assert!(message.contains("asking docker-credential-imgbuild-has-no-such, which"), "{message}");
        // Another server's helper is not asked.
        assert_eq!(Home::with(&helper("imgbuild-has-no-such")).find("other", "x"), None);
        let store = json!({ "credsStore": "imgbuild-has-no-such", "auths": { "lab": auth("a:b"), "empty": {} } });
        let home = Home::with(&store.to_string());
        assert_eq!(home.find("lab", "x"), Some(basic("a", "b")));
        assert!(home.fails("empty").contains("docker-credential-imgbuild-has-no-such"));
    }

    proptest! {
        #[test]
        fn any_file_is_survived(text in "\\PC{0,80}", value in "\\PC{0,20}") {
            let _ = Home::with(&text).credentials().find("lab", "a");
            let config = json!({ "auths": { "lab": { "auth": value } } }).to_string();
            let _ = Home::with(&config).credentials().find("lab", "a");
        }
    }
}
