//! The sensor's ledger, put together from the places where its parts are kept.

use std::sync::Arc;

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
}

impl LedgerView {
    /// A view of these parts; without an uplink nothing is handed to it.
    #[must_use]
    pub const fn new(
        counters: Arc<Counters>,
        recorder: Arc<RecorderCounters>,
        uplink: Option<Arc<UplinkStatus>>,
    ) -> Self {
        Self { counters, recorder, uplink }
    }

    /// The workers' counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The ledger as it stands. What waits between worker, recorder and uplink is in flight.
    #[must_use]
    pub fn read(&self) -> Ledger {
        let Some(uplink) = &self.uplink else { return self.counters.ledger() };
        // In this order: what was handed on is read before what was handed over, so that nothing is
        // handed on that was not handed over.
        let Deliveries { frames, records } = uplink.deliveries();
        let queue_full = self.recorder.uplink_queue_full();
        let written = self.recorder.written();
        let mut ledger = self.counters.ledger();
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
