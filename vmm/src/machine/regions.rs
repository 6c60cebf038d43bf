//! A resize as the hot-plug regions see it: what is requested of each.

use super::shared::Shared;
use super::split::{NotInBlocks, Share, split};
use super::{ResizeError, ResizePlace};

impl Shared {
    /// Asks for a total of `total_bytes`.
    pub(super) fn resize(&self, total_bytes: u64, place: ResizePlace) -> Result<(), ResizeError> {
        match (place, &self.devices.balloon) {
            (ResizePlace::Anywhere, Some(balloon)) => self.resize_with_balloon(balloon, total_bytes, None),
            (ResizePlace::Anywhere, None) => {
                let hot_plugged = self.hot_plugged(total_bytes)?;
                let wanted = self.anywhere(hot_plugged)?;
                self.resize_begins(|| self.request(&wanted));
                Ok(())
            }
            (ResizePlace::Region(region), balloon) => {
                let floor = balloon.as_ref().map_or(0, |balloon| balloon.floor());
                if total_bytes < floor {
                    return Err(ResizeError::BelowFloor { total_bytes, floor });
                }
                let hot_plugged = self.hot_plugged(total_bytes)?;
                let wanted = self.in_region(hot_plugged, region)?;
                if let Some(balloon) = balloon {
                    return self.resize_with_balloon(balloon, total_bytes, Some(wanted));
                }
                self.resize_begins(|| self.request(&wanted));
                Ok(())
            }
        }
    }

    /// Asks the guest to keep what it has: what was about to leave goes back to use, and what has not come is not wanted any more. A block that leaves at
    /// this very moment comes back.
    pub(super) fn keep(&self) -> Result<(), ResizeError> {
        let plugged = self.devices.memory.iter();
        let plugged: Vec<u64> = plugged.map(|device| device.standing().plugged_size).collect();
        if let Some(balloon) = &self.devices.balloon {
            let total_bytes = self.standing().reached(self.spec.memory);
            return self.resize_with_balloon(balloon, total_bytes, Some(plugged));
        }
        if self.lifecycle.is_ending() {
            return Err(ResizeError::Ended);
        }
        self.resize_begins(|| self.request(&plugged));
        Ok(())
    }

    /// Requests so much of each region. A driver that has given up is told again, even where nothing changes.
    pub(super) fn request(&self, wanted: &[u64]) {
        for (device, bytes) in self.devices.memory.iter().zip(wanted) {
            let asked = device.request(*bytes);
            debug_assert!(asked.is_ok(), "whole blocks inside the region: {asked:?}");
        }
    }

    /// What a total means for the regions together.
    fn hot_plugged(&self, total_bytes: u64) -> Result<u64, ResizeError> {
        let boot_memory = self.spec.memory;
        if self.devices.memory.is_empty() && total_bytes != boot_memory {
            return Err(ResizeError::NoRegion { boot_memory });
        }
        if self.lifecycle.is_ending() {
            return Err(ResizeError::Ended);
        }
        total_bytes
            .checked_sub(boot_memory)
            .ok_or(ResizeError::BelowBootMemory {
                total_bytes,
                boot_memory,
            })
    }

    /// What each region is to have, all of them together `hot_plugged` bytes.
    fn anywhere(&self, hot_plugged: u64) -> Result<Vec<u64>, ResizeError> {
        let (boot_memory, shares) = (self.spec.memory, self.shares());
        let total_bytes = boot_memory + hot_plugged;
        let limit = boot_memory + shares.iter().map(|share| share.size).sum::<u64>();
        let smallest = shares.iter().map(|share| share.block_size).min();
        split(hot_plugged, &shares).map_err(|NotInBlocks { below }| match smallest {
            _ if total_bytes > limit => ResizeError::BeyondRegion { total_bytes, limit },
            Some(block_size) if !hot_plugged.is_multiple_of(block_size) => ResizeError::Unaligned {
                total_bytes,
                boot_memory,
                block_size,
            },
            _ => ResizeError::NotInBlocks {
                total_bytes,
                below: boot_memory + below,
            },
        })
    }

    /// The same, with one region making the whole change.
    fn in_region(&self, hot_plugged: u64, region: usize) -> Result<Vec<u64>, ResizeError> {
        let shares = self.shares();
        let share = shares.get(region).ok_or(ResizeError::NoSuchRegion {
            region,
            regions: shares.len(),
        })?;
        let others = shares.iter().map(|share| share.requested).sum::<u64>() - share.requested;
        let bytes = hot_plugged
            .checked_sub(others)
            .filter(|bytes| *bytes <= share.size && bytes.is_multiple_of(share.block_size))
            .ok_or(ResizeError::RegionAlone {
                total_bytes: self.spec.memory + hot_plugged,
                region,
                wanted: i128::from(hot_plugged) - i128::from(others),
                region_size: share.size,
                block_size: share.block_size,
            })?;
        let mut wanted: Vec<u64> = shares.iter().map(|share| share.requested).collect();
        wanted[region] = bytes;
        Ok(wanted)
    }

    pub(super) fn shares(&self) -> Vec<Share> {
        self.devices.memory.iter().map(|device| device.share()).collect()
    }
}
