//! Who may ask a collector: the real collector with TLS and tokens, asked by the real command.
#![expect(clippy::unwrap_used, reason = "helpers of tests; clippy knows only test functions")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use perf::process::Process;
use perf::programs;

const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with certificates of an authority, a store, and the configuration of a collector.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new(api: &str) -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap() };
        let pki = site.path("pki");
        site.done(&["pki", "init", &pki]);
        site.done(&["pki", "issue", &pki, "collector", "ids"]);
        let file = |name: &str| site.path(&format!("pki/{name}"));
        let text = format!(
            "[listen]\nsensors = \"127.0.0.1:0\"\napi = \"127.0.0.1:0\"\n[api]\n{api}\n\
             [tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n[store]\npath = {:?}\n",
            file("ca.pem"),
            file("ids.pem"),
            file("ids.key.pem"),
            site.path("store"),
        );
        fs::write(site.path("collector.toml"), text).unwrap();
        site
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// The running collector, and where its API listens.
    fn start(&self) -> (Process, String) {
        let mut command = programs::collector();
        command.args(["--config", &self.path("collector.toml")]);
        let mut process = Process::spawn(command);
        let line = process.wait_for_line("collector started", PATIENCE);
        let (_, rest) = line.split_once("api=").unwrap();
        let address = rest.split(' ').next().unwrap().trim_matches('"').to_owned();
        (process, address)
    }

    fn run(&self, arguments: &[&str], token: Option<&str>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringwatch"));
        command.args(arguments).env_remove("RINGWATCH_TOKEN").env_remove("RINGWATCH_TOKEN_FILE");
        command.envs(token.map(|token| ("RINGWATCH_TOKEN", token)));
        command.output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, None);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Expects exit code 1; gives what was said.
    fn refused(&self, arguments: &[&str], token: Option<&str>) -> String {
        let output = self.run(arguments, token);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn a_token_opens_an_api_with_tls_until_it_is_revoked() {
    let site = Site::new("tls = true\ntokens = \"tokens\"");
    let tokens = site.path("tokens");
    let token = site.done(&["token", "create", &tokens, "board", "viewer"]);
    assert!(token.starts_with("rwt_") && token.ends_with('\n') && token.len() == 69, "{token}");
    let stored = fs::read_to_string(&tokens).unwrap();
    assert!(!stored.contains(token.trim().trim_start_matches("rwt_")), "{stored}");
    let file = site.path("board.token");
    fs::write(&file, &token).unwrap();
    let (_collector, address) = site.start();
    let url = format!("https://{address}");
    let ca = site.path("pki/ca.pem");
    let status = ["status", "--collector", &url, "--ca", &ca];
    let said = site.refused(&status, None);
    assert!(said.contains("a token is needed"), "{said}");
    assert!(said.contains("ringwatch token create FILE NAME viewer"), "{said}");
    let with_file = [&status[..], &["--token-file", &file]].concat();
    assert!(site.done(&with_file).starts_with("collector ids (version "));
    let alerts = ["alerts", "--collector", &url, "--ca", &ca];
    site.done(&[&alerts[..], &["--token-file", &file]].concat());
    assert!(site.refused(&alerts, None).contains("a token is needed"));
    let by_variable = site.run(&status, Some(token.trim()));
    assert!(by_variable.status.success(), "{by_variable:?}");
    assert!(site.refused(&status, Some("rwt_0")).contains("a token is needed"));

    site.done(&["token", "revoke", &tokens, "board"]);
    std::thread::sleep(Duration::from_secs(1));
    assert!(site.refused(&with_file, None).contains("a token is needed"));
    assert!(site.refused(&["token", "revoke", &tokens, "board"], None).contains("no token called"));
}

#[test]
fn the_collector_is_verified_before_a_token_is_shown() {
    let site = Site::new("tls = true\ntokens = \"tokens\"");
    let token = site.done(&["token", "create", &site.path("tokens"), "board", "admin"]);
    let (_collector, address) = site.start();
    let other = site.path("other");
    site.done(&["pki", "init", &other]);
    let ca = format!("{other}/ca.pem");
    let url = format!("https://{address}");
    let said = site.refused(&["status", "--collector", &url, "--ca", &ca], Some(&token));
    assert!(said.contains("UnknownIssuer"), "{said}");
    let said = site.refused(&["status", "--collector", &url], Some(&token));
    assert!(said.contains("--ca FILE"), "{said}");
    let said = site.refused(&["status", "--collector", "http://192.0.2.1:80"], Some(&token));
    assert!(said.contains("is not encrypted"), "{said}");
}

#[test]
fn without_tokens_an_api_on_loopback_answers_as_before() {
    let site = Site::new("");
    let (_collector, address) = site.start();
    let url = format!("http://{address}");
    assert!(site.done(&["status", "--collector", &url]).starts_with("collector ids (version "));
}

#[test]
fn a_new_certificate_of_the_api_is_taken_without_a_restart() {
    let site = Site::new("certificate = \"api.pem\"\nkey = \"api.key.pem\"");
    let (first, second) = (site.path("first"), site.path("second"));
    let install = |dir: &str| {
        site.done(&["pki", "init", dir]);
        site.done(&["pki", "issue", dir, "collector", "api"]);
        for file in ["api.key.pem", "api.pem"] {
            fs::copy(format!("{dir}/{file}"), site.path(file)).unwrap();
        }
    };
    install(&first);
    let (_collector, address) = site.start();
    let url = format!("https://{address}");
    let ask = |dir: &str| {
        let ca = format!("{dir}/ca.pem");
        site.run(&["status", "--collector", &url, "--ca", &ca], None).status.success()
    };
    assert!(ask(&first));
    install(&second);
    assert!(ask(&second) && !ask(&first));
}

#[test]
fn a_list_of_tokens_names_them_without_what_they_are() {
    let site = Site::new("");
    let tokens = site.path("tokens");
    let token = site.done(&["token", "create", &tokens, "anna", "analyst", "--days", "90"]);
    site.done(&["token", "create", &tokens, "board", "viewer"]);
    let text = site.done(&["token", "list", &tokens]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("TOKEN "), "{text}");
    assert!(lines[1].starts_with("anna") && lines[1].contains("analyst"), "{text}");
    assert!(lines[2].starts_with("board") && lines[2].ends_with("it is revoked"), "{text}");
    assert!(!text.contains(&token.trim()[4..12]), "{text}");
    assert_eq!(fs::metadata(&tokens).unwrap().permissions().mode() & 0o777, 0o644);
    let said = site.refused(&["token", "create", &tokens, "anna", "admin"], None);
    assert!(said.contains("there is a token called anna already"), "{said}");
}

#[test]
fn an_api_beyond_loopback_without_tokens_does_not_start() {
    let site = Site::new("");
    let config = site.path("collector.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("api = \"127.0.0.1:0\"", "api = \"0.0.0.0:0\"")).unwrap();
    let output = programs::collector().args(["check-config", "--config", &config]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("[listen] api = \"0.0.0.0:0\": is not loopback"), "{said}");
    assert!(said.contains("ringwatch token create"), "{said}");
}
