//! The `firstboot` command.
fn main() {}
