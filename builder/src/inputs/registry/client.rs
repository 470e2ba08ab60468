// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests to one registry: anonymous until it asks for more, then with what it asks for. Knows nothing of images.
//!
//! Sources: distribution-spec (Authorization, `Range`, redirects); docker's token specification
//! (<https://distribution.github.io/distribution/spec/auth/token/>).
//!
//! What protects credentials:
//! * They go to the registry they were kept for, and to the token service that this registry names, by TLS alone;
//!   without TLS only inside of this machine. A registry that is reached without TLS cannot name a token service:
//!   somebody on the way could.
//! * A redirect to another scheme, host or port carries none of them, and what comes from there cannot ask for any.
//! * No redirect leads from TLS to plain HTTP.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use base64ct::{Base64, Encoding};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::address::{host_of, is_private, joined, origin, repository};
use super::challenge::{self, Challenge};
use super::credentials::{Credentials, Found, Secret};
use crate::error::Failure;
use crate::inputs::download::small;
use crate::inputs::http::{Ask, Client, GetError, Response};

/// What browsers allow is 20; a registry needs one.
const MOST_REDIRECTS: usize = 5;
/// Tokens have some thousand bytes.
const TOKEN_LIMIT: u64 = 1 << 20;
/// What is read of an error, and shown of it.
const ERROR_LIMIT: u64 = 16 << 10;
const SHOWN: usize = 200;

/// What manifests may be (distribution-spec, "Pulling manifests"; image-spec, media-types.md; distribution's
/// manifest-v2-2).
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";

/// A registry.
pub(super) struct Registry {
    /// Scheme, host and port.
    origin: String,
    client: Client,
    credentials: Credentials,
    /// The header `Authorization`, by repository.
    grants: Mutex<BTreeMap<String, Arc<str>>>,
}

impl fmt::Debug for Registry {
    /// Without what it grants.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// A token service's answer.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    /// The same, by OAuth's name.
    #[serde(default)]
    access_token: String,
}

impl Registry {
    pub(super) fn new(origin: String, client: Client, credentials: Credentials) -> Self {
        Self { origin, client, credentials, grants: Mutex::default() }
    }

    /// Asks for `url`, which is of this registry, from byte `offset` on.
    pub(super) fn get(&self, url: &str, offset: u64) -> Result<Response, GetError> {
        let repository = repository(url).unwrap_or_default();
        let granted = self.grants.lock().unwrap_or_else(PoisonError::into_inner).get(repository).cloned();
        let (response, own) = self.follow(url, offset, granted.as_deref())?;
        if response.status != 401 || !own {
            return Ok(response);
        }
        let challenges: Vec<Challenge> = response.all("www-authenticate").flat_map(challenge::parse).collect();
        let granted = self.renew(repository, granted, &challenges)?;
        let (response, own) = self.follow(url, offset, Some(&*granted))?;
        if response.status == 401 && own {
            return Err(self.refused(repository, &said(response)));
        }
        Ok(response)
    }

    /// Asks and goes where redirects lead. Tells whether the answer is the registry's own.
    fn follow(&self, url: &str, offset: u64, authorization: Option<&str>) -> Result<(Response, bool), GetError> {
        let (home, mut at) = (origin(url), url.to_owned());
        for _ in 0..=MOST_REDIRECTS {
            let own = origin(&at) == home;
            let mut headers = vec![("Accept", format!("{ACCEPT}, */*;q=0.1"))];
            if let (true, Some(value)) = (own, authorization) {
                headers.push(("Authorization", value.to_owned()));
            }
            let response =
                self.client.send(&Ask { url: &at, offset, version: None, headers: &headers, follow: false })?;
            if !matches!(response.status, 301 | 302 | 303 | 307 | 308) {
                return Ok((response, own));
            }
            let next = response.header("location").and_then(|location| joined(&at, location));
            // The address itself may have a signature in it that is as good as a password.
            let next = next.ok_or_else(|| GetError::Permanent(format!("HTTP {} to nowhere", response.status)))?;
            if at.starts_with("https://") && !next.starts_with("https://") {
                let to = origin(&next).unwrap_or_default();
                return Err(GetError::Permanent(format!("it sends us to {to}, which is not private")));
            }
            at = next;
        }
        Err(GetError::Permanent(format!("it sends us on more than {MOST_REDIRECTS} times")))
    }

