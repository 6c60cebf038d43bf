//! The events of blocks and nodes: followed as they come, and what a reader has missed is said.

use std::process::Stdio;

use integration_tests::transcript::Transcript;
use integration_tests::{Home, Running, eventually};
use serde_json::Value;

/// The number of the newest event.
fn newest_event(vm: &Running) -> u64 {
    let all = vm.guest("events");
    let last = all.lines().next_back().unwrap();
    last.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_follower_gets_every_step_of_every_block_and_who_asks_late_learns_what_is_gone() {
    let home = Home::new();
    let size = ["--memory", "64M", "--hotplug", "512M", "--block-size", "2M"];
    let mut vm = home.start("steps", &size);
    vm.wait_for_driver();
    vm.wait_for_answers();
    let mut follower = home
        .command(["guest", "steps", "events", "--follow", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = Transcript::of(follower.stdout.take().unwrap());
    // Each of the 256 blocks makes three steps when it comes, and as many when it goes; fewer than are kept before the follower has seen them.
    let mut newest = 0;
    for size in ["576M", "64M", "576M"] {
        vm.resize(size);
        newest += 3 * 256;
        eventually("all steps", || (newest_event(&vm) == newest).then_some(()));
        told.wait_for(&format!("{{\"number\":{newest},"));
    }
    let all = vm.guest("events");
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
    vm.stop();
    assert!(follower.wait().unwrap().success());
    let lines: Vec<Value> = told
        .wait_for_end()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // None is missing.
    assert_eq!(lines.len() as u64, newest);
    for (number, line) in (1..=newest).zip(&lines) {
        assert_eq!(line["number"], number, "{line}");
        assert!(line["name"].is_string() && line["from"] != line["to"], "{line}");
    }
}
