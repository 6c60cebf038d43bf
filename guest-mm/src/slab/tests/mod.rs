//! The slab allocator against memory in a map: layout, lists, local caches, misuse, failures, and a naive model.

mod basics;
mod failures;
mod misuse;
mod model;
mod physical;
mod threads;
mod vacate;
pub(crate) mod world;
