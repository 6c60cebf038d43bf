//! Free page hinting: which command ids are in force, and whether the driver's pages belong to one (section 5.5.6.3).
//!
//! A round: the device publishes an id, the driver sends the id back and then pages, and sends STOP when it has no more. The
//! device then publishes DONE, and the driver may use the pages again. Pages that come outside of a round mean nothing.

use virtio_wire::balloon::command;

/// How hinting stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HintingState {
    /// The device wants no hints.
    #[default]
    Idle,
    /// The device has published an id that the driver has not answered.
    Asked,
    /// The driver is hinting.
    Running,
}

/// The device's side of hinting.
#[derive(Debug)]
pub(super) struct Hinting {
    /// What `free_page_hint_cmd_id` reads.
    published: u32,
    /// The id used last; ids go up, so that none is used again before 4 billion others were.
    last_id: u32,
    state: HintingState,
}

impl Hinting {
    pub(super) fn new() -> Hinting {
        Hinting {
            published: command::STOP,
            last_id: command::FIRST - 1,
            state: HintingState::Idle,
        }
    }

    /// What `free_page_hint_cmd_id` reads.
    pub(super) fn published(&self) -> u32 {
        self.published
    }

    pub(super) fn state(&self) -> HintingState {
        self.state
    }

    /// Begins a round. One under way is over: its pages mean nothing from now on.
    pub(super) fn start(&mut self) {
        self.last_id = self.last_id.checked_add(1).unwrap_or(command::FIRST);
        self.published = self.last_id;
        self.state = HintingState::Asked;
    }

    /// Ends hinting, and lets the driver use what it has hinted. Returns whether there was anything to end.
    pub(super) fn finish(&mut self) -> bool {
        let was_on = self.state != HintingState::Idle;
        if was_on {
            self.published = command::DONE;
            self.state = HintingState::Idle;
        }
        was_on
    }

    /// The driver sends a command id. Returns whether that ended the round.
    pub(super) fn receive(&mut self, id: u32) -> bool {
        match (id, self.state) {
            (command::STOP, HintingState::Running) => self.finish(),
            (id, HintingState::Asked) if id == self.published => {
                self.state = HintingState::Running;
                false
            }
            // An id that is not in force, or a STOP of an earlier round: pages that follow belong to nothing.
            (id, HintingState::Running) if id != self.published => {
                self.state = HintingState::Asked;
                false
            }
            _ => false,
        }
    }

    /// The driver has reset the device: whatever it hinted is its own again.
    pub(super) fn reset(&mut self) {
        self.published = command::STOP;
        self.state = HintingState::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_goes_from_the_id_over_stop_to_done() {
        let mut hinting = Hinting::new();
        assert_eq!(hinting.published(), command::STOP);
        hinting.start();
        let id = hinting.published();
        assert!(id >= command::FIRST);
        assert_eq!(hinting.state(), HintingState::Asked);
        assert!(!hinting.receive(id));
        assert_eq!(hinting.state(), HintingState::Running);
        assert!(hinting.receive(command::STOP));
        assert_eq!(
            (hinting.published(), hinting.state()),
            (command::DONE, HintingState::Idle)
        );
    }

    #[test]
    fn ids_are_never_reserved_values_and_follow_one_another() {
        let mut hinting = Hinting::new();
        hinting.last_id = u32::MAX - 1;
        let ids: Vec<u32> = (0..3)
            .map(|_| {
                hinting.start();
                hinting.published()
            })
            .collect();
        assert_eq!(ids, [u32::MAX, 2, 3]);
    }

    #[test]
    fn the_stop_of_an_earlier_round_does_not_end_the_new_one() {
        let mut hinting = Hinting::new();
        hinting.start();
        let first = hinting.published();
        hinting.receive(first);
        hinting.start();
        assert!(!hinting.receive(command::STOP));
        assert!(!hinting.receive(first));
        assert_eq!(hinting.state(), HintingState::Asked);
        hinting.receive(hinting.published());
        assert_eq!(hinting.state(), HintingState::Running);
    }

    #[test]
    fn an_id_that_is_not_in_force_makes_pages_meaningless() {
        let mut hinting = Hinting::new();
        hinting.receive(command::DONE);
        hinting.receive(0);
        assert_eq!(hinting.state(), HintingState::Idle);
        hinting.start();
        hinting.receive(hinting.published());
        hinting.receive(77);
        assert_eq!(hinting.state(), HintingState::Asked);
    }

    #[test]
    fn a_reset_ends_the_round_and_its_id() {
        let mut hinting = Hinting::new();
        hinting.start();
        let first = hinting.published();
        hinting.receive(first);
        hinting.reset();
        assert_eq!(
            (hinting.published(), hinting.state()),
            (command::STOP, HintingState::Idle)
        );
        hinting.start();
        assert_ne!(hinting.published(), first);
    }
}
