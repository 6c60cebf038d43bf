//! Files that nobody needs any more: deleted, or merely out of memory.

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_sync::Cpu;

use super::super::inodes::{Evict, InodeShrinker};
use super::super::pagefs::InodeNr;
use super::{File, Machine, Mounted};

impl<'m, X: Machine<'m>> Mounted<'m, X> {
    /// Lets go of an open file. One without a name is deleted when the last lets go of it and no area maps it.
    pub async fn close(&self, file: &Arc<File>) {
        let left = self.inodes.let_go(file.number());
        if left == Some(0) && !file.has_name() {
            self.delete(file).await;
        }
    }

    /// Deletes files that were waiting for their last area to go.
    pub(super) async fn delete_orphans(&self) {
        let waiting: Vec<InodeNr> = self.orphans.lock().iter().copied().collect();
        for number in waiting {
            let file = self
                .inodes
                .peek(number)
                .filter(|_| self.inodes.holders(number) == 0);
            let Some(file) = file.filter(|file| !self.mm().is_mapped(file.mapping())) else {
                continue;
            };
            self.orphans.lock().remove(&number);
            self.delete(&file).await;
        }
    }

    /// Deletes a file that has no name and that nobody has open.
    pub(super) async fn delete(&self, file: &Arc<File>) {
        let (mm, number) = (self.mm(), file.number());
        if mm.is_mapped(file.mapping()) {
            self.orphans.lock().insert(number);
            return;
        }
        if !file.begin_end() {
            return;
        }
        // What is on its way of it has arrived then, and its blocks can be somebody else's. A size of 0 needs no memory.
        let _ = mm.truncate(self.here(), file.mapping(), 0).await;
        let _ = mm.remove_mapping(file.mapping());
        self.files.lock().remove(&file.mapping());
        let mut volume = self.volume.lock().await;
        self.inodes.remove(number);
        // What cannot be deleted now is deleted by the next mount: nothing leads to it.
        let _ = volume.release(number).await;
    }

    /// The cache of inodes as a shrinker.
    pub const fn inode_shrinker(&self) -> InodeShrinker<'_, Arc<File>, X::Inodes, &Self> {
        InodeShrinker {
            cache: &self.inodes,
            evict: self,
        }
    }
}

impl<'m, X: Machine<'m>> Evict<Arc<File>> for &Mounted<'m, X> {
    /// A file goes with its clean pages.
    fn evict(&self, cpu: &Cpu, number: InodeNr, file: &Arc<File>) -> bool {
        let (mm, mapping) = (self.mm(), file.mapping());
        // One without a name is about to be deleted.
        let is_used = !file.has_name() || mm.is_mapped(mapping) || mm.is_dirty(mapping);
        if is_used || !file.begin_end() {
            return false;
        }
        let is_gone = self.volume.try_lock().is_some_and(|mut volume| {
            // A file that has grown in its last block is longer than its inode says until the next commit.
            let (known, size) = (volume.known_size(number), self.size(file));
            if known.is_none_or(|known| known < size) || !mm.invalidate(cpu, mapping) {
                return false;
            }
            // Without a dirty page there is nothing to come for these blocks.
            for index in file.unwritten() {
                volume.take_back(number, index);
            }
            file.cut(0);
            volume.forget(number) && mm.remove_mapping(mapping).is_ok()
        });
        if is_gone {
            self.files.lock().remove(&mapping);
        } else {
            file.end_not();
        }
        is_gone
    }
}
