//! Buckets by a clock that a test turns on.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn some(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

fn bucket(size: u64, one_time_burst: u64, refill_time: u64) -> BucketSpec {
    BucketSpec {
        size: some(size),
        one_time_burst,
        refill_time: some(refill_time),
    }
}

fn ops(number: u64) -> RateLimiter {
    let ops = Some(BucketSpec::per_second(some(number)));
    RateLimiter::new(
        RateSpec {
            ops,
            ..RateSpec::default()
        },
        SECOND,
    )
}

fn bandwidth(spec: BucketSpec) -> RateLimiter {
    let bandwidth = Some(spec);
    RateLimiter::new(
        RateSpec {
            bandwidth,
            ..RateSpec::default()
        },
        Duration::ZERO,
    )
}

#[test]
fn without_buckets_nobody_waits() {
    let mut limiter = RateLimiter::new(RateSpec::default(), Duration::ZERO);
    for _ in 0..1000 {
        assert_eq!(limiter.take(Duration::ZERO, u64::MAX), Ok(()));
    }
}

#[test]
fn a_full_bucket_is_emptied_at_once_and_then_each_token_comes_in_its_time() {
    let mut limiter = ops(5);
    for _ in 0..5 {
        assert_eq!(limiter.take(SECOND, 1 << 30), Ok(()));
    }
    let fifth = SECOND / 5;
    assert_eq!(limiter.take(SECOND, 0), Err(fifth));
    assert_eq!(limiter.take(SECOND + fifth / 2, 0), Err(fifth / 2));
    let shortly_before = SECOND + fifth - Duration::from_nanos(1);
    assert_eq!(limiter.take(shortly_before, 0), Err(Duration::from_nanos(1)));
    assert_eq!(limiter.take(SECOND + fifth, 0), Ok(()));
    assert_eq!(limiter.take(SECOND + fifth, 0), Err(fifth));
}

#[test]
fn a_bucket_that_nobody_needs_holds_no_more_than_its_size() {
    let mut limiter = ops(3);
    let later = SECOND * 1000;
    for _ in 0..3 {
        assert_eq!(limiter.take(later, 0), Ok(()));
    }
    assert_eq!(
        limiter.take(later, 0),
        Err((SECOND / 3) + Duration::from_nanos(1)),
        "rounded up"
    );
}

#[test]
fn what_is_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_for_afterwards() {
    let mut limiter = bandwidth(bucket(1000, 0, 1000));
    assert_eq!(limiter.take(Duration::ZERO, 5000), Ok(()));
    assert_eq!(limiter.take(Duration::ZERO, 1), Err(SECOND * 4 + SECOND / 1000));
    assert_eq!(limiter.take(SECOND * 4, 1000), Err(SECOND));
    assert_eq!(
        limiter.take(SECOND * 4, 5000),
        Err(SECOND),
        "as if it were no larger than the bucket"
    );
    assert_eq!(limiter.take(SECOND * 5, 1000), Ok(()));
}

#[test]
fn the_burst_is_used_up_first_and_never_comes_back() {
    let mut limiter = bandwidth(bucket(100, 250, 1000));
    // The bucket stays full meanwhile: 250 of the burst, then its own 100.
    for at in 0..3 {
        assert_eq!(limiter.take(SECOND * at, 100), Ok(()));
    }
    assert_eq!(limiter.take(SECOND * 2, 50), Ok(()));
    assert_eq!(limiter.take(SECOND * 2, 100), Err(SECOND));
    assert_eq!(limiter.take(SECOND * 100, 100), Ok(()));
    assert_eq!(limiter.take(SECOND * 100, 100), Err(SECOND));
}

