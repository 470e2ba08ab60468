// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::BTreeSet;
use std::process::Command;

use base64ct::{Base64, Encoding};
use profiles::node::Role::{self, Etcd, Master, Worker};

use super::*;
use crate::error::{self, ErrorKind};

const DISCOVERY: &str = "/etc/kubernetes/discovery.conf";
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

fn noon() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn days(days: i64) -> jiff::SignedDuration {
    jiff::SignedDuration::from_hours(24 * days)
}

/// A node that joins if it is a master or a worker.
fn subject(name: &str, roles: &[Role]) -> Subject {
    let join = Join { cluster: "lab".into(), endpoint: "10.0.2.100:8443".into(), validity: WEEK };
    Subject {
        name: name.into(),
        address: "10.0.2.15".parse().unwrap(),
        roles: roles.iter().copied().collect(),
        join: (roles != [Etcd]).then_some(join),
    }
}

fn sole(mut subject: Subject) -> Subject {
    subject.join = None;
    subject
}

fn pki(dir: &Path) -> Pki {
    Pki::open(&dir.join("secrets"), noon()).unwrap()
}

const ETCD_FILES: [&str; 5] = [
    "/etc/etcd/pki/ca.crt",
    "/etc/etcd/pki/peer.crt",
    "/etc/etcd/pki/peer.key",
    "/etc/etcd/pki/server.crt",
    "/etc/etcd/pki/server.key",
];
const MASTER_FILES: [&str; 9] = [
    "/etc/kubernetes/pki/ca.crt",
    "/etc/kubernetes/pki/ca.key",
    "/etc/kubernetes/pki/etcd-external/ca.crt",
    "/etc/kubernetes/pki/etcd-external/client.crt",
    "/etc/kubernetes/pki/etcd-external/client.key",
    "/etc/kubernetes/pki/front-proxy-ca.crt",
    "/etc/kubernetes/pki/front-proxy-ca.key",
    "/etc/kubernetes/pki/sa.key",
    "/etc/kubernetes/pki/sa.pub",
];

/// Every combination of roles, each as one of several masters and as the sole one.
#[test]
fn roles_get_what_they_need_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let pki = pki(dir.path());
    let combinations: [&[Role]; 7] =
        [&[Etcd], &[Master], &[Worker], &[Etcd, Master], &[Etcd, Worker], &[Master, Worker], &[Etcd, Master, Worker]];
    for roles in combinations {
        let mut want: BTreeSet<&str> = BTreeSet::new();
        want.extend(if roles.contains(&Etcd) { &ETCD_FILES[..] } else { &[] });
        want.extend(if roles.contains(&Master) { &MASTER_FILES[..] } else { &[] });
        let alone = pki.for_node(&sole(subject("node-1", roles))).unwrap().files;
        assert_eq!(alone.keys().map(String::as_str).collect::<BTreeSet<_>>(), want, "{roles:?} alone");
        want.extend((roles != [Etcd]).then_some(DISCOVERY));
        let files = pki.for_node(&subject("node-1", roles)).unwrap().files;
        assert_eq!(files.keys().map(String::as_str).collect::<BTreeSet<_>>(), want, "{roles:?}");
    }
    let worker = pki.for_node(&subject("node-1", &[Worker])).unwrap().files;
    assert_eq!(worker.into_keys().collect::<Vec<_>>(), [DISCOVERY]);
}

#[test]
fn everyone_joins_but_etcd_and_the_sole_master() {
    let joining = |text: &str| -> Vec<Subject> {
        let cluster = profiles::Cluster::parse("cluster.toml", text).unwrap_or_else(|report| panic!("{report}"));
        let profile = |node: &profiles::schema::NodeSection| cluster.node_profile(&node.name, "00").unwrap();
        let subjects = cluster.node.iter().map(|node| Subject::of(&profile(node), WEEK));
        subjects.filter(|subject| subject.join.is_some()).collect()
    };
    let names = |text: &str| joining(text).into_iter().map(|subject| subject.name).collect::<Vec<_>>();
    assert!(names(include_str!("../../../profiles/lab/cluster.toml")).is_empty());
    assert_eq!(names(include_str!("../../../profiles/lab-split/cluster.toml")), ["worker-1"]);
    let lab_ha = include_str!("../../../profiles/lab-ha/cluster.toml");
    assert_eq!(names(lab_ha), ["master-1", "master-2", "master-3", "worker-1"]);
    for subject in joining(lab_ha) {
        let join = subject.join.unwrap();
        assert_eq!((join.cluster.as_str(), join.endpoint.as_str()), ("lab-ha", "10.77.0.20:8443"));
    }
}

#[test]
fn opening_twice_gives_the_same_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let roles = [Etcd, Master];
    let first = pki(dir.path());
    let files = first.for_node(&subject("master-1", &roles)).unwrap();
    let second = Pki::open(&dir.path().join("secrets"), noon() + days(1)).unwrap();
    assert_eq!(first.cluster_id(), second.cluster_id());
    assert_eq!(known_cluster_id(&dir.path().join("secrets")).unwrap(), Some(first.cluster_id()));
    assert!(files == second.for_node(&subject("master-1", &roles)).unwrap());
    for entry in fs::read_dir(dir.path().join("secrets")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != ".lock" {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
    }
}

