// SPDX-License-Identifier: MIT OR Apache-2.0
//! What lies on an installation medium (docs/contracts.md, section 11): the builder writes it, the installer reads it.
//!
//! A medium holds the disk images of nodes in pieces: what nodes share is on it once. The installer copies pieces and
//! knows nothing of partition tables or filesystems.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::node::Architecture;
use crate::schema::NodeSection;

/// Version of these documents. An installer refuses another one.
pub const SCHEMA: u32 = 1;
/// The folder of everything we put on a medium, below its root.
pub const FOLDER: &str = "imgbuild";
/// The index, below [`FOLDER`].
pub const INDEX: &str = "medium.json";

/// The index of a medium, `imgbuild/medium.json`. Its SHA-256 is on the kernel command line: `imgbuild.medium=<sha256>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Medium {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// Id of the cluster, 32 hexadecimal digits.
    pub cluster_id: String,
    /// CPU architecture of everything on the medium.
    pub architecture: Architecture,
    /// Every other file below `imgbuild/`, by its path from there.
    pub files: BTreeMap<String, MediumFile>,
    /// The nodes that can be installed from it, in the cluster file's order.
    pub nodes: Vec<MediumNode>,
}

/// A file of a medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MediumFile {
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// A node that can be installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MediumNode {
    /// Its name.
    pub name: String,
    /// GUID of its disk, lower case: a disk that has it is installed already.
    pub disk_guid: String,
    /// Least size of its disk, in bytes: that of the image.
    pub disk_size: u64,
    /// Its root, a squashfs, as a path of [`Medium::files`]: what a diskless or rescue boot mounts.
    pub root: String,
    /// Its payload, likewise.
    pub payload: String,
    /// By what the machine is known.
    pub machine: Machine,
    /// Which disk it is installed to.
    pub target: Target,
    /// The disk image in pieces, in ascending order of `at`. What is in none of them and in no `zero` stays as it is.
    pub pieces: Vec<Piece>,
    /// Parts that must hold zeros: where an old filesystem's superblock would be taken for ours.
    pub zero: Vec<Range>,
}

/// What a machine is recognised by. A machine matches if everything that is given matches; nothing given matches none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// MAC address of one of its network interfaces, lower case with colons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Serial number of the system (SMBIOS type 1, `/sys/class/dmi/id/product_serial`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Asset tag of the chassis (SMBIOS type 3, `/sys/class/dmi/id/chassis_asset_tag`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset_tag: Option<String>,
}

/// Which disk of a machine a node is installed to. All that is given must fit; with nothing given it is the only empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name below `/dev/disk/by-id/` as udev makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Serial number of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// World wide name of the disk, as in `/sys/block/<disk>/device/wwid` or `/sys/block/<disk>/wwid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// Model of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Least size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_size: Option<u64>,
    /// Greatest size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<u64>,
    /// Whether foreign data on that very disk may be overwritten. Wants `id`, `serial` or `wwn`.
    #[serde(default)]
    pub wipe: bool,
}

/// Bytes of a file of the medium, and where they go on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// Path of [`Medium::files`].
    pub file: String,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Where it goes on the disk, in bytes.
    pub at: u64,
    /// How many bytes.
    pub len: u64,
}

/// What the cluster file says of a node's machine and its disk, for [`MediumNode`].
pub fn machine_and_target(node: &NodeSection) -> (Machine, Target) {
    let (install, disk) = (&node.install, &node.install.disk);
    let machine =
        Machine { mac: node.mac.clone(), serial: install.serial.clone(), asset_tag: install.asset_tag.clone() };
    let target = Target {
        id: disk.id.clone(),
        serial: disk.serial.clone(),
        wwn: disk.wwn.clone(),
        model: disk.model.clone(),
        min_size: disk.min_size,
        max_size: disk.max_size,
        wipe: install.wipe,
    };
    (machine, target)
}

/// A part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Where it begins, in bytes.
    pub at: u64,
    /// How many bytes.
    pub len: u64,
}
