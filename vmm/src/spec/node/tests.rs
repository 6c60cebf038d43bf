//! What becomes of `--node`, and each rule by its message.

use proptest::prelude::*;

use super::*;
use crate::spec::{GIB, MIB};

fn parse(texts: &[&str], total: Option<u64>, cpus: u8) -> Result<(Vec<NodeSpec>, u64), String> {
    let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    let cpus = NonZeroU8::new(cpus).unwrap();
    nodes(&texts, total, cpus).map_err(|error| crate::cli::chain(&error))
}

fn node(memory: u64, cpus: &[u8], distances: &[u8]) -> NodeSpec {
    NodeSpec {
        memory,
        cpus: cpus.to_vec(),
        distances: distances.to_vec(),
    }
}

#[test]
fn everything_said_arrives() {
    let texts = [
        "memory=128M,cpus=0-1:3,distance=10:15:40",
        "distance=15:10:30,cpus=2,memory=64M",
        "memory=0,cpus=none",
    ];
    let expected = vec![
        node(128 * MIB, &[0, 1, 3], &[10, 15, 40]),
        node(64 * MIB, &[2], &[15, 10, 30]),
        node(0, &[], &[40, 30, 10]),
    ];
    assert_eq!(parse(&texts, None, 4), Ok((expected.clone(), 192 * MIB)));
    assert_eq!(
        parse(&texts, Some(192 * MIB), 4),
        Ok((expected, 192 * MIB)),
        "--memory may repeat the sum"
    );
}

#[test]
fn what_is_left_out_is_shared_evenly() {
    let expected = vec![
        node(86 * MIB, &[0, 1], &[10, 20, 20]),
        node(86 * MIB, &[2], &[20, 10, 20]),
        node(84 * MIB, &[3], &[20, 20, 10]),
    ];
    assert_eq!(
        parse(&["", "", ""], Some(256 * MIB), 4),
        Ok((expected, 256 * MIB))
    );
    let (rest, sum) = parse(&["memory=64M,cpus=3", ""], Some(GIB), 4).unwrap();
    assert_eq!(rest[1], node(GIB - 64 * MIB, &[0, 1, 2], &[20, 10]));
    assert_eq!(sum, GIB);
    let (default, _) = parse(&["", ""], None, 1).unwrap();
    assert_eq!(default[0], node(256 * MIB, &[0], &[10, 20]));
    assert_eq!(default[1], node(256 * MIB, &[], &[20, 10]));
}

#[test]
fn without_a_node_the_machine_is_as_before() {
    assert_eq!(parse(&[], Some(GIB), 4), Ok((Vec::new(), GIB)));
    assert_eq!(parse(&[], None, 4), Ok((Vec::new(), DEFAULT_MEMORY)));
}