#[test]
fn asking_for_the_id_makes_no_pki() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(known_cluster_id(&dir.path().join("secrets")).unwrap(), None);
    assert!(!dir.path().join("secrets").exists());
}

/// A mistake in the secrets folder is the user's to mend, and imgbuild says how.
#[track_caller]
fn assert_is_told_to<T: std::fmt::Debug>(result: Result<T>, what: &str, hint: &str) {
    let error = result.unwrap_err();
    assert_eq!(error::kind(&error), ErrorKind::User, "{error:?}");
    assert!(format!("{error:#}").contains(what), "{error:#}");
    assert!(error::hint(&error).unwrap().contains(hint), "{error:?}");
}

#[test]
fn a_folder_open_to_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_is_told_to(Pki::open(dir.path(), noon()), "lets others in", "chmod 700");
}

#[test]
fn the_service_account_key_is_rsa_and_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let files = pki(dir.path()).for_node(&subject("master-1", &[Master])).unwrap().files;
    let place = |name: &str| {
        let file = dir.path().join(name);
        fs::write(&file, &files[&format!("/etc/kubernetes/pki/{name}")]).unwrap();
        file
    };
    let (key, public) = (place("sa.key"), place("sa.pub"));
    assert!(openssl(&["pkey", "-noout", "-text", "-in"], &[&key]).starts_with("Private-Key: (2048 bit, 2 primes)"));
    let of_key = openssl(&["pkey", "-pubout", "-in"], &[&key]);
    assert_eq!(of_key, openssl(&["pkey", "-pubin", "-pubout", "-in"], &[&public]));

    fs::remove_file(dir.path().join("secrets/service-account.key")).unwrap();
    assert_is_told_to(Pki::open(&dir.path().join("secrets"), noon()), "service-account.key is not there", "restore it");
    // An early imgbuild made keys of this kind.
    fs::copy(dir.path().join("secrets/etcd-ca.key"), dir.path().join("secrets/service-account.key")).unwrap();
    assert_is_told_to(
        Pki::open(&dir.path().join("secrets"), noon()),
        "service-account.key cannot be used",
        "early imgbuild",
    );
}

#[test]
fn a_lost_key_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = dir.path().join("secrets");
    let node = subject("etcd-1", &[Etcd]);
    pki(dir.path()).for_node(&node).unwrap();
    fs::remove_file(secrets.join("etcd-peer-etcd-1.key")).unwrap();
    assert_is_told_to(pki(dir.path()).for_node(&node), "another key than", "restore both");
    fs::remove_file(secrets.join("etcd-ca.key")).unwrap();
    assert_is_told_to(Pki::open(&secrets, noon()), "etcd-ca.key is not", "restore it");
}

// ---- The credential of a joining node ----

/// `cluster.certificate-authority-data`, `user.client-certificate-data` and `user.client-key-data`, decoded.
fn embedded(kubeconfig: &str) -> [String; 3] {
    ["certificate-authority-data: ", "client-certificate-data: ", "client-key-data: "].map(|key| {
        let (_, rest) = kubeconfig.split_once(key).unwrap();
        String::from_utf8(Base64::decode_vec(rest.lines().next().unwrap()).unwrap()).unwrap()
    })
}

#[test]
fn a_credential_is_handed_out_until_half_of_its_life_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let worker = subject("worker-1", &[Worker]);
    let at = |after: jiff::SignedDuration| {
        let pki = Pki::open(&dir.path().join("secrets"), noon() + after).unwrap();
        pki.for_node(&worker).unwrap()
    };
    let first = at(days(0));
    assert_eq!(first.join_until, Some(noon() + days(7)));
    assert!(at(jiff::SignedDuration::from_mins(59)) == first);
    assert!(at(days(3)) == first);
    let later = at(days(4));
    assert_eq!(later.join_until, Some(noon() + days(11)));
    let (old, new) = (embedded(&first.files[DISCOVERY]), embedded(&later.files[DISCOVERY]));
    assert_eq!(old[0], new[0]);
    assert!(old[1] != new[1] && old[2] != new[2], "a new certificate, and a new key");
    assert!(at(days(4)) == later);
    // A clock that was wrong made one that is good for too long.
    let earlier = at(days(-1));
    assert_eq!(earlier.join_until, Some(noon() + days(6)));
}

#[test]
fn a_shorter_validity_counts_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = subject("worker-1", &[Worker]);
    pki(dir.path()).for_node(&worker).unwrap();
    worker.join.as_mut().unwrap().validity = Duration::from_secs(3600);
    let secrets = pki(dir.path()).for_node(&worker).unwrap();
    assert_eq!(secrets.join_until, Some(noon() + jiff::SignedDuration::from_hours(1)));
}

