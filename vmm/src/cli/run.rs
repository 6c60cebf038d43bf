//! `ballast run`: one VM, in this process, until it ends.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{Failure, Status};
use crate::cli::failure::one_line;
use crate::control::registry::RuntimeDir;
use crate::control::server::ApiServer;
use crate::machine::{Vm, VmExit};
use crate::spec::{Payload, VmName, VmOptions, VmSpec};

/// Start a microVM and run it until it ends
///
/// The guest's console is on standard output, messages are on standard error.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Run {
    #[command(flatten)]
    options: VmOptions,

    /// Take options from a file: TOML with the names of these options as keys, or JSON if it ends in .json. The command
    /// line goes before the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ballast run --name a --memory 512M --hotplug 4G --program 'hog fill=70%'
  ballast run --kernel bzImage --initrd initrd.img --cmdline console=ttyS0 --hotplug 4G
  ballast run --config resources/vm/built-in.toml --cpus 2
  ballast run --cpus 2 --node memory=192M,cpus=0,distance=10:25 --node memory=64M --hotplug 1G,node=1

On a terminal, Ctrl-A x stops the VM and Ctrl-A h shows the other keys.

Exit status:
  0  the guest shut down, was stopped, or asked for a reboot with --on-reboot exit
  1  a fault of the host or the VMM
  2  the options break a rule; nothing was started
  3  the guest panicked, or reset its machine in a loop
  4  the guest touched unplugged memory and was killed for it";

impl Run {
    /// Checks, registers, builds, runs, and clears away. Only after the checks is anything touched.
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let spec = self.spec()?;
        // Signals are caught before there is a file that would stay behind.
        let server = ApiServer::new().map_err(Failure::run_time)?;
        let (registration, listener) = RuntimeDir::from_env().register(&spec.name)?;
        let vm = Vm::build(&spec).map_err(Failure::run_time)?;
        if let Some(warning) = left_alone(&spec) {
            eprintln!("ballast: warning: {warning}");
        }
        let server = server
            .serve(listener, Arc::new(vm.handle()))
            .map_err(Failure::run_time)?;
        let exit = vm.run();
        server.shut_down();
        drop(registration);
        Ok(report(&exit.map_err(Failure::run_time)?))
    }

    /// What the command line and the file together ask for.
    fn spec(&self) -> Result<VmSpec, Failure> {
        let file = self
            .config
            .as_deref()
            .map_or(Ok(VmOptions::default()), VmOptions::from_file);
        let options = self.options.clone().or(file.map_err(Failure::usage)?);
        let default_name = VmName::new(&format!("vm-{}", std::process::id())).map_err(Failure::usage)?;
        options.validate(&default_name).map_err(Failure::usage)
    }
}

/// What the guest will not use: the built-in one has a driver for one memory device.
fn left_alone(spec: &VmSpec) -> Option<String> {
    let [used, others @ ..] = &spec.hotplug[..] else {
        return None;
    };
    if others.is_empty() || !matches!(spec.payload, Payload::BuiltIn { .. }) {
        return None;
    }
    let nodes: Vec<String> = others.iter().map(|region| region.node.to_string()).collect();
    Some(format!(
        "the built-in guest uses one --hotplug, the first (node {}); it plugs nothing of the {} behind it (node {})",
        used.node,
        others.len(),
        nodes.join(", ")
    ))
}

/// Says why the VM ended, where it is not for the plainest of reasons.
fn report(exit: &VmExit) -> Status {
    match exit {
        VmExit::Shutdown | VmExit::Stopped => Status::Done,
        VmExit::Reboot => {
            eprintln!("ballast: guest asked for a reboot");
            Status::Done
        }
        VmExit::RebootLoop { .. } => {
            eprintln!("ballast: {exit} (see --reboot-limit)");
            Status::GuestPanic
        }
        VmExit::Panicked { message } => {
            eprintln!("ballast: guest panicked: {}", one_line(message));
            Status::GuestPanic
        }
        VmExit::Violation(violation) => {
            eprintln!("ballast: {violation}");
            Status::Violation
        }
    }
}