#[test]
fn an_operation_takes_from_both_buckets_or_from_none() {
    let spec = RateSpec {
        bandwidth: Some(bucket(100, 0, 1000)),
        ops: Some(bucket(2, 0, 1000)),
    };
    let mut limiter = RateLimiter::new(spec, Duration::ZERO);
    assert_eq!(limiter.take(Duration::ZERO, 100), Ok(()));
    // No bytes are left: the one operation that there is must still be there afterwards.
    for _ in 0..5 {
        assert_eq!(limiter.take(Duration::ZERO, 100), Err(SECOND));
    }
    assert_eq!(limiter.take(Duration::ZERO, 0), Ok(()));
    assert_eq!(limiter.take(Duration::ZERO, 0), Err(SECOND / 2));
}

#[test]
fn only_the_bucket_that_is_to_be_different_is_made_anew() {
    let mut limiter = ops(2);
    assert_eq!(limiter.take(SECOND, 0), Ok(()));
    assert_eq!(limiter.take(SECOND, 0), Ok(()));
    let wanted = RateSpec {
        bandwidth: Some(bucket(100, 0, 1000)),
        ..limiter.spec()
    };
    limiter.change(wanted, SECOND);
    assert_eq!(limiter.spec(), wanted);
    assert_eq!(
        limiter.take(SECOND, 100),
        Err(SECOND / 2),
        "operations are used up"
    );
    limiter.change(RateSpec { ops: None, ..wanted }, SECOND);
    assert_eq!(limiter.take(SECOND, 100), Ok(()));
    assert_eq!(limiter.take(SECOND, 100), Err(SECOND));
    limiter.change(RateSpec::default(), SECOND);
    assert_eq!(limiter.take(SECOND, u64::MAX), Ok(()));
}

#[test]
fn a_clock_that_goes_back_brings_nothing_and_takes_nothing() {
    let mut limiter = ops(1);
    assert_eq!(limiter.take(SECOND * 5, 0), Ok(()));
    assert_eq!(limiter.take(SECOND, 0), Err(SECOND));
    assert_eq!(limiter.take(SECOND * 6, 0), Ok(()));
}

proptest! {
    /// Whatever is asked for and whenever: never more than the burst, the bucket, one request too large, and what has come.
    #[test]
    fn no_more_is_let_through_than_has_come(
        size in 1_u64..1000,
        burst in 0_u64..500,
        refill in 1_u64..3000,
        asked in prop::collection::vec((0_u64..2000, 0_u64..500_000_000), 1..200),
    ) {
        let mut bucket = TokenBucket::new(bucket(size, burst, refill), Duration::ZERO);
        let (mut now, mut taken, mut largest) = (Duration::ZERO, 0, 0);
        for (tokens, pause) in asked {
            now += Duration::from_nanos(pause);
            let wait = bucket.wait(now, tokens);
            // Who waits as long as he is told does not wait again; a nanosecond less is not enough.
            if !wait.is_zero() {
                let before = now + wait - Duration::from_nanos(1);
                prop_assert!(!bucket.wait(before, tokens).is_zero());
                now += wait;
            }
            prop_assert_eq!(bucket.wait(now, tokens), Duration::ZERO);
            bucket.take(now, tokens);
            taken += u128::from(tokens);
            largest = largest.max(tokens);
            let come = now.as_nanos() * u128::from(size) / (u128::from(refill) * 1_000_000);
            prop_assert!(taken <= u128::from(burst + size + largest) + come);
        }
    }

    /// No numbers, however large, make it panic or wait where nothing is to be waited for.
    #[test]
    fn every_spec_can_be_used(
        size in 1_u64..,
        burst: u64,
        refill in 1_u64..,
        asked in prop::collection::vec((any::<u64>(), any::<u64>()), 1..20),
    ) {
        let mut bucket = TokenBucket::new(bucket(size, burst, refill), Duration::ZERO);
        prop_assert_eq!(bucket.wait(Duration::ZERO, size), Duration::ZERO);
        for (tokens, at) in asked {
            let _ = bucket.wait(Duration::from_nanos(at), tokens);
            bucket.take(Duration::from_nanos(at), tokens);
        }
    }
}
