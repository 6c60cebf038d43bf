//! From options to a [`VmSpec`]: every rule about what a VM may be that can be checked without touching the machine.

use std::num::NonZeroU8;
use std::path::PathBuf;

use super::error::SizeRule::{self, AtLeast, MultipleOf, PowerOfTwo};
use super::error::SpecError;
use super::node::{node_number, nodes};
use super::options::VmOptions;
use super::size::{ByteSize, GIB, MIB, parse_size};
use crate::machine::layout::CMDLINE_MAX;

use super::{HotplugSpec, OnViolation, Payload, SerialMode, VmName, VmSpec};

/// Boot memory comes in whole huge pages.
pub const MEMORY_UNIT: u64 = 2 * MIB;
/// The least that the built-in guest and a small Linux boot with.
pub const MIN_MEMORY: u64 = 32 * MIB;
/// Boot memory when nothing is said.
pub const DEFAULT_MEMORY: u64 = 512 * MIB;
/// The smallest block, and the one that is used when nothing is said: a huge page, the unit in which the host discards.
pub const MIN_BLOCK_SIZE: u64 = 2 * MIB;
/// The most that boot memory and hot-plug region may have together: a memory slot of KVM has fewer than 2^31 pages
/// (`KVM_MEM_MAX_NR_PAGES`), that is, less than 8 TiB, and the region is one slot, as boot memory above 4 GiB is.
pub const MAX_TOTAL_MEMORY: u64 = 4 * 1024 * GIB;
/// The most virtual CPUs.
pub const MAX_CPUS: u8 = 16;
/// The longest command line, in bytes, without the zero that ends it in memory.
pub const MAX_CMDLINE_LENGTH: usize = CMDLINE_MAX - 1;

// Messages name these.
const _: () = assert!(MAX_CMDLINE_LENGTH == 2047);

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
        let hotplug = hotplug(self.hotplug.as_deref(), self.block_size.as_deref(), nodes.len())?;
        let region = hotplug.map_or(0, |hotplug| hotplug.region_size);
        if memory
            .checked_add(region)
            .is_none_or(|total| total > MAX_TOTAL_MEMORY)
        {
            return Err(SpecError::AddressSpace {
                memory: ByteSize(memory),
                region: ByteSize(region),
                limit: ByteSize(MAX_TOTAL_MEMORY),
            });
        }
        Ok(VmSpec {
            name,
            payload: self.payload()?,
            memory,
            hotplug,
            cpus,
            nodes,
            on_violation: on_violation(self.on_violation.as_deref())?,
            serial: serial(self.serial.as_deref())?,
        })
    }

    /// What boots, from `kernel`, `initrd`, `cmdline` and `program`.
    fn payload(&self) -> Result<Payload, SpecError> {
        let cmdline = self.cmdline.clone().unwrap_or_default();
        command_line(&cmdline)?;
        let Some(kernel) = self.kernel.clone() else {
            if self.initrd.is_some() {
                let rule = "the built-in guest has no initial RAM disk";
                return Err(SpecError::Missing {
                    option: "--initrd",
                    missing: "--kernel",
                    rule,
                });
            }
            self.program
                .iter()
                .try_for_each(|program| check_program(program))?;
            return Ok(Payload::BuiltIn {
                cmdline,
                programs: self.program.clone(),
            });
        };
        if !self.program.is_empty() {
            let rule = "programs belong to the built-in guest";
            return Err(SpecError::Conflict {
                option: "--program",
                other: "--kernel",
                rule,
            });
        }
        path("--kernel", &kernel)?;
        self.initrd
            .as_ref()
            .map_or(Ok(()), |initrd| path("--initrd", initrd))?;
        Ok(Payload::Kernel {
            kernel,
            initrd: self.initrd.clone(),
            cmdline,
        })
    }
}

