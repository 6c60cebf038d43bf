//! `slabinfo`: how many objects each cache has, in the format of Linux' `/proc/slabinfo`, version 2.1.

use core::fmt;

use super::SlabAllocator;
use super::cache::Cache;
use super::lists::Fullness;
use super::source::SlabSource;
use crate::frames::Frames;

/// How much a cache holds. Exact while nobody uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheInfo {
    /// Objects that somebody has. Unlike Linux' slab allocator this does not count those that CPUs have at hand.
    pub active_objects: u64,
    /// Objects that CPUs have at hand.
    pub local_objects: u64,
    /// Objects in all slabs.
    pub objects: u64,
    /// Slabs from which objects were taken.
    pub active_slabs: u64,
    /// All slabs.
    pub slabs: u64,
}

impl Cache {
    /// What the cache holds now.
    pub fn info(&self) -> CacheInfo {
        let mut local_objects = 0;
        for (_, local) in self.local.iter() {
            local.objects.look(|_| local_objects += 1);
        }
        let (mut slabs, mut active_slabs, mut free_objects) = (0, 0, 0);
        for lists in &self.nodes {
            let lists = lists.lock();
            let [full, partial, free] = Fullness::ALL.map(|list| u64::from(lists.nr_slabs(list)));
            active_slabs += full + partial;
            slabs += full + partial + free;
            free_objects += lists.free_objects;
        }
        let objects = slabs * u64::from(self.layout.nr_objects);
        CacheInfo {
            active_objects: objects.saturating_sub(free_objects + local_objects),
            local_objects,
            objects,
            active_slabs,
            slabs,
        }
    }
}

/// `/proc/slabinfo`, version 2.1: two lines of header, then a line for each cache. There are no objects shared between
/// CPUs other than through slabs, so that `sharedfactor` and `sharedavail` are 0.
///
/// # Errors
/// Those of the writer.
pub fn slabinfo<F: Frames, P: SlabSource>(
    out: &mut impl fmt::Write,
    slabs: &SlabAllocator<F, P>,
) -> fmt::Result {
    writeln!(out, "slabinfo - version: 2.1")?;
    writeln!(
        out,
        "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : \
         tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>"
    )?;
    let mut result = Ok(());
    slabs.for_each_cache(|cache| {
        if result.is_ok() {
            result = line(out, cache);
        }
    });
    result
}

fn line(out: &mut impl fmt::Write, cache: &Cache) -> fmt::Result {
    let (info, layout, (limit, batch)) = (cache.info(), cache.layout(), cache.tunables());
    write!(
        out,
        "{:<17} {:>6} {:>6} {:>6} {:>4} {:>4}",
        cache.name(),
        info.active_objects,
        info.objects,
        layout.stride,
        layout.nr_objects,
        layout.order.nr_pages()
    )?;
    write!(out, " : tunables {limit:>4} {batch:>4} {:>4}", 0)?;
    writeln!(
        out,
        " : slabdata {:>6} {:>6} {:>6}",
        info.active_slabs, info.slabs, 0
    )
}
