//! Faults that are found before anything starts, exit codes, and the end.

use nix::sys::signal::Signal;
use rcgen::ExtendedKeyUsagePurpose;

use crate::lab::{Lab, write};

/// `check-config` and a start say the same, and exit with 2.
fn check_fault(lab: &Lab, expected: &str) {
    let (code, _, errors) = lab.command(&["check-config"]);
    let expected = expected.replace("DIR", &lab.path().display().to_string());
    assert_eq!((code, errors.trim()), (Some(2), expected.as_str()));
    let (code, _, errors) = lab.command(&[]);
    assert_eq!((code, errors.trim()), (Some(2), expected.as_str()));
    assert!(!lab.store().exists(), "something was made although nothing could start");
}

#[test]
fn a_good_configuration_is_said_to_be_good_and_starts_nothing() {
    let lab = Lab::new();
    let (code, output, errors) = lab.command(&["check-config"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(output.ends_with("is valid for collector \"ids\"\n"), "{output}");
    assert!(!lab.store().exists());
}

#[test]
fn an_unknown_key_is_named_with_line_and_nearest_key() {
    let lab = Lab::new();
    lab.configure("segmnt_mib = 5");
    check_fault(
        &lab,
        "ringwatch-collector: DIR/collector.toml:12: [store] segmnt_mib = 5: unknown key; \
         did you mean segment_mib?",
    );
}

#[test]
fn a_missing_certificate_is_named_with_its_place() {
    let lab = Lab::new();
    std::fs::remove_file(lab.path().join("ca.pem")).unwrap();
    check_fault(
        &lab,
        "ringwatch-collector: DIR/collector.toml:5: [tls] ca = \"ca.pem\": cannot read DIR/ca.pem: \
         No such file or directory (os error 2)",
    );
}

#[test]
fn a_key_that_others_may_read_is_refused_with_the_remedy() {
    let lab = Lab::new();
    let key = std::fs::read_to_string(lab.path().join("ids.key.pem")).unwrap();
    write(&lab.path().join("ids.key.pem"), &key, 0o644);
    check_fault(
        &lab,
        "ringwatch-collector: DIR/collector.toml:7: [tls] key = \"ids.key.pem\": DIR/ids.key.pem may be read \
         by others (mode 0644); run: chmod 600 DIR/ids.key.pem",
    );
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let lab = Lab::new();
    let other = lab.authority.collector("other");
    write(&lab.path().join("ids.key.pem"), &other.key, 0o600);
    let (code, _, errors) = lab.command(&["check-config"]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("does not fit the certificate"), "{errors}");
}

#[test]
fn a_sensors_certificate_cannot_act_as_a_collectors() {
    let lab = Lab::new();
    let own = lab.authority.sensor("web");
    write(&lab.path().join("ids.pem"), &own.certificate, 0o644);
    write(&lab.path().join("ids.key.pem"), &own.key, 0o600);
    let (code, _, errors) = lab.command(&["check-config"]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("is for ringwatch://sensor/web, not for"), "{errors}");
}

#[test]
fn a_collectors_certificate_that_also_is_a_clients_is_refused_with_the_remedy() {
    let lab = Lab::new();
    let purposes = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let own = lab.authority.issue(&["ringwatch://collector/ids"], &purposes);
    write(&lab.path().join("ids.pem"), &own.certificate, 0o644);
    write(&lab.path().join("ids.key.pem"), &own.key, 0o600);
    let (code, _, errors) = lab.command(&["check-config"]);
    assert_eq!(code, Some(2));
    let expected = "ids.pem: certificate must have the extended key usage serverAuth and no other; \
                    issue one with: ringwatch pki issue DIR collector NAME";
    assert!(errors.contains(expected), "{errors}");
}

#[test]
fn a_file_in_the_place_of_the_store_is_refused() {
    let lab = Lab::new();
    std::fs::write(lab.store(), "").unwrap();
    let (code, _, errors) = lab.command(&["check-config"]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("[store] path = \"store\": "), "{errors}");
    assert!(errors.contains("is no folder"), "{errors}");
}

#[test]
fn two_collectors_cannot_use_one_store() {
    let lab = Lab::new();
    let _collector = lab.start();
    let (code, _, errors) = lab.command(&[]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("another collector uses the store"), "{errors}");
}

#[test]
fn a_taken_port_is_named() {
    let lab = Lab::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let text = std::fs::read_to_string(lab.config()).unwrap();
    write(&lab.config(), &text.replacen("127.0.0.1:0", &address.to_string(), 1), 0o644);
    let (code, _, errors) = lab.command(&[]);
    assert_eq!(code, Some(1));
    assert!(errors.contains(&format!("cannot listen on {address} for sensors")), "{errors}");
}

#[test]
fn bad_usage_is_exit_code_two() {
    let run = |arguments: &[&str]| {
        let program = env!("CARGO_BIN_EXE_ringwatch-collector");
        std::process::Command::new(program).args(arguments).output().unwrap()
    };
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["--nonsense"]).status.code(), Some(2));
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("Examples:"));
}

#[test]
fn either_signal_ends_in_order() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let lab = Lab::new();
        let mut collector = lab.start();
        collector.signal(signal);
        assert_eq!(collector.wait().code(), Some(0), "{}", collector.log());
    }
}
