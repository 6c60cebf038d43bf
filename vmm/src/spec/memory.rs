//! `--memory SIZE`: what the guest boots with and always keeps; and how much memory a guest may have in all.

use super::backing::Backing;
use super::check::{check, size};
use super::error::SizeRule::{AtLeast, MultipleOf};
use super::error::SpecError;
use super::hotplug::HotplugSpec;
use super::size::{ByteSize, GIB, MIB};

/// Boot memory comes in whole huge pages.
pub const MEMORY_UNIT: u64 = 2 * MIB;
/// The least that the built-in guest and a small Linux boot with.
pub const MIN_MEMORY: u64 = 32 * MIB;
/// Boot memory when nothing is said.
pub const DEFAULT_MEMORY: u64 = 512 * MIB;
/// The most that boot memory and hot-plug region may have together: a memory slot of KVM has fewer than 2^31 pages
/// (`KVM_MEM_MAX_NR_PAGES`), that is, less than 8 TiB, and the region is one slot, as boot memory above 4 GiB is.
pub const MAX_TOTAL_MEMORY: u64 = 4 * 1024 * GIB;

/// Boot memory in bytes, if anything is said.
pub(super) fn boot_memory(text: Option<&str>) -> Result<Option<u64>, SpecError> {
    let Some(text) = text else { return Ok(None) };
    let bytes = size("--memory", text)?;
    check("--memory", bytes, &[AtLeast(MIN_MEMORY), MultipleOf(MEMORY_UNIT)])?;
    Ok(Some(bytes))
}

/// Refuses boot memory that is not whole pages of what it is made of.
pub(super) fn check_pages(memory: u64, backing: Backing) -> Result<(), SpecError> {
    check("--memory", memory, &[MultipleOf(backing.page_size())])
}

/// Refuses boot memory and hot-plug regions that are too much together.
pub(super) fn check_total(memory: u64, regions: &[HotplugSpec]) -> Result<(), SpecError> {
    let sizes = regions.iter().map(|region| region.region_size);
    let region = sizes.fold(0, u64::saturating_add);
    if memory.saturating_add(region) > MAX_TOTAL_MEMORY {
        return Err(SpecError::AddressSpace {
            memory: ByteSize(memory),
            region: ByteSize(region),
            limit: ByteSize(MAX_TOTAL_MEMORY),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, validate, with};

    fn memory(text: &str) -> super::super::VmOptions {
        with(|options| options.memory = Some(text.into()))
    }

    #[test]
    fn boot_memory_follows_its_rules() {
        for (text, message) in [
            ("0", "--memory 0 bytes: the smallest is 32 MiB"),
            ("30M", "--memory 30 MiB: the smallest is 32 MiB"),
            ("33M", "--memory 33 MiB: not a multiple of 2 MiB"),
            ("33554433", "--memory 33554433 bytes: not a multiple of 2 MiB"),
            ("-1", "--memory: \"-1\" is not a size"),
            ("lots", "--memory: \"lots\" is not a size"),
            ("16777216T", "--memory: \"16777216T\" is more than 2^64 - 1 bytes"),
            ("16777215T", "together more than 4 TiB, the guest's address space"),
        ] {
            assert!(
                refusal(&memory(text)).contains(message),
                "{}",
                refusal(&memory(text))
            );
        }
        assert!(validate(&memory("32M")).is_ok());
        assert!(validate(&memory("4T")).is_ok());
    }
}
