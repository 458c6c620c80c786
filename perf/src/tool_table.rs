//! The programs that tests start, in one table for the tests and for `cargo xtask test`, which installs
//! what is missing.

/// A program that tests start.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Its name.
    pub program: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
    /// What the tests do with it.
    pub why: &'static str,
}

/// Every program that a test may ask for.
pub const TOOLS: &[Tool] = &[
    tool("ip", "iproute2", "makes network namespaces and veth pairs"),
    tool("setpriv", "util-linux", "starts a sensor without the right to capture"),
    tool("ethtool", "ethtool", "changes and shows what a network driver is set to"),
    tool("strace", "strace", "shows the system calls of running programs"),
    tool("nft", "nftables", "cuts and heals links"),
    tool("tcpdump", "tcpdump", "records beside the sensor; reads what is stored; brings libpcap"),
    tool("tshark", "tshark", "reads what the collector stored"),
    tool("capinfos", "wireshark-common", "counts what the collector stored"),
    tool("nmap", "nmap", "scans and sweeps"),
    tool("masscan", "masscan", "scans many ports of many hosts in any order"),
    tool("hping3", "hping3", "floods"),
    tool("traceroute", "traceroute", "asks for the way by UDP, ICMP and TCP, as scans do not"),
    tool("iperf3", "iperf3", "makes ordinary bulk traffic"),
    tool("socat", "socat", "makes an interface without link headers"),
    tool("curl", "curl", "makes ordinary web traffic"),
    tool("promtool", "prometheus", "checks the alert rules that are shipped, and runs their tests"),
    tool("shellcheck", "shellcheck", "checks the scripts for bare metal"),
];

const fn tool(program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { program, package, why }
}
