//! The index of one day: a SQLite file, and how it is written.
//!
//! ```text
//!   progress   how far the record log is in it, changed in the transaction that adds the rows
//!   batches    where in the record log a record is
//!   events     one row for each record, by kind and time
//!   hosts      the same by address: a source or target that is asked for is found at once
//!   alerts, names   what only records of these kinds have
//! ```
//!
//! A row is found by its number, the position of the record among all that were ever stored. The
//! records themselves are not here but in the record log.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension, params};
use wire::records::RecordKind;

use super::row::{Row, address_bytes};
use crate::store::log::batch::Batch;
use crate::store::log::catalog::Day;
use crate::store::log::marks::Position;

/// Version of the tables; a file of another one is made anew.
const VERSION: i64 = 1;

const TABLES: &str = "
    CREATE TABLE progress (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        segment INTEGER NOT NULL, offset INTEGER NOT NULL, number INTEGER NOT NULL,
        first_time INTEGER, last_time INTEGER);
    CREATE TABLE batches (
        number INTEGER PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL);
    CREATE TABLE sensors (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE events (
        kind INTEGER NOT NULL, time INTEGER NOT NULL, number INTEGER NOT NULL,
        sensor INTEGER NOT NULL, source BLOB, target BLOB, source_port INTEGER,
        target_port INTEGER, protocol TEXT, community_id TEXT,
        PRIMARY KEY (kind, time, number)) WITHOUT ROWID;
    CREATE TABLE hosts (
        address BLOB NOT NULL, kind INTEGER NOT NULL, time INTEGER NOT NULL,
        number INTEGER NOT NULL, PRIMARY KEY (address, kind, time, number)) WITHOUT ROWID;
    CREATE TABLE alerts (
        number INTEGER PRIMARY KEY, time INTEGER NOT NULL, alert_id TEXT NOT NULL,
        revision INTEGER NOT NULL, kind TEXT NOT NULL, severity INTEGER NOT NULL);
    CREATE INDEX alerts_by_id ON alerts (alert_id, revision);
    CREATE TABLE names (number INTEGER PRIMARY KEY, name TEXT NOT NULL);
    PRAGMA user_version = 1;";

/// The index of one day, for writing.
pub struct DayIndex {
    connection: Connection,
    day: Day,
    position: Position,
    times: Times,
    /// Numbers of the sensors that were seen.
    sensors: HashMap<String, i64>,
    /// Addresses of the rows of this transaction. Written in their order, so that each page of the
    /// table changes once.
    hosts: Vec<HostRow>,
    /// Records of this transaction.
    rows: u64,
    /// Records that cannot be read, of this transaction.
    unreadable: u64,
}

/// Address, kind, time and number.
type HostRow = (Vec<u8>, u8, i64, i64);
/// Of the first and of the last event; `None` if there is none.
pub(super) type Times = Option<(i64, i64)>;

impl DayIndex {
    /// Opens the index of a day, which begins at `start`, or makes it. A file that is none, or of
    /// another version, is made anew; true if so.
    ///
    /// # Errors
    /// What SQLite says, of the disk.
    pub fn open(folder: &Path, day: Day, start: Position) -> rusqlite::Result<(Self, bool)> {
        let path = file_path(folder, day);
        let is_there = path.exists();
        if is_there {
            match Self::open_existing(&path, day) {
                Ok(Some(index)) => return Ok((index, false)),
                Ok(None) => {}
                Err(error) if is_damage(&error) => {
                    tracing::warn!(day = %name(day), %error, "the index is damaged");
                }
                Err(error) => return Err(error),
            }
            remove(folder, day);
        }
        let connection = connect(&path)?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        connection.execute_batch(TABLES)?;
        connection.execute(
            "INSERT INTO progress VALUES (1, ?, ?, ?, NULL, NULL)",
            params![signed(start.segment), signed(start.offset), signed(start.number)],
        )?;
        connection.execute_batch("COMMIT")?;
        Ok((Self::new(connection, day, start, None, HashMap::new()), true))
    }

    fn open_existing(path: &Path, day: Day) -> rusqlite::Result<Option<Self>> {
        let connection = connect(path)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != VERSION {
            return Ok(None);
        }
        let Some((position, times)) = progress(&connection)? else { return Ok(None) };
        let mut sensors = HashMap::new();
        let mut statement = connection.prepare("SELECT name, id FROM sensors")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            sensors.insert(row.get(0)?, row.get(1)?);
        }
        drop(rows);
        drop(statement);
        Ok(Some(Self::new(connection, day, position, times, sensors)))
    }

    const fn new(
        connection: Connection,
        day: Day,
        position: Position,
        times: Times,
        sensors: HashMap<String, i64>,
    ) -> Self {
        let hosts = Vec::new();
        Self { connection, day, position, times, sensors, hosts, rows: 0, unreadable: 0 }
    }

    /// The day.
    #[must_use]
    pub const fn day(&self) -> Day {
        self.day
    }

    /// How far the record log is in it.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn begin(&mut self) -> rusqlite::Result<()> {
        self.hosts.clear();
        (self.rows, self.unreadable) = (0, 0);
        self.connection.execute_batch("BEGIN IMMEDIATE")
    }

    /// Adds the records of a batch that lies at `at`.
    ///
    /// # Errors
    /// What SQLite says; the transaction is to be given up then, and this value with it.
    pub fn add(
        &mut self,
        at: Position,
        batch: &Batch<'_>,
        scratch: &mut Vec<u8>,
    ) -> rusqlite::Result<()> {
        let sensor = self.sensor(batch.sensor)?;
        let records = match batch.records(scratch) {
            Ok(records) => records,
            Err(fault) => {
                tracing::error!(number = at.number, fault, "unreadable batch");
                self.unreadable += u64::from(batch.count);
                return Ok(());
            }
        };
        let Self { connection, times, hosts, .. } = self;
        let place = params![signed(at.number), signed(at.segment), signed(at.offset)];
        connection.prepare_cached("INSERT INTO batches VALUES (?, ?, ?)")?.execute(place)?;
        let mut insert = connection
            .prepare_cached("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?;
        for (record, number) in records.iter().zip(signed(at.number)..) {
            let stored_at = batch.placed.stored_at;
            let row = Row::read(record.json, stored_at).unwrap_or_else(|| {
                self.unreadable += 1;
                Row::unreadable(stored_at)
            });
            let (first, last) = times.get_or_insert((row.time, row.time));
            *first = row.time.min(*first);
            *last = row.time.max(*last);
            insert_event(&mut insert, record.kind, number, sensor, &row)?;
            for address in [row.source, row.target].into_iter().flatten() {
                hosts.push((address_bytes(address), record.kind as u8, row.time, number));
            }
            insert_details(connection, number, &row)?;
        }
        self.rows += u64::from(batch.count);
        Ok(())
    }

    /// Ends the transaction: the record log is in the index up to `position`. Says how many records it
    /// had, and how many of them could not be read.
    ///
    /// # Errors
    /// What SQLite says; this value is to be given up then.
    pub fn commit(&mut self, position: Position) -> rusqlite::Result<(u64, u64)> {
        self.hosts.sort_unstable();
        self.hosts.dedup();
        let mut insert = self.connection.prepare_cached("INSERT INTO hosts VALUES (?, ?, ?, ?)")?;
        for (address, kind, time, number) in self.hosts.drain(..) {
            insert.execute(params![address, kind, time, number])?;
        }
        drop(insert);
        let Position { segment, offset, number } = position;
        let (first, last) = self.times.unzip();
        self.connection.execute(
            "UPDATE progress SET segment = ?, offset = ?, number = ?, first_time = ?, last_time = ?",
            params![signed(segment), signed(offset), signed(number), first, last],
        )?;
        self.connection.execute_batch("COMMIT")?;
        self.position = position;
        Ok((self.rows, self.unreadable))
    }

    /// Moves all to the file itself, when nothing follows for now.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn rest(&self) -> rusqlite::Result<()> {
        // Readers may keep it from succeeding, which the answer would say; then it stays as it is.
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    fn sensor(&mut self, name: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.sensors.get(name) {
            return Ok(*id);
        }
        self.connection.execute("INSERT INTO sensors (name) VALUES (?)", [name])?;
        let id = self.connection.last_insert_rowid();
        self.sensors.insert(name.to_owned(), id);
        Ok(id)
    }
}

