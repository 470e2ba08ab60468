// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

const KUBEADM: &str = "https://dl.k8s.io/release/v1.32.1/bin/linux/amd64/kubeadm";
/// kubeadm 1.32.1 for amd64.
const SHA256: &str = "5ed13bb4bc1d5fb4579b8cc8c7c2245356837122f9a3fd729c2f6d1338f58dcf";
/// Another file's.
const OTHER: &str = "967dc8984651c48230a2ff5319e22cbf858452e974104a19bbade5d1708f72ad";

fn sha512(of: &str) -> String {
    Checksum::of_sha512(Sha512::new_with_prefix(of)).to_string().replace("sha512 ", "")
}

fn of(list: impl AsRef<[u8]>, url: &str) -> Result<Vec<String>, Silence> {
    Ok(List::parse(list.as_ref()).of(url)?.iter().map(ToString::to_string).collect())
}

#[test]
fn every_form_is_read() {
    let long = sha512("x");
    for (list, wanted) in [
        (SHA256.to_owned(), SHA256),
        (format!("{SHA256}\n"), SHA256),
        (format!("\u{feff}{}\r\n", SHA256.to_uppercase()), SHA256),
        (format!("{SHA256}  -\n"), SHA256),
        (long.clone(), long.as_str()),
        (format!("{SHA256}  kubeadm\n"), SHA256),
        (format!("{SHA256} *kubeadm\r\n"), SHA256),
        (format!("{SHA256} kubeadm"), SHA256),
        (format!("{SHA256}\tkubeadm"), SHA256),
        (format!("{SHA256}  ./kubeadm\n"), SHA256),
        (format!("{SHA256}  .\\amd64\\kubeadm\n"), SHA256),
        (format!("\\{SHA256}  kubeadm\n"), SHA256),
        (format!("SHA256 (kubeadm) = {SHA256}\n"), SHA256),
        (format!("SHA256 (bin/kubeadm) = {SHA256}\r\n"), SHA256),
        (format!("SHA2-256(kubeadm)= {SHA256}\n"), SHA256),
        (format!("SHA512 (kubeadm) = {long}\n"), long.as_str()),
        (format!("\u{feff}# checksums\r\n\r\n{OTHER}  kubelet\r\n{SHA256}  kubeadm\r\n"), SHA256),
        (format!("{OTHER}  kubeadm.exe\n{OTHER}  my-kubeadm\n{SHA256}  kubeadm"), SHA256),
        // Weaker ones, and what others say beside them.
        (format!("{}  kubeadm\n{SHA256}  kubeadm\n", "a".repeat(40)), SHA256),
        (
            format!(
                "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{SHA256}  kubeadm\n-----BEGIN PGP SIGNATURE-----\n\n\
                 iQIzBAEBCAAdFiEE\n=abcd\n-----END PGP SIGNATURE-----\n"
            ),
            SHA256,
        ),
        (format!("{OTHER}\n{SHA256}  kubeadm\n"), SHA256),
    ] {
        let found = of(&list, KUBEADM).unwrap_or_else(|silence| panic!("{list:?}: {silence}"));
        assert_eq!(found.len(), 1, "{list:?}");
        assert_eq!(found[0].split_once(' ').unwrap().1, wanted, "{list:?}");
    }
    let both = format!("{SHA256}  kubeadm\nSHA512 (kubeadm) = {long}\n{SHA256} *./kubeadm\n");
    assert_eq!(of(both, KUBEADM).unwrap(), [format!("sha256 {SHA256}"), format!("sha512 {long}")]);
}

