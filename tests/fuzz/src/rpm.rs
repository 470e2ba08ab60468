// SPDX-License-Identifier: MIT OR Apache-2.0

//! RPM packages: lead, headers, and a cpio payload, compressed or not.

/// Reads `data` as a package.
pub fn run(data: &[u8]) {
    imgbuild::fuzz::rpm_package(data);
}

/// A value of a header: tag, type, count, bytes.
type Value = (u32, u32, u32, Vec<u8>);

fn strings(tag: u32, kind: u32, values: &[&str]) -> Value {
    (tag, kind, values.len() as u32, values.iter().flat_map(|value| value.bytes().chain([0])).collect())
}

fn header(values: &[Value]) -> Vec<u8> {
    let (mut index, mut store) = (Vec::new(), Vec::new());
    for (tag, kind, count, bytes) in values {
        for word in [*tag, *kind, store.len() as u32, *count] {
            index.extend(word.to_be_bytes());
        }
        store.extend(bytes);
    }
    let mut out = vec![0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0];
    out.extend((values.len() as u32).to_be_bytes());
    out.extend((store.len() as u32).to_be_bytes());
    [out, index, store].concat()
}

/// Members: path, mode, inode, links, content.
fn cpio() -> Vec<u8> {
    let members = [
        ("./usr/sbin/haproxy", 0o100_755, 1, 1, "#!/bin/sh\n"),
        ("./usr/sbin/halog", 0o120_777, 2, 1, "haproxy"),
        ("./var/lib/haproxy", 0o040_700, 3, 2, ""),
        ("./usr/share/a", 0o100_644, 4, 2, ""),
        ("./usr/share/b", 0o100_644, 4, 2, "two names"),
        ("TRAILER!!!", 0, 0, 1, ""),
    ];
    let mut out = Vec::new();
    for (path, mode, inode, links, content) in members {
        let fields = [inode, mode, 0, 0, links, 7, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        out.extend(b"070701");
        fields.iter().for_each(|field| out.extend(format!("{field:08x}").bytes()));
        out.extend(path.bytes().chain([0]));
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(content.bytes());
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

fn package(payload: &[u8]) -> Vec<u8> {
    let numbers = |tag: u32, values: &[u32]| -> Value {
        (tag, 4, values.len() as u32, values.iter().flat_map(|number| number.to_be_bytes()).collect())
    };
    let values = [
        strings(1000, 6, &["haproxy"]),
        strings(1022, 6, &["noarch"]),
        strings(1118, 8, &["/usr/sbin/", "/var/lib/"]),
        strings(1117, 8, &["haproxy", "haproxy"]),
        numbers(1116, &[0, 1]),
        strings(1039, 8, &["root", "haproxy"]),
        strings(5010, 8, &["", "cap_net_raw=ep"]),
    ];
    let mut out = vec![0xed, 0xab, 0xee, 0xdb];
    out.resize(96, 0);
    out.extend(header(&[(268, 7, 3, vec![1, 2, 3])]));
    out.resize(out.len().next_multiple_of(8), 0);
    out.extend(header(&values));
    out.extend(payload);
    out
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let zstd = zstd::encode_all(&cpio()[..], 3).expect("compressing");
    vec![package(&cpio()), package(&zstd)]
}
