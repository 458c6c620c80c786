//! Times in which an answer could have been lost: silence in them proves nothing.

use std::time::Duration;

use wire::units::UnixNanos;

/// Spans of time with losses. Bounded: beyond a few spans, neighbours become one.
pub(super) struct Losses {
    /// In order, no two touch.
    spans: Vec<(UnixNanos, UnixNanos)>,
    keep: Duration,
}

const SPANS: usize = 32;

impl Losses {
    pub(super) fn new(silent_after: Duration) -> Self {
        // Longer than an attempt waits for its answer, by as much as evidence may come late.
        Self {
            spans: Vec::with_capacity(SPANS + 1),
            keep: silent_after * 2 + Duration::from_secs(5),
        }
    }

    /// Something was lost between `from` and `to`.
    pub(super) fn note(&mut self, from: UnixNanos, to: UnixNanos) {
        let (mut from, mut to) = (from.min(to), to);
        self.spans.retain(|span| {
            let touches = span.0 <= to && from <= span.1;
            if touches {
                (from, to) = (from.min(span.0), to.max(span.1));
            }
            !touches
        });
        let place = self.spans.partition_point(|span| span.0 < from);
        self.spans.insert(place, (from, to));
        if self.spans.len() > SPANS {
            let second = self.spans.remove(1);
            self.spans[0].1 = second.1;
        }
    }

    /// Was something lost at any time from `from` to `to`?
    pub(super) fn touch(&self, from: UnixNanos, to: UnixNanos) -> bool {
        self.spans.iter().any(|span| span.0 <= to && from <= span.1)
    }

    /// Forgets what is too long ago to matter.
    pub(super) fn forget(&mut self, now: UnixNanos) {
        let oldest = now.minus(self.keep);
        self.spans.retain(|span| span.1 >= oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touches(losses: &Losses, from: u64, to: u64) -> bool {
        losses.touch(UnixNanos(from), UnixNanos(to))
    }

    #[test]
    fn spans_touch_what_overlaps_them_and_nothing_else() {
        let mut losses = Losses::new(Duration::from_secs(3));
        for (from, to) in [(100, 200), (500, 600), (190, 300)] {
            losses.note(UnixNanos(from), UnixNanos(to));
        }
        assert_eq!(losses.spans.len(), 2);
        assert!(touches(&losses, 0, 100) && touches(&losses, 250, 260));
        assert!(!touches(&losses, 301, 499) && !touches(&losses, 601, 700));
    }

    #[test]
    fn many_spans_become_fewer_and_cover_no_less() {
        let mut losses = Losses::new(Duration::from_secs(3));
        for n in 0..1000 {
            losses.note(UnixNanos(n * 10), UnixNanos(n * 10 + 5));
        }
        assert!(losses.spans.len() <= SPANS);
        assert!((0..1000).all(|n| touches(&losses, n * 10 + 2, n * 10 + 3)));
    }

    #[test]
    fn old_spans_are_forgotten() {
        let mut losses = Losses::new(Duration::from_secs(3));
        losses.note(UnixNanos(0), UnixNanos(10));
        losses.forget(UnixNanos(12_000_000_000));
        assert!(!touches(&losses, 0, 10));
    }
}
