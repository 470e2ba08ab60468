// SPDX-License-Identifier: MIT OR Apache-2.0

//! What registries of container images answer, themselves or by way of a proxy: header lines, manifests, tokens,
//! errors, redirects; and the files that have credentials for them.

use imgbuild::store::Digest;
use serde_json::json;

/// Reads `data` as each of them; of two lines the first is an address, and the second where it redirects to.
pub fn run(data: &[u8]) {
    imgbuild::fuzz::registry(data);
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let sum = format!("sha256:{}", Digest::of(b"x"));
    let challenges = "Basic realm=\"a, \\\"b\\\"\" , BEARER Realm = https://auth.example/token,service=\"lab\",\
                      scope=\"repository:mirror/pause:pull\",error=\"invalid_token\"";
    let token = json!({ "token": "", "access_token": "eyJ.a-b~c+d/e=", "expires_in": 300 });
    let error = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "manifest \u{1b}[31munknown\n" }] });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            { "digest": sum, "size": 400, "platform": { "architecture": "amd64", "os": "linux", "variant": "v2" } },
            { "digest": sum, "size": 400, "platform": { "architecture": "unknown", "os": "unknown" },
              "annotations": { "vnd.docker.reference.type": "attestation-manifest" } },
            { "digest": sum },
        ],
    });
    let manifest = json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/vnd.docker.container.image.v1+json", "digest": sum, "size": 7 },
        "layers": [
            { "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": sum, "size": 1 },
            { "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": sum, "size": 2, "urls": [] },
        ],
    });
    let credentials = json!({
        "auths": {
            "https://index.docker.io/v1/": { "auth": "dXNlcjpwYXNz" },
            "lab:5000/team": { "username": "deep", "password": "3" },
            "token.example": { "registrytoken": "T" },
            "other.example": { "identitytoken": "T" },
        },
        "credHelpers": { "helped.example": "a" }, "credsStore": "b",
    });
    let whole = "HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nContent-Range: bytes 2-4/5\r\nETag: \"a-1\"\r\n\
                 WWW-Authenticate: Basic\r\n\r\nabc";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nLast-Modified: Sat, 10 Jan 2026 09:55:12 GMT\r\n\
                   Date: Sat, 10 Jan 2026 09:56:12 GMT\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n";
    let redirect = "https://lab:5000/v2/mirror/pause/blobs/sha256:0a\n//cdn.example:443/b?c#d";
    let documents = [token, error, index, manifest, credentials].map(|document| document.to_string());
    let texts = [challenges, whole, chunked, redirect, "http://user@127.0.0.1:80/v2/\n/token"].map(str::to_owned);
    documents.into_iter().chain(texts).map(String::into_bytes).collect()
}
