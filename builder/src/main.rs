//! The `imgbuild` command.
fn main() {}
