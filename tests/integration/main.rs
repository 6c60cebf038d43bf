//! One binary for every test of the running whole.
