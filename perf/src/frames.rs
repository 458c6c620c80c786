//! Ethernet frames with correct lengths and checksums, from addresses and payloads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// MAC address of the sender in every frame: locally administered, nobody's.
pub const SOURCE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// MAC address of the receiver in every frame. An IP stack drops the frame, taps still see it.
pub const TARGET_MAC: [u8; 6] = [0x02, 0xde, 0xad, 0xbe, 0xef, 0x01];

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// Tag protocol of IEEE 802.1Q.
pub const DOT1Q: u16 = 0x8100;
/// Tag protocol of IEEE 802.1ad (outer tag of QinQ).
pub const DOT1AD: u16 = 0x88a8;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// TCP flag FIN.
pub const FIN: u8 = 0x01;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag PSH.
pub const PSH: u8 = 0x08;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;

/// An Ethernet frame around `payload`.
#[must_use]
pub fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&TARGET_MAC[..], &SOURCE_MAC, &ether_type.to_be_bytes(), payload].concat()
}

/// The frame with VLAN tags (protocol, control) behind its addresses, the first one outermost.
///
/// # Panics
/// If `frame` is shorter than two MAC addresses.
#[must_use]
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let mut tagged = addresses.to_vec();
    for (protocol, control) in tags {
        tagged.extend(protocol.to_be_bytes());
        tagged.extend(control.to_be_bytes());
    }
    tagged.extend(rest);
    tagged
}

/// The frame filled up with zero bytes to `size`, as short frames are on a wire.
#[must_use]
pub fn padded(mut frame: Vec<u8>, size: usize) -> Vec<u8> {
    if frame.len() < size {
        frame.resize(size, 0);
    }
    frame
}

/// A TCP segment with these flags, in IPv4 or IPv6 as the addresses are.
///
/// # Panics
/// If one address is IPv4 and the other IPv6.
#[must_use]
pub fn tcp(source: SocketAddr, target: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    tcp_numbered(source, target, flags, 1, 0, payload)
}

/// A TCP segment with these flags, sequence and acknowledgement numbers.
///
/// # Panics
/// If one address is IPv4 and the other IPv6.
#[must_use]
pub fn tcp_numbered(
    source: SocketAddr,
    target: SocketAddr,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20 + payload.len());
    segment.extend(source.port().to_be_bytes());
    segment.extend(target.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgement.to_be_bytes());
    segment.extend([0x50, flags]); // five words of header
    segment.extend(1024_u16.to_be_bytes()); // window
    segment.extend([0; 4]); // checksum, urgent pointer
    segment.extend(payload);
    put_transport_checksum(&mut segment, 16, source.ip(), target.ip(), TCP);
    ip(source.ip(), target.ip(), TCP, &segment)
}

/// A UDP datagram.
///
/// # Panics
/// If one address is IPv4 and the other IPv6, or the payload is longer than 65 527 bytes.
#[must_use]
pub fn udp(source: SocketAddr, target: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(target.port().to_be_bytes());
    datagram.extend(length(8 + payload.len()).to_be_bytes());
    datagram.extend([0; 2]);
    datagram.extend(payload);
    put_transport_checksum(&mut datagram, 6, source.ip(), target.ip(), UDP);
    ip(source.ip(), target.ip(), UDP, &datagram)
}

/// An ICMP or ICMPv6 message, as the addresses are. `body` follows the checksum: the four bytes that
/// depend on the type, then the data.
///
/// # Panics
/// If one address is IPv4 and the other IPv6.
#[must_use]
pub fn icmp(source: IpAddr, target: IpAddr, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], body].concat();
    if source.is_ipv4() {
        let sum = checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        ip(source, target, ICMP, &message)
    } else {
        put_transport_checksum(&mut message, 2, source, target, ICMPV6);
        ip(source, target, ICMPV6, &message)
    }
}