    /// What to send instead of `used`, which is no longer good: what another thread has got meanwhile, or a new one.
    fn renew(&self, repository: &str, used: Option<Arc<str>>, challenges: &[Challenge]) -> Result<Arc<str>, GetError> {
        // Held while asking, so that many downloads ask once.
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = grants.get(repository).filter(|other| used.as_ref() != Some(*other)) {
            return Ok(other.clone());
        }
        grants.remove(repository);
        let grant: Arc<str> = self.grant(repository, challenges)?.into();
        grants.insert(repository.to_owned(), grant.clone());
        Ok(grant)
    }

    fn grant(&self, repository: &str, challenges: &[Challenge]) -> Result<String, GetError> {
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let found = self.credentials.find(host_of(&self.origin), repository).map_err(GetError::Failed)?;
        match (of("bearer"), of("basic"), found) {
            (Some(_), _, Some(Found { secret: Secret::Bearer(token), .. })) => {
                self.must_be_private(&self.origin)?;
                header("Bearer", &token)
            }
            (Some(bearer), _, found) => header("Bearer", &self.token(repository, bearer, found)?),
            (None, Some(_), Some(Found { secret: Secret::Basic { user, password }, .. })) => {
                self.must_be_private(&self.origin)?;
                Ok(basic(&user, &password))
            }
            (None, Some(_), _) => Err(self.refused(repository, "it wants a user and a password, and none are known")),
            (None, None, _) => Err(GetError::Failed(
                Failure::environment(format!("{} wants credentials, and in no form that is known", self.origin))
                    .hint("imgbuild knows `Basic` and `Bearer` in the header WWW-Authenticate"),
            )),
        }
    }

    /// Asks the token service that the registry names.
    fn token(&self, repository: &str, bearer: &Challenge, found: Option<Found>) -> Result<String, GetError> {
        let realm = bearer.parameters.get("realm").filter(|realm| origin(realm).is_some());
        let realm = realm
            .ok_or_else(|| GetError::Failed(Failure::environment(format!("{} names no token service", self.origin))))?;
        let mut url = realm.clone();
        let own = format!("repository:{repository}:pull");
        let scope = bearer.parameters.get("scope").filter(|scope| !scope.is_empty()).unwrap_or(&own);
        let service = bearer.parameters.get("service").map(|service| ("service", service));
        for (name, value) in service.into_iter().chain([("scope", scope)]) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
        }
        let authorization = match &found {
            Some(Found { secret: Secret::Basic { user, password }, .. }) => {
                self.must_be_private(&self.origin)?;
                self.must_be_private(realm)?;
                Some(basic(user, password))
            }
            _ => None,
        };
        let (response, _) = self.follow(&url, 0, authorization.as_deref())?;
        match response.status {
            200 => {}
            400 | 401 | 403 => {
                let said = said(response);
                let with = match found {
                    Some(found) => format!("the token service refuses the credentials of {}: {said}", found.source),
                    None => format!("the token service gives nothing to the unknown: {said}"),
                };
                return Err(self.refused(repository, &with));
            }
            status @ (408 | 425 | 429 | 500..) => {
                return Err(GetError::Transient(format!("the token service answers HTTP {status}")));
            }
            status => return Err(GetError::Permanent(format!("the token service answers HTTP {status}"))),
        }
        token_of(&small(response, TOKEN_LIMIT)?)
            .ok_or_else(|| GetError::Permanent(format!("the token service of {} answers without a token", self.origin)))
    }

    fn must_be_private(&self, url: &str) -> Result<(), GetError> {
        if is_private(url) {
            return Ok(());
        }
        let to = origin(url).unwrap_or_default();
        Err(GetError::Failed(
            Failure::environment(format!("{} wants credentials, and {to} is reached without TLS", self.origin)).hint(
                "imgbuild sends credentials by https:// only, and to 127.0.0.1: take the registry's https:// address",
            ),
        ))
    }

    fn refused(&self, repository: &str, why: &str) -> GetError {
        let host = host_of(&self.origin);
        GetError::Failed(Failure::environment(format!("{host} does not give {repository} away: {why}")).hint(format!(
            "see whether the name is right; `docker login {host}` or `skopeo login {host}` if it is not public"
        )))
    }
}

