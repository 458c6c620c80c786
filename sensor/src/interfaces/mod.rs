//! Which interfaces are captured, what they are called, and which frame passed which.
//!
//! ```text
//!   patterns    names and globs of the configuration, and what is excluded
//!   names       ids of interfaces: in every frame, flow and event, and on the wire
//!   places      the id by the kernel's index, for rings on all interfaces; read by workers
//!   lookout     looks at the system's interfaces and keeps names and places up to date
//! ```
//!
//! Interfaces that are named have a ring each, and their place in the list is their id. One glob among
//! the names makes it one ring for each worker, on all interfaces of the network namespace: the kernel
//! filter rejects those that are not wanted, and the index in each frame tells the others apart. Frames
//! count under the patterns as they were written, whatever their interface:
//!
//! ```text
//!   wanted                        analysed under the id of its name
//!   not looked at yet, or beyond  analysed under the id of the patterns
//!   the limit of names
//!   not wanted                    counted as not_wanted: the filter did not know it yet, or has no room
//! ```

mod lookout;
mod names;
mod patterns;
mod places;

pub use lookout::Lookout;
pub use names::{InterfaceNames, Listed};
pub use patterns::{PatternError, Patterns};
pub use places::{Finder, PlaceMap, Places};
