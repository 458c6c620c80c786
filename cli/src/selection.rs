//! Which of the stored things: arguments that all searches share.

use std::net::IpAddr;

use clap::Args;

use crate::search::time;

/// Of what time, sensor, host and port.
#[derive(Args, Debug)]
pub struct Selection {
    /// Not before: 2026-11-21T10:15:00Z, '2026-11-21 10:15' (UTC), seconds since 1970, or 90m, 2h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    from: Option<String>,
    /// Not after, written in the same ways
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    to: Option<String>,
    /// Of this sensor
    #[arg(long, value_name = "NAME")]
    sensor: Option<String>,
    /// From or to this address, in the innermost packet
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// From or to this port, in the innermost packet
    #[arg(long, value_name = "NUMBER")]
    port: Option<u16>,
}

impl Selection {
    /// Those that were given, as the collector takes them.
    #[must_use]
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("from", self.from.clone()),
            ("to", self.to.clone()),
            ("sensor", self.sensor.clone()),
            ("host", self.host.map(|host| host.to_string())),
            ("port", self.port.map(|port| port.to_string())),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}
