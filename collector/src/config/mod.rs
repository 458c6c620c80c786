//! The configuration: a TOML file, read into a raw form, checked into [`Config`].
//!
//! Reading makes no system call but opening the file; what the values point at (certificates, the
//! store's folder) is checked by [`crate::preflight`], with the same kind of error.

mod origin;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use wire::text::{NAME_RULE, is_name};

use origin::Section;
pub use origin::{ConfigError, Origin};

use crate::archive::retention::RecordLimits;
use crate::ingest::MOST_LOOPS;
use crate::store::retention::Limits;

/// The checked configuration, units resolved.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this collector; `None`: the certificate's.
    pub name: Option<String>,
    /// Where sensors connect.
    pub sensors: SocketAddr,
    /// Event loops that serve sensors; `None`: as many as there are processors.
    pub loops: Option<usize>,
    /// What one sensor may bring.
    pub sensor_rates: Rates,
    /// The HTTP API; `None`: there is none.
    pub api: Option<ApiConfig>,
    /// Files of the TLS identity.
    pub tls: trust::Files,
    /// How long before it expires a certificate or revocation list is a problem.
    pub expiry_warning: Duration,
    /// Where and how things are stored.
    pub store: StoreConfig,
    /// Where each value stands in the file, for errors found later.
    pub origin: Origin,
}

/// The HTTP API. Beyond loopback it has TLS and tokens.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// The file of tokens; `None`: who asks is a viewer.
    pub tokens: Option<PathBuf>,
    /// Files of its certificate; `None`: no TLS.
    pub tls: Option<trust::Files>,
}

/// What one sensor may bring in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Bytes on the wire.
    pub bytes: u64,
    /// Event records.
    pub records: u64,
}

/// Where and how things are stored.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Folder of the store.
    pub path: PathBuf,
    /// Bytes from which a segment is sealed.
    pub segment_bytes: u64,
    /// Age from which a segment is sealed.
    pub segment_age: Duration,
    /// How long records are kept.
    pub record_limits: RecordLimits,
    /// How long segments are kept.
    pub limits: Limits,
}

impl Config {
    /// Reads and checks a configuration file. Relative paths in it count from its own folder.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { file: file.to_owned(), source };
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        let absolute = std::path::absolute(file).map_err(unreadable)?;
        Self::parse(file, absolute.parent().unwrap_or(Path::new("/")), &text)
    }

    /// Checks the text of a configuration file; relative paths in it count from `folder`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(file: &Path, folder: &Path, text: &str) -> Result<Self, ConfigError> {
        let origin = Origin::parse(file, text, SECTIONS)?;
        let raw: RawConfig = toml::from_str(text).map_err(|error| origin.locate(text, &error))?;
        let check = Check { origin: &origin };
        let api = check.api(folder, &raw)?;
        Ok(Self {
            name: raw.collector.name.map(|name| check.name(name)).transpose()?,
            sensors: check.address("sensors", DEFAULT_SENSORS, &raw.listen.sensors)?,
            loops: check.loops(raw.listen.loops)?,
            sensor_rates: Rates {
                bytes: check.rate("sensor_mib_per_second", raw.listen.sensor_mib_per_second)? << 20,
                records: check
                    .rate("sensor_records_per_second", raw.listen.sensor_records_per_second)?,
            },
            api,
            expiry_warning: check.expiry_warning(raw.tls.expiry_warning_days)?,
            tls: trust::Files {
                ca: folder.join(raw.tls.ca),
                certificate: folder.join(raw.tls.certificate),
                key: folder.join(raw.tls.key),
                crl: raw.tls.crl.map(|crl| folder.join(crl)),
            },
            store: StoreConfig {
                path: folder.join(raw.store.path),
                record_limits: RecordLimits {
                    bytes: check.number(
                        "records_max_gib",
                        DEFAULT_MAX_GIB,
                        raw.store.records_max_gib,
                        MAX_GIB,
                    )? << 30,
                    age: check.max_age(
                        "records_max_age",
                        DEFAULT_RECORDS_MAX_AGE,
                        &raw.store.records_max_age,
                    )?,
                },
                segment_bytes: check.number(
                    "segment_mib",
                    DEFAULT_SEGMENT_MIB,
                    raw.store.segment_mib,
                    SEGMENT_MIB,
                )? << 20,
                segment_age: check.duration(
                    "segment_age",
                    DEFAULT_SEGMENT_AGE,
                    &raw.store.segment_age,
                    SEGMENT_AGE,
                )?,
                limits: Limits {
                    bytes: check.number("max_gib", DEFAULT_MAX_GIB, raw.store.max_gib, MAX_GIB)?
                        << 30,
                    age: check.max_age("max_age", DEFAULT_MAX_AGE, &raw.store.max_age)?,
                    // At most 90.
                    free_percent: check.number(
                        "min_free_percent",
                        DEFAULT_MIN_FREE_PERCENT,
                        raw.store.min_free_percent,
                        MIN_FREE_PERCENT,
                    )? as u8,
                },
            },
            origin,
        })
    }
}

