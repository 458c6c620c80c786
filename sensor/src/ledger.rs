//! The sensor's ledger, put together from the places where its parts are kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wire::ledger::Ledger;

use crate::counters::Counters;
use crate::recorder::RecorderCounters;
use crate::uplink::{Deliveries, UplinkStatus};

/// Where the parts of the ledger are kept.
#[derive(Clone)]
pub struct LedgerView {
    counters: Arc<Counters>,
    recorder: Arc<RecorderCounters>,
    uplink: Option<Arc<UplinkStatus>>,
    /// Set once the workers have ended and their counters stand still.
    is_final: Arc<AtomicBool>,
}

impl LedgerView {
    /// A view of these parts; without an uplink nothing is handed to it.
    #[must_use]
    pub fn new(
        counters: Arc<Counters>,
        recorder: Arc<RecorderCounters>,
        uplink: Option<Arc<UplinkStatus>>,
    ) -> Self {
        Self { counters, recorder, uplink, is_final: Arc::default() }
    }

    /// The workers' counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The workers have ended: from now on every sum must hold exactly.
    pub fn workers_ended(&self) {
        self.is_final.store(true, Ordering::Release);
    }

    fn workers(&self) -> Ledger {
        if self.is_final.load(Ordering::Acquire) {
            self.counters.ledger()
        } else {
            self.counters.running_ledger()
        }
    }

    /// The ledger as it stands. What waits between worker, recorder and uplink is in flight.
    #[must_use]
    pub fn read(&self) -> Ledger {
        let Some(uplink) = &self.uplink else { return self.workers() };
        // In this order: what was handed on is read before what was handed over, so that nothing is
        // handed on that was not handed over.
        let Deliveries { frames, records } = uplink.deliveries();
        let queue_full = self.recorder.uplink_queue_full();
        // What an earlier run left in the spool was not written by this one.
        let written = self.recorder.written() + uplink.spool.inherited();
        let mut ledger = self.workers();
        let exported: u64 = ledger.interfaces.iter().map(|one| one.exported).sum();
        ledger.frames = frames.to_ledger();
        ledger.frames.in_flight += exported.saturating_sub(ledger.frames.produced);
        ledger.frames.produced = exported;
        ledger.records = records.to_ledger();
        ledger.records.in_flight += written.saturating_sub(ledger.records.produced + queue_full);
        ledger.records.produced = written;
        if queue_full > 0 {
            ledger.records.lost.insert("uplink_queue_full".into(), queue_full);
        }
        ledger
    }

    /// Is a collector connected that has not yet acknowledged everything?
    #[must_use]
    pub fn is_delivering(&self) -> bool {
        let is_connected = self.uplink.as_ref().is_some_and(|up| up.metrics.is_connected());
        let ledger = self.read();
        is_connected && ledger.frames.in_flight + ledger.records.in_flight > 0
    }
}
