// SPDX-License-Identifier: MIT OR Apache-2.0

//! A web server with TLS: Python's, with certificates that openssl made.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::tool::{python, run, tool};

/// Serves the folder it is in by https, and at `/away` leads to http.
const SERVER: &str = r#"
import http.server, ssl

class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/away":
            return super().do_GET()
        self.send_response(302)
        self.send_header("Location", "http://127.0.0.1:1/root.tar")
        self.end_headers()

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem")
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// A server, killed at the end of its test.
#[derive(Debug)]
pub struct Https {
    child: Child,
    /// Its address, `127.0.0.1` and a port.
    pub address: String,
}

impl Https {
    /// Serves `folder`, in which [`certificates`] has put some.
    pub fn serve(folder: &Path) -> Self {
        let mut command = python(&[]);
        command.args(["-c", SERVER]).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, address: format!("127.0.0.1:{}", port.trim()) }
    }

    /// Its URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Writes an authority, `ca.pem`, and what it has certified, `server.pem` with its key: for `names`, as OpenSSL has
/// them (`IP:127.0.0.1`).
pub fn certificates(folder: &Path, names: &str) {
    let openssl = |arguments: &str| run(tool("openssl").args(arguments.split(' ')).current_dir(folder));
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    openssl(&format!("req {key} -keyout server.key -out request.pem -subj /CN=server"));
    fs::write(folder.join("names"), format!("subjectAltName = {names}\n")).unwrap();
    openssl(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt",
    );
    let both = ["server.crt", "server.key"].map(|file| fs::read_to_string(folder.join(file)).unwrap());
    fs::write(folder.join("server.pem"), both.concat()).unwrap();
}
