//! Memory that a program gives up before anybody wants it (`MADV_PAGEOUT`): what goes, what stays, and that it all comes back.

use crate::HugeAdvice;
use crate::mm::Advice;
use crate::tests::machine::{MIB, anonymous, load, machine, store};
use crate::tests::swap::{PAGES, load_swapped, program, work};

#[test]
fn pages_in_use_go_to_the_swap_area_at_a_word_of_their_program_and_come_back_as_they_were() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    for page in 0..PAGES {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
    }
    let free = mm.phys.memory_stats().free_pages;
    mm.madvise(&cpu, id, va, PAGES / 2 * 4096, Advice::PageOut)
        .unwrap();
    mm.validate().unwrap();
    work(&mm, &cpu, &disk);
    let space = mm.space(id).unwrap();
    assert_eq!((space.rss_pages(), space.swap_pages()), (PAGES / 2, PAGES / 2));
    assert_eq!(mm.phys.stats().pswpout, PAGES / 2);
    assert_eq!(mm.phys.memory_stats().free_pages, free + PAGES / 2);
    for page in 0..PAGES {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
    mm.validate().unwrap();
}

#[test]
fn what_others_map_too_and_what_is_locked_stays_where_it_is() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    mm.mlock(&cpu, id, (va, 4096), PAGES).unwrap();
    mm.madvise(&cpu, id, va, PAGES * 4096, Advice::PageOut).unwrap();
    work(&mm, &cpu, &disk);
    assert_eq!(mm.space(id).unwrap().swap_pages(), PAGES - 1);
    for page in 0..PAGES {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
    let child = mm.fork(&cpu, id).unwrap();
    mm.madvise(&cpu, id, va, PAGES * 4096, Advice::PageOut).unwrap();
    work(&mm, &cpu, &disk);
    assert_eq!(mm.space(id).unwrap().swap_pages(), 0);
    assert_eq!(load(&mm, &cpu, child, va + 4096), Ok(2));
    mm.validate().unwrap();
}

#[test]
fn a_huge_page_goes_in_pieces() {
    machine!(mm, cpu, 512, 2);
    let (disk, ..) = program(&mm, &cpu);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in (0..512).step_by(7) {
        store(&mm, &cpu, id, va + page * 4096, page + 1).unwrap();
    }
    assert_eq!(mm.space(id).unwrap().rss_pages(), 512);
    mm.madvise(&cpu, id, va, 2 * MIB, Advice::PageOut).unwrap();
    work(&mm, &cpu, &disk);
    mm.validate().unwrap();
    let space = mm.space(id).unwrap();
    assert_eq!((space.rss_pages(), space.swap_pages()), (0, 512));
    for page in (0..512).step_by(7) {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
    mm.validate().unwrap();
}
