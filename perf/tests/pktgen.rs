//! The scripts for bare metal, against folders that look like the kernel's.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use perf::tools;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pktgen");

/// A control folder with threads on two CPUs and devices for two queues.
fn control_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["pgctrl", "kpktgend_0", "kpktgend_1", "eth1@0", "eth1@1"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    folder
}

fn send(control: &Path, arguments: &str) -> Output {
    let mut command = Command::new(format!("{SCRIPTS}/send.sh"));
    command.args(arguments.split_whitespace()).env("PKTGEN_PROC", control);
    command.output().unwrap()
}

#[test]
fn each_queue_is_told_its_share() {
    let control = control_folder();
    let arguments = "-i eth1 -d 02:00:00:00:00:09 -q 2 -n 5000 -r 1000 -f 1024 -s 128";
    let output = send(control.path(), arguments);
    assert!(output.status.success(), "{output:?}");
    let told = |name: &str| fs::read_to_string(control.path().join(name)).unwrap();
    assert_eq!(told("pgctrl"), "reset\nstart\n");
    for queue in 0..2 {
        let device = format!("eth1@{queue}");
        let thread = told(&format!("kpktgend_{queue}"));
        assert_eq!(thread, format!("rem_device_all\nadd_device {device}\n"));
        let device = told(&device);
        for line in [
            "count 5000",
            "pkt_size 124",
            "clone_skb 0",
            "ratep 500",
            "dst_mac 02:00:00:00:00:09",
            "src_mac 02:00:00:00:00:01",
            "src_min 198.18.0.0",
            "src_max 198.18.1.255",
            &format!("queue_map_min {queue}"),
            &format!("queue_map_max {queue}"),
            &format!("udp_src_min {}", 1024 + queue),
        ] {
            assert!(device.lines().any(|told| told == line), "no {line} in {device}");
        }
    }
}

#[test]
fn what_cannot_be_sent_is_refused_with_its_reason() {
    let control = control_folder();
    for (arguments, said) in [
        ("-i eth1", "-d MAC are needed"),
        ("-i eth1 -d 02:00:00:00:00:09 -q 3", "on 2 CPUs only"),
        ("-i eth2 -d 02:00:00:00:00:09", "is the module loaded"),
        ("-i eth1 -d 02:00:00:00:00:09 -f 100000", "65536 flows"),
    ] {
        let output = send(control.path(), arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments}");
        assert!(text.contains(said), "{arguments}: {text}");
    }
    // The kernel says no in the file itself.
    fs::write(control.path().join("eth1@0"), "Result: Error: no such command\n").unwrap();
    let output = send(control.path(), "-i eth1 -d 02:00:00:00:00:09");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("Result: Error") && !output.status.success(), "{text}");
}

#[test]
fn the_receiver_gives_each_queue_a_processor() {
    let proc = tempfile::tempdir().unwrap();
    let interrupts = "            CPU0  CPU1\n  24:  1  2  PCI-MSI 1-edge  eth1-TxRx-0\n  \
        25:  1  2  PCI-MSI 2-edge  eth1-TxRx-1\n  26:  1  2  PCI-MSI 3-edge  eth10-TxRx-0\n";
    fs::write(proc.path().join("interrupts"), interrupts).unwrap();
    let mut command = Command::new(format!("{SCRIPTS}/receiver.sh"));
    command.args(["prepare", "eth1", "2"]).env("SYS_PROC", proc.path()).env("DRY_RUN", "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    for line in
        ["ethtool -L eth1 combined 2", "irq/24/smp_affinity_list", "irq/25/smp_affinity_list"]
    {
        assert!(said.contains(line), "no {line} in {said}");
    }
    assert!(!said.contains("irq/26"), "{said}");
}

#[test]
fn shellcheck_finds_nothing() {
    if !tools::require(&["shellcheck"]) {
        return;
    }
    let mut command = Command::new("shellcheck");
    for script in ["common.sh", "send.sh", "receiver.sh"] {
        command.arg(format!("{SCRIPTS}/{script}"));
    }
    let output = command.arg("-x").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
