//! The cluster schema, its validation, node profiles, and the rendering of every file a node gets.
//! Pure functions: nothing in this crate reads a file, a clock or the network.

pub mod node;
