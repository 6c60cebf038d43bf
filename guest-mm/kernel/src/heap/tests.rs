//! The heap against a list of what was handed out.

use super::*;
use alloc::vec::Vec;

/// An area for a heap that lives as long as the returned memory.
fn area(bytes: usize) -> (Heap, Vec<u128>) {
    let mut memory = std::vec![0_u128; bytes / 16];
    let mut heap = Heap::new();
    // SAFETY: the vector outlives the heap in every test, and nobody else looks into it.
    unsafe { heap.add(NonNull::new(memory.as_mut_ptr()).unwrap().cast(), bytes) };
    (heap, memory)
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

#[test]
fn random_use_hands_out_disjoint_aligned_memory_and_gets_everything_back() {
    let (mut heap, _memory) = area(1 << 20);
    let all = heap.free_bytes();
    let mut random = Random(1);
    let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
    for step in 0..20_000_usize {
        if random.below(100) < 55 {
            let size = 1 << random.below(14);
            let layout = layout(size + random.below(size), 1 << random.below(9));
            if let Some(memory) = heap.allocate(layout) {
                assert_eq!(memory.as_ptr().align_offset(layout.align()), 0);
                let mark = u8::try_from(step % 251).unwrap();
                // SAFETY: the heap handed out that many bytes.
                unsafe { memory.write_bytes(mark, layout.size()) };
                live.push((memory, layout.size(), mark));
            }
        } else if !live.is_empty() {
            let (memory, size, mark) = live.swap_remove(random.below(live.len()));
            // SAFETY: still allocated, and `size` bytes long.
            let bytes = unsafe { core::slice::from_raw_parts(memory.as_ptr(), size) };
            assert!(bytes.iter().all(|&byte| byte == mark), "somebody else wrote here");
            // SAFETY: allocated above and released once.
            unsafe { heap.release(memory) };
        }
    }
    for (memory, ..) in live {
        // SAFETY: allocated above and released once.
        unsafe { heap.release(memory) };
    }
    assert_eq!(heap.free_bytes(), all, "all blocks joined to one again");
    assert!(heap.has_room_for(all / 2));
}

#[test]
fn neighbours_join_whichever_is_released_last() {
    for order in [[0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 0, 2]] {
        let (mut heap, _memory) = area(4096);
        let all = heap.free_bytes();
        let blocks = [(); 3].map(|()| heap.allocate(layout(100, 8)).unwrap());
        for index in order {
            // SAFETY: allocated above and released once.
            unsafe { heap.release(blocks[index]) };
        }
        assert_eq!(heap.free_bytes(), all);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (mut heap, _memory) = area(4096);
    assert!(heap.allocate(layout(4096, 8)).is_none());
    assert!(heap.allocate(layout(usize::MAX / 4, 8)).is_none());
    assert!(!heap.has_room_for(4096));
    assert!(heap.allocate(layout(2048, 8)).is_some());
}

#[test]
fn areas_of_any_size_and_alignment_can_be_added() {
    let mut memory = std::vec![0_u128; 64];
    let mut heap = Heap::new();
    let start = NonNull::new(memory.as_mut_ptr()).unwrap().cast::<u8>();
    for bytes in 0..48 {
        // SAFETY: nothing is kept of areas this small.
        unsafe { heap.add(start, bytes) };
        assert_eq!(heap.total_bytes(), 0);
    }
    let odd = NonNull::new(start.as_ptr().wrapping_add(1)).unwrap();
    // SAFETY: inside the vector, which outlives the heap.
    unsafe { heap.add(odd, 1023) };
    assert_eq!(heap.total_bytes(), 1008);
    assert!(heap.allocate(layout(900, 16)).is_some());
}

#[test]
fn every_size_has_a_list_whose_blocks_are_large_enough() {
    for size in (16..10_000).step_by(16) {
        let (mut heap, _memory) = area(1 << 16);
        let block = heap.allocate(layout(size, 16)).unwrap();
        let _wall = heap.allocate(layout(16, 16)).unwrap();
        // SAFETY: allocated above and released once.
        unsafe { heap.release(block) };
        let again = heap.allocate(layout(size, 16)).unwrap();
        let fits = heap.total_bytes() - 3 * HEADER - heap.free_bytes() - MIN_PAYLOAD;
        assert!(fits >= size, "{size} bytes served by {again:p} of {fits}");
    }
}
