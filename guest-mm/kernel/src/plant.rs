//! Errors made on purpose in objects of caches that are debugged, so that reporting them can be tested in the running
//! guest: `slab_debug=test`.

use guest_mm::Gfp;
use guest_mm::frames::Frames;
use guest_mm::pfn::{PAGE_SIZE, Pfn};
use guest_mm::slab::{CacheSpec, Debugging, Leak, ObjAddr, SlabAllocator, SlabSource};
use guest_sync::Cpu;

/// Bytes of an object.
const SIZE: u32 = 40;

/// Makes one error of each kind: writes behind, in front of and into freed objects, frees twice, to the wrong cache, and
/// what is no object. All of them are then in the allocator's journal. Returns what was still in use when the cache was to
/// be destroyed: one object, never freed.
///
/// `None` when there is no memory for the caches.
pub fn every_kind<F: Frames, P: SlabSource>(slabs: &SlabAllocator<F, P>, cpu: &Cpu) -> Option<Leak> {
    let spec = |name| CacheSpec {
        debug: Debugging::On,
        ..CacheSpec::new(name, SIZE)
    };
    let cache = slabs.create(&spec("slab-test")).ok()?;
    let other = slabs.create(&spec("slab-test-2")).ok()?;
    let take = || slabs.alloc(cpu, &cache, Gfp::KERNEL).ok();
    // What each call answers is in the journal too.
    let free = |object| {
        let _ = slabs.free(cpu, &cache, object);
    };
    let poke = |object: ObjAddr, offset: i64| {
        let gpa = object.gpa().wrapping_add_signed(offset);
        if let Some(pfn) = Pfn::containing(gpa) {
            slabs
                .frames()
                .write_bytes(pfn, (gpa % PAGE_SIZE) as usize, &[0xee]);
        }
    };
    let object = take()?;
    poke(object, i64::from(SIZE));
    free(object);
    let object = take()?;
    poke(object, -1);
    free(object);
    poke(object, 7);
    let object = take()?;
    free(object);
    free(object);
    let object = take()?;
    let _ = slabs.free(cpu, &other, object);
    free(ObjAddr::new(object.gpa() + 8));
    free(ObjAddr::new(PAGE_SIZE));
    let leak = slabs.destroy(cpu, &cache).err();
    free(object);
    let clean = slabs.destroy(cpu, &cache).is_ok() && slabs.destroy(cpu, &other).is_ok();
    leak.filter(|_| clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mm::host::HostFrames;
    use guest_mm::slab::Misuse;
    use guest_mm::{BootRegion, MemMap, NodeId, Page, PfnRange, PhysicalMemory, Topology};
    use guest_sync::{CpuId, CpuSet};
    use std::string::{String, ToString};
    use std::vec::Vec;

    #[test]
    fn each_planted_error_is_reported_once_and_by_its_kind() {
        let pages: Vec<Page> = (0..2048).map(|_| Page::new()).collect();
        let all = PfnRange::new(Pfn::new(0), 2048).unwrap();
        let memory = PhysicalMemory::new(
            MemMap::new(Pfn::new(0), &pages).unwrap(),
            all,
            Topology::one_node(1),
        );
        let boot = BootRegion {
            node: NodeId::ZERO,
            span: all,
            usable: &[all],
            reserved: &[PfnRange::new(Pfn::new(0), 16).unwrap()],
        };
        memory.add_boot_region(boot).unwrap();
        let mut frames = HostFrames::new();
        frames.plug(all);
        let slabs = SlabAllocator::new(frames, &memory, Debugging::Off);
        let cpu = CpuSet::new(1).unwrap().claim(CpuId::ZERO).unwrap();
        let leak = every_kind(&slabs, &cpu).unwrap();
        assert_eq!((leak.cache, leak.nr_objects), ("slab-test", 1));
        let found: Vec<Misuse> = core::iter::from_fn(|| slabs.next_misuse()).collect();
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        let kinds = [
            "written beyond its end: 1 bytes at offset 40: expected cc, found ee",
            "written in front of it: 1 bytes at offset -1: expected cc, found ee",
            "written after it was freed: 1 bytes at offset 7: expected 6b, found ee",
            "freed twice",
            "freed here, belongs to cache slab-test",
            "no object starts there",
            "lies in no slab",
        ];
        assert_eq!(texts.len(), kinds.len(), "{texts:#?}");
        for (text, kind) in texts.iter().zip(kinds) {
            assert!(text.contains(kind), "{text} is not: {kind}");
        }
        assert_eq!(slabs.shrink_all(&cpu, u64::MAX), 0, "everything was given back");
    }
}
