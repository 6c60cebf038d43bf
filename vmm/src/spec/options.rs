//! What describes a VM before anybody has checked it: the options of `ballast run`, which are also the keys of a VM file.
//!
//! Every value is the text that the user wrote, so that the command line and the file share one set of rules and one set
//! of messages ([`super::validate`]).

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Deserializer};

/// The options that describe a VM. A VM file has the same keys, without the dashes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmOptions {
    /// Name of the VM: up to 64 of A-Z a-z 0-9 _ -; unique among those running [default: vm-PID]
    #[arg(long)]
    pub name: Option<String>,

    /// Kernel to boot: an ELF image with a PVH note, or a bzImage [default: the built-in guest]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk for --kernel
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Command line for the guest's kernel
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// Memory the guest boots with and always keeps: a multiple of 2M, at least 32M [default: 512M, or what the nodes
    /// have]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "text_or_number")]
    pub memory: Option<String>,

    /// What boot memory is made of, and regions that say nothing else: anonymous, memfd, hugetlbfs:2M or hugetlbfs:1G
    /// [default: anonymous]
    #[arg(long, value_name = "KIND")]
    pub backing: Option<String>,

    /// Region in which memory comes and goes, such as 4G; may be repeated, up to 16 times. 4G,requested=1G asks for 1G
    /// of it at boot; block=SIZE, node=NUMBER and backing=KIND are its own; with populate, a block is plugged with all
    /// its pages or not at all; unplugged=readable serves drivers that may read what is not plugged
    #[arg(
        long,
        value_name = "SIZE[,requested=SIZE][,block=SIZE][,node=NUMBER][,backing=KIND][,populate][,unplugged=POLICY]"
    )]
    #[serde(deserialize_with = "texts_or_numbers")]
    pub hotplug: Vec<String>,

    /// Granularity of every --hotplug that says nothing else: a power of two, at least 2M [default: 2M]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "text_or_number")]
    pub block_size: Option<String>,

    /// A balloon, which takes memory page by page: SIZE at boot [default: 0]. The guest keeps at least floor=SIZE [default:
    /// a quarter of its boot memory]; with stats=SECONDS it is asked so often how its memory is used; with
    /// deflate-on-oom it may take pages back rather than run out of memory; with reporting it gives free pages to the
    /// host by itself, with hinting when it is asked
    #[arg(long, value_name = "[SIZE][,floor=SIZE][,...]", num_args = 0..=1, default_missing_value = "")]
    #[serde(deserialize_with = "text_or_number")]
    pub balloon: Option<String>,

    /// Number of virtual CPUs, 1 to 16 [default: 1]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    #[serde(deserialize_with = "text_or_number")]
    pub cpus: Option<String>,

    /// A NUMA node, such as memory=128M,cpus=0-1:3,distance=10:20; may be repeated, up to 8 times. What is left out:
    /// an even share of the memory and CPUs left, distance 10 to itself and 20 to others
    #[arg(long, value_name = "[memory=SIZE][,cpus=LIST][,distance=LIST]")]
    pub node: Vec<String>,

    /// Program for the built-in guest to run, with its arguments, such as "hog fill=70%"; may be repeated
    #[arg(long, value_name = "\"NAME ARGS\"")]
    pub program: Vec<String>,

    /// What to do when the guest touches memory that is not plugged: kill or pause [default: kill]
    #[arg(long, value_name = "POLICY")]
    pub on_violation: Option<String>,

    /// A disk: a file or block device; may be repeated. readonly keeps the guest from writing it, direct goes past the host's
    /// cache, engine is io-uring or thread [default: io-uring where the kernel has it], id is what the guest is told it is;
    /// iops and bandwidth are the most requests and bytes a second, the bursts what may come once beyond that
    #[arg(
        long,
        value_name = "PATH[,readonly][,direct][,engine=NAME][,id=TEXT][,iops=N][,bandwidth=SIZE]"
    )]
    pub disk: Vec<String>,

    /// Give the guest an entropy device
    #[arg(long)]
    pub rng: bool,

    /// What to do when the guest resets its machine: reboot it in this process, or exit [default: reboot]
    #[arg(long, value_name = "POLICY")]
    pub on_reboot: Option<String>,

    /// End the VM when the guest has reset its machine so often in a row without running for 10 s in between; 0 for
    /// never [default: 16]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    #[serde(deserialize_with = "text_or_number")]
    pub reboot_limit: Option<String>,

    /// Where the serial console goes: terminal, stdout (no input), file=PATH or discard [default: terminal, or discard
    /// with --hvc terminal]
    #[arg(long, value_name = "WHERE")]
    pub serial: Option<String>,

    /// Where the console's first port is, /dev/hvc0 in Linux: channel (what `ballast guest` asks), terminal (standard input
    /// and output, instead of the serial console's), path=SOCKET for one program at a time, file=FILE, or discard
    /// [default: channel]
    #[arg(long, value_name = "WHERE")]
    pub hvc: Option<String>,

    /// A named port beside the guest's console, /dev/virtio-ports/NAME in Linux, for one program at a time at a unix socket
    /// or with a file that takes what the guest writes; may be repeated, up to 8 times
    #[arg(long, value_name = "name=NAME,path=SOCKET|file=FILE")]
    pub console_port: Vec<String>,

    /// A network interface at the tap of that name; may be repeated. A tap that exists is joined, another is made and
    /// lasts as long as the VM [default address: made from the names of VM and tap]
    #[arg(long, value_name = "tap=NAME[,mac=ADDRESS]")]
    pub net: Vec<String>,

    /// Stream sockets between guest and host: programs of the host write CONNECT PORT to the unix socket at the path;
    /// port N of the host, for the guest's programs, is the unix socket PATH_N
    #[arg(long, value_name = "cid=NUMBER,path=SOCKET")]
    pub vsock: Option<String>,
}

