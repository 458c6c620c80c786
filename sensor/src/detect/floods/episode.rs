//! One flood, from the first tick of it to its last.

use packet::Address;
use wire::units::UnixNanos;

use super::targets::State;
use crate::detect::{Alert, Confidence, FloodFigures, Phase, SAMPLES, Technique};
use crate::flood::{Class, SAMPLED_ONE_IN, Senders, Sketch};

/// A flood, or what may become one.
pub(super) struct Episode {
    /// Id of its alert; 0: none is open.
    id: u64,
    revision: u32,
    /// Packets at which the next update is due: a power of ten.
    rung: u64,
    /// Seconds in a row in which it was a flood.
    pub(super) seconds: u8,
    /// The latest tick was as loud as a flood.
    is_loud: bool,
    /// When the latest tick with packets began.
    latest: UnixNanos,
    /// Packets a second from which on it may be a flood, when it began.
    pub(super) threshold: u64,
    pub(super) start: UnixNanos,
    /// Of the latest tick in which it was not quiet.
    pub(super) end: UnixNanos,
    packets: u64,
    completed: u64,
    peak: u64,
    workers: u64,
    senders: Senders,
    /// Senders of the packets with the lowest ranks: a sample of packets, not of senders.
    sample: Vec<(u32, Address)>,
    ports: Sketch<64>,
    sources: Sketch<128>,
}

/// Packets that are kept as a sample.
const SAMPLE: usize = 64;

impl Episode {
    /// Memory of one. Unit: bytes.
    pub(super) const MEMORY: usize = size_of::<Self>() + SAMPLE * size_of::<(u32, Address)>();

