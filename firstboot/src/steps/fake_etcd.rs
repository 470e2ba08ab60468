// SPDX-License-Identifier: MIT OR Apache-2.0
//! An etcd in memory that understands what claim.rs tells `etcdctl`, and answers as etcdctl 3.4 does. A test of claim.rs
//! asks a real one the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::runner::{Background, Output};
use crate::testing::Lab;

struct Stored {
    value: String,
    created: i64,
    changed: i64,
    lease: i64,
}

#[derive(Default)]
pub struct FakeEtcd {
    revision: i64,
    keys: BTreeMap<String, Stored>,
    /// When a lease ends; `None` while somebody keeps it alive.
    leases: BTreeMap<i64, Option<Duration>>,
    granted: i64,
    pub now: Duration,
    /// Endpoints that do not answer.
    pub down: BTreeSet<String>,
}

pub type SharedEtcd = Arc<Mutex<FakeEtcd>>;

impl FakeEtcd {
    pub fn value(&mut self, key: &str) -> Option<String> {
        self.expire();
        self.keys.get(key).map(|stored| stored.value.clone())
    }

    pub fn put(&mut self, key: &str, value: &str, lease: i64) {
        let revision = self.revision + 1;
        let created = self.keys.get(key).map_or(revision, |stored| stored.created);
        let stored = Stored { value: value.to_owned(), created, changed: revision, lease };
        self.keys.insert(key.to_owned(), stored);
        self.revision = revision;
    }

    /// As if nobody had kept any alive for a while.
    pub fn lose_leases(&mut self) {
        self.leases.clear();
    }

    fn expire(&mut self) {
        let now = self.now;
        self.leases.retain(|_, ends| ends.is_none_or(|ends| ends > now));
        let leases = &self.leases;
        let before = self.keys.len();
        self.keys.retain(|_, stored| stored.lease == 0 || leases.contains_key(&stored.lease));
        self.revision += i64::from(self.keys.len() != before);
    }

    pub fn run(&mut self, line: &str, fed: &[u8]) -> Output {
        self.expire();
        let endpoints = line.split(' ').find_map(|arg| arg.strip_prefix("--endpoints=")).unwrap();
        let endpoints: Vec<_> = endpoints.split(',').collect();
        let down = endpoints.iter().filter(|endpoint| self.down.contains(**endpoint)).count();
        let answer = |status, value: Value| Output { status, stdout: format!("{value}\n"), ..Output::default() };
        if line.contains(" endpoint health") {
            let health = |endpoint: &&str| json!({"endpoint": endpoint, "health": !self.down.contains(*endpoint)});
            return answer(i32::from(down > 0), endpoints.iter().map(health).collect());
        }
        if down * 2 >= endpoints.len() {
            return Output { status: 1, stderr_tail: "Error: context deadline exceeded".into(), ..Output::default() };
        }
        if line.ends_with("lease grant 60 -w json") {
            self.granted += 1;
            self.leases.insert(self.granted, Some(self.now + Duration::from_secs(60)));
            return answer(0, json!({"cluster_id": 1, "ID": self.granted, "TTL": 60, "Error": ""}));
        }
        if !line.ends_with(" txn -w json") {
            return Output::default();
        }
        match self.transaction(std::str::from_utf8(fed).unwrap()) {
            Some(done) => answer(0, done),
            None => Output {
                status: 1,
                stderr_tail: "Error: etcdserver: requested lease not found".into(),
                ..Output::default()
            },
        }
    }

    /// `None`, and nothing is done, if it puts a key with a lease that is over.
    fn transaction(&mut self, text: &str) -> Option<Value> {
        let mut sections = vec![Vec::new()];
        for line in text.lines() {
            if line.is_empty() {
                sections.push(Vec::new());
            } else {
                sections.last_mut().unwrap().push(line);
            }
        }
        assert!(sections.len() == 4 && sections[3].is_empty(), "three sections, each ended by an empty line: {text:?}");
        let succeeded = sections[0].iter().all(|compare| self.compare(compare));
        let operations = if succeeded { &sections[1] } else { &sections[2] };
        if operations.iter().filter_map(|operation| lease(operation)).any(|lease| !self.leases.contains_key(&lease)) {
            return None;
        }
        let responses: Vec<_> =
            operations.iter().map(|operation| json!({"Response": self.operate(operation)})).collect();
        let mut answer = json!({"header": {"revision": self.revision}});
        // As Go does: what is false or empty is left out.
        if succeeded {
            answer["succeeded"] = true.into();
        }
        if !responses.is_empty() {
            answer["responses"] = responses.into();
        }
        Some(answer)
    }

