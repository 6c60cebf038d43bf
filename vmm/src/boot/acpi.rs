//! The ACPI tables: a hardware-reduced platform (ACPI 6.5, section 4.1) with its CPUs, its interrupt controllers and
//! the few devices that are not found otherwise.
//!
//! RSDP, XSDT, FADT, MADT, DSDT, and for a machine with nodes SRAT and SLIT ([`Affinity`]), one behind the other from
//! the start of [`ACPI_TABLES`] on.

mod affinity;

pub use affinity::Affinity;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use devices::power::{RESET_VALUE, SLP_TYP_S5};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, BootRam};
use crate::machine::layout::{
    ACPI_TABLES, COM1_GSI, COM1_PORT, COM1_PORTS, IOAPIC, LOCAL_APIC, PVPANIC_PORT, RESET_PORT,
    SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, virtio_gsi, virtio_mmio,
};

const OEM_ID: [u8; 6] = *b"BLLAST";
const OEM_TABLE_ID: [u8; 8] = *b"BALLAST ";
const OEM_REVISION: u32 = 1;
const DSDT_HEADER: u32 = 36;
/// FADT, IAPC_BOOT_ARCH (section 5.2.9.3): no VGA, no CMOS clock.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// Every table starts at a multiple of this.
const ALIGNMENT: u64 = 64;

/// What the tables describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Platform<'a> {
    /// CPUs, whose APIC ids are 0, 1, 2, …
    pub cpus: u8,
    /// virtio-mmio devices, the first ones of the layout.
    pub virtio_devices: u32,
    /// The nodes, if the guest is to know of any.
    pub affinity: Option<Affinity<'a>>,
}

impl Platform<'_> {
    /// Writes the tables and returns the address of the RSDP.
    ///
    /// # Errors
    /// They do not fit, or guest memory does not reach them.
    pub fn write_tables(self, ram: &BootRam) -> Result<u64, BootError> {
        let tables = self.tables();
        let room = usize::try_from(ACPI_TABLES.end - ACPI_TABLES.start).expect("less than 1 MiB");
        if tables.len() > room {
            return Err(BootError::Tables {
                size: tables.len(),
                room,
            });
        }
        ram.write_slice(&tables, GuestAddress(ACPI_TABLES.start))?;
        Ok(ACPI_TABLES.start)
    }

    /// All tables, as they lie in memory from the start of [`ACPI_TABLES`] on.
    fn tables(self) -> Vec<u8> {
        let mut area = Area {
            bytes: vec![0; Rsdp::len()],
        };
        let dsdt = area.append(&self.dsdt());
        let fadt = area.append(&bytes_of(&fadt(dsdt)));
        let madt = area.append(&bytes_of(&self.madt()));
        let affinity = self.affinity.map(|affinity| [affinity.srat(), affinity.slit()]);
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        xsdt.add_entry(fadt);
        xsdt.add_entry(madt);
        for table in affinity.into_iter().flatten() {
            xsdt.add_entry(area.append(&table));
        }
        let xsdt = area.append(&bytes_of(&xsdt));
        let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
        area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
        area.bytes
    }

    fn madt(self) -> MADT {
        let mut madt = MADT::new(
            OEM_ID,
            OEM_TABLE_ID,
            OEM_REVISION,
            LocalInterruptController::Address(LOCAL_APIC),
        );
        for id in 0..self.cpus {
            madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
        }
        madt.add_structure(IoApic::new(0, IOAPIC, 0));
        madt
    }

    fn dsdt(self) -> Vec<u8> {
        let mut devices = com1();
        devices.extend(pvpanic());
        for index in 0..self.virtio_devices {
            devices.extend(virtio_device(index));
        }
        let mut body = aml::Scope::raw("\\_SB_".into(), devices);
        let s5 = aml::Package::new(vec![&SLP_TYP_S5, &0u8, &0u8, &0u8]);
        body.extend(bytes_of(&aml::Name::new("\\_S5_".into(), &s5)));
        let mut dsdt = Sdt::new(*b"DSDT", DSDT_HEADER, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        dsdt.append_slice(&body);
        dsdt.as_slice().to_vec()
    }
}

/// Tables one behind the other.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and returns its guest-physical address.
    fn append(&mut self, table: &[u8]) -> u64 {
        let offset = (self.bytes.len() as u64).next_multiple_of(ALIGNMENT);
        let padding = offset - self.bytes.len() as u64;
        self.bytes.extend((0..padding).map(|_| 0));
        self.bytes.extend_from_slice(table);
        ACPI_TABLES.start + offset
    }
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |address: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            address.into(),
        )
    };
    let mut builder = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // On a hardware-reduced platform: "there is no fixed button".
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    builder.iapc_boot_arch = BOOT_ARCH.into();
    builder.reset_reg = port(RESET_PORT);
    builder.reset_value = RESET_VALUE;
    builder.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    builder.sleep_status_reg = port(SLEEP_STATUS_PORT);
    builder.finalize()
}

fn com1() -> Vec<u8> {
    let length = u8::try_from(COM1_PORTS).expect("8");
    let ports = aml::IO::new(COM1_PORT, COM1_PORT, 1, length);
    let line = edge_line(COM1_GSI);
    device("COM1", &aml::EISAName::new("PNP0501"), 1, vec![&ports, &line])
}

fn pvpanic() -> Vec<u8> {
    device(
        "PEVT",
        &"QEMU0001",
        0,
        vec![&aml::IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)],
    )
}

fn virtio_device(index: u32) -> Vec<u8> {
    let window = virtio_mmio(index);
    let address = |gpa: u64| u32::try_from(gpa).expect("the devices are below 4 GiB");
    let registers = aml::Memory32Fixed::new(true, address(window.start), address(window.end - window.start));
    let line = edge_line(virtio_gsi(index));
    device(
        &format!("VR{index:02}"),
        &"LNRO0005",
        index,
        vec![&registers, &line],
    )
}

fn edge_line(gsi: u32) -> aml::Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    aml::Interrupt::new(consumer, edge_triggered, active_low, shared, gsi)
}

/// A device with a hardware id, a unique id, and resources.
fn device(name: &str, hid: &dyn Aml, uid: u32, resources: Vec<&dyn Aml>) -> Vec<u8> {
    let hid = aml::Name::new("_HID".into(), hid);
    let uid = aml::Name::new("_UID".into(), &uid);
    // Present, enabled, shown, working.
    let sta = aml::Name::new("_STA".into(), &0xFu8);
    let cca = aml::Name::new("_CCA".into(), &aml::ONE);
    let crs = aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(resources));
    bytes_of(&aml::Device::new(name.into(), vec![&hid, &uid, &sta, &cca, &crs]))
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
