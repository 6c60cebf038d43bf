//! What keeps blocks from leaving, as the built-in guest says it.

use serde::{Deserialize, Serialize};

/// What was the last to keep a block, or is being waited for. What the guest does not say, or does not apply, is `null`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRefusal {
    /// The block.
    pub block: Option<u64>,
    /// First frame of the page that stays.
    pub pfn: Option<u64>,
    /// log2 of its number of frames.
    pub order: Option<u64>,
    /// What it is used for.
    pub kind: Option<String>,
    /// Of which file system, if it is of a file.
    pub file_system: Option<String>,
    /// Why it stays, or why the block does.
    pub reason: String,
    /// Who has the page: a program, a disk, a cache of the kernel.
    pub holder: Option<String>,
    /// Without memory to spare: what is needed elsewhere for the block to leave.
    pub needed_bytes: Option<u64>,
    /// What there is beyond the reserve.
    pub spare_bytes: Option<u64>,
    /// What must remain for programs.
    pub reserve_bytes: Option<u64>,
    /// All blocks that stay.
    pub blocks: StuckBlocks,
}

/// How many blocks were tried and stay, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckBlocks {
    /// Pages that cannot move.
    pub pinned: u64,
    /// Pages that somebody is just using.
    pub busy: u64,
    /// No room elsewhere for what is on them.
    pub no_memory: u64,
    /// The device did not take them.
    pub device_refused: u64,
}

impl GuestRefusal {
    /// What a guest's `vmstat` says, if it says why anything stays.
    pub(crate) fn of(vmstat: &str) -> Option<Self> {
        let text = |name: &str| {
            let mut lines = vmstat.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            Some(value.trim().to_owned())
        };
        let number = |name: &str| text(name)?.parse().ok();
        let count = |name: &str| number(name).unwrap_or(0);
        Some(Self {
            block: number("resize_refusal_block"),
            pfn: number("resize_refusal_pfn"),
            order: number("resize_refusal_order"),
            kind: text("resize_refusal_kind"),
            file_system: text("resize_refusal_file_system"),
            reason: text("resize_refusal_reason")?,
            holder: text("resize_refusal_holder"),
            needed_bytes: number("resize_refusal_needed_bytes"),
            spare_bytes: number("resize_refusal_spare_bytes"),
            reserve_bytes: number("resize_refusal_reserve_bytes"),
            blocks: StuckBlocks {
                pinned: count("resize_stuck_pinned"),
                busy: count("resize_stuck_busy"),
                no_memory: count("resize_stuck_no_memory"),
                device_refused: count("resize_stuck_device_refused"),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_stays_is_named_with_kind_reason_and_holder() {
        let vmstat = "pgfault 1\nresize_stall_reason busy (in words)\nresize_refusal_block 3\n\
            resize_refusal_pfn 33024\nresize_refusal_order 0\nresize_refusal_kind file\n\
            resize_refusal_file_system pagefs\nresize_refusal_reason writeback\nresize_refusal_holder vda\n\
            resize_stuck_pinned 1\nresize_stuck_busy 2\n";
        let expected = GuestRefusal {
            block: Some(3),
            pfn: Some(33024),
            order: Some(0),
            kind: Some("file".into()),
            file_system: Some("pagefs".into()),
            reason: "writeback".into(),
            holder: Some("vda".into()),
            blocks: StuckBlocks {
                pinned: 1,
                busy: 2,
                ..StuckBlocks::default()
            },
            ..GuestRefusal::default()
        };
        assert_eq!(GuestRefusal::of(vmstat), Some(expected));
    }

    #[test]
    fn a_lack_of_memory_is_told_with_what_is_needed_to_spare_and_to_remain() {
        let vmstat = "resize_refusal_reason no-memory\nresize_refusal_needed_bytes 4096\n\
            resize_refusal_spare_bytes 0\nresize_refusal_reserve_bytes 4194304\nresize_stuck_no_memory 7\n";
        let refusal = GuestRefusal::of(vmstat).expect("a reason");
        assert_eq!((refusal.reason.as_str(), refusal.pfn), ("no-memory", None));
        let bytes = [refusal.needed_bytes, refusal.spare_bytes, refusal.reserve_bytes];
        assert_eq!(bytes, [Some(4096), Some(0), Some(4 << 20)]);
        assert_eq!(refusal.blocks.no_memory, 7);
    }

    #[test]
    fn what_is_no_number_is_left_out_and_no_reason_is_no_refusal() {
        let vmstat = "resize_refusal_reason pinned\nresize_refusal_pfn -1\nresize_refusal_block many\n";
        let refusal = GuestRefusal::of(vmstat).expect("a reason");
        assert_eq!((refusal.pfn, refusal.block), (None, None));
        assert_eq!(
            GuestRefusal::of("resize_stall_reason none\nresize_refusal_pfn 1\n"),
            None
        );
    }
}
