//! Running VMs are found by name, and a name stands for one VM.

use integration_tests::Home;

const SMALL: [&str; 4] = ["--memory", "64M", "--hotplug", "64M"];

#[test]
fn ps_lists_the_running_vms_and_no_others() {
    let home = Home::new();
    assert!(!home.run(["ps"]).success().contains("alpha"));
    let mut alpha = home.start("alpha", &SMALL);
    let mut beta = home.start("beta", &SMALL);
    alpha.wait_for_driver();
    beta.wait_for_driver();
    let list = home.run(["ps"]).success();
    assert!(list.contains("alpha") && list.contains("beta"), "{list}");
    assert!(list.contains(&alpha.pid().to_string()), "{list}");
    beta.order("stop", &[]).success();
    beta.wait_for_end();
    let list = home.run(["ps"]).success();
    assert!(list.contains("alpha") && !list.contains("beta"), "{list}");
}

#[test]
fn a_second_vm_of_the_same_name_is_refused_and_the_first_runs_on() {
    let home = Home::new();
    let mut first = home.start("twin", &SMALL);
    first.wait_for_driver();
    home.run(["run", "--name", "twin", "--memory", "64M"])
        .assert_refusal(1, &["twin"]);
    assert_eq!(first.stats().number("pid"), u64::from(first.pid()));
}

#[test]
fn the_socket_of_a_vm_that_was_killed_is_cleaned_up_by_the_next_of_its_name() {
    let home = Home::new();
    let mut dead = home.start("phoenix", &SMALL);
    dead.wait_for_driver();
    dead.kill_hard();
    dead.order("stats", &[]).assert_refusal(1, &["phoenix"]);
    assert!(!home.run(["ps"]).success().contains("phoenix"));
    let mut next = home.start("phoenix", &SMALL);
    next.wait_for_driver();
    assert_eq!(next.stats().number("pid"), u64::from(next.pid()));
    next.order("stop", &[]).success();
    next.wait_for_end();
    home.assert_nothing_left();
}

#[test]
fn stats_are_shown_as_a_table_too() {
    let home = Home::new();
    let mut vm = home.start("shown", &SMALL);
    vm.wait_for_driver();
    let text = vm.order("stats", &[]).success();
    assert!(text.contains("shown") && text.contains("64 MiB"), "{text}");
}
