// SPDX-License-Identifier: MIT OR Apache-2.0

//! What imgbuild writes itself and reads again, perhaps from elsewhere: locks, inventories, lists of checksums, indices of
//! media and bundles, descriptions of payloads, journals.

use imgbuild::lock::Lock;
use imgbuild::store::Digest;
use imgbuild::store::inventory::{About, Inventory};
use serde_json::json;

/// Reads `data` as each of them.
pub fn run(data: &[u8]) {
    firstboot::fuzz::documents(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    imgbuild::fuzz::lock_text(text);
    if let Ok(inventory) = Inventory::parse(text) {
        let written = inventory.to_text().expect("an inventory can be written");
        assert_eq!(Inventory::parse(&written), Ok(inventory), "{written}");
    }
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let sum = Digest::of(b"x");
    let lock = format!(
        "schema = 1\n\n[input.\"debian\"]\nrequest = \"{sum}\"\nsuites = [\"bookworm\"]\ndate = 1700000000\nitems = [\n  \
         {{ kind = \"deb\", name = \"bash\", version = \"5.2\", architecture = \"amd64\", archive = \"debian\", path = \"pool/b.deb\", \
         size = 12, sha256 = \"{sum}\" }},\n]\n"
    );
    assert!(Lock::parse(&lock).is_ok(), "{lock}");
    let mut inventory = Inventory::default();
    inventory.objects.insert(sum, About { size: 1, name: "a \"name\"".to_owned() });
    let sums = format!("{sum}  install\n{sum}  amd64/bundle.json\n");
    let medium = json!({
        "schema": 1, "cluster": "lab", "cluster_id": "0".repeat(32), "architecture": "amd64",
        "files": { "root.squashfs": { "size": 4096, "sha256": sum }, "nodes/a/seed": { "size": 4096, "sha256": sum } },
        "nodes": [{
            "name": "a", "disk_guid": "0c12d0e5-1111-4222-8333-444455556666", "disk_size": 1 << 30,
            "root": "root.squashfs", "payload": "root.squashfs", "machine": { "mac": "52:54:00:77:00:0b" },
            "target": { "serial": "x", "wipe": true, "min_size": 1 },
            "pieces": [
                { "file": "nodes/a/seed", "offset": 0, "at": 0, "len": 4096 },
                { "file": "root.squashfs", "offset": 0, "at": 1 << 20, "len": 4096 },
            ],
            "zero": [{ "at": 4096, "len": 4096 }],
        }],
    });
    let bundle = json!({
        "schema": 1, "cluster": "lab", "cluster_id": "0".repeat(32), "architecture": "loong64",
        "nodes": [{ "name": "a", "payload": "etcd" }],
    });
    let payload = json!({ "schema": 1, "architecture": "amd64", "kubernetes": "v1.20.2", "containerd": null,
        "images": ["a.io/x:1"], "sandbox_image": null });
    let journal = "{\"at\":1,\"event\":\"begin\",\"step\":\"network\"}\n{\"at\":2,\"event\":\"done\",\"step\":\"network\",\
                   \"fingerprint\":\"f\"}\n{\"at\":3,\"event\":\"conv";
    let texts = [
        lock,
        inventory.to_text().expect("an inventory"),
        sums,
        medium.to_string(),
        bundle.to_string(),
        payload.to_string(),
        journal.to_owned(),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}