#[test]
fn files_of_one_name_are_told_apart_by_their_folders() {
    let list = format!(
        "{OTHER}  bin/linux/arm64/kubeadm\n{SHA256}  bin/linux/amd64/kubeadm\n{OTHER}  bin/windows/amd64/kubeadm\n"
    );
    assert_eq!(of(&list, KUBEADM).unwrap(), [format!("sha256 {SHA256}")]);
    let elsewhere = of(&list, "https://example.org/kubeadm").unwrap_err();
    assert_eq!(
        elsewhere.to_string(),
        "has several checksums of `kubeadm`, and nothing says which one counts (it has `bin/linux/amd64/kubeadm`, \
         `bin/linux/arm64/kubeadm`, `bin/windows/amd64/kubeadm`)"
    );
    // Where it was made is no part of where it is.
    let built = format!("{SHA256}  _output/release-tars/kubeadm\n");
    assert_eq!(of(built, KUBEADM).unwrap().len(), 1);
    let encoded = format!("{SHA256}  haproxy_2.6+git.tar.gz\n");
    assert_eq!(of(encoded, "http://example.org/a%20b/haproxy_2.6%2Bgit.tar.gz?download=1#x").unwrap().len(), 1);
}

#[test]
fn a_list_that_says_nothing_says_so() {
    let page = "<!DOCTYPE html><title>Log in</title>";
    assert_eq!(of(page, KUBEADM).unwrap_err(), Silence::Empty);
    assert_eq!(of("", KUBEADM).unwrap_err(), Silence::Empty);
    assert_eq!(of(format!("{}  kubeadm", "a".repeat(32)), KUBEADM).unwrap_err(), Silence::Empty);
    let names = ["kubeadm.tar.gz", "kubelet", "kubectl", "kube-proxy-of-another-kind", "kubelet"];
    let list: String = names.iter().map(|name| format!("{SHA256}  {name}\n")).collect();
    assert_eq!(
        of(list, KUBEADM).unwrap_err().to_string(),
        "has no checksum of `kubeadm` (it has `kubectl`, `kubelet`, `kubeadm.tar.gz`)"
    );
    for two in [format!("{SHA256}\n{OTHER}\n"), format!("{SHA256}  kubeadm\n{OTHER} *./kubeadm\n")] {
        assert!(matches!(of(two, KUBEADM).unwrap_err(), Silence::Ambiguous { .. }));
    }
    // An algorithm that does not fit is a mistake, not a checksum.
    assert_eq!(of(format!("SHA512 (kubeadm) = {SHA256}"), KUBEADM).unwrap_err(), Silence::Empty);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), url in "\\PC{0,40}") {
        let _ = List::parse(&bytes).of(&url);
    }

    #[test]
    fn nothing_that_looks_like_a_list_panics(
        lines in prop::collection::vec("([ \\t*\\\\()=a-f0-9é-]|SHA2-256|SHA512|\\(|\\)= |[0-9a-f]{64}|[0-9a-f]{128}){0,9}", 0..5),
        url in "https?://[a-c/%?é.]{0,12}",
    ) {
        let _ = List::parse(lines.join("\n").as_bytes()).of(&url);
    }

    #[test]
    fn a_file_is_found_in_any_list(
        name in "[A-Za-z0-9_+.][A-Za-z0-9_+ .-]{0,20}[A-Za-z0-9]",
        others in prop::collection::vec("[a-z]{1,8}", 0..5),
        form in 0_usize..5,
        at in 0_usize..5,
    ) {
        prop_assume!(!others.contains(&name) && name != "." && name != "..");
        let line = [
            format!("{SHA256}  {name}"), format!("{SHA256} *{name}"), format!("{SHA256}  ./{name}"),
            format!("SHA256 ({name}) = {SHA256}"), format!("SHA2-256({name})= {SHA256}"),
        ][form].clone();
        let mut lines: Vec<String> = others.iter().map(|name| format!("{OTHER}  {name}")).collect();
        lines.insert(at.min(lines.len()), line);
        let encoded = percent_encoding::utf8_percent_encode(&name, percent_encoding::NON_ALPHANUMERIC);
        let found = of(lines.join("\r\n"), &format!("https://example.org/a/{encoded}")).unwrap();
        prop_assert_eq!(found, [format!("sha256 {SHA256}")]);
    }
}
