//! An explanation as text and as JSON.

use std::fmt::{self, Write};

use jiff::Timestamp;
use serde_json::{Value, json};
use wire::units::UnixNanos;

use crate::detect::{
    AlertBrief, ContactCounts, Covers, Explanation, Finding, Grouping, HeldBack, Standing,
    Technique,
};
use crate::evidence::Class;

/// Lines for a person. Times are UTC.
#[must_use]
pub fn text(explanation: &Explanation) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, explanation);
    out
}

fn write_text(out: &mut String, it: &Explanation) -> fmt::Result {
    match it.covers {
        Covers::Now => writeln!(out, "{} at {}", it.source, time(it.now))?,
        Covers::WholeRun => writeln!(out, "{} over the whole file", it.source)?,
    }
    writeln!(out, "\nStanding")?;
    write_standing(out, it)?;
    writeln!(out, "\nContacts")?;
    if it.contacts.is_empty() {
        writeln!(out, "  none that count")?;
    }
    it.contacts.iter().try_for_each(|counts| write_contacts(out, counts))?;
    let window = humantime::format_duration(it.window);
    let which = if it.covers == Covers::Now { "" } else { ", the highest of each" };
    writeln!(out, "\nCounts of failed contacts within {window}{which}")?;
    if it.findings.is_empty() {
        writeln!(out, "  none")?;
    }
    // A single contact counts in several groups, of which a person wants to read none.
    let is_shown = |finding: &&Finding| finding.counted > 1 || finding.alert.is_some();
    let (shown, others): (Vec<_>, Vec<_>) = it.findings.iter().partition(is_shown);
    shown.iter().try_for_each(|finding| write_finding(out, finding))?;
    match others.len() + it.findings_left_out {
        0 => {}
        more => writeln!(out, "  and {more} more, further from their thresholds")?,
    }
    writeln!(out, "\nAlerts{}", if it.covers == Covers::Now { " that are open" } else { "" })?;
    if it.alerts.is_empty() {
        writeln!(out, "  none")?;
    }
    it.alerts.iter().try_for_each(|alert| write_alert(out, alert))?;
    if it.evidence_lost > 0 {
        writeln!(
            out,
            "\n{} contacts of all sources gave way for want of room, so that counts may be too low: set \
             detect.memory_mib higher",
            it.evidence_lost
        )?;
    }
    Ok(())
}

fn write_standing(out: &mut String, it: &Explanation) -> fmt::Result {
    let Standing { is_own, allowed, network } = &it.standing;
    if *is_own {
        writeln!(out, "  never counts: an address of this host")?;
    }
    for rule in allowed {
        match rule.port {
            None => writeln!(out, "  never counts: detect.allow has \"{rule}\"")?,
            Some(port) => writeln!(
                out,
                "  does not count at port {port} of others: detect.allow has \"{rule}\""
            )?,
        }
    }
    match network {
        None => {}
        Some(rule) => match rule.factor {
            None => writeln!(out, "  never counts: [[detect.network]] {} is off", rule.network)?,
            Some(factor) => {
                writeln!(out, "  thresholds × {factor}: [[detect.network]] {}", rule.network)?;
            }
        },
    }
    if !it.standing.never_counts() && network.is_none() {
        writeln!(out, "  counts, with the thresholds as configured")?;
    }
    if it.not_counted > 0 {
        writeln!(out, "  {} contacts did not count for that", it.not_counted)?;
    }
    Ok(())
}

fn write_contacts(out: &mut String, counts: &ContactCounts) -> fmt::Result {
    let ContactCounts { class, attempted, answered, refused, silent, completed, .. } = counts;
    let word = class_word(*class);
    write!(out, "  {word:<5} {attempted} attempted: {answered} answered")?;
    if *completed > 0 {
        write!(out, " ({completed} handshakes completed)")?;
    }
    write!(out, ", {refused} refused, {silent} silent")?;
    for (count, what) in [
        (counts.lost, "not decided, as frames were lost"),
        (counts.unclear, "not decided, as answers may take another way"),
        (counts.exceeded, "steps of a traceroute"),
        (counts.waiting, "waiting for an answer"),
    ] {
        if count > 0 {
            write!(out, ", {count} {what}")?;
        }
    }
    for (place, (technique, count)) in counts.odd.iter().enumerate() {
        let before = if place == 0 { "; by" } else { "," };
        write!(out, "{before} {} {count}", technique.name())?;
    }
    writeln!(out)
}

