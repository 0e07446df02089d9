//! Names: the machine's own, `/etc/hosts`, `/etc/resolv.conf`.

use std::fs;
use std::io;

use lightv_contract::agent::AgentSpec;

use crate::message::{plain, say};

/// Host name when none is ordered.
const DEFAULT: &str = "lightv";
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Ends the lines of `/etc/hosts` that are ours, so that they can be found again when they change.
const MARK: &str = "# lightv";

/// Sets all names as `spec` says. The files are left alone when they cannot be written, and what others have written to
/// `/etc/hosts` stays.
pub fn set(spec: &AgentSpec) {
    let name = spec.hostname.as_deref().unwrap_or(DEFAULT);
    if let Err(error) = rustix::system::sethostname(name.as_bytes()) {
        say(format_args!(
            "cannot set the host name {name}: {}",
            plain(&error.into())
        ));
    }
    let address = spec
        .network
        .first()
        .and_then(|interface| interface.address.split('/').next())
        .unwrap_or("127.0.1.1");
    let old = fs::read_to_string(HOSTS).unwrap_or_default();
    let new = hosts(&old, name, address);
    if new != old {
        tell(HOSTS, fs::write(HOSTS, new));
    }
    let servers = spec.network.iter().flat_map(|interface| &interface.dns);
    let lines: String = servers
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    if !lines.is_empty() {
        let written = fs::write(RESOLV_CONF, &lines).or_else(|_| {
            // A link to where a resolver's daemon would have written it, which does not run here.
            fs::remove_file(RESOLV_CONF)?;
            fs::write(RESOLV_CONF, &lines)
        });
        tell(RESOLV_CONF, written);
    }
}

/// Says what went wrong, unless it was only that the guest's files are not to be written.
fn tell(path: &str, result: io::Result<()>) {
    if let Err(error) = result {
        let is_usual =
            [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::NotFound].contains(&error.kind());
        if !is_usual {
            say(format_args!("cannot write {path}: {}", plain(&error)));
        }
    }
}

/// `/etc/hosts` with our lines in place of those from before.
fn hosts(old: &str, name: &str, address: &str) -> String {
    let theirs: Vec<&str> = old.lines().filter(|line| !line.ends_with(MARK)).collect();
    let knows = |name: &str| {
        theirs.iter().any(|line| {
            let line = line.split('#').next().unwrap_or_default();
            line.split_ascii_whitespace()
                .skip(1)
                .any(|word| word == name)
        })
    };
    let ours = [
        ("127.0.0.1", "localhost", !knows("localhost")),
        ("::1", "localhost", !knows("localhost")),
        (address, name, !knows(name)),
    ];
    let ours = ours.iter().filter(|(_, _, is_missing)| *is_missing);
    let ours = ours.map(|(address, name, _)| format!("{address}\t{name} {MARK}"));
    let lines = theirs.iter().map(|line| (*line).to_owned()).chain(ours);
    lines.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_gets_what_is_missing() {
        let fresh = hosts("", "box", "10.0.0.2");
        let expected =
            "127.0.0.1\tlocalhost # lightv\n::1\tlocalhost # lightv\n10.0.0.2\tbox # lightv\n";
        assert_eq!(fresh, expected);
        let theirs = "127.0.0.1 localhost\n10.0.0.9 box # mine\n";
        assert_eq!(hosts(theirs, "box", "10.0.0.2"), theirs);
    }

    #[test]
    fn our_lines_are_replaced_and_not_repeated() {
        let first = hosts("1.2.3.4 other\n", "box", "10.0.0.2");
        assert_eq!(hosts(&first, "box", "10.0.0.2"), first);
        let second = hosts(&first, "bag", "10.0.0.3");
        assert!(
            second.contains("10.0.0.3\tbag") && !second.contains("box"),
            "{second}"
        );
        assert!(second.starts_with("1.2.3.4 other\n"), "{second}");
    }
}
