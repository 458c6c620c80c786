//! Valid sessions, changed at random: the decoder refuses or decodes them, never panics, and never takes
//! more memory than its limits say. `RINGWATCH_MUTATIONS` sets how many; a million take some minutes in a
//! debug build.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use wire::codec::{Decoder, READ_BUFFER};
use wire::header::{HEADER_LEN, MAX_PAYLOAD, MAX_RAW};
use wire::message::Message;

/// What decoding may hold at once: the read buffer, a payload that is longer than it, a decompressed
/// batch, and a little for control messages.
const MEMORY: u64 = (READ_BUFFER + HEADER_LEN + MAX_PAYLOAD + MAX_RAW + (1 << 20)) as u64;

/// A small deterministic generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % sides.max(1)
    }
}

/// Both directions of a session, one behind the other, of each minor version.
fn sessions() -> Vec<Vec<u8>> {
    let texts = [include_str!("golden/minor0.hex"), include_str!("golden/minor1.hex")];
    let bytes = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let digits: String = lines.map(|line| line.split('#').next().unwrap().trim()).collect();
        let pairs =
            digits.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).unwrap());
        pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    };
    texts.map(bytes).into()
}

/// Where the messages of a session begin.
fn messages(session: &[u8]) -> Vec<usize> {
    let (mut at, mut places) = (0, Vec::new());
    while let Some(len) = session.get(at + 20..at + 24) {
        places.push(at);
        at += HEADER_LEN + u32::from_le_bytes(len.try_into().unwrap()) as usize;
    }
    places
}

fn mutate(session: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = session.to_vec();
    for _ in 0..1 + dice.roll(4) {
        let at = dice.roll(bytes.len());
        let len = 1 + dice.roll(40);
        let end = (at + len).min(bytes.len());
        match dice.roll(6) {
            0 => bytes[at] ^= 1 << dice.roll(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][dice.roll(5)],
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                let to = dice.roll(bytes.len());
                bytes.splice(to..to, copy);
            }
            4 => bytes.truncate(at.max(1)),
            _ => {
                // A length field of some message.
                let places = messages(&bytes);
                if let Some(place) = places.get(dice.roll(places.len())) {
                    let number = [0, 1, 1 << 20, 4 << 20, u32::MAX, 66_561][dice.roll(6)];
                    let field = place + [16, 20][dice.roll(2)];
                    bytes[field..field + 4].copy_from_slice(&number.to_le_bytes());
                }
            }
        }
        if bytes.is_empty() {
            return session.to_vec();
        }
    }
    bytes
}

/// Gives every message the checksum that it should have, so that what lies behind it is reached.
fn reseal(bytes: &mut [u8]) {
    for place in messages(bytes) {
        let len = u32::from_le_bytes(bytes[place + 20..place + 24].try_into().unwrap()) as usize;
        let Some(message) = bytes.get_mut(place..place + HEADER_LEN + len) else { return };
        message[24..28].fill(0);
        let crc = crc32c::crc32c(message);
        message[24..28].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Messages that were decoded, and whether the rest was refused.
fn decode(mut bytes: &[u8], piece: usize) -> (u64, bool) {
    let (mut decoder, mut count) = (Decoder::new(), 0);
    while !bytes.is_empty() {
        let taken = decoder.push(&bytes[..piece.min(bytes.len())]);
        bytes = &bytes[taken..];
        loop {
            match decoder.next_message() {
                Ok(None) => break,
                Err(_) => return (count, true),
                Ok(Some(Message::Control(_))) => count += 1,
                Ok(Some(Message::Records(batch))) => count += u64::from(batch.iter().count() > 0),
                Ok(Some(Message::Frames(batch))) => count += u64::from(batch.iter().count() < 99),
            }
        }
    }
    (count, false)
}

#[test]
fn changed_sessions_are_refused_or_decoded_within_the_limits_of_memory() {
    let wanted = std::env::var("RINGWATCH_MUTATIONS").ok();
    let wanted: u64 = wanted.map_or(20_000, |text| text.parse().unwrap());
    let sessions = sessions();
    let whole: Vec<_> = sessions.iter().map(|it| decode(it, 1 << 20)).collect();
    assert_eq!(whole, [(14, false), (18, false)]);
    let (mut decoded, mut refused, mut most) = (0, 0, 0);
    for seed in 0..wanted {
        let mut dice = Dice(seed);
        let mut bytes = mutate(&sessions[dice.roll(2)], &mut dice);
        if dice.roll(2) == 0 {
            reseal(&mut bytes);
        }
        let piece = [1 << 20, 700, 33][dice.roll(3)];
        let mut outcome = (0, false);
        let memory = allocation_counter::measure(|| outcome = decode(&bytes, piece));
        assert!(memory.bytes_max <= MEMORY, "seed {seed}: {} bytes", memory.bytes_max);
        most = most.max(memory.bytes_max);
        decoded += outcome.0;
        refused += u64::from(outcome.1);
    }
    println!("{wanted} sessions: {decoded} messages, {refused} refused, {most} bytes at most");
    // It does meet what it is about.
    assert!(decoded > wanted && refused > wanted / 4, "{decoded} {refused}");
}
