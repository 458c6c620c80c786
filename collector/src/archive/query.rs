//! Questions about stored events. Reads the index and the record log, both only what is on the disk;
//! holds no lock that a writer waits for, and ends when its time is up.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params, params_from_iter};
use wire::records::RecordKind;
use wire::units::UnixNanos;

use super::day::{self, Times, is_damage, signed, unsigned};
use super::row::{address_bytes, normal_name};
use super::{Progress, days};
use crate::store::log::catalog::{Catalog, Day};
use crate::store::log::disk::Disk;
use crate::store::log::file_name;
use crate::store::log::scan::Scan;

/// Steps of SQLite's machine between two looks at the clock.
const STEPS: i32 = 20_000;

/// Where answers come from.
#[derive(Clone)]
pub struct Archive {
    /// Folder of the index.
    pub folder: PathBuf,
    /// The record log.
    pub disk: Arc<dyn Disk>,
    /// What is in it.
    pub catalog: Arc<Catalog>,
    /// How far the index is.
    pub progress: Arc<Progress>,
}

/// What is asked for. What is `None` or empty restricts nothing.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Not before this time.
    pub from: Option<i64>,
    /// Before this time.
    pub to: Option<i64>,
    /// Of this sensor.
    pub sensor: Option<String>,
    /// From or to this address.
    pub host: Option<IpAddr>,
    /// From or to this port.
    pub port: Option<u16>,
    /// Alerts of this kind.
    pub alert_kind: Option<String>,
    /// Alerts of this severity or a worse one: 1 is the worst.
    pub severity: Option<u8>,
    /// DNS names; `*` stands for anything.
    pub name: Option<String>,
    /// Alerts: every revision, not only the latest of each.
    pub has_all_revisions: bool,
    /// The oldest first.
    pub is_ascending: bool,
}

