//! What runs on a machine that trains.
#![expect(dead_code, reason = "x")]
#![allow(unused)]
pub mod config;
mod disk;
mod gpu;
mod host;
mod cache;
mod link;
mod places;
mod records;
mod prepare;
mod upload;
mod supervisor;
mod outbox;
