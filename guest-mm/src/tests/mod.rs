//! Tests over several layers: each against a plain model, with `validate()` after every step.

pub(crate) mod inject;
mod phys_model;
