// SPDX-License-Identifier: MIT OR Apache-2.0
//! What programs print may be torn, strange, or of another version: it is judged without a panic.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::world::World;
use crate::health::print::describe;
use crate::health::{Level, Source};

#[test]
fn objects_without_fields_are_judged() {
    for items in
        [json!([]), json!([{}]), json!([null, 7, "x", [], {"metadata": 3, "status": []}]), json!({}), json!(null)]
    {
        let answer = json!({"items": items}).to_string();
        let mut world = World::lab_ha("master-1");
        for part in ["/v1/nodes", "/pods", "/leases"] {
            world.instead.push((part, 0, answer.clone(), String::new()));
        }
        let report = world.report();
        // Nodes that are not listed are missing, whatever else is listed.
        assert_eq!(report.checks.iter().filter(|check| check.id == "node.registered").count(), 4, "{items}");
        assert!(report.checks.iter().any(|check| check.id == "pods.control-plane" && check.level == Level::Error));
    }
}

#[test]
fn torn_answers_are_unknown_not_good() {
    for text in ["", "{", "null x", "Error", "{\"items\":[{\"metadata\":"] {
        let mut world = World::lab_ha("master-1");
        for part in ["/v1/nodes", "/pods", "/leases", "member list"] {
            world.instead.push((part, 0, text.to_owned(), String::new()));
        }
        let report = world.report();
        for id in ["node.ready", "pods.all", "etcd.membership"] {
            let check = report.checks.iter().find(|check| check.id == id).unwrap();
            assert_eq!(check.level, Level::Unknown, "{id}");
            assert!(check.finding.ends_with("the answer is no JSON"), "{}", check.finding);
        }
        assert_eq!(report.level.exit_code(), 3);
    }
}

#[test]
fn etcd_without_words_is_an_error() {
    for text in ["[]", "{}", "null", "[{}]", "[{\"Status\":{}}]", "[{\"endpoint\":\"https://10.0.2.11:2379\"}]"] {
        let mut world = World::lab_ha("master-1");
        world.instead.push(("endpoint health", 0, text.to_owned(), String::new()));
        world.instead.push(("endpoint status", 0, text.to_owned(), String::new()));
        let report = world.report();
        assert_eq!(report.level, Level::Error, "{text}: {}", describe(&report, false));
        assert!(report.headline.starts_with("down: etcd"), "{text}: {}", report.headline);
    }
}

#[test]
fn programs_that_are_missing_are_named() {
    let mut facts = World::lab_ha("master-1").facts();
    facts.units = Source::Failed("starting systemctl".to_owned());
    facts.addresses = Source::Failed("starting ip".to_owned());
    let checks = [
        crate::health::machine::judge(&facts),
        crate::health::load_balancer::judge(&World::lab_ha("master-1").profile, &facts),
    ]
    .concat();
    for part in ["starting systemctl", "starting ip"] {
        assert!(checks.iter().any(|check| check.level == Level::Unknown && check.finding.contains(part)), "{part}");
    }
}

/// Any JSON, with the field names that are looked for among others.
fn any_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "items",
        "metadata",
        "status",
        "spec",
        "conditions",
        "type",
        "name",
        "containerStatuses",
        "state",
        "waiting",
        "lastState",
        "terminated",
        "restartCount",
        "running",
        "startedAt",
        "creationTimestamp",
        "renewTime",
        "members",
        "Status",
        "header",
        "member_id",
        "errors",
        "dbSize",
        "health",
        "endpoint",
        "addr_info",
        "local",
        "lladdr",
        "labels",
        "raftIndex",
        "raftAppliedIndex",
        "leader",
        "ID",
        "peerURLs",
        "reason",
        "message",
        "exitCode",
        "phase",
        "nodeInfo",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "True",
            "Ready",
            "Running",
            "CrashLoopBackOff",
            "2027-01-15T08:00:00Z",
            "master-1",
            "9999-12-31T23:59:59Z",
            "1970-01-01T00:00:00Z",
            "memberID:0 alarm:NOSPACE ",
            "kube-proxy",
            "10.0.2.100"
        ])
        .prop_map(Value::from),
        "\\PC*".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..6)
                .prop_map(|fields| fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn never_panics(list in any_json(), other in any_json(), text in "\\PC*") {
        let mut world = World::lab_ha("master-1");
        for part in ["/v1/nodes", "/pods", "/leases"] {
            world.instead.push((part, 0, json!({"items": [list, other]}).to_string(), text.clone()));
        }
        for part in ["member list", "endpoint health", "endpoint status", "ip -json", "systemctl"] {
            world.instead.push((part, 0, json!([other, {"Status": list}]).to_string(), text.clone()));
        }
        world.haproxy = text.clone();
        world.record = text;
        let report = world.report();
        prop_assert!(describe(&report, true).lines().count() > report.checks.len());
    }
}
