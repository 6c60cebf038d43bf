//! Tests over several layers: each against a plain model, with `validate()` after every step.

pub(crate) mod inject;
pub(crate) mod phys_model;
mod space_model;
