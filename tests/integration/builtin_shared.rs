//! Programs of the built-in guest that share memory, wait for each other, and reach for what is not theirs.

use integration_tests::{Home, Running, eventually, views};

fn counts(vm: &Running) -> views::Numbers {
    views::vmstat(&vm.guest("vmstat"))
}

/// Pages of shared memory that are in the swap area, over all mappings: `cache` has a line for each.
fn swapped_shmem(vm: &Running) -> u64 {
    let text = vm.guest("cache");
    let lines = text
        .lines()
        .skip(1)
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let shmem = lines.filter(|words| words[1] == "shmem");
    shmem.map(|words| words[6].parse::<u64>().unwrap()).sum()
}

#[test]
fn programs_share_memory_by_fork_and_by_name_and_wait_for_each_other_while_it_is_swapped() {
    let home = Home::new();
    let image = home.swap_image("swap", "128M");
    let image = image.to_str().unwrap();
    let arguments = [
        "--memory",
        "32M",
        "--cpus",
        "2",
        "--disk",
        image,
        "--cmdline",
        "swap=vda",
        "--program",
        "shared pages=1024 children=2 rounds=1 stay",
        "--program",
        "pager size=22M rounds=10 seed=2",
    ];
    let mut vm = home.start("shared", &arguments);
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "shared", "ps"]).status == 0
    });
    eventually("shared memory in the swap area", || {
        (swapped_shmem(&vm) > 256).then_some(())
    });
    eventually("the end of the family", || {
        vm.serial.text().contains(" shared: ").then_some(())
    });
    let said = vm.serial.text();
    assert!(said.contains("shared: 0 checks failed"), "{said}");
    assert!(!said.contains("is wrong") && !said.contains("killed"), "{said}");
    // What nobody can reach any more is freed, in memory and in the swap area.
    eventually("the end of all shared memory", || {
        let counts = counts(&vm);
        let left = ["nr_shmem", "shm_files", "shm_files_nameless"].map(|name| counts[name]);
        (left == [0; 3]).then_some(())
    });
    assert_eq!(vm.guest("cache").lines().count(), 1, "a mapping is left");
    let programs = vm.programs();
    assert!(programs[0].checks_ok > 5 * 1024, "{programs:?}");
    assert!(
        programs.iter().all(|program| program.checks_failed == 0),
        "{programs:?}"
    );
    assert_eq!(counts(&vm)["oom_kill"], 0);
}

#[test]
fn one_who_waits_and_has_to_end_leaves_its_place_to_the_next() {
    let home = Home::new();
    let arguments = ["--memory", "48M", "--program", "shared victim"];
    let mut vm = home.start("victim", &arguments);
    assert_eq!(vm.wait_for_end(), 0);
    let said = vm.serial.text();
    assert!(said.contains("shared: 0 checks failed"), "{said}");
    assert!(said.contains("program 2 is ended"), "{said}");
    assert!(
        !said.contains("is wrong") && said.contains("shared[2]: killed"),
        "{said}"
    );
}

#[test]
fn many_who_wait_for_one_word_on_many_cpus_are_called_once_each() {
    let home = Home::new();
    let program = "shared pages=16 children=7 rounds=60 seed=1";
    let mut vm = home.start("many", &["--memory", "64M", "--cpus", "4", "--program", program]);
    vm.serial.wait_for("shared: 0 checks failed");
    assert_eq!(vm.wait_for_end(), 0, "{}", vm.serial.text());
}

#[test]
fn a_program_that_reaches_for_what_it_has_no_right_to_ends_and_nothing_else_does() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "64M",
        "--program",
        "rights",
        "--program",
        "hog size=4M rounds=20",
    ];
    let mut vm = home.start("rights", &arguments);
    assert_eq!(vm.wait_for_end(), 0);
    let said = vm.serial.text();
    assert_eq!(said.matches(": refused").count(), 19, "{said}");
    assert!(!said.contains("wrong"), "{said}");
    for ended in ["rights[1]: exited(0)", "hog[2]: exited(0)"] {
        assert!(said.contains(ended), "{said}");
    }
}
