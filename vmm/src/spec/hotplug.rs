//! `--hotplug SIZE[,requested=SIZE][,node=NUMBER]` and `--block-size SIZE`: the region in which memory comes and goes.

use super::check::{check, size};
use super::error::SizeRule::{AtLeast, MultipleOf, PowerOfTwo};
use super::error::SpecError;
use super::node::node_number;
use super::size::{ByteSize, MIB};

/// The smallest block, and the one that is used when nothing is said: a huge page, the unit in which the host discards.
pub const MIN_BLOCK_SIZE: u64 = 2 * MIB;

/// The hot-plug region. All sizes are bytes and multiples of `block_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotplugSpec {
    /// Size of the region.
    pub region_size: u64,
    /// Size of a block: a power of two, at least 2 MiB.
    pub block_size: u64,
    /// How much of it the guest is asked to take at boot.
    pub requested_size: u64,
    /// The node that its memory belongs to; 0 without nodes.
    pub node: u8,
}

/// What `--hotplug` says, in its parts.
struct Region<'a> {
    size: &'a str,
    requested: Option<&'a str>,
    node: Option<&'a str>,
}

impl<'a> Region<'a> {
    /// Reads `SIZE[,requested=SIZE][,node=NUMBER]`.
    fn parse(text: &'a str) -> Result<Self, SpecError> {
        let mut parts = text.split(',');
        let mut region = Self {
            size: parts.next().unwrap_or_default(),
            requested: None,
            node: None,
        };
        for part in parts {
            let is_new = match part.split_once('=') {
                Some(("requested", size)) => region.requested.replace(size).is_none(),
                Some(("node", node)) => region.node.replace(node).is_none(),
                _ => false,
            };
            if !is_new {
                return Err(SpecError::Choice {
                    option: "--hotplug",
                    value: text.to_owned(),
                    allowed: "SIZE and SIZE[,requested=SIZE][,node=NUMBER]",
                });
            }
        }
        Ok(region)
    }
}

/// The hot-plug region, the block size, and the node among `nodes` of them (0 where there are none).
pub(super) fn hotplug(
    region: Option<&str>,
    block: Option<&str>,
    nodes: usize,
) -> Result<Option<HotplugSpec>, SpecError> {
    let block_size = block.map_or(Ok(MIN_BLOCK_SIZE), |text| size("--block-size", text))?;
    check("--block-size", block_size, &[AtLeast(MIN_BLOCK_SIZE), PowerOfTwo])?;
    let Some(text) = region else {
        if block.is_some() {
            let rule = "blocks belong to the hot-plug region";
            return Err(SpecError::Missing {
                option: "--block-size",
                missing: "--hotplug",
                rule,
            });
        }
        return Ok(None);
    };
    let region = Region::parse(text)?;
    let requested_size = region
        .requested
        .map_or(Ok(0), |text| size("--hotplug requested", text))?;
    let region_size = size("--hotplug", region.size)?;
    check(
        "--hotplug",
        region_size,
        &[AtLeast(block_size), MultipleOf(block_size)],
    )?;
    check("--hotplug requested", requested_size, &[MultipleOf(block_size)])?;
    if requested_size > region_size {
        return Err(SpecError::BeyondRegion {
            option: "--hotplug requested",
            bytes: ByteSize(requested_size),
            region: ByteSize(region_size),
        });
    }
    Ok(Some(HotplugSpec {
        region_size,
        block_size,
        requested_size,
        node: region.node.map_or(Ok(0), |text| node_number(text, nodes))?,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, validate, with};
    use super::*;

    use proptest::prelude::*;

    use super::super::{MAX_TOTAL_MEMORY, MEMORY_UNIT, MIN_MEMORY, VmOptions};

    fn region(region: &str, block: Option<&str>) -> VmOptions {
        with(|options| {
            options.hotplug = Some(region.into());
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
                "--hotplug \"1G,wanted=1G\": one of SIZE and SIZE[,requested=SIZE][,node=NUMBER]",
            ),
            ("1G,node=0,node=0", None, "--hotplug \"1G,node=0,node=0\": one of"),
            ("1G,node=1", None, "--hotplug node=\"1\": the nodes are 0 to 0"),
            ("4T", None, "together more than 4 TiB"),
            ("16777215T", None, "together more than 4 TiB"),
        ] {
            let refusal = refusal(&region(text, block));
            assert!(refusal.contains(message), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_sum_of_memory_and_region_cannot_overflow() {
        let mut options = region("16777215T", None);
        options.memory = Some("16777215T".into());
        assert!(refusal(&options).contains("together more than 4 TiB"));
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
                hotplug: Some(format!("{},requested={}", region & !(unit - 1), (requested % (region + 1)) & !(unit - 1))),
                block_size: Some((1_u64 << block_shift).to_string()),
                ..VmOptions::default()
            };
            if let Ok(spec) = validate(&options) {
                let hotplug = spec.hotplug.expect("a region was asked for");
                prop_assert!(spec.memory >= MIN_MEMORY && spec.memory.is_multiple_of(MEMORY_UNIT));
                prop_assert!(hotplug.block_size.is_power_of_two() && hotplug.block_size >= MIN_BLOCK_SIZE);
                prop_assert!(hotplug.region_size > 0 && hotplug.region_size.is_multiple_of(hotplug.block_size));
                prop_assert!(hotplug.requested_size.is_multiple_of(hotplug.block_size));
                prop_assert!(hotplug.requested_size <= hotplug.region_size);
                prop_assert!(spec.memory + hotplug.region_size <= MAX_TOTAL_MEMORY);
            }
        }
    }
}
