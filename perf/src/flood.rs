//! Which frames a load consists of: one description for frames that the kernel makes
//! ([`blast`](crate::blast)), for a raw socket and for a capture file.
//!
//! Every frame has a **number**. Its bits choose, from the lowest, the sender's port, the sender's
//! address, the receiver's port and the receiver's address. Numbers count up, or are random.

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::{Args, ValueEnum};

use crate::frames;

/// What a frame carries. With IPv6 addresses it is the same over IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// TCP connection attempt
    Syn,
    /// TCP segment without data flags
    Ack,
    /// UDP datagram
    Udp,
    /// Echo request; its ports are identifier and sequence
    Icmp,
}

/// How the numbers of the frames follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Any number
    Random,
    /// Counted up: N frames have exactly N different numbers
    Sequential,
}

/// The frames of a load.
#[derive(Clone, Debug, Args)]
pub struct Flood {
    /// What a frame carries
    #[arg(long, value_enum, default_value = "syn")]
    pub kind: Kind,
    /// Bytes of a frame, VLAN tags not counted [default: 64, or its headers if they are longer]
    #[arg(long, value_name = "BYTES")]
    pub size: Option<u16>,
    /// First sender; two IPv6 addresses make IPv6 frames
    #[arg(long, value_name = "ADDRESS", default_value = "198.18.0.0")]
    pub source: IpAddr,
    /// First receiver
    #[arg(long, value_name = "ADDRESS", default_value = "198.19.0.2")]
    pub target: IpAddr,
    /// First port of the senders
    #[arg(long, value_name = "PORT", default_value_t = 1024)]
    pub source_port: u16,
    /// First port of the receivers
    #[arg(long, value_name = "PORT", default_value_t = 80)]
    pub target_port: u16,
    /// Senders' addresses: a power of two up to 2**32
    #[arg(long, value_name = "N", default_value = "1", value_parser = addresses)]
    pub sources: u64,
    /// Receivers' addresses: a power of two up to 2**32
    #[arg(long, value_name = "N", default_value = "1", value_parser = addresses)]
    pub targets: u64,
    /// Senders' ports: a power of two up to 2**16
    #[arg(long, value_name = "N", default_value = "1", value_parser = ports)]
    pub source_ports: u64,
    /// Receivers' ports: a power of two up to 2**16
    #[arg(long, value_name = "N", default_value = "1", value_parser = ports)]
    pub target_ports: u64,
    /// How these are combined
    #[arg(long, value_enum, default_value = "random")]
    pub order: Order,
    /// Use only the first N combinations, any N
    #[arg(long, value_name = "N", value_parser = number)]
    pub flows: Option<u64>,
    /// MAC address of the sender, a mark by which a reader knows these frames
    #[arg(long, value_name = "MAC", default_value = "02:00:00:00:00:01", value_parser = mac)]
    pub mac: [u8; 6],
    /// VLAN tag as PROTOCOL:CONTROL, protocol in hexadecimal; repeat for more, the outer one first
    #[arg(long, value_parser = tag)]
    pub vlan: Vec<(u16, u16)>,
}

/// Bytes of a frame if nothing else is asked for.
const SIZE: u16 = 64;

/// Why there are no such frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FloodError {
    /// One address is IPv4, the other IPv6.
    #[error("{source_address} and {target} are of different kinds")]
    Family {
        /// Of the sender.
        source_address: IpAddr,
        /// Of the receiver.
        target: IpAddr,
    },
    /// The headers alone are longer.
    #[error("a frame of {size} bytes has no room for its {headers} bytes of headers")]
    Size {
        /// What was asked for.
        size: u16,
        /// What the headers take.
        headers: u16,
    },
    /// More combinations than numbers of 64 bits, or more flows than combinations.
    #[error("{flows} flows out of 2**{bits} combinations; combinations are at most 2**64")]
    Flows {
        /// What was asked for; 0 if nothing was.
        flows: u64,
        /// Bits of all fields that vary.
        bits: u32,
    },
}

/// A part of a frame that its number decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where it lies in the frame, VLAN tags counted.
    pub offset: u16,
    /// Its bytes: 2 or 4, most significant first.
    pub bytes: u8,
    /// The lowest of the number's bits that it takes.
    pub shift: u32,
    /// As many ones as it takes bits.
    pub mask: u32,
    /// Added to them.
    pub base: u32,
}

impl Field {
    /// Its value in the frame of this number.
    fn value(&self, number: u64) -> u32 {
        self.base.wrapping_add((number >> self.shift) as u32 & self.mask)
    }
}

