//! Nodes: near memory first, then what is nearest (row P2).

use integration_tests::Home;

use super::{SHAPES, Shape, Stressed, in_every_shape};

#[test]
fn requests_stay_on_their_node_and_fall_back_by_distance() {
    in_every_shape("nodes", 3, |stressed| {
        let counts = stressed.vmstat();
        assert!(counts["numa_hit"] > 0 && counts["numa_local"] > 0, "{counts:?}");
        if stressed.shape.nodes == 1 {
            assert_eq!(
                (counts["numa_miss"], counts["numa_foreign"], counts["numa_other"]),
                (0, 0, 0),
                "{counts:?}"
            );
            return;
        }
        // With node 1 emptied, node 0 served what was near to it: a miss there is a foreign one here.
        assert!(counts["numa_miss"] > 0, "nothing fell back: {counts:?}");
        assert_eq!(counts["numa_miss"], counts["numa_foreign"], "{counts:?}");
        let zones = stressed.zones();
        let sum = |node: u32, name: &str| -> u64 {
            let of_node = zones.iter().filter(|zone| zone.name.node == node);
            of_node.map(|zone| zone.number(name)).sum()
        };
        assert_eq!(
            sum(0, "numa_miss"),
            counts["numa_miss"],
            "node 0 helps out: {zones:#?}"
        );
        assert_eq!(
            sum(1, "numa_foreign"),
            counts["numa_foreign"],
            "node 1 had none: {zones:#?}"
        );
        assert_eq!(
            (sum(1, "numa_miss"), sum(0, "numa_foreign")),
            (0, 0),
            "{zones:#?}"
        );
    });
}

#[test]
fn each_cpu_takes_from_its_own_node() {
    let home = Home::new();
    let stressed = Stressed::after(&home, Shape { cpus: 2, nodes: 2 }, "pcp", 20);
    let zones = stressed.zones();
    for node in [0, 1] {
        let of_node = || zones.iter().filter(move |zone| zone.name.node == node);
        let local: u64 = of_node().map(|zone| zone.number("numa_local")).sum();
        let other: u64 = of_node().map(|zone| zone.number("numa_other")).sum();
        assert!(
            local > 10 * other,
            "node {node}: {local} local requests, {other} others"
        );
    }
}

#[test]
fn the_guest_has_the_nodes_that_it_was_given() {
    for shape in SHAPES {
        let home = Home::new();
        let stressed = Stressed::after(&home, shape, "zones", 1);
        let zones = stressed.zones();
        let spanned = |node: u32| -> u64 {
            let of_node = zones.iter().filter(|zone| zone.name.node == node);
            of_node.map(|zone| zone.number("present") * 4 / 1024).sum()
        };
        let expected = if shape.nodes == 1 { [160, 0] } else { [96, 64] };
        for (node, mebibytes) in (0..).zip(expected) {
            let found = spanned(node);
            // A few hundred KiB below 1 MiB are no RAM.
            assert!(
                found <= mebibytes && found + 2 > mebibytes,
                "node {node} has {found} MiB: {zones:#?}"
            );
        }
    }
}

#[test]
fn the_memory_of_a_program_moves_to_another_node_while_it_checks_it() {
    let home = Home::new();
    let options = Shape { cpus: 1, nodes: 2 }.options();
    let mut words: Vec<&str> = options.iter().map(String::as_str).collect();
    words.extend(["--cmdline", "validate", "--program", "pager size=16M"]);
    let mut vm = home.start("move", &words);
    vm.wait_for_driver();
    vm.wait_for_checks(10);
    let pid = vm.programs()[0].pid.to_string();
    let moved = |to: &str, from: &str| -> u64 {
        let said = vm.order("guest", &["migratepages", &pid, from, to]).success();
        said.split(' ').next().unwrap().parse().unwrap()
    };
    let there = moved("1", "0");
    assert!(there >= 3500, "{there} of 4096 pages went");
    assert_eq!(moved("1", "0"), 0, "they are there");
    let back = moved("0", "1");
    assert!(back >= 3500, "{back} of 4096 pages came back");
    let order = |words: &[&str]| vm.order("guest", words);
    order(&["migratepages", &pid, "0", "2"]).assert_refusal(1, &["there is no node 2: they are 0 to 1"]);
    order(&["migratepages", &pid, "1", "1"])
        .assert_refusal(1, &["from node 1 to node 1", "have to be different ones"]);
    order(&["migratepages", "77", "0", "1"]).assert_refusal(1, &["no program 77"]);
    order(&["migratepages", &pid]).assert_refusal(1, &["migratepages takes"]);
    vm.wait_for_checks(10);
    for program in vm.programs() {
        assert!(program.checks_failed == 0 && program.is_alive(), "{program:?}");
    }
}