/// The checks of single values; each knows the place of the value it refuses.
struct Check<'o> {
    origin: &'o Origin,
}

impl Check<'_> {
    fn name(&self, name: String) -> Result<String, ConfigError> {
        if is_name(&name) {
            return Ok(name);
        }
        Err(self.origin.fault("collector", "name", "", format!("no name: {NAME_RULE}")))
    }

    fn address(&self, key: &str, default: &str, text: &str) -> Result<SocketAddr, ConfigError> {
        text.parse().map_err(|_| {
            let problem = format!("is no IP address with port, such as {default:?}");
            self.origin.fault("listen", key, default, problem)
        })
    }

    fn api(&self, folder: &Path, raw: &RawConfig) -> Result<Option<ApiConfig>, ConfigError> {
        if raw.listen.api.is_empty() {
            return Ok(None);
        }
        let address = self.address("api", DEFAULT_API, &raw.listen.api)?;
        let is_local = address.ip().to_canonical().is_loopback();
        let RawApi { tokens, tls, certificate, key } = &raw.api;
        let has_tls = tls.unwrap_or(!is_local || certificate.is_some());
        if certificate.is_some() != key.is_some() {
            let problem = "certificate and key are needed both, or none".to_owned();
            return Err(self.origin.fault("api", "certificate", "", problem));
        }
        if !is_local && (tokens.is_none() || !has_tls) {
            let lacking = if has_tls { "[api] tokens" } else { "[api] tls" };
            let problem = format!(
                "is not loopback, where TLS and tokens are needed; {lacking} is missing: \
                 `ringwatch token create FILE NAME viewer` makes a file for [api] tokens, and TLS is \
                 on unless [api] tls = false"
            );
            return Err(self.origin.fault("listen", "api", DEFAULT_API, problem));
        }
        let own =
            |file: &Option<PathBuf>, ours: &Path| folder.join(file.as_deref().unwrap_or(ours));
        let tls = has_tls.then(|| trust::Files {
            ca: folder.join(&raw.tls.ca),
            certificate: own(certificate, &raw.tls.certificate),
            key: own(key, &raw.tls.key),
            crl: None,
        });
        Ok(Some(ApiConfig { address, tokens: tokens.as_ref().map(|it| folder.join(it)), tls }))
    }

    fn rate(&self, key: &str, number: i64) -> Result<u64, ConfigError> {
        match u64::try_from(number) {
            Ok(number) if RATE.contains(&number) => Ok(number),
            _ => {
                let problem =
                    format!("out of range; {} to {} are allowed", RATE.start(), RATE.end());
                Err(self.origin.fault("listen", key, "", problem))
            }
        }
    }

    /// 0 leaves the number to the machine.
    fn loops(&self, number: i64) -> Result<Option<usize>, ConfigError> {
        match usize::try_from(number) {
            Ok(number) if number <= MOST_LOOPS => Ok(Some(number).filter(|number| *number > 0)),
            _ => {
                let problem = format!("out of range; 0 to {MOST_LOOPS} are allowed");
                Err(self.origin.fault("listen", "loops", "0", problem))
            }
        }
    }

    fn expiry_warning(&self, days: i64) -> Result<Duration, ConfigError> {
        match u64::try_from(days) {
            Ok(days) if EXPIRY_WARNING_DAYS.contains(&days) => {
                Ok(Duration::from_secs(days * 24 * 3600))
            }
            _ => {
                let (least, most) = (EXPIRY_WARNING_DAYS.start(), EXPIRY_WARNING_DAYS.end());
                let problem = format!("out of range; {least} to {most} days are allowed");
                Err(self.origin.fault("tls", "expiry_warning_days", "14", problem))
            }
        }
    }

    fn number(
        &self,
        key: &str,
        default: i64,
        number: i64,
        range: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        match u64::try_from(number) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => {
                let (least, most) = (range.start(), range.end());
                let problem = format!("out of range; {least} to {most} are allowed");
                Err(self.origin.fault("store", key, &default.to_string(), problem))
            }
        }
    }

    fn duration(
        &self,
        key: &str,
        default: &str,
        text: &str,
        range: RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        let problem = match humantime::parse_duration(text) {
            Ok(duration) if range.contains(&duration) => return Ok(duration),
            Ok(_) => {
                let [least, most] =
                    [range.start(), range.end()].map(|d| humantime::format_duration(*d));
                format!("out of range; \"{least}\" to \"{most}\" are allowed")
            }
            Err(_) => format!("is no duration; write it as {default:?} or \"5m\""),
        };
        Err(self.origin.fault("store", key, default, problem))
    }

    /// How long something is kept; zero for "": for ever.
    fn max_age(&self, key: &str, default: &str, text: &str) -> Result<Duration, ConfigError> {
        if text.is_empty() {
            return Ok(Duration::ZERO);
        }
        self.duration(key, default, text, MAX_AGE)
    }
}

