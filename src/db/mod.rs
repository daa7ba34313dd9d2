//! Databases.
#![allow(dead_code, reason = "read by the handle that stands on it")]

mod config;
mod pooler;
mod preset;
mod timeouts;

pub use self::{config::Config, pooler::PoolerMode, preset::Preset, timeouts::Driver};
