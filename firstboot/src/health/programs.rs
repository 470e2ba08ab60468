// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs programs side by side, and says in few words why one failed.

use crate::host::{Host, RealHost};
use crate::runner::{Command, Output, RealRunner, Runner};

/// Lines kept of what a program says: more than `kubectl -v=8` writes about one small request.
const LINES: usize = 300;
/// Longest reason shown: what etcdctl logs can be longer than a screen.
const REASON: usize = 160;

/// How a program ended, and when.
#[derive(Debug, Clone)]
pub(super) struct Ran {
    pub output: Output,
    /// The first lines of stdout and stderr, in the order they came.
    pub lines: Vec<String>,
    /// This node's clock before and after, in seconds since 1970.
    pub from: u64,
    pub until: u64,
}

/// Runs programs; tests have one that only pretends.
pub(super) trait Programs {
    /// Runs all of them to their ends. The order of the answers is that of the commands.
    fn run_all(&self, commands: &[Command]) -> Vec<Result<Ran, String>>;
}

/// All at the same time: what does not answer costs its time limit once, not once a program.
#[derive(Debug)]
pub(super) struct AtOnce;

impl Programs for AtOnce {
    fn run_all(&self, commands: &[Command]) -> Vec<Result<Ran, String>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                commands.iter().map(|command| scope.spawn(|| run(&RealRunner, &RealHost::new(), command))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a defect of firstboot".to_owned())))
                .collect()
        })
    }
}

/// Runs one.
pub(super) fn run(runner: &dyn Runner, host: &dyn Host, command: &Command) -> Result<Ran, String> {
    let from = host.unix_time();
    let mut lines = Vec::new();
    let output = runner
        .run(command, None, &mut |line| {
            if lines.len() < LINES {
                lines.push(line.to_owned());
            }
        })
        .map_err(|error| format!("{error:#}"))?;
    Ok(Ran { output, lines, from, until: host.unix_time() })
}

/// Why it failed, in few words: programs in Go wrap the one fact that matters in much else.
pub(super) fn why(ran: &Ran) -> String {
    const KNOWN: [(&str, &str); 9] = [
        ("connection refused", "connection refused"),
        ("was refused - did you specify", "connection refused"),
        ("no route to host", "no route to host"),
        ("network is unreachable", "the network is unreachable"),
        ("no such host", "the name is unknown"),
        ("Unauthorized", "the certificate of this node is refused"),
        ("Forbidden", "forbidden for this node"),
        ("i/o timeout", "no answer"),
        ("Client.Timeout exceeded", "no answer"),
    ];
    let tail: Vec<&str> = ran.output.stderr_tail.lines().collect();
    let all = || ran.lines.iter().map(String::as_str).chain(tail.iter().copied());
    if let Some(tls) = all().find_map(|line| Some(&line[line.find("x509: ")?..])) {
        return cut(tls.split(['"', '\\']).next().unwrap_or(tls));
    }
    if let Some((_, words)) = KNOWN.iter().find(|(sign, _)| all().any(|line| line.contains(sign))) {
        return (*words).to_owned();
    }
    if all().any(|line| line.contains("deadline exceeded")) || tail.iter().any(|line| line.starts_with("killed after"))
    {
        return "no answer".to_owned();
    }
    // kubectl before 1.22, when asked to be wordy, prints its message as a fatal one and a stack below it.
    let fatal = |line: &str| line.starts_with('F') && line.contains("helpers.go:");
    if let Some((_, said)) = all().find(|line| fatal(line)).and_then(|line| line.split_once("] ")) {
        return cut(said);
    }
    let said = all().rfind(|line| !line.trim().is_empty()).map(str::trim).unwrap_or_default();
    match said {
        "" => format!("exit {}", ran.output.status),
        said => cut(said),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(REASON) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stderr: &str) -> Ran {
        let output = Output { status: 1, stderr_tail: stderr.to_owned(), ..Output::default() };
        Ran { output, lines: stderr.lines().map(str::to_owned).collect(), from: 0, until: 0 }
    }

    #[test]
    fn reasons_are_short() {
        // As etcdctl 3.4.23 and kubectl 1.28 wrote them.
        let etcdctl = r#"{"level":"warn","caller":"clientv3/retry_interceptor.go:62","error":"rpc error: code = DeadlineExceeded desc = latest balancer error: connection error: desc = \"transport: Error while dialing dial tcp 127.0.0.1:32379: connect: connection refused\""}
Failed to get the status of endpoint http://127.0.0.1:32379 (context deadline exceeded)"#;
        assert_eq!(why(&failed(etcdctl)), "connection refused");
        let kubectl =
            "The connection to the server 127.0.0.1:18081 was refused - did you specify the right host or port?";
        assert_eq!(why(&failed(kubectl)), "connection refused");
        let expired = "Unable to connect to the server: x509: certificate has expired or is not yet valid: current time 2027-11-21T09:47:48Z is after 2027-01-01T00:00:00Z";
        assert!(why(&failed(expired)).starts_with("x509: certificate has expired or is not yet valid"));
        assert_eq!(why(&failed("Error: context deadline exceeded")), "no answer");
        assert_eq!(why(&failed("killed after 30 s")), "no answer");
        let wordy = "F0115 08:00:00.1 12 helpers.go:115] Error from server (NotFound): nodes not found\ngoroutine 1 [running]:\nk8s.io";
        assert_eq!(why(&failed(wordy)), "Error from server (NotFound): nodes not found");
        assert_eq!(why(&failed("")), "exit 1");
        assert_eq!(why(&failed("something\nelse\n\n")), "else");
        assert_eq!(why(&failed(&"é".repeat(500))).chars().count(), REASON + 1);
    }

    #[test]
    fn programs_run_side_by_side() {
        let sleep = Command::new("sh", ["-c", "sleep 1; echo $0", "done"]).timeout(10);
        let missing = Command::new("no-such-program", [""; 0]);
        let started = std::time::Instant::now();
        let answers = AtOnce.run_all(&[sleep.clone(), sleep.clone(), missing, sleep]);
        assert!(started.elapsed() < std::time::Duration::from_millis(2500), "{:?}", started.elapsed());
        assert_eq!(answers[0].as_ref().unwrap().output.stdout, "done\n");
        assert!(answers[2].as_ref().unwrap_err().contains("starting no-such-program"));
    }
}
