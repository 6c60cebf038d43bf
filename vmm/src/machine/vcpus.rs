//! The vCPU threads: enter the guest, serve what it came out for, and look at the gate before each entry.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vmm_sys_util::signal::Killable;

use super::bus::MachineRequest;
use super::lifecycle::Gate;
use super::shared::Shared;
use super::violation::{FaultMeaning, Violation};
use super::{VmError, VmExit};
use crate::hv::{ActiveVcpu, Vcpu, VcpuEvent};
use crate::spec::OnViolation;

const STACK: usize = 256 << 10;
/// How often in a row memory that the guest owns may fault: a block that is plugged by another CPU at the very
/// moment explains one.
const MAX_OWNED_FAULTS: u32 = 16;

/// All vCPU threads of a VM.
#[derive(Debug)]
pub(super) struct VcpuThreads {
    threads: Vec<JoinHandle<()>>,
    kick: libc::c_int,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU, which `kick`, a signal, gets out of the guest. If one cannot be started, the VM
    /// ends with that.
    pub(super) fn start(vcpus: Vec<Vcpu>, shared: &Arc<Shared>, kick: libc::c_int) -> Self {
        let mut threads = Vec::new();
        for vcpu in vcpus {
            let builder = thread::Builder::new()
                .name(format!("vcpu{}", vcpu.id()))
                .stack_size(STACK);
            let theirs = Arc::clone(shared);
            let body = move || VcpuLoop::new(vcpu, &theirs).run();
            match builder.spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    shared
                        .lifecycle
                        .end(Err(VmError::host("start a vCPU thread")(source)));
                    break;
                }
            }
        }
        Self { threads, kick }
    }

    /// Gets every vCPU out of the guest and to the gate.
    pub(super) fn kick(&self) {
        for thread in &self.threads {
            // A thread that has ended needs no kick.
            let _ = thread.kill(self.kick);
        }
    }

    /// Waits for all threads. The VM must have ended, and the vCPUs been kicked.
    pub(super) fn join(self) {
        for thread in self.threads {
            // A vCPU thread that panicked has said so; the VM ends all the same.
            let _ = thread.join();
        }
    }
}

/// One vCPU thread.
struct VcpuLoop<'a> {
    vcpu: ActiveVcpu,
    shared: &'a Shared,
    owned_faults: u32,
}

/// What is left to do once the exit's own data is no longer borrowed.
enum Then {
    /// Nothing.
    GoOn,
    /// Look at an address where the guest's access failed.
    Fault(u64),
    /// An access to the region that KVM took for a device's.
    RegionAccess(u64),
    /// Do what the guest asked of the machine.
    Request(MachineRequest),
    /// The guest is at a dead end.
    TripleFault,
    /// KVM is.
    InternalError,
    /// The VM cannot go on.
    Fail(VmError),
}

impl<'a> VcpuLoop<'a> {
    fn new(vcpu: Vcpu, shared: &'a Shared) -> Self {
        Self {
            vcpu: vcpu.activate(),
            shared,
            owned_faults: 0,
        }
    }

    fn run(mut self) {
        loop {
            self.vcpu.rearm();
            if self.shared.lifecycle.gate() == Gate::Leave {
                return;
            }
            match self.enter() {
                Then::GoOn => self.owned_faults = 0,
                Then::Fault(gpa) => self.memory_fault(gpa),
                Then::RegionAccess(gpa) => self.region_access(gpa),
                Then::Request(request) => self.shared.serve(request),
                Then::TripleFault => {
                    let message = format!(
                        "triple fault of vCPU {} at rip {:#x}",
                        self.vcpu.id(),
                        self.vcpu.rip()
                    );
                    self.shared.lifecycle.end(Ok(VmExit::Panicked { message }));
                }
                Then::InternalError => {
                    let fault = self.vcpu.emulation_fault();
                    self.shared.lifecycle.end(Err(VmError::Emulation(fault)));
                }
                Then::Fail(error) => self.shared.lifecycle.end(Err(error)),
            }
        }
    }

    fn enter(&mut self) -> Then {
        let (bus, watch) = (&self.shared.bus, &self.shared.violations);
        let event = match self.vcpu.run() {
            Ok(event) => event,
            Err(error) => return Then::Fail(error.into()),
        };
        match event {
            VcpuEvent::PortRead(port, data) => bus.read_port(port, data),
            VcpuEvent::PortWrite(port, data) => {
                return bus.write_port(port, data).map_or(Then::GoOn, Then::Request);
            }
            VcpuEvent::MmioRead(gpa, data) if watch.covers(gpa) => {
                data.fill(0xFF);
                return Then::RegionAccess(gpa);
            }
            VcpuEvent::MmioWrite(gpa, _) if watch.covers(gpa) => return Then::RegionAccess(gpa),
            VcpuEvent::MmioRead(gpa, data) => bus.read_mmio(gpa, data),
            VcpuEvent::MmioWrite(gpa, data) => bus.write_mmio(gpa, data),
            VcpuEvent::MemoryFault(gpa) => return Then::Fault(gpa),
            VcpuEvent::Interrupted => {}
            VcpuEvent::Shutdown => return Then::TripleFault,
            VcpuEvent::InternalError => return Then::InternalError,
            VcpuEvent::FailedEntry(reason) => {
                let name = format!("entry into the guest failed, hardware reason {reason:#x}");
                return Then::Fail(VmError::UnexpectedExit(name));
            }
            VcpuEvent::Unexpected(name) => return Then::Fail(VmError::UnexpectedExit(name)),
        }
        Then::GoOn
    }

    fn memory_fault(&mut self, gpa: u64) {
        match self.shared.violations.meaning(gpa) {
            FaultMeaning::Violation(violation) => self.violation(violation),
            FaultMeaning::Owned if self.owned_faults < MAX_OWNED_FAULTS => self.owned_faults += 1,
            FaultMeaning::Owned => self.shared.lifecycle.end(Err(VmError::HostMemory { gpa })),
        }
    }

    /// The emulator has given up on the access, so that even a block that is plugged by now was not reached.
    fn region_access(&mut self, gpa: u64) {
        match self.shared.violations.meaning(gpa) {
            FaultMeaning::Violation(violation) => self.violation(violation),
            FaultMeaning::Owned => self.shared.lifecycle.end(Err(VmError::HostMemory { gpa })),
        }
    }

    fn violation(&mut self, violation: Violation) {
        let watch = &self.shared.violations;
        watch.record(violation, self.vcpu.rip());
        let Violation { gpa, block } = violation;
        match watch.policy() {
            OnViolation::Kill => self.shared.lifecycle.end(Ok(VmExit::Violation { gpa, block })),
            OnViolation::Pause => self.shared.lifecycle.pause(),
        }
    }
}
