//! The events of blocks and nodes: followed as they come, and what a reader has missed is said.

use std::process::Stdio;

use integration_tests::Home;
use serde_json::Value;

#[test]
fn a_follower_gets_every_step_of_every_block_and_who_asks_late_learns_what_is_gone() {
    let home = Home::new();
    let size = ["--memory", "64M", "--hotplug", "512M", "--block-size", "2M"];
    let mut vm = home.start("steps", &size);
    vm.wait_for_driver();
    vm.wait_for_answers();
    let follower = home
        .command(["guest", "steps", "events", "--follow", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Each of the 256 blocks makes three steps when it comes, and as many when it goes.
    vm.resize("576M");
    vm.resize("64M");
    vm.resize("576M");
    let all = vm.guest("events");
    let newest: u64 = {
        let last = all.lines().next_back().unwrap();
        last.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(newest >= 9 * 256, "{newest}");
    let missed = newest - 2048;
    let first = all.lines().next().unwrap();
    assert_eq!(first, format!("missed {missed} events, 1 to {missed}"));
    assert_eq!(all, vm.guest("sysfs memory/events"));
    assert_eq!(all.lines().count(), 1 + 2048);
    let late = vm.guest("sysfs memory/events/5");
    let expected = format!("missed {} events, 6 to {missed}", missed - 5);
    assert_eq!(late.lines().next(), Some(expected.as_str()));
    let nothing_new = vm.order("guest", &["events", &newest.to_string(), "--json"]);
    assert_eq!(nothing_new.success(), "");
    vm.order("guest", &["events", "--fast"])
        .assert_refusal(2, &["events takes", "--fast"]);
    // One more, so that the follower has been at the newest of those above.
    let steps = vm.guest("sysfs memory/memory0/state offline");
    assert_eq!(steps.trim(), "");
    vm.stop();
    let told = follower.wait_with_output().unwrap();
    assert!(told.status.success(), "{told:?}");
    let told = String::from_utf8(told.stdout).unwrap();
    let lines: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // None is missing, but for those that were not asked for any more at the end.
    for (number, line) in (1..=newest).zip(&lines) {
        assert_eq!(line["number"], number, "{line}");
        assert!(line["name"].is_string() && line["from"] != line["to"], "{line}");
    }
    assert!(lines.len() as u64 > newest / 2, "{} of {newest}", lines.len());
}
