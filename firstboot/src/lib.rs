// SPDX-License-Identifier: MIT OR Apache-2.0
//! Converges a node from its profile, and is PID 1 of the initramfs that brings it up.
//!
//! This crate knows nothing of how images are made. It talks to the node through two seams only, [`runner::Runner`]
//! (programs) and [`host::Host`] (clock, addresses, the kernel), so that everything else is tested without root.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod arp;
pub mod bundle;
pub mod cert;
pub mod cli;
pub mod console;
pub mod context;
pub mod digest;
pub mod engine;
pub mod etcdctl;
pub mod failure;
pub mod files;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
pub mod health;
pub mod host;
pub mod init;
pub mod install;
pub mod journal;
pub mod kubectl;
pub mod node;
pub mod payload;
pub mod peer_port;
pub mod rendered;
pub mod routes;
pub mod runner;
pub mod seed;
pub mod status;
pub mod steps;
pub mod vrrp;

#[cfg(test)]
pub(crate) mod testing;
