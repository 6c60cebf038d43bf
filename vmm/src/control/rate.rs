//! Rate limits in the language of the control socket, which is Firecracker's: `RateLimiter` and `TokenBucket` of its API.

use std::num::NonZeroU64;

use devices::rate::{BucketSpec, RateSpec};
use serde::{Deserialize, Serialize};

/// What a device may do. In a report: a bucket that is absent limits nothing. In a request: it stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Tokens are bytes.
    #[serde(default)]
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are requests.
    #[serde(default)]
    pub ops: Option<TokenBucket>,
}

/// A bucket that holds tokens, and is filled up evenly. One with the `size` or the `refill_time` 0 limits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Most tokens that it holds, and what it begins with.
    pub size: u64,
    /// Tokens beyond that, which are used up first and never come back. Absent: none.
    #[serde(default)]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket becomes full.
    pub refill_time: u64,
}

impl TokenBucket {
    /// One that limits nothing: a request with it takes the limit away.
    pub const NONE: Self = Self {
        size: 0,
        one_time_burst: None,
        refill_time: 0,
    };

    /// The bucket, if it limits anything.
    fn spec(self) -> Option<BucketSpec> {
        Some(BucketSpec {
            size: NonZeroU64::new(self.size)?,
            one_time_burst: self.one_time_burst.unwrap_or(0),
            refill_time: NonZeroU64::new(self.refill_time)?,
        })
    }
}

impl RateLimiter {
    /// The limits of a device that had those of `old`, after a request with these.
    #[must_use]
    pub fn applied_to(self, old: RateSpec) -> RateSpec {
        RateSpec {
            bandwidth: self.bandwidth.map_or(old.bandwidth, TokenBucket::spec),
            ops: self.ops.map_or(old.ops, TokenBucket::spec),
        }
    }
}

impl From<BucketSpec> for TokenBucket {
    fn from(spec: BucketSpec) -> Self {
        Self {
            size: spec.size.get(),
            one_time_burst: Some(spec.one_time_burst),
            refill_time: spec.refill_time.get(),
        }
    }
}

impl From<RateSpec> for RateLimiter {
    fn from(spec: RateSpec) -> Self {
        Self {
            bandwidth: spec.bandwidth.map(TokenBucket::from),
            ops: spec.ops.map(TokenBucket::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(json: &str) -> RateLimiter {
        serde_json::from_str(json).expect("valid")
    }

    #[test]
    fn a_request_changes_the_buckets_that_it_has_and_takes_those_of_size_or_time_0_away() {
        let ops = BucketSpec::per_second(NonZeroU64::new(5).expect("not 0"));
        let old = RateSpec {
            bandwidth: None,
            ops: Some(ops),
        };
        assert_eq!(limiter("{}").applied_to(old), old);
        let bandwidth = limiter(r#"{"bandwidth": {"size": 100, "one_time_burst": 7, "refill_time": 20}}"#);
        let new = bandwidth.applied_to(old);
        assert_eq!(new.ops, Some(ops));
        assert_eq!(RateLimiter::from(new).bandwidth, bandwidth.bandwidth);
        for none in [
            r#"{"size": 0, "refill_time": 5}"#,
            r#"{"size": 5, "refill_time": 0}"#,
        ] {
            let without = limiter(&format!(r#"{{"ops": {none}}}"#)).applied_to(old);
            assert_eq!(without, RateSpec::default());
        }
    }

    #[test]
    fn what_is_no_bucket_is_refused() {
        for text in [
            r#"{"ops": {"size": 1}}"#,
            r#"{"ops": {"size": -1, "refill_time": 1}}"#,
            r#"{"iops": {"size": 1, "refill_time": 1}}"#,
        ] {
            assert!(serde_json::from_str::<RateLimiter>(text).is_err(), "{text}");
        }
    }
}
