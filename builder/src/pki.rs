// SPDX-License-Identifier: MIT OR Apache-2.0

//! The cluster's PKI: made once, kept in `secrets/` beside the cluster file, handed to each node by role.
//! Keys are ECDSA P-256, which kubeadm and etcd of every supported version accept. Knows nothing of images.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use profiles::node::Role;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use sha2::{Digest as _, Sha256};

/// Years a certificate authority, and the etcd certificates that nothing on a node renews, stay valid: what operators of
/// air-gapped rooms set by hand (`caCertificateValidityPeriod: 87600h`). kubeadm's own leaf certificates live one year.
const VALID_YEARS: i64 = 10;

/// Clocks of fresh machines run behind: certificates are valid from a day before they were made.
const BACKDATED_DAYS: i64 = 1;

/// A private key that signs deterministically (RFC 6979): one key always gives the same certificate bytes.
struct Key {
    secret: SigningKey,
    /// SEC1 uncompressed point, as a SubjectPublicKeyInfo holds it.
    public: Vec<u8>,
}

impl Key {
    fn new(secret: SigningKey) -> Self {
        let public = secret.verifying_key().to_encoded_point(false).as_bytes().to_vec();
        Self { secret, public }
    }

    fn generate() -> Result<Self> {
        let mut random = File::open("/dev/urandom").context("opening /dev/urandom")?;
        loop {
            let mut bytes = [0; 32];
            random.read_exact(&mut bytes).context("reading /dev/urandom")?;
            // Numbers outside the curve's order (about one in 2^32) are refused: take the next.
            if let Ok(secret) = SigningKey::from_slice(&bytes) {
                return Ok(Self::new(secret));
            }
        }
    }

    fn from_pem(pem: &str) -> Result<Self> {
        Ok(Self::new(SigningKey::from_pkcs8_pem(pem).context("reading a P-256 private key in PKCS#8")?))
    }

    fn to_pem(&self) -> Result<String> {
        Ok(self.secret.to_pkcs8_pem(LineEnding::LF).context("encoding a private key")?.to_string())
    }

    fn public_pem(&self) -> Result<String> {
        self.secret.verifying_key().to_public_key_pem(LineEnding::LF).context("encoding a public key")
    }

    /// RFC 7093, method 1: the leftmost 160 bits of the sha256 of the public key.
    fn identifier(&self) -> Vec<u8> {
        Sha256::digest(&self.public)[..20].to_vec()
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: DerSignature = self.secret.sign(message);
        Ok(signature.as_bytes().to_vec())
    }
}

/// What a leaf certificate is for.
struct Leaf {
    common_name: String,
    names: Vec<SanType>,
    usages: Vec<ExtendedKeyUsagePurpose>,
}

/// A node as its certificates name it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Host name.
    pub name: String,
    /// Address on the node network.
    pub address: IpAddr,
    /// Its roles.
    pub roles: Vec<Role>,
}

/// One certificate authority, loaded from or made in the secrets folder.
struct Authority {
    certificate: String,
    key: Key,
    common_name: &'static str,
}

