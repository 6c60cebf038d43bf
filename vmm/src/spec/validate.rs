//! From options to a [`VmSpec`]: every rule about what a VM may be that can be checked without touching the machine. Each
//! option's rules are in its own file; here they come together.

use super::backing::Backing;
use super::balloon::balloon;
use super::console_port::console_ports;
use super::cpus::cpus;
use super::disk::disks;
use super::error::SpecError;
use super::hotplug::{Defaults, hotplug};
use super::hvc::{check_terminal, default_serial, hvc};
use super::memory::{boot_memory, check_pages, check_total};
use super::net::net;
use super::node::nodes;
use super::options::VmOptions;
use super::reboot::{on_reboot, reboot_limit};
use super::serial::serial;
use super::violation::on_violation;
use super::vsock::vsock;
use super::{VmName, VmSpec};

impl VmOptions {
    /// Checks the options against all rules.
    ///
    /// # Errors
    /// The first rule that is broken, with the option and the value.
    pub fn validate(&self, default_name: &VmName) -> Result<VmSpec, SpecError> {
        let name = self
            .name
            .as_deref()
            .map_or_else(|| Ok(default_name.clone()), VmName::new)?;
        let cpus = cpus(self.cpus.as_deref())?;
        let (nodes, memory) = nodes(&self.node, boot_memory(self.memory.as_deref())?, cpus)?;
        let backing = self
            .backing
            .as_deref()
            .map_or(Ok(Backing::default()), |text| Backing::parse("--backing", text))?;
        check_pages(memory, backing)?;
        let defaults = Defaults {
            block: self.block_size.as_deref(),
            backing,
            nodes: nodes.len(),
        };
        let hotplug = hotplug(&self.hotplug, defaults)?;
        check_total(memory, &hotplug)?;
        let requested = hotplug.iter().map(|hotplug| hotplug.requested_size).sum();
        let balloon = balloon(self.balloon.as_deref(), memory, requested)?;
        let net = net(&self.net, &name)?;
        let payload = self.payload()?;
        let hvc = hvc(self.hvc.as_deref(), &payload)?;
        let serial = serial(self.serial.as_deref(), default_serial(&hvc))?;
        check_terminal(&hvc, &serial)?;
        Ok(VmSpec {
            name,
            payload,
            memory,
            backing,
            hotplug,
            balloon,
            cpus,
            nodes,
            on_violation: on_violation(self.on_violation.as_deref())?,
            on_reboot: on_reboot(self.on_reboot.as_deref())?,
            reboot_limit: reboot_limit(self.reboot_limit.as_deref())?,
            serial,
            hvc,
            console_ports: console_ports(&self.console_port)?,
            net,
            vsock: vsock(self.vsock.as_deref())?,
            disks: disks(&self.disk)?,
            rng: self.rng,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::size::{GIB, MIB};
    use super::super::testing::{refusal, validate, with};
    use super::super::{DEFAULT_MEMORY, HotplugSpec, OnReboot, OnViolation, Payload, SerialMode};
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn nothing_said_is_the_built_in_guest_with_defaults() {
        let spec = validate(&VmOptions::default()).expect("defaults are valid");
        assert_eq!(spec.name.as_str(), "default");
        assert_eq!(
            spec.payload,
            Payload::BuiltIn {
                cmdline: String::new(),
                programs: Vec::new()
            }
        );
        assert_eq!(
            (spec.memory, spec.hotplug, spec.cpus.get()),
            (DEFAULT_MEMORY, Vec::new(), 1)
        );
        assert_eq!(
            (spec.on_violation, spec.on_reboot, spec.serial),
            (OnViolation::Kill, OnReboot::Reboot, SerialMode::Terminal)
        );
    }

    #[test]
    fn everything_said_arrives() {
        let options = VmOptions {
            name: Some("a-1".into()),
            kernel: Some("/boot/k".into()),
            initrd: Some("i".into()),
            cmdline: Some("quiet x=\"a b\"".into()),
            memory: Some("1G".into()),
            hotplug: vec!["4G,requested=1G,node=1".into()],
            backing: Some("memfd".into()),
            block_size: Some("4M".into()),
            balloon: Some("64M,reporting".into()),
            cpus: Some("16".into()),
            node: vec!["memory=512M".into(), "distance=15:10".into()],
            program: Vec::new(),
            on_violation: Some("pause".into()),
            on_reboot: Some("exit".into()),
            reboot_limit: Some("4".into()),
            hvc: Some("path=h".into()),
            console_port: vec!["name=a,path=p".into()],
            net: vec!["tap=tap0".into()],
            vsock: Some("cid=3,path=v".into()),
            serial: Some("file=/tmp/serial".into()),
            disk: vec!["a.img,readonly".into(), "/dev/vg/b".into()],
            rng: true,
        };
        let spec = validate(&options).expect("valid");
        assert_eq!(spec.name.as_str(), "a-1");
        let cmdline = "quiet x=\"a b\"".to_owned();
        let payload = Payload::Kernel {
            kernel: "/boot/k".into(),
            initrd: Some("i".into()),
            cmdline,
        };
        assert_eq!(spec.payload, payload);
        let hotplug = HotplugSpec {
            region_size: 4 * GIB,
            block_size: 4 * MIB,
            requested_size: GIB,
            node: 1,
            backing: Backing::Memfd,
            ..HotplugSpec::of_size(0)
        };
        assert_eq!(
            (spec.memory, spec.hotplug, spec.cpus.get()),
            (GIB, vec![hotplug], 16)
        );
        let balloon = spec.balloon.expect("a balloon was asked for");
        assert_eq!((balloon.size, balloon.reporting), (64 * MIB, true));
        let nodes: Vec<_> = spec
            .nodes
            .iter()
            .map(|node| (node.memory, node.cpus.len()))
            .collect();
        assert_eq!(nodes, [(512 * MIB, 8), (512 * MIB, 8)]);
        assert_eq!(spec.nodes[1].distances, [15, 10]);
        assert_eq!(spec.on_violation, OnViolation::Pause);
        assert_eq!(spec.on_reboot, OnReboot::Exit);
        assert_eq!(spec.serial, SerialMode::File("/tmp/serial".into()));
        let disks: Vec<_> = spec.disks.iter().map(|disk| disk.path.clone()).collect();
        assert_eq!(disks, [PathBuf::from("a.img"), PathBuf::from("/dev/vg/b")]);
        assert!(spec.rng);
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let both = |options: &mut VmOptions| {
            options.kernel = Some("k".into());
            options.program = vec!["hog".into()];
        };
        for (options, message) in [
            (
                with(both),
                "--program and --kernel: programs belong to the built-in guest",
            ),
            (
                with(|options| options.initrd = Some("i".into())),
                "--initrd without --kernel: the built-in guest has no initial RAM disk",
            ),
            (
                with(|options| options.block_size = Some("2M".into())),
                "--block-size without --hotplug: blocks belong to a hot-plug region",
            ),
        ] {
            assert_eq!(refusal(&options), message);
        }
    }

    #[test]
    fn a_bad_name_is_refused_with_the_option() {
        let options = with(|options| options.name = Some("../x".into()));
        assert!(refusal(&options).starts_with("--name: name \"../x\" has the character '.'"));
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let line = VmOptions {
            memory: Some("1G".into()),
            program: vec!["b".into()],
            ..VmOptions::default()
        };
        let file = VmOptions {
            memory: Some("2G".into()),
            cpus: Some("2".into()),
            program: vec!["a".into(), "c".into()],
            ..VmOptions::default()
        };
        let both = line.or(file);
        assert_eq!(
            (both.memory.as_deref(), both.cpus.as_deref()),
            (Some("1G"), Some("2"))
        );
        assert_eq!(both.program, ["b"]);
    }
}
