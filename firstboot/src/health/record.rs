// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who initialised the cluster, by the record that firstboot keeps in etcd (docs/contracts.md, section 10).

use profiles::node::{NodeProfile, Role};

use super::collect::{Facts, peers};
use super::{Check, Source};

const ID: &str = "init.record";

pub(super) fn judge(profile: &NodeProfile, facts: &Facts) -> Vec<Check> {
    let text = match &facts.record {
        Source::Known(text) => text,
        Source::Failed(why) => {
            return vec![Check::unknown(
                ID,
                "",
                format!("etcd does not give the record: {why}"),
                "see the topic `etcd`",
            )];
        }
        Source::NotAsked => return Vec::new(),
    };
    let value = |key: &str| find(text, &profile.cluster.id, key);
    let check = match (value("initialised"), value("init")) {
        (Some(master), _) => Check::ok(ID, "", format!("{master} initialised the cluster")),
        (None, Some(master)) => Check::info(ID, "", format!("{master} is initialising the cluster right now")),
        // A sole master has nobody to agree with.
        (None, None) if peers(profile, &[Role::Master]).count() < 2 => {
            Check::info(ID, "", "etcd has no record of who initialised the cluster")
        }
        (None, None) => {
            let advice = "if the cluster works: re-image no master before somebody has looked at firstboot's journals";
            Check::warning(ID, "", "etcd has no record of who initialised the cluster", advice)
        }
    };
    vec![check]
}

/// The value of a key in what `etcdctl get --prefix` prints: a line with the key, a line with the value.
fn find<'a>(text: &'a str, cluster: &str, key: &str) -> Option<&'a str> {
    let wanted = format!("/imgbuild/{cluster}/{key}");
    let mut lines = text.lines();
    while let Some(found) = lines.next() {
        let value = lines.next();
        if found == wanted {
            return value.map(str::trim).filter(|value| !value.is_empty());
        }
    }
    None
}
