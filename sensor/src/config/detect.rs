//! `[detect]` and `[[detect.network]]`: as written, and checked.

use serde::Deserialize;
use toml::Spanned;

use super::raw::Checker;
use super::{
    CLOSE_AFTER, ConfigError, DETECT_MIB, Detect, FLOOD_LEARNING, FLOOD_RATIO, FRAGMENT_FLOOD_RATE,
    ICMP_FLOOD_RATE, NETWORK_FACTOR, RST_FLOOD_RATE, SILENT_AFTER, SLOW_THRESHOLD,
    SYN_FLOOD_COMPLETION, SYN_FLOOD_RATE, SYN_FLOOD_SOURCES, THRESHOLD, UDP_FLOOD_RATE, WINDOW,
};
use crate::detect::{FloodConfig, Network, NetworkRule, ParseNetworkError, Profile, Thresholds};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawDetect {
    profile: Option<Spanned<String>>,
    allow: Vec<Spanned<String>>,
    home_networks: Vec<Spanned<String>>,
    network: Vec<Spanned<RawNetwork>>,
    vertical_ports: Option<Spanned<u32>>,
    horizontal_hosts: Option<Spanned<u32>>,
    block_contacts: Option<Spanned<u32>>,
    sequential_hosts: Option<Spanned<u32>>,
    stealth_ports: Option<Spanned<u32>>,
    udp_ports: Option<Spanned<u32>>,
    icmp_hosts: Option<Spanned<u32>>,
    arp_hosts: Option<Spanned<u32>>,
    protocols: Option<Spanned<u32>>,
    slow_contacts: Option<Spanned<u32>>,
    slow_day_contacts: Option<Spanned<u32>>,
    distributed_sources: Option<Spanned<u32>>,
    distributed_ports: Option<Spanned<u32>>,
    window: Option<Spanned<String>>,
    silent_after: Option<Spanned<String>>,
    close_after: Option<Spanned<String>>,
    memory_mib: Option<Spanned<u32>>,
    syn_flood_rate: Option<Spanned<u32>>,
    syn_flood_completion: Option<Spanned<u32>>,
    syn_flood_sources: Option<Spanned<u32>>,
    udp_flood_rate: Option<Spanned<u32>>,
    icmp_flood_rate: Option<Spanned<u32>>,
    rst_flood_rate: Option<Spanned<u32>>,
    fragment_flood_rate: Option<Spanned<u32>>,
    flood_ratio: Option<Spanned<u32>>,
    flood_learning: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawNetwork {
    network: Option<Spanned<String>>,
    factor: Option<Spanned<f64>>,
    off: Option<Spanned<bool>>,
}

impl Checker<'_> {
    pub(super) fn detect(&self, mut raw: RawDetect) -> Result<Detect, ConfigError> {
        let window_length = self.duration("detect.window", raw.window.take(), WINDOW)?;
        let silent_after = raw.silent_after.take();
        if let Some(silent_after) = &silent_after
            && humantime::parse_duration(silent_after.get_ref())
                .is_ok_and(|silent| silent >= window_length)
        {
            let rule = "is not shorter than detect.window";
            return Err(self.refuse("detect.silent_after", silent_after, rule));
        }
        Ok(Detect {
            profile: self.profile(raw.profile.take())?,
            allow: self.parsed("detect.allow", &raw.allow)?,
            home_networks: self.parsed("detect.home_networks", &raw.home_networks)?,
            networks: self.network_rules(&raw.network)?,
            window: window_length,
            silent_after: self.duration("detect.silent_after", silent_after, SILENT_AFTER)?,
            close_after: self.duration(
                "detect.close_after",
                raw.close_after.take(),
                CLOSE_AFTER,
            )?,
            memory_mib: self.number(
                "detect.memory_mib",
                raw.memory_mib.take(),
                DETECT_MIB,
                "MiB",
            )?,
            floods: self.floods(&mut raw)?,
            thresholds: self.thresholds(raw)?,
        })
    }

    /// The keys about floods; takes them out of `raw`.
    fn floods(&self, raw: &mut RawDetect) -> Result<FloodConfig, ConfigError> {
        let rate = |key, value: &mut Option<_>, limits| {
            self.number(key, value.take(), limits, "packets a second")
        };
        Ok(FloodConfig {
            rates: [
                rate("detect.syn_flood_rate", &mut raw.syn_flood_rate, SYN_FLOOD_RATE)?,
                rate("detect.udp_flood_rate", &mut raw.udp_flood_rate, UDP_FLOOD_RATE)?,
                rate("detect.icmp_flood_rate", &mut raw.icmp_flood_rate, ICMP_FLOOD_RATE)?,
                rate("detect.rst_flood_rate", &mut raw.rst_flood_rate, RST_FLOOD_RATE)?,
                rate(
                    "detect.fragment_flood_rate",
                    &mut raw.fragment_flood_rate,
                    FRAGMENT_FLOOD_RATE,
                )?,
            ],
            syn_completion: self.number(
                "detect.syn_flood_completion",
                raw.syn_flood_completion.take(),
                SYN_FLOOD_COMPLETION,
                "percent",
            )?,
            syn_sources: self.number(
                "detect.syn_flood_sources",
                raw.syn_flood_sources.take(),
                SYN_FLOOD_SOURCES,
                "sources",
            )?,
            ratio: self.number("detect.flood_ratio", raw.flood_ratio.take(), FLOOD_RATIO, "")?,
            learning: self
                .duration("detect.flood_learning", raw.flood_learning.take(), FLOOD_LEARNING)?
                .as_secs(),
        })
    }

    fn thresholds(&self, raw: RawDetect) -> Result<Thresholds, ConfigError> {
        let within = |(least, most), key: &str, value, default, unit| {
            self.number(&format!("detect.{key}"), value, (least, default, most), unit)
        };
        let number = |key, value, default, unit| within(THRESHOLD, key, value, default, unit);
        let slow = |key, value, default| within(SLOW_THRESHOLD, key, value, default, "contacts");
        let of = Thresholds::default();
        Ok(Thresholds {
            vertical_ports: number(
                "vertical_ports",
                raw.vertical_ports,
                of.vertical_ports,
                "ports",
            )?,
            horizontal_hosts: number(
                "horizontal_hosts",
                raw.horizontal_hosts,
                of.horizontal_hosts,
                "hosts",
            )?,
            block_contacts: number(
                "block_contacts",
                raw.block_contacts,
                of.block_contacts,
                "contacts",
            )?,
            sequential_hosts: number(
                "sequential_hosts",
                raw.sequential_hosts,
                of.sequential_hosts,
                "hosts",
            )?,
            stealth_ports: number("stealth_ports", raw.stealth_ports, of.stealth_ports, "ports")?,
            udp_ports: number("udp_ports", raw.udp_ports, of.udp_ports, "ports")?,
            icmp_hosts: number("icmp_hosts", raw.icmp_hosts, of.icmp_hosts, "hosts")?,
            arp_hosts: number("arp_hosts", raw.arp_hosts, of.arp_hosts, "hosts")?,
            protocols: number("protocols", raw.protocols, of.protocols, "protocols")?,
            slow_contacts: slow("slow_contacts", raw.slow_contacts, of.slow_contacts)?,
            slow_day_contacts: slow(
                "slow_day_contacts",
                raw.slow_day_contacts,
                of.slow_day_contacts,
            )?,
            distributed_sources: number(
                "distributed_sources",
                raw.distributed_sources,
                of.distributed_sources,
                "sources",
            )?,
            distributed_ports: number(
                "distributed_ports",
                raw.distributed_ports,
                of.distributed_ports,
                "ports",
            )?,
        })
    }

    fn profile(&self, profile: Option<Spanned<String>>) -> Result<Profile, ConfigError> {
        let Some(profile) = profile else { return Ok(Profile::Default) };
        match profile.get_ref().as_str() {
            "default" => Ok(Profile::Default),
            "strict" => Ok(Profile::Strict),
            _ => Err(self.refuse("detect.profile", &profile, "is not one of: default, strict")),
        }
    }

    /// Networks, or sources that are allowed.
    fn parsed<T>(&self, key: &str, all: &[Spanned<String>]) -> Result<Vec<T>, ConfigError>
    where
        T: std::str::FromStr<Err = ParseNetworkError>,
    {
        let parse = |text: &Spanned<String>| {
            text.get_ref().parse().map_err(|why: ParseNetworkError| {
                ConfigError::at(self.path, self.text, text.span(), format!("{key}: {why}"))
            })
        };
        all.iter().map(parse).collect()
    }

    fn network_rules(&self, all: &[Spanned<RawNetwork>]) -> Result<Vec<NetworkRule>, ConfigError> {
        let mut rules: Vec<NetworkRule> = Vec::with_capacity(all.len());
        for raw in all {
            let rule = self.network_rule(raw)?;
            if let (true, Some(network)) =
                (rules.iter().any(|one| one.network == rule.network), &raw.get_ref().network)
            {
                let why = "has a table already; keep one of them";
                return Err(self.refuse("detect.network.network", network, why));
            }
            rules.push(rule);
        }
        Ok(rules)
    }

    fn network_rule(&self, raw: &Spanned<RawNetwork>) -> Result<NetworkRule, ConfigError> {
        let RawNetwork { network: Some(text), factor, off } = raw.get_ref() else {
            let what = "[[detect.network]] needs network, such as network = \"10.0.0.0/8\"";
            return Err(ConfigError::at(self.path, self.text, raw.span(), what.into()));
        };
        let texts = std::slice::from_ref(text);
        let networks: Vec<Network> = self.parsed("detect.network.network", texts)?;
        let is_off = off.as_ref().is_some_and(|off| *off.get_ref());
        let factor = match (factor, is_off) {
            (Some(factor), false) => {
                let (above, most) = NETWORK_FACTOR;
                let value = *factor.get_ref();
                // Written so that what is no number is refused too.
                if !(value > above && value <= most) {
                    let rule = format!("is out of range: above {above}, up to {most}");
                    return Err(self.refuse("detect.network.factor", factor, &rule));
                }
                Some(value)
            }
            (None, true) => None,
            (Some(factor), true) => {
                let rule = "stands beside off = true; leave out one of them";
                return Err(self.refuse("detect.network.factor", factor, rule));
            }
            (None, false) => {
                let rule = "needs factor, such as factor = 2.5, or off = true, as well";
                return Err(self.refuse("detect.network.network", text, rule));
            }
        };
        // One text gave one network.
        Ok(NetworkRule { network: networks[0], factor })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::detect::Allowed;

    fn check(text: &str) -> Result<Detect, String> {
        let config = Config::parse(Path::new("sensor.toml"), text);
        config.map(|config| config.detect).map_err(|error| error.to_string())
    }

    /// Each threshold that there is, with its key: a new one does not compile until it is listed.
    fn by_key(thresholds: Thresholds) -> [(&'static str, u32); 13] {
        let Thresholds {
            vertical_ports,
            horizontal_hosts,
            block_contacts,
            sequential_hosts,
            stealth_ports,
            udp_ports,
            icmp_hosts,
            arp_hosts,
            protocols,
            slow_contacts,
            slow_day_contacts,
            distributed_sources,
            distributed_ports,
        } = thresholds;
        [
            ("vertical_ports", vertical_ports),
            ("horizontal_hosts", horizontal_hosts),
            ("block_contacts", block_contacts),
            ("sequential_hosts", sequential_hosts),
            ("stealth_ports", stealth_ports),
            ("udp_ports", udp_ports),
            ("icmp_hosts", icmp_hosts),
            ("arp_hosts", arp_hosts),
            ("protocols", protocols),
            ("slow_contacts", slow_contacts),
            ("slow_day_contacts", slow_day_contacts),
            ("distributed_sources", distributed_sources),
            ("distributed_ports", distributed_ports),
        ]
    }

    #[test]
    fn every_threshold_has_a_key_of_its_own() {
        let keys = by_key(Thresholds::default()).map(|(key, _)| key);
        for (place, key) in keys.into_iter().enumerate() {
            let set = check(&format!("[detect]\n{key} = 7")).unwrap().thresholds;
            let mut expected = by_key(Thresholds::default());
            expected[place].1 = 7;
            assert_eq!(by_key(set), expected);
        }
    }

    #[test]
    fn a_threshold_out_of_range_is_named_with_its_unit() {
        assert_eq!(
            check("[detect]\n\nudp_ports = 1").unwrap_err(),
            "sensor.toml:3: detect.udp_ports = 1 is out of range: 2 to 10000 ports"
        );
        assert_eq!(
            check("[detect]\nslow_contacts = 64").unwrap_err(),
            "sensor.toml:2: detect.slow_contacts = 64 is out of range: 2 to 63 contacts"
        );
    }

    #[test]
    fn the_shipped_file_lists_every_threshold_with_its_default() {
        let shipped = include_str!("../../../config/sensor.toml");
        for (key, value) in by_key(Thresholds::default()) {
            let line = format!("{key} = {value}");
            assert!(shipped.lines().any(|has| has == line), "no line `{line}`");
        }
    }

    #[test]
    fn networks_have_a_factor_or_are_off() {
        let text = "[[detect.network]]\nnetwork = '10.0.0.0/8'\nfactor = 2.5\n\
                    [[detect.network]]\nnetwork = 'fd00::/8'\noff = true\n\
                    [[detect.network]]\nnetwork = '10.1.0.0/16'\nfactor = 2\noff = false";
        let rule =
            |network: &str, factor| NetworkRule { network: network.parse().unwrap(), factor };
        let expected =
            [rule("10.0.0.0/8", Some(2.5)), rule("fd00::/8", None), rule("10.1.0.0/16", Some(2.0))];
        assert_eq!(check(text).unwrap().networks, expected);
    }

    #[test]
    fn a_network_table_that_makes_no_sense_is_refused_with_what_to_do() {
        let said = |lines: &str| check(&format!("[[detect.network]]\n{lines}")).unwrap_err();
        for (lines, expected) in [
            (
                "factor = 2.0",
                "1: [[detect.network]] needs network, such as network = \"10.0.0.0/8\"",
            ),
            (
                "network = '10.0.0.0/40'\noff = true",
                "2: detect.network.network: `10.0.0.0/40` is no network: prefix length must be 0 to 32",
            ),
            (
                "network = '10.0.0.0/8'",
                "2: detect.network.network = 10.0.0.0/8 needs factor, such as factor = 2.5, or \
                 off = true, as well",
            ),
            (
                "network = '10.0.0.0/8'\nfactor = 0.0",
                "3: detect.network.factor = 0 is out of range: above 0, up to 1000",
            ),
            (
                "network = '10.0.0.0/8'\nfactor = nan",
                "3: detect.network.factor = NaN is out of range: above 0, up to 1000",
            ),
            (
                "network = '10.0.0.0/8'\nfactor = 3.0\noff = true",
                "3: detect.network.factor = 3 stands beside off = true; leave out one of them",
            ),
            (
                "network = '10.0.0.0/8'\noff = true\n[[detect.network]]\nnetwork = '10.1.1.1/8'\n\
                 factor = 3",
                "5: detect.network.network = 10.1.1.1/8 has a table already; keep one of them",
            ),
            (
                "network = '10.0.0.0/8'\nfaktor = 2.0",
                "3: unknown key `faktor` in [detect.network]; did you mean `factor`?",
            ),
        ] {
            assert_eq!(said(lines), format!("sensor.toml:{expected}"), "{lines}");
        }
        assert_eq!(
            check("[detect]\nblock_contact = 3").unwrap_err(),
            "sensor.toml:2: unknown key `block_contact` in [detect]; did you mean `block_contacts`?"
        );
    }

    #[test]
    fn allowed_sources_may_be_allowed_one_port() {
        let text = "[detect]\nallow = ['10.0.0.0/8 port 161', '192.0.2.1']";
        let expected = ["10.0.0.0/8 port 161", "192.0.2.1/32"];
        let expected = expected.map(|text| text.parse::<Allowed>().unwrap());
        assert_eq!(check(text).unwrap().allow, expected);
        let said = check("[detect]\nallow = ['10.0.0.0/8 port 99999']").unwrap_err();
        assert!(said.starts_with("sensor.toml:2: detect.allow: `10.0.0.0/8 port 99999`"), "{said}");
    }
}
