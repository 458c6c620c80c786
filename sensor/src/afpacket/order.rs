//! The order in which packet sockets were made.
//!
//! A fanout group by CPU or queue deals to its members by their place in the group. They take their
//! places as they join; but when the link comes up again, the kernel links them anew in the order in
//! which their sockets were made, and when one leaves, the last takes its place. So the sockets of such
//! a group must be made in the order in which they join, and a ring that is made anew later breaks it.

use std::fs;
use std::io;

/// The order in which the sockets of these inode numbers ([`Ring::inode`](super::Ring::inode)) were
/// made: indexes into `inodes`. That is the order in which the members of a fanout group stand after
/// their link was down. A group by CPU or queue is in order if the result is `0, 1, 2, ...`; a socket
/// that is not of the calling thread's network namespace is missing in it.
///
/// # Errors
/// `/proc/thread-self/net/packet` cannot be read.
///
/// Source: Linux `net/packet/af_packet.c`, whose list of sockets this file shows.
pub fn creation_order(inodes: &[u64]) -> io::Result<Vec<usize>> {
    // The file of the thread: that of the process shows the namespace of its first thread.
    let table = fs::read_to_string("/proc/thread-self/net/packet")?;
    Ok(order_in(&table, inodes))
}

fn order_in(table: &str, inodes: &[u64]) -> Vec<usize> {
    // The first line has the names of the columns; the inode is the last of them.
    let listed = table.lines().skip(1).filter_map(|line| {
        line.split_whitespace().next_back().and_then(|inode| inode.parse::<u64>().ok())
    });
    listed.filter_map(|inode| inodes.iter().position(|one| *one == inode)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_the_table() {
        let table = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                     ffff000000000000 3      3    0003   2     1 0      0      11\n\
                     ffff000000000000 3      3    0003   2     1 0      0      99\n\
                     ffff000000000000 3      3    0003   2     1 0      0      12\n\
                     nonsense\n";
        assert_eq!(order_in(table, &[11, 12]), [0, 1]);
        assert_eq!(order_in(table, &[12, 11]), [1, 0]);
        assert_eq!(order_in(table, &[7, 12]), [1]);
        assert_eq!(order_in("", &[7]), [0_usize; 0]);
    }
}
