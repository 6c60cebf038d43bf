//! `ballast demo`: two guests, one budget, and memory that goes back and forth between them while programs in both verify
//! every byte.

pub mod draw;
pub mod host;
pub mod ledger;
pub mod model;
mod options;
pub mod plan;
pub mod scene;
pub mod view;

pub use options::{DEFAULT_TIME_LIMIT, DemoOptions};
