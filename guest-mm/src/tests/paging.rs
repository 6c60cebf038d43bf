//! Areas, faults, rights and the kernel's own access.

use std::vec;
use std::vec::Vec;

use crate::mm::{FaultError, FaultOutcome, MmapError};
use crate::pagetable::PageFault;
use crate::tests::machine::{MIB, RW, anonymous, load, machine, store};
use crate::{
    Access, Backing, Entry, FixedMapping, Gfp, HugeAdvice, MapRequest, Order, Pfn, Place, Prot, VaRange,
};

#[test]
fn a_touch_of_a_large_area_maps_a_huge_page_of_zeroes() {
    machine!(mm, cpu, 1024, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(4 * MIB, HugeAdvice::Huge)).unwrap();
    assert_eq!(
        mm.fault(&cpu, id, va + 5000, Access::Write),
        Ok(FaultOutcome::MappedHuge)
    );
    assert_eq!(load(&mm, &cpu, id, va + 2 * MIB - 8), Ok(0));
    assert_eq!(mm.space(id).unwrap().rss_pages(), 512);
    assert_eq!(mm.phys.stats().pgfault, 1);
    mm.validate().unwrap();
}

#[test]
fn a_touch_maps_the_neighbourhood_within_the_area() {
    machine!(mm, cpu, 1024, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(40 * 4096, HugeAdvice::NoHuge)).unwrap();
    assert_eq!(
        mm.fault(&cpu, id, va + 4096, Access::Read),
        Ok(FaultOutcome::Mapped { nr_pages: 16 })
    );
    assert_eq!(
        mm.fault(&cpu, id, va + 4096, Access::Read),
        Ok(FaultOutcome::AlreadyMapped)
    );
    assert_eq!(
        mm.fault(&cpu, id, va + 39 * 4096, Access::Read),
        Ok(FaultOutcome::Mapped { nr_pages: 8 })
    );
    mm.set_fault_around(Order::ZERO);
    assert_eq!(
        mm.fault(&cpu, id, va + 20 * 4096, Access::Read),
        Ok(FaultOutcome::Mapped { nr_pages: 1 })
    );
    assert_eq!(mm.space(id).unwrap().rss_pages(), 25);
    mm.validate().unwrap();
}

#[test]
fn accesses_without_a_right_are_refused_with_the_reason() {
    machine!(mm, cpu, 512, 1);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let request = MapRequest {
        prot: Prot::READ,
        ..anonymous(4096, HugeAdvice::NoHuge)
    };
    let va = mm.mmap(id, &request).unwrap();
    let refused = Err(FaultError::Protection {
        va,
        access: Access::Write,
    });
    assert_eq!(mm.fault(&cpu, id, va, Access::Write), refused);
    assert_eq!(
        mm.fault(&cpu, id, va + 4096, Access::Read),
        Err(FaultError::NoArea { va: va + 4096 })
    );
    load(&mm, &cpu, id, va).unwrap();
    assert_eq!(mm.cpu_store(id, va, 1), Err(PageFault::Protection));
    mm.mprotect(&cpu, id, va, 4096, RW).unwrap();
    store(&mm, &cpu, id, va, 1).unwrap();
    mm.mprotect(&cpu, id, va, 4096, Prot::NONE).unwrap();
    assert_eq!(
        mm.cpu_load(id, va),
        Err(PageFault::Protection),
        "the cached translation is gone too"
    );
    mm.mprotect(&cpu, id, va, 4096, RW).unwrap();
    assert_eq!(load(&mm, &cpu, id, va), Ok(1));
    mm.validate().unwrap();
}

#[test]
fn the_kernel_loads_segments_and_copies_with_the_programs_rights() {
    machine!(mm, cpu, 512, 1);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let text = MapRequest {
        len: 8192,
        place: Place::Fixed(0x40_0000),
        prot: Prot::READ.with(Prot::EXEC),
        backing: Backing::Anonymous(HugeAdvice::Huge),
    };
    mm.mmap(id, &text).unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
    mm.load(&cpu, id, 0x40_0123, &bytes).unwrap();
    let mut back = vec![0; 5000];
    mm.read_user(&cpu, id, 0x40_0123, &mut back).unwrap();
    assert_eq!(back, bytes);
    assert!(mm.write_user(&cpu, id, 0x40_0000, &bytes).is_err());
    assert!(mm.read_user(&cpu, id, 0x40_1ff0, &mut back).is_err());
    assert!(mm.read_user(&cpu, id, u64::MAX - 3, &mut [0; 8]).is_err());
    mm.populate(&cpu, id, VaRange::new(0x40_0000, 8192).unwrap())
        .unwrap();
    mm.validate().unwrap();
}

#[test]
fn fixed_mappings_are_there_and_belong_to_nobody() {
    machine!(mm, cpu, 512, 1);
    let free = mm.phys.memory_stats().free_pages;
    let nucleus = Entry::new(Pfn::new(0), Entry::PRESENT | Entry::HUGE);
    let shared = mm.phys.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).unwrap();
    let fixed = [
        FixedMapping::Leaf {
            va: 0x20_0000,
            entry: nucleus,
        },
        FixedMapping::Root {
            index: 200,
            entry: Entry::new(shared, Entry::PRESENT | Entry::WRITABLE),
        },
    ];
    let id = mm.create_space(&cpu, &fixed).unwrap();
    assert_eq!(
        mm.cpu_load(id, 0x20_0000),
        Err(PageFault::Protection),
        "supervisor only"
    );
    let over = MapRequest {
        place: Place::Fixed(0x3f_f000),
        ..anonymous(8192, HugeAdvice::NoHuge)
    };
    assert!(matches!(mm.mmap(id, &over), Err(MmapError::Occupied(_))));
    let beside = MapRequest {
        place: Place::Fixed(0x40_0000),
        ..anonymous(8192, HugeAdvice::NoHuge)
    };
    let va = mm.mmap(id, &beside).unwrap();
    store(&mm, &cpu, id, va, 3).unwrap();
    mm.validate().unwrap();
    mm.munmap(&cpu, id, va, 8192).unwrap();
    mm.validate().unwrap();
    mm.destroy_space(&cpu, id).unwrap();
    mm.validate().unwrap();
    mm.phys.free_pages(&cpu, shared).unwrap();
    assert_eq!(mm.phys.memory_stats().free_pages, free);
    let twice = [
        fixed[0],
        FixedMapping::Leaf {
            va: 0x20_1000,
            entry: Entry::new(Pfn::new(1), Entry::PRESENT),
        },
    ];
    assert!(mm.create_space(&cpu, &twice).is_err());
    mm.validate().unwrap();
    assert_eq!(mm.phys.memory_stats().free_pages, free);
}

