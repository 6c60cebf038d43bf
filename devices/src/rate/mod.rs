//! Rate limits: how much a device may do in a second, as two token buckets, one of operations and one of bytes.
//!
//! A bucket holds so many tokens at most and fills up evenly within its refill time. Who wants to do something takes tokens
//! out, or is told how long to wait for them. The two buckets and their three numbers are those of Firecracker's
//! `RateLimiter`. Pure: the caller brings the time.
//!
//! What is larger than a bucket is let through when the bucket is full, and paid for afterwards: the level goes below
//! zero, and whoever comes next waits longer. So no request waits for ever, and the rate holds in the long run.

#[cfg(test)]
mod tests;

use std::num::NonZeroU64;
use std::time::Duration;

/// What a bucket is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketSpec {
    /// Most tokens that it holds, and what it begins with.
    pub size: NonZeroU64,
    /// Tokens beyond that, which are used up first and never come back. The bucket is not filled up before.
    pub one_time_burst: u64,
    /// Milliseconds in which an empty bucket becomes full.
    pub refill_time: NonZeroU64,
}

impl BucketSpec {
    /// So many tokens a second, and at most those of one second at once.
    pub const fn per_second(tokens: NonZeroU64) -> BucketSpec {
        const SECOND: NonZeroU64 = NonZeroU64::new(1000).expect("is not 0");
        BucketSpec {
            size: tokens,
            one_time_burst: 0,
            refill_time: SECOND,
        }
    }
}

/// What a device may do; by default as much as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateSpec {
    /// Tokens are bytes.
    pub bandwidth: Option<BucketSpec>,
    /// Tokens are operations.
    pub ops: Option<BucketSpec>,
}

/// A bucket of tokens.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    spec: BucketSpec,
    /// What is left of the burst.
    burst: u64,
    /// Tokens times [`Self::nanoseconds`], so that nothing is rounded; below zero for what is still to be paid for.
    level: i128,
    /// When [`Self::level`] was right.
    filled: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(spec: BucketSpec, now: Duration) -> TokenBucket {
        let mut bucket = TokenBucket {
            spec,
            burst: spec.one_time_burst,
            level: 0,
            filled: now,
        };
        bucket.level = bucket.scaled(spec.size.get());
        bucket
    }

    /// What it is like.
    pub fn spec(&self) -> BucketSpec {
        self.spec
    }

    /// How long until `tokens` can be taken; zero if they can be now.
    pub fn wait(&mut self, now: Duration, tokens: u64) -> Duration {
        self.fill(now);
        let from_level = tokens.saturating_sub(self.burst).min(self.spec.size.get());
        let missing = self.scaled(from_level).saturating_sub(self.level);
        let Ok(missing @ 1..) = u128::try_from(missing) else {
            return Duration::ZERO;
        };
        let nanoseconds = missing.div_ceil(u128::from(self.spec.size.get()));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Takes tokens, more than there are if need be.
    pub fn take(&mut self, now: Duration, tokens: u64) {
        self.fill(now);
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        self.level = self.level.saturating_sub(self.scaled(tokens - from_burst));
    }

    /// Adds what has come since the last time. With a clock that went back: nothing.
    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled);
        self.filled = self.filled.max(now);
        let passed = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let come = passed.saturating_mul(i128::from(self.spec.size.get()));
        let full = self.scaled(self.spec.size.get());
        self.level = self.level.saturating_add(come).min(full);
    }

    /// Nanoseconds in which the bucket becomes full.
    fn nanoseconds(&self) -> i128 {
        i128::from(self.spec.refill_time.get()) * 1_000_000
    }

    fn scaled(&self, tokens: u64) -> i128 {
        i128::from(tokens).saturating_mul(self.nanoseconds())
    }
}

/// Both buckets of a device.
#[derive(Clone, Debug, Default)]
pub struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// Full buckets.
    pub fn new(spec: RateSpec, now: Duration) -> RateLimiter {
        let bucket = |spec: BucketSpec| TokenBucket::new(spec, now);
        RateLimiter {
            bandwidth: spec.bandwidth.map(bucket),
            ops: spec.ops.map(bucket),
        }
    }

    /// Makes buckets that are to be different anew, full, and leaves the others as they are.
    pub fn change(&mut self, spec: RateSpec, now: Duration) {
        let change = |bucket: &mut Option<TokenBucket>, to: Option<BucketSpec>| {
            if bucket.as_ref().map(TokenBucket::spec) != to {
                *bucket = to.map(|spec| TokenBucket::new(spec, now));
            }
        };
        change(&mut self.bandwidth, spec.bandwidth);
        change(&mut self.ops, spec.ops);
    }

    /// What it is like.
    pub fn spec(&self) -> RateSpec {
        let spec = |bucket: &Option<TokenBucket>| bucket.as_ref().map(TokenBucket::spec);
        RateSpec {
            bandwidth: spec(&self.bandwidth),
            ops: spec(&self.ops),
        }
    }

    /// Takes what one operation of so many bytes costs, out of both buckets or out of none.
    ///
    /// # Errors
    /// It has to wait this long, if nobody else takes anything meanwhile.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Result<(), Duration> {
        let mut both = [(&mut self.bandwidth, bytes), (&mut self.ops, 1)];
        let waits = both.iter_mut().filter_map(|(bucket, tokens)| {
            let bucket = bucket.as_mut()?;
            Some(bucket.wait(now, *tokens))
        });
        match waits.max() {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                for (bucket, tokens) in both {
                    bucket.iter_mut().for_each(|bucket| bucket.take(now, tokens));
                }
                Ok(())
            }
        }
    }
}
