//! Packing: what is in use on removable memory moves together, so that as many blocks as possible have nothing on them: those can be given back at
//! once, or left without power (Takahashi, memory hotplug, 2003: "power saving").

use super::shrink::Emptied;
use super::{Interruption, Worker};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_mm::BlockIndex;

impl Worker {
    /// Empties blocks, the emptiest first, while the others have room for what is on them. Each is tried once, and is back in use at the end.
    pub(super) async fn pack(
        &mut self,
        interrupted: &mut Result<(), Interruption>,
    ) -> Result<String, String> {
        let mut tried: Vec<BlockIndex> = Vec::new();
        let (mut emptied, mut moved_pages) = (0, 0);
        while let Some(next) = self.kernel.phys.next_to_pack(&tried) {
            tried.push(next.block);
            let Ok(isolated) = self.kernel.phys.isolate(next.block) else {
                continue;
            };
            match self.move_off(isolated).await {
                Emptied::Yes(offline) => {
                    self.bring_online(offline);
                    (emptied, moved_pages) = (emptied + 1, moved_pages + next.used_pages);
                }
                Emptied::No(isolated, _) => self.put_back(isolated, None),
                Emptied::Interrupted(isolated, why) => {
                    self.put_back(isolated, None);
                    *interrupted = Err(why);
                    break;
                }
            }
        }
        self.kernel.memory_came.raise();
        let blocks = self.kernel.phys.rank_blocks();
        let used = blocks.iter().filter(|cost| cost.used_pages > 0).count();
        let free = blocks.len() - used;
        let text = format!(
            "{emptied} blocks emptied, {moved_pages} pages moved; {used} blocks in use, {free} free\n"
        );
        match interrupted {
            Ok(()) => Ok(text),
            Err(why) => Err(format!("{}: {text}", why.as_str())),
        }
    }
}
