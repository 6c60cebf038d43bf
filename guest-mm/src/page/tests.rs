//! The descriptor's one word, and which flags go together.

use super::*;

#[test]
fn a_head_keeps_state_order_flags_and_count_apart() {
    let page = Page::new();
    page.set_head(Head::allocated(Order::MAX));
    page.add_flags(PageFlags::ANON.with(PageFlags::PINNED));
    assert!(page.try_reference());
    assert_eq!(
        (page.state(), page.order(), page.count()),
        (PageState::Allocated, Order::MAX, 2)
    );
    page.remove_flags(PageFlags::PINNED);
    assert_eq!(page.flags(), PageFlags::ANON);
    assert_eq!(page.drop_reference().count(), 2);
    page.clear();
    assert_eq!(page.head(), Head::allocated(Order::MAX));
    page.set_head(Head::BLANK);
    assert!(!page.try_reference(), "nobody has it");
}

#[test]
fn an_age_is_six_bits_and_no_more() {
    let page = Page::new();
    page.set_head(Head::allocated(Order::MAX));
    page.add_flags(PageFlags::LOCKED);
    page.set_age(u8::MAX);
    assert_eq!((page.age(), page.flags()), (MAX_AGE, PageFlags::LOCKED));
    assert_eq!((page.order(), page.count()), (Order::MAX, 1));
    page.add_flags(PageFlags::ALL);
    assert_eq!((page.age(), page.order(), page.count()), (MAX_AGE, Order::MAX, 1));
    page.clear();
    assert_eq!(page.head(), Head::allocated(Order::MAX));
}

#[test]
fn legal_flags_are_those_of_the_list() {
    let legal = [0, 0b10, 0b11, 0b100, 0b1010, 0b1_0000];
    for bits in 0..32 {
        assert_eq!(PageFlags(bits).is_legal(), legal.contains(&bits), "{bits:#b}");
    }
    let file = PageFlags::FILE.with(PageFlags::LRU);
    let both = |a: PageFlags, b: PageFlags| a.with(b).is_legal();
    assert!(file.is_legal() && both(file, PageFlags::LOCKED.with(PageFlags::PRIVATE)));
    assert!(!both(file, PageFlags::DIRTY) && both(file, PageFlags::DIRTY.with(PageFlags::UPTODATE)));
    for other in [
        PageFlags::ANON,
        PageFlags::SWAPCACHE,
        PageFlags::PINNED,
        PageFlags::TABLE,
    ] {
        assert!(!both(file, other), "{other:?}");
    }
    assert!(!PageFlags::PRIVATE.is_legal() && !both(PageFlags::ANON, PageFlags::PRIVATE));
}
