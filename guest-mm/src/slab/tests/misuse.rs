//! Planted errors, each reported exactly.

use std::string::ToString;
use std::vec::Vec;

use super::world::{TestSlabs, byte, debugged, machine, poke, put, small_machine, take};
use crate::gfp::Gfp;
use crate::slab::{CacheSpec, Damage, DamageKind, Debugging, Misuse, ObjAddr, Track};

fn damage(misuse: Misuse) -> Damage {
    match misuse {
        Misuse::Damaged(damage) => damage,
        other => panic!("{other}"),
    }
}

/// All that the journal has.
fn journal(slabs: &TestSlabs) -> Vec<Misuse> {
    core::iter::from_fn(|| slabs.next_misuse()).collect()
}

fn line(track: Option<Track>) -> u32 {
    let track = track.unwrap();
    assert_eq!((track.file, track.cpu), (file!(), 0));
    track.line
}

#[test]
fn an_overrun_is_reported_when_the_object_is_freed() {
    let (slabs, cpu) = small_machine();
    for size in [1, 8, 30, 100, 3000, 5000] {
        let cache = slabs.create(&debugged("watched", size)).unwrap();
        let object = slabs.alloc(&cpu, &cache, Gfp::KERNEL).unwrap();
        let taken = line!() - 1;
        poke(&slabs, object, i64::from(size) + 1, &[1, 2, 3]);
        let misuse = slabs.free(&cpu, &cache, object).unwrap_err();
        let found = damage(misuse);
        assert_eq!(
            (found.cache, found.object, found.kind),
            ("watched", object, DamageKind::Overrun)
        );
        assert_eq!((found.offset, found.nr_bytes), (i64::from(size) + 1, 3));
        assert_eq!(
            (&found.expected[..3], &found.found[..3]),
            (&[0xcc; 3][..], &[1, 2, 3][..])
        );
        assert_eq!((line(found.taken), found.freed), (taken, None));
        assert_eq!(journal(&slabs), [misuse]);
        // It was freed all the same, and restored.
        slabs.destroy(&cpu, &cache).unwrap();
        assert_eq!(journal(&slabs), []);
    }
}

#[test]
fn an_underrun_is_reported_with_a_negative_offset() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&debugged("watched", 100)).unwrap();
    let object = take(&slabs, &cpu, &cache, 2)[1];
    poke(&slabs, object, -3, &[7, 8]);
    let misuse = slabs.free(&cpu, &cache, object).unwrap_err();
    let found = damage(misuse);
    assert_eq!(
        (found.kind, found.offset, found.nr_bytes),
        (DamageKind::Underrun, -3, 2)
    );
    let text = misuse.to_string();
    let wanted = std::format!(
        "cache watched: object {object}: written in front of it: 2 bytes at offset -3: expected cc cc, found 07 08"
    );
    assert!(text.starts_with(&wanted), "{text}");
}

#[test]
fn a_write_after_the_free_is_reported_when_the_object_is_taken_again() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&debugged("watched", 64)).unwrap();
    let object = take(&slabs, &cpu, &cache, 1)[0];
    slabs.free(&cpu, &cache, object).unwrap();
    let freed = line!() - 1;
    poke(&slabs, object, 60, &[0x6b, 0x6c, 0x6b, 0]);
    assert_eq!(take(&slabs, &cpu, &cache, 1), [object]);
    let [misuse] = journal(&slabs)[..] else {
        panic!("one misuse")
    };
    let found = damage(misuse);
    assert_eq!(
        (found.kind, found.offset, found.nr_bytes),
        (DamageKind::UseAfterFree, 61, 3)
    );
    assert_eq!(
        (&found.expected[..3], &found.found[..3]),
        (&[0x6b, 0x6b, 0xa5][..], &[0x6c, 0x6b, 0][..])
    );
    assert_eq!(line(found.freed), freed);
    // Who takes an object finds neither his predecessor's bytes nor zeroes.
    assert!((0..64).all(|at| byte(&slabs, object, at) == 0x5a));
}

