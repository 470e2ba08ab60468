// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use proptest::prelude::*;

use super::*;

fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join("etc/apt").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn none(_: &str) -> Option<String> {
    None
}

fn uris(mirrors: &Mirrors, suite: &str) -> Vec<String> {
    mirrors.of_suite(suite).unwrap().into_iter().map(|mirror| mirror.uri).collect()
}

const DEB822: &str = "\
# A comment
Types: deb
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/some.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Check-Valid-Until: no

Types: deb
Enabled: no
URIs: http://disabled.example/debian
Suites: forky
";

#[test]
fn the_hosts_own_sources_are_used() {
    let host = host(&[
        ("sources.list.d/debian.sources", DEB822),
        (
            "sources.list.d/other.list",
            "deb [arch=amd64 signed-by=/k.asc] https://other.example/apt nodistro main # x\n",
        ),
        ("sources.list.d/ignored.save", "deb http://ignored.example/debian bookworm main\n"),
        ("sources.list", "deb-src file:/srv/debian trixie main\n#deb http://commented.example/debian trixie main\n"),
    ]);
    let mirrors = Mirrors::discover(&[], host.path(), none).unwrap();
    let bookworm = mirrors.of_suite("bookworm").unwrap();
    assert_eq!(
        bookworm[0],
        Mirror {
            uri: "http://mirror.example/debian".into(),
            keys: Keys::File("/usr/share/keyrings/some.gpg".into()),
            check_valid_until: true,
        }
    );
    let security = mirrors.of_suite("bookworm-security").unwrap();
    assert_eq!(security.len(), 1);
    assert_eq!(security[0].uri, "http://mirror.example/debian-security");
    assert_eq!(security[0].keys, Keys::File(DEBIAN_KEYRING.into()));
    assert!(!security[0].check_valid_until);
    assert_eq!(uris(&mirrors, "trixie"), ["file:///srv/debian", "http://mirror.example/debian"]);
    assert_eq!(uris(&mirrors, "forky"), ["file:///srv/debian", "http://mirror.example/debian"], "same archive");
    assert_eq!(uris(&mirrors, "nodistro")[0], "https://other.example/apt");
}

#[test]
fn named_mirrors_come_before_the_hosts() {
    let host = host(&[("sources.list.d/debian.sources", DEB822)]);
    let discover = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Mirrors::discover(&overrides, host.path(), none)
    };
    let one = discover(&["http://near.example/debian/"]).unwrap();
    assert_eq!(uris(&one, "bookworm"), ["http://near.example/debian"]);
    assert_eq!(uris(&one, "bookworm-security"), ["http://near.example/debian-security"]);
    let pairs = discover(&["http://near.example/debian", "bookworm-security=file:///srv/sec"]).unwrap();
    assert_eq!(uris(&pairs, "bookworm-security"), ["file:///srv/sec"]);
    assert_eq!(uris(&pairs, "trixie-security"), ["http://near.example/debian-security"]);
    let archive = discover(&["debian-security=https://sec.example/x"]).unwrap();
    assert_eq!(uris(&archive, "forky-security"), ["https://sec.example/x"]);
    assert_eq!(uris(&archive, "bookworm")[0], "http://mirror.example/debian", "others are still the host's");
    let e = discover(&["near.example"]).unwrap_err();
    assert!(e.to_string().contains("`near.example` is no mirror"), "{e}");
}

#[test]
fn no_mirror_says_how_to_name_one() {
    let empty = host(&[]);
    let e = Mirrors::discover(&[], empty.path(), none).unwrap().of_suite("bookworm").unwrap_err();
    assert_eq!(e.to_string(), "no mirror is known for the suite `bookworm`");
    assert!(e.hint.unwrap().contains("--mirror URL"));
}

#[test]
fn inline_keys_are_unfolded() {
    let stanza = "URIs: http://m.example/debian\nSuites: x\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEZ\n -----END PGP PUBLIC KEY BLOCK-----\n";
    let keys = deb822_sources(stanza)[0].keys.clone().unwrap();
    let wanted = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEZ\n-----END PGP PUBLIC KEY BLOCK-----\n";
    assert_eq!(keys, Keys::Inline(wanted.into()));
}

