//! The memory device, "virtio-mem" (virtio 1.3, section 5.15).
//!
//! The device keeps a map of its blocks, answers the driver's requests, and has a [`BlockBackend`] do what an ACK promises.
//! The host says how much it wants plugged with [`MmioTransport::set_requested_size`]; how far the guest has come is in
//! [`MemDevice::plugged_size`], worth a look after every [`Effects::config_changed`].
//!
//! A reset of the device by the driver changes no block (section 5.15.5.2): what was plugged stays plugged.

mod backend;
mod block;
mod check;
mod region;
#[cfg(test)]
mod tests;

use virtio_wire::device_id;
use virtio_wire::mem::{Config, Request, RequestType, Response, ResponseType, feature};
use vm_memory::GuestMemory;

pub use backend::{BackendError, BlockBackend};
pub use block::{BlockIndex, BlockMap, BlockRun};
pub use check::RequestError;
pub use region::{RegionError, RegionSpec, ResizeError, UnpluggedMemory};

use crate::device::{Served, VirtioDevice, read_config_bytes};
use crate::fault::{DeviceError, GuestFault};
use crate::mmio::{Effects, MmioTransport};
use crate::queue::Buffers;
use check::{Action, Limits};
use region::Region;

/// One queue; a driver has one request under way, or a few.
const QUEUE_SIZES: [u16; 1] = [128];

/// A memory device.
#[derive(Debug)]
pub struct MemDevice<B> {
    backend: B,
    region: Region,
    node_id: Option<u16>,
    unplugged: UnpluggedMemory,
    blocks: BlockMap,
    requested_size: u64,
    /// Plugged blocks are inside it. Shrinks only on UNPLUG ALL and when the machine is reset.
    usable_size: u64,
    counters: Counters,
    last_refusal: Option<RequestError>,
}

/// What the device was asked and what it answered, since it exists. Malformed chains that could not even be answered
/// are not here but in [`MmioTransport::guest_faults`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// PLUG requests.
    pub plug_requests: u64,
    /// UNPLUG requests.
    pub unplug_requests: u64,
    /// UNPLUG ALL requests.
    pub unplug_all_requests: u64,
    /// STATE requests.
    pub state_requests: u64,
    /// Requests of a type that does not exist.
    pub unknown_requests: u64,
    /// ACK responses.
    pub acks: u64,
    /// NACK responses: the guest wanted more than is requested.
    pub nacks: u64,
    /// BUSY responses: the host could not do it then.
    pub busies: u64,
    /// ERROR responses: the request was wrong.
    pub errors: u64,
}

impl<B: BlockBackend> MemDevice<B> {
    /// A device all of whose blocks are unplugged.
    ///
    /// # Errors
    /// The numbers of the region do not fit together.
    pub fn new(spec: &RegionSpec, backend: B) -> Result<MemDevice<B>, RegionError> {
        let region = Region::new(spec)?;
        Ok(MemDevice {
            backend,
            region,
            node_id: spec.node_id,
            unplugged: spec.unplugged,
            blocks: BlockMap::new(region.nr_blocks()),
            requested_size: spec.requested_size,
            usable_size: region.usable_size_for(spec.requested_size),
            counters: Counters::default(),
            last_refusal: None,
        })
    }

    /// The configuration space as the driver sees it now.
    pub fn config(&self) -> Config {
        Config {
            block_size: self.region.block_size,
            node_id: self.node_id.unwrap_or(0),
            addr: self.region.addr,
            region_size: self.region.size,
            usable_region_size: self.usable_size,
            plugged_size: self.plugged_size(),
            requested_size: self.requested_size,
        }
    }

    /// Bytes that are plugged.
    pub fn plugged_size(&self) -> u64 {
        self.blocks.nr_plugged() * self.region.block_size
    }

    /// Bytes that the host wants plugged.
    pub fn requested_size(&self) -> u64 {
        self.requested_size
    }

