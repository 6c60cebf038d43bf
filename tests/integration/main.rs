//! One binary for every test of the running whole. The harness is in `tests/src`; which module runs where:
//! `hardware` on a KVM like hardware's (directly, or in the host box), `device_driver` on none at all, everything
//! else on this machine's `/dev/kvm`.

mod cli;
mod cli_running;
mod device_driver;
mod hardware;