#[test]
fn a_torn_credential_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let worker = subject("worker-1", &[Worker]);
    pki(dir.path()).for_node(&worker).unwrap();
    let file = fs::read_dir(dir.path().join("secrets")).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|e| e == "pem")).unwrap();
    let whole = fs::read_to_string(&file).unwrap();
    for torn in [String::new(), whole[..40].to_owned(), whole.replacen("MII", "AAA", 1)] {
        fs::write(&file, &torn).unwrap();
        let message = format!("{:#}", pki(dir.path()).for_node(&worker).unwrap_err());
        assert!(message.contains("remove the file"), "{message}");
    }
}

/// What a thief of a worker's seed has: nothing that is of use but to join as that worker.
#[test]
fn a_workers_seed_holds_no_key_but_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let pki = pki(dir.path());
    let nodes =
        [("etcd-1", Etcd), ("master-1", Master), ("master-2", Master), ("worker-1", Worker), ("worker-2", Worker)];
    let mut keys: BTreeMap<String, String> = BTreeMap::new();
    let mut workers = Vec::new();
    for (name, role) in nodes {
        let files = pki.for_node(&subject(name, &[role])).unwrap().files;
        for (path, text) in &files {
            if path.ends_with(".key") {
                keys.insert(format!("{name} {path}"), text.clone());
            }
        }
        if let Some(kubeconfig) = files.get(DISCOVERY) {
            keys.insert(format!("{name} {DISCOVERY}"), embedded(kubeconfig)[2].clone());
        }
        if role == Worker {
            workers.push((name, files));
        }
    }
    keys.insert("etcd's CA".into(), pki.etcd.key.to_pem().unwrap());
    assert_eq!(keys.len(), 2 + 4 * 2 + 4 + 1, "{:?}", keys.keys());
    for (name, files) in workers {
        // All its text, also what is encoded in it.
        let mut text: Vec<String> = files.values().cloned().collect();
        text.extend(embedded(&files[DISCOVERY]));
        for (whose, key) in &keys {
            let body: Vec<&str> = key.lines().filter(|line| !line.starts_with('-')).collect();
            let found = text.iter().any(|text| text.contains(key) || body.iter().any(|line| text.contains(line)));
            assert_eq!(found, *whose == format!("{name} {DISCOVERY}"), "{name} and the key of {whose}");
        }
    }
}

#[test]
fn nothing_shows_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let node = subject("master-1", &[Etcd, Master, Worker]);
    let pki = pki(dir.path());
    let secrets = pki.for_node(&node).unwrap();
    let planned: String = plan(&node).values().map(ToString::to_string).collect();
    let shown = format!("{pki:?} {secrets:?} {planned}");
    assert!(!shown.contains("BEGIN") && !shown.contains("MII"), "{shown}");
}

// ---- What openssl says ----

fn openssl(arguments: &[&str], files: &[&Path]) -> String {
    let output = Command::new("openssl").args(arguments).args(files).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn openssl_accepts_every_chain() {
    let dir = tempfile::tempdir().unwrap();
    // It asks the real clock.
    let pki = Pki::open(&dir.path().join("secrets"), Timestamp::now()).unwrap();
    let files = pki.for_node(&subject("master-1", &[Etcd, Master])).unwrap().files;
    let place = |path: &str, text: &str| {
        let file = dir.path().join(path.replace('/', "_"));
        fs::write(&file, text).unwrap();
        file
    };
    let verify = |ca: &str, certificate: &str, purpose: &str| {
        let (ca, certificate) = (place(ca, &files[ca]), place(certificate, &files[certificate]));
        openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile"], &[&ca, &certificate]);
    };
    for name in ["server", "peer"] {
        verify("/etc/etcd/pki/ca.crt", &format!("/etc/etcd/pki/{name}.crt"), "sslserver");
        verify("/etc/etcd/pki/ca.crt", &format!("/etc/etcd/pki/{name}.crt"), "sslclient");
    }
    let kubernetes = "/etc/kubernetes/pki";
    verify(
        &format!("{kubernetes}/etcd-external/ca.crt"),
        &format!("{kubernetes}/etcd-external/client.crt"),
        "sslclient",
    );
    verify(&format!("{kubernetes}/ca.crt"), &format!("{kubernetes}/ca.crt"), "any");

    let [ca, certificate, key] = embedded(&files[DISCOVERY]);
    assert_eq!(ca, files[&format!("{kubernetes}/ca.crt")]);
    let (ca, certificate, key) = (place("join-ca", &ca), place("join.crt", &certificate), place("join.key", &key));
    openssl(&["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"], &[&ca, &certificate]);
    let mut as_server = Command::new("openssl");
    as_server.args(["verify", "-purpose", "sslserver", "-CAfile"]).args([&ca, &certificate]);
    assert!(!as_server.output().unwrap().status.success(), "good for a server too");
    let subject = openssl(&["x509", "-noout", "-subject", "-in"], &[&certificate]);
    assert_eq!(subject.trim().replace(" = ", "="), "subject=O=system:nodes, CN=system:node:master-1");
    let public = openssl(&["x509", "-noout", "-pubkey", "-in"], &[&certificate]);
    assert_eq!(public, openssl(&["pkey", "-pubout", "-in"], &[&key]));
}
