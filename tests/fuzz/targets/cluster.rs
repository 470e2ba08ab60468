// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{cluster, init};

libfuzzer_sys::fuzz_target!(init: init(cluster::seeds), |data: &[u8]| cluster::run(data));