#[test]
fn a_physical_area_leads_where_it_was_told_even_without_memory_there() {
    machine!(mm, cpu, 512, 1);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let request = MapRequest {
        backing: Backing::Physical(Pfn::new(0x4_0000)),
        ..anonymous(8192, HugeAdvice::Huge)
    };
    let va = mm.mmap(id, &request).unwrap();
    assert_eq!(
        mm.fault(&cpu, id, va + 4096, Access::Write),
        Ok(FaultOutcome::Mapped { nr_pages: 2 })
    );
    let root = mm.space(id).unwrap().root();
    let found = crate::pagetable::translate(&mm.frames, root, va + 4100, Access::Write).unwrap();
    assert_eq!(found.gpa, 0x4000_1004);
    assert!(
        mm.write_user(&cpu, id, va, &[1]).is_err(),
        "the kernel does not touch what may not be there"
    );
    mm.validate().unwrap();
    mm.munmap(&cpu, id, va, 4096).unwrap();
    mm.validate().unwrap();
    mm.destroy_space(&cpu, id).unwrap();
    mm.validate().unwrap();
}

#[test]
fn unmapping_part_of_a_huge_page_keeps_the_rest() {
    machine!(mm, cpu, 1024, 1);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mm, &cpu, id, va + page * 4096, page).unwrap();
    }
    mm.munmap(&cpu, id, va + 100 * 4096, 300 * 4096).unwrap();
    mm.validate().unwrap();
    assert_eq!(mm.phys.stats().thp_split_page, 1);
    assert_eq!(mm.space(id).unwrap().rss_pages(), 212);
    for page in (0..100).chain(400..512) {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page));
    }
    assert!(load(&mm, &cpu, id, va + 100 * 4096).is_err());
}

#[test]
fn pages_come_zeroed_whoever_had_them_before_and_leave_no_translation_behind() {
    for (advice, bytes) in [(HugeAdvice::Huge, 2 * MIB), (HugeAdvice::NoHuge, 16 * 4096)] {
        machine!(mm, cpu, 512, 1);
        let id = mm.create_space(&cpu, &[]).unwrap();
        let request = MapRequest {
            place: Place::Fixed(64 * MIB),
            ..anonymous(bytes, advice)
        };
        for round in 0..3 {
            let va = mm.mmap(id, &request).unwrap();
            for page in (va..va + bytes).step_by(4096) {
                assert_eq!(load(&mm, &cpu, id, page), Ok(0), "round {round}");
                store(&mm, &cpu, id, page, !page).unwrap();
            }
            mm.munmap(&cpu, id, va, bytes).unwrap();
            assert_eq!(mm.cpu_load(id, va), Err(PageFault::NotPresent));
        }
    }
}

#[test]
fn areas_are_placed_in_gaps_beside_what_is_there() {
    machine!(mm, cpu, 512, 1);
    let kernel = Entry::new(Pfn::new(0), Entry::PRESENT | Entry::HUGE);
    let fixed = FixedMapping::Leaf {
        va: (4 << 30) + 2 * MIB,
        entry: kernel,
    };
    let id = mm.create_space(&cpu, &[fixed]).unwrap();
    let place = |mm: &mut crate::tests::machine::TestMm<'_>, bytes| {
        mm.mmap(id, &anonymous(bytes, HugeAdvice::Huge)).unwrap() - (4 << 30)
    };
    assert_eq!(place(&mut mm, 4096), 0);
    assert_eq!(
        place(&mut mm, 4 * MIB),
        4 * MIB,
        "the kernel's leaf is in the way"
    );
    assert_eq!(place(&mut mm, 4096), 8 * MIB);
    let beyond = MapRequest {
        place: Place::Fixed(crate::pagetable::USER_END),
        ..anonymous(1, HugeAdvice::Huge)
    };
    assert!(matches!(mm.mmap(id, &beyond), Err(MmapError::BadRange { .. })));
    let null = MapRequest {
        place: Place::Fixed(0),
        ..anonymous(1, HugeAdvice::Huge)
    };
    assert!(matches!(mm.mmap(id, &null), Err(MmapError::Occupied(_))));
    for (va, len) in [(1, 4096), (0, 0), (4096, u64::MAX), (u64::MAX - 4095, 4096)] {
        assert_eq!(mm.munmap(&cpu, id, va, len), Err(MmapError::BadRange { va, len }));
    }
    let everything = anonymous(crate::pagetable::USER_END, HugeAdvice::Huge);
    assert!(matches!(mm.mmap(id, &everything), Err(MmapError::NoRoom { .. })));
    assert_eq!(
        mm.space(id).unwrap().vmas().count(),
        2,
        "neighbours that are alike are one area"
    );
    mm.validate().unwrap();
}
