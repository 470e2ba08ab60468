// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the snapshots of rendered nodes look like.

use profiles::node::NodeProfile;
use profiles::render::{self, Content};

/// Every file of a node, one after the other.
pub fn files(profile: &NodeProfile) -> String {
    let mut whole = String::new();
    for file in render::files(profile).unwrap() {
        match file.content {
            Content::Text(text) => {
                whole += &format!("=== {} {:04o} {}\n{text}\n", file.path, file.mode, file.owner.name());
            }
            Content::Symlink(target) => whole += &format!("=== {} -> {target}\n\n", file.path),
        }
    }
    whole
}