fn insert_event(
    insert: &mut CachedStatement<'_>,
    kind: RecordKind,
    number: i64,
    sensor: i64,
    row: &Row<'_>,
) -> rusqlite::Result<()> {
    insert.execute(params![
        kind as u8,
        row.time,
        number,
        sensor,
        row.source.map(address_bytes),
        row.target.map(address_bytes),
        row.source_port,
        row.target_port,
        row.protocol.as_deref(),
        row.community_id.as_deref(),
    ])?;
    Ok(())
}

/// What only some kinds have.
fn insert_details(connection: &Connection, number: i64, row: &Row<'_>) -> rusqlite::Result<()> {
    if let Some(alert) = &row.alert {
        let mut insert =
            connection.prepare_cached("INSERT INTO alerts VALUES (?, ?, ?, ?, ?, ?)")?;
        let (id, kind) = (&*alert.alert_id, &*alert.kind);
        insert.execute(params![number, row.time, id, alert.revision, kind, alert.severity])?;
    }
    if let Some(name) = &row.name {
        let mut insert = connection.prepare_cached("INSERT INTO names VALUES (?, ?)")?;
        insert.execute(params![number, name])?;
    }
    Ok(())
}

/// How far the record log is in the index of a day; `None` if there is none that can be read.
pub(super) fn position(folder: &Path, day: Day) -> Option<Position> {
    let path = file_path(folder, day);
    if !path.exists() {
        return None;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).ok()?;
    times(&connection).ok()?.map(|(position, _)| position)
}

