// SPDX-License-Identifier: MIT OR Apache-2.0

//! The cluster's PKI: made once, kept in `secrets/` beside the cluster file, handed to each node by role (`plan.rs`).
//! Knows nothing of images.

mod key;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use p256::pkcs8::der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use p256::pkcs8::der::{self, Decode, Document, SliceReader, Tag, Tagged};
use profiles::kubeconfig::Kubeconfig;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyUsagePurpose, SanType, SerialNumber,
};
use sha2::{Digest as _, Sha256};

use key::{Key, ServiceAccountKey};
pub use plan::{Ca, Join, Leaf, Secret, Subject, Usage, plan};

use crate::error::Failure;

/// Years a certificate authority, and the etcd certificates that nothing on a node renews, stay valid: what operators of
/// air-gapped rooms set by hand (`caCertificateValidityPeriod: 87600h`). kubeadm's own leaf certificates live one year.
const VALID_YEARS: i64 = 10;

/// Clocks of fresh machines run behind: certificates are valid from a day before they were made.
const BACKDATED_DAYS: i64 = 1;

/// One certificate authority, loaded from or made in the secrets folder.
struct Authority {
    certificate: String,
    key: Key,
    name: &'static str,
}

/// The folder that holds a cluster's keys and certificates, and what was read from it.
pub struct Pki {
    dir: PathBuf,
    now: Timestamp,
    kubernetes: Authority,
    front_proxy: Authority,
    etcd: Authority,
    service_account: ServiceAccountKey,
}

/// What one node's seed carries.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeSecrets {
    /// Path on the node -> content.
    pub files: BTreeMap<String, String>,
    /// Until when the node can join with them; `None` for one that joins nothing.
    pub join_until: Option<Timestamp>,
}

impl fmt::Debug for NodeSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSecrets").field("join_until", &self.join_until).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// The id of the cluster whose secrets folder is `dir`; `None` if no PKI was made yet. Makes nothing.
///
/// # Errors
/// An unreadable certificate.
pub fn known_cluster_id(dir: &Path) -> Result<Option<String>> {
    Ok(read_optional(&dir.join(format!("{}.crt", Ca::Kubernetes.name())))?.map(|certificate| cluster_id(&certificate)))
}

