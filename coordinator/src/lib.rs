//! The one brain: accepts jobs, places attempts, remembers everything.

pub mod access;
mod base;
pub mod cluster;
mod dataset;
pub mod driver;
pub mod history;
mod model;
pub mod record;
pub mod store;
pub mod turn;