/// The folder that holds a cluster's keys and certificates, and what was read from it.
pub struct Pki {
    dir: PathBuf,
    kubernetes: Authority,
    front_proxy: Authority,
    etcd: Authority,
    service_account: Key,
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Pki {
    /// Opens the secrets folder, making it, and whatever authority is not there yet, with mode 0700 and 0600.
    ///
    /// # Errors
    /// A folder that others may read, a key without its certificate, anything unreadable.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("creating {}", dir.display()))?;
        let mode = fs::metadata(dir).with_context(|| format!("reading {}", dir.display()))?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!(
                "{} holds the cluster's private keys, but its mode {:04o} lets others in; run: chmod 700 {}",
                dir.display(),
                mode & 0o7777,
                dir.display()
            );
        }
        // Two builds of one cluster at once must not make two authorities.
        let lock = File::create(dir.join(".lock")).with_context(|| format!("creating {}/.lock", dir.display()))?;
        lock.lock().with_context(|| format!("locking {}", dir.display()))?;
        Ok(Self {
            kubernetes: Authority::open(dir, "kubernetes-ca", "kubernetes-ca")?,
            front_proxy: Authority::open(dir, "front-proxy-ca", "front-proxy-ca")?,
            etcd: Authority::open(dir, "etcd-ca", "etcd-ca")?,
            service_account: open_key(dir, "service-account")?,
            dir: dir.to_owned(),
        })
    }

    /// The cluster's id: the first half of the sha256 of its Kubernetes CA certificate, in hex. Two clusters never share one.
    pub fn cluster_id(&self) -> String {
        let hash = Sha256::digest(self.kubernetes.certificate.as_bytes());
        hash[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What one node's seed carries: path on the node -> PEM, and nothing that its roles have no use for.
    pub fn for_node(&self, node: &Subject) -> Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        if node.roles.contains(&Role::Etcd) {
            let names = vec![
                dns_name(&node.name)?,
                dns_name("localhost")?,
                SanType::IpAddress(node.address),
                SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            ];
            // etcd's gateway dials its own server with the server certificate, and peers dial each other: both sides of TLS.
            let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            files.insert("/etc/etcd/pki/ca.crt".into(), self.etcd.certificate.clone());
            for role in ["server", "peer"] {
                let leaf = Leaf { common_name: node.name.clone(), names: names.clone(), usages: usages.clone() };
                let (certificate, key) = self.etcd.issue(&self.dir, &format!("etcd-{role}-{}", node.name), &leaf)?;
                files.insert(format!("/etc/etcd/pki/{role}.crt"), certificate);
                files.insert(format!("/etc/etcd/pki/{role}.key"), key);
            }
        }
        if node.roles.contains(&Role::Master) {
            let pki = "/etc/kubernetes/pki";
            for (name, authority) in [("ca", &self.kubernetes), ("front-proxy-ca", &self.front_proxy)] {
                files.insert(format!("{pki}/{name}.crt"), authority.certificate.clone());
                files.insert(format!("{pki}/{name}.key"), authority.key.to_pem()?);
            }
            files.insert(format!("{pki}/sa.key"), self.service_account.to_pem()?);
            files.insert(format!("{pki}/sa.pub"), self.service_account.public_pem()?);
            let leaf = Leaf {
                common_name: format!("kube-apiserver-etcd-client-{}", node.name),
                names: Vec::new(),
                usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
            };
            let (certificate, key) = self.etcd.issue(&self.dir, &format!("etcd-client-{}", node.name), &leaf)?;
            files.insert(format!("{pki}/etcd-external/ca.crt"), self.etcd.certificate.clone());
            files.insert(format!("{pki}/etcd-external/client.crt"), certificate);
            files.insert(format!("{pki}/etcd-external/client.key"), key);
        }
        Ok(files)
    }
}

impl Authority {
    fn open(dir: &Path, name: &str, common_name: &'static str) -> Result<Self> {
        let key = open_key(dir, name)?;
        let file = dir.join(format!("{name}.crt"));
        let certificate = match read_optional(&file)? {
            Some(pem) => pem,
            None => {
                let mut params = authority_params(common_name, &key);
                set_validity(&mut params)?;
                let pem = params.self_signed(&key).with_context(|| format!("signing {name}"))?.pem();
                write_secret(&file, &pem)?;
                pem
            }
        };
        Ok(Self { certificate, key, common_name })
    }