/// The first half of the sha256 of the Kubernetes CA certificate, in hex. Two clusters never share one.
fn cluster_id(certificate: &str) -> String {
    let hash = Sha256::digest(certificate.as_bytes());
    hash[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Pki {
    /// Opens the secrets folder, making it, and whatever authority is not there yet, with mode 0700 and 0600. Certificates
    /// are inputs of a build, and kept once made: `now` decides only how long those that are made are valid, and whether a
    /// credential for joining is too old to be handed out again.
    ///
    /// # Errors
    /// A folder that others may read, a key without its certificate, anything unreadable.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("creating {}", dir.display()))?;
        let mode = fs::metadata(dir).with_context(|| format!("reading {}", dir.display()))?.permissions().mode();
        if mode & 0o077 != 0 {
            let what = format!(
                "{} holds the cluster's private keys, but its mode {:04o} lets others in",
                dir.display(),
                mode & 0o7777
            );
            return Err(Failure::user(what).hint(format!("run: chmod 700 {}", dir.display())).into());
        }
        let _lock = lock(dir)?;
        // First: that it is missing beside an authority then means that it was lost.
        let service_account = open_service_account_key(dir)?;
        Ok(Self {
            service_account,
            kubernetes: Authority::open(dir, Ca::Kubernetes, now)?,
            front_proxy: Authority::open(dir, Ca::FrontProxy, now)?,
            etcd: Authority::open(dir, Ca::Etcd, now)?,
            now,
            dir: dir.to_owned(),
        })
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> String {
        cluster_id(&self.kubernetes.certificate)
    }

    fn authority(&self, ca: Ca) -> &Authority {
        match ca {
            Ca::Kubernetes => &self.kubernetes,
            Ca::FrontProxy => &self.front_proxy,
            Ca::Etcd => &self.etcd,
        }
    }

    /// What one node's seed carries, and nothing that its roles have no use for.
    ///
    /// # Errors
    /// A key that is gone, anything unreadable or unwritable in the secrets folder.
    pub fn for_node(&self, node: &Subject) -> Result<NodeSecrets> {
        let _lock = lock(&self.dir)?;
        let mut secrets = NodeSecrets { files: BTreeMap::new(), join_until: None };
        for (path, secret) in plan(node) {
            let text = match secret {
                Secret::AuthorityCertificate(ca) => self.authority(ca).certificate.clone(),
                Secret::AuthorityKey(ca) => self.authority(ca).key.to_pem()?,
                Secret::ServiceAccountKey => self.service_account.to_pem()?,
                Secret::ServiceAccountPublic => self.service_account.public_pem()?,
                Secret::Certificate(leaf) => self.issue(&leaf)?,
                Secret::Key(leaf) => open_key(&self.dir, &leaf.file)?.to_pem()?,
                Secret::Discovery(join, leaf) => {
                    let (certificate, key) = self.issue_briefly(&leaf, join.validity)?;
                    secrets.join_until = Some(not_after(&certificate).context("reading a certificate just made")?);
                    Kubeconfig {
                        cluster: &join.cluster,
                        endpoint: &join.endpoint,
                        authority: &self.kubernetes.certificate,
                        user: &leaf.common_name,
                        certificate: &certificate,
                        key: &key,
                    }
                    .to_yaml()?
                }
            };
            secrets.files.insert(path, text);
        }
        Ok(secrets)
    }

    /// A file of the leaf's in the secrets folder. What it certifies is part of the name: a node that changes its address
    /// gets a new certificate, not a wrong one.
    fn file(&self, leaf: &Leaf, extension: &str) -> Result<PathBuf> {
        let (names, authority) = (subject_alt_names(leaf)?, &self.authority(leaf.authority).certificate);
        let subject = Sha256::digest(format!("{} {names:?} {authority}", leaf.common_name));
        let tag: String = subject[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(self.dir.join(format!("{}.{tag}.{extension}", leaf.file)))
    }

    /// The certificate that the leaf's key has, made on first use.
    fn issue(&self, leaf: &Leaf) -> Result<String> {
        let key = open_key(&self.dir, &leaf.file)?;
        let file = self.file(leaf, "crt")?;
        if let Some(pem) = read_optional(&file)? {
            let (_, document) = Document::from_pem(&pem).map_err(|error| unusable(&file, error))?;
            if !document.as_bytes().windows(key.public.len()).any(|bytes| bytes == key.public) {
                let (file, dir, name) = (file.display(), self.dir.display(), &leaf.file);
                let what = format!("{file} is the certificate of another key than {dir}/{name}.key");
                return Err(Failure::user(what).hint("restore both from your backup").into());
            }
            return Ok(pem);
        }
        let pem = self.sign(leaf, &key, years(self.now)?)?;
        write_secret(&file, &pem)?;
        Ok(pem)
    }

    /// A certificate and its key that are good for `validity`, new ones when the last have half of it left or less. Both are
    /// in one file, so that no power cut leaves one without the other.
    fn issue_briefly(&self, leaf: &Leaf, validity: Duration) -> Result<(String, String)> {
        let file = self.file(leaf, "pem")?;
        if let Some(pair) = read_optional(&file)? {
            let reading = || {
                let file = file.display();
                format!("reading {file}, a credential that can be made anew: remove the file")
            };
            let at = pair.find(KEY_BEGINS).context("it has no key").with_context(reading)?;
            let (certificate, key) = pair.split_at(at);
            let left = not_after(certificate).with_context(reading)?.duration_since(self.now);
            // More than all of it is left when the cluster file's `join_validity` has become shorter.
            if left.as_secs() > seconds(validity / 2) && left.as_secs() <= seconds(validity) {
                return Ok((certificate.to_owned(), key.to_owned()));
            }
        }
        let key = Key::generate()?;
        let until = self.now.as_second().checked_add(seconds(validity)).context("adding a validity to the clock")?;
        let certificate = self.sign(leaf, &key, Validity { from: backdated(self.now)?, until })?;
        let pem = key.to_pem()?;
        write_secret(&file, &format!("{certificate}{pem}"))?;
        Ok((certificate, pem))
    }

    fn sign(&self, leaf: &Leaf, key: &Key, validity: Validity) -> Result<String> {
        let authority = self.authority(leaf.authority);
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(leaf.organization, &leaf.common_name);
        params.subject_alt_names = subject_alt_names(leaf)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usage = |usage: &Usage| match usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        };
        params.extended_key_usages = leaf.usages.iter().map(usage).collect();
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = KeyIdMethod::PreSpecified(key.identifier());
        params.serial_number = Some(SerialNumber::from_slice(&serial(&leaf.common_name, key)));
        validity.set(&mut params)?;
        let issuer_params = authority_params(authority.name, &authority.key);
        let issuer = Issuer::from_params(&issuer_params, &authority.key);
        Ok(params.signed_by(key, &issuer).with_context(|| format!("signing {}", leaf.file))?.pem())
    }
}

/// How a private key in PKCS#8 begins.
const KEY_BEGINS: &str = "-----BEGIN PRIVATE KEY-----";

impl Authority {
    fn open(dir: &Path, ca: Ca, now: Timestamp) -> Result<Self> {
        let name = ca.name();
        let key = open_key(dir, name)?;
        let file = dir.join(format!("{name}.crt"));
        let certificate = match read_optional(&file)? {
            Some(pem) => pem,
            None => {
                let mut params = authority_params(name, &key);
                years(now)?.set(&mut params)?;
                let pem = params.self_signed(&key).with_context(|| format!("signing {name}"))?.pem();
                write_secret(&file, &pem)?;
                pem
            }
        };
        Ok(Self { certificate, key, name })
    }
}

fn authority_params(common_name: &str, key: &Key) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(None, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(key.identifier());
    params.serial_number = Some(SerialNumber::from_slice(&serial(common_name, key)));
    params
}

fn distinguished_name(organization: Option<&str>, common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // Encoded in this order.
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn subject_alt_names(leaf: &Leaf) -> Result<Vec<SanType>> {
    let dns = |name: &String| {
        let value = name.as_str().try_into().with_context(|| format!("`{name}` as a DNS name in a certificate"))?;
        Ok(SanType::DnsName(value))
    };
    let addresses = leaf.addresses.iter().map(|address| Ok(SanType::IpAddress(*address)));
    leaf.dns_names.iter().map(dns).chain(addresses).collect()
}

/// 16 bytes from the key and the subject: unique as the key is. The top bit is clear: serials are positive (RFC 5280, 4.1.2.2).
fn serial(common_name: &str, key: &Key) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(&key.public);
    hash.update(common_name.as_bytes());
    let mut bytes = hash.finalize()[..16].to_vec();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes
}

/// When a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy)]
struct Validity {
    from: i64,
    until: i64,
}

impl Validity {
    fn set(self, params: &mut CertificateParams) -> Result<()> {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let at = |seconds: i64| -> Result<_> { Ok(epoch + Duration::from_secs(u64::try_from(seconds)?)) };
        params.not_before = at(self.from).context("a certificate from before 1970: is the clock right?")?;
        params.not_after = at(self.until)?;
        Ok(())
    }
}

/// [`VALID_YEARS`] from the day before `now` on, both at midnight.
fn years(now: Timestamp) -> Result<Validity> {
    let first = backdated(now)?;
    let first_day = Timestamp::from_second(first)?.to_zoned(jiff::tz::TimeZone::UTC);
    let last = first_day.checked_add(jiff::Span::new().years(VALID_YEARS));
    Ok(Validity { from: first, until: last.context("computing a certificate's last day")?.timestamp().as_second() })
}

/// Midnight of the day [`BACKDATED_DAYS`] before `now`.
fn backdated(now: Timestamp) -> Result<i64> {
    let today = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let first = today.checked_sub(jiff::Span::new().days(BACKDATED_DAYS));
    let first = first.and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC));
    Ok(first.context("computing a certificate's first day")?.timestamp().as_second())
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Until when a certificate is valid.
fn not_after(pem: &str) -> Result<Timestamp> {
    let (_, document) = Document::from_pem(pem).map_err(anyhow::Error::msg)?;
    let time = last_moment(document.as_bytes()).map_err(anyhow::Error::msg).context("it is no certificate")?;
    Ok(Timestamp::from_second(seconds(time))?)
}

/// `notAfter` of a certificate (RFC 5280, 4.1), since 1970.
fn last_moment(certificate: &[u8]) -> der::Result<Duration> {
    let mut certificate = sequence(&mut SliceReader::new(certificate)?)?;
    let mut to_be_signed = sequence(&mut certificate)?;
    // Version, serial number, signature algorithm, issuer.
    for _ in 0..4 {
        AnyRef::decode(&mut to_be_signed)?;
    }
    let mut validity = sequence(&mut to_be_signed)?;
    AnyRef::decode(&mut validity)?;
    let last = AnyRef::decode(&mut validity)?;
    match last.tag() {
        Tag::UtcTime => Ok(last.decode_as::<UtcTime>()?.to_unix_duration()),
        _ => Ok(last.decode_as::<GeneralizedTime>()?.to_unix_duration()),
    }
}

/// What is inside the sequence that comes next.
fn sequence<'a>(reader: &mut SliceReader<'a>) -> der::Result<SliceReader<'a>> {
    let next = AnyRef::decode(reader)?;
    next.tag().assert_eq(Tag::Sequence)?;
    SliceReader::new(next.value())
}

