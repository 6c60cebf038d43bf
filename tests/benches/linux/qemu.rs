//! QEMU with the guest: an ordinary PC with a virtio-mem and a virtio-balloon device on PCI.

use std::error::Error;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::Home;
use integration_tests::debian::Release;
use integration_tests::linux::LinuxImage;
use integration_tests::qmp::Qmp;
use integration_tests::transcript::Transcript;
use serde_json::json;

use crate::contest::{BLOCKS_MIB, BOOT_MIB, CMDLINE, Contestant, MIB};

/// Between two looks at a size: QEMU tells of a change at most once a second.
const LOOK: Duration = Duration::from_millis(5);
/// How long a resize may take.
const PATIENCE: Duration = Duration::from_secs(200);

/// A VM with a guest at its shell. Ends with the value.
pub(crate) struct Qemu {
    child: Child,
    input: ChildStdin,
    serial: Transcript,
    position: usize,
    qmp: Qmp,
}

impl Qemu {
    /// Boots it.
    ///
    /// # Errors
    /// QEMU does not start. The harness panics when the guest does not get there.
    pub(crate) fn boot(home: &Home) -> Result<Qemu, Box<dyn Error>> {
        let image = LinuxImage::prepare(Release::V6_12, &home.files());
        let socket = home.files().join("qmp");
        let mut command = Command::new("/usr/bin/qemu-system-x86_64");
        home.settle(&mut command);
        command.args(["-accel", "kvm", "-cpu", "host", "-M", "q35,smm=off", "-smp", "1"]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-vga",
            "none",
        ]);
        command.args(["-m", &format!("{BOOT_MIB}M,slots=1,maxmem=4G")]);
        command.args([
            "-object",
            &format!("memory-backend-ram,id=blocks,size={BLOCKS_MIB}M"),
        ]);
        command.args([
            "-device",
            "virtio-mem-pci,id=mem,memdev=blocks,block-size=2M,requested-size=0",
        ]);
        command.args(["-device", "virtio-balloon-pci,id=balloon"]);
        command.args(["-serial", "stdio", "-append", CMDLINE]);
        command.arg("-kernel").arg(&image.kernel);
        command.arg("-initrd").arg(&image.initrd);
        let server = format!("unix:{},server=on,wait=off", socket.display());
        command.args(["-qmp", &server]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let input = child.stdin.take().ok_or("a pipe was asked for")?;
        let serial = Transcript::of(child.stdout.take().ok_or("a pipe was asked for")?);
        let qmp = Qmp::connect(&socket)?;
        let (_, position) = serial.wait_for_after(0, "guest: ready");
        Ok(Qemu {
            child,
            input,
            serial,
            position,
            qmp,
        })
    }

    fn wait_for(
        &mut self,
        wanted: u64,
        size: impl Fn(&mut Qmp) -> Result<Option<u64>, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let begun = Instant::now();
        loop {
            let size = size(&mut self.qmp)?;
            if size == Some(wanted) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("qemu has got to {size:?} of {wanted} bytes").into());
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Contestant for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn shell(&mut self, line: &str) -> Result<String, Box<dyn Error>> {
        writeln!(self.input, "{line}")?;
        let (_, begin) = self.serial.wait_for_after(self.position, "guest: begin\r\n");
        let (answer, end) = self.serial.wait_for_after(begin, "guest: end ");
        let (status, position) = self.serial.wait_for_after(end, "\n");
        self.position = position;
        match status.trim() {
            "0" => Ok(answer),
            status => Err(format!("the guest's `{line}` failed with {status}: {answer}").into()),
        }
    }

    fn plug_to(&mut self, bytes: u64) -> Result<(), Box<dyn Error>> {
        let property = |name: &str| json!({"path": "/machine/peripheral/mem", "property": name});
        let mut order = property("requested-size");
        order["value"] = json!(bytes);
        self.qmp.order("qom-set", &order)?;
        self.wait_for(bytes, |qmp| Ok(qmp.order("qom-get", &property("size"))?.as_u64()))
    }

    fn inflate_to(&mut self, bytes: u64) -> Result<(), Box<dyn Error>> {
        let left = BOOT_MIB * MIB - bytes;
        self.qmp.order("balloon", &json!({"value": left}))?;
        self.wait_for(left, |qmp| {
            Ok(qmp.order("query-balloon", &json!({}))?["actual"].as_u64())
        })
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