/// A size, with the option in front of what is wrong with it.
fn size(option: &'static str, text: &str) -> Result<u64, SpecError> {
    parse_size(text).map_err(|source| SpecError::Size { option, source })
}

/// Refuses a size that breaks one of the rules.
fn check(option: &'static str, bytes: u64, rules: &[SizeRule]) -> Result<(), SpecError> {
    let broken = rules.iter().find(|rule| !rule.allows(bytes));
    broken.map_or(Ok(()), |&rule| {
        let bytes = ByteSize(bytes);
        Err(SpecError::Amount { option, bytes, rule })
    })
}

/// Boot memory in bytes, if anything is said.
fn boot_memory(text: Option<&str>) -> Result<Option<u64>, SpecError> {
    let Some(text) = text else { return Ok(None) };
    let bytes = size("--memory", text)?;
    check("--memory", bytes, &[AtLeast(MIN_MEMORY), MultipleOf(MEMORY_UNIT)])?;
    Ok(Some(bytes))
}

/// What `--hotplug` says, in its parts.
struct Region<'a> {
    size: &'a str,
    requested: Option<&'a str>,
    node: Option<&'a str>,
}

impl<'a> Region<'a> {
    /// Reads `SIZE[,requested=SIZE][,node=NUMBER]`.
    fn parse(text: &'a str) -> Result<Self, SpecError> {
        let mut parts = text.split(',');
        let mut region = Self {
            size: parts.next().unwrap_or_default(),
            requested: None,
            node: None,
        };
        for part in parts {
            let is_new = match part.split_once('=') {
                Some(("requested", size)) => region.requested.replace(size).is_none(),
                Some(("node", node)) => region.node.replace(node).is_none(),
                _ => false,
            };
            if !is_new {
                return Err(SpecError::Choice {
                    option: "--hotplug",
                    value: text.to_owned(),
                    allowed: "SIZE and SIZE[,requested=SIZE][,node=NUMBER]",
                });
            }
        }
        Ok(region)
    }
}

/// The hot-plug region, the block size, and the node among `nodes` of them (0 where there are none).
fn hotplug(
    region: Option<&str>,
    block: Option<&str>,
    nodes: usize,
) -> Result<Option<HotplugSpec>, SpecError> {
    let block_size = block.map_or(Ok(MIN_BLOCK_SIZE), |text| size("--block-size", text))?;
    check("--block-size", block_size, &[AtLeast(MIN_BLOCK_SIZE), PowerOfTwo])?;
    let Some(text) = region else {
        if block.is_some() {
            let rule = "blocks belong to the hot-plug region";
            return Err(SpecError::Missing {
                option: "--block-size",
                missing: "--hotplug",
                rule,
            });
        }
        return Ok(None);
    };
    let region = Region::parse(text)?;
    let requested_size = region
        .requested
        .map_or(Ok(0), |text| size("--hotplug requested", text))?;
    let region_size = size("--hotplug", region.size)?;
    check(
        "--hotplug",
        region_size,
        &[AtLeast(block_size), MultipleOf(block_size)],
    )?;
    check("--hotplug requested", requested_size, &[MultipleOf(block_size)])?;
    if requested_size > region_size {
        return Err(SpecError::BeyondRegion {
            option: "--hotplug requested",
            bytes: ByteSize(requested_size),
            region: ByteSize(region_size),
        });
    }
    Ok(Some(HotplugSpec {
        region_size,
        block_size,
        requested_size,
        node: region.node.map_or(Ok(0), |text| node_number(text, nodes))?,
    }))
}

/// The number of CPUs.
fn cpus(text: Option<&str>) -> Result<NonZeroU8, SpecError> {
    let Some(text) = text else {
        return Ok(NonZeroU8::MIN);
    };
    // `from_str` of a number also takes a leading plus sign, which nobody means.
    let number = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    number
        .and_then(|text| text.parse::<NonZeroU8>().ok())
        .filter(|cpus| cpus.get() <= MAX_CPUS)
        .ok_or_else(|| SpecError::Cpus {
            value: text.to_owned(),
            limit: MAX_CPUS,
        })
}

