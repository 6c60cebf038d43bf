//! Many blocks that leave at once while a program counts what it gets done: what `cargo bench --bench migrate` relies on.

use integration_tests::{Home, views};

const MIB: u64 = 1 << 20;

#[test]
fn what_moves_off_one_of_many_blocks_does_not_move_again_and_the_program_says_what_it_did_meanwhile() {
    let home = Home::new();
    let mut vm = home.start(
        "slices",
        &[
            "--cpus",
            "2",
            "--memory",
            "576M",
            // 320 blocks of 2 MiB.
            "--hotplug",
            "640M",
            "--cmdline",
            "migrate=remap",
            "--program",
            "bench work=slices at=1024M size=640M keep=50%",
        ],
    );
    vm.wait_for_driver();
    vm.resize_to((576 + 640) * MIB);
    vm.serial.wait_for("]: measured before");
    let blocks = views::blocks(&vm.guest("blocks"));
    let used: u64 = blocks.iter().map(|block| block.used_pages).sum();
    assert!((70_000..95_000).contains(&used), "half of 163,840: {used}");

    vm.resize_to(576 * MIB);
    let moved = views::vmstat(&vm.guest("vmstat"))["pgmigrate_success"];
    assert!(
        moved >= used * 9 / 10 && moved <= used * 11 / 10,
        "{used} pages were in use, and {moved} moves were made of it"
    );

    assert_eq!(vm.wait_for_end(), 0, "it has checked all of its memory");
    let said = vm.serial.text();
    assert!(said.contains("exited(0)"), "{said}");
    let number = |text: &str, before: &str| -> usize {
        let (_, rest) = text
            .split_once(before)
            .unwrap_or_else(|| panic!("no {before} in {text}"));
        let end = rest.find(|letter: char| !letter.is_ascii_digit());
        rest[..end.unwrap_or(rest.len())].parse().unwrap()
    };
    let head = said.lines().find(|line| line.contains("slices of ")).unwrap();
    let (began, ended) = (number(head, "before, "), number(head, " to "));
    assert!(began >= 200 && began <= ended, "{head}");
    let lines = said.lines().filter_map(|line| line.split_once("]: slice "));
    let slices: Vec<&str> = lines.flat_map(|(_, slices)| slices.split(' ').skip(1)).collect();
    assert_eq!(slices.len(), ended + 200, "{head}");
    let checked: usize = slices.iter().map(|slice| number(&format!(" {slice}"), " ")).sum();
    assert!(checked > 1000, "the program got nothing done: {checked}");
}
