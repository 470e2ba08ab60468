// SPDX-License-Identifier: MIT OR Apache-2.0
//! The documents of a seed: what firstboot reads from `meta-data` and `user-data`, and how secrets leave them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use profiles::node::{NodeProfile, Role};
use serde::Deserialize;
use serde_json::Value;

use crate::failure::Failure;

/// What a seed says.
#[derive(Debug, Clone, PartialEq)]
pub struct Seed {
    /// Which instance this is.
    pub instance_id: String,
    /// The node profile.
    pub profile: NodeProfile,
    /// Path on the node -> PEM.
    pub secrets: BTreeMap<String, String>,
    /// The ordinary cloud-config keys that firstboot honours.
    pub cloud: CloudConfig,
}

impl Seed {
    /// Whether secrets are in it.
    pub fn has_secrets(&self) -> bool {
        !self.secrets.is_empty()
    }

    /// Whether a node of these roles cannot do without.
    pub fn expects_secrets(&self) -> bool {
        self.profile.has(Role::Etcd) || self.profile.has(Role::Master)
    }
}

/// Ordinary cloud-config keys that firstboot honours where cloud-init is absent. Others are not ours to judge.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CloudConfig {
    /// Public keys of people who may log in as root.
    pub ssh_authorized_keys: Vec<String>,
    /// Name of a time zone, `Asia/Shanghai`.
    pub timezone: Option<String>,
}

#[derive(Deserialize)]
struct UserData {
    imgbuild: Option<Section>,
    #[serde(flatten)]
    cloud: CloudConfig,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    schema: u32,
    profile: NodeProfile,
    #[serde(default)]
    secrets: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct MetaData {
    #[serde(rename = "instance-id")]
    instance_id: Option<String>,
}

/// Reads both documents. Every failure is exit code 10.
pub fn parse(meta_data: &[u8], user_data: &[u8]) -> Result<Seed> {
    read(meta_data, user_data).map_err(|error| match error.downcast::<Failure>() {
        Ok(failure) => failure.into(),
        Err(error) => Failure::seed(format!("{error:#}"), "make the seed again with `imgbuild --output seed`").into(),
    })
}

fn read(meta_data: &[u8], user_data: &[u8]) -> Result<Seed> {
    let meta_data = std::str::from_utf8(meta_data).context("reading meta-data")?;
    let user_data = std::str::from_utf8(user_data).context("reading user-data")?;
    // virt-install writes an empty meta-data.
    let meta: MetaData = match meta_data.trim() {
        "" => MetaData { instance_id: None },
        text => serde_saphyr::from_str(text).context("understanding meta-data")?,
    };
    let user: UserData = serde_saphyr::from_str(user_data).context("understanding user-data")?;
    let Some(section) = user.imgbuild else {
        return Err(Failure::seed(
            "user-data has no section `imgbuild`",
            "this is somebody else's seed: attach the one `imgbuild` made",
        )
        .into());
    };
    anyhow::ensure!(section.schema == 1, "user-data has imgbuild schema {}, this firstboot knows 1", section.schema);
    for path in section.secrets.keys() {
        anyhow::ensure!(is_plain_path(path), "secret path `{path}` is not a plain path below /etc");
    }
    Ok(Seed {
        instance_id: meta.instance_id.unwrap_or_else(|| "nocloud".to_owned()),
        profile: section.profile,
        secrets: section.secrets,
        cloud: user.cloud,
    })
}

fn is_plain_path(path: &str) -> bool {
    path.starts_with("/etc/") && path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."))
}

/// `user-data` without `imgbuild.secrets`, still valid cloud-config; `None` if it has none.
pub fn without_secrets(user_data: &[u8]) -> Result<Option<Vec<u8>>> {
    let text = std::str::from_utf8(user_data).context("reading user-data")?;
    let mut document: Value = serde_saphyr::from_str(text).context("understanding user-data")?;
    let section = document.get_mut("imgbuild").and_then(Value::as_object_mut);
    if section.and_then(|section| section.remove("secrets")).is_none_or(|secrets| secrets == Value::Null) {
        return Ok(None);
    }
    // JSON is YAML, and no YAML writer can get it wrong.
    let mut scrubbed = b"#cloud-config\n".to_vec();
    serde_json::to_writer_pretty(&mut scrubbed, &document).context("writing user-data without secrets")?;
    scrubbed.push(b'\n');
    Ok(Some(scrubbed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::PROFILE;

    pub(crate) fn user_data(secrets: &str) -> String {
        format!(
            "#cloud-config\nhostname: master-1\nssh_authorized_keys: [ssh-ed25519 AAAA me]\ntimezone: \"no\"\n\
             imgbuild:\n  schema: 1\n  profile: {}\n{secrets}",
            PROFILE.replace('\n', " ")
        )
    }

    const SECRETS: &str =
        "  secrets:\n    /etc/kubernetes/pki/ca.key: |\n      -----BEGIN PRIVATE KEY-----\n      SECRET\n";

    #[test]
    fn reads_a_seed() {
        let seed = parse(b"instance-id: lab-1\nlocal-hostname: master-1\n", user_data(SECRETS).as_bytes()).unwrap();
        assert_eq!(seed.instance_id, "lab-1");
        assert_eq!(seed.secrets["/etc/kubernetes/pki/ca.key"], "-----BEGIN PRIVATE KEY-----\nSECRET\n");
        assert_eq!(seed.cloud.ssh_authorized_keys, ["ssh-ed25519 AAAA me"]);
        assert_eq!(parse(b"", user_data("").as_bytes()).unwrap().instance_id, "nocloud");
    }

    #[test]
    fn secrets_leave_and_the_rest_stays() {
        let scrubbed = without_secrets(user_data(SECRETS).as_bytes()).unwrap().unwrap();
        assert!(scrubbed.starts_with(b"#cloud-config\n"));
        assert!(!String::from_utf8_lossy(&scrubbed).contains("SECRET"));
        let seed = parse(b"instance-id: lab-1", &scrubbed).unwrap();
        let before = parse(b"instance-id: lab-1", user_data(SECRETS).as_bytes()).unwrap();
        assert_eq!((&seed.profile, &seed.cloud), (&before.profile, &before.cloud));
        assert!(!seed.has_secrets() && seed.expects_secrets());
        assert_eq!(without_secrets(&scrubbed).unwrap(), None);
    }

    #[test]
    fn bad_seeds_are_exit_10() {
        let with_path = |path: &str| user_data(&format!("  secrets:\n    {path}: x\n"));
        let unknown = user_data("  unknown: 1\n");
        for (meta, user) in [
            ("a", "#cloud-config\nhostname: x\n"),
            ("instance-id: a", "\u{0}"),
            ("instance-id: a", "#cloud-config\nimgbuild: {schema: 2, profile: {}}\n"),
            ("instance-id: a", &unknown),
            ("instance-id: a", &with_path("/etc/../root/.ssh/authorized_keys")),
            ("instance-id: a", &with_path("/usr/bin/x")),
            ("instance-id: a", &with_path("etc/x")),
        ] {
            let error = parse(meta.as_bytes(), user.as_bytes()).unwrap_err();
            assert_eq!(error.downcast_ref::<Failure>().map(|failure| failure.exit.code()), Some(10), "{user}");
        }
    }
}
