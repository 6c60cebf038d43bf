//! Guests of a few instructions.

use super::*;

/// Code for 32-bit and 64-bit mode alike, instruction by instruction.
#[derive(Default)]
pub(super) struct Code(pub(super) Vec<u8>);

impl Code {
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// `mov dx, port; mov al, value; out dx, al`
    pub(super) fn out(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xBA, low, high, 0xB0, value, 0xEE])
    }

    /// `mov dword ptr [address], value`
    pub(super) fn store(self, address: u32, value: u32) -> Self {
        self.raw(&[0xC7, 0x04, 0x25])
            .raw(&address.to_le_bytes())
            .raw(&value.to_le_bytes())
    }

    /// `mov eax, [address]`
    pub(super) fn load(self, address: u32) -> Self {
        self.raw(&[0x8B, 0x04, 0x25]).raw(&address.to_le_bytes())
    }

    /// `mov eax, value; mov crN, eax`
    pub(super) fn control(self, register: u8, value: u32) -> Self {
        self.raw(&[0xB8])
            .raw(&value.to_le_bytes())
            .raw(&[0x0F, 0x22, 0xC0 | register << 3])
    }

    /// In 64-bit mode with [`with_window`]'s segments: goes on at ring 3, without a way back.
    pub(super) fn enter_ring_3(self, at: u32) -> Self {
        let push = |code: Self, value: u32| code.raw(&[0x68]).raw(&value.to_le_bytes());
        // mov esp, stack; then SS, RSP, RFLAGS, CS, RIP; iretq. The frame is 5 pushes of 5 bytes behind 5.
        let stack = CODE_AT + 0xF00;
        let next = at + u32::try_from(self.0.len()).unwrap() + 5 + 5 * 5 + 2;
        let code = self.raw(&[0xBC]).raw(&stack.to_le_bytes());
        let frame = [0x23, stack, 0x02, 0x2B, next];
        frame.into_iter().fold(code, push).raw(&[0x48, 0xCF])
    }

    /// `mov dx, COM1; out dx, al`
    pub(super) fn print_al(self) -> Self {
        self.raw(&[0x66, 0xBA, 0xF8, 0x03, 0xEE])
    }

    pub(super) fn power_off(self) -> Self {
        self.out(0x600, 0x34).spin()
    }

    pub(super) fn spin(self) -> Self {
        self.raw(&[0xEB, 0xFE])
    }
}

/// Where the gibibyte at 4 GiB is mapped in [`with_window`], whose first gibibyte is mapped onto itself.
pub(super) const WINDOW: u32 = 0x4000_0000;

/// Length of what [`with_window`] puts before the code.
pub(super) const WINDOW_START: u32 = 3 * 8 + 14 + 7 + 7;

/// `code` in long mode, with page tables that show it the start of the region.
pub(super) fn with_window(code: &Code) -> Vec<u8> {
    let page_at = |index: u32| CODE_AT + index * 0x1000;
    let (gdt, pml4, pdpt, low, high) = (page_at(1), page_at(2), page_at(3), page_at(4), page_at(5));
    let gdt_pointer = gdt + 0x800;
    let start = Code::default()
        // PAE, and SSE for those who use it.
        .control(4, 1 << 5 | 1 << 9)
        .control(3, pml4)
        // EFER.LME
        .raw(&[0xB9, 0x80, 0, 0, 0xC0, 0x31, 0xD2, 0xB8, 0, 1, 0, 0, 0x0F, 0x30])
        .control(0, 1 << 31 | 0x11)
        // lgdt [gdt_pointer]
        .raw(&[0x0F, 0x01, 0x15])
        .raw(&gdt_pointer.to_le_bytes());
    // jmp 0x10:(the instruction behind this one, which is 7 bytes long)
    let next = CODE_AT + u32::try_from(start.0.len()).unwrap() + 7;
    let start = start.raw(&[0xEA]).raw(&next.to_le_bytes()).raw(&[0x10, 0]);
    assert_eq!(u32::try_from(start.0.len()).unwrap(), WINDOW_START);
    let mut segment = start.raw(&code.0).0;
    segment.resize(0x1000, 0xF4);
    let mut page = |words: Vec<u64>| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(0x1000, 0);
        segment.extend(bytes);
    };
    let mut descriptors = crate::hv::GDT.to_vec();
    // Flat data (0x23) and code (0x2b) of ring 3.
    descriptors.extend([0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF]);
    descriptors.resize(0x100, 0);
    descriptors.extend([u64::from(gdt) << 16 | 47, 0]);
    page(descriptors);
    page(vec![u64::from(pdpt) | 7]);
    page(vec![u64::from(low) | 7, u64::from(high) | 7]);
    page((0..512).map(|index| (index * BLOCK) | 0x87).collect());
    page((0..512).map(|index| (4 * GIB + index * BLOCK) | 0x87).collect());
    segment
}