    /// The certificate and key stored under `name`, made on first use.
    fn issue(&self, dir: &Path, name: &str, leaf: &Leaf) -> Result<(String, String)> {
        let key = open_key(dir, name)?;
        // The subject is part of the file's name: a node that changes its address gets a new certificate, not a wrong one.
        let subject = Sha256::digest(format!("{} {:?} {}", leaf.common_name, leaf.names, self.certificate));
        let tag: String = subject[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let file = dir.join(format!("{name}.{tag}.crt"));
        if let Some(pem) = read_optional(&file)? {
            return Ok((pem, key.to_pem()?));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(&leaf.common_name);
        params.subject_alt_names.clone_from(&leaf.names);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages.clone_from(&leaf.usages);
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = KeyIdMethod::PreSpecified(key.identifier());
        params.serial_number = Some(SerialNumber::from_slice(&serial(&leaf.common_name, &key)));
        set_validity(&mut params)?;
        let issuer_params = authority_params(self.common_name, &self.key);
        let issuer = Issuer::from_params(&issuer_params, &self.key);
        let pem = params.signed_by(&key, &issuer).with_context(|| format!("signing {name}"))?.pem();
        write_secret(&file, &pem)?;
        Ok((pem, key.to_pem()?))
    }
}

fn authority_params(common_name: &str, key: &Key) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(key.identifier());
    params.serial_number = Some(SerialNumber::from_slice(&serial(common_name, key)));
    params
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn dns_name(name: &str) -> Result<SanType> {
    Ok(SanType::DnsName(name.try_into().with_context(|| format!("`{name}` as a DNS name in a certificate"))?))
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

/// Sets when `params` is valid. The only place of the builder that reads the clock: certificates are inputs of a build, and
/// kept once made.
fn set_validity(params: &mut CertificateParams) -> Result<()> {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let first =
        today.checked_sub(jiff::Span::new().days(BACKDATED_DAYS)).context("computing a certificate's first day")?;
    let last = first.checked_add(jiff::Span::new().years(VALID_YEARS)).context("computing a certificate's last day")?;
    let convert =
        |date: jiff::civil::Date| rcgen::date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8);
    params.not_before = convert(first);
    params.not_after = convert(last);
    Ok(())
}

fn open_key(dir: &Path, name: &str) -> Result<Key> {
    let file = dir.join(format!("{name}.key"));
    if let Some(pem) = read_optional(&file)? {
        return Key::from_pem(&pem).with_context(|| format!("reading {}", file.display()));
    }
    // A certificate whose key is gone would be signed for anew under a running cluster: refuse.
    let certificate = dir.join(format!("{name}.crt"));
    if certificate.exists() {
        bail!("{} is there, but its key {} is not; restore it from your backup", certificate.display(), file.display());
    }
    let key = Key::generate()?;
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn subject(roles: &[Role]) -> Subject {
        Subject { name: "master-1".into(), address: "10.0.2.15".parse().unwrap(), roles: roles.to_vec() }
    }

    #[test]
    fn roles_get_what_they_need_and_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(&dir.path().join("secrets")).unwrap();
        assert!(pki.for_node(&subject(&[Role::Worker])).unwrap().is_empty());
        let etcd = pki.for_node(&subject(&[Role::Etcd])).unwrap();
        assert!(etcd.keys().all(|path| path.starts_with("/etc/etcd/pki/")), "{:?}", etcd.keys());
        let etcd_key = pki.etcd.key.to_pem().unwrap();
        for role in [Role::Etcd, Role::Master, Role::Worker] {
            assert!(
                !pki.for_node(&subject(&[role])).unwrap().values().any(|pem| *pem == etcd_key),
                "{role:?} got etcd's CA key"
            );
        }
    }

    #[test]
    fn opening_twice_gives_the_same_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("secrets");
        let roles = [Role::Etcd, Role::Master];
        let first = Pki::open(&secrets).unwrap();
        let files = first.for_node(&subject(&roles)).unwrap();
        let second = Pki::open(&secrets).unwrap();
        assert_eq!(first.cluster_id(), second.cluster_id());
        assert_eq!(files, second.for_node(&subject(&roles)).unwrap());
        for entry in fs::read_dir(&secrets).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != ".lock" {
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
            }
        }
    }

    #[test]
    fn a_folder_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let message = format!("{:#}", Pki::open(dir.path()).unwrap_err());
        assert!(message.contains("chmod 700"), "{message}");
    }

    #[test]
    fn a_lost_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("secrets");
        Pki::open(&secrets).unwrap();
        fs::remove_file(secrets.join("etcd-ca.key")).unwrap();
        let message = format!("{:#}", Pki::open(&secrets).unwrap_err());
        assert!(message.contains("restore it from your backup"), "{message}");
    }

    #[test]
    fn openssl_accepts_every_chain() {
        let dir = tempfile::tempdir().unwrap();
        let files =
            Pki::open(&dir.path().join("secrets")).unwrap().for_node(&subject(&[Role::Etcd, Role::Master])).unwrap();
        let place = |path: &str| {
            let file = dir.path().join(path.replace('/', "_"));
            fs::write(&file, &files[path]).unwrap();
            file
        };
        let verify = |ca: &str, certificate: &str, purpose: &str| {
            let output = Command::new("openssl")
                .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
                .args([place(ca), place(certificate)])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        for name in ["server", "peer"] {
            verify("/etc/etcd/pki/ca.crt", &format!("/etc/etcd/pki/{name}.crt"), "sslserver");
            verify("/etc/etcd/pki/ca.crt", &format!("/etc/etcd/pki/{name}.crt"), "sslclient");
        }
        let pki = "/etc/kubernetes/pki";
        verify(&format!("{pki}/etcd-external/ca.crt"), &format!("{pki}/etcd-external/client.crt"), "sslclient");
        verify(&format!("{pki}/ca.crt"), &format!("{pki}/ca.crt"), "any");
    }
}