/// The file as written; every key may be left out.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    collector: RawCollector,
    listen: RawListen,
    tls: RawTls,
    api: RawApi,
    store: RawStore,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawApi {
    tokens: Option<PathBuf>,
    tls: Option<bool>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawCollector {
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawListen {
    sensors: String,
    loops: i64,
    sensor_mib_per_second: i64,
    sensor_records_per_second: i64,
    api: String,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawTls {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    crl: Option<PathBuf>,
    expiry_warning_days: i64,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawStore {
    path: PathBuf,
    segment_mib: i64,
    segment_age: String,
    max_gib: i64,
    max_age: String,
    min_free_percent: i64,
    records_max_gib: i64,
    records_max_age: String,
}

impl Default for RawListen {
    fn default() -> Self {
        Self {
            sensors: DEFAULT_SENSORS.to_owned(),
            loops: 0,
            sensor_mib_per_second: DEFAULT_SENSOR_MIB,
            sensor_records_per_second: DEFAULT_SENSOR_RECORDS,
            api: DEFAULT_API.to_owned(),
        }
    }
}

impl Default for RawTls {
    fn default() -> Self {
        Self {
            ca: DEFAULT_CA.into(),
            certificate: DEFAULT_CERTIFICATE.into(),
            key: DEFAULT_KEY.into(),
            crl: None,
            expiry_warning_days: DEFAULT_EXPIRY_WARNING_DAYS,
        }
    }
}

impl Default for RawStore {
    fn default() -> Self {
        Self {
            path: DEFAULT_STORE.into(),
            segment_mib: DEFAULT_SEGMENT_MIB,
            segment_age: DEFAULT_SEGMENT_AGE.to_owned(),
            max_gib: DEFAULT_MAX_GIB,
            max_age: DEFAULT_MAX_AGE.to_owned(),
            min_free_percent: DEFAULT_MIN_FREE_PERCENT,
            records_max_gib: DEFAULT_MAX_GIB,
            records_max_age: DEFAULT_RECORDS_MAX_AGE.to_owned(),
        }
    }
}

/// All sections and keys, in the order of `config/collector.toml`.
const SECTIONS: &[Section] = &[
    Section { name: "collector", keys: &["name"] },
    Section {
        name: "listen",
        keys: &["sensors", "loops", "sensor_mib_per_second", "sensor_records_per_second", "api"],
    },
    Section { name: "api", keys: &["tokens", "tls", "certificate", "key"] },
    Section { name: "tls", keys: &["ca", "certificate", "key", "crl", "expiry_warning_days"] },
    Section {
        name: "store",
        keys: &[
            "path",
            "segment_mib",
            "segment_age",
            "max_gib",
            "max_age",
            "min_free_percent",
            "records_max_gib",
            "records_max_age",
        ],
    },
];

const DEFAULT_SENSORS: &str = "0.0.0.0:4750";
const DEFAULT_API: &str = "127.0.0.1:8480";
/// Default of `[tls] ca`.
pub const DEFAULT_CA: &str = "/etc/ringwatch/pki/ca.pem";
/// Default of `[tls] certificate`.
pub const DEFAULT_CERTIFICATE: &str = "/etc/ringwatch/pki/collector.pem";
/// Default of `[tls] key`.
pub const DEFAULT_KEY: &str = "/etc/ringwatch/pki/collector.key.pem";
/// Default of `[store] path`.
pub const DEFAULT_STORE: &str = "/var/lib/ringwatch/collector";
/// More than a link of 10 Gbit/s brings.
const DEFAULT_SENSOR_MIB: i64 = 2048;
/// Ten times what a sensor writes by its own default limits.
const DEFAULT_SENSOR_RECORDS: i64 = 200_000;
const RATE: std::ops::RangeInclusive<u64> = 1..=1_000_000_000;
const DEFAULT_EXPIRY_WARNING_DAYS: i64 = 14;
const EXPIRY_WARNING_DAYS: std::ops::RangeInclusive<u64> = 0..=365;
const DEFAULT_SEGMENT_MIB: i64 = 256;
const DEFAULT_SEGMENT_AGE: &str = "60s";
const DEFAULT_MAX_GIB: i64 = 0;
const DEFAULT_MAX_AGE: &str = "7d";
const DEFAULT_RECORDS_MAX_AGE: &str = "90d";
const DEFAULT_MIN_FREE_PERCENT: i64 = 5;
const SEGMENT_MIB: RangeInclusive<u64> = 1..=16_384;
const SEGMENT_AGE: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;
const MAX_GIB: RangeInclusive<u64> = 0..=1 << 20;
const MAX_AGE: RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(3650 * 86_400);
const MIN_FREE_PERCENT: RangeInclusive<u64> = 0..=90;
const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/c.toml"), Path::new("/etc"), text)
            .map_err(|error| error.to_string())
    }

    fn check_error(text: &str, expected: &str) {
        assert_eq!(parse(text).unwrap_err(), expected);
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.sensors.to_string(), "0.0.0.0:4750");
        assert_eq!(config.api.unwrap().address.to_string(), "127.0.0.1:8480");
        assert_eq!(config.store.segment_bytes, 256 * 1024 * 1024);
        assert_eq!(config.store.segment_age, Duration::from_secs(60));
    }

    #[test]
    fn the_shipped_file_is_valid_and_says_the_defaults() {
        let shipped = include_str!("../../../config/collector.toml");
        let (shipped, empty) = (parse(shipped).unwrap(), parse("").unwrap());
        assert_eq!(
            format!("{:?}", Config { origin: empty.origin.clone(), ..shipped }),
            format!("{empty:?}")
        );
    }

    #[test]
    fn the_shipped_file_shows_every_section_and_key() {
        let shipped = include_str!("../../../config/collector.toml");
        for Section { name, keys } in SECTIONS {
            assert!(shipped.contains(&format!("[{name}]\n")), "[{name}] is missing");
            for key in *keys {
                let shown = shipped.lines().any(|line| {
                    line.trim_start_matches(['#', ' ']).starts_with(&format!("{key} = "))
                });
                assert!(shown, "{key} of [{name}] is missing");
            }
        }
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        check_error(
            "[store]\npath = \"/x\"\nsegment_mb = 7\n",
            "/etc/c.toml:3: [store] segment_mb = 7: unknown key; did you mean segment_mib?",
        );
    }

    #[test]
    fn a_key_like_no_other_lists_those_that_exist() {
        check_error(
            "[tls]\nzzz = true",
            "/etc/c.toml:2: [tls] zzz = true: unknown key; \
             known: ca, certificate, key, crl, expiry_warning_days",
        );
    }

    #[test]
    fn an_unknown_section_names_the_nearest() {
        check_error("\n[stor]\n", "/etc/c.toml:2: [stor]: unknown section; did you mean [store]?");
    }

    #[test]
    fn a_wrong_type_is_named_with_its_place() {
        let error = parse("[store]\nsegment_mib = \"many\"").unwrap_err();
        assert!(
            error.starts_with("/etc/c.toml:2: [store] segment_mib = \"many\": invalid type"),
            "{error}"
        );
    }

    #[test]
    fn values_out_of_range_name_the_range() {
        check_error(
            "[store]\nsegment_mib = 0",
            "/etc/c.toml:2: [store] segment_mib = 0: out of range; 1 to 16384 are allowed",
        );
        check_error(
            "[store]\nsegment_age = \"48h\"",
            "/etc/c.toml:2: [store] segment_age = \"48h\": \
             out of range; \"1s\" to \"1day\" are allowed",
        );
        check_error(
            "[store]\nsegment_age = \"soon\"",
            "/etc/c.toml:2: [store] segment_age = \"soon\": \
             is no duration; write it as \"60s\" or \"5m\"",
        );
    }

    #[test]
    fn the_number_of_event_loops_is_the_machines_unless_it_is_given() {
        assert_eq!(parse("").unwrap().loops, None);
        assert_eq!(parse("[listen]\nloops = 0").unwrap().loops, None);
        assert_eq!(parse("[listen]\nloops = 16").unwrap().loops, Some(16));
        for number in [-1, 17] {
            check_error(
                &format!("[listen]\nloops = {number}"),
                &format!(
                    "/etc/c.toml:2: [listen] loops = {number}: out of range; 0 to 16 are allowed"
                ),
            );
        }
    }

    #[test]
    fn limits_of_records_are_read_and_checked() {
        let config = parse("[store]\nrecords_max_gib = 20\nrecords_max_age = \"30d\"").unwrap();
        let limits = config.store.record_limits;
        assert_eq!(limits.bytes, 20 << 30);
        assert_eq!(limits.age, Duration::from_secs(30 * 24 * 3600));
        let unlimited = parse("[store]\nrecords_max_age = \"\"").unwrap().store.record_limits;
        assert_eq!(unlimited, RecordLimits::default());
        let error = parse("[store]\nrecords_max_age = \"5s\"").unwrap_err();
        let expected = "/etc/c.toml:2: [store] records_max_age = \"5s\": out of range; \"1m\" to";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn broken_toml_names_the_line() {
        let error = parse("[store]\npath = \n").unwrap_err();
        assert!(error.starts_with("/etc/c.toml:2: "), "{error}");
    }

    #[test]
    fn relative_paths_count_from_the_folder_of_the_file() {
        let config = parse("[tls]\nca = \"pki/ca.pem\"").unwrap();
        assert_eq!(config.tls.ca, Path::new("/etc/pki/ca.pem"));
    }

    #[test]
    fn an_empty_api_address_turns_the_api_off() {
        assert!(parse("[listen]\napi = \"\"").unwrap().api.is_none());
    }

    #[test]
    fn an_api_beyond_loopback_has_tls_and_tokens() {
        for (text, lacking) in [
            ("[listen]\napi = \"0.0.0.0:8480\"", "[api] tokens is missing"),
            ("[listen]\napi = \"192.0.2.1:80\"\n[api]\ntls = true", "[api] tokens is missing"),
            (
                "[listen]\napi = \"[::]:1\"\n[api]\ntokens = \"t\"\ntls = false",
                "[api] tls is missing",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("/etc/c.toml:2: [listen] api = "), "{error}");
            assert!(error.contains(lacking), "{error}");
        }
        let api = parse("[listen]\napi = \"[::]:1\"\n[api]\ntokens = \"t\"").unwrap().api.unwrap();
        assert_eq!(api.tokens.unwrap(), Path::new("/etc/t"));
        let files = api.tls.unwrap();
        assert_eq!(files.certificate, Path::new(DEFAULT_CERTIFICATE), "that of the collector");
    }

    #[test]
    fn an_api_on_loopback_has_tls_only_if_it_is_asked_for() {
        for (text, has_tls) in [
            ("", false),
            ("[listen]\napi = \"[::ffff:127.0.0.1]:1\"", false),
            ("[api]\ntls = true", true),
            ("[api]\ncertificate = \"a\"\nkey = \"b\"", true),
        ] {
            let api = parse(text).unwrap().api.unwrap();
            assert_eq!(api.tls.is_some(), has_tls, "{text}");
            assert_eq!(api.tokens, None);
        }
        let error = parse("[api]\ncertificate = \"a\"").unwrap_err();
        assert!(error.contains("are needed both"), "{error}");
    }
}
