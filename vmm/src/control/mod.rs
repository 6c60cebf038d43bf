//! Control of running VMs from outside: where they are registered, the API that each serves on its socket, and the
//! client that everybody else uses.

pub mod api;
pub mod client;
pub mod handle;
pub mod rate;
pub mod registry;
pub mod report;
mod routes;
pub mod server;
mod stream;

#[cfg(test)]
mod tests;
