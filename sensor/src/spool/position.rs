//! The file that says which spool this is, what is acknowledged, and which numbers may be in use.
//!
//! ```text
//!   PATH/position: two slots of 512 bytes, written in turn, so that one of them is always whole
//!
//!   0          8        12   16           24            32          48          64           72    508     512
//!   ├──────────┼────────┼────┼────────────┼─────────────┼───────────┼───────────┼────────────┼─────┼───────┤
//!   │"RWSPOSN1"│ version│ 0  │ generation │ spool_epoch │ acked × 2 │ bound × 2 │ written at │ 0   │ crc32c│
//! ```
//!
//! Overwritten in place: a full disk takes it too. A slot is written only after the other one was
//! brought to the disk; the one with the higher generation counts. `acked` may lag behind: what is sent
//! again the collector knows. No number at `bound` or above was used when it was written, and since then, if
//! it could not be written again, at most one in each microsecond.

use std::io;

use wire::units::{Sequence, UnixNanos};

use super::disk::DiskFile;

const MAGIC: &[u8; 8] = b"RWSPOSN1";
const VERSION: u32 = 1;
/// Bytes of a slot: what a disk writes at once.
const SLOT: usize = 512;

/// What the file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Grows with each write.
    pub generation: u64,
    /// The spool. Never 0.
    pub spool_epoch: u64,
    /// Acknowledged of each lane.
    pub acked: [Sequence; 2],
    /// Below this are the numbers that each lane may use until it is written anew.
    pub bound: [Sequence; 2],
    /// When it was written.
    pub written_at: UnixNanos,
}

impl Position {
    /// The bytes of a slot.
    fn to_bytes(self) -> [u8; SLOT] {
        let Self { generation, spool_epoch, acked, bound, written_at } = self;
        let mut bytes = [0; SLOT];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let ([acked_0, acked_1], [bound_0, bound_1]) = (acked, bound);
        let lanes = [acked_0.0, acked_1.0, bound_0.0, bound_1.0];
        let numbers = [generation, spool_epoch].into_iter().chain(lanes).chain([written_at.0]);
        for (place, number) in bytes[16..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..SLOT - 4]);
        bytes[SLOT - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a slot; none if it is not whole.
    fn from_bytes(bytes: &[u8; SLOT]) -> Option<Self> {
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        let is_whole = covered[..8] == *MAGIC
            && covered[8..12] == VERSION.to_le_bytes()
            && u32::from_le_bytes(*crc) == crc32c::crc32c(covered);
        let mut numbers = [0; 7];
        for (number, place) in numbers.iter_mut().zip(covered[16..].as_chunks::<8>().0) {
            *number = u64::from_le_bytes(*place);
        }
        let [generation, spool_epoch, acked_0, acked_1, bound_0, bound_1, written_at] = numbers;
        (is_whole && spool_epoch != 0).then_some(Self {
            generation,
            spool_epoch,
            acked: [Sequence(acked_0), Sequence(acked_1)],
            bound: [Sequence(bound_0), Sequence(bound_1)],
            written_at: UnixNanos(written_at),
        })
    }

    /// Reads the file; none if no slot is whole.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(file: &dyn DiskFile) -> io::Result<Option<Self>> {
        let mut newest: Option<Self> = None;
        for slot in 0..2 {
            let mut bytes = [0; SLOT];
            let mut have = 0;
            while have < SLOT {
                match file.read_at(&mut bytes[have..], slot * SLOT as u64 + have as u64)? {
                    0 => break,
                    read => have += read,
                }
            }
            let found = Self::from_bytes(&bytes);
            if found.is_some_and(|it| newest.is_none_or(|old| it.generation > old.generation)) {
                newest = found;
            }
        }
        Ok(newest)
    }

    /// Writes the next slot. It must be brought to the disk before the next call.
    ///
    /// # Errors
    /// The file cannot be written; the other slot still stands.
    pub fn write(&self, file: &dyn DiskFile) -> io::Result<()> {
        file.write_at(&self.to_bytes(), self.generation % 2 * SLOT as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::Disk;
    use super::super::testing::MemoryDisk;
    use super::*;

    fn position(generation: u64) -> Position {
        Position {
            generation,
            spool_epoch: 7,
            acked: [Sequence(generation * 10), Sequence(2)],
            bound: [Sequence(1 << 40), Sequence(1 << 41)],
            written_at: UnixNanos(99),
        }
    }

    #[test]
    fn whatever_becomes_of_the_slot_that_is_written_the_other_one_stands() {
        let disk = MemoryDisk::default();
        let file = disk.create("/position".as_ref()).unwrap();
        assert_eq!(Position::read(file.as_ref()).unwrap(), None);
        position(1).write(file.as_ref()).unwrap();
        position(2).write(file.as_ref()).unwrap();
        assert_eq!(Position::read(file.as_ref()).unwrap(), Some(position(2)));
        // Slot 0 has generation 2: every bit of it, flipped, gives generation 1.
        for byte in (0..512).step_by(7).chain(0..72).chain(500..512) {
            let mut bytes = [0];
            file.read_at(&mut bytes, byte).unwrap();
            for bit in 0..8 {
                file.write_at(&[bytes[0] ^ 1 << bit], byte).unwrap();
                assert_eq!(
                    Position::read(file.as_ref()).unwrap(),
                    Some(position(1)),
                    "{byte}.{bit}"
                );
            }
            file.write_at(&bytes, byte).unwrap();
        }
        assert_eq!(Position::read(file.as_ref()).unwrap(), Some(position(2)));
    }

    #[test]
    fn a_file_cut_off_anywhere_gives_an_older_position_or_none() {
        let disk = MemoryDisk::default();
        let file = disk.create("/position".as_ref()).unwrap();
        position(2).write(file.as_ref()).unwrap();
        position(3).write(file.as_ref()).unwrap();
        for len in (0..1024).rev() {
            file.set_len(len).unwrap();
            let expected = (len >= 512).then(|| position(2));
            assert_eq!(Position::read(file.as_ref()).unwrap(), expected, "{len}");
        }
    }
}