/// The answer of `router` to an untagged IP frame: port unreachable, quoting up to 64 bytes of it.
///
/// # Panics
/// If `frame` is shorter than its headers.
#[must_use]
pub fn port_unreachable(router: IpAddr, frame: &[u8]) -> Vec<u8> {
    let packet = &frame[14..];
    let quoted = &packet[..packet.len().min(64)];
    let body = [&[0; 4], quoted].concat();
    let source: IpAddr = if packet[0] >> 4 == 4 {
        Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]).into()
    } else {
        let mut address = [0; 16];
        address.copy_from_slice(&packet[8..24]);
        Ipv6Addr::from(address).into()
    };
    let (kind, code) = if source.is_ipv4() { (3, 3) } else { (1, 4) };
    icmp(router, source, kind, code, &body)
}

/// An ARP request of `source` for `target`.
#[must_use]
pub fn arp_request(source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1]; // Ethernet, IPv4, lengths of their addresses, request
    let payload = [&fixed[..], &SOURCE_MAC, &source.octets(), &[0; 6], &target.octets()].concat();
    ethernet(ARP, &payload)
}

/// An IP packet in an Ethernet frame.
///
/// # Panics
/// If one address is IPv4 and the other IPv6.
#[must_use]
pub fn ip(source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let header = ipv4_header(source, target, protocol, &[], 0x4000, payload.len());
            ethernet(IPV4, &[&header, payload].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let header = ipv6_header(source, target, protocol, payload.len());
            ethernet(IPV6, &[&header, payload].concat())
        }
        _ => panic!("{source} and {target} are of different kinds"),
    }
}

/// An IPv4 header with options and the flags-and-offset word (0x4000: don't fragment).
///
/// # Panics
/// If the options are longer than 40 bytes or not whole words, or the packet longer than 65 535 bytes.
#[must_use]
pub fn ipv4_header(
    source: Ipv4Addr,
    target: Ipv4Addr,
    protocol: u8,
    options: &[u8],
    fragment: u16,
    payload_bytes: usize,
) -> Vec<u8> {
    assert!(options.len() <= 40 && options.len().is_multiple_of(4), "{} bytes", options.len());
    let words = u8::try_from(5 + options.len() / 4).unwrap_or(15);
    let mut header = vec![0x40 | words, 0];
    header.extend(length(usize::from(words) * 4 + payload_bytes).to_be_bytes());
    header.extend(1_u16.to_be_bytes()); // identification
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(target.octets());
    header.extend(options);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// An IPv6 header.
///
/// # Panics
/// If the payload is longer than 65 535 bytes.
#[must_use]
pub fn ipv6_header(
    source: Ipv6Addr,
    target: Ipv6Addr,
    next_header: u8,
    payload_bytes: usize,
) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(length(payload_bytes).to_be_bytes());
    header.extend([next_header, 64]);
    header.extend(source.octets());
    header.extend(target.octets());
    header
}

/// The fragments of an untagged IPv4 frame without options, each with up to `payload_bytes` of the
/// packet's payload (a multiple of 8).
///
/// # Panics
/// If the frame is no such frame or the number no such multiple.
#[must_use]
pub fn ipv4_fragments(frame: &[u8], payload_bytes: usize) -> Vec<Vec<u8>> {
    assert!(payload_bytes > 0 && payload_bytes.is_multiple_of(8), "{payload_bytes}");
    let (header, payload) = frame[14..].split_at(20);
    assert_eq!(header[0], 0x45, "not an IPv4 header without options");
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let count = payload.len().div_ceil(payload_bytes);
    let pieces = payload.chunks(payload_bytes).enumerate().map(|(number, piece)| {
        let more = if number + 1 < count { 0x2000 } else { 0 };
        let word = more | length(number * payload_bytes / 8);
        let header = ipv4_header(address(12), address(16), header[9], &[], word, piece.len());
        ethernet(IPV4, &[&header, piece].concat())
    });
    pieces.collect()
}

