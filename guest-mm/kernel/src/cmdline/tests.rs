//! What the command line means, and what on it means nothing.

use super::*;

#[test]
fn quotes_keep_blanks_together_wherever_they_stand() {
    assert_eq!(
        words(r#" a  program="hog fill=70%" "b c=d" "" e"#),
        ["a", "program=hog fill=70%", "b c=d", "", "e"]
    );
}

#[test]
fn an_open_quote_reaches_to_the_end() {
    assert_eq!(words(r#"x="a b"#), ["x=a b"]);
}

#[test]
fn programs_and_devices_keep_their_order() {
    let options = Options::parse(
        r#"virtio_mmio.device=4K@0xd0000000:5 program="hog fill=70% pages=mixed" virtio_mmio.device=0x200@0xd0001000:6:1 program=trespass"#,
    );
    let size = |bytes| NonZeroU64::new(bytes).unwrap();
    assert_eq!(
        options.devices,
        [
            MmioDevice {
                base: 0xd000_0000,
                size: size(4096),
                gsi: 5
            },
            MmioDevice {
                base: 0xd000_1000,
                size: size(512),
                gsi: 6
            },
        ]
    );
    assert_eq!(
        options.programs,
        [&["hog", "fill=70%", "pages=mixed"][..], &["trespass"]]
    );
    assert_eq!(options.errors, []);
}

#[test]
fn an_illegal_value_is_reported_and_the_default_kept() {
    for bad in [
        "virtio_mmio.device=4K",
        "virtio_mmio.device=0@1:2",
        "virtio_mmio.device=4K@0xffffffffffffffff:5",
        "program=",
        "program",
        "dirty_expire_cs=0",
        "dirty_writeback_cs=soon",
        "tick_ms=0",
        "tick_ms=1001",
        "loglevel=9",
        "maxcpus=0",
        "maxcpus=17",
        "panic_test=fault@16",
        "panic_test=@1",
        "fault_around_kib=2",
        "fault_around_kib=48",
        "fault_around_kib=4096",
        "highmem=0",
        "highmem=much",
        "kmap_slots=0",
        "kmap_slots=1025",
        "load=",
        "load=all",
        "swap=",
        "swap=sda",
        "swap=vda,pri=",
        "swap=vda,pri=40000",
        "swap=vda,prio=1",
        "memhp_default_state=on",
        "panic_test=never",
        "thp_defrag=sometimes",
        "reclaim=never",
        "migrate=away",
        "memmap_on_memory=auto",
        "hugepages=some",
    ] {
        let options = Options::parse(bad);
        assert_eq!(options.errors.len(), 1, "{bad}");
        assert_eq!(
            Options {
                errors: Vec::new(),
                ..options
            },
            Options::parse(""),
            "{bad}"
        );
    }
}

#[test]
fn swap_areas_have_a_disk_and_may_have_a_priority() {
    let options = Options::parse("swap=vdb swap=vda,pri=-7");
    let area = |disk: &str, priority| SwapDisk {
        disk: disk.to_string(),
        priority,
    };
    assert_eq!(options.swaps, [area("vdb", None), area("vda", Some(-7))]);
    assert_eq!(options.errors, []);
}

#[test]
fn what_the_file_system_is_told_is_left_to_it_whole() {
    let options = Options::parse("root=vda rootflags=migrate=default,other");
    assert_eq!(options.rootflags, "migrate=default,other");
    assert_eq!(options.migrate, Method::Combined);
    assert_eq!(options.errors, []);
}

#[test]
fn a_disk_that_is_to_be_kept_is_not_written_full() {
    let line = "scratch=vda scratch=vdb scratch=vdc raw_rate=vdb raw_rate=vdd root=vda swap=vdb";
    let options = Options::parse(line);
    assert_eq!(options.scratch, ["vdc"]);
    assert_eq!(options.raw_rate, ["vdd"]);
    let refused: Vec<&str> = options.errors.iter().map(|error| error.value.as_str()).collect();
    assert_eq!(refused, ["vda", "vdb", "vdb"]);
}

#[test]
fn unknown_words_are_somebody_elses() {
    assert_eq!(
        Options::parse("console=ttyS0 quiet init=/bin/sh"),
        Options::parse("")
    );
}

#[test]
fn sizes_have_binary_suffixes_and_do_not_overflow() {
    assert_eq!(parse_size("64M"), Some(64 << 20));
    assert_eq!(parse_size("0x10k"), Some(16 << 10));
    assert_eq!(parse_size("17T"), Some(17 << 40));
    assert_eq!(parse_size("99999999T"), None);
    assert_eq!(parse_size(""), None);
    assert_eq!(parse_size("M"), None);
}
