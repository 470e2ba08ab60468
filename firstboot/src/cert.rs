// SPDX-License-Identifier: MIT OR Apache-2.0
//! The validity of a PEM certificate, alone or in a kubeconfig, and nothing else of X.509.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// From when to when a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// `notBefore`.
    pub from: u64,
    /// `notAfter`.
    pub until: u64,
}

const SEQUENCE: u8 = 0x30;
const EXPLICIT_0: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Validity of the first certificate in `pem`.
pub fn validity(pem: &str) -> Result<Validity> {
    let base64: String = pem
        .lines()
        .skip_while(|line| line.trim() != "-----BEGIN CERTIFICATE-----")
        .skip(1)
        .take_while(|line| !line.starts_with("-----END"))
        .collect();
    if base64.is_empty() {
        bail!("no certificate in the PEM text");
    }
    let der = decode_base64(&base64)?;
    let certificate = Der(&der).enter(SEQUENCE)?;
    let mut fields = certificate.enter(SEQUENCE)?;
    if fields.0.first() == Some(&EXPLICIT_0) {
        fields.next()?; // version
    }
    fields.next()?; // serialNumber
    fields.next()?; // signature
    fields.next()?; // issuer
    let mut validity = fields.enter(SEQUENCE)?;
    Ok(Validity { from: time(validity.next()?)?, until: time(validity.next()?)? })
}

/// What firstboot reads of a kubeconfig. Everything has a default: a kubeconfig may also name files or tokens.
#[derive(Deserialize)]
struct Kubeconfig {
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedUser {
    #[serde(default)]
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: Option<String>,
}

/// Validity of the first client certificate embedded in a kubeconfig; `None` if it embeds none that can be read.
pub fn kubeconfig_client_validity(text: &str) -> Option<Validity> {
    try_kubeconfig_client_validity(text).ok()
}

/// As [`kubeconfig_client_validity`], for a kubeconfig that must embed one.
pub fn try_kubeconfig_client_validity(text: &str) -> Result<Validity> {
    let config: Kubeconfig = serde_saphyr::from_str(text).context("understanding it")?;
    let data = config.users.into_iter().find_map(|user| user.user.client_certificate_data);
    let pem = decode_base64(&data.context("it embeds no client certificate")?)?;
    validity(std::str::from_utf8(&pem).context("reading its certificate")?)
}

struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next tag and its content; moves on.
    fn next(&mut self) -> Result<(u8, &'a [u8])> {
        let [tag, first, rest @ ..] = self.0 else { bail!("the certificate ends too early") };
        let (length, rest) = if *first < 0x80 {
            (usize::from(*first), rest)
        } else {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 4 || rest.len() < count {
                bail!("the certificate has a length that DER does not allow");
            }
            let (bytes, rest) = rest.split_at(count);
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        };
        if rest.len() < length {
            bail!("the certificate ends too early");
        }
        let (content, rest) = rest.split_at(length);
        self.0 = rest;
        Ok((*tag, content))
    }

    /// The inside of the next element, which must have `tag`.
    fn enter(&self, tag: u8) -> Result<Der<'a>> {
        let (found, content) = Der(self.0).next()?;
        if found != tag {
            bail!("the certificate has tag {found:#x} where {tag:#x} belongs");
        }
        Ok(Der(content))
    }
}

fn time((tag, text): (u8, &[u8])) -> Result<u64> {
    let text = std::str::from_utf8(text).context("reading a time of the certificate")?;
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let full = match (tag, digits) {
        // RFC 5280: two-digit years from 50 on are 19xx.
        (UTC_TIME, Some(digits)) if digits.len() == 12 => {
            format!("{}{digits}", if digits.as_bytes()[0] >= b'5' { "19" } else { "20" })
        }
        (GENERALIZED_TIME, Some(digits)) if digits.len() == 14 => digits.to_owned(),
        _ => bail!("the certificate has the time `{text}`"),
    };
    let number = |from: usize, to: usize| full[from..to].parse::<u64>().context("reading a time");
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        bail!("the certificate has the time `{text}`");
    }
    // Days since 1970-01-01 of the proleptic Gregorian calendar, years counted from March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + (day - 1) - 719_468;
    Ok(days * 86_400 + number(8, 10)? * 3600 + number(10, 12)? * 60 + number(12, 14)?)
}

