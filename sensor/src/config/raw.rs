//! The file as it is written, and the way from there to [`Config`].

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use wire::text::{NAME_RULE, is_name};

use crate::filter::Expression;
use crate::interfaces::{PatternError, Patterns};
use crate::uplink::AddressError;

use super::detect::RawDetect;
use super::{
    API_LISTEN, BLOCK_KIB, BUSY_POLL_US, COLLECTOR_PORT, CONNECTIONS_PER_SECOND, Capture, Config,
    ConfigError, EXPIRY_WARNING_DAYS, EventOutput, Events, Export, ExportFrames, FLOW_ESTABLISHED,
    FLOW_NEW, FLOW_TCP_CLOSED, FLOW_TCP_ESTABLISHED, FLOW_TCP_NEW, FLOWS, FLOWS_PER_SECOND,
    FanoutMode, Flow, POOL_MIB, RESERVE_SOCKETS, RETIRE_MS, RING_MIB, SAMPLE_ONE_IN, SNAPLEN,
    SPOOL_AGE, SPOOL_MIB, SPOOL_PATH, Uplink, WORKERS,
};
use crate::spool::SpoolSettings;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    sensor: RawSensor,
    capture: RawCapture,
    detect: RawDetect,
    flow: RawFlow,
    export: RawExport,
    uplink: RawUplink,
    spool: RawSpool,
    events: RawEvents,
    api: RawApi,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSensor {
    name: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawCapture {
    interface: Option<Spanned<OneOrMany>>,
    exclude: Option<Spanned<OneOrMany>>,
    workers: Option<Spanned<u32>>,
    cpus: Vec<usize>,
    ring_mib: Option<Spanned<u32>>,
    block_kib: Option<Spanned<u32>>,
    retire_ms: Option<Spanned<u32>>,
    promiscuous: Option<bool>,
    filter: Option<Spanned<String>>,
    fanout: Option<Spanned<String>>,
    busy_poll_us: Option<Spanned<u32>>,
    reserve_sockets: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawFlow {
    flows: Option<Spanned<u32>>,
    tcp_new: Option<Spanned<String>>,
    tcp_established: Option<Spanned<String>>,
    tcp_closed: Option<Spanned<String>>,
    new: Option<Spanned<String>>,
    established: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawExport {
    frames: Option<Spanned<String>>,
    sample_one_in: Option<Spanned<u32>>,
    snaplen: Option<Spanned<u32>>,
    pool_mib: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawUplink {
    collectors: Option<Spanned<Vec<String>>>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    crl: Option<PathBuf>,
    expiry_warning_days: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSpool {
    path: Option<String>,
    max_mib: Option<Spanned<u32>>,
    max_age: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawEvents {
    file: Option<String>,
    new_connections: Option<bool>,
    connections_per_second: Option<Spanned<u32>>,
    flows: Option<bool>,
    flows_per_second: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawApi {
    listen: Option<Spanned<String>>,
}

/// Checks every value and fills in the defaults.
pub(super) fn check(path: &Path, text: &str, raw: RawConfig) -> Result<Config, ConfigError> {
    let checker = Checker { path, text };
    let RawConfig { sensor, capture, detect, flow, export, uplink, spool, events, api } = raw;
    Ok(Config {
        sensor_name: checker.sensor_name(sensor)?,
        capture: checker.capture(capture)?,
        detect: checker.detect(detect)?,
        flow: checker.flow(flow)?,
        export: checker.export(export, uplink.collectors.is_some())?,
        uplink: checker.uplink(uplink)?,
        spool: checker.spool(spool)?,
        events: checker.events(events)?,
        api_listen: checker.api(api)?,
    })
}

pub(super) struct Checker<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Checker<'_> {
    fn sensor_name(&self, RawSensor { name }: RawSensor) -> Result<String, ConfigError> {
        let Some(name) = name else { return Ok(String::new()) };
        let text = name.get_ref();
        if !is_name(text) {
            return Err(self.refuse("sensor.name", &name, &format!("is no name: {NAME_RULE}")));
        }
        Ok(name.into_inner())
    }

    fn capture(&self, raw: RawCapture) -> Result<Capture, ConfigError> {
        let RawCapture {
            interface,
            exclude,
            workers,
            cpus,
            ring_mib,
            block_kib,
            retire_ms,
            promiscuous,
            filter,
            fanout,
            busy_poll_us,
            reserve_sockets: reserve,
        } = raw;
        let workers = match workers {
            Some(workers) => {
                let (least, most) = WORKERS;
                Some(self.number("capture.workers", Some(workers), (least, 1, most), "workers")?)
            }
            None => None,
        };
        let reserve = match reserve {
            Some(sockets) => {
                let (least, most) = RESERVE_SOCKETS;
                let limits = (least, least, most);
                Some(self.number("capture.reserve_sockets", Some(sockets), limits, "sockets")?)
            }
            None => None,
        };
        Ok(Capture {
            interfaces: self.patterns("capture.interface", interface)?,
            exclude: self.patterns("capture.exclude", exclude)?,
            workers: workers.map(|count| count as usize),
            cpus,
            ring_mib: self.number("capture.ring_mib", ring_mib, RING_MIB, "MiB")?,
            block_kib: self.number("capture.block_kib", block_kib, BLOCK_KIB, "KiB")?,
            retire_ms: self.number("capture.retire_ms", retire_ms, RETIRE_MS, "milliseconds")?,
            promiscuous: promiscuous.unwrap_or(true),
            filter: filter.and_then(|filter| self.expression(filter)),
            fanout: self.fanout(fanout)?,
            busy_poll_us: self.number(
                "capture.busy_poll_us",
                busy_poll_us,
                BUSY_POLL_US,
                "microseconds",
            )?,
            reserve_sockets: reserve.map(|sockets| sockets as usize),
        })
    }

    /// Names and globs of interfaces.
    fn patterns(
        &self,
        key: &'static str,
        patterns: Option<Spanned<OneOrMany>>,
    ) -> Result<Vec<String>, ConfigError> {
        let Some(patterns) = patterns else { return Ok(Vec::new()) };
        let list = patterns.get_ref().list().to_vec();
        if let Err(PatternError { pattern, reason }) = Patterns::new(&list, &[]) {
            let wrong = Spanned::new(patterns.span(), pattern);
            let rule = format!("is no name or glob of interfaces: {reason}");
            return Err(self.refuse(key, &wrong, &rule));
        }
        Ok(list)
    }

    fn fanout(&self, mode: Option<Spanned<String>>) -> Result<FanoutMode, ConfigError> {
        let Some(mode) = mode else { return Ok(FanoutMode::Hash) };
        match mode.get_ref().as_str() {
            "hash" => Ok(FanoutMode::Hash),
            "cpu" => Ok(FanoutMode::Cpu),
            "queue" => Ok(FanoutMode::Queue),
            "peer" => Ok(FanoutMode::Peer),
            _ => Err(self.refuse("capture.fanout", &mode, "is not one of: hash, cpu, queue, peer")),
        }
    }

    /// The filter with its place, for what libpcap will say of it; none if it is empty.
    fn expression(&self, filter: Spanned<String>) -> Option<Expression> {
        let place = ConfigError::at(self.path, self.text, filter.span(), "capture.filter".into());
        let (text, origin) = (filter.into_inner(), place.to_string());
        (!text.trim().is_empty()).then_some(Expression { text, origin })
    }

    fn flow(&self, raw: RawFlow) -> Result<Flow, ConfigError> {
        let RawFlow { flows, tcp_new, tcp_established, tcp_closed, new, established } = raw;
        Ok(Flow {
            flows: match flows {
                Some(none) if *none.get_ref() == 0 => 0,
                flows => self.number("flow.flows", flows, FLOWS, "flows, or 0 for no table")?,
            },
            tcp_new: self.duration("flow.tcp_new", tcp_new, FLOW_TCP_NEW)?,
            tcp_established: self.duration(
                "flow.tcp_established",
                tcp_established,
                FLOW_TCP_ESTABLISHED,
            )?,
            tcp_closed: self.duration("flow.tcp_closed", tcp_closed, FLOW_TCP_CLOSED)?,
            new: self.duration("flow.new", new, FLOW_NEW)?,
            established: self.duration("flow.established", established, FLOW_ESTABLISHED)?,
        })
    }

    fn export(&self, raw: RawExport, has_uplink: bool) -> Result<Export, ConfigError> {
        let RawExport { frames, sample_one_in, snaplen, pool_mib } = raw;
        let one_in = self.number("export.sample_one_in", sample_one_in, SAMPLE_ONE_IN, "")?;
        let frames = match frames {
            None => ExportFrames::None,
            Some(word) => match word.get_ref().as_str() {
                "none" => ExportFrames::None,
                "sampled" | "all" if !has_uplink => {
                    return Err(self.refuse(
                        "export.frames",
                        &word,
                        "needs uplink.collectors as well",
                    ));
                }
                "sampled" => ExportFrames::OneIn(one_in),
                "all" => ExportFrames::All,
                _ => {
                    let rule = "is not one of: none, sampled, all";
                    return Err(self.refuse("export.frames", &word, rule));
                }
            },
        };
        Ok(Export {
            frames,
            snaplen: self.number("export.snaplen", snaplen, SNAPLEN, "bytes")?,
            pool_mib: self.number("export.pool_mib", pool_mib, POOL_MIB, "MiB")?,
        })
    }

    fn uplink(&self, raw: RawUplink) -> Result<Option<Uplink>, ConfigError> {
        let RawUplink { collectors, ca, certificate, key, crl, expiry_warning_days } = raw;
        let Some(collectors) = collectors else { return Ok(None) };
        if collectors.get_ref().is_empty() {
            return Ok(None);
        }
        let needed = |file: Option<PathBuf>, name: &str| {
            file.map(|file| self.located(file)).ok_or_else(|| {
                let what =
                    format!("uplink.collectors = {:?} needs {name} as well", collectors.get_ref());
                ConfigError::at(self.path, self.text, collectors.span(), what)
            })
        };
        let addresses = collectors.get_ref().iter().map(|text| with_port(text).parse());
        let addresses = addresses.collect::<Result<_, AddressError>>().map_err(|why| {
            let what = format!("uplink.collectors: {why}");
            ConfigError::at(self.path, self.text, collectors.span(), what)
        })?;
        Ok(Some(Uplink {
            tls: trust::Files {
                ca: needed(ca, "uplink.ca")?,
                certificate: needed(certificate, "uplink.certificate")?,
                key: needed(key, "uplink.key")?,
                crl: crl.map(|crl| self.located(crl)),
            },
            expiry_warning_days: self.number(
                "uplink.expiry_warning_days",
                expiry_warning_days,
                EXPIRY_WARNING_DAYS,
                "days",
            )?,
            collectors: addresses,
        }))
    }

    fn spool(&self, raw: RawSpool) -> Result<Option<SpoolSettings>, ConfigError> {
        let RawSpool { path, max_mib, max_age } = raw;
        let max_bytes = u64::from(self.number("spool.max_mib", max_mib, SPOOL_MIB, "MiB")?) << 20;
        let max_age = self.duration("spool.max_age", max_age, SPOOL_AGE)?;
        let path = path.as_deref().unwrap_or(SPOOL_PATH);
        let settings = SpoolSettings { path: self.located(path.into()), max_bytes, max_age };
        Ok((!path.is_empty()).then_some(settings))
    }

    fn events(&self, raw: RawEvents) -> Result<Events, ConfigError> {
        let RawEvents {
            file,
            new_connections,
            connections_per_second: limit,
            flows,
            flows_per_second,
        } = raw;
        Ok(Events {
            output: match file.as_deref() {
                None | Some("") => EventOutput::None,
                Some("-") => EventOutput::Stdout,
                Some(path) => EventOutput::File(self.located(path.into())),
            },
            new_connections: new_connections.unwrap_or(true),
            connections_per_second: self.number(
                "events.connections_per_second",
                limit,
                CONNECTIONS_PER_SECOND,
                "connections",
            )?,
            flows: flows.unwrap_or(true),
            flows_per_second: self.number(
                "events.flows_per_second",
                flows_per_second,
                FLOWS_PER_SECOND,
                "flows",
            )?,
        })
    }

    fn api(&self, RawApi { listen }: RawApi) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(listen) = listen else {
            return Ok(API_LISTEN.parse().ok());
        };
        if listen.get_ref().is_empty() {
            return Ok(None);
        }
        let address: SocketAddr = listen.get_ref().parse().map_err(|_| {
            self.refuse("api.listen", &listen, "is no ADDRESS:PORT, such as 127.0.0.1:8475")
        })?;
        if !address.ip().is_loopback() {
            let rule = "is not on loopback: the sensor's API has no access control";
            return Err(self.refuse("api.listen", &listen, rule));
        }
        Ok(Some(address))
    }

    pub(super) fn number(
        &self,
        key: &str,
        value: Option<Spanned<u32>>,
        (least, default, most): (u32, u32, u32),
        unit: &str,
    ) -> Result<u32, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        if (least..=most).contains(value.get_ref()) {
            return Ok(value.into_inner());
        }
        let rule = format!("is out of range: {least} to {most} {unit}");
        Err(self.refuse(key, &value, rule.trim_end()))
    }

    pub(super) fn duration(
        &self,
        key: &str,
        value: Option<Spanned<String>>,
        (least, default, most): (Duration, Duration, Duration),
    ) -> Result<Duration, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        let Ok(duration) = humantime::parse_duration(value.get_ref()) else {
            return Err(self.refuse(key, &value, "is no duration, such as 500ms, 60s or 10m"));
        };
        if (least..=most).contains(&duration) {
            return Ok(duration);
        }
        let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
        Err(self.refuse(key, &value, &format!("is out of range: {least} to {most}")))
    }

    /// Relative paths count from the folder of the configuration, wherever the sensor is started.
    fn located(&self, file: PathBuf) -> PathBuf {
        self.path.parent().map_or(file.clone(), |folder| folder.join(file))
    }

    pub(super) fn refuse<T: Display>(
        &self,
        key: &str,
        value: &Spanned<T>,
        rule: &str,
    ) -> ConfigError {
        let what = format!("{key} = {} {rule}", value.get_ref());
        ConfigError::at(self.path, self.text, value.span(), what)
    }
}

/// `host:port` of a collector; adds the default port where none is given.
fn with_port(address: &str) -> String {
    let is_bare_v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
    let has_port = !is_bare_v6
        && address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match (has_port, is_bare_v6) {
        (true, _) => address.to_owned(),
        (false, true) => format!("[{address}]:{COLLECTOR_PORT}"),
        (false, false) => format!("{address}:{COLLECTOR_PORT}"),
    }
}
