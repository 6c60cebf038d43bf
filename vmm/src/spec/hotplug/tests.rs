//! The rules of `--hotplug`, `--block-size` and `--backing`, as the command line meets them.

use proptest::prelude::*;

use super::super::testing::{refusal, validate, with};
use super::super::{GIB, HugePage, MAX_TOTAL_MEMORY, MEMORY_UNIT, MIN_MEMORY, VmOptions};
use super::*;

fn region(region: &str, block: Option<&str>) -> VmOptions {
    with(|options| {
        options.hotplug = vec![region.into()];
        options.block_size = block.map(Into::into);
    })
}

#[test]
fn the_region_follows_its_rules() {
    for (text, block, message) in [
        ("0", None, "--hotplug 0 bytes: the smallest is 2 MiB"),
        ("1M", None, "--hotplug 1 MiB: the smallest is 2 MiB"),
        ("3M", None, "--hotplug 3 MiB: not a multiple of 2 MiB"),
        (
            "130M",
            Some("128M"),
            "--hotplug 130 MiB: not a multiple of 128 MiB",
        ),
        ("1G", Some("0"), "--block-size 0 bytes: the smallest is 2 MiB"),
        ("1G", Some("1M"), "--block-size 1 MiB: the smallest is 2 MiB"),
        ("1G", Some("3M"), "--block-size 3 MiB: not a power of two"),
        ("1G", Some("2G"), "--hotplug 1 GiB: the smallest is 2 GiB"),
        (
            "1G,requested=2G",
            None,
            "--hotplug requested 2 GiB: more than the hot-plug region of 1 GiB",
        ),
        (
            "1G,requested=3M",
            None,
            "--hotplug requested 3 MiB: not a multiple of 2 MiB",
        ),
        ("1G,requested=", None, "--hotplug requested: \"\" is not a size"),
        (
            "1G,wanted=1G",
            None,
            "--hotplug \"1G,wanted=1G\": one of SIZE with any of requested=SIZE, block=SIZE, node=NUMBER,",
        ),
        ("1G,node=0,node=0", None, "--hotplug \"1G,node=0,node=0\": one of"),
        ("1G,populate=1", None, "--hotplug \"1G,populate=1\": one of"),
        (
            "1G,populate,populate",
            None,
            "--hotplug \"1G,populate,populate\": one of",
        ),
        ("1G,block=3M", None, "--hotplug block 3 MiB: not a power of two"),
        ("3M,block=4M", None, "--hotplug 3 MiB: the smallest is 4 MiB"),
        (
            "2G,backing=hugetlbfs:1G,block=2M",
            None,
            "--hotplug block 2 MiB: the smallest is 1 GiB",
        ),
        (
            "2G,backing=hugetlbfs:1G",
            Some("4M"),
            "--block-size 4 MiB: the smallest is 1 GiB",
        ),
        (
            "1G,backing=paper",
            None,
            "--hotplug backing \"paper\": one of anonymous, memfd,",
        ),
        (
            "1G,backing=memfd,unplugged=readable",
            None,
            "--hotplug unplugged=readable and --hotplug backing: a read of memory in a file takes a page",
        ),
        (
            "1G,unplugged=gone",
            None,
            "--hotplug unplugged \"gone\": one of inaccessible, readable",
        ),
        ("1G,node=1", None, "--hotplug node=\"1\": the nodes are 0 to 0"),
        ("4T", None, "together more than 4 TiB"),
        ("16777215T", None, "together more than 4 TiB"),
    ] {
        let refusal = refusal(&region(text, block));
        assert!(refusal.contains(message), "{text}: {refusal}");
    }
}

