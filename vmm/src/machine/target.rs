//! A resize of a machine with a balloon: from the policy's orders to the devices.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::ResizeError;
use super::devices::BalloonDevice;
use super::progress::BalloonStanding;
use super::shared::Shared;
use super::sizing::{Limits, Orders, Sizing, Target, View};
use super::split::cover;
use crate::spec::BALLOON_UNIT;

impl Shared {
    /// Asks for a total of `total_bytes`, by blocks and balloon together; by `blocks` in each region where somebody has chosen.
    pub(super) fn resize_with_balloon(
        &self,
        balloon: &Arc<BalloonDevice>,
        total_bytes: u64,
        blocks: Option<Vec<u64>>,
    ) -> Result<(), ResizeError> {
        if self.lifecycle.is_ending() {
            return Err(ResizeError::Ended);
        }
        let limits = self.limits();
        let shares = self.shares();
        let limit = limits.boot_memory + shares.iter().map(|share| share.size).sum::<u64>();
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
        let now = self.built.elapsed();
        let above = total_bytes.saturating_sub(limits.boot_memory);
        let target = Target {
            total: total_bytes,
            blocks: blocks.unwrap_or_else(|| cover(above, &shares)),
        };
        self.resize_begins(|| {
            let mut sizing = self.sizing();
            let asked = sizing.get_or_insert_with(|| Sizing::new(limits, target.clone(), now));
            asked.ask(target, now);
            // Drivers are told even of what is not new: one that had given up tries again.
            self.carry_out(asked, balloon, Emphasis::Told);
        });
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
        let held = balloon.held();
        let mut view = View {
            plugged: 0,
            held,
            surplus_block: 0,
        };
        let mut as_wanted = true;
        for (device, wanted) in self.devices.memory.iter().zip(sizing.blocks()) {
            let (standing, block) = (device.standing(), device.share().block_size);
            view.plugged += standing.plugged_size;
            as_wanted &= standing.requested_size == *wanted;
            if standing.plugged_size > *wanted && block <= held {
                view.surplus_block = view.surplus_block.max(block);
            }
        }
        let now = self.built.elapsed();
        let orders: Orders = sizing.step(view, now);
        let told = emphasis == Emphasis::Told;
        if told || orders.try_again || !as_wanted {
            self.request(sizing.blocks());
        }
        if told || orders.balloon != balloon.target() {
            balloon.order(orders.balloon);
        }
        balloon.look_again(orders.wake.map(|wake| wake.saturating_sub(now)));
    }

    fn limits(&self) -> Limits {
        Limits {
            boot_memory: self.spec.memory,
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
