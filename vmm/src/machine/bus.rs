//! Which device answers at a port or an address. Everything else reads as all ones and ignores writes, as on a bus
//! without a device there.
//!
//! Ports here are byte-wide registers: a wider or repeated access is that many accesses to the same port.

use std::fmt;
use std::sync::Arc;

use devices::power::{self, PowerRequest, ResetControl};
use devices::pvpanic::{self, PanicEvent};
use std::sync::{Mutex, PoisonError};
use vm_superio::{I8042Device, Trigger};

use super::layout::{
    COM1_PORT, COM1_PORTS, I8042_COMMAND, I8042_DATA, PVPANIC_PORT, RESET_PORT, SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE,
};
use super::serial::SerialPort;

/// A device with a window of registers in the guest's address space. Offsets are below the size of the window.
pub(super) trait MmioWindow: fmt::Debug + Send + Sync {
    /// The guest reads; all of `data` is filled.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// What a port access asks of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MachineRequest {
    /// Soft off.
    PowerOff,
    /// Reset.
    Reset(ResetCause),
    /// The guest has panicked.
    Panicked,
}

/// By what a guest resets its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResetCause {
    /// The keyboard controller's reset line.
    Keyboard,
    /// Port 0xCF9, which is also ACPI's reset register.
    ResetRegister,
    /// A dead end of a CPU.
    TripleFault,
}

impl ResetCause {
    /// In one word, for reports.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Keyboard => "i8042",
            Self::ResetRegister => "reset-register",
            Self::TripleFault => "triple-fault",
        }
    }
}

impl From<PowerRequest> for MachineRequest {
    fn from(request: PowerRequest) -> Self {
        match request {
            PowerRequest::PowerOff => Self::PowerOff,
            PowerRequest::Reset => Self::Reset(ResetCause::ResetRegister),
        }
    }
}

/// All devices. Used by all vCPUs at once; each device has its own lock.
#[derive(Debug)]
pub(super) struct Bus {
    /// Device i answers in window i of the layout.
    virtio: Vec<Arc<dyn MmioWindow>>,
    com1: Arc<SerialPort>,
    keyboard: Mutex<I8042Device<ResetLine>>,
    reset: Mutex<ResetControl>,
}

impl Bus {
    /// A bus with these devices.
    pub(super) fn new(virtio: Vec<Arc<dyn MmioWindow>>, com1: Arc<SerialPort>) -> Self {
        Self {
            virtio,
            com1,
            keyboard: Mutex::new(I8042Device::new(ResetLine)),
            reset: Mutex::new(ResetControl::default()),
        }
    }

    /// The serial port.
    pub(super) fn com1(&self) -> &Arc<SerialPort> {
        &self.com1
    }

    /// Back to what the ports are at power-on. No vCPU may run meanwhile.
    pub(super) fn reset(&self) {
        self.com1.reset();
        *self.keyboard.lock().unwrap_or_else(PoisonError::into_inner) = I8042Device::new(ResetLine);
        *self.reset.lock().unwrap_or_else(PoisonError::into_inner) = ResetControl::default();
    }

    /// The guest reads at an address without memory.
    pub(super) fn read_mmio(&self, gpa: u64, data: &mut [u8]) {
        match self.window(gpa) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xFF),
        }
    }

    /// The guest writes at an address without memory.
    pub(super) fn write_mmio(&self, gpa: u64, data: &[u8]) {
        if let Some((device, offset)) = self.window(gpa) {
            device.write(offset, data);
        }
    }

    /// The guest reads from a port.
    pub(super) fn read_port(&self, port: u16, data: &mut [u8]) {
        for byte in data {
            *byte = match port {
                COM1_PORT..COM1_END => self.com1.read(offset_in_com1(port)),
                I8042_DATA | I8042_COMMAND => self
                    .keyboard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(offset_in_i8042(port)),
                PVPANIC_PORT => pvpanic::read(),
                SLEEP_CONTROL_PORT => power::read_sleep_control(),
                SLEEP_STATUS_PORT => power::read_sleep_status(),
                RESET_PORT => self.reset.lock().unwrap_or_else(PoisonError::into_inner).read(),
                _ => 0xFF,
            };
        }
    }

    /// The guest writes to a port. Of several requests in one access the last counts.
    pub(super) fn write_port(&self, port: u16, data: &[u8]) -> Option<MachineRequest> {
        let mut request = None;
        for &byte in data {
            let asked = match port {
                COM1_PORT..COM1_END => {
                    self.com1.write(offset_in_com1(port), byte);
                    None
                }
                I8042_DATA | I8042_COMMAND => {
                    let mut keyboard = self.keyboard.lock().unwrap_or_else(PoisonError::into_inner);
                    keyboard.write(offset_in_i8042(port), byte).err()
                }
                PVPANIC_PORT => match pvpanic::write(byte) {
                    Some(PanicEvent::Panicked) => Some(MachineRequest::Panicked),
                    // The guest deals with it itself.
                    Some(PanicEvent::CrashLoaded) | None => None,
                },
                SLEEP_CONTROL_PORT => power::write_sleep_control(byte).map(MachineRequest::from),
                RESET_PORT => {
                    let mut control = self.reset.lock().unwrap_or_else(PoisonError::into_inner);
                    control.write(byte).map(MachineRequest::from)
                }
                _ => None,
            };
            request = asked.or(request);
        }
        request
    }

    fn window(&self, gpa: u64) -> Option<(&dyn MmioWindow, u64)> {
        let offset = gpa.checked_sub(VIRTIO_MMIO_BASE)?;
        let index = usize::try_from(offset / VIRTIO_MMIO_SIZE).ok()?;
        Some((self.virtio.get(index)?.as_ref(), offset % VIRTIO_MMIO_SIZE))
    }
}