#[test]
fn each_region_has_its_own_block_size_node_and_backing() {
    let options = with(|options| {
        options.memory = Some("128M".into());
        options.node = vec!["memory=64M".into(), "memory=64M".into()];
        options.block_size = Some("4M".into());
        options.backing = Some("memfd".into());
        options.hotplug = [
            "1G",
            "2G,block=128M,node=1,requested=256M,populate",
            "4G,backing=hugetlbfs:1G,block=2G",
            "64M,backing=anonymous,unplugged=readable",
            "64M,backing=hugetlbfs",
        ]
        .map(String::from)
        .to_vec();
    });
    let spec = validate(&options).expect("valid");
    assert_eq!(spec.backing, Backing::Memfd);
    let first = HotplugSpec {
        block_size: 4 * MIB,
        backing: Backing::Memfd,
        ..HotplugSpec::of_size(GIB)
    };
    let second = HotplugSpec {
        region_size: 2 * GIB,
        block_size: 128 * MIB,
        requested_size: 256 * MIB,
        node: 1,
        pages: PageSupply::AtPlug,
        ..first
    };
    let third = HotplugSpec {
        region_size: 4 * GIB,
        block_size: 2 * GIB,
        backing: Backing::Hugetlbfs(HugePage::Gib1),
        pages: PageSupply::AtPlug,
        ..first
    };
    let fourth = HotplugSpec {
        region_size: 64 * MIB,
        backing: Backing::Anonymous,
        unplugged: UnpluggedMemory::Readable,
        ..first
    };
    let fifth = HotplugSpec {
        region_size: 64 * MIB,
        backing: Backing::Hugetlbfs(HugePage::Mib2),
        pages: PageSupply::AtPlug,
        ..first
    };
    assert_eq!(spec.hotplug, [first, second, third, fourth, fifth]);
}

#[test]
fn blocks_are_at_least_as_large_as_pages_when_nothing_is_said() {
    let spec = validate(&region("2G,backing=hugetlbfs:1G", None)).expect("valid");
    assert_eq!(spec.hotplug[0].block_size, GIB);
}

#[test]
fn there_are_at_most_16_regions() {
    let regions = |count| with(|options| options.hotplug = vec!["64M".into(); count]);
    assert_eq!(validate(&regions(16)).expect("valid").hotplug.len(), 16);
    assert_eq!(
        refusal(&regions(17)),
        "--hotplug: given 17 times, at most 16 times"
    );
}

#[test]
fn boot_memory_is_whole_pages_of_its_backing() {
    let boot = |memory: &str, backing: &str| {
        with(|options| {
            options.memory = Some(memory.into());
            options.backing = Some(backing.into());
        })
    };
    assert_eq!(
        refusal(&boot("1026M", "hugetlbfs:1G")),
        "--memory 1026 MiB: not a multiple of 1 GiB"
    );
    assert!(validate(&boot("4G", "hugetlbfs:1G")).is_ok());
    assert!(validate(&boot("34M", "hugetlbfs")).is_ok());
}

#[test]
fn the_sum_of_memory_and_region_cannot_overflow() {
    let mut options = region("16777215T", None);
    options.memory = Some("16777215T".into());
    assert!(refusal(&options).contains("together more than 4 TiB"));
    let many = with(|options| options.hotplug = vec!["16777214T".into(); 3]);
    assert!(refusal(&many).contains("together more than 4 TiB"));
}

proptest! {
    #[test]
    fn whatever_passes_keeps_every_rule(
        memory in 0_u64..1 << 50, region in 0_u64..1 << 50, requested in 0_u64..1 << 50,
        block_shift in 15_u32..50, units in any::<bool>(),
    ) {
        let unit = if units { 1 << block_shift } else { 1 };
        let options = VmOptions {
            memory: Some((memory & !(MEMORY_UNIT - 1)).to_string()),
            hotplug: vec![format!("{},requested={}", region & !(unit - 1), (requested % (region + 1)) & !(unit - 1))],
            block_size: Some((1_u64 << block_shift).to_string()),
            ..VmOptions::default()
        };
        if let Ok(spec) = validate(&options) {
            let hotplug = spec.hotplug[0];
            prop_assert!(spec.memory >= MIN_MEMORY && spec.memory.is_multiple_of(MEMORY_UNIT));
            prop_assert!(hotplug.block_size.is_power_of_two() && hotplug.block_size >= MIN_BLOCK_SIZE);
            prop_assert!(hotplug.region_size > 0 && hotplug.region_size.is_multiple_of(hotplug.block_size));
            prop_assert!(hotplug.requested_size.is_multiple_of(hotplug.block_size));
            prop_assert!(hotplug.requested_size <= hotplug.region_size);
            prop_assert!(spec.memory + hotplug.region_size <= MAX_TOTAL_MEMORY);
        }
    }
}
