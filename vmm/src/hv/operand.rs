//! The address of an instruction's memory operand, for instructions that KVM cannot emulate: SSE, AVX and x87.
//!
//! Only for reports: of an access that is known to have failed, this says where. Prefixes, opcode maps, ModRM and SIB are
//! those of the Intel SDM, volume 2A, chapter 2. Two forms are answered to within a few bytes, because their exact form
//! depends on the opcode: RIP-relative operands before an immediate byte, and the scaled 8-bit displacements of EVEX.

use kvm_bindings::kvm_regs;

/// What else an address depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mode {
    /// 64-bit code rather than 32-bit.
    pub(super) long: bool,
    /// Base of FS.
    pub(super) fs_base: u64,
    /// Base of GS.
    pub(super) gs_base: u64,
}

/// The linear address of the memory operand of the instruction that `bytes` begin with, if it is one of those above
/// and has one.
pub(super) fn linear_address(bytes: &[u8], regs: &kvm_regs, mode: Mode) -> Option<u64> {
    let mut reader = Reader { bytes, taken: 0 };
    let prefixes = Prefixes::read(&mut reader, mode)?;
    let operand = Operand::read(&mut reader, prefixes.index_high, prefixes.base_high, mode)?;
    let after = regs.rip.wrapping_add(reader.taken as u64);
    let offset = operand.offset(regs, after);
    let offset = if prefixes.short_address || !mode.long {
        offset & 0xFFFF_FFFF
    } else {
        offset
    };
    let linear = offset.wrapping_add(prefixes.segment_base);
    Some(if mode.long { linear } else { linear & 0xFFFF_FFFF })
}

#[derive(Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
    taken: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.taken)?;
        self.taken += 1;
        Some(byte)
    }

    fn displacement(&mut self, size: usize) -> Option<u64> {
        let mut raw = [0; 4];
        for byte in raw.iter_mut().take(size) {
            *byte = self.next()?;
        }
        // Sign-extended to 64 bits, as all displacements are.
        let value = if size == 1 {
            i64::from(raw[0].cast_signed())
        } else {
            i64::from(i32::from_le_bytes(raw))
        };
        Some(value.cast_unsigned())
    }
}

/// What comes before ModRM.
#[derive(Debug, Default)]
struct Prefixes {
    segment_base: u64,
    short_address: bool,
    /// Bit 3 of the index register's number.
    index_high: u8,
    /// Bit 3 of the base register's number.
    base_high: u8,
}

impl Prefixes {
    /// Reads prefixes and opcode. `None` for opcodes whose operand is not found by ModRM and SIB alone.
    fn read(reader: &mut Reader<'_>, mode: Mode) -> Option<Self> {
        let mut prefixes = Self::default();
        let first = loop {
            match reader.next()? {
                0x64 => prefixes.segment_base = mode.fs_base,
                0x65 => prefixes.segment_base = mode.gs_base,
                0x67 => prefixes.short_address = true,
                0x26 | 0x2E | 0x36 | 0x3E | 0x66 | 0xF0 | 0xF2 | 0xF3 => {}
                other => break other,
            }
        };
        let rex = (mode.long && first & 0xF0 == 0x40).then_some(first);
        prefixes.index_high = rex.map_or(0, |rex| rex >> 1 & 1) << 3;
        prefixes.base_high = rex.map_or(0, |rex| rex & 1) << 3;
        match if rex.is_some() { reader.next()? } else { first } {
            0x0F => match reader.next()? {
                0x38 | 0x3A => drop(reader.next()?),
                _ => {}
            },
            // Two-byte VEX: no high bits for index and base.
            0xC5 if mode.long => drop((reader.next()?, reader.next()?)),
            // Three-byte VEX and EVEX: inverted X and B at bits 6 and 5 of the first byte behind.
            escape @ (0xC4 | 0x62) if mode.long => {
                let bits = !reader.next()?;
                prefixes.index_high = (bits >> 6 & 1) << 3;
                prefixes.base_high = (bits >> 5 & 1) << 3;
                let rest = if escape == 0xC4 { 1 } else { 2 };
                for _ in 0..rest {
                    reader.next()?;
                }
                // Gathers and scatters: the index is a vector.
                if matches!(reader.next()?, 0x90..=0x93 | 0xA0..=0xA3 if bits & 0x07 == !0x02 & 0x07) {
                    return None;
                }
            }
            0xD8..=0xDF => {}
            _ => return None,
        }
        Some(prefixes)
    }
}

/// What ModRM and SIB say.
#[derive(Debug, Default)]
struct Operand {
    base: Option<u8>,
    index: Option<u8>,
    scale: u8,
    displacement: u64,
    rip_relative: bool,
}

