//! Files that programs of the built-in guest look at in an order of their own (`remap_file_pages`): where such a page is mapped only page tables
//! know, and reclaim and migration find it there all the same.

use integration_tests::{Home, Running, eventually, views};

/// Pages of a file, by its size, once there is one of that size: in memory, and in the swap area.
/// `MAPPING KIND SIZE PAGES DIRTY WRITEBACK SWAPPED SPACES`.
fn cached(vm: &Running, kind: &str, pages: u64) -> Option<(u64, u64)> {
    let text = vm.guest("cache");
    let lines = text
        .lines()
        .skip(1)
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let bytes = (pages * 4096).to_string();
    let mut of_that_size = lines.filter(|words| words[1] == kind && words[2] == bytes);
    let found = of_that_size.next()?;
    assert!(
        of_that_size.next().is_none(),
        "two {kind} of {bytes} bytes: {text}"
    );
    Some((found[3].parse().unwrap(), found[6].parse().unwrap()))
}

/// A guest with a file system and these programs.
fn start(home: &Home, arguments: &[&str]) -> Running {
    let root = home.files().join("root.img").display().to_string();
    home.run(["disk", "make", &root, "--size", "32M", "--programs"])
        .success();
    let mut vm = home.start("window", &[&["--disk", &root], arguments].concat());
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "window", "ps"]).status == 0
    });
    vm
}

/// Waits until each of the first two programs has looked at all of its pages so many times more, which it reports at the end of each.
fn wait_for_rounds(vm: &Running, pages: [u64; 2], rounds: u64) {
    let done = || -> Vec<u64> { vm.programs().iter().map(|it| it.checks_ok).collect() };
    let before = done();
    eventually("rounds of both", || {
        let now = done();
        (0..2)
            .all(|it| now[it] >= before[it] + rounds * pages[it])
            .then_some(())
    });
    for program in vm.programs() {
        assert_eq!(program.checks_failed, 0, "{program:?}");
        assert!(program.is_alive(), "{program:?}");
    }
}

#[test]
fn pages_in_an_order_of_their_own_leave_memory_and_come_back_where_they_were() {
    const PAGES: [u64; 2] = [1024, 768];
    let home = Home::new();
    let swap = home.swap_image("swap", "64M").display().to_string();
    let vm = start(
        &home,
        &[
            "--disk",
            &swap,
            "--memory",
            "40M",
            "--cpus",
            "2",
            "--cmdline",
            "root=vda swap=vdb validate",
            "--program",
            "window file=/shm/window pages=1024 pause_ms=1000 seed=1",
            "--program",
            "window file=/window pages=768 pause_ms=1000 seed=2",
            "--program",
            "pager size=28M seed=3",
        ],
    );
    // Both are mapped all the time.
    let has_left = || {
        let (_, swapped) = cached(&vm, "shmem", PAGES[0])?;
        let (in_memory, _) = cached(&vm, "file", PAGES[1])?;
        (swapped > PAGES[0] / 2 && in_memory < PAGES[1] / 2).then_some(())
    };
    eventually("most pages of both out of memory", has_left);
    wait_for_rounds(&vm, PAGES, 1);
    assert_eq!(views::vmstat(&vm.guest("vmstat"))["oom_kill"], 0);
}

#[test]
fn pages_in_an_order_of_their_own_move_with_their_blocks_and_are_found() {
    const PAGES: [u64; 2] = [1536, 768];
    let home = Home::new();
    let mut vm = start(
        &home,
        &[
            "--memory",
            "48M",
            "--hotplug",
            "32M,requested=32M",
            "--cpus",
            "2",
            "--cmdline",
            "root=vda migrate=remap validate",
            "--program",
            "window file=/shm/window pages=1536 seed=1",
            "--program",
            "window file=/window pages=768 seed=2",
        ],
    );
    vm.wait_until("the requested memory being plugged", |stats| {
        stats.number("plugged_size") == 32 << 20
    });
    wait_for_rounds(&vm, PAGES, 2);
    let on_blocks = |vm: &Running| -> u64 {
        let blocks = views::blocks(&vm.guest("blocks"));
        blocks.iter().map(|block| block.used_pages).sum()
    };
    let moved = |vm: &Running| views::vmstat(&vm.guest("vmstat"))["pgmigrate_success"];
    let (there, before) = (on_blocks(&vm), moved(&vm));
    assert!(there > 2000, "{there} pages are on blocks");
    let report = vm.try_resize(48 << 20, 60);
    assert_eq!(report.text("outcome"), "reached", "{report:?}");
    assert!(
        moved(&vm) > before + 2000,
        "{} pages have moved",
        moved(&vm) - before
    );
    wait_for_rounds(&vm, PAGES, 1);
    // And back to where there is room.
    vm.resize("80M");
    wait_for_rounds(&vm, PAGES, 1);
}
