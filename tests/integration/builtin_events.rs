//! What happens to a VM is told to whoever reads, and a guest that is held stands still.

use std::process::Stdio;

use integration_tests::{Home, Running};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// The lines of a stream of events, whose numbers must follow one another.
fn events(lines: &str) -> Vec<Value> {
    let events: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for pair in events.windows(2) {
        let number = |event: &Value| event["sequence"].as_u64().unwrap();
        assert_eq!(number(&pair[0]) + 1, number(&pair[1]), "{pair:?}");
    }
    events
}

fn so_far(vm: &Running, after: u64) -> Vec<Value> {
    events(
        &vm.order("events", &["--no-follow", "--after", &after.to_string()])
            .success(),
    )
}

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == kind).collect()
}

fn bytes(events: &[Value], kind: &str) -> u64 {
    let bytes = |event: &&Value| event["bytes"].as_u64().unwrap();
    of_kind(events, kind).iter().map(bytes).sum()
}

#[test]
fn a_life_is_told_from_the_first_block_to_the_end() {
    let home = Home::new();
    let mut vm = home.start("told", &["--memory", "64M", "--hotplug", "128M"]);
    vm.wait_for_driver();
    let follower = home
        .command(["events", "told"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    vm.resize("128M");
    vm.resize("96M");
    let seen = so_far(&vm, 0);
    assert_eq!(
        (bytes(&seen, "plug"), bytes(&seen, "unplug")),
        (64 * MIB, 32 * MIB)
    );
    let steps: Vec<_> = of_kind(&seen, "resize")
        .iter()
        .map(|event| {
            (
                event["step"].as_str().unwrap(),
                event["target_bytes"].as_u64().unwrap() / MIB,
            )
        })
        .collect();
    assert_eq!(
        steps,
        [
            ("requested", 128),
            ("reached", 128),
            ("requested", 96),
            ("reached", 96)
        ]
    );

    vm.order("pause", &[]).success();
    vm.order("resume", &[]).success();
    vm.guest("reboot");
    vm.wait_until("the reboot", |stats| {
        stats.number("reboots") == 1 && stats.number("plugged_size") == 32 * MIB
    });
    let last = seen.last().unwrap()["sequence"].as_u64().unwrap();
    let after = so_far(&vm, last);
    assert_eq!(after[0]["sequence"], last + 1);
    assert_eq!(of_kind(&after, "reboot")[0]["cause"], "reset-register");
    assert_eq!(
        (bytes(&after, "unplug"), bytes(&after, "plug")),
        (32 * MIB, 32 * MIB)
    );

    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
    let followed = follower.wait_with_output().unwrap();
    assert!(followed.status.success(), "{followed:?}");
    let all = events(&String::from_utf8(followed.stdout).unwrap());
    assert_eq!(all[..seen.len()], seen, "both readers see the same");
    let states: Vec<_> = of_kind(&all, "state")
        .iter()
        .map(|event| event["state"].as_str().unwrap())
        .collect();
    assert_eq!(
        states,
        ["running", "paused", "running", "rebooting", "running", "exiting"]
    );
    assert_eq!(of_kind(&all, "state").last().unwrap()["reason"], "stopped");
    home.assert_nothing_left();
}

#[test]
fn a_trespass_is_an_event_with_its_address_region_and_block() {
    let home = Home::new();
    let arguments = ["--memory", "64M", "--hotplug", "64M", "--hotplug", "64M,block=4M"];
    // The second region begins at 5 GiB.
    let program = ["--on-violation", "pause", "--program", "trespass gpa=0x140c00000"];
    let mut vm = home.start("tres", &[&arguments[..], &program].concat());
    vm.wait_until("the violation", |stats| stats.number("violations") == 1);
    let seen = so_far(&vm, 0);
    let violations = of_kind(&seen, "violation");
    assert_eq!(violations.len(), 1);
    let field = |name| violations[0][name].as_u64().unwrap();
    assert_eq!(
        (field("gpa"), field("region"), field("block")),
        (0x1_40c0_0000, 1, 3)
    );
    let expected = "unplugged block 3 of region 1 at gpa 0x140c00000";
    assert!(vm.messages.text().contains(expected), "{}", vm.messages.text());
    assert_eq!(of_kind(&seen, "state").last().unwrap()["state"], "paused");
}

#[test]
fn a_held_guest_stands_still_and_goes_on_where_it_was() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "64M",
        "--hotplug",
        "64M",
        "--cpus",
        "2",
        "--program",
        "hog size=16M",
    ];
    let mut vm = home.start("held", &arguments);
    vm.wait_for_driver();
    vm.wait_for_checks(2);
    assert_eq!(vm.order("pause", &[]).success(), "");
    assert_eq!(vm.order("pause", &[]).success(), "held: is held already\n");
    assert_eq!(vm.stats().text("state"), "paused");
    let asked = vm.order("guest", &["ps"]);
    assert!(
        asked.status == 1 && asked.stderr.contains("the guest is held"),
        "{asked:?}"
    );
    // A resize is asked for all the same, and whoever waits is told why nothing happens.
    let waited = vm.order("resize", &["96M", "--wait", "1", "--json"]);
    let report: Value = serde_json::from_str(&waited.stdout).unwrap();
    assert_eq!((waited.status, &report["cause"]), (1, &"held".into()));
    assert_eq!(vm.stats().number("plugged_size"), 0);
    assert_eq!(vm.order("resume", &[]).success(), "");
    assert_eq!(vm.order("resume", &[]).success(), "held: was not held\n");
    vm.wait_until("what was asked for meanwhile", |stats| {
        stats.number("plugged_size") == 32 * MIB
    });
    vm.wait_for_checks(2);
    assert_eq!(vm.stats().number("violations"), 0);
}
