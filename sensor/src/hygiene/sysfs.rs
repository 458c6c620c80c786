//! What files below `/sys` and `/proc` say about an interface.
//!
//! Source: Linux `Documentation/ABI/testing/sysfs-class-net`, `Documentation/core-api/irq/irq-affinity.rst`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::facts::Known;

/// The namespace in which all processes are seen: `PROC_PID_INIT_INO` in `include/linux/proc_ns.h`.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// What the interface says of its link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub(super) is_loopback: bool,
    /// Switched on by the administrator.
    pub(super) is_up: bool,
    /// Something answers at the other end.
    pub(super) has_carrier: bool,
    /// Megabits per second, where the driver knows them.
    pub(super) speed_mbit: Option<u64>,
    /// `full` or `half`, where the driver knows.
    pub(super) duplex: Option<String>,
    /// Bytes.
    pub(super) mtu: u64,
    /// Frames that the device dropped because of their length.
    pub(super) length_errors: u64,
    /// Somebody asked for all frames already.
    pub(super) is_promiscuous: bool,
}

/// An interrupt of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupt {
    pub(super) number: u32,
    /// CPUs that may get it.
    pub(super) cpus: Vec<usize>,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub(super) number: u32,
    pub(super) cpus: Vec<usize>,
}

/// The files about one interface.
pub(super) struct Tree {
    root: PathBuf,
    interface: String,
}

impl Tree {
    pub(super) fn new(root: &Path, interface: &str) -> Self {
        Self { root: root.to_owned(), interface: interface.to_owned() }
    }

    fn net(&self, file: &str) -> PathBuf {
        self.root.join("sys/class/net").join(&self.interface).join(file)
    }

    /// `/sys` shows the network namespace in which it was mounted, which need not be that of this
    /// process; then another interface may bear the name. Its index gives it away, but for chance.
    pub(super) fn shows_index(&self, index: u32) -> Known<()> {
        let shown = number(&self.net("ifindex"))?;
        if shown == u64::from(index) {
            return Ok(());
        }
        Err("/sys shows another network namespace than that of this process".into())
    }

    pub(super) fn link(&self) -> Known<Link> {
        const IFF_UP: u64 = libc::IFF_UP as u64;
        const IFF_PROMISC: u64 = libc::IFF_PROMISC as u64;
        let flags = line(&self.net("flags"))?;
        let flags = u64::from_str_radix(flags.trim_start_matches("0x"), 16)
            .map_err(|_| format!("flags are {flags:?}"))?;
        // Speed and duplex cannot be read while the link is down.
        let speed = line(&self.net("speed")).ok().and_then(|text| text.parse().ok());
        let duplex = line(&self.net("duplex")).ok().filter(|text| text != "unknown");
        Ok(Link {
            is_loopback: line(&self.net("type"))? == libc::ARPHRD_LOOPBACK.to_string(),
            is_up: flags & IFF_UP != 0,
            has_carrier: line(&self.net("carrier")).is_ok_and(|text| text == "1"),
            speed_mbit: speed.filter(|mbit| *mbit > 0 && *mbit < u64::from(u32::MAX)),
            duplex,
            mtu: number(&self.net("mtu"))?,
            length_errors: number(&self.net("statistics/rx_length_errors"))?,
            is_promiscuous: flags & IFF_PROMISC != 0,
        })
    }

    pub(super) fn has_device(&self) -> bool {
        self.net("device").exists()
    }

    pub(super) fn rx_queues(&self) -> Known<usize> {
        let path = self.net("queues");
        let names = names(&path)?;
        Ok(names.iter().filter(|name| name.starts_with("rx-")).count())
    }

