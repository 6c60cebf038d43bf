//! The built-in guest with less memory than its programs use: their pages go to a swap area and come back, and what happens when there is no
//! more, or the disk fails.

use std::fs::OpenOptions;
use std::path::Path;

use integration_tests::views::{self, Process};
use integration_tests::{Home, Running, eventually};

/// A guest with so much memory, two CPUs, and these disks.
fn start(home: &Home, disks: &[&Path], rest: &[&str]) -> Running {
    let disks: Vec<String> = disks.iter().map(|path| path.display().to_string()).collect();
    let with_disks = disks.iter().flat_map(|disk| ["--disk", disk.as_str()]);
    let arguments: Vec<&str> = ["--cpus", "2"]
        .into_iter()
        .chain(with_disks)
        .chain(rest.iter().copied())
        .collect();
    let mut vm = home.start("swapping", &arguments);
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "swapping", "ps"]).status == 0
    });
    vm
}

fn program(vm: &Running, pid: u64) -> Process {
    let programs = vm.programs();
    let found = programs.iter().find(|program| program.pid == pid);
    found
        .unwrap_or_else(|| panic!("no program {pid}: {programs:?}"))
        .clone()
}

fn assert_nothing_failed(programs: &[Process]) {
    for program in programs {
        assert_eq!(program.checks_failed, 0, "{program:?}");
    }
}

/// The areas as the guest lists them: name, KiB of it, KiB in use, priority, errors.
fn areas(vm: &Running) -> Vec<Vec<String>> {
    let text = vm.guest("swaps");
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    text.lines().skip(1).map(words).collect()
}

#[test]
fn programs_that_use_twice_the_memory_find_what_they_wrote_while_blocks_come_and_go() {
    let home = Home::new();
    let [first, second] = ["a", "b"].map(|name| home.swap_image(name, "64M"));
    let plain = home.files().join("plain");
    std::fs::File::create(&plain).unwrap().set_len(1 << 20).unwrap();
    let mut vm = start(
        &home,
        &[&first, &second, &plain],
        &[
            "--memory",
            "32M",
            "--hotplug",
            "64M",
            "--cmdline",
            "swap=vda,pri=1 swap=vdb,pri=1 swap=vda swap=vdc swap=vdd scratch=vdb validate",
            "--program",
            "pager size=24M pages=small seed=1",
            "--program",
            "pager size=24M pages=mixed seed=2",
        ],
    );
    vm.wait_for_driver();
    vm.wait_for_checks(500);
    vm.resize("48M");
    vm.wait_for_checks(500);
    vm.resize("32M");
    assert_eq!(vm.stats().number("plugged_size"), 0);
    vm.wait_for_checks(500);
    assert_nothing_failed(&vm.programs());

    let counts = views::vmstat(&vm.guest("vmstat"));
    for name in [
        "pswpout",
        "pswpin",
        "pgmajfault",
        "pgscan",
        "pgsteal_kswapd",
        "pageoutrun",
        "reclaim_throttled",
    ] {
        assert!(counts[name] > 0, "{name}: {counts:?}");
    }
    assert!(counts["pswpin"] > 1000 && counts["oom_kill"] == 0, "{counts:?}");
    // Areas of the same priority take turns; what is none is reported and left alone.
    let areas = areas(&vm);
    assert_eq!(areas.len(), 2, "{areas:?}");
    for (area, name) in areas.iter().zip(["/dev/vda", "/dev/vdb"]) {
        assert_eq!(
            (area[0].as_str(), area[4].as_str(), area[5].as_str()),
            (name, "1", "0")
        );
        assert!(area[3].parse::<u64>().unwrap() > 1024, "{areas:?}");
    }
    let said = vm.serial.text();
    assert!(
        said.contains("swap=vdc: not a swap area: `ballast disk swap` makes one"),
        "{said}"
    );
    assert!(said.contains("swap=vdd: there is no such disk"), "{said}");
    // What is in use is nobody else's.
    assert!(
        said.contains("swap=vda: it is in use already, as a swap area"),
        "{said}"
    );
    assert!(said.contains("scratch=vdb ignored"), "{said}");
    assert!(std::fs::read(&plain).unwrap().iter().all(|byte| *byte == 0));
    vm.stop();
}

#[test]
fn when_memory_and_swap_are_full_the_program_with_the_highest_score_ends_and_the_others_go_on() {
    let home = Home::new();
    let image = home.swap_image("swap", "8M");
    let mut vm = start(
        &home,
        &[&image],
        &[
            "--memory",
            "48M",
            "--cmdline",
            "swap=vda validate",
            "--program",
            "pager size=36M seed=1",
            "--program",
            "pager size=12M seed=2 oom=600 stay",
            "--program",
            "pager size=2M seed=3 oom=-1000",
        ],
    );
    eventually("the end of a program", || {
        vm.serial.text().contains("pager[2]: killed").then_some(())
    });
    let before: u64 = [1, 3].map(|pid| program(&vm, pid).checks_ok).iter().sum();
    eventually("checks of the others", || {
        let now: u64 = [1, 3].map(|pid| program(&vm, pid).checks_ok).iter().sum();
        (now > before + 10_000).then_some(())
    });
    let programs = vm.programs();
    assert_nothing_failed(&programs);
    let states: Vec<&str> = programs.iter().map(|program| program.state.as_str()).collect();
    assert!(
        states[1] == "killed" && !["killed"].contains(&states[0]),
        "{states:?}"
    );
    let counts = views::vmstat(&vm.guest("vmstat"));
    assert_eq!((counts["oom_kill"], counts["oom_no_victim"]), (1, 0));
    // Whoever found nothing has looked for it himself before.
    assert!(counts["direct_reclaims"] > 0, "{counts:?}");
    // Not the largest one, because of its adjustment; the table has all of them.
    let said = vm.serial.text();
    let table: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("out of memory: "))
        .collect();
    assert_eq!(table.len(), 5, "{said}");
    assert!(table[4].contains("program 2 is ended, score "), "{said}");
    assert!(
        table[3].contains(" 3 ") && table[3].contains(" -1000 0 pager"),
        "{said}"
    );
    vm.stop();
}

