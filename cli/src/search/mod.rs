//! `ringwatch alerts`, `flows`, `dns`: stored events of a collector, as a table or as JSON lines.

mod table;
pub mod time;

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::access::Collector;
use crate::api::{ApiError, Events};
use crate::selection::Selection;

/// Events asked for at once: as many as a collector gives.
const PAGE: usize = 1000;
/// A search takes 10 s at most, says the collector; more is the network's.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the three commands have in common.
#[derive(Args, Debug)]
pub struct Common {
    #[command(flatten)]
    collector: Collector,
    #[command(flatten)]
    selection: Selection,
    /// How many at most
    #[arg(long, value_name = "NUMBER", default_value = "50")]
    limit: NonZeroUsize,
    /// The oldest first
    #[arg(long)]
    oldest_first: bool,
    /// Print the events as they were stored, one JSON object a line
    #[arg(long)]
    json: bool,
}

/// `ringwatch alerts`.
#[derive(Args, Debug)]
#[command(after_help = "Times are shown in UTC. Of each alert the latest revision is shown.

Examples:
  ringwatch alerts                                 the latest 50
  ringwatch alerts --from 2h --severity 1          the worst of the last two hours
  ringwatch alerts --host 192.0.2.7 --kind vertical
  ringwatch alerts --all-revisions --oldest-first --json | jq .alert.context")]
pub struct Alerts {
    #[command(flatten)]
    common: Common,
    /// Of this kind: vertical, horizontal, block, stealth, slow, syn_flood …
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Of this severity or a worse one; 1 is the worst
    #[arg(long, value_name = "NUMBER")]
    severity: Option<u8>,
    /// Every revision of each alert, not only the latest
    #[arg(long)]
    all_revisions: bool,
}

/// `ringwatch flows`.
#[derive(Args, Debug)]
#[command(
    after_help = "Times are shown in UTC. A connection has an event when it opens and one when it ends.

Examples:
  ringwatch flows --host 192.0.2.7 --from 1h
  ringwatch flows --sensor web-1 --port 22 --from '2026-11-21 10:00' --to '2026-11-21 11:00'
  ringwatch flows --from 10m --limit 100000 --json | jq -r .dest_ip | sort | uniq -c"
)]
pub struct Flows {
    #[command(flatten)]
    common: Common,
}

/// `ringwatch dns`.
#[derive(Args, Debug)]
#[command(after_help = "Times are shown in UTC.

Examples:
  ringwatch dns --name www.example.org
  ringwatch dns --name '*.example.org' --from 7d
  ringwatch dns --host 192.0.2.7 --json")]
pub struct Dns {
    #[command(flatten)]
    common: Common,
    /// With this name; * stands for anything
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// What is searched.
#[derive(Clone, Copy)]
enum Kind {
    Alerts,
    Flows,
    Dns,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Alerts => "alerts",
            Self::Flows => "flows",
            Self::Dns => "dns",
        }
    }

    /// What one calls them in a sentence.
    const fn plural(self) -> &'static str {
        match self {
            Self::Alerts => "alerts",
            Self::Flows => "flows",
            Self::Dns => "DNS records",
        }
    }
}

/// Why a search gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The collector.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Standard output.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

impl Alerts {
    /// Searches and prints.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub fn run(&self) -> Result<(), SearchError> {
        let severity = self.severity.map(|severity| severity.to_string());
        let revisions = self.all_revisions.then_some("all");
        let own = [
            ("kind", self.kind.as_deref()),
            ("severity", severity.as_deref()),
            ("revisions", revisions),
        ];
        search(Kind::Alerts, &self.common, &own)
    }
}

impl Flows {
    /// Searches and prints.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub fn run(&self) -> Result<(), SearchError> {
        search(Kind::Flows, &self.common, &[])
    }
}

impl Dns {
    /// Searches and prints.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub fn run(&self) -> Result<(), SearchError> {
        search(Kind::Dns, &self.common, &[("name", self.name.as_deref())])
    }
}

/// Asks page after page, until there are as many as wanted. JSON is printed as it comes; a table when
/// all is there, because its columns are as wide as the widest cell.
fn search(
    kind: Kind,
    common: &Common,
    own: &[(&'static str, Option<&str>)],
) -> Result<(), SearchError> {
    let client = common.collector.client(PATIENCE)?;
    let path = format!("/api/v1/{}", kind.word());
    let parameters = common.parameters(own);
    let mut stdout = io::stdout().lock();
    let (mut items, mut count) = (Vec::new(), 0);
    // Of all pages together.
    let (mut unreadable, mut odd) = (0, 0);
    let mut cursor = None;
    let last = loop {
        let mut query = parameters.clone();
        query
            .push(("limit", PAGE.min(common.limit.get().saturating_sub(count)).max(1).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let mut page = client.events(&path, &query)?;
        unreadable += page.unreadable;
        odd += page.odd;
        // One that cannot be shown came as well.
        count = count.saturating_add(page.items.len() + usize::try_from(page.odd).unwrap_or(0));
        if common.json {
            for item in &page.items {
                writeln!(stdout, "{item}")?;
            }
        } else {
            items.append(&mut page.items);
        }
        match page.next.take() {
            Some(next) if count < common.limit.get() => cursor = Some(next),
            next => break (next.is_some(), Events { unreadable, odd, ..page }),
        }
    };
    let (has_more, page) = last;
    if !common.json {
        stdout.write_all(render(kind, &items).as_bytes())?;
    }
    stdout.flush()?;
    if has_more {
        eprintln!(
            "there are more: raise --limit, or narrow the search with --from, --to or --host"
        );
    }
    page.remarks().iter().for_each(|remark| eprintln!("{remark}"));
    Ok(())
}

fn render(kind: Kind, items: &[Value]) -> String {
    match kind {
        _ if items.is_empty() => format!("no {} found\n", kind.plural()),
        Kind::Alerts => table::alerts(items),
        Kind::Flows => table::flows(items),
        Kind::Dns => table::dns(items),
    }
}

impl Common {
    fn parameters(&self, own: &[(&'static str, Option<&str>)]) -> Vec<(&'static str, String)> {
        let order = [("order", self.oldest_first.then_some("oldest"))];
        let own = order.iter().chain(own);
        let own = own.filter_map(|(name, value)| value.map(|value| (*name, value.to_owned())));
        self.selection.parameters().into_iter().chain(own).collect()
    }
}
