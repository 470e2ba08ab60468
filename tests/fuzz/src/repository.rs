// SPDX-License-Identifier: MIT OR Apache-2.0

//! The documents of a repository of RPM packages: `repomd.xml` and `primary.xml`.

/// Reads `data` as either.
pub fn run(data: &[u8]) {
    imgbuild::fuzz::repository(data);
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let sum = "0".repeat(64);
    let repomd = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<repomd xmlns=\"http://linux.duke.edu/metadata/repo\"><revision>1</revision>\n\
         <data type=\"primary\"><checksum type=\"sha256\">{sum}</checksum><location href=\"repodata/p.xml.gz\"/><size>12</size></data>\n\
         </repomd>\n"
    );
    let primary = format!(
        "<metadata xmlns:rpm=\"r\" packages=\"1\"><!-- c --><package type=\"rpm\"><name>a &amp; b&#x41;</name><arch>x86_64</arch>\
         <version epoch=\"1\" ver=\"2\" rel=\"3\"/><checksum type=\"sha256\" pkgid=\"YES\">{sum}</checksum>\
         <size package=\"5\"/><location xml:base=\"b\" href=\"Packages/a.rpm\"/><format><rpm:provides><rpm:entry name=\"a\"/></rpm:provides>\
         <rpm:requires><rpm:entry name=\"/bin/sh\"/></rpm:requires><file type=\"dir\">/usr</file><file><![CDATA[/x]]></file></format>\
         </package></metadata>"
    );
    vec![repomd.into_bytes(), primary.into_bytes()]
}
