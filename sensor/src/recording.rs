//! The recorder's thread: where events come together, and the last one is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::connections::NewConnection;
use crate::devices::Devices;
use crate::event::LiveStats;
use crate::flow::EndedFlow;
use crate::health;
use crate::ledger::LedgerView;
use crate::pipeline::{DELIVERY_LIMIT, ToRecorder};
use crate::recorder::{Recorder, UnwrittenFlows};
use crate::timing::Timing;

/// How often the recorder looks for new connections; bounds how old a line is when it is written.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The recorder's thread: where events come together.
pub struct RecorderDesk {
    /// Writes them.
    pub recorder: Recorder,
    /// Alerts and news.
    pub news: Receiver<ToRecorder>,
    /// New connections, one ring for each worker.
    pub connections: Vec<rtrb::Consumer<NewConnection>>,
    /// Flows that ended, one ring for each worker.
    pub flows: Vec<rtrb::Consumer<EndedFlow>>,
    /// The ledger, for `stats` events.
    pub ledger: LedgerView,
    /// Latency of frames, for `stats` events.
    pub timing: Arc<Timing>,
    /// The interfaces' own counters, for `stats` events.
    pub devices: Arc<Devices>,
    /// When the sensor started.
    pub started: Instant,
    /// Time between `stats` events.
    pub stats_interval: Duration,
    /// Connections over the limit or without room in the queue, of all workers, as last seen.
    pub unwritten_by_workers: u64,
    /// Flows without an event of their own, of all workers, as last seen.
    pub unwritten_flows: UnwrittenFlows,
    /// Set when nobody reads standard output any more.
    pub reader_gone: Arc<AtomicBool>,
}

impl RecorderDesk {
    /// The thread body: runs until it is told that everyone else has ended.
    pub fn run(mut self) {
        let mut next_stats = self.started + self.stats_interval;
        loop {
            let is_last = match self.news.recv_timeout(LOOK_EVERY) {
                Ok(ToRecorder::Finish) | Err(RecvTimeoutError::Disconnected) => true,
                Ok(news) => {
                    self.take(news);
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
            };
            self.take_connections();
            self.take_flows();
            if Instant::now() >= next_stats {
                self.stats();
                next_stats += self.stats_interval;
            }
            if is_last {
                break;
            }
            if self.news.is_empty() {
                self.recorder.second_over(health::now());
                self.recorder.flush();
            }
            if self.recorder.is_reader_gone() {
                self.reader_gone.store(true, Ordering::Relaxed);
            }
        }
        self.recorder.finish(health::now());
        self.wait_for_delivery();
        self.stats();
        self.recorder.flush();
    }

    fn take(&mut self, news: ToRecorder) {
        match news {
            ToRecorder::Alert(alert) => self.recorder.alert(&alert),
            ToRecorder::AlertsSummarised(time, summary) => {
                self.recorder.alerts_summarised(time, summary);
            }
            ToRecorder::Interface(time, interface, change) => {
                self.recorder.interface(time, &interface, change);
            }
            ToRecorder::Worker(time, worker, change) => self.recorder.worker(time, worker, change),
            ToRecorder::Detector(time, change) => self.recorder.detector(time, change),
            ToRecorder::Finish => {}
        }
    }

    fn take_connections(&mut self) {
        for ring in &mut self.connections {
            while let Ok(connection) = ring.pop() {
                self.recorder.connection(&connection);
            }
        }
        let counters = self.ledger.counters();
        let unwritten = counters.sum(|c| &c.connections_over_limit)
            + counters.sum(|c| &c.connections_queue_full);
        self.recorder.connections_not_written(unwritten - self.unwritten_by_workers);
        self.unwritten_by_workers = unwritten;
    }

    fn take_flows(&mut self) {
        for ring in &mut self.flows {
            while let Ok(flow) = ring.pop() {
                self.recorder.flow(&flow);
            }
        }
        let unwritten = UnwrittenFlows::of(self.ledger.counters());
        self.recorder.flows_not_written(unwritten.since(self.unwritten_flows));
        self.unwritten_flows = unwritten;
    }

    fn stats(&mut self) {
        let decoder = self.ledger.counters().decoder_stats();
        let ledger = self.ledger.read();
        let live = LiveStats { latency: self.timing.latency(), devices: self.devices.refresh() };
        let uptime_seconds = self.started.elapsed().as_secs();
        self.recorder.stats(health::now(), uptime_seconds, decoder, &ledger, Some(&live));
    }

    /// The last `stats` event is to show what became of everything before it.
    fn wait_for_delivery(&self) {
        let limit = Instant::now() + DELIVERY_LIMIT;
        while self.ledger.is_delivering() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
