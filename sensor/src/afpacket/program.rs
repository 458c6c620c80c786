//! Classic BPF programs, put together out of instructions and labels.
//!
//! Jumps of this machine go forwards only. A condition reaches 255 instructions, an unconditional jump
//! any; so a conditional jump to a label is a condition that skips an unconditional one.
//!
//! Source: Linux `Documentation/networking/filter.rst`, `include/uapi/linux/filter.h`.

use libc::{
    BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ,
    BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MEM, BPF_MISC, BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_TAX,
    BPF_TXA, BPF_W, BPF_X, BPF_XOR, SKF_AD_OFF, c_int, sock_filter,
};

/// What the kernel knows of a frame beside its bytes: an `SKF_AD_` number.
pub(super) type Ancillary = c_int;

/// A place in a program that a jump goes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label(usize);

/// A word of the machine's memory, of which it has sixteen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot(pub(super) u32);

/// A program in the making. A is the accumulator, X the index register.
#[derive(Debug, Default)]
pub(super) struct Program {
    code: Vec<sock_filter>,
    /// Where each label stands, once it is placed.
    places: Vec<Option<usize>>,
    /// Jumps, and the labels that they go to.
    jumps: Vec<(usize, Label)>,
}

impl Program {
    /// A new label, to be placed once behind all jumps to it.
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The next instruction is where `label` stands.
    pub(super) fn place(&mut self, label: Label) {
        self.places[label.0] = Some(self.code.len());
    }

    /// The finished instructions.
    ///
    /// # Panics
    /// If a label was not placed, or stands before a jump to it.
    pub(super) fn finish(mut self) -> Vec<sock_filter> {
        for (at, label) in self.jumps {
            let target = self.places[label.0].filter(|target| *target > at);
            let target = target.unwrap_or_else(|| panic!("jump at {at} leads nowhere: {label:?}"));
            self.code[at].k = u32::try_from(target - at - 1).unwrap_or(u32::MAX);
        }
        self.code
    }

    /// A = what the kernel knows.
    pub(super) fn load(&mut self, what: Ancillary) {
        self.add(BPF_LD | BPF_W | BPF_ABS, (SKF_AD_OFF + what).cast_unsigned());
    }

    /// A = the byte at `offset`.
    pub(super) fn load_byte(&mut self, offset: u32) {
        self.add(BPF_LD | BPF_B | BPF_ABS, offset);
    }

    /// A = the two bytes at `offset`.
    pub(super) fn load_half(&mut self, offset: u32) {
        self.add(BPF_LD | BPF_H | BPF_ABS, offset);
    }

    /// A = the two bytes at X + `offset`.
    pub(super) fn load_half_behind_x(&mut self, offset: u32) {
        self.add(BPF_LD | BPF_H | BPF_IND, offset);
    }

    /// A = the four bytes at X + `offset`.
    pub(super) fn load_word_behind_x(&mut self, offset: u32) {
        self.add(BPF_LD | BPF_W | BPF_IND, offset);
    }

    /// X = `value`.
    pub(super) fn set_x(&mut self, value: u32) {
        self.add(BPF_LDX | BPF_W | BPF_IMM, value);
    }

    /// X = X + `value`; A is lost.
    pub(super) fn advance_x(&mut self, value: u32) {
        self.add(BPF_MISC | BPF_TXA, 0);
        self.add(BPF_ALU | BPF_ADD | BPF_K, value);
        self.add(BPF_MISC | BPF_TAX, 0);
    }

    /// The slot = A.
    pub(super) fn store(&mut self, slot: Slot) {
        self.add(BPF_ST, slot.0);
    }

    /// The slot = X; A is lost.
    pub(super) fn store_x(&mut self, slot: Slot) {
        self.add(BPF_MISC | BPF_TXA, 0);
        self.store(slot);
    }

    /// A = the slot.
    pub(super) fn recall(&mut self, slot: Slot) {
        self.add(BPF_LD | BPF_W | BPF_MEM, slot.0);
    }

    /// X = the slot.
    pub(super) fn recall_x(&mut self, slot: Slot) {
        self.add(BPF_LDX | BPF_W | BPF_MEM, slot.0);
    }

    /// A = A & `mask`.
    pub(super) fn and(&mut self, mask: u32) {
        self.add(BPF_ALU | BPF_AND | BPF_K, mask);
    }

    /// A = A ^ `value`.
    pub(super) fn xor(&mut self, value: u32) {
        self.add(BPF_ALU | BPF_XOR | BPF_K, value);
    }

    /// A = A ^ X.
    pub(super) fn xor_x(&mut self) {
        self.add(BPF_ALU | BPF_XOR | BPF_X, 0);
    }

    /// A = A + X.
    pub(super) fn add_x(&mut self) {
        self.add(BPF_ALU | BPF_ADD | BPF_X, 0);
    }

    /// A = A * `factor`.
    pub(super) fn multiply(&mut self, factor: u32) {
        self.add(BPF_ALU | BPF_MUL | BPF_K, factor);
    }

    /// A = A >> `bits`.
    pub(super) fn shift_right(&mut self, bits: u32) {
        self.add(BPF_ALU | BPF_RSH | BPF_K, bits);
    }

    /// Goes to `label`.
    pub(super) fn jump(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.add(BPF_JMP | BPF_JA, 0);
    }

    /// Goes to `label` if A = `value`.
    pub(super) fn jump_if(&mut self, value: u32, label: Label) {
        self.skip(value, 0, 1);
        self.jump(label);
    }

    /// Goes to `label` unless A = `value`.
    pub(super) fn jump_unless(&mut self, value: u32, label: Label) {
        self.skip(value, 1, 0);
        self.jump(label);
    }

    /// Ends with `value`.
    pub(super) fn give(&mut self, value: u32) {
        self.add(BPF_RET | BPF_K, value);
    }

    /// Ends with A.
    pub(super) fn give_a(&mut self) {
        self.add(BPF_RET | BPF_A, 0);
    }

    /// Instructions that are complete: a program of its own, in which jumps are relative.
    pub(super) fn append(&mut self, instructions: impl IntoIterator<Item = sock_filter>) {
        self.code.extend(instructions);
    }

    fn skip(&mut self, value: u32, if_equal: u8, if_not: u8) {
        let code = (BPF_JMP | BPF_JEQ | BPF_K) as u16;
        self.code.push(sock_filter { code, jt: if_equal, jf: if_not, k: value });
    }

    fn add(&mut self, code: u32, k: u32) {
        // Codes are below 256.
        self.code.push(sock_filter { code: code as u16, jt: 0, jf: 0, k });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_reach_their_labels() {
        let mut program = Program::default();
        let (near, far) = (program.label(), program.label());
        program.jump_if(7, near);
        program.jump(far);
        program.place(near);
        program.give(1);
        (0..300).for_each(|_| program.give(2));
        program.place(far);
        program.give(3);
        let code = program.finish();
        assert_eq!((code[0].jt, code[0].jf, code[0].k), (0, 1, 7));
        assert_eq!(code[1].k, 1); // over the jump behind it
        assert_eq!((code[2].k, code[2 + 1 + 301].k), (301, 3));
    }

    #[test]
    #[should_panic(expected = "leads nowhere")]
    fn jump_backwards_is_refused() {
        let mut program = Program::default();
        let label = program.label();
        program.place(label);
        program.jump(label);
        drop(program.finish());
    }
}