const COM1_END: u16 = COM1_PORT + COM1_PORTS;

fn offset_in_com1(port: u16) -> u8 {
    u8::try_from(port - COM1_PORT).expect("called for the 8 ports of COM1")
}

fn offset_in_i8042(port: u16) -> u8 {
    u8::try_from(port - I8042_DATA).expect("called for the two ports of the keyboard controller")
}

/// The keyboard controller's reset line, which makes the write that pulls it "fail" with the request.
#[derive(Debug)]
struct ResetLine;

impl Trigger for ResetLine {
    type E = MachineRequest;

    fn trigger(&self) -> Result<(), MachineRequest> {
        Err(MachineRequest::Reset(ResetCause::Keyboard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::{Output, Sink};

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl MmioWindow for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0xFF).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn bus() -> (Bus, Arc<Recorder>) {
        let device = Arc::new(Recorder::default());
        let output = Output::start(Sink::Nothing).unwrap();
        let com1 = Arc::new(SerialPort::new(output.writer()).unwrap());
        (
            Bus::new(
                vec![
                    Arc::new(Recorder::default()),
                    Arc::clone(&device) as Arc<dyn MmioWindow>,
                ],
                com1,
            ),
            device,
        )
    }

    #[test]
    fn a_window_gets_what_is_in_it_and_nothing_else() {
        let (bus, second) = bus();
        bus.write_mmio(0xD000_1050, &[1, 0, 0, 0]);
        assert_eq!(*second.0.lock().unwrap(), [(0x50, vec![1, 0, 0, 0])]);
        let mut word = [0; 4];
        bus.read_mmio(0xD000_1070, &mut word);
        assert_eq!(word, [0x70; 4]);
        for nobody in [0xCFFF_FFFF, 0xD000_2000, 0, u64::MAX] {
            bus.read_mmio(nobody, &mut word);
            assert_eq!(word, [0xFF; 4]);
            bus.write_mmio(nobody, &word);
        }
        assert_eq!(second.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn every_way_to_turn_the_machine_off_or_over_is_heard() {
        let (bus, _) = bus();
        let reset = |cause| Some(MachineRequest::Reset(cause));
        assert_eq!(bus.write_port(0x600, &[0x34]), Some(MachineRequest::PowerOff));
        assert_eq!(bus.write_port(0x600, &[0x14]), None);
        assert_eq!(bus.write_port(0xCF9, &[0x06]), reset(ResetCause::ResetRegister));
        assert_eq!(bus.write_port(0x64, &[0xFE]), reset(ResetCause::Keyboard));
        assert_eq!(bus.write_port(0x64, &[0xFF]), None);
        assert_eq!(bus.write_port(0x60, &[0xFE]), None);
        assert_eq!(bus.write_port(0x505, &[1]), Some(MachineRequest::Panicked));
        assert_eq!(bus.write_port(0x505, &[2]), None);
    }

    #[test]
    fn ports_without_a_device_read_as_ones() {
        let (bus, _) = bus();
        let mut bytes = [0; 4];
        bus.read_port(0xCFC, &mut bytes);
        assert_eq!(bytes, [0xFF; 4]);
        bus.read_port(0x505, &mut bytes[..1]);
        assert_eq!(bytes[0], 3);
    }

    #[test]
    fn a_reset_forgets_what_was_written_to_ports() {
        let (bus, _) = bus();
        // The first write chooses the kind of reset, the second one would be the edge.
        assert_eq!(bus.write_port(0xCF9, &[0x02]), None);
        // Interrupts of the transmitter.
        assert_eq!(bus.write_port(0x3F9, &[0x02]), None);
        bus.reset();
        let mut byte = [0xFF];
        for port in [0xCF9, 0x3F9] {
            bus.read_port(port, &mut byte);
            assert_eq!(byte, [0], "port {port:#x}");
        }
    }
}
