//! Databases.

#[allow(dead_code)]
mod lease;
#[allow(dead_code)]
mod meter;
#[allow(dead_code)]
mod stats;
#[allow(dead_code)]
mod usage;

pub use stats::{Health, Level, Reason, Stats};

pub use crate::event::{Activity, LeaseReport};