fn write_finding(out: &mut String, finding: &Finding) -> fmt::Result {
    let Finding { grouping, attempted, counted, threshold, configured, .. } = finding;
    let what = grouping_words(grouping);
    write!(out, "  {what:<44} {counted} of {attempted}, threshold {threshold}")?;
    if threshold != configured {
        let why = if finding.is_one_way { ": answers are not seen here" } else { "" };
        write!(out, " (configured {configured}{why})")?;
    }
    if let Some(breadth) = finding.breadth {
        write!(
            out,
            "; failed hosts {}, failed ports {}, answered hosts {}",
            breadth.hosts, breadth.ports, breadth.answered_hosts
        )?;
    }
    writeln!(out, ", at {}: {}", time(finding.at), reason(finding))
}

fn reason(finding: &Finding) -> String {
    match (finding.alert, finding.held_back) {
        (Some(id), _) => format!("alert {id}"),
        (None, None) => "no alert".into(),
        (None, Some(HeldBack::Missing(1))) => "1 more was needed".into(),
        (None, Some(HeldBack::Missing(more))) => format!("{more} more were needed"),
        (None, Some(HeldBack::MostlySucceeds)) => "no alert, as too many were answered".into(),
        (None, Some(HeldBack::Narrow)) => {
            "no block scan without more than 5 hosts and 5 ports".into()
        }
        (None, Some(HeldBack::ToldBy(id))) => format!("alert {id} tells about it"),
        (None, Some(HeldBack::Flood)) => "the flood of the target tells about it".into(),
        (None, Some(HeldBack::NoRoom)) => "no alert, as too many are open".into(),
        (None, Some(HeldBack::Waits)) => "opens with the next one that fails".into(),
    }
}

fn write_alert(out: &mut String, alert: &AlertBrief) -> fmt::Result {
    let AlertBrief { id, kind, attempted, answered, refused, silent, .. } = alert;
    write!(out, "  {id}  {}", kind.name())?;
    if let Some(technique) = alert.technique {
        write!(out, " by {}", technique.name())?;
    }
    if let Some(target) = alert.target {
        write!(out, " of {target}")?;
    }
    match alert.opened {
        Some(opened) => write!(out, ", opened {}", time(opened))?,
        None => write!(out, ", not told yet")?,
    }
    write!(out, ", packets from {} to {}", time(alert.start), time(alert.end))?;
    writeln!(
        out,
        ": {attempted} attempted, {answered} answered, {refused} refused, {silent} silent"
    )
}

fn grouping_words(grouping: &Grouping) -> String {
    match grouping {
        Grouping::Ports { target, technique: Technique::Ip } => {
            format!("protocols of {target}")
        }
        Grouping::Ports { target, technique } => {
            format!("ports of {target} by {}", technique.name())
        }
        Grouping::Hosts { class: class @ (Class::Icmp | Class::Arp), .. } => {
            format!("hosts by {}", class_word(*class))
        }
        Grouping::Hosts { class, port } => format!("hosts at {}/{port}", class_word(*class)),
        Grouping::Block => "pairs of host and port (block)".into(),
        Grouping::Slow => "slow, in no other alert, within 15 min".into(),
        Grouping::SlowDay => "slow, in no other alert, within 24 h".into(),
    }
}

const fn class_word(class: Class) -> &'static str {
    match class {
        Class::Tcp => "tcp",
        Class::Udp => "udp",
        Class::Icmp => "icmp",
        Class::Arp => "arp",
        Class::Ip => "ip",
    }
}

