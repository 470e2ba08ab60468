// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cluster schema, its validation, node profiles, and the rendering of every file a node gets.
//! Pure functions: nothing in this crate reads a file, a clock or the network.

pub mod addon_index;
mod addons;
pub mod bundle;
mod decode;
pub mod diagnostics;
pub mod kubeconfig;
pub mod medium;
pub mod node;
mod objects;
mod profile;
pub mod reference;
pub mod render;
pub mod schema;
mod sections;
pub mod seed;
pub mod signing;
pub mod text;
mod validate;
mod validate_network;
pub mod version;
pub mod yaml;

pub use diagnostics::{Problem, Report};
pub use node::NodeProfile;
pub use schema::{Cluster, UnknownNode};
pub use sections::parse_size;
pub use text::nearest;

impl Cluster {
    /// Reads and checks a cluster file. `file_name` is only shown in the report, which holds every problem at once.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, Report> {
        let (cluster, mut decoder) = decode::document(text, sections::cluster);
        if decoder.is_toml() {
            validate::cluster(&cluster, &mut decoder);
        }
        match decoder.into_report(file_name, text) {
            None => Ok(cluster),
            Some(report) => Err(report),
        }
    }
}
