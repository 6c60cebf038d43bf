//! Reserved huge pages: areas whose pages come from the pool (Linux `mm/hugetlb.c`).
//!
//! An area reserves all its pages when it is mapped, or is not mapped at all; so its own faults find one each. They are shared over a
//! fork, and copied when one of the two writes; a child has no reservations, and neither has a copy: whoever needs a page without one and finds
//! none is ended (SIGBUS), as Linux does with a child. (Linux ends the child too when it is the parent that cannot copy; here it is who
//! writes.)

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::mm::fault::Step;
use crate::mm::{AnonPlace, Backing, FaultError, FaultOutcome, Locked, Mm, Reserve, Vma};
use crate::pagetable::{Entry, Level, VaRange};
use crate::pfn::{Order, PAGEBLOCK_BYTES, PAGEBLOCK_SIZE};
use crate::phys::Claim;

impl Reserve {
    const fn claim(self) -> Claim {
        match self {
            Self::Held => Claim::Reserved,
            Self::None => Claim::None,
        }
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Makes the pool of reserved huge pages as large as `wanted`, or as large as it can be; returns its size (Linux `nr_hugepages`). Each
    /// node gets its share; memory is compacted for it. What programs have, and what is reserved, stays.
    pub fn set_nr_huge_pages(&self, cpu: &Cpu, wanted: u64) -> u64 {
        while self.phys.huge_pool().total > wanted && self.phys.shrink_huge_pool(cpu) {}
        let nodes = u64::from(self.phys.topology().nr_nodes());
        while self.phys.huge_pool().total < wanted {
            let first = self.phys.huge_pool().total % nodes;
            let all = || self.phys.topology().nodes();
            let turns = (0..nodes).filter_map(|turn| {
                let place = usize::try_from((first + turn) % nodes).ok()?;
                all().nth(place)
            });
            let mut turns = turns.filter(|&node| self.phys.grow_huge_pool(cpu, node));
            if turns.next().is_some() {
                continue;
            }
            let compacted = self.compact_direct(cpu, Gfp::USER, Order::PAGEBLOCK);
            if compacted != crate::compact::CompactResult::Success
                || !all().any(|node| self.phys.grow_huge_pool(cpu, node))
            {
                break;
            }
        }
        self.phys.huge_pool().total
    }

    /// A fault in such an area where nothing is mapped.
    pub(crate) fn fault_hugetlb(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (va, vma): (u64, &Vma),
        reserve: Reserve,
    ) -> Result<Step, FaultError> {
        let va = va / PAGEBLOCK_SIZE * PAGEBLOCK_SIZE;
        let claim = reserve.claim();
        let pfn = self.phys.take_huge(cpu, claim);
        let pfn = pfn.ok_or(FaultError::NoHugePage { va })?;
        let Ok(slot) = self.tables(cpu).ensure(space.table, va, Level::HUGE) else {
            self.phys.give_back_huge(pfn, claim);
            return Err(FaultError::OutOfMemory(Gfp::KERNEL));
        };
        self.frames.zero(pfn, Order::PAGEBLOCK);
        let anon_vma = space.anon_vma_at(va, &self.anon_vmas);
        self.set_anon(pfn, AnonPlace { anon_vma, va });
        self.tables(cpu)
            .set(slot, Entry::new(pfn, vma.prot.leaf_bits() | Entry::HUGE));
        space.rss_pages += u64::from(Order::PAGEBLOCK.nr_pages());
        Ok(Step::Done(FaultOutcome::MappedHuge))
    }

    /// Takes an area out that was cut from the address space, with its pages and its reservations.
    pub(crate) fn zap_area(&self, cpu: &Cpu, space: &mut Locked<'_>, area: &Vma) {
        let unused = match area.backing {
            Backing::HugeTlb(Reserve::Held) => self.unused_reservations(space, area.range),
            _ => 0,
        };
        self.zap(cpu, space, area.range);
        if unused > 0 {
            self.phys.unreserve_huge(unused);
        }
    }

    /// Pages of a reserved range that were never touched.
    pub(crate) fn unused_reservations(&self, space: &Locked<'_>, range: VaRange) -> u64 {
        let pages = (range.start()..range.end()).step_by(PAGEBLOCK_BYTES);
        let unused = pages.filter(|&va| space.table.find(&self.frames, va).entry.is_empty());
        unused.count() as u64
    }
}
