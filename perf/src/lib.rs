//! The network lab that Ringwatch's tests run in, the load generator, and the bench.
//!
//! ```text
//!   lab       network namespaces joined by veth pairs; gone when dropped, also after a panic
//!   process   a child with its output in files; killed when dropped
//!   programs  Ringwatch's own programs, out of the target folder of the running test
//!   sensor    a sensor that captures in a namespace
//!   fleet     a collector and many simulated sensors
//!   events    what a sensor said, read back
//!   corpus    captures with known content, where somebody has them
//!   tools     Debian programs that a test needs: skipped and said, or a failure in CI
//!   frames    Ethernet frames with correct checksums
//!   tunnels   frames in tunnels, behind MPLS labels and PPPoE headers
//!   flood     which frames a load consists of
//!   blast     frames as if an interface had received them, made by the kernel
//!   bpf       the system call behind that; the only unsafe code here
//!   inject    frames out of an interface, through a raw socket
//!   pcap      capture files, in every byte order and resolution
//!   bench     Ringwatch beside its peers, in one run
//! ```
//!
//! Except for those from [`flood`] to [`pcap`], which are the load generator, functions here panic with
//! a message that says what to do: they are called by tests and by the bench.

pub mod bench;
pub mod blast;
pub mod bpf;
pub mod corpus;
pub mod events;
pub mod fleet;
pub mod flood;
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
