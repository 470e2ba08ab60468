// SPDX-License-Identifier: MIT OR Apache-2.0
//! Version numbers of Kubernetes and containerd, and what differs between them, by name.

use std::fmt;
use std::str::FromStr;

/// `1.20.2`; the patch level may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number, if there is one.
    pub patch: Option<u32>,
}

/// Not a version number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version such as 1.20.2")]
pub struct BadVersion(pub String);

/// The first and the last Kubernetes minor that imgbuild renders configuration for.
pub const KUBERNETES_MINORS: std::ops::RangeInclusive<u32> = 19..=35;

/// Versions of kubeadm's configuration format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeadmApi {
    /// Kubernetes 1.15 to 1.21.
    V1Beta2,
    /// Kubernetes 1.22 to 1.30.
    V1Beta3,
    /// Kubernetes 1.31 and later.
    V1Beta4,
}

impl Version {
    /// Kubernetes: the configuration format its kubeadm writes itself, and reads without a warning.
    pub fn kubeadm_api(self) -> KubeadmApi {
        match self.minor {
            ..=21 => KubeadmApi::V1Beta2,
            22..=30 => KubeadmApi::V1Beta3,
            31.. => KubeadmApi::V1Beta4,
        }
    }

    /// Kubernetes: kube-proxy has the mode `nftables` without a feature gate.
    pub fn has_nftables_proxy(self) -> bool {
        self.minor >= 31
    }

    /// Kubernetes: two IP families work without a feature gate.
    pub fn has_dual_stack(self) -> bool {
        self.minor >= 21
    }

    /// Kubernetes: kubelet speaks CRI v1; before that only v1alpha2, which containerd 2 has no more.
    pub fn speaks_cri_v1(self) -> bool {
        self.minor >= 23
    }

    /// Kubernetes: kubelet speaks nothing but CRI v1, which containerd has since 1.6.
    pub fn needs_cri_v1(self) -> bool {
        self.minor >= 26
    }

    /// Kubernetes: kubelet never deletes an image that the runtime calls pinned.
    pub fn spares_pinned_images(self) -> bool {
        self.minor >= 23
    }

    /// containerd: an image with the label `io.cri-containerd.pinned=pinned` is pinned, whoever brought it. Release 1.6 and 1.7 got
    /// that late (containerd#9382, #9381): where the patch level is not known, they count as older.
    pub fn pins_by_label(self) -> bool {
        let patch = self.patch.unwrap_or(0);
        match (self.major, self.minor) {
            (1, 6) => patch >= 26,
            (1, 7) => patch >= 11,
            (major, _) => major >= 2,
        }
    }

    /// containerd: configuration version 3.
    pub fn has_config_v3(self) -> bool {
        self.major >= 2
    }

    /// containerd: `bin_dirs` in place of `bin_dir`.
    pub fn has_cni_bin_dirs(self) -> bool {
        (self.major, self.minor) >= (2, 1)
    }
}

impl FromStr for Version {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let bad = || BadVersion(text.to_owned());
        let number = |part: &str| {
            let canonical = part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
            if canonical { part.parse().map_err(|_| bad()) } else { Err(bad()) }
        };
        let parts: Vec<&str> = text.split('.').collect();
        match parts.as_slice() {
            [major, minor] => Ok(Self { major: number(major)?, minor: number(minor)?, patch: None }),
            [major, minor, patch] => {
                Ok(Self { major: number(major)?, minor: number(minor)?, patch: Some(number(patch)?) })
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn knows_which_containerd_pins_images() {
        for (version, pins) in [
            ("1.6", false),
            ("1.6.20", false),
            ("1.6.26", true),
            ("1.7", false),
            ("1.7.11", true),
            ("2.0", true),
            ("2.1.4", true),
        ] {
            assert_eq!(version.parse::<Version>().unwrap().pins_by_label(), pins, "{version}");
        }
    }

    #[test]
    fn reads_versions_and_nothing_else() {
        assert_eq!("1.20.2".parse::<Version>().unwrap().to_string(), "1.20.2");
        assert_eq!("1.6".parse::<Version>().unwrap(), Version { major: 1, minor: 6, patch: None });
        for bad in ["", "1", "v1.20.2", "1.20.2.3", "1..2", "1.20.x", "1.020", "+1.2", "1.99999999999", "1.20.2 "] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