#[test]
fn locked_memory_stays_while_the_rest_of_the_program_and_others_are_swapped() {
    let home = Home::new();
    let image = home.swap_image("swap", "64M");
    let mut vm = start(
        &home,
        &[&image],
        &[
            "--memory",
            "32M",
            "--cmdline",
            "swap=vda validate",
            "--program",
            "pager size=12M lock=4M rounds=1 stay seed=1",
            "--program",
            "pager size=22M seed=2",
            "--program",
            "pager size=14M lock=14M seed=3",
        ],
    );
    eventually("the second program's checks, and a first one that sleeps", || {
        (program(&vm, 2).checks_ok > 4000 && program(&vm, 1).checks_ok >= 3072).then_some(())
    });
    let counts = views::vmstat(&vm.guest("vmstat"));
    // 4 MiB in pages of 4 KiB, of which none has left; the others of the sleeping program have.
    assert_eq!(counts["nr_unevictable"], 1024, "{counts:?}");
    let sleeping = program(&vm, 1);
    assert!((4096..9216).contains(&sleeping.rss_kib), "{sleeping:?}");
    // More than a quarter of all memory is not to be had.
    let programs = vm.programs();
    assert_eq!(programs[2].state, "exited(2)", "{programs:?}");
    assert_nothing_failed(&programs);
    vm.stop();
}

/// Swapped pages that came back meanwhile.
const TURNOVER: u64 = 6000;
/// Pages of the program that uses them again and again.
const HOT_PAGES: u64 = 512;

#[test]
fn pages_that_are_in_use_stay_while_those_of_one_who_comes_back_late_go_and_come() {
    let home = Home::new();
    let image = home.swap_image("swap", "64M");
    let mut vm = start(
        &home,
        &[&image],
        &[
            "--memory",
            "32M",
            "--cmdline",
            "swap=vda fault_around_kib=16 validate",
            "--program",
            "pager size=2M seed=1",
            "--program",
            "pager size=32M seed=2",
        ],
    );
    let swapped_in = || views::vmstat(&vm.guest("vmstat"))["pswpin"];
    // The first pages of the second one have pushed out what nobody uses.
    eventually("the first swapped pages", || (swapped_in() > 4000).then_some(()));
    let (faults, before) = (program(&vm, 1).faults, swapped_in());
    eventually("memory going round", || {
        (swapped_in() > before + TURNOVER).then_some(())
    });
    let hot = program(&vm, 1);
    // If use counted for nothing its pages would go as all others do, and come back four at a time at best: some five hundred faults.
    let more = hot.faults - faults;
    assert!(more < HOT_PAGES / 4, "{more} faults: {hot:?}");
    assert!(hot.rss_kib >= 4 * HOT_PAGES, "{hot:?}");
    assert_nothing_failed(&vm.programs());
    vm.stop();
}

#[test]
fn a_page_that_cannot_be_read_back_ends_its_own_program_and_no_other() {
    let home = Home::new();
    let image = home.swap_image("swap", "64M");
    let mut vm = start(
        &home,
        &[&image],
        &[
            "--memory",
            "32M",
            "--cmdline",
            "swap=vda validate",
            "--program",
            "pager size=12M pause_ms=12000 seed=1",
            // Its own memory stays, whatever becomes of the disk.
            "--program",
            "pager size=2M lock=2M seed=2",
            "--program",
            "pager size=18M rounds=1 seed=3",
        ],
    );
    // The first one sleeps after a round, and so its pages leave for those of the third; when that has ended there is memory enough, and
    // nothing is written any more.
    eventually("the end of the third program", || {
        (program(&vm, 3).state == "exited(0)").then_some(())
    });
    assert!(
        areas(&vm)[0][3].parse::<u64>().unwrap() > 1024,
        "the first one has pages there"
    );
    // The host loses what is behind the header.
    OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(4096)
        .unwrap();
    eventually("the end of the program", || {
        (program(&vm, 1).state == "killed").then_some(())
    });
    let said = vm.serial.text();
    assert!(said.contains("could not be read from the disk"), "{said}");
    assert!(said.contains("vda: swap: a read of "), "{said}");
    let before = program(&vm, 2).checks_ok;
    eventually("checks of the other program", || {
        (program(&vm, 2).checks_ok > before + 1000).then_some(())
    });
    assert_nothing_failed(&vm.programs());
    assert!(areas(&vm)[0][5].parse::<u64>().unwrap() > 0, "errors are counted");
    vm.stop();
}