impl Operand {
    fn read(reader: &mut Reader<'_>, index_high: u8, base_high: u8, mode: Mode) -> Option<Self> {
        let modrm = reader.next()?;
        let (form, rm) = (modrm >> 6, modrm & 7);
        let mut operand = Self::default();
        let mut base = rm;
        if rm == 4 && form != 3 {
            let sib = reader.next()?;
            base = sib & 7;
            operand.scale = sib >> 6;
            // Number 4 is no index; number 12 is R12.
            operand.index = Some(sib >> 3 & 7 | index_high).filter(|index| *index != 4);
        }
        match (form, base) {
            // A register.
            (3, _) => return None,
            (0, 5) => {
                operand.rip_relative = mode.long && rm == 5;
                operand.displacement = reader.displacement(4)?;
                return Some(operand);
            }
            (0, _) => {}
            (1, _) => operand.displacement = reader.displacement(1)?,
            _ => operand.displacement = reader.displacement(4)?,
        }
        operand.base = Some(base | base_high);
        Some(operand)
    }

    /// The offset in the segment; `after` is the address behind the bytes read.
    fn offset(&self, regs: &kvm_regs, after: u64) -> u64 {
        let base = self.base.map_or(0, |number| register(regs, number));
        let index = self
            .index
            .map_or(0, |number| register(regs, number) << self.scale);
        let rip = if self.rip_relative { after } else { 0 };
        base.wrapping_add(index)
            .wrapping_add(rip)
            .wrapping_add(self.displacement)
    }
}

fn register(regs: &kvm_regs, number: u8) -> u64 {
    match number {
        0 => regs.rax,
        1 => regs.rcx,
        2 => regs.rdx,
        3 => regs.rbx,
        4 => regs.rsp,
        5 => regs.rbp,
        6 => regs.rsi,
        7 => regs.rdi,
        8 => regs.r8,
        9 => regs.r9,
        10 => regs.r10,
        11 => regs.r11,
        12 => regs.r12,
        13 => regs.r13,
        14 => regs.r14,
        _ => regs.r15,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Mode = Mode {
        long: true,
        fs_base: 0x7000_0000_0000,
        gs_base: 0x5000,
    };

    fn address(bytes: &[u8]) -> Option<u64> {
        let regs = kvm_regs {
            rax: 0x1000,
            rcx: 0x10,
            rbp: 0x2000,
            rsp: 0x3000,
            r12: 0xFFFF_8000_0000_0000,
            r13: 0x4000,
            r14: 0x100,
            rip: 0x40_0000,
            ..kvm_regs::default()
        };
        linear_address(bytes, &regs, LONG)
    }

    // Encodings as GNU as writes them.
    #[test]
    fn operands_are_found_in_every_encoding() {
        let cases: [(&str, &[u8], u64); 12] = [
            ("movups (%rax), %xmm0", &[0x0F, 0x10, 0x00], 0x1000),
            ("movdqa -8(%rbp), %xmm1", &[0x66, 0x0F, 0x6F, 0x4D, 0xF8], 0x1FF8),
            (
                "movss 0x100(%rsp), %xmm0",
                &[0xF3, 0x0F, 0x10, 0x84, 0x24, 0, 1, 0, 0],
                0x3100,
            ),
            (
                "movntdqa (%r13,%r14,8), %xmm8",
                &[0x66, 0x47, 0x0F, 0x38, 0x2A, 0x44, 0xF5, 0x00],
                0x4800,
            ),
            (
                "movups (%r12), %xmm0",
                &[0x41, 0x0F, 0x10, 0x04, 0x24],
                0xFFFF_8000_0000_0000,
            ),
            (
                "movups 0x40e00040, %xmm0",
                &[0x0F, 0x10, 0x04, 0x25, 0x40, 0, 0xE0, 0x40],
                0x40E0_0040,
            ),
            (
                "movups 0x10(%rip), %xmm0",
                &[0x0F, 0x10, 0x05, 0x10, 0, 0, 0],
                0x40_0017,
            ),
            (
                "movups %fs:(%rcx), %xmm0",
                &[0x64, 0x0F, 0x10, 0x01],
                0x7000_0000_0010,
            ),
            (
                "vmovups (%rax,%rcx,4), %ymm0",
                &[0xC5, 0xFC, 0x10, 0x04, 0x88],
                0x1040,
            ),
            (
                "vmovups (%r13,%r14,1), %ymm0",
                &[0xC4, 0x81, 0x7C, 0x10, 0x44, 0x35, 0x00],
                0x4100,
            ),
            (
                "vmovups (%rax), %zmm0",
                &[0x62, 0xF1, 0x7C, 0x48, 0x10, 0x00],
                0x1000,
            ),
            ("fldl (%rax)", &[0xDD, 0x00], 0x1000),
        ];
        for (text, bytes, expected) in cases {
            assert_eq!(address(bytes), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_has_no_such_operand_is_not_answered() {
        let cases: [(&str, &[u8]); 5] = [
            ("movups %xmm1, %xmm0", &[0x0F, 0x10, 0xC1]),
            ("mov (%rax), %eax", &[0x8B, 0x00]),
            ("vpgatherdd (%rax,%ymm1,4)", &[0xC4, 0xE2, 0x6D, 0x90, 0x04, 0x88]),
            ("cut short", &[0x66, 0x0F]),
            ("nothing", &[]),
        ];
        for (text, bytes) in cases {
            assert_eq!(address(bytes), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes: [u8; 15], long: bool) {
            let mode = Mode { long, ..LONG };
            linear_address(&bytes, &kvm_regs { rax: u64::MAX, rip: u64::MAX, ..kvm_regs::default() }, mode);
        }
    }
}
