// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which Kubernetes the authors of Calico test each Calico with.

use profiles::version::Version;

/// Minor version of Calico 3, and the first and last minor version of Kubernetes 1 that it is tested with: "System
/// requirements, Supported versions" in Calico's documentation of each version, as it last stood. What is newer or older
/// than this table is not known here, and not warned of.
const TESTED: [(u32, u32, u32); 14] = [
    (19, 19, 21),
    (20, 19, 21),
    (21, 20, 22),
    (22, 21, 23),
    (23, 21, 23),
    (24, 22, 25),
    (25, 23, 28),
    (26, 24, 28),
    (27, 27, 29),
    (28, 27, 30),
    (29, 29, 32),
    (30, 31, 35),
    (31, 32, 35),
    (32, 34, 36),
];

/// What is to be said of Calico from `image` on `kubernetes`, if its authors do not test the two together.
pub(super) fn untested(image: &str, kubernetes: Version) -> Option<String> {
    let (major, minor) = version(image)?;
    let (_, first, last) = TESTED.into_iter().find(|(calico, ..)| (3, *calico) == (major, minor))?;
    if kubernetes.major == 1 && (first..=last).contains(&kubernetes.minor) {
        return None;
    }
    Some(format!(
        "Calico {major}.{minor} ({image}) is tested with Kubernetes 1.{first} to 1.{last}, and this cluster has {kubernetes}: \
         that the two work together is not known, so try what you rely on, network policies above all"
    ))
}

/// Major and minor version in the tag of an image, `docker.io/calico/node:v3.26.1`; builders of other architectures put
/// something behind it (`v3.26.1-loong64`).
fn version(image: &str) -> Option<(u32, u32)> {
    let name = image.split('@').next()?;
    let (_, tag) = name.rsplit('/').next()?.split_once(':')?;
    let mut parts = tag.strip_prefix('v').unwrap_or(tag).split(['.', '-', '_', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_any_reference() {
        for (image, expected) in [
            ("docker.io/calico/node:v3.26.1", Some((3, 26))),
            ("lcr.loongnix.cn/calico/node:3.26.1", Some((3, 26))),
            ("localhost:5000/calico/node:v3.29.0-0.dev", Some((3, 29))),
            ("calico/node:v3.31.2@sha256:00", Some((3, 31))),
            ("localhost:5000/calico/node", None),
            ("quay.io/calico/node:master", None),
            ("quay.io/calico/node:v3", None),
            ("", None),
        ] {
            assert_eq!(version(image), expected, "{image}");
        }
    }

    /// Row 31 of the runbook.
    #[test]
    fn a_pair_that_nobody_tests_is_told() {
        let said = untested("docker.io/calico/node:v3.26.1", "1.32.1".parse().unwrap()).unwrap();
        assert!(said.starts_with("Calico 3.26 (docker.io/calico/node:v3.26.1) is tested with Kubernetes 1.24 to 1.28"));
        assert!(said.contains("this cluster has 1.32.1"), "{said}");
        for (image, kubernetes, warned) in [
            ("calico/node:v3.26.1", "1.24.0", false),
            ("calico/node:v3.26.1", "1.28.15", false),
            ("calico/node:v3.26.1", "1.29.0", true),
            ("calico/node:v3.26.1", "1.23.17", true),
            ("calico/node:v3.29.1", "1.32.1", false),
            ("calico/node:v3.99.0", "1.20.2", false),
            ("calico/node:v4.26.0", "1.32.1", false),
            ("calico/node:latest", "1.32.1", false),
        ] {
            assert_eq!(untested(image, kubernetes.parse().unwrap()).is_some(), warned, "{image} on {kubernetes}");
        }
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(TESTED.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0 && pair[0].1 <= pair[1].1));
        assert!(TESTED.iter().all(|(_, first, last)| first <= last));
    }
}
