//! The host's end of a guest's network interfaces: tap devices.

mod tap;

pub use tap::{Tap, TapName};
