//! What must always hold of caches, derived again from scratch. Nobody may use the allocator meanwhile.

use alloc::collections::BTreeSet;

use super::SlabAllocator;
use super::cache::Cache;
use super::head::{END, TAKEN, head};
use super::lists::{Fullness, NodeLists};
use super::object::ObjAddr;
use super::source::SlabSource;
use crate::frames::Frames;
use crate::pfn::Pfn;
use crate::validate::{Invalid, ensure};

impl<F: Frames, P: SlabSource> SlabAllocator<F, P> {
    /// Checks every cache, slab and object: each object is in exactly one place (free on its slab, at hand of one CPU,
    /// or taken by somebody), each slab on the list that its fill says, and every counter is right.
    ///
    /// # Errors
    /// The first broken invariant found.
    pub fn validate(&self) -> Result<(), Invalid> {
        let mut result = Ok(());
        let mut slabs = BTreeSet::new();
        self.for_each_cache(|cache| {
            if result.is_ok() {
                result = self.validate_cache(cache, &mut slabs);
            }
        });
        result
    }

    fn validate_cache(&self, cache: &Cache, slabs: &mut BTreeSet<Pfn>) -> Result<(), Invalid> {
        let name = cache.name;
        let mut taken = BTreeSet::new();
        for (node, lists) in cache.nodes.iter().enumerate() {
            let lists = lists.lock();
            let mut free_objects = 0;
            for list in Fullness::ALL {
                free_objects += self.validate_list(cache, node, &lists, list, (slabs, &mut taken))?;
            }
            ensure!(
                free_objects == lists.free_objects,
                "cache {name}, node {node}: {free_objects} free objects, {} counted",
                lists.free_objects
            );
        }
        let (limit, batch) = cache.tunables();
        ensure!(
            (1..=limit).contains(&batch) && limit <= 120,
            "cache {name}: batch {batch} of {limit}"
        );
        for (cpu, local) in cache.local.iter() {
            let (mut count, mut stray) = (0, None);
            local.objects.look(|object| {
                count += 1;
                if !taken.remove(&ObjAddr::new(object)) {
                    stray = Some(object);
                }
            });
            ensure!(
                stray.is_none(),
                "cache {name}: CPU {cpu} has {stray:x?} at hand, which is no taken object or elsewhere too"
            );
            ensure!(
                count <= limit.max(120),
                "cache {name}: CPU {cpu} has {count} objects at hand"
            );
        }
        Ok(())
    }

    /// Returns the number of free objects of a list's slabs.
    fn validate_list(
        &self,
        cache: &Cache,
        node: usize,
        lists: &NodeLists,
        list: Fullness,
        (slabs, taken): (&mut BTreeSet<Pfn>, &mut BTreeSet<ObjAddr>),
    ) -> Result<u64, Invalid> {
        let name = cache.name;
        let (mut next, mut before) = (lists.first(list), None);
        let (mut nr_slabs, mut free_objects) = (0, 0);
        while let Some(slab) = next {
            ensure!(slabs.insert(slab), "cache {name}: slab at {slab} is on two lists");
            let fields = head(&self.source, slab);
            let fill = fields.fill();
            ensure!(
                self.source.slab_of(slab) == Some(slab) && fields.cache() == cache.id,
                "cache {name}: slab at {slab} belongs to another cache"
            );
            ensure!(
                self.source.node_of(slab) == node,
                "cache {name}: slab at {slab} is on the wrong node's list"
            );
            ensure!(
                fields.prev() == before,
                "cache {name}: slab at {slab} is linked one way only"
            );
            ensure!(
                Fullness::of(fill, cache.layout.nr_objects) == list,
                "cache {name}: slab at {slab} has {} objects taken and is on list {list:?}",
                fill.taken
            );
            free_objects += self.validate_slab(cache, slab, taken)?;
            nr_slabs += 1;
            (before, next) = (Some(slab), fields.next());
        }
        ensure!(
            nr_slabs == lists.nr_slabs(list),
            "cache {name}, node {node}: {nr_slabs} slabs on list {list:?}, {} counted",
            lists.nr_slabs(list)
        );
        Ok(free_objects)
    }

    /// Collects the taken objects of a slab, and returns the number of free ones.
    fn validate_slab(&self, cache: &Cache, slab: Pfn, taken: &mut BTreeSet<ObjAddr>) -> Result<u64, Invalid> {
        let name = cache.name;
        let (place, fill) = (self.placed(cache, slab), head(&self.source, slab).fill());
        let nr_objects = cache.layout.nr_objects;
        let mut free = BTreeSet::new();
        let mut next = fill.first_free;
        while next != END {
            ensure!(
                next < nr_objects && free.insert(next),
                "cache {name}: slab at {slab} has object {next} free twice, or no such object"
            );
            next = self.descriptor(&place, next);
        }
        for number in (0..nr_objects).filter(|number| !free.contains(number)) {
            ensure!(
                self.descriptor(&place, number) == TAKEN,
                "cache {name}: slab at {slab}: object {number} is neither free nor taken"
            );
            taken.insert(place.object(number));
        }
        ensure!(
            free.len() + usize::from(fill.taken) == usize::from(nr_objects),
            "cache {name}: slab at {slab} has {} objects free and counts {} taken",
            free.len(),
            fill.taken
        );
        Ok(free.len() as u64)
    }
}
