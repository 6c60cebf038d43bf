//! The built-in guest's disks: found, described, and written full and read back by the guest's own driver.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use integration_tests::{Home, Running, eventually};

const BYTES: u64 = 4 << 20;

/// What the guest's check writes: each word is its number, from 1, times a constant.
fn pattern() -> Vec<u8> {
    let word = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (1..=BYTES / 8).flat_map(word).collect()
}

fn make(path: &Path) {
    File::create(path).unwrap().set_len(BYTES).unwrap();
}

/// The guest's table, by disk and column.
fn disks(vm: &Running) -> BTreeMap<String, BTreeMap<String, String>> {
    let table = vm.guest("disks");
    let mut lines = table.lines().map(|line| line.split(' ').map(str::to_owned));
    let header: Vec<String> = lines.next().unwrap().collect();
    let disk = |mut line: Vec<String>| {
        assert_eq!(line.len(), header.len(), "{table}");
        let name = line.remove(0);
        (name, header[1..].iter().cloned().zip(line).collect())
    };
    lines.map(|line| disk(line.collect())).collect()
}

#[test]
fn a_scratch_disk_of_either_engine_reads_as_it_was_written_and_others_are_left_alone() {
    let home = Home::new();
    let [first, second, read_only, left] = ["a", "b", "c", "d"].map(|name| home.files().join(name));
    for path in [&first, &second, &read_only, &left] {
        make(path);
    }
    let with = |path: &Path, options: &str| format!("{}{options}", path.display());
    let (first_disk, second_disk) = (with(&first, ""), with(&second, ",engine=thread"));
    let (third_disk, last_disk) = (with(&read_only, ",readonly"), with(&left, ""));
    let arguments = [
        "--memory",
        "64M",
        "--disk",
        &first_disk,
        "--disk",
        &second_disk,
        "--disk",
        &third_disk,
        "--disk",
        &last_disk,
        "--cmdline",
        "scratch=vda scratch=vdb scratch=vdc",
    ];
    let mut vm = home.start("disks", &arguments);
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "disks", "disks"]).status == 0
    });
    let seen = eventually("the end of the checks", || {
        let seen = disks(&vm);
        seen.values()
            .all(|disk| disk["CHECK"] != "running")
            .then_some(seen)
    });
    for disk in ["vda", "vdb"] {
        let field = |name: &str| seen[disk][name].as_str();
        assert_eq!((field("CHECK"), field("STATE")), ("good", "ready"), "{seen:?}");
        assert_eq!(field("ACCESS"), "read-write");
        let number = |name: &str| field(name).parse::<u64>().unwrap();
        let bytes = ["BYTES", "READ_BYTES", "WRITTEN_BYTES", "CHECKED_BYTES"].map(number);
        assert_eq!(bytes, [BYTES; 4], "{disk}");
        let counts = ["READS", "WRITES", "FLUSHES", "ERRORS", "WRONG_BYTES", "IN_FLIGHT"].map(number);
        assert_eq!(counts, [128, 128, 1, 0, 0, 0], "{disk}");
    }
    let field = |disk: &str, name: &str| seen[disk][name].clone();
    let of_read_only = ["ACCESS", "CHECK", "WRITES"].map(|name| field("vdc", name));
    assert_eq!(of_read_only, ["read-only", "failed", "0"]);
    let of_left = ["CHECK", "READS", "WRITES", "BYTES"].map(|name| field("vdd", name));
    assert_eq!(of_left, ["none", "0", "0", "4194304"]);

    // The host has it, as the guest has flushed it, and has counted the same.
    for path in [&first, &second] {
        assert!(fs::read(path).unwrap() == pattern(), "{}", path.display());
    }
    for path in [&read_only, &left] {
        assert!(fs::read(path).unwrap().iter().all(|byte| *byte == 0));
    }
    let stats = vm.stats();
    assert_eq!((stats.number("guest_faults"), stats.number("violations")), (0, 0));
    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
}