/// What to do on a violation.
fn on_violation(text: Option<&str>) -> Result<OnViolation, SpecError> {
    match text {
        None | Some("kill") => Ok(OnViolation::Kill),
        Some("pause") => Ok(OnViolation::Pause),
        Some(other) => Err(SpecError::Choice {
            option: "--on-violation",
            value: other.to_owned(),
            allowed: "kill, pause",
        }),
    }
}

/// Where the serial port goes.
fn serial(text: Option<&str>) -> Result<SerialMode, SpecError> {
    match text {
        None | Some("terminal") => Ok(SerialMode::Terminal),
        Some("stdout") => Ok(SerialMode::Stdout),
        Some("discard") => Ok(SerialMode::Discard),
        Some(other) => {
            let file = other.strip_prefix("file=").ok_or_else(|| SpecError::Choice {
                option: "--serial",
                value: other.to_owned(),
                allowed: "terminal, stdout, file=PATH, discard",
            })?;
            let file = PathBuf::from(file);
            path("--serial file=", &file)?;
            Ok(SerialMode::File(file))
        }
    }
}

/// Refuses a path that no file can have.
fn path(option: &'static str, path: &std::path::Path) -> Result<(), SpecError> {
    let rule = match path.as_os_str().as_encoded_bytes() {
        [] => "a path is not empty",
        bytes if bytes.contains(&0) => "a path has no zero byte",
        _ => return Ok(()),
    };
    Err(SpecError::Text {
        option,
        value: path.display().to_string(),
        rule,
    })
}

/// Refuses a kernel command line that the guest could not read as one.
fn command_line(text: &str) -> Result<(), SpecError> {
    let rule = if text.chars().any(char::is_control) {
        "a command line is one line without control characters"
    } else if text.len() > MAX_CMDLINE_LENGTH {
        "a command line has at most 2047 bytes"
    } else {
        return Ok(());
    };
    Err(SpecError::Text {
        option: "--cmdline",
        value: text.to_owned(),
        rule,
    })
}