impl Flood {
    /// Whether there are such frames.
    ///
    /// # Errors
    /// See [`FloodError`].
    pub fn check(&self) -> Result<(), FloodError> {
        if self.source.is_ipv4() != self.target.is_ipv4() {
            let (source_address, target) = (self.source, self.target);
            return Err(FloodError::Family { source_address, target });
        }
        let headers = self.headers();
        if let Some(size) = self.size.filter(|size| *size < headers) {
            return Err(FloodError::Size { size, headers });
        }
        let counts = [self.source_ports, self.sources, self.target_ports, self.targets];
        let bits: u32 = counts.iter().map(|count| count.ilog2()).sum();
        let combinations = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        let flows = self.flows.unwrap_or(0);
        if bits > 64 || self.flows == Some(0) || u128::from(flows) > combinations {
            return Err(FloodError::Flows { flows, bits });
        }
        Ok(())
    }

    /// The parts that the number decides.
    #[must_use]
    pub fn fields(&self) -> Vec<Field> {
        let packet = 14 + 4 * self.vlan.len() as u16;
        let (source, target, transport) = if self.source.is_ipv4() {
            (packet + 12, packet + 16, packet + 20)
        } else {
            // The last four bytes of each address.
            (packet + 20, packet + 36, packet + 40)
        };
        let ports = transport + if self.kind == Kind::Icmp { 4 } else { 0 };
        let parts = [
            (ports, 2, self.source_ports, u32::from(self.source_port)),
            (source, 4, self.sources, low(self.source)),
            (ports + 2, 2, self.target_ports, u32::from(self.target_port)),
            (target, 4, self.targets, low(self.target)),
        ];
        let mut shift = 0;
        let mut fields = Vec::new();
        for (offset, bytes, count, base) in parts {
            if count > 1 {
                let mask = ((count - 1) & u64::from(u32::MAX)) as u32;
                fields.push(Field { offset, bytes, shift, mask, base });
                shift += count.ilog2();
            }
        }
        fields
    }

    /// The numbers of the frames, without end. Random ones are the same in every run.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + use<> {
        let (order, flows) = (self.order, self.flows);
        let counter = iter::successors(Some(0_u64), |number| Some(number.wrapping_add(1)));
        counter.map(move |count| {
            let number = if order == Order::Random { scattered(count) } else { count };
            flows.map_or(number, |flows| number % flows)
        })
    }

    /// The frame of a number, with correct checksums.
    ///
    /// # Panics
    /// If [`Flood::check`] refuses the description.
    #[must_use]
    pub fn frame(&self, number: u64) -> Vec<u8> {
        let mut fields = self.fields().into_iter().peekable();
        let mut value = |count: u64| {
            let field = if count > 1 { fields.next() } else { None };
            field.map(|field| field.value(number))
        };
        // In the order of their bits.
        let source_port = value(self.source_ports).map_or(self.source_port, |v| v as u16);
        let source = value(self.sources).map_or(self.source, |v| with_low(self.source, v));
        let target_port = value(self.target_ports).map_or(self.target_port, |v| v as u16);
        let target = value(self.targets).map_or(self.target, |v| with_low(self.target, v));

        let headers = self.headers();
        let size = self.size.unwrap_or(headers.max(SIZE));
        let payload = vec![b'x'; usize::from(size - headers)];
        let pair = (SocketAddr::new(source, source_port), SocketAddr::new(target, target_port));
        let mut frame = match self.kind {
            Kind::Syn => frames::tcp(pair.0, pair.1, frames::SYN, &payload),
            Kind::Ack => frames::tcp(pair.0, pair.1, frames::ACK, &payload),
            Kind::Udp => frames::udp(pair.0, pair.1, &payload),
            Kind::Icmp => {
                let echo = if source.is_ipv4() { 8 } else { 128 };
                let numbers = [source_port.to_be_bytes(), target_port.to_be_bytes()].concat();
                frames::icmp(source, target, echo, 0, &[numbers, payload].concat())
            }
        };
        frame[6..12].copy_from_slice(&self.mac);
        frames::tagged(&frame, &self.vlan)
    }

    /// Bytes of the headers, VLAN tags left out.
    fn headers(&self) -> u16 {
        let transport = match self.kind {
            Kind::Syn | Kind::Ack => 20,
            Kind::Udp | Kind::Icmp => 8,
        };
        14 + transport + if self.source.is_ipv4() { 20 } else { 40 }
    }
}

/// A number that looks random: the finalizer of SplitMix64, which maps no two counts to one number.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
fn scattered(count: u64) -> u64 {
    let mut number = count.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The last four bytes of an address.
fn low(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => (address.to_bits() & u128::from(u32::MAX)) as u32,
    }
}

fn with_low(address: IpAddr, low: u32) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::from_bits(low).into(),
        IpAddr::V6(address) => {
            let rest = address.to_bits() & !u128::from(u32::MAX);
            Ipv6Addr::from_bits(rest | u128::from(low)).into()
        }
    }
}