/// How far the record log is in an index, and the times of its first and last event; `None` if it is only being made.
pub(super) fn times(connection: &Connection) -> rusqlite::Result<Option<(Position, Times)>> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == VERSION { progress(connection) } else { Ok(None) }
}

/// How far the record log is in an index, and the times of its first and last event.
fn progress(connection: &Connection) -> rusqlite::Result<Option<(Position, Times)>> {
    let mut statement = connection
        .prepare_cached("SELECT segment, offset, number, first_time, last_time FROM progress")?;
    let row = statement.query_row([], |row| {
        let position = Position {
            segment: unsigned(row.get(0)?),
            offset: unsigned(row.get(1)?),
            number: unsigned(row.get(2)?),
        };
        let times: (Option<i64>, Option<i64>) = (row.get(3)?, row.get(4)?);
        Ok((position, times.0.zip(times.1)))
    });
    row.optional()
}

/// Whether an error says that the file is none of ours any more, so that it helps to make it anew.
#[must_use]
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode;
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => matches!(
            failure.code,
            ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                // A table that is missing, or another one than ours.
                | ErrorCode::Unknown
        ),
        rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::SqlInputError { .. } => true,
        _ => false,
    }
}

/// The file of a day.
#[must_use]
pub fn file_path(folder: &Path, day: Day) -> PathBuf {
    folder.join(format!("{}.sqlite", name(day)))
}

/// `2026-11-21`.
#[must_use]
pub fn name(day: Day) -> String {
    let nanos = i128::from(day.start().0);
    let start = jiff::Timestamp::from_nanosecond(nanos).unwrap_or(jiff::Timestamp::MAX);
    start.strftime("%Y-%m-%d").to_string()
}

/// The day of a file name; `None` for other files.
#[must_use]
pub fn day_of(file_name: &str) -> Option<Day> {
    let date: jiff::civil::Date = file_name.strip_suffix(".sqlite")?.parse().ok()?;
    let start = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    let day = Day::of(wire::units::UnixNanos(u64::try_from(start.as_nanosecond()).ok()?));
    (name(day) == file_name.strip_suffix(".sqlite")?).then_some(day)
}

/// Removes the files of a day.
pub fn remove(folder: &Path, day: Day) {
    let path = file_path(folder, day);
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.clone().into_os_string();
        file.push(suffix);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(file = %Path::new(&file).display(), %error, "cannot remove an index");
            }
            _ => {}
        }
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // Losing the last transactions at a power cut is no harm: the place in the log goes with them.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -65536;
         PRAGMA wal_autocheckpoint = 32000; PRAGMA journal_size_limit = 67108864;",
    )?;
    connection.set_prepared_statement_cache_capacity(16);
    Ok(connection)
}

/// Numbers as SQLite keeps them.
#[must_use]
pub const fn signed(number: u64) -> i64 {
    // No number of ours comes near 2^63.
    number.cast_signed()
}

/// See [`signed`].
#[must_use]
pub const fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}
