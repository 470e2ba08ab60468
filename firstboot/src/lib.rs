//! Converges a node.
