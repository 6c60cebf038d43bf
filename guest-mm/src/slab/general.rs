//! General caches: objects of thirty sizes for whoever has no cache of his own.

use alloc::boxed::Box;
use core::panic::Location;
use core::sync::atomic::Ordering::Relaxed;

use guest_sync::Cpu;

use super::cache::{Cache, CacheId, CacheSpec, Debugging};
use super::head::head;
use super::layout::{Alignment, MAX_OBJECT};
use super::misuse::Misuse;
use super::object::ObjAddr;
use super::source::SlabSource;
use super::{NoObject, SlabAllocator};
use crate::frames::Frames;
use crate::gfp::Gfp;

/// Sizes of general caches: powers of two from 32 to 131072, and two between them that many objects have.
pub const GENERAL_SIZES: [u32; 15] = [
    32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131_072,
];

/// The largest request that [`SlabAllocator::kmalloc`] serves, in bytes.
pub const KMALLOC_MAX: usize = MAX_OBJECT as usize;

const NR_SIZES: usize = GENERAL_SIZES.len();

/// Names as in Linux: normal, DMA.
const NAMES: [[&str; NR_SIZES]; 2] = [
    [
        "kmalloc-32",
        "kmalloc-64",
        "kmalloc-96",
        "kmalloc-128",
        "kmalloc-192",
        "kmalloc-256",
        "kmalloc-512",
        "kmalloc-1k",
        "kmalloc-2k",
        "kmalloc-4k",
        "kmalloc-8k",
        "kmalloc-16k",
        "kmalloc-32k",
        "kmalloc-64k",
        "kmalloc-128k",
    ],
    [
        "dma-kmalloc-32",
        "dma-kmalloc-64",
        "dma-kmalloc-96",
        "dma-kmalloc-128",
        "dma-kmalloc-192",
        "dma-kmalloc-256",
        "dma-kmalloc-512",
        "dma-kmalloc-1k",
        "dma-kmalloc-2k",
        "dma-kmalloc-4k",
        "dma-kmalloc-8k",
        "dma-kmalloc-16k",
        "dma-kmalloc-32k",
        "dma-kmalloc-64k",
        "dma-kmalloc-128k",
    ],
];

/// Which of [`GENERAL_SIZES`] serves a request of 1..=192 bytes, by its eighths of words: `(size - 1) / 8`.
const SMALL: [u8; 24] = {
    let mut table = [0_u8; 24];
    let mut at = 0;
    while at < table.len() {
        while (GENERAL_SIZES[table[at] as usize] as usize) < (at + 1) * 8 {
            table[at] += 1;
        }
        at += 1;
    }
    table
};

/// Which of [`GENERAL_SIZES`] serves a request; beyond the largest, an index that does not exist.
#[inline]
const fn index_of(size: usize) -> usize {
    if size <= 192 {
        // A request for nothing gets the smallest object.
        SMALL[(size.saturating_sub(1)) / 8] as usize
    } else {
        // 256 is number 5, and every power of two has one number.
        (size - 1).ilog2() as usize - 2
    }
}

/// All general caches: 32 bytes to 128 KiB, then the same for DMA.
pub(super) fn caches(debug: Debugging, nr_cpus: u8, nr_nodes: usize) -> Box<[Cache]> {
    let kinds = [Gfp::NONE, Gfp::DMA].into_iter().zip(NAMES);
    let specs = kinds.flat_map(|(gfp, names)| {
        names
            .into_iter()
            .zip(GENERAL_SIZES)
            .map(move |(name, size)| CacheSpec {
                align: match size {
                    // A whole line would make it as large as the next.
                    96 => Alignment::Bytes(32),
                    512.. => Alignment::Bytes(size.min(4096)),
                    _ => Alignment::CacheLine,
                },
                gfp,
                debug,
                ..CacheSpec::new(name, size)
            })
    });
    (0..)
        .zip(specs)
        .map(|(number, spec)| {
            Cache::new(CacheId(number), &spec, nr_cpus, nr_nodes).expect("every general size has a layout")
        })
        .collect()
}

impl<F: Frames, P: SlabSource> SlabAllocator<F, P> {
    /// The general cache that serves requests of that size; `None` above 128 KiB.
    #[inline]
    pub fn general(&self, size: usize, gfp: Gfp) -> Option<&Cache> {
        let index = index_of(size);
        if index >= NR_SIZES {
            return None;
        }
        self.general.get(if gfp.has(Gfp::DMA) {
            index + NR_SIZES
        } else {
            index
        })
    }

    /// Takes `size` bytes, of unknown contents. They are aligned to 32; if `size` is 33 to 64 or above 96, to 64; from
    /// 257 on, to the next power of two that is not below `size`, up to 4096.
    ///
    /// # Errors
    /// When there is no memory, or `size` is above [`KMALLOC_MAX`].
    #[inline]
    #[track_caller]
    pub fn kmalloc(&self, cpu: &Cpu, size: usize, gfp: Gfp) -> Result<ObjAddr, NoObject> {
        let cache = self.general(size, gfp).ok_or(NoObject { cache: "kmalloc" })?;
        self.alloc(cpu, cache, gfp)
    }

    /// Frees what [`kmalloc`](Self::kmalloc) returned, or an object of any cache: the cache is found through the
    /// page descriptor.
    ///
    /// # Errors
    /// As for [`free`](Self::free); an address that lies in no slab is always noticed.
    #[inline]
    #[track_caller]
    pub fn kfree(&self, cpu: &Cpu, object: ObjAddr) -> Result<(), Misuse> {
        let slab = object.pfn().and_then(|pfn| self.source.slab_of(pfn));
        let Some(slab) = slab else {
            return Err(self.journal.write(Misuse::Foreign {
                cache: "kfree",
                object,
            }));
        };
        let id = head(&self.source, slab).cache();
        match self.general.get(usize::from(id.0)) {
            Some(cache) => self.free(cpu, cache, object),
            None => self.kfree_other(cpu, object, id, Location::caller()),
        }
    }

    #[cold]
    fn kfree_other(
        &self,
        cpu: &Cpu,
        object: ObjAddr,
        id: CacheId,
        place: &Location<'static>,
    ) -> Result<(), Misuse> {
        let freed = self.with_cache(id, |cache| {
            let own = cache.own(cpu);
            let room = own.len() < cache.limit.load(Relaxed);
            if !cache.is_debugged() && room && own.push(object.gpa()).is_ok() {
                return Ok(());
            }
            self.free_slow(cpu, cache, object, place)
        });
        freed.unwrap_or_else(|| {
            Err(self.journal.write(Misuse::Foreign {
                cache: "kfree",
                object,
            }))
        })
    }

    /// Bytes that an object has room for: at least what was asked for. `None` if it lies in no slab.
    pub fn ksize(&self, object: ObjAddr) -> Option<u32> {
        let slab = self.source.slab_of(object.pfn()?)?;
        self.with_cache(head(&self.source, slab).cache(), |cache| cache.layout.object_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_cache_that_holds_it() {
        for size in 0..=KMALLOC_MAX + 1 {
            let wanted = GENERAL_SIZES.iter().position(|&general| general as usize >= size);
            let index = index_of(size);
            assert_eq!((index < NR_SIZES).then_some(index), wanted, "size {size}");
        }
        assert!(index_of(usize::MAX) >= NR_SIZES);
    }
}