    pub(super) fn new(start: UnixNanos, threshold: u64) -> Self {
        Self {
            id: 0,
            revision: 0,
            rung: 0,
            seconds: 0,
            is_loud: false,
            latest: start,
            threshold: threshold.max(1),
            start,
            end: start,
            packets: 0,
            completed: 0,
            peak: 0,
            workers: 0,
            senders: Senders::default(),
            sample: Vec::new(),
            ports: Sketch::default(),
            sources: Sketch::default(),
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        self.id != 0
    }

    pub(super) const fn open(&mut self, id: u64) {
        self.id = id;
    }

    /// It grew to the next rung.
    pub(super) const fn has_climbed(&self) -> bool {
        self.packets >= self.rung
    }

    /// Takes in what came in a tick that is not quiet.
    pub(super) fn grow(&mut self, state: &State, class: Class, packets: u64, is_loud: bool) {
        (self.is_loud, self.latest) = (is_loud, state.tick.first);
        self.end = self.end.max(state.tick.last);
        self.packets += packets;
        self.completed += u64::from(state.tick.completed);
        self.workers |= state.tick.workers;
        if class == Class::Syn {
            self.ports.merge(&state.second.ports);
            self.sources.merge(&state.second.sources);
        }
        if let Some(one) = state.second.senders[class as usize].sample()
            && let Err(place) = self.sample.binary_search(&one)
            && place < SAMPLE
        {
            self.sample.truncate(SAMPLE - 1);
            self.sample.insert(place, one);
        }
    }

    /// That second was one of a flood, or not.
    pub(super) const fn note_flood(&mut self, is_flood: bool) {
        self.seconds = if is_flood { self.seconds.saturating_add(1) } else { 0 };
    }

    /// What came was no flood. Says whether it may become one: then it begins with the latest tick.
    pub(super) fn begin_anew(&mut self) -> bool {
        let may_become_one = self.is_loud;
        *self = Self { is_loud: may_become_one, ..Self::new(self.latest, self.threshold) };
        may_become_one
    }

    /// A second is over.
    pub(super) fn end_second(&mut self, state: &State, class: Class) {
        self.peak = self.peak.max(state.rates[class as usize]);
        self.senders.merge(&state.second.senders[class as usize]);
        if state.second.counts[class as usize] == 0 {
            self.is_loud = false;
        }
    }

    /// Packets of the sample that came so far.
    pub(super) const fn sampled(&self) -> u64 {
        self.packets / SAMPLED_ONE_IN
    }

    /// Distinct ports of the sample.
    pub(super) fn ports(&self) -> u64 {
        self.ports.estimate()
    }

    /// Distinct sources, of a SYN flood. Of few, the sketch has too few: then those count that sent the packets
    /// of the sample, if they sent several each.
    pub(super) fn sources(&self) -> u64 {
        const FEW: u64 = 8;
        let (sketched, distinct) = (self.sources.estimate(), self.distinct_in_sample());
        if sketched < FEW && distinct * 2 <= self.sample.len() as u64 {
            return distinct;
        }
        distinct.max(sketched * SAMPLED_ONE_IN)
    }

    fn distinct_in_sample(&self) -> u64 {
        let mut senders: Vec<_> = self.sample.iter().map(|(_, sender)| *sender).collect();
        senders.sort_unstable();
        senders.dedup();
        senders.len() as u64
    }

    /// Who sends more than half of it, if there is one: more than half of the sample, and of the bucket.
    pub(super) fn dominant(&self, key: u64) -> Option<Address> {
        let count =
            |sender: Address| self.sample.iter().filter(|(_, other)| *other == sender).count();
        let most = self.sample.iter().map(|(_, sender)| (count(*sender), *sender)).max()?;
        (most.0 * 2 > self.sample.len() && self.senders.may_be_most_of(most.1, key))
            .then_some(most.1)
    }

    /// May `sender` have sent a good part of it? Where very many send, nobody did.
    pub(super) fn may_be_flooder(&self, sender: Address, key: u64) -> bool {
        self.senders.is_empty() || self.senders.may_be_an_eighth_of(sender, key)
    }

    /// The next step of its life, to be told.
    pub(super) fn tell(
        &mut self,
        target: Address,
        class: Class,
        phase: Phase,
        time: UnixNanos,
        key: u64,
    ) -> Alert {
        self.revision += 1;
        self.rung = next_rung(self.packets);
        let is_syn = class == Class::Syn;
        let (technique, severity, confidence) = match class {
            Class::Syn => (Some(Technique::Syn), 1, Confidence::High),
            Class::Udp => (Some(Technique::Udp), 2, Confidence::Medium),
            Class::Icmp => (Some(Technique::Echo), 2, Confidence::Medium),
            Class::Rst | Class::Fragment => (None, 2, Confidence::Medium),
        };
        Alert {
            id: self.id,
            revision: self.revision,
            phase,
            kind: super::kind(class),
            technique,
            source: None,
            target: Some(target),
            confidence,
            severity,
            spoofable: true,
            distinct_ports: if is_syn { self.ports() } else { 0 },
            distinct_hosts: 1,
            distinct_sources: match self.dominant(key) {
                _ if is_syn => self.sources().max(1),
                _ => self.distinct_in_sample().max(1),
            },
            attempted: 0,
            answered: 0,
            refused: 0,
            silent: 0,
            is_estimated: true,
            sample_ports: Vec::new(),
            sample_hosts: vec![target],
            answered_ports: Vec::new(),
            sample_sources: self.sample_sources(),
            flood: Some(FloodFigures {
                packets: self.packets,
                peak_pps: self.peak,
                completed: self.completed,
            }),
            is_one_way: false,
            had_losses: false,
            start: self.start,
            end: self.end,
            time,
            workers: self.workers,
        }
    }

    /// Senders of the sample, those with the most packets in it, in order.
    fn sample_sources(&self) -> Vec<Address> {
        let mut senders: Vec<_> = self.sample.iter().map(|(_, sender)| *sender).collect();
        senders.sort_unstable();
        let mut counted: Vec<(usize, Address)> =
            senders.chunk_by(|one, other| one == other).map(|same| (same.len(), same[0])).collect();
        counted.sort_unstable_by_key(|&(count, sender)| (std::cmp::Reverse(count), sender));
        counted.truncate(SAMPLES);
        let mut senders: Vec<_> = counted.into_iter().map(|(_, sender)| sender).collect();
        senders.sort_unstable();
        senders
    }
}

/// The least power of ten above `packets`.
const fn next_rung(packets: u64) -> u64 {
    let mut rung = 10_u64;
    while rung <= packets {
        rung = rung.saturating_mul(10);
    }
    rung
}
