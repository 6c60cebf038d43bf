//! How a cache's slabs look: order, number of objects, alignment, where the object descriptors are, how many colours.
//! Pure arithmetic, all of it done once, when a cache is made.
//!
//! ```text
//! on slab:   | colour | object descriptors | object 0 | object 1 | ... | rest |
//! off slab:  | colour | object 0 | object 1 | ... | rest |     descriptors: in an object of a general cache
//! ```
//! Source: "Understanding the Linux Kernel", 3rd ed., chapter 8, and Linux 2.6 `mm/slab.c` (`calculate_slab_order`, `kmem_cache_create`).

use super::debug::DebugLayout;
use super::object::WORD;
use crate::pfn::{Order, PAGE_BYTES};

/// Bytes of a cache line.
pub const CACHE_LINE: u32 = 64;
/// Largest object of a cache: that of the largest general cache.
pub const MAX_OBJECT: u32 = 128 << 10;
const PAGE: u32 = 4096;
const _: () = assert!(PAGE as usize == PAGE_BYTES);
/// Objects from this size on have their descriptors off the slab (Linux: an eighth of a page).
const OFF_SLAB_FROM: u32 = PAGE / 8;
/// Bytes of an object descriptor: the number of the next free object.
pub(crate) const DESCRIPTOR: u32 = 2;
/// Most objects of a slab, so that descriptors off the slab fit one frame and numbers fit their fields.
const MAX_OBJECTS: u32 = PAGE / DESCRIPTOR;
/// Colours that the slab's descriptor has room for.
const MAX_COLOURS: u32 = 1 << 12;
/// A slab larger than this is made only for objects that need it (Linux `slab_break_gfp_order`).
const BREAK_ORDER: u8 = 1;

/// How objects are aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Alignment {
    /// To words.
    #[default]
    Word,
    /// To cache lines; smaller objects to the largest fraction of a line that holds them, so that none lies in two
    /// (Linux `SLAB_HWCACHE_ALIGN`).
    CacheLine,
    /// To a number of bytes, a power of two up to 4096.
    Bytes(u32),
}

/// What a cache's slabs look like. Sizes in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlabLayout {
    /// What the cache's user asked for.
    pub object_size: u32,
    /// From one object to the next: `object_size` rounded up, and what debugging adds.
    pub stride: u32,
    /// Of every object, a power of two.
    pub align: u32,
    /// Of a slab.
    pub order: Order,
    /// In a slab.
    pub nr_objects: u16,
    /// Whether the object descriptors are in an object of a general cache.
    pub off_slab: bool,
    /// Different places where a slab's first object can be.
    pub nr_colours: u32,
    /// From one colour to the next.
    pub colour_step: u32,
    /// From the slab's start to the first object, for colour 0.
    pub first: u32,
    /// Of one object in debug mode.
    pub(crate) debug: Option<DebugLayout>,
}

impl SlabLayout {
    /// The layout for objects of that size; `None` if the size is 0 or above [`MAX_OBJECT`], or the alignment is not
    /// a power of two up to 4096.
    pub fn new(object_size: u32, alignment: Alignment, debugged: bool) -> Option<Self> {
        if object_size == 0 || object_size > MAX_OBJECT {
            return None;
        }
        let align = align_of(object_size, alignment)?;
        let debug = debugged.then(|| DebugLayout::new(object_size, align));
        let stride = debug.map_or(object_size.next_multiple_of(align), |debug| debug.stride);
        let off_slab = stride >= OFF_SLAB_FROM;
        let mut chosen = None;
        for order in Order::all() {
            let Some(candidate) = Fit::new(order, stride, align, off_slab) else {
                continue;
            };
            chosen = Some(candidate);
            if order.number() >= BREAK_ORDER || candidate.is_good() {
                break;
            }
        }
        Some(Self::from_fit(chosen?, object_size, stride, align, debug))
    }

    fn from_fit(fit: Fit, object_size: u32, stride: u32, align: u32, debug: Option<DebugLayout>) -> Self {
        // Descriptors that find room behind the objects need not be elsewhere.
        let table = (u32::from(fit.nr_objects) * DESCRIPTOR).next_multiple_of(align);
        let off_slab = fit.off_slab && fit.left_over < table;
        let (first, left_over) = match (off_slab, fit.off_slab) {
            (true, _) => (0, fit.left_over),
            (false, true) => (table, fit.left_over - table),
            (false, false) => (table, fit.left_over),
        };
        let colour_step = align.max(CACHE_LINE);
        Self {
            object_size,
            stride,
            align,
            order: fit.order,
            nr_objects: fit.nr_objects,
            off_slab,
            nr_colours: (left_over / colour_step + 1).min(MAX_COLOURS),
            colour_step,
            first,
            debug,
        }
    }

    /// Bytes of a slab's object descriptors.
    pub(crate) const fn descriptor_bytes(&self) -> u32 {
        self.nr_objects as u32 * DESCRIPTOR
    }

    /// Objects that a CPU keeps at hand, and how many it takes or gives back at once (Linux `enable_cpucache`).
    pub(crate) const fn local_limits(&self) -> (u32, u32) {
        let limit = match self.object_size {
            ..=256 => 120,
            257..=1024 => 54,
            1025..=4096 => 24,
            4097..=32768 => 8,
            _ => 1,
        };
        // An error found early is worth more than speed.
        let limit = if self.debug.is_some() && limit > 32 {
            32
        } else {
            limit
        };
        (limit, limit.div_ceil(2))
    }
}

