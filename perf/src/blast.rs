//! Frames as if an interface had received them, millions a second: the kernel makes them itself, out
//! of one frame and an XDP program that gives each its number. No NIC, no driver and no socket is
//! needed, and every packet socket sees them as it sees traffic from a wire.
//!
//! The program keeps count of the frames that it passes on; what [`run`] returns is that count.
//! Checksums stay those of the first frame, as with receive offload. Needs CAP_BPF, CAP_NET_ADMIN and
//! Linux 5.18; nothing has to be attached to the interface.
//!
//! Source: Documentation/bpf/bpf_prog_run.rst ("Running XDP programs in live frame mode").

use std::io;
use std::time::Instant;

use nix::net::if_::if_nametoindex;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

use crate::bpf::{Counter, Instruction, Program};
use crate::flood::{Field, Flood, Order};
use crate::inject::{Injected, Limit};

/// Runs of the program in a first call, and the least in any other: about a hundredth of a second.
const LEAST_RUNS: u64 = 1 << 18;
/// Runs of the program in one call at most: about a minute.
const MOST_RUNS: u64 = 1 << 30;
/// Part of the remaining time that a call is meant to take. The kernel waits up to 40 ms between two
/// calls, so there should be few.
const SHARE: f64 = 0.9;

/// Makes the frames of a load on an interface of the calling thread's namespace, `rate` a second or
/// as many as it can. The description has passed [`Flood::check`].
///
/// # Errors
/// The kernel's: no such interface, missing capabilities; and see [`Program::run_live`].
pub fn run(
    flood: &Flood,
    interface: &str,
    limit: Limit,
    rate: Option<u64>,
) -> io::Result<Injected> {
    let interface_index = if_nametoindex(interface)?;
    let counter = Counter::new()?;
    let frame = flood.frame(0);
    let frames = match (limit, rate) {
        (Limit::Frames(frames), _) => frames,
        (Limit::Time(time), Some(rate)) => (time.as_secs_f64() * rate as f64) as u64,
        (Limit::Time(_), None) => u64::MAX,
    };
    let begin = Instant::now();
    let program = Program::load(&program(flood, &frame, &counter, Pace::now(frames, rate)?))?;
    let mut seconds_per_run = None;
    loop {
        let done = counter.value()?;
        let left = limit.left(done, begin).map_or(0, |left| left.min(frames.saturating_sub(done)));
        if left == 0 {
            return Ok(Injected { frames: done, refused: 0, elapsed: begin.elapsed() });
        }
        let time_left = match (rate, limit) {
            (Some(rate), _) => Some(left as f64 / rate as f64),
            (None, Limit::Time(time)) => Some(time.saturating_sub(begin.elapsed()).as_secs_f64()),
            (None, Limit::Frames(_)) => None,
        };
        let runs = match time_left {
            None => left.min(MOST_RUNS),
            Some(time) => seconds_per_run
                .map_or(LEAST_RUNS, |one| (SHARE * time / one) as u64)
                .clamp(LEAST_RUNS, MOST_RUNS),
        };
        let call = Instant::now();
        let count = u32::try_from(runs).map_err(io::Error::other)?;
        program.run_live(&frame, interface_index, count)?;
        seconds_per_run = Some(call.elapsed().as_secs_f64() / runs as f64);
    }
}

/// What the program holds itself to: frames that are too many, or not due yet, it drops.
struct Pace {
    frames: u64,
    rate: Option<u64>,
    /// On the clock of the program, in nanoseconds.
    begin: u64,
}

impl Pace {
    fn now(frames: u64, rate: Option<u64>) -> io::Result<Self> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?.num_nanoseconds();
        Ok(Self { frames, rate, begin: now.unsigned_abs() })
    }
}

// Registers of the program.
const RESULT: u8 = 0;
const SCRATCH: u8 = 1;
const SECOND: u8 = 2;
const COUNTER: u8 = 6;
const DATA: u8 = 7;
const DATA_END: u8 = 8;
const NUMBER: u8 = 9;