/// The place of an event in the order of all: by time, then by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Nanoseconds since 1970.
    pub time: i64,
    /// Position among all records that were ever stored.
    pub number: u64,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Events, as they were stored.
    pub items: Vec<String>,
    /// Where to go on; `None` if there is nothing more.
    pub next: Option<Place>,
    /// Events that are gone, or cannot be read, since the index was made.
    pub unreadable: u64,
    /// Since when records are kept, if older ones were removed.
    pub kept_since: Option<UnixNanos>,
    /// Stored records that are not in the index yet.
    pub behind: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// All of the time that was asked for is older than what is kept.
    #[error("events of that time are no longer kept")]
    Expired {
        /// Since when records are kept.
        kept_since: UnixNanos,
    },
    /// The time is up.
    #[error("the search took too long; ask for a shorter time, or with a host")]
    TooSlow,
    /// The index of a day is damaged; it is being made anew.
    #[error("the index of {day} is damaged and is being made anew")]
    Damaged {
        /// Which day.
        day: String,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The index cannot be read.
    #[error("cannot read the index")]
    Index(#[from] rusqlite::Error),
    /// The record log cannot be read.
    #[error("cannot read the record log")]
    Log(#[from] io::Error),
}

/// A day whose index may have something.
#[derive(Clone, Copy)]
struct Span {
    day: Day,
    first_time: i64,
    last_time: i64,
}

/// An event that was found.
struct Found {
    place: Place,
    day: Day,
    /// Of an alert, of which only the latest revision is wanted: its id and revision.
    revision: Option<(String, i64)>,
}

/// A question that is being answered. Indexes are opened one after the other: there may be years of them.
struct Search<'a> {
    archive: &'a Archive,
    kind: RecordKind,
    filter: &'a Filter,
    deadline: Instant,
    /// Those that may have something, in the order of the answer.
    days: Vec<Span>,
}

impl Archive {
    /// Up to `limit` events of a kind, behind `after` in their order. At `deadline`, what was read until then;
    /// nothing of it, if it is still looked for then.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn find(
        &self,
        kind: RecordKind,
        filter: &Filter,
        after: Option<Place>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page, QueryError> {
        let kept_since = self.kept_since();
        let expired =
            kept_since.filter(|kept_since| filter.to.is_some_and(|to| to <= signed(kept_since.0)));
        let mut search = Search { archive: self, kind, filter, deadline, days: Vec::new() };
        search.days = search.spans()?;
        let mut found = search.find(after, limit + 1)?;
        // Events may be stored long after they happened, by a sensor that was offline: first it is looked for them.
        if let Some(kept_since) = expired.filter(|_| found.is_empty()) {
            return Err(QueryError::Expired { kept_since });
        }
        let has_more = found.len() > limit;
        found.truncate(limit);
        let (items, unreadable) = search.read(&found)?;
        let read = items.len() + usize::try_from(unreadable).unwrap_or(0);
        let last = read.checked_sub(1).and_then(|last| found.get(last));
        let next = last.filter(|_| has_more || read < found.len()).map(|found| found.place);
        let behind = self.progress.behind(&self.catalog);
        Ok(Page { items, next, unreadable, kept_since, behind })
    }

    /// When the oldest record was stored, if there were older ones.
    fn kept_since(&self) -> Option<UnixNanos> {
        let content = self.catalog.lock();
        let (first, info) = content.segments.first_key_value()?;
        (*first > 1).then_some(info.stored_at)
    }

    fn explain(&self, day: Day, error: rusqlite::Error) -> QueryError {
        match error {
            rusqlite::Error::SqliteFailure(failure, _)
                if failure.code == ErrorCode::OperationInterrupted =>
            {
                QueryError::TooSlow
            }
            error if is_damage(&error) => {
                self.progress.suspect(day);
                QueryError::Damaged { day: day::name(day), source: error }
            }
            error => QueryError::Index(error),
        }
    }
}

impl Search<'_> {
    /// The days whose indexes may have something, in the order of the answer.
    fn spans(&self) -> Result<Vec<Span>, QueryError> {
        let filter = self.filter;
        let mut spans = Vec::new();
        for day in days(&self.archive.catalog).into_keys() {
            let Some((first_time, last_time)) = self.times(day)? else { continue };
            let is_before = filter.to.is_some_and(|to| to <= first_time);
            let is_after = filter.from.is_some_and(|from| from > last_time);
            if !is_before && !is_after {
                spans.push(Span { day, first_time, last_time });
            }
        }
        match filter.is_ascending {
            true => spans.sort_by_key(|span| span.first_time),
            false => spans.sort_by_key(|span| std::cmp::Reverse(span.last_time)),
        }
        Ok(spans)
    }

    /// Times of the first and the last event of a day, if it has any.
    fn times(&self, day: Day) -> Result<Times, QueryError> {
        let Archive { progress, .. } = self.archive;
        if let Some(times) = progress.times(day) {
            return Ok(times);
        }
        let Some(connection) = self.open(day)? else { return Ok(None) };
        let found = day::times(&connection).map_err(|error| self.archive.explain(day, error))?;
        let Some((position, times)) = found else { return Ok(None) };
        progress.note(day, position, times);
        Ok(times)
    }

    /// The index of a day, for reading until the time is up; `None` if there is none.
    fn open(&self, day: Day) -> Result<Option<Connection>, QueryError> {
        let deadline = self.deadline;
        if Instant::now() >= deadline {
            return Err(QueryError::TooSlow);
        }
        let path = day::file_path(&self.archive.folder, day);
        if !path.exists() {
            // Not made yet, or taken away.
            self.archive.progress.suspect(day);
            return Ok(None);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let explain = |error| self.archive.explain(day, error);
        let mut connection = Connection::open_with_flags(path, flags).map_err(explain)?;
        connection
            .progress_handler(STEPS, Some(move || Instant::now() >= deadline))
            .map_err(explain)?;
        Ok(Some(connection))
    }

    /// Up to `limit` events behind `after`, in the order of the answer.
    fn find(&self, after: Option<Place>, limit: usize) -> Result<Vec<Found>, QueryError> {
        let (mut found, mut after) = (Vec::new(), after);
        loop {
            let wanted = limit - found.len();
            let mut more = self.candidates(after, wanted)?;
            let is_all = more.len() < wanted;
            after = more.last().map(|last| last.place).or(after);
            self.drop_superseded(&mut more)?;
            found.append(&mut more);
            if is_all || found.len() >= limit {
                return Ok(found);
            }
        }
    }

    /// Up to `limit` events behind `after`, of which others may be later revisions, if they are on another day.
    fn candidates(&self, after: Option<Place>, limit: usize) -> Result<Vec<Found>, QueryError> {
        let mut found = Vec::<Found>::new();
        for span in &self.days {
            let rest = found.last().map_or(i64::MIN, |found| found.place.time);
            let is_behind = match self.filter.is_ascending {
                true => span.first_time > rest,
                false => span.last_time < rest,
            };
            if found.len() >= limit && is_behind {
                break;
            }
            let Some(connection) = self.open(span.day)? else { continue };
            let more = self.find_in(&connection, span.day, after, limit);
            found.extend(more.map_err(|error| self.archive.explain(span.day, error))?);
            found.sort_unstable_by_key(|found| found.place);
            if !self.filter.is_ascending {
                found.reverse();
            }
            found.truncate(limit);
        }
        Ok(found)
    }

    /// Up to `limit` events of one day.
    fn find_in(
        &self,
        connection: &Connection,
        day: Day,
        after: Option<Place>,
        limit: usize,
    ) -> rusqlite::Result<Vec<Found>> {
        let oldest =
            self.archive.catalog.lock().segments.keys().next().copied().unwrap_or(u64::MAX);
        let (sql, values) = compose(self.kind, self.filter, after, oldest);
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut found = Vec::new();
        let is_latest_only = self.kind == RecordKind::Alert && !self.filter.has_all_revisions;
        while found.len() < limit
            && let Some(row) = rows.next()?
        {
            let place = Place { time: row.get(0)?, number: unsigned(row.get(1)?) };
            let revision: Option<(String, i64)> = match is_latest_only {
                true => Some((row.get(2)?, row.get(3)?)),
                false => None,
            };
            let is_superseded = match &revision {
                Some((id, revision)) => is_superseded(connection, id, *revision, self.filter.to)?,
                None => false,
            };
            if !is_superseded {
                found.push(Found { place, day, revision });
            }
        }
        Ok(found)
    }

    /// Leaves out alerts of which another day has a later revision, which is not earlier than they are.
    fn drop_superseded(&self, found: &mut Vec<Found>) -> Result<(), QueryError> {
        for span in &self.days {
            let may_have = |found: &Found| {
                found.revision.is_some()
                    && found.day != span.day
                    && span.last_time >= found.place.time
            };
            if !found.iter().any(may_have) {
                continue;
            }
            let Some(connection) = self.open(span.day)? else { continue };
            let mut error = None;
            found.retain(|found| {
                let Some((id, revision)) = found.revision.as_ref().filter(|_| may_have(found))
                else {
                    return true;
                };
                // After an error, which ends the question, they do not matter.
                error.is_some()
                    || match is_superseded(&connection, id, *revision, self.filter.to) {
                        Ok(is_superseded) => !is_superseded,
                        Err(found) => {
                            error = Some(found);
                            true
                        }
                    }
            });
            if let Some(error) = error {
                return Err(self.archive.explain(span.day, error));
            }
        }
        Ok(())
    }

    /// The records themselves, as many as fit into an answer and its time, and how many of them are gone.
    fn read(&self, found: &[Found]) -> Result<(Vec<String>, u64), QueryError> {
        let places = self.locate(found)?;
        let Archive { disk, catalog, .. } = self.archive;
        let mut batches = Batches { disk, catalog, known: HashMap::new() };
        let (mut items, mut unreadable, mut bytes) = (Vec::new(), 0, 0);
        for Found { place, .. } in found {
            if bytes >= MOST_BYTES {
                break;
            }
            if Instant::now() >= self.deadline {
                if items.is_empty() {
                    return Err(QueryError::TooSlow);
                }
                break;
            }
            let record = match places.get(&place.number) {
                Some((segment, offset)) => batches.record(*segment, *offset, place.number)?,
                None => None,
            };
            match record {
                Some(record) => {
                    bytes += record.len();
                    items.push(record);
                }
                None => unreadable += 1,
            }
        }
        Ok((items, unreadable))
    }

    /// Segment and place of the batch of each event, by its number.
    fn locate(&self, found: &[Found]) -> Result<HashMap<u64, (u64, u64)>, QueryError> {
        let mut places = HashMap::new();
        let days: BTreeSet<Day> = found.iter().map(|found| found.day).collect();
        for day in days {
            let Some(connection) = self.open(day)? else { continue };
            for Found { place, .. } in found.iter().filter(|found| found.day == day) {
                let located = locate(&connection, place.number);
                let located = located.map_err(|error| self.archive.explain(day, error))?;
                places.extend(located.map(|located| (place.number, located)));
            }
        }
        Ok(places)
    }
}

/// The question as SQL, for the index of one day.
fn compose(
    kind: RecordKind,
    filter: &Filter,
    after: Option<Place>,
    oldest: u64,
) -> (String, Vec<Value>) {
    // The table whose order is that of the answer.
    let (main, mut sql) = match filter.host {
        Some(_) => ("h", " FROM hosts h CROSS JOIN events e USING (kind, time, number)".to_owned()),
        None => ("e", " FROM events e".to_owned()),
    };
    let mut values = Vec::new();
    let mut conditions = vec![format!("{main}.kind = {}", kind as u8)];
    let mut condition = |text: String, more: &[Value]| {
        conditions.push(text);
        values.extend_from_slice(more);
    };
    if let Some(host) = filter.host {
        condition("h.address = ?".into(), &[Value::Blob(address_bytes(host))]);
    }
    if let Some(from) = filter.from {
        condition(format!("{main}.time >= ?"), &[Value::Integer(from)]);
    }
    if let Some(to) = filter.to {
        condition(format!("{main}.time < ?"), &[Value::Integer(to)]);
    }
    if let Some(Place { time, number }) = after {
        let than = if filter.is_ascending { ">" } else { "<" };
        let place = [Value::Integer(time), Value::Integer(signed(number))];
        condition(format!("({main}.time, {main}.number) {than} (?, ?)"), &place);
    }
    condition(format!("{main}.number >= ?"), &[Value::Integer(signed(oldest))]);
    if let Some(sensor) = &filter.sensor {
        let sensor = Value::Text(sensor.clone());
        condition("e.sensor = (SELECT id FROM sensors WHERE name = ?)".into(), &[sensor]);
    }
    if let Some(port) = filter.port {
        let port = Value::Integer(i64::from(port));
        condition("(e.source_port = ? OR e.target_port = ?)".into(), &[port.clone(), port]);
    }
    let mut columns = format!("SELECT {main}.time, {main}.number");
    if kind == RecordKind::Alert {
        columns += ", a.alert_id, a.revision";
        sql += " CROSS JOIN alerts a ON a.number = e.number";
        if let Some(alert_kind) = &filter.alert_kind {
            condition("a.kind = ?".into(), &[Value::Text(alert_kind.clone())]);
        }
        if let Some(severity) = filter.severity {
            condition("a.severity <= ?".into(), &[Value::Integer(i64::from(severity))]);
        }
    }
    if let Some(name) = &filter.name {
        sql += " CROSS JOIN names n ON n.number = e.number";
        condition("n.name LIKE ? ESCAPE '\\'".into(), &[Value::Text(pattern(name))]);
    }
    let direction = if filter.is_ascending { "ASC" } else { "DESC" };
    let conditions = conditions.join(" AND ");
    let order = format!("{main}.time {direction}, {main}.number {direction}");
    (format!("{columns}{sql} WHERE {conditions} ORDER BY {order}"), values)
}

/// A name with `*` as SQL has it.
fn pattern(name: &str) -> String {
    let mut pattern = String::new();
    for character in normal_name(name).chars() {
        match character {
            '*' => pattern.push('%'),
            '%' | '_' | '\\' => pattern.extend(['\\', character]),
            other => pattern.push(other),
        }
    }
    pattern
}

/// Whether an index has a later revision of an alert, before `to`.
fn is_superseded(
    connection: &Connection,
    alert_id: &str,
    revision: i64,
    to: Option<i64>,
) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached(
        "SELECT 1 FROM alerts WHERE alert_id = ? AND revision > ? AND time < ? LIMIT 1",
    )?;
    statement.exists(params![alert_id, revision, to.unwrap_or(i64::MAX)])
}

