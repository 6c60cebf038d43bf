//! `ballast limit`: what a disk of a running VM may do in a second.

use clap::Args;

use super::{Failure, Status, name_argument, print};
use crate::control::api::RateRequest;
use crate::control::client::ControlClient;
use crate::control::rate::{RateLimiter, TokenBucket};
use crate::spec::parse_size;

/// Change how much a disk may do in a second
///
/// What comes too early waits in the guest's queue; nothing is lost. Limits that are not named stay as they are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast limit a --iops 200
  ballast limit a --disk 1 --bandwidth 20M --iops none      the second --disk
  ballast stats a                                           shows the limits, and how many requests had to wait")]
pub(super) struct Limit {
    /// Name of the VM
    name: String,

    /// Which --disk, counted from 0
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    disk: usize,

    /// Most requests in a second, or none for no limit
    #[arg(long, value_name = "NUMBER", value_parser = iops, required_unless_present = "bandwidth")]
    iops: Option<TokenBucket>,

    /// Most bytes in a second, or none for no limit
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    bandwidth: Option<TokenBucket>,
}

impl Limit {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let name = name_argument(&self.name)?;
        let request = RateRequest {
            disk: self.disk,
            rate_limiter: RateLimiter {
                bandwidth: self.bandwidth,
                ops: self.iops,
            },
        };
        let changed = ControlClient::open(&name)?.set_rate(request)?;
        if !changed {
            print(&format!("{name}: disk {} has these limits already\n", self.disk))?;
        }
        Ok(Status::Done)
    }
}

fn iops(text: &str) -> Result<TokenBucket, String> {
    let number = |text: &str| text.parse().map_err(|_| "not a number of requests".to_owned());
    per_second(text, number)
}

fn bandwidth(text: &str) -> Result<TokenBucket, String> {
    per_second(text, |text| parse_size(text).map_err(|error| error.to_string()))
}

fn per_second(text: &str, number: impl Fn(&str) -> Result<u64, String>) -> Result<TokenBucket, String> {
    if text == "none" {
        return Ok(TokenBucket::NONE);
    }
    match number(text)? {
        0 => Err("a rate is at least 1 a second; none takes the limit away".to_owned()),
        size => Ok(TokenBucket {
            size,
            one_time_burst: None,
            refill_time: 1000,
        }),
    }
}
