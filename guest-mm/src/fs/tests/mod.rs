//! File systems on the host: their caches over real slabs, and a mounted one over a disk that answers in any order, fails, and
//! loses its power.

mod caches;
mod crash;
mod direct;
mod mounted;
pub(crate) mod world;