    /// Which blocks are plugged.
    pub fn blocks(&self) -> &BlockMap {
        &self.blocks
    }

    /// What was asked and answered.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Why the last request that was answered with ERROR or NACK was.
    pub fn last_refusal(&self) -> Option<RequestError> {
        self.last_refusal
    }

    /// What stands behind the blocks.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    fn request_size(&mut self, requested_size: u64) -> Result<(), ResizeError> {
        self.region.check_requested(requested_size)?;
        self.requested_size = requested_size;
        self.usable_size = self.usable_size.max(self.region.usable_size_for(requested_size));
        Ok(())
    }

    /// Reads the request of a chain that has room for the response.
    fn read_request<M: GuestMemory>(
        chain: &Buffers<'_, M>,
    ) -> Result<Result<Request, RequestError>, GuestFault> {
        let mut bytes = [0; Request::SIZE];
        chain.read(0, &mut bytes)?;
        Ok(Request::decode(&bytes).map_err(RequestError::from))
    }

    /// Answers a request.
    fn answer(&mut self, request: Result<Request, RequestError>) -> Result<Response, DeviceError> {
        self.count_request(&request);
        let limits = Limits {
            region: &self.region,
            blocks: &self.blocks,
            usable_size: self.usable_size,
            requested_size: self.requested_size,
        };
        let response = match request.and_then(|request| limits.check(request)) {
            Ok(action) => self.perform(action)?,
            Err(error) => {
                self.last_refusal = Some(error);
                Response::new(error.response_type())
            }
        };
        self.count_response(response.response_type());
        Ok(response)
    }

    fn perform(&mut self, action: Action) -> Result<Response, DeviceError> {
        Ok(Response::new(match action {
            Action::Report(state) => return Ok(Response::with_state(state)),
            Action::Plug(run) => self.plug(run)?,
            Action::Unplug(run) => self.unplug(run)?,
            Action::UnplugAll => self.unplug_all()?,
        }))
    }

    fn plug(&mut self, run: BlockRun) -> Result<ResponseType, DeviceError> {
        match self.backend.plug(run) {
            Ok(()) => {
                self.blocks.plug(run);
                Ok(ResponseType::Ack)
            }
            Err(BackendError::Busy) => Ok(ResponseType::Busy),
            Err(BackendError::Fault(source)) => Err(host_fault("plug", run, source)),
        }
    }

    fn unplug(&mut self, run: BlockRun) -> Result<ResponseType, DeviceError> {
        match self.backend.unplug(run) {
            Ok(()) => {
                self.blocks.unplug(run);
                Ok(ResponseType::Ack)
            }
            Err(BackendError::Busy) => Ok(ResponseType::Busy),
            Err(BackendError::Fault(source)) => Err(host_fault("unplug", run, source)),
        }
    }

    /// Unplugs run by run. On BUSY the runs before stay unplugged: the driver repeats the request until it is done.
    fn unplug_all(&mut self) -> Result<ResponseType, DeviceError> {
        loop {
            let Some(run) = self.blocks.plugged_runs().next() else {
                break;
            };
            let response = self.unplug(run)?;
            if response != ResponseType::Ack {
                return Ok(response);
            }
        }
        self.usable_size = self.region.usable_size_for(self.requested_size);
        Ok(ResponseType::Ack)
    }

    fn count_request(&mut self, request: &Result<Request, RequestError>) {
        let counters = &mut self.counters;
        *match request.as_ref().map(Request::request_type) {
            Ok(RequestType::Plug) => &mut counters.plug_requests,
            Ok(RequestType::Unplug) => &mut counters.unplug_requests,
            Ok(RequestType::UnplugAll) => &mut counters.unplug_all_requests,
            Ok(RequestType::State) => &mut counters.state_requests,
            Err(_) => &mut counters.unknown_requests,
        } += 1;
    }

    fn count_response(&mut self, response_type: ResponseType) {
        let counters = &mut self.counters;
        *match response_type {
            ResponseType::Ack => &mut counters.acks,
            ResponseType::Nack => &mut counters.nacks,
            ResponseType::Busy => &mut counters.busies,
            ResponseType::Error => &mut counters.errors,
        } += 1;
    }
}

