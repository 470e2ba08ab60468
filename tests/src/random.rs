// SPDX-License-Identifier: MIT OR Apache-2.0

//! Randomness that can be had again: the seed is printed, and `IMGBUILD_TEST_SEED` sets it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A generator of numbers for tests (SplitMix64); nothing secret is made with it.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From `IMGBUILD_TEST_SEED`, else from the clock.
    pub fn from_environment() -> Self {
        let seed = match std::env::var("IMGBUILD_TEST_SEED") {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("IMGBUILD_TEST_SEED is `{text}`; a number wanted")),
            Err(_) => {
                let time = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
                // Six digits, for a person to type.
                (time.as_nanos() / 1000 % 1_000_000) as u64
            }
        };
        println!("the same order and moments again: IMGBUILD_TEST_SEED={seed}");
        Self::new(seed)
    }

    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `limit - 1`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// A time up to `limit`.
    pub fn up_to(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(self.next() as f64 / u64::MAX as f64)
    }

    /// One of them.
    pub fn one_of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Puts them in another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_order() {
        let order = |seed| {
            let mut items = ["etcd-1", "etcd-2", "etcd-3", "master-1", "master-2", "worker-1"];
            Random::new(seed).shuffle(&mut items);
            items
        };
        assert_eq!(order(7), order(7));
        let orders: std::collections::BTreeSet<_> = (0..50).map(order).collect();
        assert!(orders.len() > 40, "{} orders of 50 seeds", orders.len());
    }

    #[test]
    fn numbers_keep_to_their_limits() {
        let mut random = Random::new(1);
        let mut seen = [0; 3];
        for _ in 0..300 {
            seen[random.below(3)] += 1;
            assert!(random.up_to(Duration::from_secs(5)) <= Duration::from_secs(5));
        }
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
    }
}
