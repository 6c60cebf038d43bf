//! The built-in guest uses all CPUs it is given, and nothing of its programs' data is wrong for it.

use integration_tests::views::{self, Cpu};
use integration_tests::{Home, Running, eventually};

/// Starts a guest with so many CPUs and programs: hogs of all kinds of pages, which hold `fill` of its memory together.
fn guest(home: &Home, cpus: usize, programs: usize, fill: usize) -> Running {
    let mut arguments: Vec<String> = ["--memory", "128M", "--hotplug", "512M", "--cmdline", "validate"]
        .map(String::from)
        .to_vec();
    arguments.extend(["--cpus".into(), cpus.to_string()]);
    for (number, pages) in (0..programs).zip(["small", "mixed", "huge"].iter().cycle()) {
        let share = fill / programs;
        arguments.push("--program".into());
        arguments.push(format!("hog fill={share}% pages={pages} seed={}", number + 1));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut vm = home.start("smp", &arguments);
    vm.wait_for_driver();
    vm
}

fn cpus(vm: &Running) -> Vec<Cpu> {
    views::cpus(&vm.guest("cpus"))
}

#[test]
fn programs_are_spread_over_all_cpus_and_stay_there() {
    for nr_cpus in [2, 4] {
        let home = Home::new();
        let mut vm = guest(&home, nr_cpus, 2 * nr_cpus, 60);
        vm.wait_for_checks(5);
        let homes = |vm: &Running| -> Vec<u64> { vm.programs().iter().map(|it| it.cpu).collect() };
        let first = homes(&vm);
        for cpu in cpus(&vm) {
            let here = first.iter().filter(|&&home| home == cpu.number).count();
            assert_eq!((here, cpu.programs), (2, 2), "{cpu:?} of {first:?}");
            assert!(cpu.runs > 0, "{cpu:?}");
        }
        vm.wait_for_checks(5);
        assert_eq!(homes(&vm), first);
    }
}

#[test]
fn one_cpu_is_enough() {
    let home = Home::new();
    let mut vm = guest(&home, 1, 3, 60);
    vm.resize("384M");
    vm.wait_for_checks(5);
    vm.resize("128M");
    vm.wait_for_checks(5);
    assert_eq!(cpus(&vm).len(), 1);
}

/// The test of the flush: without it programs go on with pages that were moved, and what they write is lost.
#[test]
fn pages_move_under_programs_that_run_on_other_cpus_and_no_write_is_lost() {
    for nr_cpus in [2, 4] {
        let home = Home::new();
        let mut vm = guest(&home, nr_cpus, nr_cpus, 66);
        for total in ["512M", "128M", "384M", "128M"] {
            vm.resize(total);
            vm.wait_for_checks(20);
        }
        let counts = views::vmstat(&vm.guest("vmstat"));
        assert!(counts["pgmigrate_success"] > 0, "no page was moved: {counts:?}");
        let cpus = cpus(&vm);
        assert!(
            cpus[0].leave_calls > 0,
            "no CPU was ever called out of a program: {cpus:?}"
        );
        assert!(cpus[1..].iter().all(|cpu| cpu.calls > 0), "{cpus:?}");
        let stats = vm.stats();
        assert_eq!(
            stats.number("violations") + stats.number("guest_faults") + stats.number("errors"),
            0
        );
    }
}

#[test]
fn a_cpu_with_nothing_to_do_sleeps_and_is_not_woken() {
    let home = Home::new();
    let mut vm = home.start("smp", &["--memory", "64M", "--hotplug", "64M", "--cpus", "4"]);
    vm.wait_for_driver();
    // CPU 0 serves the questions.
    let others = |vm: &Running| -> Vec<(u64, u64)> {
        let work = |cpu: &Cpu| (cpu.runs, cpu.interrupts);
        cpus(vm)[1..].iter().map(work).collect()
    };
    let before = others(&vm);
    eventually("two seconds of sleep", || {
        assert_eq!(others(&vm), before, "CPUs that have nothing to do did something");
        let is_rested = |cpu: &Cpu| cpu.idle_ms >= 2000;
        cpus(&vm)[1..].iter().all(is_rested).then_some(())
    });
}

#[test]
fn a_program_that_ends_makes_room_for_others_on_its_cpu() {
    let home = Home::new();
    let programs = ["--program", "hog size=4M", "--program", "hog size=4M rounds=1"];
    let mut vm = home.start(
        "smp",
        &[
            &["--memory", "64M", "--hotplug", "64M", "--cpus", "2"],
            &programs[..],
        ]
        .concat(),
    );
    vm.wait_for_driver();
    let cpus = eventually("the second hog having exited", || {
        let gone = vm.programs().iter().any(|program| program.state == "exited(0)");
        gone.then(|| cpus(&vm))
    });
    let programs: Vec<u64> = cpus.iter().map(|cpu| cpu.programs).collect();
    assert_eq!(programs.iter().sum::<u64>(), 1, "{cpus:?}");
}

#[test]
fn maxcpus_limits_what_is_used() {
    let home = Home::new();
    let arguments = ["--memory", "64M", "--hotplug", "64M", "--cpus", "4"];
    let mut vm = home.start("smp", &[&arguments[..], &["--cmdline", "maxcpus=3"]].concat());
    vm.wait_for_driver();
    let numbers: Vec<u64> = cpus(&vm).iter().map(|cpu| cpu.number).collect();
    assert_eq!(numbers, [0, 1, 2]);
}

#[test]
fn sixteen_cpus_come_up() {
    let home = Home::new();
    let arguments = ["--memory", "128M", "--hotplug", "64M", "--cpus", "16"];
    let mut vm = home.start("smp", &[&arguments[..], &["--program", "hog size=8M"]].concat());
    vm.wait_for_driver();
    vm.resize("192M");
    vm.wait_for_checks(5);
    assert_eq!(cpus(&vm).len(), 16);
}

#[test]
fn failures_on_another_cpu_end_the_machine_with_place_and_cpu() {
    let place = "guest-mm/kernel/src/panic.rs:";
    for (test, said) in [
        ("manager", place),
        ("fault", "access to 0x"),
        ("stack", "stack overflow"),
    ] {
        let home = Home::new();
        let cmdline = format!("panic_test={test}@2");
        let arguments = ["--memory", "64M", "--hotplug", "64M", "--cpus", "3"];
        let mut vm = home.start("smp", &[&arguments[..], &["--cmdline", &cmdline]].concat());
        assert_eq!(vm.wait_for_end(), 3);
        let messages = vm.messages.text();
        assert!(
            messages.contains(said) && messages.contains("(CPU 2)"),
            "{test}: {messages}"
        );
        home.assert_nothing_left();
    }
}