/// Puts the checksum over pseudo header and segment at `offset`. A sum of 0 is sent as 0xffff.
fn put_transport_checksum(
    segment: &mut [u8],
    offset: usize,
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
) {
    let bytes = u32::try_from(segment.len()).unwrap_or(u32::MAX).to_be_bytes();
    let pseudo = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => [source.octets(), target.octets()].concat(),
        (IpAddr::V6(source), IpAddr::V6(target)) => [source.octets(), target.octets()].concat(),
        _ => panic!("{source} and {target} are of different kinds"),
    };
    segment[offset..offset + 2].fill(0);
    let sum = match checksum(&[&pseudo, &bytes, &[0, protocol], segment]) {
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    segment[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum of parts; all but the last have an even length.
///
/// Source: RFC 1071.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or_else(|_| panic!("{bytes} bytes do not fit into an IP packet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(text: [&str; 2]) -> [SocketAddr; 2] {
        text.map(|one| one.parse().unwrap())
    }

    /// A part that carries its own checksum sums up to zero.
    fn transport_sum(frame: &[u8], protocol: u8) -> u16 {
        let packet = &frame[14..];
        let (addresses, segment) = if packet[0] >> 4 == 4 {
            (&packet[12..20], &packet[20..])
        } else {
            (&packet[8..40], &packet[40..])
        };
        let bytes = u32::try_from(segment.len()).unwrap().to_be_bytes();
        checksum(&[addresses, &bytes, &[0, protocol], segment])
    }

    #[test]
    fn checksums_are_those_of_the_internet() {
        // Source: RFC 1071, section 3: the sum of these words is ddf2.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        for text in [["10.0.0.1:1000", "10.0.0.2:80"], ["[fd00::1]:1000", "[fd00::2]:80"]] {
            let [source, target] = pair(text);
            assert_eq!(transport_sum(&tcp(source, target, SYN, b"odd"), TCP), 0);
            assert_eq!(transport_sum(&udp(source, target, b"payload"), UDP), 0);
        }
        let [source, target] = pair(["10.0.0.1:1", "10.0.0.2:2"]);
        assert_eq!(checksum(&[&udp(source, target, b"x")[14..34]]), 0);
        let echo = icmp(source.ip(), target.ip(), 8, 0, &[0, 1, 0, 1, 7]);
        assert_eq!(checksum(&[&echo[34..]]), 0);
        let [source, target] = pair(["[fd00::1]:1", "[fd00::2]:2"]);
        let echo = icmp(source.ip(), target.ip(), 128, 0, &[0, 1, 0, 1, 7]);
        assert_eq!(transport_sum(&echo, ICMPV6), 0);
    }

    #[test]
    fn tags_lie_behind_the_addresses() {
        let frame = ethernet(ARP, b"body");
        let tagged = tagged(&frame, &[(DOT1AD, 10), (DOT1Q, 0x2014)]);
        assert_eq!(tagged[12..22], [0x88, 0xa8, 0, 10, 0x81, 0, 0x20, 0x14, 0x08, 0x06]);
        assert_eq!(tagged[..12], frame[..12]);
    }

    #[test]
    fn fragments_put_together_give_the_packet() {
        let [source, target] = pair(["10.0.0.1:1", "10.0.0.2:2"]);
        let whole = udp(source, target, &[7; 100]);
        let fragments = ipv4_fragments(&whole, 48);
        assert_eq!(fragments.len(), 3);
        let payload: Vec<u8> = fragments.iter().flat_map(|one| one[34..].to_vec()).collect();
        assert_eq!(payload, whole[34..]);
        let word = |frame: &[u8]| u16::from_be_bytes([frame[20], frame[21]]);
        assert_eq!(fragments.iter().map(|one| word(one)).collect::<Vec<_>>(), [0x2000, 0x2006, 12]);
    }

    #[test]
    fn unreachable_answers_the_sender_and_quotes_its_packet() {
        let [source, target] = pair(["10.0.0.1:1", "10.0.0.2:2"]);
        let probe = udp(source, target, b"hello");
        let answer = port_unreachable(target.ip(), &probe);
        assert_eq!(answer[30..34], [10, 0, 0, 1]);
        assert_eq!(answer[34..36], [3, 3]);
        assert_eq!(answer[42..], probe[14..]);
    }
}
