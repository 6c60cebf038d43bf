//! Blocks emptied by swap-out, by remap, and by both: programs find what they wrote, and the counters say which way the pages went.

use integration_tests::{Home, Running, eventually, views};

/// What became of pages while blocks were emptied: left at once, were written, moved.
fn ways(vm: &Running) -> [u64; 3] {
    let counts = views::vmstat(&vm.guest("vmstat"));
    ["block_pages_dropped", "block_pages_written", "pgmigrate_success"].map(|name| counts[name])
}

/// Takes blocks with much on them out of use, and puts them back in use.
fn empty_full_blocks(vm: &Running) {
    let blocks = views::blocks(&vm.guest("blocks"));
    let full = |index: &usize| blocks[*index].used_pages > 256;
    let mut nr_blocks = 0;
    for block in (0..blocks.len()).filter(full) {
        let state = format!("memory/memory{block}/state");
        vm.order("guest", &["sysfs", &state, "offline"]).success();
        vm.order("guest", &["sysfs", &state, "online"]).success();
        nr_blocks += 1;
    }
    assert!(nr_blocks >= 4, "{blocks:?}");
}

#[test]
fn each_method_empties_blocks_in_its_own_way_and_loses_nothing() {
    let home = Home::new();
    let swap = home.swap_image("swap", "128M").display().to_string();
    let mut vm = home.start(
        "methods",
        &[
            "--cpus",
            "2",
            "--memory",
            "32M",
            "--hotplug",
            "128M",
            "--disk",
            &swap,
            "--cmdline",
            "swap=vda migrate=remap",
            // One that hardly ever looks at what it has, and one that always does.
            "--program",
            "pager size=28M pause_ms=2000 seed=1",
            "--program",
            "pager size=16M seed=2",
        ],
    );
    vm.wait_for_driver();
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "methods", "ps"]).status == 0
    });
    let order = |vm: &Running, words: &[&str]| vm.order("guest", words);
    let method = "memory/migrate_method";
    order(&vm, &["sysfs", method, "away"])
        .assert_refusal(1, &["away is not one of combined, swapout, remap"]);
    assert_eq!(
        order(&vm, &["sysfs", method]).success().trim_end(),
        "remap",
        "as the command line says"
    );

    vm.resize("160M");
    for way in ["remap", "swapout", "combined"] {
        order(&vm, &["sysfs", method, way]).success();
        eventually("all of it in memory, most of it on blocks", || {
            let rss: u64 = vm.programs().iter().map(|program| program.rss_kib).sum();
            (rss >= 44 << 10).then_some(())
        });
        let before = ways(&vm);
        let since = || {
            let after = ways(&vm);
            let [dropped, written, moved] = std::array::from_fn(|index| after[index] - before[index]);
            (dropped + written, moved)
        };
        empty_full_blocks(&vm);
        let (left, moved) = since();
        match way {
            "remap" => assert!(left == 0 && moved > 1000, "{way}: {left} left, {moved} moved"),
            "swapout" => assert!(left > 1000 && left > moved, "{way}: {left} left, {moved} moved"),
            // The one that always looks at what it has, 4096 pages of it, has most of that in use, whenever it has a processor.
            _ => eventually("some pages left and some moved", || {
                let (left, moved) = since();
                if left > 600 && moved > 600 {
                    return Some(());
                }
                println!("{way}: {left} left, {moved} moved");
                empty_full_blocks(&vm);
                None
            }),
        }
        vm.wait_for_checks(30);
    }
    vm.resize("64M");
    for program in vm.programs() {
        assert!(program.checks_failed == 0 && program.is_alive(), "{program:?}");
    }
}