/// Segment and place of the batch that has this record.
fn locate(connection: &Connection, number: u64) -> rusqlite::Result<Option<(u64, u64)>> {
    let mut statement = connection.prepare_cached(
        "SELECT segment, offset FROM batches WHERE number <= ? ORDER BY number DESC LIMIT 1",
    )?;
    let found = statement
        .query_row([signed(number)], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
    Ok(found.optional()?.map(|(segment, offset)| (unsigned(segment), unsigned(offset))))
}

/// Batches of the record log, each unpacked once for an answer.
struct Batches<'a> {
    disk: &'a Arc<dyn Disk>,
    catalog: &'a Catalog,
    /// By place. `None`: gone or damaged. Bounded: [`MOST_BATCHES`].
    known: HashMap<(u64, u64), Option<Unpacked>>,
}

/// The records of a batch.
struct Unpacked {
    /// Number of the first one.
    first: u64,
    records: Vec<String>,
}

/// Batches kept while an answer is put together; one takes 4 MiB at most.
const MOST_BATCHES: usize = 4;
/// Bytes from which an answer takes no further record; one has 512 KiB at most.
const MOST_BYTES: usize = 16 << 20;

impl Batches<'_> {
    /// A record; `None` if it is gone or damaged.
    fn record(&mut self, segment: u64, offset: u64, number: u64) -> io::Result<Option<String>> {
        if !self.known.contains_key(&(segment, offset)) {
            if self.known.len() >= MOST_BATCHES {
                self.known.clear();
            }
            let batch = self.load(segment, offset)?;
            self.known.insert((segment, offset), batch);
        }
        let Some(Some(Unpacked { first, records })) = self.known.get(&(segment, offset)) else {
            return Ok(None);
        };
        let index = number.checked_sub(*first).and_then(|index| usize::try_from(index).ok());
        Ok(index.and_then(|index| records.get(index)).cloned())
    }

    fn load(&self, segment: u64, offset: u64) -> io::Result<Option<Unpacked>> {
        let Some(info) = self.catalog.lock().segments.get(&segment).copied() else {
            return Ok(None);
        };
        let file = match self.disk.open(&file_name(segment)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut scan = Scan::new(file, offset);
        let Some(batch) = scan.batch_here(info.length)? else { return Ok(None) };
        let mut scratch = Vec::new();
        let records = batch.records(&mut scratch).ok();
        Ok(records.map(|records| {
            let records = records.iter().map(|record| record.json.to_owned()).collect();
            Unpacked { first: batch.placed.number, records }
        }))
    }
}
