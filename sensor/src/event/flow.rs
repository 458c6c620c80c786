//! A flow that ended, as EVE has it.

use packet::{protocol, tcp};

use crate::flow::{EndedFlow, State};

use super::json::Json;

/// A flow that ended, and what the table does not know of it.
#[derive(Clone, Copy, Debug)]
pub struct FlowEnd<'a> {
    /// The flow.
    pub flow: &'a EndedFlow,
    /// Interface that it was seen on.
    pub interface: &'a str,
    /// Community ID of the flow; empty: it has none.
    pub community_id: &'a str,
    /// As in [`super::NewConnection`].
    pub flow_id: u64,
}

/// Writes everything but what is ours.
pub(super) fn write(json: &mut Json<'_>, end: &FlowEnd<'_>) {
    let FlowEnd { flow, interface, community_id, flow_id } = end;
    let tuple = &flow.tuple;
    json.time("timestamp", flow.time);
    json.number("flow_id", flow_id & super::FLOW_ID);
    json.string("in_iface", interface);
    json.string("event_type", "flow");
    json.vlan(flow.vlan_ids);
    json.address("src_ip", tuple.source);
    let has_ports = has_ports(tuple.protocol) && !flow.is_fragments;
    if has_ports {
        json.number("src_port", u64::from(tuple.source_port));
    }
    json.address("dest_ip", tuple.target);
    if has_ports {
        json.number("dest_port", u64::from(tuple.target_port));
    }
    json.number("ip_v", if tuple.source.is_v4() { 4 } else { 6 });
    write_protocol(json, tuple.protocol);
    if let Some((kind, code)) = flow.icmp {
        json.number("icmp_type", u64::from(kind));
        json.number("icmp_code", u64::from(code));
    }
    if !community_id.is_empty() {
        json.string("community_id", community_id);
    }
    write_counts(json, flow);
    if tuple.protocol == protocol::TCP && !flow.is_fragments {
        write_tcp(json, flow);
    }
}

fn write_counts(json: &mut Json<'_>, flow: &EndedFlow) {
    json.enter("flow", b'{');
    json.number("pkts_toserver", flow.packets[0]);
    json.number("pkts_toclient", flow.packets[1]);
    json.number("bytes_toserver", flow.bytes[0]);
    json.number("bytes_toclient", flow.bytes[1]);
    json.time("start", flow.first);
    json.time("end", flow.last);
    // As Suricata has it: the difference of whole seconds.
    json.number("age", flow.last.seconds().saturating_sub(flow.first.seconds()));
    let state = match flow.state {
        State::New | State::TcpNew => "new",
        State::Established | State::TcpEstablished => "established",
        State::Closed => "closed",
    };
    json.string("state", state);
    json.string("reason", flow.reason.name());
    // Alerts of this sensor are about sources and targets, not about one flow.
    json.boolean("alerted", false);
    json.leave(b'}');
}

/// Source: RFC 9293 section 3.1; the names of EVE.
fn write_tcp(json: &mut Json<'_>, flow: &EndedFlow) {
    let [to_server, to_client] = flow.flags;
    let all = to_server | to_client;
    json.enter("tcp", b'{');
    json.hexadecimal("tcp_flags", all);
    json.hexadecimal("tcp_flags_ts", to_server);
    json.hexadecimal("tcp_flags_tc", to_client);
    for (name, bit) in [
        ("syn", tcp::SYN),
        ("fin", tcp::FIN),
        ("rst", tcp::RST),
        ("psh", 0x08),
        ("ack", tcp::ACK),
        ("urg", 0x20),
        ("ecn", 0x40),
        ("cwr", 0x80),
    ] {
        if all & bit != 0 {
            json.boolean(name, true);
        }
    }
    let state = match flow.state {
        State::Closed => Some("closed"),
        _ if all & tcp::FIN != 0 => Some("fin_wait1"),
        State::TcpEstablished => Some("established"),
        _ if to_client & tcp::SYN != 0 => Some("syn_recv"),
        _ if to_server & tcp::SYN != 0 => Some("syn_sent"),
        // Begun before the capture, and only one side of it is here.
        _ => None,
    };
    if let Some(state) = state {
        json.string("state", state);
    }
    json.leave(b'}');
}

const fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// The name that EVE has for a protocol, three digits for one that has none here.
fn write_protocol(json: &mut Json<'_>, number: u8) {
    let name = match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::ICMP => "ICMP",
        protocol::ICMPV6 => "IPv6-ICMP",
        protocol::SCTP => "SCTP",
        2 => "IGMP",
        4 => "IPv4",
        41 => "IPv6",
        47 => "GRE",
        50 => "ESP",
        51 => "AH",
        89 => "OSPFIGP",
        103 => "PIM",
        112 => "VRRP",
        _ => return json.three_digits("proto", number),
    };
    json.string("proto", name);
}
