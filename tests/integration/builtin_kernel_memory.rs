//! Blocks that are online for the kernel, filled with memory of its own: page tables of programs, names and inodes of the file system, large
//! pieces of its heap, and what a disk's driver shares with the disk. All of it leaves with the block, while programs run on.

use integration_tests::{Home, Running, eventually, views};

use super::builtin_files::{assert_whole, make_root};

/// Which of the kernel's memory has moved so far, in frames: tables, areas, slabs, drivers.
fn moved(vm: &Running) -> [u64; 4] {
    let counts = views::vmstat(&vm.guest("vmstat"));
    let names = ["tables", "vmalloc", "slabs", "dma"];
    names.map(|name| counts[format!("kernel_{name}_moved").as_str()])
}

pub(super) fn sysfs(vm: &Running, words: &[&str]) -> String {
    let words = [&["sysfs"], words].concat();
    vm.order("guest", &words).success().trim_end().to_owned()
}

/// Physical addresses of the memory that the disk's driver shares with it.
pub(super) fn dma(vm: &Running) -> Vec<u64> {
    let addresses = sysfs(vm, &["devices/vda/dma"]);
    let address = |word| u64::from_str_radix(word, 16).unwrap();
    addresses.split(' ').map(address).collect()
}

/// Blocks in use of a zone.
pub(super) fn blocks_in(vm: &Running, zone: &str) -> Vec<usize> {
    let nr_blocks = views::blocks(&vm.guest("blocks")).len();
    let is_there = |block: &usize| sysfs(vm, &[&format!("memory/memory{block}/zone")]) == zone;
    (0..nr_blocks).filter(is_there).collect()
}

/// Asks for a block to be something until it is: what has just been taken, or is just being freed, stays where it is for a moment.
pub(super) fn make(vm: &Running, block: usize, wanted: &str) {
    let state = format!("memory/memory{block}/state");
    eventually("a block that is what it is asked to be", || {
        let asked = vm.order("guest", &["sysfs", &state, wanted]);
        let now = sysfs(vm, &[&state]);
        if (now == "offline") == (wanted == "offline") {
            return Some(());
        }
        println!("memory{block} is {now}, not {wanted}: {asked:?}");
        None
    });
}

/// Waits for more checks of programs that go on, or have come to their end; none has failed.
pub(super) fn wait_for_checks(vm: &Running) {
    let sum = || -> u64 {
        let programs = vm.programs();
        for program in &programs {
            let is_sound = program.is_alive() || program.state == "exited(0)";
            assert!(program.checks_failed == 0 && is_sound, "{program:?}");
        }
        programs.iter().map(|program| program.checks_ok).sum()
    };
    let before = sum();
    eventually("more checks", || (sum() > before + 1000).then_some(()));
}

#[test]
fn a_block_of_the_kernels_leaves_with_tables_names_areas_and_drivers_on_it() {
    let home = Home::new();
    let image = make_root(&home, "64M");
    let disk = image.display().to_string();
    let line = "root=vda validate memhp_default_state=online_kernel";
    let options = [
        "--cpus",
        "2",
        "--memory",
        "192M",
        "--hotplug",
        "256M",
        "--disk",
        &disk,
    ];
    let programs = [
        "--program",
        "family chunks=4 children=4",
        "--program",
        "stress row=vmalloc pause_ms=1000",
        "--program",
        "/bin/names count=3000 rounds=2 times=100000",
        "--program",
        "/bin/files files=2 pages=300",
    ];
    let mut vm = home.start(
        "kernmem",
        &[&options[..], &["--cmdline", line], &programs].concat(),
    );
    vm.wait_for_driver();
    vm.resize("256M");
    let own = blocks_in(&vm, "Normal");
    assert!(!own.is_empty() && blocks_in(&vm, "Movable").is_empty());

    // The disk's driver goes where the kernel's memory is that can be moved.
    let at_boot = dma(&vm);
    sysfs(&vm, &["devices/vda/dma", "move"]);
    let inside: Vec<u64> = dma(&vm);
    assert!(
        inside.iter().zip(&at_boot).all(|(now, before)| now > before),
        "{inside:x?}"
    );
    wait_for_checks(&vm);

    // Where it goes to: other blocks, which anything may use.
    sysfs(&vm, &["memory/auto_online_blocks", "online_movable"]);
    vm.resize("384M");
    let mut all = [0; 4];
    eventually("each kind of the kernel's memory on blocks, and off them", || {
        let before = moved(&vm);
        for &block in &own {
            make(&vm, block, "offline");
        }
        let after = moved(&vm);
        for (sum, kind) in all.iter_mut().zip(0..) {
            let kind: usize = kind;
            *sum += after[kind] - before[kind];
        }
        for &block in &own {
            make(&vm, block, "online_kernel");
        }
        let [tables, areas, slabs, drivers] = all;
        (tables > 50 && areas > 50 && slabs > 10 && drivers > 0).then_some(())
    });
    assert!(dma(&vm).iter().zip(&inside).all(|(now, before)| now != before));
    wait_for_checks(&vm);

    // The host gets all of them back.
    vm.resize("192M");
    assert!(blocks_in(&vm, "Normal").is_empty());
    wait_for_checks(&vm);
    assert_eq!(vm.stats().number("violations"), 0);
    vm.order("stop", &[]).success();
    vm.wait_for_end();
    assert_whole(&home, &image);
}