    /// Interrupts of the receive queues: those of the device, less the ones whose name says that they
    /// are for something else.
    pub(super) fn interrupts(&self) -> Known<Vec<Interrupt>> {
        let table = fs::read_to_string(self.root.join("proc/interrupts"))
            .map_err(|error| format!("/proc/interrupts: {error}"))?;
        let device = fs::canonicalize(self.net("device")).unwrap_or_default();
        let short = device.file_name().map(|name| name.to_string_lossy().into_owned());
        // A virtio device's interrupts are its parent's.
        let folders = [Some(device.as_path()), device.parent()];
        let of_device: BTreeSet<String> = folders
            .into_iter()
            .flatten()
            .filter_map(|folder| names(&folder.join("msi_irqs")).ok())
            .flatten()
            .collect();
        let mut found = Vec::new();
        for row in table.lines() {
            let Some((number, rest)) = row.split_once(':') else { continue };
            let (number, name) = (number.trim(), rest.split_whitespace().last().unwrap_or(""));
            let is_named = [Some(self.interface.as_str()), short.as_deref()]
                .into_iter()
                .flatten()
                .any(|owner| is_of(name, owner));
            if !(is_named || of_device.contains(number)) || !is_for_receiving(name) {
                continue;
            }
            let Ok(number) = number.parse() else { continue };
            let folder = self.root.join(format!("proc/irq/{number}"));
            let cpus = cpu_list(&folder.join("effective_affinity_list"))
                .filter(|cpus| !cpus.is_empty())
                .or_else(|| cpu_list(&folder.join("smp_affinity_list")))
                .ok_or_else(|| format!("the CPUs of interrupt {number} cannot be read"))?;
            found.push(Interrupt { number, cpus });
        }
        Ok(found)
    }

    /// Whether a process `irqbalance` is there. Not known to who does not see all processes.
    pub(super) fn runs_irqbalance(&self) -> Known<bool> {
        let proc = self.root.join("proc");
        let is_irqbalance = |id: &str| {
            id.bytes().all(|byte| byte.is_ascii_digit())
                && line(&proc.join(id).join("comm")).is_ok_and(|name| name == "irqbalance")
        };
        if names(&proc)?.iter().any(|id| is_irqbalance(id)) {
            return Ok(true);
        }
        let namespace = fs::read_link(proc.join("self/ns/pid")).unwrap_or_default();
        if namespace.as_os_str() != FIRST_PID_NAMESPACE || !proc.join("1/comm").exists() {
            return Err("this process does not see all processes of the host".into());
        }
        Ok(false)
    }

    pub(super) fn node(&self) -> Option<Node> {
        let text = ["device/numa_node", "device/../numa_node"]
            .into_iter()
            .find_map(|file| line(&self.net(file)).ok())?;
        // -1 where the machine has no nodes.
        let number: u32 = text.parse().ok()?;
        let folder = self.root.join(format!("sys/devices/system/node/node{number}"));
        Some(Node { number, cpus: cpu_list(&folder.join("cpulist"))? })
    }
}

/// Whether an interrupt of this name belongs to `owner`: `eth1` has `eth1-rx-0` and not `eth10`.
fn is_of(name: &str, owner: &str) -> bool {
    let mut places = name.match_indices(owner);
    places.any(|(at, _)| {
        let behind = name[at + owner.len()..].chars().next();
        !name[..at].ends_with(char::is_alphanumeric) && !behind.is_some_and(char::is_alphanumeric)
    })
}

fn is_for_receiving(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let both = name.contains("txrx") || name.contains("tx-rx");
    let others = ["config", "output", "tx", "async", "control", "ctrl", "mgmnt"];
    both || !others.iter().any(|other| name.contains(other))
}

fn line(path: &Path) -> Known<String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn number(path: &Path) -> Known<u64> {
    let text = line(path)?;
    text.parse().map_err(|_| format!("{} says {text:?}", path.display()))
}

fn names(folder: &Path) -> Known<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// A list of CPUs such as `0-3,8`.
fn cpu_list(path: &Path) -> Option<Vec<usize>> {
    /// More CPUs than any machine has.
    const MOST: usize = 1 << 16;
    let text = line(path).ok()?;
    let mut cpus = Vec::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to) = (from.parse::<usize>().ok()?, to.parse::<usize>().ok()?);
        if to >= MOST {
            return None;
        }
        cpus.extend(from..=to);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A tree with these files.
    fn tree(interface: &str, files: &[(&str, &str)]) -> (TempDir, Tree) {
        let folder = TempDir::new().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let tree = Tree::new(folder.path(), interface);
        (folder, tree)
    }

    const INTERRUPTS: &str = "           CPU0       CPU1
 28:          0          0 PCI-MSIX-0000:00:01.0   0-edge      eth1-config
 29:          0          0 PCI-MSIX-0000:00:01.0   1-edge      eth1-TxRx-0
 30:          0          0 PCI-MSIX-0000:00:01.0   2-edge      eth1-TxRx-1
 31:          0          0 PCI-MSIX-0000:00:02.0   2-edge      eth10-TxRx-1
 32:          0          0 PCI-MSIX-0000:00:02.0   2-edge      eth1-tx-0
 33:          0          0 PCI-MSIX-0000:00:01.0   2-edge      driver-queue-7