#[test]
fn every_rule_is_named_with_the_value_that_breaks_it() {
    let cases: [(&[&str], Option<u64>, &str); 23] = [
        (&[""; 9], None, "--node given 9 times: a VM has at most 8 nodes"),
        (
            &["ram=1G"],
            None,
            "--node \"ram=1G\": \"ram=1G\" is not one of memory=SIZE",
        ),
        (&["cpus=0,cpus=1"], None, "\"cpus=1\" is not one of"),
        (&["memory=64M,"], None, "\"\" is not one of"),
        (&["memory=lots"], None, "--node memory: \"lots\" is not a size"),
        (
            &["memory=16M"],
            None,
            "--node 0 memory=16 MiB: the smallest is 32 MiB",
        ),
        (
            &["memory=64M", "memory=3M"],
            None,
            "--node 1 memory=3 MiB: not a multiple of 2 MiB",
        ),
        (
            &["memory=64M", ""],
            None,
            "--node 1 without memory=: the other nodes have it",
        ),
        (
            &["memory=64M", "memory=64M"],
            Some(256 * MIB),
            "--memory 256 MiB: the nodes have 128 MiB together",
        ),
        (
            &["memory=64M", ""],
            Some(32 * MIB),
            "--memory 32 MiB: the nodes have 64 MiB together",
        ),
        (
            &["memory=16777215T", "memory=16777215T"],
            Some(GIB),
            "the nodes have 18446744073709551615 bytes together",
        ),
        (&["cpus=0-4"], None, "--node 0 cpus=\"0-4\": CPUs are 0 to 3"),
        (&["cpus=2-1"], None, "--node 0 cpus=\"2-1\""),
        (&["cpus=+1"], None, "--node 0 cpus=\"+1\""),
        (&["cpus="], None, "--node 0 cpus=\"\""),
        (&["cpus=0:0"], None, "--node 0 cpus: CPU 0 is of node 0 already"),
        (
            &["cpus=0-2", "cpus=2-3"],
            None,
            "--node 1 cpus: CPU 2 is of node 0 already",
        ),
        (&["cpus=0-1", "cpus=3"], None, "--node: CPU 2 is of no node"),
        (&["distance=10:20"], None, "one number for each of the 1 nodes"),
        (&["distance=20:10", ""], None, "--node 0 distance=\"20:10\""),
        (&["distance=10:10", ""], None, "--node 0 distance=\"10:10\""),
        (&["distance=10:255", ""], None, "--node 0 distance=\"10:255\""),
        (
            &["distance=10:20", "distance=21:10"],
            None,
            "--node 1 distance: 21 to node 0, which has 20 the other way",
        ),
    ];
    for (texts, total, message) in cases {
        let refusal = parse(texts, total, 4).expect_err(message);
        assert!(refusal.contains(message), "{texts:?}: {refusal}");
    }
}

#[test]
fn the_region_is_of_a_node_that_exists() {
    assert_eq!(node_number("1", 2), Ok(1));
    for text in ["2", "-1", "+1", "", "256", "one"] {
        let message = format!("--hotplug node={text:?}: the nodes are 0 to 1");
        assert_eq!(node_number(text, 2).unwrap_err().to_string(), message);
    }
}

proptest! {
    #[test]
    fn whatever_passes_keeps_every_rule(
        memory in prop::collection::vec(prop::option::of(0_u64..64), 1..=9), total in prop::option::of(0_u64..256),
        cpus in 1_u8..=16, named in prop::collection::vec(prop::option::of((0_u8..16, 0_u8..16)), 9),
        distance in prop::option::of(0_u8..),
    ) {
        let texts: Vec<String> = memory.iter().zip(&named).map(|(memory, cpus)| {
            let memory = memory.map(|units| format!("memory={}", units * MEMORY_UNIT));
            let cpus = cpus.map(|(first, last)| format!("cpus={first}-{last}"));
            let distance = distance.map(|far| format!("distance=10:{far}"));
            [memory, cpus, distance].into_iter().flatten().collect::<Vec<_>>().join(",")
        }).collect();
        let total = total.map(|units| units * MEMORY_UNIT);
        if let Ok((nodes, sum)) = nodes(&texts, total, NonZeroU8::new(cpus).unwrap()) {
            prop_assert!(nodes.len() <= MAX_NODES && nodes[0].memory >= MIN_MEMORY);
            prop_assert_eq!(nodes.iter().map(|node| node.memory).sum::<u64>(), sum);
            prop_assert!(total.is_none_or(|total| total == sum));
            prop_assert!(nodes.iter().all(|node| node.memory.is_multiple_of(MEMORY_UNIT)));
            let mut all: Vec<u8> = nodes.iter().flat_map(|node| node.cpus.clone()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..cpus).collect::<Vec<_>>());
            for (from, node) in nodes.iter().enumerate() {
                prop_assert_eq!(node.distances.len(), nodes.len());
                for (to, distance) in node.distances.iter().enumerate() {
                    prop_assert_eq!(*distance == LOCAL_DISTANCE, from == to);
                    prop_assert_eq!(*distance, nodes[to].distances[from]);
                }
            }
        }
    }
}
