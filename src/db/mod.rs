//! Databases.

#[cfg(feature = "postgres")]
mod diagnose;
#[allow(dead_code)]
mod lease;
#[allow(dead_code)]
mod meter;
#[allow(dead_code)]
mod stats;
#[allow(dead_code)]
mod usage;

#[cfg(feature = "postgres")]
pub use diagnose::{Blocked, Diagnosis, Session, diagnose, terminate_idle};
pub use stats::{Health, Level, Reason, Stats};

pub use crate::event::{Activity, LeaseReport};
