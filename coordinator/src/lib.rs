//! The one brain: accepts jobs, places attempts, remembers everything.

pub mod blob;
pub mod config;
pub mod series;
