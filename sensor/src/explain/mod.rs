//! `ringwatch-sensor explain`: what the detector knows of a source, for a person or for machines.
//!
//! ```text
//!   --read FILE   replay with a watch on the source ─┐
//!   --api ADDRESS GET /v1/explain?source=… ──────────┴─▶ Explanation ─▶ render ─▶ text or JSON
//! ```
//!
//! A running sensor renders on its side; the program prints what it gets.

mod ask;
mod render;

pub use ask::{AskError, ask};
pub use render::{json, text};