NMI:          0          0   Non-maskable interrupts
";

    #[test]
    fn interrupts_are_found_by_name_and_by_device_and_only_those_that_receive() {
        let (_folder, tree) = tree(
            "eth1",
            &[
                ("proc/interrupts", INTERRUPTS),
                ("proc/irq/29/smp_affinity_list", "0-1\n"),
                ("proc/irq/29/effective_affinity_list", "1\n"),
                ("proc/irq/30/smp_affinity_list", "0,2-3\n"),
                ("proc/irq/33/smp_affinity_list", "0\n"),
                ("sys/class/net/eth1/device/msi_irqs/28", "msix\n"),
                ("sys/class/net/eth1/device/msi_irqs/33", "msix\n"),
            ],
        );
        let found = tree.interrupts().unwrap();
        let found: Vec<_> = found.into_iter().map(|one| (one.number, one.cpus)).collect();
        assert_eq!(found, [(29, vec![1]), (30, vec![0, 2, 3]), (33, vec![0])]);
    }

    #[test]
    fn the_link_is_read_also_where_speed_and_carrier_are_not_to_be_had() {
        let files = [
            ("sys/class/net/eth1/flags", "0x1103\n"),
            ("sys/class/net/eth1/type", "1\n"),
            ("sys/class/net/eth1/mtu", "1500\n"),
            ("sys/class/net/eth1/speed", "-1\n"),
            ("sys/class/net/eth1/duplex", "unknown\n"),
            ("sys/class/net/eth1/statistics/rx_length_errors", "7\n"),
        ];
        let (_folder, tree) = tree("eth1", &files);
        let expected = Link {
            is_up: true,
            is_promiscuous: true,
            mtu: 1500,
            length_errors: 7,
            ..Link::default()
        };
        assert_eq!(tree.link(), Ok(expected));
        assert!(!tree.has_device());
    }

    #[test]
    fn a_missing_file_is_named() {
        let (_folder, tree) = tree("eth1", &[("sys/class/net/eth1/flags", "0x1003")]);
        let said = tree.link().unwrap_err();
        assert!(said.contains("sys/class/net/eth1/type"), "{said}");
    }

    #[test]
    fn files_of_another_network_namespace_are_not_taken_for_ours() {
        let (_folder, tree) = tree("eth1", &[("sys/class/net/eth1/ifindex", "7\n")]);
        assert_eq!(tree.shows_index(7), Ok(()));
        assert!(tree.shows_index(8).unwrap_err().contains("another network namespace"));
    }

    #[test]
    fn the_node_is_that_of_the_device() {
        let with = |number| {
            let (_folder, tree) = tree(
                "eth1",
                &[
                    ("sys/class/net/eth1/device/numa_node", number),
                    ("sys/devices/system/node/node1/cpulist", "4-5,9\n"),
                ],
            );
            tree.node()
        };
        assert_eq!(with("1\n"), Some(Node { number: 1, cpus: vec![4, 5, 9] }));
        assert_eq!(with("-1\n"), None);
    }

    #[test]
    fn irqbalance_is_found_among_the_processes() {
        let (_folder, with) =
            tree("lo", &[("proc/1/comm", "init\n"), ("proc/77/comm", "irqbalance\n")]);
        assert_eq!(with.runs_irqbalance(), Ok(true));
        let (folder, without) = tree("lo", &[("proc/1/comm", "init\n"), ("proc/self/ns/net", "")]);
        assert!(without.runs_irqbalance().unwrap_err().contains("does not see all"));
        let link = folder.path().join("proc/self/ns/pid");
        std::os::unix::fs::symlink(FIRST_PID_NAMESPACE, &link).unwrap();
        assert_eq!(without.runs_irqbalance(), Ok(false));
        fs::remove_file(folder.path().join("proc/1/comm")).unwrap();
        assert!(without.runs_irqbalance().is_err(), "other users' processes are hidden");
    }

    #[test]
    fn lists_of_cpus_that_are_none_are_refused() {
        for text in ["x", "1-", "0-99999999999", "0-4000000"] {
            let (folder, _tree) = tree("lo", &[("list", text)]);
            assert_eq!(cpu_list(&folder.path().join("list")), None, "{text}");
        }
    }
}
