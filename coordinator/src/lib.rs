//! The one brain: accepts jobs, places attempts, remembers everything.

pub mod access;
mod base;
pub mod blob;
pub mod cluster;
pub mod config;
mod dataset;
pub mod driver;
pub mod history;
pub mod inspector;
pub mod link;
mod model;
pub mod record;
pub mod series;
pub mod store;
pub mod turn;