    fn compare(&self, text: &str) -> bool {
        let (left, right) = text.split_once(" = ").unwrap();
        let (what, key) = left.strip_suffix("\")").unwrap().split_once("(\"").unwrap();
        let right = right.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
        let stored = self.keys.get(key);
        match what {
            "create" => stored.map_or(0, |stored| stored.created) == right.parse::<i64>().unwrap(),
            "mod" => stored.map_or(0, |stored| stored.changed) == right.parse::<i64>().unwrap(),
            "value" => stored.is_some_and(|stored| stored.value == right),
            other => panic!("{other}"),
        }
    }

    fn operate(&mut self, text: &str) -> Value {
        let words: Vec<_> = text.split(' ').map(|word| word.trim_matches('"')).collect();
        match words.as_slice() {
            ["put", _, key, value] => {
                self.put(key, value, lease(text).unwrap());
                json!({"ResponsePut": {}})
            }
            ["put", key, value] => {
                self.put(key, value, 0);
                json!({"ResponsePut": {}})
            }
            ["del", key] => {
                self.keys.remove(*key);
                self.revision += 1;
                json!({"ResponseDeleteRange": {}})
            }
            ["get", prefix, "--prefix", rest @ ..] => {
                let found = self.keys.range((*prefix).to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
                let keys_only = rest.contains(&"--keys-only");
                let limit = if rest.contains(&"--limit=1") { 1 } else { usize::MAX };
                let show = |(key, stored): (&String, &Stored)| {
                    let mut shown =
                        json!({"key": base64(key), "create_revision": stored.created, "mod_revision": stored.changed});
                    if !keys_only {
                        shown["value"] = base64(&stored.value).into();
                    }
                    shown
                };
                let pairs: Vec<_> = found.take(limit).map(show).collect();
                if pairs.is_empty() { json!({"ResponseRange": {}}) } else { json!({"ResponseRange": {"kvs": pairs}}) }
            }
            _ => panic!("{text}"),
        }
    }
}

fn base64(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * index) & 63) as usize] as char;
            encoded.push(if index <= chunk.len() { letter } else { '=' });
        }
    }
    encoded
}

/// `etcdctl lease keep-alive`.
struct Keeper {
    etcd: SharedEtcd,
    lease: i64,
}

impl Background for Keeper {
    fn runs(&mut self) -> bool {
        self.etcd.lock().unwrap().leases.contains_key(&self.lease)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut etcd = self.etcd.lock().unwrap();
        let ends = etcd.now + Duration::from_secs(60);
        if let Some(lease) = etcd.leases.get_mut(&self.lease) {
            *lease = Some(ends);
        }
    }
}

/// A keep-alive of `lease`, which must be there.
pub fn keep_alive(etcd: &SharedEtcd, line: &str) -> Box<dyn Background> {
    let lease = i64::from_str_radix(line.rsplit_once(" lease keep-alive ").unwrap().1, 16).unwrap();
    let mut held = etcd.lock().unwrap();
    held.expire();
    if let Some(ends) = held.leases.get_mut(&lease) {
        *ends = None;
    }
    Box::new(Keeper { etcd: etcd.clone(), lease })
}

/// Lets the node of `lab` reach `etcd`.
pub fn attach(lab: &Lab, etcd: &SharedEtcd) {
    let (asked, kept) = (etcd.clone(), etcd.clone());
    lab.runner.on_fed("etcdctl", move |line, fed| asked.lock().unwrap().run(line, fed));
    *lab.runner.start.borrow_mut() = Some(Box::new(move |line| keep_alive(&kept, line)));
}

/// The lease of `put --lease=HEX "key" "value"`.
fn lease(operation: &str) -> Option<i64> {
    let (hex, _) = operation.strip_prefix("put --lease=")?.split_once(' ')?;
    Some(i64::from_str_radix(hex, 16).unwrap())
}
