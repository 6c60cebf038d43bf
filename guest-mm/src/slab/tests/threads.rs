//! Real threads: CPUs that take and free, and one that shrinks.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::thread;

use super::world::{byte, machine, poke};
use crate::gfp::Gfp;
use crate::slab::{CacheSpec, Debugging};

#[test]
fn objects_freed_elsewhere_while_a_third_cpu_shrinks_are_never_lost_or_handed_out_twice() {
    for (size, debug) in [(64, Debugging::Off), (1024, Debugging::Off), (256, Debugging::On)] {
        let (slabs, mut cpus) = machine(3, 2, Debugging::Off);
        let cache = slabs
            .create(&CacheSpec {
                debug,
                ..CacheSpec::new("shared", size)
            })
            .unwrap();
        let (third, second, first) = (cpus.pop().unwrap(), cpus.pop().unwrap(), cpus.pop().unwrap());
        // Bounded: on a busy machine the first CPU would take all memory before the second has its turn.
        let (sender, receiver) = sync_channel(64);
        let over = AtomicBool::new(false);
        let (slabs, cache, over) = (&slabs, &cache, &over);
        let rounds = if debug == Debugging::On { 2000 } else { 20_000 };
        thread::scope(|scope| {
            scope.spawn(move || {
                for round in 0..rounds {
                    let value = u8::try_from(round % 256).unwrap();
                    let object = slabs.alloc(&first, cache, Gfp::KERNEL).unwrap();
                    poke(slabs, object, 0, &[value]);
                    sender.send((object, value)).unwrap();
                    let own = slabs.alloc(&first, cache, Gfp::KERNEL).unwrap();
                    poke(slabs, own, 0, &[0xee]);
                    slabs.free(&first, cache, own).unwrap();
                }
                drop(sender);
            });
            scope.spawn(move || {
                for (object, value) in receiver {
                    assert_eq!(byte(slabs, object, 0), value, "{object} was handed out twice");
                    slabs.free(&second, cache, object).unwrap();
                }
                over.store(true, Relaxed);
            });
            scope.spawn(move || {
                while !over.load(Relaxed) {
                    slabs.shrink(&third, cache);
                    slabs.reap(&third);
                    thread::yield_now();
                }
                slabs.validate().unwrap();
                slabs.destroy(&third, cache).unwrap();
                slabs.shrink_all(&third, u64::MAX);
            });
        });
        assert_eq!(slabs.nr_misuses(), 0, "{:?}", slabs.next_misuse());
        assert_eq!(slabs.source().used_pages(), 0);
    }
}
