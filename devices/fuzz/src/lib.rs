#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod chain;
mod driver;
mod guest;
mod input;
mod registers;
mod restart;
mod run;
mod step;
pub mod subjects;
mod violation;
mod watch;
mod world;

pub use guest::Guest;
pub use input::Input;
pub use run::{explain, run, run_with};
pub use step::{Body, HostStep, RequestStep, Step};
pub use subjects::Subject;
pub use violation::Violation;
pub use world::World;