impl<B: BlockBackend> VirtioDevice for MemDevice<B> {
    fn device_id(&self) -> u32 {
        device_id::MEM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let acpi_pxm = if self.node_id.is_some() {
            feature::ACPI_PXM
        } else {
            0
        };
        // Nothing but requests and a reset of the machine changes a block: a guest may sleep with memory plugged.
        feature::UNPLUGGED_INACCESSIBLE | feature::PERSISTENT_SUSPEND | acpi_pxm
    }

    /// Where unplugged memory is protected, a driver that might read it cannot be served (section 5.15.5.2).
    fn required_features(&self) -> u64 {
        match self.unplugged {
            UnpluggedMemory::Inaccessible => feature::UNPLUGGED_INACCESSIBLE,
            UnpluggedMemory::Readable => 0,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config().encode(), offset, data);
    }

    /// The whole configuration is read-only (section 5.15.4.1).
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn serve<M: GuestMemory>(&mut self, queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError> {
        debug_assert_eq!(queue, virtio_wire::mem::QUEUE_REQUEST);
        // Before anything is done: an action whose result cannot be told must not happen.
        if let Err(fault) = chain.check_writable(Response::SIZE) {
            return Ok(Served::refused(fault));
        }
        let before = self.config();
        let (response, fault) = match Self::read_request(chain) {
            Ok(request) => (self.answer(request)?, None),
            Err(fault) => {
                self.count_response(ResponseType::Error);
                (Response::new(ResponseType::Error), Some(fault))
            }
        };
        let config_changed = self.config() != before;
        // This may fail even now: an UNPLUG can take away the memory that its response should go to.
        Ok(match chain.write(0, &response.encode()) {
            Ok(()) => Served {
                fault,
                config_changed,
                ..Served::used(RESPONSE_LEN)
            },
            Err(fault) => Served {
                config_changed,
                ..Served::refused(fault)
            },
        })
    }

    /// Keeps every block and both sizes (section 5.15.5.2).
    fn reset(&mut self) {}
}

impl<B: BlockBackend> MmioTransport<MemDevice<B>> {
    /// Asks the guest to plug or unplug until this many bytes are plugged, and notifies its driver, even when the size is
    /// the one already requested: a driver that had given up tries again.
    ///
    /// # Errors
    /// The size is not a multiple of the block size, or larger than the region. Nothing changes then.
    pub fn set_requested_size(&mut self, requested_size: u64) -> Result<Effects, ResizeError> {
        let mut outcome = Ok(());
        let effects = self.configure(|device| {
            outcome = device.request_size(requested_size);
            outcome.is_ok()
        });
        outcome.map(|()| effects)
    }

    /// Resets the machine around the device: the driver is gone and every block is unplugged, as section 5.15.6.2 wants it;
    /// what is requested stays, so that the next guest is asked for as much. Returns the bytes that are still plugged because
    /// the backend was busy with them: the next driver finds and unplugs them (section 5.15.5).
    ///
    /// # Errors
    /// The host could not take a block away. The machine should end.
    pub fn reset_machine(&mut self) -> Result<u64, DeviceError> {
        let _ = self.reset();
        self.device_mut().unplug_all()?;
        Ok(self.device().plugged_size())
    }
}

/// Length of a response as the used ring counts it.
const RESPONSE_LEN: u32 = 10;
const _: () = assert!(RESPONSE_LEN as usize == Response::SIZE);

fn host_fault(action: &'static str, run: BlockRun, source: std::io::Error) -> DeviceError {
    DeviceError::Blocks {
        action,
        first: run.first.0,
        count: run.count.get(),
        source,
    }
}
