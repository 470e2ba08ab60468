// SPDX-License-Identifier: MIT OR Apache-2.0
//! Seeds: written, read back, and rid of their secrets.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use profiles::Cluster;
use profiles::render::Owner;
use profiles::seed::{Secrets, Seed, SeedError, without_secrets};

const KEY: &str = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";

fn seed(node: &str) -> Seed {
    let cluster = Cluster::parse("ha.toml", include_str!("clusters/ha.toml")).unwrap();
    let profile = cluster.node_profile(node, "0123456789abcdef0123456789abcdef").unwrap();
    let secrets = ["/etc/kubernetes/pki/ca.key", "/etc/kubernetes/pki/ca.crt", "/etc/etcd/pki/peer.key"];
    Seed::new(profile, Secrets(secrets.iter().map(|path| ((*path).to_owned(), KEY.to_owned())).collect())).unwrap()
}

#[test]
fn documents() {
    for node in ["master1", "node1"] {
        let seed = seed(node);
        let [meta, user, network] = [seed.meta_data(), seed.user_data(), seed.network_config()].map(Result::unwrap);
        insta::assert_snapshot!(
            format!("seed_{node}"),
            format!("=== meta-data\n{meta}=== user-data\n{user}=== network-config\n{network}")
        );
    }
}

#[test]
fn what_is_written_is_read() {
    for node in ["etcd1", "master2", "node1"] {
        let seed = seed(node);
        assert_eq!(Seed::parse(&seed.user_data().unwrap(), &seed.meta_data().unwrap()).unwrap(), seed);
    }
}

#[test]
fn erasing_takes_the_secrets_and_nothing_else() {
    let seed = seed("node1");
    let with_more = format!("{}timezone: \"no\"\nruncmd:\n- [\"echo\", \"12:30\"]\n", seed.user_data().unwrap());
    let erased = without_secrets(&with_more).unwrap().unwrap();
    assert!(!erased.contains("PRIVATE") && !erased.contains("secrets"));
    assert!(
        erased.starts_with("#cloud-config\n") && erased.contains("12:30") && erased.contains("timezone: \"no\""),
        "{erased}"
    );
    let read = Seed::parse(&erased, "").unwrap();
    assert_eq!(read.profile, seed.profile);
    assert_eq!((read.instance_id.as_str(), read.secrets.0.len()), ("nocloud", 0));
    assert_eq!(without_secrets(&erased).unwrap(), None);
}

#[test]
fn secrets_have_owners_and_modes() {
    let files: BTreeMap<_, _> =
        seed("master1").secret_files().into_iter().map(|file| (file.path, (file.mode, file.owner))).collect();
    assert_eq!(files["/etc/kubernetes/pki/ca.key"], (0o600, Owner::Root));
    assert_eq!(files["/etc/kubernetes/pki/ca.crt"], (0o644, Owner::Root));
    assert_eq!(files["/etc/etcd/pki/peer.key"], (0o600, Owner::Etcd));
}

#[test]
fn secrets_are_not_printed() {
    assert!(!format!("{:?}", seed("master1")).contains("PRIVATE"));
}

#[test]
fn bad_seeds_are_refused() {
    let user = seed("node1").user_data().unwrap();
    assert_eq!(Seed::parse("#cloud-config\nhostname: x\n", "").unwrap_err(), SeedError::NotOurs);
    assert_eq!(Seed::parse(&user.replace("schema: 1", "schema: 2"), "").unwrap_err(), SeedError::Schema(2));
    let elsewhere = user.replace("/etc/etcd/pki/peer.key", "/etc/etcd/../shadow");
    assert!(matches!(Seed::parse(&elsewhere, "").unwrap_err(), SeedError::SecretPath(_)));
    assert!(matches!(Seed::parse("a: [", "").unwrap_err(), SeedError::Document { document: "user-data", .. }));
    assert!(matches!(Seed::parse(&user, "a: [").unwrap_err(), SeedError::Document { document: "meta-data", .. }));
    let unknown = user.replace("  profile:\n", "  profil: 1\n  profile:\n");
    assert!(Seed::parse(&unknown, "").unwrap_err().to_string().contains("profil"), "unknown key");
}