#[test]
fn a_write_after_the_free_is_reported_when_the_slab_goes() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&debugged("watched", 1000)).unwrap();
    let object = take(&slabs, &cpu, &cache, 1)[0];
    put(&slabs, &cpu, &cache, &[object]);
    poke(&slabs, object, 0, &[0; 1000]);
    slabs.destroy(&cpu, &cache).unwrap();
    let [misuse] = journal(&slabs)[..] else {
        panic!("one misuse")
    };
    let found = damage(misuse);
    assert_eq!(
        (found.object, found.kind, found.offset, found.nr_bytes),
        (object, DamageKind::UseAfterFree, 0, 1000)
    );
    assert_eq!((found.expected, found.found), ([0x6b; 16], [0; 16]));
}

#[test]
fn a_double_free_is_refused_and_names_who_was_first() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&debugged("watched", 64)).unwrap();
    let object = take(&slabs, &cpu, &cache, 1)[0];
    slabs.free(&cpu, &cache, object).unwrap();
    let first = line!() - 1;
    let misuse = slabs.free(&cpu, &cache, object).unwrap_err();
    let Misuse::DoubleFree {
        cache: "watched",
        object: at,
        freed,
    } = misuse
    else {
        panic!("{misuse}")
    };
    assert_eq!((at, line(freed)), (object, first));
    assert_eq!(journal(&slabs), [misuse]);
    slabs.validate().unwrap();
    // Also when the object is back on its slab.
    slabs.reap(&cpu);
    slabs.reap(&cpu);
    slabs.shrink(&cpu, &slabs.create(&CacheSpec::new("other", 8)).unwrap());
    assert!(slabs.free(&cpu, &cache, object).is_err());
}

#[test]
fn a_free_to_the_wrong_cache_is_refused_and_names_both() {
    let (slabs, cpu) = small_machine();
    let (mine, other) = (
        slabs.create(&debugged("mine", 64)).unwrap(),
        slabs.create(&debugged("other", 64)).unwrap(),
    );
    let object = take(&slabs, &cpu, &mine, 1)[0];
    let misuse = slabs.free(&cpu, &other, object).unwrap_err();
    assert_eq!(
        misuse,
        Misuse::WrongCache {
            cache: "other",
            object,
            owner: "mine"
        }
    );
    assert_eq!(journal(&slabs), [misuse]);
    put(&slabs, &cpu, &mine, &[object]);
    slabs.validate().unwrap();
}

#[test]
fn a_free_of_what_is_no_object_is_refused() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&debugged("watched", 64)).unwrap();
    let object = take(&slabs, &cpu, &cache, 1)[0];
    let inside = ObjAddr::new(object.gpa() + 8);
    let Err(Misuse::Misaligned {
        cache: "watched",
        object: at,
        first,
    }) = slabs.free(&cpu, &cache, inside)
    else {
        panic!("an address inside an object was freed")
    };
    assert!(at == inside && (object.gpa() - first.gpa()).is_multiple_of(u64::from(cache.layout().stride)));
    for foreign in [
        ObjAddr::new(0),
        ObjAddr::new(8 << 20),
        ObjAddr::new(1 << 60),
        ObjAddr::new(u64::MAX),
    ] {
        let misuse = Misuse::Foreign {
            cache: "watched",
            object: foreign,
        };
        assert_eq!(slabs.free(&cpu, &cache, foreign), Err(misuse));
        let misuse = Misuse::Foreign {
            cache: "kfree",
            object: foreign,
        };
        assert_eq!(slabs.kfree(&cpu, foreign), Err(misuse));
    }
    slabs.validate().unwrap();
}

#[test]
fn every_byte_around_an_object_is_watched() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&debugged("watched", 20)).unwrap();
    for offset in (-8..0).chain(20..32) {
        let object = take(&slabs, &cpu, &cache, 1)[0];
        let value = byte(&slabs, object, offset);
        poke(&slabs, object, offset, &[!value]);
        let found = damage(slabs.free(&cpu, &cache, object).unwrap_err());
        assert_eq!(
            (found.offset, found.nr_bytes, found.found[0]),
            (offset, 1, !value)
        );
    }
}

