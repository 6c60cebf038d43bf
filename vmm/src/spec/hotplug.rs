//! `--hotplug` and `--block-size`: the regions in which memory comes and goes.

use devices::mem::UnpluggedMemory;

use super::backing::{Backing, PageSupply};
use super::check::{check, size};
use super::error::SizeRule::{AtLeast, MultipleOf, PowerOfTwo};
use super::error::SpecError;
use super::node::node_number;
use super::size::{ByteSize, MIB};

/// The smallest block, and the one that is used when nothing is said: a huge page, the unit in which the host discards.
pub const MIN_BLOCK_SIZE: u64 = 2 * MIB;
/// The most regions: each is a device with an interrupt line of its own, and other devices need some too.
pub const MAX_REGIONS: usize = 16;

/// What `--hotplug` takes.
const FORM: &str = "SIZE with any of requested=SIZE, block=SIZE, node=NUMBER, backing=KIND, populate, \
                    unplugged=inaccessible|readable behind it, each once";

/// A hot-plug region. All sizes are bytes and multiples of `block_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotplugSpec {
    /// Size of the region.
    pub region_size: u64,
    /// Size of a block: a power of two, at least 2 MiB and at least a page of the backing.
    pub block_size: u64,
    /// How much of it the guest is asked to take at boot.
    pub requested_size: u64,
    /// The node that its memory belongs to; 0 without nodes.
    pub node: u8,
    /// What it is made of.
    pub backing: Backing,
    /// When its blocks get their pages.
    pub pages: PageSupply,
    /// What drivers may do with its unplugged blocks.
    pub unplugged: UnpluggedMemory,
}

impl HotplugSpec {
    /// A region of so many bytes, a multiple of 2 MiB: anonymous memory in blocks of 2 MiB, nothing requested, node 0.
    #[must_use]
    pub fn of_size(region_size: u64) -> Self {
        Self {
            region_size,
            block_size: MIN_BLOCK_SIZE,
            requested_size: 0,
            node: 0,
            backing: Backing::Anonymous,
            pages: PageSupply::OnTouch,
            unplugged: UnpluggedMemory::Inaccessible,
        }
    }
}

/// What one `--hotplug` says, in its parts.
#[derive(Default)]
struct Region<'a> {
    size: &'a str,
    requested: Option<&'a str>,
    block: Option<&'a str>,
    node: Option<&'a str>,
    backing: Option<&'a str>,
    populate: Option<&'a str>,
    unplugged: Option<&'a str>,
}

impl<'a> Region<'a> {
    fn parse(text: &'a str) -> Result<Self, SpecError> {
        let mut parts = text.split(',');
        let mut region = Self {
            size: parts.next().unwrap_or_default(),
            ..Self::default()
        };
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let field = match name {
                "requested" => Some(&mut region.requested),
                "block" => Some(&mut region.block),
                "node" => Some(&mut region.node),
                "backing" => Some(&mut region.backing),
                "populate" if part == name => Some(&mut region.populate),
                "unplugged" => Some(&mut region.unplugged),
                _ => None,
            };
            if field.is_none_or(|field| field.replace(value).is_some()) {
                return Err(SpecError::Choice {
                    option: "--hotplug",
                    value: text.to_owned(),
                    allowed: FORM,
                });
            }
        }
        Ok(region)
    }
}

/// What regions take from the options around them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults<'a> {
    /// `--block-size`.
    pub(super) block: Option<&'a str>,
    /// `--backing`.
    pub(super) backing: Backing,
    /// How many nodes there are; 0 where the guest is told of none.
    pub(super) nodes: usize,
}

/// The hot-plug regions.
pub(super) fn hotplug(regions: &[String], defaults: Defaults<'_>) -> Result<Vec<HotplugSpec>, SpecError> {
    if let Some(block) = defaults.block {
        let block = size("--block-size", block)?;
        check("--block-size", block, &[AtLeast(MIN_BLOCK_SIZE), PowerOfTwo])?;
        if regions.is_empty() {
            let rule = "blocks belong to a hot-plug region";
            return Err(SpecError::Missing {
                option: "--block-size",
                missing: "--hotplug",
                rule,
            });
        }
    }
    if regions.len() > MAX_REGIONS {
        return Err(SpecError::TooMany {
            option: "--hotplug",
            count: regions.len(),
            limit: MAX_REGIONS,
        });
    }
    regions.iter().map(|text| one(text, defaults)).collect()
}

fn one(text: &str, defaults: Defaults<'_>) -> Result<HotplugSpec, SpecError> {
    let region = Region::parse(text)?;
    let backing = region.backing.map_or(Ok(defaults.backing), |text| {
        Backing::parse("--hotplug backing", text)
    })?;
    let block_size = block_size(&region, backing, defaults.block)?;
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
    let node = region
        .node
        .map_or(Ok(0), |text| node_number(text, defaults.nodes))?;
    let pages = match (region.populate, backing) {
        (None, Backing::Anonymous | Backing::Memfd) => PageSupply::OnTouch,
        _ => PageSupply::AtPlug,
    };
    Ok(HotplugSpec {
        region_size,
        block_size,
        requested_size,
        node,
        backing,
        pages,
        unplugged: unplugged(region.unplugged, backing)?,
    })
}

/// The region's own block size, or that of all regions, or the smallest that its pages allow.
fn block_size(region: &Region<'_>, backing: Backing, all: Option<&str>) -> Result<u64, SpecError> {
    let least = MIN_BLOCK_SIZE.max(backing.page_size());
    let (option, text) = match (region.block, all) {
        (Some(text), _) => ("--hotplug block", text),
        (None, Some(text)) => ("--block-size", text),
        (None, None) => return Ok(least),
    };
    let bytes = size(option, text)?;
    check(
        option,
        bytes,
        &[AtLeast(MIN_BLOCK_SIZE), PowerOfTwo, AtLeast(least)],
    )?;
    Ok(bytes)
}

/// What drivers may do with unplugged blocks.
fn unplugged(text: Option<&str>, backing: Backing) -> Result<UnpluggedMemory, SpecError> {
    match (text, backing) {
        (None | Some("inaccessible"), _) => Ok(UnpluggedMemory::Inaccessible),
        (Some("readable"), Backing::Anonymous) => Ok(UnpluggedMemory::Readable),
        (Some("readable"), Backing::Memfd | Backing::Hugetlbfs(_)) => Err(SpecError::Conflict {
            option: "--hotplug unplugged=readable",
            other: "--hotplug backing",
            rule: "a read of memory in a file takes a page: only anonymous memory can be readable and free",
        }),
        (Some(other), _) => Err(SpecError::Choice {
            option: "--hotplug unplugged",
            value: other.to_owned(),
            allowed: "inaccessible, readable",
        }),
    }
}

#[cfg(test)]
mod tests;