/// One way to cut a chunk into objects.
#[derive(Clone, Copy)]
struct Fit {
    order: Order,
    nr_objects: u16,
    left_over: u32,
    off_slab: bool,
}

impl Fit {
    /// As many objects as a chunk of that order holds; `None` if that is none.
    fn new(order: Order, stride: u32, align: u32, off_slab: bool) -> Option<Self> {
        let bytes = u32::try_from(order.bytes()).ok()?;
        let used = |objects: u32| {
            let table = if off_slab {
                0
            } else {
                (objects * DESCRIPTOR).next_multiple_of(align)
            };
            table + objects * stride
        };
        let each = if off_slab { stride } else { stride + DESCRIPTOR };
        let mut nr_objects = (bytes / each).min(MAX_OBJECTS);
        while nr_objects > 0 && used(nr_objects) > bytes {
            nr_objects -= 1;
        }
        (nr_objects > 0).then(|| Self {
            order,
            nr_objects: u16::try_from(nr_objects).expect("at most MAX_OBJECTS"),
            left_over: bytes - used(nr_objects),
            off_slab,
        })
    }

    /// Whether at most an eighth is lost.
    fn is_good(&self) -> bool {
        u64::from(self.left_over) * 8 <= self.order.bytes()
    }
}

/// The alignment in bytes: never less than a word.
fn align_of(object_size: u32, alignment: Alignment) -> Option<u32> {
    match alignment {
        Alignment::Word => Some(WORD),
        Alignment::CacheLine => {
            let mut align = CACHE_LINE;
            while align > WORD && object_size <= align / 2 {
                align /= 2;
            }
            Some(align)
        }
        Alignment::Bytes(bytes) => {
            (bytes.is_power_of_two() && bytes as usize <= PAGE_BYTES).then(|| bytes.max(WORD))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: u32, alignment: Alignment) -> SlabLayout {
        SlabLayout::new(size, alignment, false).unwrap()
    }

    #[test]
    fn small_objects_have_their_descriptors_on_the_slab_and_big_ones_elsewhere() {
        assert!(!layout(504, Alignment::Word).off_slab);
        let big = layout(2048, Alignment::CacheLine);
        assert!(big.off_slab && big.first == 0 && big.nr_objects == 2 && big.order == Order::ZERO);
        // Three objects of 1300 bytes leave room for six bytes of descriptors.
        let roomy = layout(1300, Alignment::Word);
        assert!(!roomy.off_slab && roomy.first == 8, "{roomy:?}");
    }

    #[test]
    fn an_object_lies_in_as_few_cache_lines_as_possible() {
        for (size, align) in [
            (64, 64),
            (33, 64),
            (32, 32),
            (17, 32),
            (16, 16),
            (9, 16),
            (8, 8),
            (1, 8),
            (200, 64),
        ] {
            assert_eq!(layout(size, Alignment::CacheLine).align, align, "size {size}");
        }
        assert_eq!(layout(33, Alignment::Word).align, 8);
        assert_eq!(layout(33, Alignment::Bytes(256)).stride, 256);
    }

    #[test]
    fn everything_fits_the_slab_for_every_size() {
        for size in (1..2048)
            .chain((2048..=MAX_OBJECT).step_by(509))
            .chain([MAX_OBJECT])
        {
            for alignment in [Alignment::Word, Alignment::CacheLine, Alignment::Bytes(4096)] {
                for debugged in [false, true] {
                    let layout = SlabLayout::new(size, alignment, debugged).unwrap();
                    let last_colour = (layout.nr_colours - 1) * layout.colour_step;
                    let table = if layout.off_slab {
                        0
                    } else {
                        layout.descriptor_bytes()
                    };
                    let end = last_colour + layout.first + u32::from(layout.nr_objects) * layout.stride;
                    assert!(u64::from(end) <= layout.order.bytes(), "{layout:?}");
                    assert!(
                        table <= layout.first && layout.first.is_multiple_of(layout.align),
                        "{layout:?}"
                    );
                    assert!(layout.stride >= size && layout.stride.is_multiple_of(layout.align));
                    let (limit, batch) = layout.local_limits();
                    assert!((1..=120).contains(&limit) && (1..=limit).contains(&batch));
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(SlabLayout::new(0, Alignment::Word, false), None);
        assert_eq!(SlabLayout::new(MAX_OBJECT + 1, Alignment::Word, false), None);
        assert_eq!(SlabLayout::new(8, Alignment::Bytes(3), false), None);
        assert_eq!(SlabLayout::new(8, Alignment::Bytes(8192), false), None);
    }

    #[test]
    fn a_slab_wastes_little_unless_its_object_is_huge() {
        for size in 8..=1000 {
            let layout = layout(size, Alignment::Word);
            let used = u64::from(u32::from(layout.nr_objects) * layout.stride + layout.descriptor_bytes());
            assert!(
                used * 8 >= layout.order.bytes() * 7 || layout.order.number() == BREAK_ORDER,
                "{layout:?}"
            );
        }
    }
}
