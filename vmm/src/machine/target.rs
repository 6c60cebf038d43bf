//! A resize of a machine with a balloon: from the policy's orders to the devices.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::ResizeError;
use super::devices::BalloonDevice;
use super::progress::BalloonStanding;
use super::shared::Shared;
use super::sizing::{Limits, Orders, Sizing, View};
use crate::spec::{BALLOON_UNIT, MIN_BLOCK_SIZE};

impl Shared {
    /// Asks for a total of `total_bytes`, by blocks and balloon together.
    pub(super) fn resize_with_balloon(
        &self,
        balloon: &Arc<BalloonDevice>,
        total_bytes: u64,
    ) -> Result<(), ResizeError> {
        if self.lifecycle.is_ending() {
            return Err(ResizeError::Ended);
        }
        let limits = self.limits();
        let limit = limits.boot_memory + limits.region_size;
        if total_bytes > limit {
            return Err(ResizeError::BeyondRegion { total_bytes, limit });
        }
        let floor = balloon.floor();
        if total_bytes < floor {
            return Err(ResizeError::BelowFloor { total_bytes, floor });
        }
        if !total_bytes.is_multiple_of(BALLOON_UNIT) {
            return Err(ResizeError::UnalignedToPages {
                total_bytes,
                unit: BALLOON_UNIT,
            });
        }
        let before = self.standing();
        let now = self.built.elapsed();
        let mut sizing = self.sizing();
        let asked = sizing.get_or_insert_with(|| Sizing::new(limits, total_bytes, now));
        asked.ask(total_bytes, now);
        // Drivers are told even of what is not new: one that had given up tries again.
        self.carry_out(asked, balloon, Emphasis::Told);
        drop(sizing);
        self.resize_begins(&before);
        Ok(())
    }

    /// Looks what is to be done for the target now.
    pub(super) fn pursue_target(&self) {
        let (Some(balloon), mut sizing) = (&self.devices.balloon, self.sizing()) else {
            return;
        };
        if let Some(sizing) = sizing.as_mut() {
            self.carry_out(sizing, balloon, Emphasis::IfNew);
        }
    }

    /// Blocks were plugged or unplugged. For the event loop.
    pub(super) fn blocks_moved(&self) {
        if let Some(balloon) = self.devices.balloon.as_ref().filter(|balloon| balloon.held() > 0) {
            for (gpa, end) in self.unplugged_ranges() {
                balloon.forget(gpa, end);
            }
        }
        self.pursue_target();
        self.resize_moves();
    }

    /// Pages went into the balloon or left it, or its driver came or went. For the event loop.
    pub(super) fn balloon_moved(&self) {
        self.pursue_target();
        self.resize_moves();
    }

    /// How things stand with the balloon.
    pub(super) fn balloon_standing(&self) -> Option<BalloonStanding> {
        let balloon = self.devices.balloon.as_ref()?;
        Some(BalloonStanding {
            held: balloon.held(),
            wanted: balloon.target(),
            target: self.sizing().as_ref().map(Sizing::target),
            driver_ready: balloon.is_live(),
        })
    }

    fn carry_out(&self, sizing: &mut Sizing, balloon: &BalloonDevice, emphasis: Emphasis) {
        let (mut requested, mut plugged) = (0, 0);
        for device in &self.devices.memory {
            let standing = device.standing();
            requested += standing.requested_size;
            plugged += standing.plugged_size;
        }
        let held = balloon.held();
        let now = self.built.elapsed();
        let orders: Orders = sizing.step(View { plugged, held }, now);
        let told = emphasis == Emphasis::Told;
        if told || orders.try_again || orders.requested != requested {
            self.request_blocks(orders.requested);
        }
        if told || orders.balloon != balloon.target() {
            balloon.order(orders.balloon);
        }
        balloon.look_again(orders.wake.map(|wake| wake.saturating_sub(now)));
    }

    fn limits(&self) -> Limits {
        let blocks = self.spec.hotplug.iter().map(|hotplug| hotplug.block_size);
        Limits {
            boot_memory: self.spec.memory,
            region_size: self.spec.hotplug.iter().map(|hotplug| hotplug.region_size).sum(),
            block_size: blocks.max().unwrap_or(MIN_BLOCK_SIZE),
        }
    }

    /// Guest-physical addresses of what is not plugged: from, to.
    fn unplugged_ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        for region in self.ram.regions() {
            let layout = region.layout();
            let gpa = |block: u64| layout.start + block * layout.block_size;
            let mut from = 0;
            for run in region.plugged().runs() {
                ranges.push((gpa(from), gpa(run.start)));
                from = run.end;
            }
            ranges.push((gpa(from), layout.end()));
        }
        ranges
    }

    fn sizing(&self) -> MutexGuard<'_, Option<Sizing>> {
        self.sizing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether drivers are told of orders that are not new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Emphasis {
    Told,
    IfNew,
}
