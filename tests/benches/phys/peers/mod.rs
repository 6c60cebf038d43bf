//! The peers: each behind the suite's small trait, in a file of its own.

#![expect(
    unsafe_code,
    reason = "the peers manage raw memory, and an allocator beside the repository is C"
)]

mod bitmap;
mod buddy_slab;
mod buddy_system;
mod heaps;
mod locked;
mod plugin;

use crate::frames::FrameSuite;
use crate::objects::ObjectSuite;

pub(crate) use plugin::Plugin;

/// Frame allocators as one thread uses them: those that know no threads are without any lock.
pub(crate) fn frames(plugins: &[Plugin]) -> Vec<Box<dyn FrameSuite>> {
    let mut all: Vec<Box<dyn FrameSuite>> = vec![
        Box::new(buddy_system::BuddySystem),
        Box::new(buddy_slab::BuddySlab),
        Box::new(bitmap::Bitmap),
    ];
    all.extend(
        plugins
            .iter()
            .map(|plugin| Box::new(plugin.clone()) as Box<dyn FrameSuite>),
    );
    all
}

/// Frame allocators as several threads use them: those that know no threads are behind a spin lock.
pub(crate) fn shared_frames(plugins: &[Plugin]) -> Vec<Box<dyn FrameSuite>> {
    let mut all: Vec<Box<dyn FrameSuite>> = vec![
        Box::new(locked::Locked(buddy_system::BuddySystem)),
        Box::new(locked::Locked(buddy_slab::BuddySlab)),
        Box::new(locked::Locked(bitmap::Bitmap)),
    ];
    all.extend(
        plugins
            .iter()
            .map(|plugin| Box::new(plugin.clone()) as Box<dyn FrameSuite>),
    );
    all
}

/// Allocators of objects.
pub(crate) fn objects() -> Vec<Box<dyn ObjectSuite>> {
    vec![
        Box::new(heaps::Talc),
        Box::new(heaps::Rlsf),
        Box::new(buddy_slab::Slab),
        Box::new(heaps::Mimalloc),
        Box::new(heaps::System),
    ]
}
