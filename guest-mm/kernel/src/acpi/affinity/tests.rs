//! SRATs and SLITs built byte by byte from the specification, right and wrong.

use super::*;
use proptest::prelude::*;
use std::vec;

const MIB: u64 = 1 << 20;

fn srat(revision: u8, structures: &[Vec<u8>]) -> Vec<u8> {
    let mut table = vec![0; SRAT_HEADER];
    table[8] = revision;
    table.extend(structures.concat());
    table
}

fn slit(rows: &[&[u8]]) -> Vec<u8> {
    let mut table = vec![0; HEADER];
    table.extend((rows.len() as u64).to_le_bytes());
    table.extend(rows.concat());
    table
}

fn memory(domain: u32, start: u64, len: u64, flags: u32) -> Vec<u8> {
    let mut bytes = vec![1, 40];
    bytes.extend(domain.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(start.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(flags.to_le_bytes());
    bytes.extend([0; 8]);
    bytes
}

fn apic(domain: u32, id: u8, flags: u32) -> Vec<u8> {
    let [low, high @ ..] = domain.to_le_bytes();
    let mut bytes = vec![0, 16, low, id];
    bytes.extend(flags.to_le_bytes());
    bytes.push(0);
    bytes.extend(high);
    bytes.extend([0; 4]);
    bytes
}

fn x2apic(domain: u32, id: u32, flags: u32) -> Vec<u8> {
    let mut bytes = vec![2, 24, 0, 0];
    for word in [domain, id, flags, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// Domain 0: CPU 0, 64 MiB. Domain 5: CPUs 1 and 300, 32 MiB, and a region at 4 GiB.
fn two_nodes() -> Vec<u8> {
    srat(
        3,
        &[
            apic(5, 1, 1),
            apic(0, 0, 1),
            x2apic(5, 300, 1),
            apic(9, 7, 0),
            // A generic initiator means nothing here.
            [vec![5, 32], vec![0; 30]].concat(),
            memory(5, 64 * MIB, 32 * MIB, 1),
            memory(0, 0, 64 * MIB, 1),
            memory(5, 4096 * MIB, 1024 * MIB, 3),
            memory(6, 8192 * MIB, 1024 * MIB, 2),
        ],
    )
}

#[test]
fn memory_cpus_and_distances_are_found_by_node() {
    let distances: Vec<Vec<u8>> = (0..6)
        .map(|from| (0..6).map(|to| if from == to { 10 } else { 21 + from }).collect())
        .collect();
    let rows: Vec<&[u8]> = distances.iter().map(Vec::as_slice).collect();
    let affinity = Affinity::read(Some(&two_nodes()), Some(&slit(&rows))).unwrap();
    assert_eq!(
        affinity.nr_nodes(),
        2,
        "a structure that is not enabled makes no node"
    );
    assert_eq!(
        [0, 1, 300, 7].map(|id| affinity.node_of_cpu(id)),
        [0, 1, 1, 0],
        "an unknown CPU is of node 0"
    );
    assert_eq!(
        (affinity.node_of_domain(5), affinity.node_of_domain(1)),
        (Some(1), None)
    );
    assert_eq!(
        [0, 70 * MIB, 4096 * MIB, 9000 * MIB].map(|gpa| affinity.node_of_address(gpa)),
        [0, 1, 1, 0]
    );
    let hot: Vec<bool> = affinity
        .memory()
        .iter()
        .map(|memory| memory.is_hot_pluggable)
        .collect();
    assert_eq!(hot, [false, false, true]);
    // Row of domain 0 is 21, row of domain 5 is 26.
    assert_eq!((affinity.distance(0, 1), affinity.distance(1, 0)), (21, 26));
}

#[test]
fn without_an_srat_everything_is_of_one_node() {
    let one = Affinity::read(None, Some(&slit(&[&[10, 99], &[99, 10]]))).unwrap();
    assert_eq!(one, Affinity::default());
    assert_eq!(
        (one.nr_nodes(), one.node_of_cpu(3), one.node_of_address(1 << 40)),
        (1, 0, 0)
    );
    for empty in [&[][..], &[0; 36], &srat(3, &[])] {
        assert_eq!(Affinity::read(Some(empty), None), Ok(Affinity::default()));
    }
}

#[test]
fn ranges_are_split_at_borders_between_nodes_rounded_to_the_unit() {
    let table = srat(
        3,
        &[
            memory(0, 0, 5 * MIB, 1),
            memory(1, 5 * MIB, 3 * MIB, 1),
            memory(1, 8 * MIB, MIB, 1),
        ],
    );
    let affinity = Affinity::read(Some(&table), None).unwrap();
    assert_eq!(
        affinity.split(MIB..20 * MIB, 2 * MIB),
        [(MIB..6 * MIB, 0), (6 * MIB..10 * MIB, 1), (10 * MIB..20 * MIB, 0)]
    );
    assert_eq!(affinity.split(6 * MIB..7 * MIB, 2 * MIB), [(6 * MIB..7 * MIB, 1)]);
    assert_eq!(affinity.split(3..3, 2 * MIB), []);
    assert_eq!(Affinity::default().split(0..MIB, 2 * MIB), [(0..MIB, 0)]);
}

#[test]
fn an_srat_that_contradicts_itself_is_refused() {
    for (structures, error) in [
        (
            vec![memory(0, u64::MAX, 2, 1)],
            AffinityError::Memory {
                start: u64::MAX,
                len: 2,
            },
        ),
        (
            vec![memory(0, 0, 2 * MIB, 1), memory(1, MIB, MIB, 1)],
            AffinityError::Overlap(MIB),
        ),
        (vec![apic(0, 3, 1), x2apic(1, 3, 1)], AffinityError::CpuTwice(3)),
        (
            (0..9).map(|domain| apic(domain, 0, 1)).collect(),
            AffinityError::TooManyNodes(9),
        ),
    ] {
        assert_eq!(Affinity::read(Some(&srat(3, &structures)), None), Err(error));
    }
}

#[test]
fn before_revision_2_a_domain_has_8_bits() {
    let structures = [apic(0x700, 0, 1), memory(0xabcd_ef01, 0, MIB, 1)];
    assert_eq!(
        Affinity::read(Some(&srat(1, &structures)), None).unwrap().domains,
        [0, 1]
    );
    assert_eq!(
        Affinity::read(Some(&srat(2, &structures)), None).unwrap().domains,
        [0x700, 0xabcd_ef01]
    );
}

#[test]
fn a_slit_that_makes_no_sense_is_passed_over() {
    let nodes = srat(3, &[apic(0, 0, 1), apic(1, 1, 1)]);
    for wrong in [
        slit(&[&[11, 20], &[20, 10]]),
        slit(&[&[10, 10], &[20, 10]]),
        slit(&[&[10, 20], &[9, 10]]),
        slit(&[&[10, 20]]),
        [&[0; HEADER][..], &u64::MAX.to_le_bytes()].concat(),
        vec![0; HEADER],
    ] {
        let affinity = Affinity::read(Some(&nodes), Some(&wrong)).unwrap();
        assert_eq!(
            (
                affinity.distance(0, 0),
                affinity.distance(0, 1),
                affinity.distance(1, 0)
            ),
            (10, 20, 20)
        );
    }
    // One that knows one domain only says nothing of the other.
    let affinity = Affinity::read(Some(&nodes), Some(&slit(&[&[10]]))).unwrap();
    assert_eq!(affinity.distance(0, 1), 20);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_hand_out_a_node_that_is_not_there(
        srat in prop::collection::vec(any::<u8>(), 0..400), slit in prop::collection::vec(any::<u8>(), 0..120),
        kinds in prop::collection::vec((0_u8..4, 0_u8..48), 0..12), gpa in any::<u64>(), apic_id in any::<u32>(),
    ) {
        // Random bytes with structures of plausible kinds and lengths in them.
        let mut srat = srat;
        let mut at = SRAT_HEADER;
        for (kind, len) in kinds {
            if let Some([first, second]) = srat.get_mut(at..at + 2) {
                (*first, *second) = (kind, len);
            }
            at += usize::from(len).max(2);
        }
        if let Ok(affinity) = Affinity::read(Some(&srat), Some(&slit)) {
            let nodes = affinity.nr_nodes();
            prop_assert!((1..=8).contains(&nodes));
            prop_assert!(affinity.node_of_cpu(apic_id) < nodes && affinity.node_of_address(gpa) < nodes);
            let pieces = affinity.split(0..gpa, 2 * MIB);
            prop_assert!(pieces.iter().all(|(_, node)| *node < nodes));
            prop_assert!(pieces.windows(2).all(|pair| pair[0].0.end == pair[1].0.start && pair[0].1 != pair[1].1));
            for (from, to) in (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to))) {
                prop_assert_eq!(affinity.distance(from, to) == LOCAL_DISTANCE, from == to);
            }
        }
    }
}
