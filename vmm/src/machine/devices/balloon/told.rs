//! What has been said of the balloon's size, so that readers of the events hear of its way in a few steps: a guest moves
//! pages by the thousand.

/// Nothing smaller is a step, but the last one to the target. Bytes.
const SMALLEST_STEP: u64 = 4 << 20;
/// Steps of a way, at most.
const STEPS: u64 = 8;

/// What was said last. Sizes are bytes.
#[derive(Debug)]
pub(super) struct Told {
    size: Size,
    /// What is worth a word since.
    step: u64,
}

/// The size of a balloon, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// What is wanted in it.
    pub(super) target: u64,
    /// What is in it.
    pub(super) held: u64,
}

impl Told {
    /// A balloon of nothing, of which nothing is wanted.
    pub(super) fn nothing() -> Self {
        Self {
            size: Size { target: 0, held: 0 },
            step: SMALLEST_STEP,
        }
    }

    /// Whether that is worth a word; it is said then.
    pub(super) fn is_news(&mut self, size: Size) -> bool {
        let aims_elsewhere = size.target != self.size.target;
        let arrives = size.held == size.target && self.size.held != size.held;
        let moves = size.held.abs_diff(self.size.held) >= self.step;
        if aims_elsewhere {
            self.step = (size.target.abs_diff(size.held) / STEPS).max(SMALLEST_STEP);
        }
        let is_news = aims_elsewhere || arrives || moves;
        if is_news {
            self.size = size;
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What is said of a balloon that goes from where it is to `target` page by page.
    fn way(told: &mut Told, held: &mut u64, target: u64) -> Vec<Size> {
        let mut said = Vec::new();
        loop {
            let size = Size { target, held: *held };
            said.extend(told.is_news(size).then_some(size));
            if *held == target {
                return said;
            }
            *held = if *held < target {
                *held + 4096
            } else {
                *held - 4096
            };
        }
    }

    #[test]
    fn a_way_is_told_at_its_beginning_at_its_end_and_in_a_few_steps_between() {
        let (mut told, mut held) = (Told::nothing(), 0);
        assert_eq!(way(&mut told, &mut held, 0), []);
        for target in [800 * MIB, 3 * MIB, 4 * MIB + 4096, 0, 64 * MIB] {
            let from = held;
            let said = way(&mut told, &mut held, target);
            assert_eq!(said[0], Size { target, held: from });
            assert_eq!(*said.last().unwrap(), Size { target, held: target });
            assert!(said.len() <= 10, "{said:?}");
            let steps = target.abs_diff(from) / (4 * MIB);
            assert!(said.len() as u64 >= 2 + steps.min(7), "{said:?}");
        }
    }

    #[test]
    fn a_guest_that_takes_pages_back_is_heard_of_although_nobody_asked() {
        let (mut told, mut held) = (Told::nothing(), 0);
        way(&mut told, &mut held, 100 * MIB);
        let mut at = |held| {
            told.is_news(Size {
                target: 100 * MIB,
                held,
            })
        };
        assert!(!at(95 * MIB), "a few pages");
        assert!(at(80 * MIB) && !at(80 * MIB) && at(100 * MIB));
    }

    #[test]
    fn the_same_target_once_more_is_no_news() {
        let mut told = Told::nothing();
        let size = Size {
            target: 8 * MIB,
            held: 0,
        };
        assert!(told.is_news(size));
        assert!(!told.is_news(size));
    }
}