// Operations. Source: RFC 9669, section 4 and 5.
const LOAD_WORD: u8 = 0x61;
const LOAD_DOUBLE: u8 = 0x79;
const LOAD_IMMEDIATE: u8 = 0x18;
const STORE_WORD: u8 = 0x63;
const STORE_HALF: u8 = 0x6b;
const STORE_DOUBLE: u8 = 0x7b;
const STORE_WORD_IMMEDIATE: u8 = 0x62;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const OR: u8 = 0x4f;
const MODULO: u8 = 0x9f;
const SHIFT_LEFT_IMMEDIATE: u8 = 0x67;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
const AND_IMMEDIATE_32: u8 = 0x54;
const ADD_IMMEDIATE_32: u8 = 0x04;
const TO_BIG_ENDIAN: u8 = 0xdc;
const SUBTRACT: u8 = 0x1f;
const MULTIPLY: u8 = 0x2f;
const DIVIDE_IMMEDIATE: u8 = 0x37;
const JUMP_IF_GREATER: u8 = 0x2d;
const JUMP_IF_NOT_LESS: u8 = 0x3d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Source register of a load that puts in the address of a map's value (`BPF_PSEUDO_MAP_VALUE`).
const MAP_VALUE: u8 = 2;
/// Helper function: nanoseconds of the monotonic clock.
const CLOCK: i32 = 5;
/// Helper function: a random number of 32 bits.
const RANDOM: i32 = 7;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// The program: counts the frame, gives it its number, writes the fields that the number decides.
fn program(flood: &Flood, frame: &[u8], counter: &Counter, pace: Pace) -> Vec<Instruction> {
    let bytes = i32::try_from(frame.len()).unwrap_or(i32::MAX);
    let mut program = vec![
        memory(LOAD_WORD, DATA, SCRATCH, 0),
        memory(LOAD_WORD, DATA_END, SCRATCH, 4),
        // The verifier wants to see that every write lies inside the frame.
        plain(MOVE, SCRATCH, DATA, 0),
        plain(ADD_IMMEDIATE, SCRATCH, 0, bytes),
        plain(JUMP_IF_GREATER, SCRATCH, DATA_END, 0),
    ];
    program.extend(load_address(COUNTER, counter.descriptor()));
    program.push(memory(LOAD_DOUBLE, NUMBER, COUNTER, 0));
    program.extend(keep_pace(pace));
    // One processor at a time runs it: no atomic is needed.
    program.push(plain(MOVE, SECOND, NUMBER, 0));
    program.push(plain(ADD_IMMEDIATE, SECOND, 0, 1));
    program.push(memory(STORE_DOUBLE, COUNTER, SECOND, 0));
    if flood.order == Order::Random {
        program.push(plain(CALL, 0, 0, RANDOM));
        program.push(plain(MOVE, NUMBER, RESULT, 0));
        program.push(plain(SHIFT_LEFT_IMMEDIATE, NUMBER, 0, 32));
        program.push(plain(CALL, 0, 0, RANDOM));
        program.push(plain(OR, NUMBER, RESULT, 0));
    }
    if let Some(flows) = flood.flows {
        program.extend(load_number(SCRATCH, flows));
        program.push(plain(MODULO, NUMBER, SCRATCH, 0));
    }
    program.extend(restore_tags(flood, frame));
    program.extend(flood.fields().into_iter().flat_map(write_field));
    program.push(plain(MOVE_IMMEDIATE, RESULT, 0, XDP_PASS));
    program.push(plain(EXIT, 0, 0, 0));

    // Every jump leads to the end, where the frame is dropped.
    let end = i16::try_from(program.len()).unwrap_or(i16::MAX);
    for (instruction, index) in program.iter_mut().zip(0..) {
        if [JUMP_IF_GREATER, JUMP_IF_NOT_LESS].contains(&instruction.code) {
            instruction.offset = end - index - 1;
        }
    }
    program.push(plain(MOVE_IMMEDIATE, RESULT, 0, XDP_DROP));
    program.push(plain(EXIT, 0, 0, 0));
    program
}

/// Drops the frame if there were enough already, or if as many as are due by now: microseconds since
/// the begin × rate / 1 000 000, which fits into 64 bits for weeks.
fn keep_pace(pace: Pace) -> Vec<Instruction> {
    let mut code = Vec::new();
    code.extend(load_number(SCRATCH, pace.frames));
    code.push(plain(JUMP_IF_NOT_LESS, NUMBER, SCRATCH, 0));
    if let Some(rate) = pace.rate {
        code.push(plain(CALL, 0, 0, CLOCK));
        code.extend(load_number(SCRATCH, pace.begin));
        code.push(plain(SUBTRACT, RESULT, SCRATCH, 0));
        code.push(plain(DIVIDE_IMMEDIATE, RESULT, 0, 1000));
        code.extend(load_number(SCRATCH, rate));
        code.push(plain(MULTIPLY, RESULT, SCRATCH, 0));
        code.push(plain(DIVIDE_IMMEDIATE, RESULT, 0, 1_000_000));
        code.push(plain(JUMP_IF_GREATER, NUMBER, RESULT, 0));
    }
    code
}

/// Frames are used again when the stack has done with them, and it has taken the outer tag out then.
fn restore_tags(flood: &Flood, frame: &[u8]) -> Vec<Instruction> {
    let tagged = if flood.vlan.is_empty() { 0 } else { 12 + 4 * flood.vlan.len() };
    let words = frame[..tagged].chunks_exact(4).zip(0_i16..);
    let restore = words.map(|(word, index)| {
        let value = i32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        instruction(STORE_WORD_IMMEDIATE, DATA, 0, 4 * index, value)
    });
    restore.collect()
}

fn write_field(field: Field) -> [Instruction; 6] {
    let Field { offset, bytes, shift, mask, base } = field;
    let offset = i16::try_from(offset).unwrap_or(i16::MAX);
    let store = if bytes == 4 { STORE_WORD } else { STORE_HALF };
    [
        plain(MOVE, SCRATCH, NUMBER, 0),
        plain(SHIFT_RIGHT_IMMEDIATE, SCRATCH, 0, shift.cast_signed()),
        plain(AND_IMMEDIATE_32, SCRATCH, 0, mask.cast_signed()),
        plain(ADD_IMMEDIATE_32, SCRATCH, 0, base.cast_signed()),
        plain(TO_BIG_ENDIAN, SCRATCH, 0, 8 * i32::from(bytes)),
        memory(store, DATA, SCRATCH, offset),
    ]
}

/// Loads the address of the only value of a map; takes the room of two instructions.
fn load_address(register: u8, map: i32) -> [Instruction; 2] {
    [plain(LOAD_IMMEDIATE, register, MAP_VALUE, map), plain(0, 0, 0, 0)]
}

/// Loads a number of 64 bits.
fn load_number(register: u8, number: u64) -> [Instruction; 2] {
    let [low, high] = [number as u32, (number >> 32) as u32].map(u32::cast_signed);
    [plain(LOAD_IMMEDIATE, register, 0, low), plain(0, 0, 0, high)]
}

fn plain(code: u8, target: u8, source: u8, immediate: i32) -> Instruction {
    instruction(code, target, source, 0, immediate)
}

fn memory(code: u8, target: u8, source: u8, offset: i16) -> Instruction {
    instruction(code, target, source, offset, 0)
}

fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    let registers =
        if cfg!(target_endian = "little") { source << 4 | target } else { target << 4 | source };
    Instruction { code, registers, offset, immediate }
}