/// Two builds of one cluster at once must not make two authorities, or two keys of one name.
fn lock(dir: &Path) -> Result<File> {
    let lock = File::create(dir.join(".lock")).with_context(|| format!("creating {}/.lock", dir.display()))?;
    lock.lock().with_context(|| format!("locking {}", dir.display()))?;
    Ok(lock)
}

/// A file of the secrets folder that is not what its name says.
fn unusable(file: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::user(format!("{} cannot be used", file.display())).hint("restore it from your backup").caused_by(error)
}

fn open_key(dir: &Path, name: &str) -> Result<Key> {
    let file = dir.join(format!("{name}.key"));
    if let Some(pem) = read_optional(&file)? {
        return Key::from_pem(&pem).map_err(|error| unusable(&file, error).into());
    }
    // A certificate whose key is gone would be signed for anew under a running cluster: refuse.
    let certificate = dir.join(format!("{name}.crt"));
    if certificate.exists() {
        let what = format!("{} is there, but its key {} is not", certificate.display(), file.display());
        return Err(Failure::user(what).hint("restore it from your backup").into());
    }
    let key = Key::generate()?;
    write_secret(&file, &key.to_pem()?)?;
    Ok(key)
}

fn open_service_account_key(dir: &Path) -> Result<ServiceAccountKey> {
    let file = dir.join("service-account.key");
    if let Some(pem) = read_optional(&file)? {
        let hint = format!(
            "restore it from your backup; or an early imgbuild made it, then remove {} if its cluster may be made anew",
            dir.display()
        );
        return ServiceAccountKey::from_pem(&pem).map_err(|error| unusable(&file, error).hint(hint).into());
    }
    if dir.join("kubernetes-ca.crt").exists() {
        let what = format!("{} is not there, but the cluster's certificates are", file.display());
        let hint = "restore it from your backup: with another key no token of the running cluster would be valid";
        return Err(Failure::user(what).hint(hint).into());
    }
    let key = ServiceAccountKey::generate()?;
    write_secret(&file, &key.to_pem()?)?;
    Ok(key)
}

fn read_optional(file: &Path) -> Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

/// Writes `file` whole or not at all, readable by its owner only.
fn write_secret(file: &Path, text: &str) -> Result<()> {
    let dir = file.parent().context("a secret's file has a folder")?;
    // tempfile creates with mode 0600.
    let mut temporary =
        tempfile::NamedTempFile::new_in(dir).with_context(|| format!("creating a file in {}", dir.display()))?;
    temporary.write_all(text.as_bytes()).with_context(|| format!("writing {}", file.display()))?;
    temporary.as_file().sync_all().with_context(|| format!("syncing {}", file.display()))?;
    temporary.persist(file).with_context(|| format!("placing {}", file.display()))?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", dir.display()))
}
