// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{init, network};

libfuzzer_sys::fuzz_target!(init: init(network::seeds), |data: &[u8]| network::run(data));
