// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small helpers for messages: lists, and the nearest of some names.

use std::collections::BTreeSet;

/// "`a`, `b`, `c`".
pub fn list<S: AsRef<str>>(names: &[S]) -> String {
    names.iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// The candidate a person most likely meant, if one is near enough.
pub fn closest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 3);
    candidates
        .iter()
        .map(|candidate| (distance(name, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// At most `most` of the candidates, each once, those first that are most like `name`.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    let candidates: BTreeSet<&str> = candidates.into_iter().collect();
    let mut candidates: Vec<_> =
        candidates.into_iter().map(|candidate| (distance(name, candidate), candidate)).collect();
    candidates.sort_unstable();
    candidates.into_iter().take(most).map(|(_, candidate)| candidate).collect()
}

/// Edits between two words; a swap of neighbours counts as one.
fn distance(a: &str, b: &str) -> usize {
    // Long garbage needs no exact answer.
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swap = if swapped { rows[i - 2][j - 2] + 1 } else { usize::MAX };
                change.min(swap).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1)
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let keys = ["gateway", "pod_subnets", "service_subnets", "plugin"];
        assert_eq!(closest("pod_subnet", &keys), Some("pod_subnets"));
        assert_eq!(closest("gatewya", &keys), Some("gateway"));
        assert_eq!(closest("colour", &keys), None);
        assert_eq!(closest("", &keys), None);
        assert_eq!(nearest("pod_subnet", keys, 1), ["pod_subnets"]);
        assert_eq!(nearest("pod_subnet", keys.into_iter().chain(keys), 9).len(), 4, "each once");
    }
}
