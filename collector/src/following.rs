//! Threads that make something from the record log. They read what is on the disk, keep their place
//! themselves, and hold nobody up: when they fail, they try again, and catch up.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::archive::retention::Retention;
use crate::archive::{Index, MOST_ROWS};
use crate::beats::Worker;
use crate::committer::wall_clock;
use crate::status::{Following, Shared, add};
use crate::store::events::{EventLog, Turn};

/// Writes the event log until the record log is closed and all of it is written. If it cannot be
/// written then, it is left after a while: the next start goes on.
pub fn write_events(mut events: EventLog, shared: &Shared) {
    let following = &shared.events;
    let mut failure = Failure::new("the event log cannot be written; trying again");
    following.next_number.store(events.next_number(), Ordering::Relaxed);
    loop {
        let now = shared.beats.now();
        shared.beats.beat(Worker::Events);
        following.note_backlog(shared.record_log.behind(events.next_number()), now);
        if shared.is_reopen_asked.swap(false, Ordering::Relaxed)
            && let Err(error) = events.reopen_if_moved()
        {
            failure.note(following, &error);
        }
        match events.turn() {
            Ok(turn) => {
                failure.is_over(following);
                following.next_number.store(events.next_number(), Ordering::Relaxed);
                match turn {
                    Turn::Written { gone } => add(&following.lost, gone),
                    Turn::Idle => events.wait(IDLE),
                    Turn::End => return,
                }
            }
            Err(error) => {
                failure.note(following, &error);
                if shared.record_log.lock().is_closed && failure.lasts_for(STOP_PATIENCE) {
                    return;
                }
                std::thread::sleep(RETRY);
            }
        }
    }
}

/// Indexes what is stored until the record log is closed, and removes what is to be kept no longer.
/// What is not indexed then is so at the next start.
pub fn index_events(mut index: Index, retention: &Retention, shared: &Shared) {
    let following = &shared.index;
    let mut failure = Failure::new("the index cannot be written; trying again");
    let mut not_removed = Failure::new("old records cannot be removed; trying again");
    let mut days_stay = Failure::new("the index of old records cannot be removed; trying again");
    let mut looked_at = Instant::now();
    while !shared.record_log.lock().is_closed {
        shared.beats.beat(Worker::Index);
        if looked_at.elapsed() >= LIMITS {
            looked_at = Instant::now();
            let written = shared.events.next_number.load(Ordering::Relaxed);
            match retention.turn(wall_clock(), written, &shared.removed) {
                Ok(_) => not_removed.is_over(&shared.removal),
                Err(error) => not_removed.note(&shared.removal, &error),
            }
            if let Err(error) = index.remove_old_days() {
                days_stay.note(&shared.removal, &error);
            } else {
                days_stay.is_over(&shared.removal);
            }
            let behind = shared.index_progress.behind(&shared.record_log);
            following.note_backlog(behind, shared.beats.now());
        }
        match index.turn() {
            Ok(indexed) => {
                failure.is_over(following);
                add(&shared.index_unreadable, indexed.unreadable);
                if indexed.is_done {
                    index.wait(IDLE);
                } else if indexed.rows < MOST_ROWS {
                    shared.record_log.wait_for_end(GATHER);
                }
            }
            Err(error) => {
                failure.note(following, &error);
                shared.record_log.wait_for_end(RETRY);
            }
        }
    }
    index.close();
}

/// What is said about failures: a line per minute, and one when it is over.
struct Failure {
    text: &'static str,
    since: Option<Instant>,
    last_line: Option<Instant>,
}

impl Failure {
    const fn new(text: &'static str) -> Self {
        Self { text, since: None, last_line: None }
    }

    fn note(&mut self, following: &Following, error: &dyn std::error::Error) {
        add(&following.errors, 1);
        following.is_failing.store(true, Ordering::Relaxed);
        self.since.get_or_insert_with(Instant::now);
        if self.last_line.is_none_or(|last| last.elapsed() >= LINES) {
            self.last_line = Some(Instant::now());
            let cause = error.source().map(ToString::to_string);
            tracing::error!(%error, cause, "{}", self.text);
        }
    }

    fn is_over(&mut self, following: &Following) {
        if self.since.take().is_some() {
            following.is_failing.store(false, Ordering::Relaxed);
            tracing::info!("it goes on after: {}", self.text);
        }
    }

    fn lasts_for(&self, time: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= time)
    }
}

/// How long a thread waits for more before it looks around.
const IDLE: Duration = Duration::from_millis(500);
/// How long the index waits for more records after a transaction that had room for them.
const GATHER: Duration = Duration::from_millis(500);
/// Time between two looks at the limits.
const LIMITS: Duration = Duration::from_secs(1);
/// Pause before a failed operation is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Time between two log lines about the same failure.
const LINES: Duration = Duration::from_secs(60);
/// How long a stop waits for what fails.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
