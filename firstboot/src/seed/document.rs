// SPDX-License-Identifier: MIT OR Apache-2.0
//! The documents of a seed: our section by `profiles`, and the ordinary cloud-config keys that firstboot honours.

use anyhow::{Context, Result};
use profiles::node::{NodeProfile, Role};
use profiles::seed::SeedError;
use serde::Deserialize;

use crate::failure::Failure;

/// What a seed says.
#[derive(Debug, Clone, PartialEq)]
pub struct Seed {
    /// Our section.
    pub ours: profiles::seed::Seed,
    /// The ordinary cloud-config keys that firstboot honours.
    pub cloud: CloudConfig,
}

impl Seed {
    /// The node profile.
    pub fn profile(&self) -> &NodeProfile {
        &self.ours.profile
    }

    /// Whether secrets are in it.
    pub fn has_secrets(&self) -> bool {
        !self.ours.secrets.0.is_empty()
    }

    /// Whether a node of these roles cannot do without.
    pub fn expects_secrets(&self) -> bool {
        self.profile().has(Role::Etcd) || self.profile().has(Role::Master)
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

/// Reads both documents. Every failure is exit code 10.
pub fn parse(meta_data: &[u8], user_data: &[u8]) -> Result<Seed> {
    read(meta_data, user_data).map_err(|error| {
        let hint = match error.downcast_ref::<SeedError>() {
            Some(SeedError::NotOurs) => "attach the seed that `imgbuild` made",
            _ => "build this node's image again with `imgbuild --profile`",
        };
        Failure::seed(format!("{error:#}"), hint).into()
    })
}

fn read(meta_data: &[u8], user_data: &[u8]) -> Result<Seed> {
    let meta_data = std::str::from_utf8(meta_data).context("reading meta-data")?;
    let user_data = std::str::from_utf8(user_data).context("reading user-data")?;
    let ours = profiles::seed::Seed::parse(user_data, meta_data)?;
    let cloud = serde_saphyr::from_str(user_data).context("understanding user-data")?;
    Ok(Seed { ours, cloud })
}

/// `user-data` without secrets, still valid cloud-config; `None` if it has none.
pub fn without_secrets(user_data: &[u8]) -> Result<Option<Vec<u8>>> {
    let text = std::str::from_utf8(user_data).context("reading user-data")?;
    Ok(profiles::seed::without_secrets(text)?.map(String::into_bytes))
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
        assert_eq!(seed.ours.instance_id, "lab-1");
        assert_eq!(seed.ours.secrets.0["/etc/kubernetes/pki/ca.key"], "-----BEGIN PRIVATE KEY-----\nSECRET\n");
        assert_eq!(seed.cloud.ssh_authorized_keys, ["ssh-ed25519 AAAA me"]);
        assert_eq!(parse(b"", user_data("").as_bytes()).unwrap().ours.instance_id, "nocloud");
    }

    #[test]
    fn secrets_leave_and_the_rest_stays() {
        let scrubbed = without_secrets(user_data(SECRETS).as_bytes()).unwrap().unwrap();
        assert!(scrubbed.starts_with(b"#cloud-config\n"));
        assert!(!String::from_utf8_lossy(&scrubbed).contains("SECRET"));
        let seed = parse(b"instance-id: lab-1", &scrubbed).unwrap();
        let before = parse(b"instance-id: lab-1", user_data(SECRETS).as_bytes()).unwrap();
        assert_eq!((seed.profile(), &seed.cloud), (before.profile(), &before.cloud));
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