#[test]
fn proxies_and_options_of_apt() {
    let conf = "// comment \"\nAcquire { http { Proxy \"http://cache.example:3142\"; Proxy::near.example \"DIRECT\"; }; };\n\
                # x\nAcquire::Check-Valid-Until \"false\"; /* y */ DPkg::Post-Invoke { \"rm -f x || true\"; };";
    let apt = host(&[("apt.conf.d/01proxy", conf), ("apt.conf.d/02.bak", "Acquire::http::Proxy \"no\";")]);
    let mirrors = Mirrors::discover(&[], apt.path(), none).unwrap();
    assert!(!mirrors.check_valid_until);
    assert_eq!(
        mirrors.proxies,
        Proxies {
            http: Some("http://cache.example:3142".into()),
            https: Some("http://cache.example:3142".into()),
            direct: vec!["near.example".into()],
        }
    );
    let env = |name: &str| match name {
        "http_proxy" => Some("http://env.example:1".to_owned()),
        "no_proxy" => Some("a.example, b.example".to_owned()),
        _ => None,
    };
    let mirrors = Mirrors::discover(&[], host(&[]).path(), env).unwrap();
    assert_eq!(mirrors.proxies.http.as_deref(), Some("http://env.example:1"));
    assert_eq!((mirrors.proxies.https, mirrors.proxies.direct.len()), (None, 2));
}

proptest! {
    #[test]
    fn parsers_never_panic(text in "([a-zA-Z:{};\"/*# \n\\[\\]=-]|deb|\\PC){0,60}") {
        read_conf(&text, &mut BTreeMap::new());
        let _ = one_line_source(&text);
        let _ = paragraphs(&text).flat_map(deb822_sources).count();
        let _ = parse_override(&text);
    }
}

#[test]
fn repositories_are_where_the_cluster_file_says_or_where_the_person_says() {
    let overrides = ["http://debian.example".to_owned(), "kylin=https://copy.example/kylin/".to_owned()];
    let mut mirrors = Mirrors::discover(&overrides, Path::new("/nonexistent"), none).unwrap();
    assert!(mirrors.of_repository("tools").is_empty());
    mirrors.add_repository("tools", "file:/srv/tools/");
    mirrors.add_repository("kylin", "https://vendor.example/kylin");
    assert_eq!(mirrors.of_repository("tools"), ["file:///srv/tools"]);
    assert_eq!(mirrors.of_repository("kylin"), ["https://copy.example/kylin"]);
}

#[test]
fn what_a_host_has_is_taken_from_where_the_person_says() {
    let overrides = [
        "http://debian.example".to_owned(),
        "dl.k8s.io=http://127.0.0.1:8000/dl.k8s.io/".to_owned(),
        "Registry.example:5000=https://near.example".to_owned(),
        "dl.k8s.io=file:///srv/k8s".to_owned(),
    ];
    let mut mirrors = Mirrors::discover(&overrides, Path::new("/nonexistent"), none).unwrap();
    assert_eq!(
        mirrors.of_url("https://dl.k8s.io/v1.32.1/bin/linux/amd64/kubeadm?a=b"),
        [
            "http://127.0.0.1:8000/dl.k8s.io/v1.32.1/bin/linux/amd64/kubeadm?a=b",
            "file:///srv/k8s/v1.32.1/bin/linux/amd64/kubeadm?a=b"
        ]
    );
    assert_eq!(mirrors.of_url("https://registry.example:5000/v2/"), ["https://near.example/v2/"]);
    for other in ["https://registry.example/v2/", "https://cdn.dl.k8s.io/x", "https://example.org/dl.k8s.io/x"] {
        assert_eq!(mirrors.of_url(other), [other]);
    }
    mirrors.add_repository("tools", "https://dl.k8s.io/rpm");
    assert_eq!(mirrors.of_repository("tools")[0], "http://127.0.0.1:8000/dl.k8s.io/rpm");
}