/// The bytes that `text` encodes.
pub fn decode_base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut buffer, mut bits) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => bail!("the text is not base64"),
        };
        buffer = (buffer << 6 | u32::from(value)) & 0xff_ffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits & 0xff) as u8);
        }
    }
    Ok(bytes)
}

/// `2026-11-21 03:04:05 UTC`.
pub fn show_time(unix: u64) -> String {
    let (days, rest) = (unix / 86_400 + 719_468, unix % 86_400);
    let era_day = days % 146_097;
    let year_of_era = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
    let day_of_year = era_day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = year_of_era + days / 146_097 * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn openssl_certificate(from: &str, until: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let run = |args: &[&str]| {
            let output = std::process::Command::new("openssl")
                .args(args)
                .current_dir(dir.path())
                .output()
                .expect("openssl is missing: install the package `openssl`");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        std::fs::write(dir.path().join("index"), "").unwrap();
        let config = "[ca]\ndefault_ca=x\n[x]\ndatabase=index\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\npolicy=p\n[p]\n";
        std::fs::write(dir.path().join("c"), config).unwrap();
        let subject = ["-subj", "/CN=kubernetes", "-keyout", "k", "-out", "r"];
        run(&[&["req", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..], &subject]
            .concat());
        run(&[
            "ca",
            "-batch",
            "-selfsign",
            "-config",
            "c",
            "-keyfile",
            "k",
            "-in",
            "r",
            "-out",
            "cert",
            "-startdate",
            from,
            "-enddate",
            until,
            "-notext",
            "-preserveDN",
        ]);
        std::fs::read_to_string(dir.path().join("cert")).unwrap()
    }

    #[test]
    fn agrees_with_openssl() {
        let pem = openssl_certificate("20240229235958Z", "20991231000001Z");
        assert_eq!(validity(&pem).unwrap(), Validity { from: 1_709_251_198, until: 4_102_358_401 });
    }

    #[test]
    fn refuses_what_is_no_certificate() {
        assert!(validity("").is_err());
        assert!(validity("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n").is_err());
    }

    /// As `kubectl config set-credentials --embed-certs` writes it; the CA plays the client's certificate.
    pub(crate) fn kubeconfig(pem: &str) -> String {
        use std::io::Write;
        let mut child = std::process::Command::new("openssl")
            .args(["base64", "-A"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("openssl is missing: install the package `openssl`");
        child.stdin.take().unwrap().write_all(pem.as_bytes()).unwrap();
        let data = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        format!(
            "apiVersion: v1\nkind: Config\nclusters: []\nusers:\n- name: node\n  user:\n    \
             client-certificate-data: {data}\n    client-key-data: AAAA\n"
        )
    }

    #[test]
    fn a_kubeconfigs_client_certificate_is_found() {
        let pem = include_str!("../fixtures/ca.crt");
        let found = kubeconfig_client_validity(&kubeconfig(pem));
        assert_eq!(found, Some(validity(pem).unwrap()));
        for text in ["", "users: []", "users: [{name: a, user: {token: x}}]", "users: 7", "{"] {
            assert_eq!(kubeconfig_client_validity(text), None, "{text}");
        }
        assert_eq!(kubeconfig_client_validity(&kubeconfig("no certificate")), None);
    }

    #[test]
    fn shows_times() {
        assert_eq!(show_time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(show_time(1_709_251_198), "2024-02-29 23:59:58 UTC");
        assert_eq!(show_time(4_102_358_401), "2099-12-31 00:00:01 UTC");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = Der(&bytes).enter(SEQUENCE).and_then(|mut der| der.next().map(|_| ()));
            let _ = time((UTC_TIME, &bytes));
            let _ = time((GENERALIZED_TIME, &bytes));
        }
    }
}
