//! Buffer space of one stream, in both directions (virtio 1.3, section 5.10.6.3).
//!
//! Counters of payload bytes run on without end and wrap at 2³²; only differences of them mean anything.

/// Bytes of payload that one stream keeps for the host at most, which is what the guest is told as `buf_alloc`.
pub const TO_HOST_LIMIT: u32 = 64 << 10;

/// The guest is told of space that has become free when it is this much: seldom enough to cost little, early enough
/// that a guest that keeps sending never stands still.
const TELL_AT: u32 = TO_HOST_LIMIT / 4;

/// What both sides know of each other's space.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Credit {
    /// What the guest said last: its space, and how much of ours it has passed on.
    guest_alloc: u32,
    guest_passed_on: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// Bytes that have come from the guest, those of them that have gone on to the host, and how many the guest knows of.
    received: u32,
    passed_on: u32,
    told: u32,
}

/// The guest sent more than it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Credit {
    /// Takes note of what a packet from the guest says.
    pub(super) fn heard(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.guest_alloc = buf_alloc;
        self.guest_passed_on = fwd_cnt;
    }

    /// Bytes that may be sent to the guest now. A guest that claims to have passed on what it never got is sent nothing.
    pub(super) fn may_send(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_passed_on);
        self.guest_alloc.saturating_sub(under_way)
    }

    /// `len` bytes go to the guest.
    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// `len` bytes come from the guest.
    ///
    /// # Errors
    /// They are more than it was granted; nothing is counted.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let kept = self.received.wrapping_sub(self.passed_on);
        if len > TO_HOST_LIMIT - kept {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// `len` of the bytes received have gone on to the host, or have been thrown away.
    pub(super) fn pass_on(&mut self, len: u32) {
        self.passed_on = self.passed_on.wrapping_add(len);
    }

    /// Whether the guest should be told of space that has become free.
    pub(super) fn is_news(&self) -> bool {
        self.passed_on.wrapping_sub(self.told) >= TELL_AT
    }

    /// `buf_alloc` and `fwd_cnt` of the next packet to the guest.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.passed_on;
        (TO_HOST_LIMIT, self.passed_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_may_be_sent_before_the_guest_has_said_what_it_can_hold() {
        let mut credit = Credit::default();
        assert_eq!(credit.may_send(), 0);
        credit.heard(100, 0);
        credit.send(60);
        assert_eq!(credit.may_send(), 40);
        credit.heard(100, 60);
        assert_eq!(credit.may_send(), 100);
    }

    #[test]
    fn a_guest_that_shrinks_its_buffer_or_lies_about_it_is_sent_nothing() {
        let mut credit = Credit::default();
        credit.heard(100, 0);
        credit.send(60);
        credit.heard(50, 0);
        assert_eq!(credit.may_send(), 0);
        credit.heard(100, 61);
        assert_eq!(credit.may_send(), 0, "it cannot have passed on 61 of 60 bytes");
    }

    #[test]
    fn one_byte_more_than_granted_is_an_overrun_and_is_not_counted() {
        let mut credit = Credit::default();
        assert_eq!(credit.receive(TO_HOST_LIMIT + 1), Err(Overrun));
        assert_eq!(credit.receive(TO_HOST_LIMIT), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
        credit.pass_on(1);
        assert_eq!(credit.receive(1), Ok(()));
    }

    #[test]
    fn the_guest_is_told_once_a_quarter_of_the_space_is_free_again() {
        let mut credit = Credit::default();
        credit.receive(TO_HOST_LIMIT).unwrap();
        credit.pass_on(TELL_AT - 1);
        assert!(!credit.is_news());
        credit.pass_on(1);
        assert!(credit.is_news());
        assert_eq!(credit.tell(), (TO_HOST_LIMIT, TELL_AT));
        assert!(!credit.is_news());
    }

    proptest! {
        /// Both ends against plain 64-bit sums, far beyond the point where the counters wrap.
        #[test]
        fn a_sender_that_keeps_to_its_credit_never_overruns_and_never_starves(
            start in any::<u32>(),
            steps in prop::collection::vec((any::<u32>(), any::<u32>(), any::<bool>()), 1..200),
        ) {
            let mut credit = Credit { received: start, passed_on: start, told: start, ..Credit::default() };
            let (mut sent, mut gone_on, mut known) = (0u64, 0u64, 0u64);
            for (send, pass_on, tell) in steps {
                let free = u64::from(TO_HOST_LIMIT) - (sent - known);
                let send = u64::from(send) % (free + 1);
                prop_assert_eq!(credit.receive(u32::try_from(send).unwrap()), Ok(()));
                sent += send;
                let pass_on = u64::from(pass_on) % (sent - gone_on + 1);
                credit.pass_on(u32::try_from(pass_on).unwrap());
                gone_on += pass_on;
                prop_assert_eq!(credit.is_news(), gone_on - known >= u64::from(TELL_AT));
                if tell || credit.is_news() {
                    let (alloc, fwd_cnt) = credit.tell();
                    prop_assert_eq!(alloc, TO_HOST_LIMIT);
                    known = gone_on;
                    prop_assert_eq!(fwd_cnt, start.wrapping_add(u32::try_from(known & 0xffff_ffff).unwrap()));
                }
                // Once all has gone on, the guest can send at least three quarters of the space.
                if gone_on == sent {
                    prop_assert!(sent - known < u64::from(TELL_AT));
                }
            }
        }
    }
}
