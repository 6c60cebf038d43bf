//! The state in which the boot CPU enters the guest.
//!
//! Two protocols: PVH (Xen, docs/misc/pvh.pandoc: 32-bit protected mode without paging, EBX points to the start
//! info) and the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst: long mode, RSI points to boot_params).

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// Selector of the flat code segment of [`GDT`].
const CODE: u16 = 0x10;
/// Selector of the flat data segment of [`GDT`].
const DATA: u16 = 0x18;
/// Selector of the task segment, which is in no table: both protocols only want its cached part.
const TASK: u16 = 0x20;

/// The table that the Linux boot protocol wants: `__BOOT_CS` at 0x10, `__BOOT_DS` at 0x18, both flat.
pub const GDT: [u64; 4] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];
const GDT_LIMIT: u16 = 4 * 8 - 1;
const _: () = assert!(size_of_val(&GDT) == GDT_LIMIT as usize + 1);

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_FIXED: u64 = 1 << 1;

/// How the boot CPU starts. All addresses are guest-physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootState {
    /// The PVH protocol.
    Pvh {
        /// Where it begins to execute.
        entry: u32,
        /// The `hvm_start_info`.
        start_info: u32,
    },
    /// The Linux 64-bit boot protocol.
    Linux64 {
        /// Where it begins to execute.
        entry: u64,
        /// The `boot_params`.
        boot_params: u64,
        /// The [`GDT`].
        gdt: u64,
        /// The PML4, which maps at least all that the loader placed.
        page_tables: u64,
    },
}

impl BootState {
    /// General registers.
    pub(super) fn regs(self) -> kvm_regs {
        let zero = kvm_regs {
            rflags: RFLAGS_FIXED,
            ..kvm_regs::default()
        };
        match self {
            Self::Pvh { entry, start_info } => kvm_regs {
                rip: entry.into(),
                rbx: start_info.into(),
                ..zero
            },
            Self::Linux64 {
                entry, boot_params, ..
            } => kvm_regs {
                rip: entry,
                rsi: boot_params,
                ..zero
            },
        }
    }

    /// Special registers, from those that KVM gave the CPU.
    pub(super) fn sregs(self, mut sregs: kvm_sregs) -> kvm_sregs {
        let long = u8::from(matches!(self, Self::Linux64 { .. }));
        sregs.cs = kvm_segment {
            db: 1 - long,
            l: long,
            ..flat(CODE, 0xB)
        };
        let data = flat(DATA, 0x3);
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        sregs.tr = kvm_segment {
            limit: 0x67,
            db: 0,
            s: 0,
            g: 0,
            ..flat(TASK, 0xB)
        };
        (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PE | CR0_ET, 0, 0);
        if let Self::Linux64 { gdt, page_tables, .. } = self {
            (sregs.gdt.base, sregs.gdt.limit) = (gdt, GDT_LIMIT);
            (sregs.cr0, sregs.cr3, sregs.cr4) = (sregs.cr0 | CR0_PG, page_tables, CR4_PAE);
            sregs.efer = EFER_LME | EFER_LMA;
        }
        sregs
    }
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pvh_enters_32_bit_protected_mode_without_paging() {
        let state = BootState::Pvh {
            entry: 0x20_0000,
            start_info: 0x6000,
        };
        let (regs, sregs) = (state.regs(), state.sregs(kvm_sregs::default()));
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x20_0000, 0x6000, 2));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!(
            (sregs.cs.db, sregs.cs.l, sregs.cs.base, sregs.cs.limit),
            (1, 0, 0, u32::MAX)
        );
    }

    #[test]
    fn linux_enters_long_mode_with_its_own_tables() {
        let state = BootState::Linux64 {
            entry: 0x10_0200,
            boot_params: 0x6000,
            gdt: 0x5000,
            page_tables: 0x9000,
        };
        let (regs, sregs) = (state.regs(), state.sregs(kvm_sregs::default()));
        assert_eq!((regs.rip, regs.rsi), (0x10_0200, 0x6000));
        assert_eq!((sregs.cr3, sregs.gdt.base, sregs.gdt.limit), (0x9000, 0x5000, 31));
        assert_eq!(
            (sregs.cs.selector, sregs.ds.selector, sregs.cs.l),
            (0x10, 0x18, 1)
        );
        assert_eq!(sregs.efer, 0x500);
    }
}