/// Refuses a program line that could not be put between quotes on the guest's command line (Linux has no escapes there).
fn check_program(text: &str) -> Result<(), SpecError> {
    let rule = if text.trim().is_empty() {
        "a program has a name"
    } else if text.contains('"') {
        "a program line is quoted for the guest and has no quote of its own"
    } else if !text.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        "a program line is printable ASCII"
    } else if text.len() > MAX_CMDLINE_LENGTH {
        "a program line has at most 2047 bytes"
    } else {
        return Ok(());
    };
    Err(SpecError::Text {
        option: "--program",
        value: text.to_owned(),
        rule,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Options with one field set, the rest left out.
    fn with(set: impl FnOnce(&mut VmOptions)) -> VmOptions {
        let mut options = VmOptions::default();
        set(&mut options);
        options
    }

    fn validate(options: &VmOptions) -> Result<VmSpec, SpecError> {
        options.validate(&VmName::new("default").expect("a name"))
    }

    /// The whole chain of what is wrong, as the command line prints it.
    fn refusal(options: &VmOptions) -> String {
        let error = validate(options).expect_err("these options break a rule");
        crate::cli::chain(&error)
    }

    fn memory(text: &str) -> VmOptions {
        with(|options| options.memory = Some(text.into()))
    }

    fn region(region: &str, block: Option<&str>) -> VmOptions {
        with(|options| {
            options.hotplug = Some(region.into());
            options.block_size = block.map(Into::into);
        })
    }

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
            (DEFAULT_MEMORY, None, 1)
        );
        assert_eq!(
            (spec.on_violation, spec.serial),
            (OnViolation::Kill, SerialMode::Terminal)
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
            hotplug: Some("4G,requested=1G,node=1".into()),
            block_size: Some("4M".into()),
            cpus: Some("16".into()),
            node: vec!["memory=512M".into(), "distance=15:10".into()],
            program: Vec::new(),
            on_violation: Some("pause".into()),
            serial: Some("file=/tmp/serial".into()),
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
        };
        assert_eq!(
            (spec.memory, spec.hotplug, spec.cpus.get()),
            (GIB, Some(hotplug), 16)
        );
        let nodes: Vec<_> = spec
            .nodes
            .iter()
            .map(|node| (node.memory, node.cpus.len()))
            .collect();
        assert_eq!(nodes, [(512 * MIB, 8), (512 * MIB, 8)]);
        assert_eq!(spec.nodes[1].distances, [15, 10]);
        assert_eq!(spec.on_violation, OnViolation::Pause);
        assert_eq!(spec.serial, SerialMode::File("/tmp/serial".into()));
    }

    #[test]
    fn boot_memory_follows_its_rules() {
        for (text, message) in [
            ("0", "--memory 0 bytes: the smallest is 32 MiB"),
            ("30M", "--memory 30 MiB: the smallest is 32 MiB"),
            ("33M", "--memory 33 MiB: not a multiple of 2 MiB"),
            ("33554433", "--memory 33554433 bytes: not a multiple of 2 MiB"),
            ("-1", "--memory: \"-1\" is not a size"),
            ("lots", "--memory: \"lots\" is not a size"),
            ("16777216T", "--memory: \"16777216T\" is more than 2^64 - 1 bytes"),
            ("16777215T", "together more than 4 TiB, the guest's address space"),
        ] {
            assert!(
                refusal(&memory(text)).contains(message),
                "{}",
                refusal(&memory(text))
            );
        }
        assert!(validate(&memory("32M")).is_ok());
        assert!(validate(&memory("4T")).is_ok());
    }

    #[test]
    fn the_region_follows_its_rules() {
        for (text, block, message) in [
            ("0", None, "--hotplug 0 bytes: the smallest is 2 MiB"),
            ("1M", None, "--hotplug 1 MiB: the smallest is 2 MiB"),
            ("3M", None, "--hotplug 3 MiB: not a multiple of 2 MiB"),
            (
                "130M",
                Some("128M"),
                "--hotplug 130 MiB: not a multiple of 128 MiB",
            ),
            ("1G", Some("0"), "--block-size 0 bytes: the smallest is 2 MiB"),
            ("1G", Some("1M"), "--block-size 1 MiB: the smallest is 2 MiB"),
            ("1G", Some("3M"), "--block-size 3 MiB: not a power of two"),
            ("1G", Some("2G"), "--hotplug 1 GiB: the smallest is 2 GiB"),
            (
                "1G,requested=2G",
                None,
                "--hotplug requested 2 GiB: more than the hot-plug region of 1 GiB",
            ),
            (
                "1G,requested=3M",
                None,
                "--hotplug requested 3 MiB: not a multiple of 2 MiB",
            ),
            ("1G,requested=", None, "--hotplug requested: \"\" is not a size"),
            (
                "1G,wanted=1G",
                None,
                "--hotplug \"1G,wanted=1G\": one of SIZE and SIZE[,requested=SIZE][,node=NUMBER]",
            ),
            ("1G,node=0,node=0", None, "--hotplug \"1G,node=0,node=0\": one of"),
            ("1G,node=1", None, "--hotplug node=\"1\": the nodes are 0 to 0"),
            ("4T", None, "together more than 4 TiB"),
            ("16777215T", None, "together more than 4 TiB"),
        ] {
            let refusal = refusal(&region(text, block));
            assert!(refusal.contains(message), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_sum_of_memory_and_region_cannot_overflow() {
        let mut options = region("16777215T", None);
        options.memory = Some("16777215T".into());
        assert!(refusal(&options).contains("together more than 4 TiB"));
    }

    #[test]
    fn cpus_are_1_to_16() {
        for text in [
            "0",
            "17",
            "256",
            "-1",
            "+1",
            "1.0",
            "",
            "two",
            "99999999999999999999",
        ] {
            let options = with(|options| options.cpus = Some(text.into()));
            assert_eq!(
                refusal(&options),
                format!("--cpus {text:?}: a VM has 1 to 16 CPUs")
            );
        }
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
                "--block-size without --hotplug: blocks belong to the hot-plug region",
            ),
        ] {
            assert_eq!(refusal(&options), message);
        }
    }

    #[test]
    fn texts_that_the_guest_could_not_read_back_are_refused() {
        for (program, message) in [
            ("", "a program has a name"),
            ("  ", "a program has a name"),
            ("hog \"x\"", "no quote of its own"),
            ("hog\nspin", "printable ASCII"),
            ("høg", "printable ASCII"),
            (
                &"h".repeat(MAX_CMDLINE_LENGTH + 1),
                &format!("at most {MAX_CMDLINE_LENGTH} bytes"),
            ),
        ] {
            let options = with(|options| options.program = vec!["ok".into(), program.into()]);
            assert!(refusal(&options).contains(message), "{}", refusal(&options));
        }
        for (cmdline, message) in [
            ("a\nb", "one line"),
            ("a\0b", "one line"),
            (
                &"c".repeat(MAX_CMDLINE_LENGTH + 1),
                &format!("at most {MAX_CMDLINE_LENGTH} bytes"),
            ),
        ] {
            let options = with(|options| options.cmdline = Some(cmdline.into()));
            assert!(refusal(&options).contains(message), "{}", refusal(&options));
        }
    }

    #[test]
    fn unknown_words_are_refused_with_the_known_ones() {
        let options = with(|options| options.on_violation = Some("shrug".into()));
        assert_eq!(refusal(&options), "--on-violation \"shrug\": one of kill, pause");
        for text in ["", "tty", "file", "Terminal"] {
            let options = with(|options| options.serial = Some(text.into()));
            let message = format!("--serial {text:?}: one of terminal, stdout, file=PATH, discard");
            assert_eq!(refusal(&options), message);
        }
        let options = with(|options| options.serial = Some("file=".into()));
        assert_eq!(refusal(&options), "--serial file= \"\": a path is not empty");
        let options = with(|options| options.kernel = Some("".into()));
        assert_eq!(refusal(&options), "--kernel \"\": a path is not empty");
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

    proptest! {
        #[test]
        fn whatever_passes_keeps_every_rule(
            memory in 0_u64..1 << 50, region in 0_u64..1 << 50, requested in 0_u64..1 << 50,
            block_shift in 15_u32..50, units in any::<bool>(),
        ) {
            let unit = if units { 1 << block_shift } else { 1 };
            let options = VmOptions {
                memory: Some((memory & !(MEMORY_UNIT - 1)).to_string()),
                hotplug: Some(format!("{},requested={}", region & !(unit - 1), (requested % (region + 1)) & !(unit - 1))),
                block_size: Some((1_u64 << block_shift).to_string()),
                ..VmOptions::default()
            };
            if let Ok(spec) = validate(&options) {
                let hotplug = spec.hotplug.expect("a region was asked for");
                prop_assert!(spec.memory >= MIN_MEMORY && spec.memory.is_multiple_of(MEMORY_UNIT));
                prop_assert!(hotplug.block_size.is_power_of_two() && hotplug.block_size >= MIN_BLOCK_SIZE);
                prop_assert!(hotplug.region_size > 0 && hotplug.region_size.is_multiple_of(hotplug.block_size));
                prop_assert!(hotplug.requested_size.is_multiple_of(hotplug.block_size));
                prop_assert!(hotplug.requested_size <= hotplug.region_size);
                prop_assert!(spec.memory + hotplug.region_size <= MAX_TOTAL_MEMORY);
            }
        }
    }
}
