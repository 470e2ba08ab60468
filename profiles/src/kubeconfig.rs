// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kubeconfig that needs no other file: one cluster, one user, certificates and key embedded.

use std::fmt;

use base64ct::{Base64, Encoding};
use serde::Serialize;

use crate::yaml::{self, YamlError};

/// Who asks which API server, and with what. Everything is PEM. Printed for debugging it shows no key.
#[derive(Clone, Copy)]
pub struct Kubeconfig<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// `host:port` of the API server, as `kubernetes.control_plane_endpoint` of a profile.
    pub endpoint: &'a str,
    /// The certificate authority of the API server.
    pub authority: &'a str,
    /// Name of the user, as the certificate has it.
    pub user: &'a str,
    /// The user's certificate.
    pub certificate: &'a str,
    /// Its private key.
    pub key: &'a str,
}

impl fmt::Debug for Kubeconfig<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubeconfig")
            .field("cluster", &self.cluster)
            .field("endpoint", &self.endpoint)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Kubeconfig<'_> {
    /// The file's text. Holds the private key: write it for its owner alone.
    ///
    /// # Errors
    /// If it cannot be written as YAML.
    pub fn to_yaml(&self) -> Result<String, YamlError> {
        let context = format!("{}@{}", self.user, self.cluster);
        yaml::to_string(&Config {
            api_version: "v1",
            kind: "Config",
            clusters: [Named {
                name: self.cluster,
                item: ClusterItem {
                    cluster: Cluster {
                        server: format!("https://{}", self.endpoint),
                        certificate_authority_data: base64(self.authority),
                    },
                },
            }],
            users: [Named {
                name: self.user,
                item: UserItem {
                    user: User { client_certificate_data: base64(self.certificate), client_key_data: base64(self.key) },
                },
            }],
            contexts: [Named {
                name: &context,
                item: ContextItem { context: Context { cluster: self.cluster, user: self.user } },
            }],
            current_context: &context,
        })
    }
}

/// In constant time, as it encodes a key.
fn base64(text: &str) -> String {
    Base64::encode_string(text.as_bytes())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    api_version: &'static str,
    kind: &'static str,
    clusters: [Named<'a, ClusterItem>; 1],
    users: [Named<'a, UserItem>; 1],
    contexts: [Named<'a, ContextItem<'a>>; 1],
    #[serde(rename = "current-context")]
    current_context: &'a str,
}

#[derive(Serialize)]
struct Named<'a, T> {
    name: &'a str,
    #[serde(flatten)]
    item: T,
}

#[derive(Serialize)]
struct ClusterItem {
    cluster: Cluster,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Serialize)]
struct UserItem {
    user: User,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: String,
    client_key_data: String,
}

#[derive(Serialize)]
struct ContextItem<'a> {
    context: Context<'a>,
}

#[derive(Serialize)]
struct Context<'a> {
    cluster: &'a str,
    user: &'a str,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const EXAMPLE: Kubeconfig<'_> = Kubeconfig {
        cluster: "no",
        endpoint: "[fd00::100]:8443",
        authority: "authority\n",
        user: "system:node:worker-1",
        certificate: "certificate\n",
        key: "private key\n",
    };

    #[test]
    fn a_whole_kubeconfig() {
        insta::assert_snapshot!(EXAMPLE.to_yaml().unwrap(), @r#"
        apiVersion: v1
        kind: Config
        clusters:
        - name: "no"
          cluster:
            server: https://[fd00::100]:8443
            certificate-authority-data: YXV0aG9yaXR5Cg==
        users:
        - name: system:node:worker-1
          user:
            client-certificate-data: Y2VydGlmaWNhdGUK
            client-key-data: cHJpdmF0ZSBrZXkK
        contexts:
        - name: system:node:worker-1@no
          context:
            cluster: "no"
            user: system:node:worker-1
        current-context: system:node:worker-1@no
        "#);
    }

    #[test]
    fn debugging_shows_no_key() {
        let shown = format!("{EXAMPLE:?}");
        assert!(shown.contains("worker-1") && !shown.contains("private key"), "{shown}");
    }
}
