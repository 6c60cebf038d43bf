//! The texts, as people and their tools read them.

use integration_tests::{Home, Running, views};

fn guest(home: &Home) -> Running {
    let programs = [
        "--program",
        "stress row=slab rounds=5 stay",
        "--program",
        "stress row=vmalloc rounds=2 stay",
    ];
    let vm = home.start("texts", &[&["--memory", "160M"], &programs[..]].concat());
    vm.serial.wait_for_after(0, "row slab: 5 rounds, ");
    vm.serial.wait_for_after(0, "row vmalloc: 2 rounds, ");
    vm
}

#[test]
fn every_question_is_in_the_guests_help_and_answered() {
    let home = Home::new();
    let vm = guest(&home);
    let help = vm.guest("help");
    let questions: Vec<&str> = help
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for question in [
        "meminfo",
        "zoneinfo",
        "buddyinfo",
        "pagetypeinfo",
        "slabinfo",
        "vmallocinfo",
        "vmstat",
        "nodes",
        "blocks",
        "ps",
    ] {
        assert!(
            questions.contains(&question),
            "{question} is not in the guest's help:\n{help}"
        );
    }
    for question in ["maps", "smaps"] {
        vm.order("guest", &[question])
            .assert_refusal(1, &[question, "takes a program's number"]);
    }
    vm.order("guest", &["compact", "more"])
        .assert_refusal(1, &["compact takes no arguments"]);
    assert!(!vm.guest("hugepages").trim().is_empty() && !vm.guest("sysfs").trim().is_empty());
    // `reboot` is an order, and answered by obeying.
    let with_arguments = ["pagemap", "frame", "poison", "migratepages"];
    for question in with_arguments {
        vm.order("guest", &[question])
            .assert_refusal(1, &[question, "takes a"]);
    }
    vm.order("guest", &["pack", "more"])
        .assert_refusal(1, &["pack takes no arguments"]);
    vm.order("guest", &["cancel", "more"])
        .assert_refusal(1, &["cancel takes no arguments"]);
    vm.order("guest", &["cancel"])
        .assert_refusal(1, &["nothing is being done for anybody"]);
    // Nothing has happened to blocks where there is no memory device.
    assert_eq!(vm.guest("events"), "");
    vm.order("guest", &["events", "more"])
        .assert_refusal(2, &["events takes the number", "more"]);
    let other = [
        "events",
        "maps",
        "smaps",
        "hugepages",
        "sysfs",
        "compact",
        "pack",
        "cancel",
        "reboot",
    ];
    for question in questions
        .into_iter()
        .filter(|question| !other.contains(question) && !with_arguments.contains(question))
    {
        assert!(!vm.guest(question).trim().is_empty(), "no answer to {question}");
        vm.order("guest", &[question, "more"])
            .assert_refusal(1, &[question, "takes no arguments", "more"]);
    }
    vm.order("guest", &["zoneinf"])
        .assert_refusal(1, &["unknown command zoneinf", "help"]);
}

/// `slabtop`, `vmstat` and `free` (procps) read the guest's texts in place of the host's own files.
#[test]
fn the_tools_that_people_use_read_the_texts() {
    let home = Home::new();
    let vm = guest(&home);
    let in_place_of_proc = |names: &[&str], command: &[&str]| -> String {
        let mounts: Vec<String> = names
            .iter()
            .map(|name| {
                let file = home.files().join(name);
                std::fs::write(&file, vm.guest(name)).unwrap();
                format!("mount --bind {} /proc/{name}", file.display())
            })
            .collect();
        home.run_tool_in_namespace(&mounts.join(" && "), command)
            .success()
    };
    let caches = views::physical::slabinfo(&vm.guest("slabinfo"));
    let stress = caches.iter().find(|cache| cache.name == "stress-1");
    let stress = stress.unwrap_or_else(|| panic!("no cache stress-1: {caches:#?}"));
    let table = in_place_of_proc(&["slabinfo"], &["slabtop", "-o", "-s", "a"]);
    let row = table
        .lines()
        .find(|line| line.ends_with("stress-1") || line.trim_end().ends_with("stress-1"));
    let row = row.unwrap_or_else(|| panic!("slabtop does not show stress-1:\n{table}"));
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        columns[..2],
        [stress.objects.to_string(), stress.active_objects.to_string()],
        "{table}"
    );
    let table = in_place_of_proc(&["slabinfo"], &["vmstat", "-m"]);
    let row = table.lines().find(|line| line.starts_with("stress-1 "));
    let row = row.unwrap_or_else(|| panic!("vmstat -m does not show stress-1:\n{table}"));
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        columns[1..3],
        [stress.active_objects.to_string(), stress.objects.to_string()],
        "{table}"
    );
    let total = views::meminfo(&vm.guest("meminfo"))["MemTotal"];
    let table = in_place_of_proc(&["meminfo", "vmstat"], &["free", "-k"]);
    assert!(
        table.contains(&total.to_string()),
        "{total} kB is not in:\n{table}"
    );
}
