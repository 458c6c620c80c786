//! How much evidence a source held that had to give way: whether a scan may have been hidden by it.

/// How far a source was on its way to a threshold: its contacts that failed or may yet fail, against the threshold
/// that was closest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Held {
    /// Nothing failed, and nothing that waits for an answer can fail.
    Nothing,
    /// Less than half of any threshold: what ordinary hosts, and the sources of a flood, have.
    Little,
    /// Half of a threshold or more.
    Half,
    /// Three quarters of a threshold or more.
    Near,
    /// As much as a threshold, which an alert told as a rule.
    Reached,
}

impl Held {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Nothing, Self::Little, Self::Half, Self::Near, Self::Reached];

    /// The word in metrics and events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Little => "little",
            Self::Half => "half",
            Self::Near => "near",
            Self::Reached => "reached",
        }
    }

    /// Of so many contacts, with this threshold.
    pub(super) const fn of(contacts: u32, threshold: u32) -> Self {
        let (quarters, threshold) = (contacts as u64 * 4, threshold as u64);
        match contacts {
            0 => Self::Nothing,
            _ if quarters >= threshold * 4 => Self::Reached,
            _ if quarters >= threshold * 3 => Self::Near,
            _ if quarters >= threshold * 2 => Self::Half,
            _ => Self::Little,
        }
    }
}

/// What gave way, by how much evidence its source held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenWay([u64; Held::ALL.len()]);

impl GivenWay {
    /// One more.
    pub const fn note(&mut self, held: Held) {
        self.0[held as usize] += 1;
    }

    /// Of sources that held so much.
    #[must_use]
    pub const fn of(&self, held: Held) -> u64 {
        self.0[held as usize]
    }

    /// All.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What gave way since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(std::array::from_fn(|held| self.0[held].saturating_sub(before.0[held])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_halves_and_quarters_of_the_threshold() {
        let of_ten = |contacts| Held::of(contacts, 10).name();
        let bands = [0, 1, 4, 5, 7, 8, 9, 10, 11].map(of_ten);
        let expected =
            ["none", "little", "little", "half", "half", "near", "near", "reached", "reached"];
        assert_eq!(bands, expected);
        assert_eq!(Held::of(u32::MAX, u32::MAX), Held::Reached);
        assert_eq!(Held::of(0, 1), Held::Nothing);
    }
}
