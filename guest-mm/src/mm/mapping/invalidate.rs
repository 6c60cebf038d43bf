//! Pages of a file that are not to be in memory any more because the disk has newer ones (Linux `invalidate_inode_pages2_range`).

use super::{FileError, MappingId};
use crate::frames::{Frames, Mmu};
use crate::mempool::ThisCpu;
use crate::mm::Mm;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Takes `nr` pages of a file from `index` on out of memory, out of all page tables first. What is on its way to the disk is awaited;
    /// what is dirty is lost: who wants to keep it writes it before ([`Mm::sync`]).
    ///
    /// # Errors
    /// There is no such mapping.
    pub async fn invalidate_range(
        &self,
        cpu: impl ThisCpu + Copy,
        id: MappingId,
        (index, nr): (u32, u32),
    ) -> Result<(), FileError> {
        let mapping = self.mapping(id)?;
        let end = index.saturating_add(nr);
        let mut next = Some(index);
        while let Some(from) = next {
            let found = mapping.lock().tree.first_from(from);
            let Some((index, _)) = found.filter(|(index, _)| *index < end) else {
                break;
            };
            let wait = self.try_drop(cpu.this_cpu(), &mapping, index);
            match wait {
                Some(wait) => self.until_unlocked(wait).await,
                None => next = index.checked_add(1),
            }
        }
        Ok(())
    }
}