/// To the millisecond, UTC.
fn time(time: UnixNanos) -> String {
    Timestamp::from_nanosecond(i128::from(time.0))
        .map_or_else(|_| time.0.to_string(), |it| it.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

/// One object for machines. Times are those of the text.
#[must_use]
pub fn json(it: &Explanation) -> Value {
    let Standing { is_own, allowed, network } = &it.standing;
    let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    let network = network.map(|rule| {
        json!({ "network": rule.network.to_string(), "factor": rule.factor, "off": rule.factor.is_none() })
    });
    json!({
        "source": it.source.to_string(),
        "covers": match it.covers { Covers::Now => "now", Covers::WholeRun => "whole_run" },
        "time": time(it.now),
        "window_s": it.window.as_secs_f64(),
        "standing": {
            "never_counts": it.standing.never_counts(),
            "own_address": is_own,
            "allowed_by": allowed,
            "network": network,
        },
        "contacts": it.contacts.iter().map(contacts_json).collect::<Vec<_>>(),
        // Nobody counts them for a running sensor.
        "contacts_not_counted": (it.covers == Covers::WholeRun).then_some(it.not_counted),
        "counts": it.findings.iter().map(finding_json).collect::<Vec<_>>(),
        "counts_left_out": it.findings_left_out,
        "alerts": it.alerts.iter().map(alert_json).collect::<Vec<_>>(),
        "evidence_lost": it.evidence_lost,
    })
}

fn contacts_json(counts: &ContactCounts) -> Value {
    let odd = counts.odd.iter().map(|(technique, count)| (technique.name().into(), json!(count)));
    json!({
        "class": class_word(counts.class),
        "attempted": counts.attempted,
        "answered": counts.answered,
        "refused": counts.refused,
        "silent": counts.silent,
        "undecided_by_loss": counts.lost,
        "undecided_by_unseen_answers": counts.unclear,
        "exceeded": counts.exceeded,
        "waiting": counts.waiting,
        "completed": counts.completed,
        "odd": serde_json::Map::from_iter(odd),
    })
}

fn finding_json(finding: &Finding) -> Value {
    let (group, target, technique, class, port) = match finding.grouping {
        Grouping::Ports { target, technique } => {
            ("ports", Some(target.to_string()), Some(technique.name()), None, None)
        }
        Grouping::Hosts { class, port } => {
            ("hosts", None, None, Some(class_word(class)), Some(port))
        }
        Grouping::Block => ("block", None, None, None, None),
        Grouping::Slow => ("slow", None, None, None, None),
        Grouping::SlowDay => ("slow_day", None, None, None, None),
    };
    let (held_back, missing) = match finding.held_back {
        None => (None, None),
        Some(HeldBack::Missing(more)) => (Some("missing"), Some(more)),
        Some(HeldBack::MostlySucceeds) => (Some("mostly_succeeds"), None),
        Some(HeldBack::Narrow) => (Some("narrow"), None),
        Some(HeldBack::ToldBy(_)) => (Some("told_by"), None),
        Some(HeldBack::Flood) => (Some("flood"), None),
        Some(HeldBack::NoRoom) => (Some("no_room"), None),
        Some(HeldBack::Waits) => (Some("waits"), None),
    };
    let told_by = match finding.held_back {
        Some(HeldBack::ToldBy(id)) => Some(id),
        _ => None,
    };
    json!({
        "group": group,
        "target": target,
        "technique": technique,
        "class": class,
        "port": port,
        "attempted": finding.attempted,
        "counted": finding.counted,
        "threshold": finding.threshold,
        "configured": finding.configured,
        "one_way": finding.is_one_way,
        "time": time(finding.at),
        "breadth": finding.breadth.map(|it| json!({
            "hosts": it.hosts,
            "ports": it.ports,
            "answered_hosts": it.answered_hosts,
            "sequential_hosts": it.sequential_hosts,
        })),
        "alert": finding.alert,
        "held_back": held_back,
        "missing": missing,
        "told_by": told_by,
    })
}

fn alert_json(alert: &AlertBrief) -> Value {
    json!({
        "id": alert.id,
        "kind": alert.kind.name(),
        "technique": alert.technique.map(|it| it.name()),
        "target": alert.target.map(|it| it.to_string()),
        "opened": alert.opened.map(time),
        "start": time(alert.start),
        "end": time(alert.end),
        "attempted": alert.attempted,
        "answered": alert.answered,
        "refused": alert.refused,
        "silent": alert.silent,
    })
}