/// A number, also as a power such as `2**20` or with an exponent such as `3e7`.
///
/// # Errors
/// What is wrong with it.
pub fn number(text: &str) -> Result<u64, String> {
    let parse = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    let overflow = || format!("{text} does not fit into 64 bits");
    let (base, exponent, factor) = if let Some((base, exponent)) = text.split_once("**") {
        (parse(base)?, exponent, 1)
    } else if let Some((factor, exponent)) = text.split_once('e') {
        (10, exponent, parse(factor)?)
    } else {
        return parse(text);
    };
    let exponent = u32::try_from(parse(exponent)?).map_err(|_| overflow())?;
    base.checked_pow(exponent).and_then(|power| power.checked_mul(factor)).ok_or_else(overflow)
}

fn addresses(text: &str) -> Result<u64, String> {
    power_of_two(text, 1 << 32)
}

fn ports(text: &str) -> Result<u64, String> {
    power_of_two(text, 1 << 16)
}

fn power_of_two(text: &str, most: u64) -> Result<u64, String> {
    match number(text)? {
        count if count.is_power_of_two() && count <= most => Ok(count),
        count => Err(format!("{count} is no power of two up to {most}")),
    }
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes = text.split(':').map(|part| u8::from_str_radix(part, 16));
    let bytes: Result<Vec<u8>, _> = bytes.collect();
    let bytes = bytes.map_err(|error| error.to_string())?;
    bytes.try_into().map_err(|_| "expected six bytes such as 02:00:00:00:00:01".to_owned())
}

fn tag(text: &str) -> Result<(u16, u16), String> {
    let (protocol, control) = text.split_once(':').ok_or("expected PROTOCOL:CONTROL")?;
    let protocol = u16::from_str_radix(protocol, 16).map_err(|error| error.to_string())?;
    let control = control.parse().map_err(|error: std::num::ParseIntError| error.to_string())?;
    Ok((protocol, control))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::HashSet;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flood: Flood,
    }

    fn flood(words: &str) -> Flood {
        let words = iter::once("flood").chain(words.split_whitespace());
        Line::try_parse_from(words).unwrap().flood
    }

    #[test]
    fn sequential_numbers_make_exactly_as_many_flows_as_asked_for() {
        for (words, flows) in [
            ("--kind udp --sources 16 --source-ports 4 --order sequential", 64),
            ("--kind udp --sources 64 --source-ports 64 --order sequential --flows 1000", 1000),
            ("--kind icmp --targets 8 --target-ports 2 --order sequential", 16),
            ("--kind syn --source fd00::1 --target fd00::2 --sources 32 --order sequential", 32),
        ] {
            let flood = flood(words);
            flood.check().unwrap();
            let frames: HashSet<_> =
                flood.numbers().take(2 * flows).map(|number| flood.frame(number)).collect();
            assert_eq!(frames.len(), flows, "{words}");
        }
    }

    #[test]
    fn frames_have_the_size_the_mark_and_the_tags_asked_for() {
        for kind in ["syn", "ack", "udp", "icmp"] {
            for addresses in ["", "--source fd00::1 --target fd00::2"] {
                let words = format!("--kind {kind} --size 90 --mac 02:0a:00:00:00:07 {addresses}");
                assert_eq!(flood(&words).frame(0).len(), 90, "{words}");
                let tagged = flood(&format!("{words} --vlan 88a8:10 --vlan 8100:20")).frame(0);
                assert_eq!(tagged.len(), 98);
                assert_eq!(tagged[6..12], [2, 10, 0, 0, 0, 7]);
            }
        }
    }

    #[test]
    fn fields_lie_where_the_frame_has_them() {
        let every = "--sources 2**32 --source-ports 2**16 --target-ports 2**16";
        for addresses in ["", "--source fd00::1 --target fd00::2", "--vlan 8100:5"] {
            let flood = flood(&format!("{every} {addresses} --size 80"));
            for number in flood.numbers().take(100) {
                let frame = flood.frame(number);
                for field in flood.fields() {
                    let begin = usize::from(field.offset);
                    let bytes = &frame[begin..begin + usize::from(field.bytes)];
                    let expected = field.value(number).to_be_bytes();
                    assert_eq!(bytes, &expected[4 - usize::from(field.bytes)..], "{field:?}");
                }
            }
        }
    }

    #[test]
    fn impossible_frames_are_refused() {
        let refused = |words: &str| flood(words).check().unwrap_err();
        assert_eq!(refused("--size 53"), FloodError::Size { size: 53, headers: 54 });
        assert!(matches!(refused("--target fd00::1"), FloodError::Family { .. }));
        assert_eq!(refused("--flows 3 --sources 2"), FloodError::Flows { flows: 3, bits: 1 });
        let all = "--sources 2**32 --targets 2**32 --source-ports 2";
        assert_eq!(refused(all), FloodError::Flows { flows: 0, bits: 65 });
        assert!(power_of_two("3", 4).is_err() && power_of_two("8", 4).is_err());
    }

    #[test]
    fn numbers_are_read_as_people_write_them() {
        assert_eq!(number("2**20"), Ok(1 << 20));
        assert_eq!(number("3e7"), Ok(30_000_000));
        assert_eq!(number("17"), Ok(17));
        assert!(number("2**64").is_err() && number("x").is_err() && number("").is_err());
    }
}
