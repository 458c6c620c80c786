//! Programs and rights that a test needs. A test that lacks one says so and is counted as skipped;
//! where everything must run (`RINGWATCH_REQUIRE_TOOLS=1`) it fails instead.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

/// Set to `1`, it turns every missing tool into a failure.
pub const REQUIRE: &str = "RINGWATCH_REQUIRE_TOOLS";

/// A file to which a line is added for everything that a test lacked.
pub const SKIP_LOG: &str = "RINGWATCH_SKIP_LOG";

/// Debian packages of the tools that tests use, where the package is not named like the tool.
const PACKAGES: &[(&str, &str)] = &[
    ("capinfos", "wireshark-common"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("dumpcap", "wireshark-common"),
    ("editcap", "wireshark-common"),
    ("ethtool", "ethtool"),
    ("hping3", "hping3"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("mergecap", "wireshark-common"),
    ("nc", "netcat-openbsd"),
    ("nft", "nftables"),
    ("openssl", "openssl"),
    ("ping", "iputils-ping"),
    ("python3", "python3"),
    ("setcap", "libcap2-bin"),
    ("socat", "socat"),
    ("ssh", "openssh-client"),
    ("suricata", "suricata"),
    ("sysctl", "procps"),
    ("taskset", "util-linux"),
    ("tc", "iproute2"),
    ("tcpdump", "tcpdump"),
    ("tcpreplay", "tcpreplay"),
    ("tshark", "tshark"),
];

/// Whether all `tools` are installed. Where one is missing, says which package has it.
///
/// # Panics
/// If one is missing and [`REQUIRE`] is `1`.
#[must_use]
pub fn require(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools.iter().filter(|tool| find(tool).is_none()).collect();
    for tool in &missing {
        lacking(&format!("{tool} (package {})", package(tool)));
    }
    missing.is_empty()
}

/// Whether the test runs as root, which namespaces and packet sockets need.
///
/// # Panics
/// If it does not and [`REQUIRE`] is `1`.
#[must_use]
pub fn require_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        lacking("root (network namespaces and packet sockets)");
    }
    is_root
}

/// The Debian package of a tool.
#[must_use]
pub fn package(tool: &str) -> &str {
    PACKAGES.iter().find(|(name, _)| *name == tool).map_or(tool, |(_, package)| package)
}

/// Where a tool is installed. The folders of root are looked at in any case.
#[must_use]
pub fn find(tool: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(tool))
        .find(|file| file.is_file())
}

fn lacking(what: &str) {
    let test = thread::current().name().unwrap_or("test").to_owned();
    let line = format!("{test}: needs {what}");
    assert!(env::var_os(REQUIRE).is_none_or(|value| value != "1"), "{line}");
    eprintln!("skipped: {line}");
    if let Some(log) = env::var_os(SKIP_LOG) {
        append(Path::new(&log), &line);
    }
}

fn append(log: &Path, line: &str) {
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        panic!("cannot add to {}: {error}", log.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_installed_and_names_the_package_of_what_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-tool").is_none());
        assert_eq!(package("capinfos"), "wireshark-common");
        assert_eq!(package("nmap"), "nmap");
    }
}
