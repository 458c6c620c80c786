//! What networks and taps do to traffic before the sensor sees it.

use std::net::IpAddr;

use perf::frames;

use super::ordinary::ends_of;
use super::{MS, SECOND, Stage};

impl Stage {
    /// Loses so many frames in a thousand, at the tap: the hosts got them.
    pub fn lose(&mut self, in_thousand: u64) {
        let Self { frames, random, .. } = self;
        frames.retain(|_| !random.in_thousand(in_thousand));
    }

    /// Delays every frame by up to `most`, so that some overtake others.
    pub fn reorder(&mut self, most: u64) {
        for passing in &mut self.frames {
            passing.time += self.random.below(most + 1);
        }
    }

    /// Repeats so many frames in a thousand: TCP as a host does that got no acknowledgement, anything else as
    /// a network does that doubles a frame.
    pub fn repeat(&mut self, in_thousand: u64) {
        let mut again = Vec::new();
        for passing in &self.frames {
            if self.random.in_thousand(in_thousand) {
                let mut copy = passing.clone();
                let is_v4 = copy.frame[12..14] == frames::IPV4.to_be_bytes();
                let is_tcp = copy.frame[if is_v4 { 23 } else { 20 }] == frames::TCP;
                let most = if is_tcp { SECOND } else { MS };
                copy.time += self.random.between(most / 5, most);
                again.push(copy);
            }
        }
        self.frames.extend(again);
    }

    /// A tap on one direction: only frames whose sender is as `is_seen` wants it pass it.
    pub fn see_only_from(&mut self, is_seen: impl Fn(IpAddr) -> bool) {
        self.frames
            .retain(|passing| ends_of(&passing.frame).is_some_and(|(source, _)| is_seen(source)));
    }

    /// The capture begins at `time`: nothing before it was seen.
    pub fn begin_at(&mut self, time: u64) {
        self.frames.retain(|passing| passing.time >= time);
    }
}
