//! A driver and a guest memory for tests.
