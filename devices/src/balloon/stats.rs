//! What the guest says of its own memory, from one buffer of the statistics queue.

use virtio_wire::balloon::{Stat, StatTag};
use vm_memory::GuestMemory;

use crate::fault::GuestFault;
use crate::queue::Buffers;

/// Statistics taken from one buffer at most; Linux sends at most 16.
const MAX_STATS: usize = 64;

/// One report of the guest. A guest may leave out any statistic; all of them are its own word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    values: [Option<u64>; StatTag::ALL.len()],
}

impl Statistics {
    /// The value of one statistic, in the unit that [`StatTag`] names, if the guest gave it.
    pub fn value(&self, tag: StatTag) -> Option<u64> {
        self.values[tag as usize]
    }

    /// Reads a buffer. Tags that are not known are ignored, as is whatever follows the last whole entry (section 5.5.6.2.2);
    /// of a tag that comes twice the last one counts.
    pub(super) fn read<M: GuestMemory>(chain: &Buffers<'_, M>) -> Result<Statistics, GuestFault> {
        let mut statistics = Statistics::default();
        let entries = chain.readable_len() / Stat::SIZE as u64;
        for index in (0..entries).take(MAX_STATS) {
            let mut bytes = [0; Stat::SIZE];
            chain.read(index * Stat::SIZE as u64, &mut bytes)?;
            let Stat { tag, value } = Stat::decode(&bytes);
            if let Some(tag) = StatTag::from_raw(tag) {
                statistics.values[tag as usize] = Some(value);
            }
        }
        Ok(statistics)
    }
}