impl VmOptions {
    /// These options, and `others` where these leave something open: the command line before the file. A list that is
    /// given replaces the other list.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            name: self.name.or(others.name),
            kernel: self.kernel.or(others.kernel),
            initrd: self.initrd.or(others.initrd),
            cmdline: self.cmdline.or(others.cmdline),
            memory: self.memory.or(others.memory),
            backing: self.backing.or(others.backing),
            hotplug: if self.hotplug.is_empty() {
                others.hotplug
            } else {
                self.hotplug
            },
            block_size: self.block_size.or(others.block_size),
            balloon: self.balloon.or(others.balloon),
            cpus: self.cpus.or(others.cpus),
            node: if self.node.is_empty() {
                others.node
            } else {
                self.node
            },
            program: if self.program.is_empty() {
                others.program
            } else {
                self.program
            },
            disk: if self.disk.is_empty() {
                others.disk
            } else {
                self.disk
            },
            rng: self.rng || others.rng,
            on_violation: self.on_violation.or(others.on_violation),
            on_reboot: self.on_reboot.or(others.on_reboot),
            reboot_limit: self.reboot_limit.or(others.reboot_limit),
            serial: self.serial.or(others.serial),
            hvc: self.hvc.or(others.hvc),
            console_port: if self.console_port.is_empty() {
                others.console_port
            } else {
                self.console_port
            },
            net: if self.net.is_empty() { others.net } else { self.net },
            vsock: self.vsock.or(others.vsock),
        }
    }
}

/// A value that a file may hold as text (`"512M"`) or as a number (`2`).
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text such as \"512M\" or a whole number")]
enum TextOrNumber {
    Text(String),
    Number(u64),
    Negative(i64),
}

impl From<TextOrNumber> for String {
    fn from(value: TextOrNumber) -> Self {
        match value {
            TextOrNumber::Text(text) => text,
            TextOrNumber::Number(number) => number.to_string(),
            TextOrNumber::Negative(number) => number.to_string(),
        }
    }
}

fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    TextOrNumber::deserialize(deserializer).map(|value| Some(value.into()))
}

/// A list of such values, or a single one.
fn texts_or_numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a text such as \"4G\", a whole number, or a list of them"
    )]
    enum OneOrMany {
        Many(Vec<TextOrNumber>),
        One(TextOrNumber),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::Many(values) => values.into_iter().map(Into::into).collect(),
        OneOrMany::One(value) => vec![value.into()],
    })
}
