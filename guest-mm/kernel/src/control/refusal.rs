//! Why a resize does not go on: in words, and in numbers and words that a machine reads.

use crate::kernel::{Kernel, ResizeStatus};
use crate::resize::blame::{self, Blame, Cause};
use alloc::string::String;
use core::fmt::{self, Write};
use guest_virtio::plan::StuckBlocks;

/// `resize_stall_reason`, and what is known of the block and the page. What is not known has no line.
pub(super) fn write(out: &mut String, kernel: &Kernel, status: &ResizeStatus) -> fmt::Result {
    let is_shrinking = status.at_work && status.plugged > status.requested;
    let word = match status.stall {
        Some(reason) => reason.as_str(),
        None if is_shrinking && status.blame.is_some() => "trying",
        None => "none",
    };
    let blame = status.blame.filter(|_| word != "none");
    write!(out, "resize_stall_reason {word}")?;
    if let Some(blame) = &blame {
        write!(out, " ({}", blame.describe(kernel))?;
        if status.stuck.total() > 1 {
            write!(out, "; {}", status.stuck)?;
        }
        out.push(')');
    }
    writeln!(out)?;
    match &blame {
        Some(blame) => details(out, kernel, blame)?,
        None if status.stall.is_some() => writeln!(out, "resize_refusal_reason {word}")?,
        None => {}
    }
    counts(out, &status.stuck)
}

fn details(out: &mut String, kernel: &Kernel, blame: &Blame) -> fmt::Result {
    if let Some(block) = blame.block {
        writeln!(out, "resize_refusal_block {}", block.0)?;
    }
    match &blame.cause {
        Cause::Page(refusal) => {
            writeln!(out, "resize_refusal_pfn {}", refusal.pfn.number())?;
            writeln!(out, "resize_refusal_order {}", refusal.order.number())?;
            writeln!(out, "resize_refusal_kind {}", refusal.kind.name())?;
            if let Some(system) = refusal.kind.file_system() {
                writeln!(out, "resize_refusal_file_system {system}")?;
            }
            writeln!(out, "resize_refusal_reason {}", refusal.reason.name())?;
            if let Some(holder) = blame::holder(kernel, refusal) {
                writeln!(out, "resize_refusal_holder {holder}")?;
            }
            Ok(())
        }
        Cause::Shortage(shortage) => {
            writeln!(out, "resize_refusal_reason no-memory")?;
            writeln!(out, "resize_refusal_needed_bytes {}", shortage.needed)?;
            writeln!(out, "resize_refusal_spare_bytes {}", shortage.spare)?;
            writeln!(out, "resize_refusal_reserve_bytes {}", shortage.reserve)
        }
    }
}

fn counts(out: &mut String, stuck: &StuckBlocks) -> fmt::Result {
    writeln!(out, "resize_stuck_pinned {}", stuck.pinned)?;
    writeln!(out, "resize_stuck_busy {}", stuck.busy)?;
    writeln!(out, "resize_stuck_no_memory {}", stuck.no_memory)?;
    writeln!(out, "resize_stuck_device_refused {}", stuck.device_refused)
}
