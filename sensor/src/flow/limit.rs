//! How many ended flows a worker hands out in a second.

use super::EndedFlow;
use crate::connections::begins_second;
use crate::counters::WorkerFlows;

/// A limit for each second of packet time. Flows of a single packet get half of it at most, so that a
/// flood of them leaves room for the others.
#[derive(Debug)]
pub struct FlowLimit {
    /// `None`: none is handed out, and none is missed.
    per_second: Option<u32>,
    second: u64,
    admitted: u32,
    admitted_single: u32,
}

impl FlowLimit {
    /// A limit of so many in a second; `None`: nobody wants them.
    #[must_use]
    pub const fn new(per_second: Option<u32>) -> Self {
        Self { per_second, second: 0, admitted: 0, admitted_single: 0 }
    }

    /// Does anybody want ended flows?
    #[must_use]
    pub const fn is_wanted(&self) -> bool {
        self.per_second.is_some()
    }

    /// May this flow be told?
    pub const fn admits(&mut self, flow: &EndedFlow) -> bool {
        let Some(per_second) = self.per_second else { return false };
        if begins_second(self.second, flow.time.seconds()) {
            (self.second, self.admitted, self.admitted_single) = (flow.time.seconds(), 0, 0);
        }
        let is_single = flow.packets[0] + flow.packets[1] <= 1;
        if self.admitted >= per_second
            || is_single && self.admitted_single >= per_second.div_ceil(2)
        {
            return false;
        }
        self.admitted += 1;
        self.admitted_single += is_single as u32;
        true
    }

    /// Hands on what the limit lets through, and counts the rest.
    pub fn apply(
        &mut self,
        counted: &WorkerFlows,
        sink: &mut impl FnMut(EndedFlow),
    ) -> impl FnMut(EndedFlow) {
        move |flow| {
            if self.admits(&flow) {
                sink(flow);
            } else if self.is_wanted() {
                counted.over_limit.add(1);
            }
        }
    }
}
