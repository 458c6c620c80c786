//! The network lab that Ringwatch's tests run in, and the load generator.
//!
//! ```text
//!   lab       network namespaces joined by veth pairs; gone when dropped, also after a panic
//!   process   a child with its output in files; killed when dropped
//!   programs  Ringwatch's own programs, out of the target folder of the running test
//!   sensor    a sensor that captures in a namespace
//!   events    what a sensor said, read back
//!   corpus    captures with known content, where somebody has them
//!   tools     Debian programs that a test needs: skipped and said, or a failure in CI
//!   frames    Ethernet frames with correct checksums
//!   tunnels   frames in tunnels, behind MPLS labels and PPPoE headers
//!   inject    frames onto an interface
//!   pcap      small capture files, in every byte order and resolution
//! ```
//!
//! Except for [`inject`] and [`pcap`], which the load generator uses too, functions here panic with
//! a message that says what to do: they are called by tests.

pub mod corpus;
pub mod events;
pub mod frames;
pub mod inject;
pub mod lab;
pub mod pcap;
pub mod process;
pub mod programs;
pub mod sensor;
pub mod tool_table;
pub mod tools;
pub mod tunnels;
