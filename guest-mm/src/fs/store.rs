//! Where the objects of a cache live: in a slab cache of their own in the kernel, anywhere on the host.

use core::ops::DerefMut;

use guest_sync::Cpu;

use crate::slab::{IsLeaving, NoObject};

/// Memory for objects of one kind.
pub trait Store<T>: Sync {
    /// An object. Dropping it frees it.
    type Box: DerefMut<Target = T> + Send;

    /// Moves a value into an object. `None` when there is no memory.
    fn store(&self, value: T) -> Option<Self::Box>;

    /// Moves an object elsewhere if it is leaving; its value stays the same.
    ///
    /// # Errors
    /// When there is no memory; nothing has changed then.
    fn relocate(
        &self,
        _cpu: &Cpu,
        _object: &mut Self::Box,
        _is_leaving: IsLeaving<'_>,
    ) -> Result<(), NoObject> {
        Ok(())
    }

    /// How many objects a frame holds, at least 1.
    fn per_frame(&self) -> u32;

    /// Frames that its objects have now, and those that are free in them.
    fn frames(&self) -> u64;

    /// Gives back the frames in which no object is left. Must not wait.
    fn give_back(&self, cpu: &Cpu);
}

/// Has `give_up`, which is told how many objects a number of frames holds and says how many it gave up, do so until `nr_pages` frames
/// are free or it has none left. How many are free: objects of one age do not lie together, so it may take more than one round.
pub(super) fn shrink<T, S: Store<T>>(
    store: &S,
    cpu: &Cpu,
    nr_pages: u64,
    mut give_up: impl FnMut(u64) -> u64,
) -> u64 {
    let before = store.frames();
    loop {
        // Others may have taken some meanwhile.
        let freed = before.saturating_sub(store.frames());
        if freed >= nr_pages {
            return freed;
        }
        let given_up = give_up((nr_pages - freed).saturating_mul(store.per_frame().into()));
        store.give_back(cpu);
        if given_up == 0 {
            return before.saturating_sub(store.frames());
        }
    }
}

/// The heap, whose frames are somebody else's business: nothing is moved or given back here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

impl<T: Send> Store<T> for Heap {
    type Box = alloc::boxed::Box<T>;

    fn store(&self, value: T) -> Option<Self::Box> {
        Some(alloc::boxed::Box::new(value))
    }

    fn per_frame(&self) -> u32 {
        per_frame::<T>()
    }

    fn frames(&self) -> u64 {
        0
    }

    fn give_back(&self, _: &Cpu) {}
}

/// Objects of this type that a frame has room for, at least 1.
pub fn per_frame<T>() -> u32 {
    let per_frame = crate::pfn::PAGE_BYTES / size_of::<T>().max(1);
    u32::try_from(per_frame).unwrap_or(u32::MAX).max(1)
}
