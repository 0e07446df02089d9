//! A report as a picture: an SVG page with a row for each case, the two sides of it, and their ratio.
//!
//! ```text
//!   case          value: min ─●── p99, on an axis of its unit       p50s        ratio, with its target
//! ```

pub mod curve;
mod page;
mod scale;
mod target;

pub use self::page::{PlotError, draw};