#[test]
fn without_debugging_bad_frees_are_noticed_at_the_slab_and_kept_out() {
    let (slabs, cpu) = small_machine();
    let (cache, other) = (
        slabs.create(&CacheSpec::new("plain", 64)).unwrap(),
        slabs.create(&CacheSpec::new("other", 64)).unwrap(),
    );
    let objects = take(&slabs, &cpu, &cache, 2);
    let stranger = take(&slabs, &cpu, &other, 1)[0];
    let inside = ObjAddr::new(objects[0].gpa() + 8);
    let nowhere = ObjAddr::new(64 << 20);
    put(
        &slabs,
        &cpu,
        &cache,
        &[objects[1], objects[1], inside, stranger, nowhere],
    );
    slabs.shrink(&cpu, &cache);
    let found = journal(&slabs);
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found.contains(&Misuse::DoubleFree {
        cache: "plain",
        object: objects[1],
        freed: None
    }));
    assert!(found.contains(&Misuse::WrongCache {
        cache: "plain",
        object: stranger,
        owner: "other"
    }));
    assert!(found.contains(&Misuse::Foreign {
        cache: "plain",
        object: nowhere
    }));
    assert!(
        found
            .iter()
            .any(|misuse| matches!(misuse, Misuse::Misaligned { object, .. } if *object == inside))
    );
    slabs.validate().unwrap();
    put(&slabs, &cpu, &cache, &objects[..1]);
    slabs.destroy(&cpu, &cache).unwrap();
}

#[test]
fn leaked_objects_are_named_and_the_cache_lives_on() {
    for debug in [Debugging::Off, Debugging::On] {
        let (slabs, cpus) = machine(2, 2, debug);
        let cache = slabs
            .create(&CacheSpec {
                debug,
                ..CacheSpec::new("leaky", 200)
            })
            .unwrap();
        let mut objects = take(&slabs, &cpus[0], &cache, 80);
        objects.extend(take(&slabs, &cpus[1], &cache, 20));
        objects.sort_unstable();
        put(&slabs, &cpus[1], &cache, &objects[3..]);
        let leak = slabs.destroy(&cpus[0], &cache).unwrap_err();
        assert_eq!((leak.cache, leak.nr_objects), ("leaky", 3));
        let mut named = leak.objects.clone();
        named.sort_unstable();
        assert_eq!(named, objects[..3]);
        assert!(
            leak.to_string()
                .starts_with("cache leaky: 3 objects still in use: 0x"),
            "{leak}"
        );
        slabs.validate().unwrap();
        put(&slabs, &cpus[0], &cache, &objects[..3]);
        assert_eq!(slabs.destroy(&cpus[0], &cache), Ok(()));
        assert!(
            slabs.alloc(&cpus[0], &cache, Gfp::KERNEL).is_err(),
            "a destroyed cache grows no more"
        );
    }
}

#[test]
fn debugged_objects_with_a_constructor_are_constructed_whenever_they_are_taken() {
    let (slabs, cpu) = small_machine();
    let spec = CacheSpec {
        constructor: Some(|frames, object| {
            let pfn = crate::Pfn::containing(object.gpa()).unwrap();
            frames.write_bytes(pfn, (object.gpa() % 4096) as usize, b"made");
        }),
        ..debugged("made", 32)
    };
    let cache = slabs.create(&spec).unwrap();
    for _ in 0..2 {
        let object = take(&slabs, &cpu, &cache, 1)[0];
        let start: Vec<u8> = (0..5).map(|at| byte(&slabs, object, at)).collect();
        assert_eq!(start, b"made\x5a");
        put(&slabs, &cpu, &cache, &[object]);
    }
    assert_eq!(slabs.nr_misuses(), 0);
}

#[test]
fn the_journal_keeps_the_last_of_many() {
    let (slabs, cpu) = small_machine();
    for number in 0..40 {
        slabs.kfree(&cpu, ObjAddr::new(number * 8)).unwrap_err();
    }
    let kept: Vec<u64> = journal(&slabs)
        .iter()
        .map(|misuse| match misuse {
            Misuse::Foreign { object, .. } => object.gpa() / 8,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(kept, (8..40).collect::<Vec<_>>());
    assert_eq!(slabs.nr_misuses(), 40);
}
