//! Allocation failure at a chosen request.

/// Lets a number of requests through, then refuses one.
#[derive(Debug, Default)]
pub(crate) struct Injected {
    pass: Option<u32>,
}

impl Injected {
    /// The request after `pass` further ones fails.
    pub(crate) fn fail_after(&mut self, pass: u32) {
        self.pass = Some(pass);
    }

    /// No request fails on purpose any more; returns whether one still would have.
    pub(crate) fn clear(&mut self) -> bool {
        self.pass.take().is_some()
    }

    pub(crate) fn fails(&mut self) -> bool {
        match &mut self.pass {
            None => false,
            Some(0) => {
                self.pass = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }
}