/// The token in a token service's answer.
fn token_of(text: &[u8]) -> Option<String> {
    let token: Token = serde_json::from_slice(text).ok()?;
    let token = if token.token.is_empty() { token.access_token } else { token.token };
    Some(token).filter(|token| !token.is_empty())
}

/// What an answer that is an error says, for people: `HTTP 404, manifest unknown`.
pub(super) fn said(response: Response) -> String {
    let status = response.status;
    match message(&small(response, ERROR_LIMIT).unwrap_or_default()) {
        Some(message) => format!("HTTP {status}, {message}"),
        None => format!("HTTP {status}"),
    }
}

/// The message of an error as distribution-spec has it ("Error codes"), made harmless for a terminal.
fn message(text: &[u8]) -> Option<String> {
    let said: serde_json::Value = serde_json::from_slice(text).ok()?;
    let first = &said["errors"][0];
    let message = first["message"].as_str().filter(|text| !text.is_empty()).or_else(|| first["code"].as_str())?;
    let message: String = message.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    Some(message).filter(|message| !message.is_empty())
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", Base64::encode_string(format!("{user}:{password}").as_bytes()))
}

/// A header's value, which must not bring further lines.
fn header(scheme: &str, token: &str) -> Result<String, GetError> {
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(format!("{scheme} {token}"));
    }
    Err(GetError::Permanent("the token has characters in it that no token has".to_owned()))
}

/// For tests/fuzz: neither terminals nor header lines get more than they should.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &[u8]) {
    if let Some(message) = message(text) {
        assert!(message.chars().count() <= SHOWN && !message.contains(char::is_control), "{message:?}");
    }
    if let Some(Ok(line)) = token_of(text).map(|token| header("Bearer", &token)) {
        assert!(line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{line:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_shown_in_short_and_without_control_characters() {
        for (text, wanted) in [
            (
                &br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#[..],
                Some("manifest unknown"),
            ),
            (br#"{"errors":[{"code":"DENIED","message":""}]}"#, Some("DENIED")),
            (b"{\"errors\":[{\"message\":\"\\u001b[31mred\\n\"}]}", Some("[31mred")),
            (br#"{"errors":[]}"#, None),
            (b"<html>", None),
        ] {
            assert_eq!(message(text).as_deref(), wanted);
        }
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(1000));
        assert_eq!(message(long.as_bytes()).map(|text| text.len()), Some(SHOWN));
    }

    #[test]
    fn a_token_has_either_name() {
        for (text, wanted) in [
            (&br#"{"token":"a","access_token":"b"}"#[..], Some("a")),
            (br#"{"access_token":"b","expires_in":60}"#, Some("b")),
            (br#"{"token":""}"#, None),
            (b"token", None),
        ] {
            assert_eq!(token_of(text).as_deref(), wanted);
        }
    }

    #[test]
    fn a_token_brings_no_header_line_of_its_own() {
        assert!(header("Bearer", "a.b-c~d+e/f=").is_ok());
        assert!(header("Bearer", "a\r\nX: y").is_err());
    }
}
