// SPDX-License-Identifier: MIT OR Apache-2.0

//! The names of things: sha256 digests.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A sha256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
    /// From the 32 raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// What a hasher has seen.
    pub fn of_hasher(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }
    /// The digest of everything `reader` has, and how much that is.
    pub fn of_reader(reader: &mut impl Read) -> std::io::Result<(Self, u64)> {
        let (mut hasher, mut size, mut buf) = (Sha256::new(), 0, vec![0; 128 << 10]);
        loop {
            match reader.read(&mut buf) {
                Ok(0) => return Ok((Self::of_hasher(hasher), size)),
                Ok(n) => {
                    hasher.update(&buf[..n]);
                    size += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    /// The 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
        let wrong = || format!("`{text}` is not a sha256: 64 hex digits wanted");
        let mut out = [0; 32];
        if text.len() != 64 {
            bail!(wrong());
        }
        for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
            let (high, low) = (digit(pair[0]).with_context(wrong)?, digit(pair[1]).with_context(wrong)?);
            *byte = high << 4 | low;
        }
        Ok(Self(out))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The key of a step: the sha256 of its canonical JSON description (see docs/contracts.md, section 1).
pub fn step_key(name: &str, version: u32, inputs: &impl Serialize) -> Result<Digest> {
    let json = serde_json::to_vec(&(name, version, inputs)).context("describing a step")?;
    Ok(Digest::of(&json))
}
