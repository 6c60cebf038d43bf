//! Allocation failure at a chosen request.

/// What happens to the requests after the one that was refused on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Serve,
    Refuse,
}

/// Lets a number of requests through, then refuses.
#[derive(Debug, Default)]
pub(crate) enum Injected {
    #[default]
    Nothing,
    Armed(u32, Then),
    Refusing,
    Done,
}

impl Injected {
    /// The request after `pass` further ones fails.
    pub(crate) fn fail_after(&mut self, pass: u32, then: Then) {
        *self = Self::Armed(pass, then);
    }

    /// No request fails on purpose any more; returns whether none did.
    pub(crate) fn clear(&mut self) -> bool {
        matches!(core::mem::take(self), Self::Armed(..))
    }

    pub(crate) fn fails(&mut self) -> bool {
        match *self {
            Self::Nothing | Self::Done => return false,
            Self::Refusing => {}
            Self::Armed(0, Then::Serve) => *self = Self::Done,
            Self::Armed(0, Then::Refuse) => *self = Self::Refusing,
            Self::Armed(left, then) => {
                *self = Self::Armed(left - 1, then);
                return false;
            }
        }
        true
    }
}
