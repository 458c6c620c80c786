//! Hosts on one machine: network namespaces joined by veth pairs.
//!
//! ```text
//!   generator                          sensor 0
//!     g0  10.99.0.1/16  fd99::1/64  ──   s0  10.99.0.2/16  fd99::2/64
//!     g1  10.100.0.1/16             ──   s0  10.100.0.2/16              sensor 1, and so on
//! ```
//!
//! Routed from the generator to sensor 0: 10.98.0.0/24, where it answers on every address (closed ports
//! refuse), and 10.98.1.0/24, which it swallows. An address on the link that nobody owns gives ARP
//! requests only.

use std::fmt::Debug;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::panic;
use std::path::Path;
use std::process::{self, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::process::Process;
use crate::tools;

/// All namespaces are called `PREFIX-PROCESS-LAB-ROLE`.
const PREFIX: &str = "ringwatch";

static LABS: AtomicU32 = AtomicU32::new(0);

/// A generator and its sensors. Dropping it removes the namespaces with everything in them.
#[derive(Debug)]
pub struct Lab {
    name: String,
    generator: Namespace,
    links: Vec<Link>,
}

impl Lab {
    /// A generator with one sensor. `None`, and a line that says so, where the test lacks the rights
    /// or the tools for it.
    ///
    /// # Panics
    /// If a command fails, or rights or tools are missing where they are required (see [`tools`]).
    #[must_use]
    pub fn new() -> Option<Self> {
        if !tools::require_root() || !tools::require(&["ip"]) {
            return None;
        }
        remove_leftovers();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}", process::id());
        let generator = Namespace::create(format!("{name}-generator"));
        let mut lab = Self { name, generator, links: Vec::new() };
        lab.add_sensor();
        lab.generator.ip("route add 10.98.0.0/23 via 10.99.0.2");
        lab.sensor().ip("route add local 10.98.0.0/24 dev lo");
        Some(lab)
    }

    /// Adds a sensor with a link of its own to the generator, and returns the link.
    ///
    /// # Panics
    /// If a command fails, or there are 100 already.
    pub fn add_sensor(&mut self) -> &Link {
        let number = u8::try_from(self.links.len()).unwrap_or(u8::MAX);
        assert!(number < 100, "a lab has at most 100 sensors");
        let sensor = Namespace::create(format!("{}-sensor{number}", self.name));
        let link = Link {
            generator_interface: format!("g{number}"),
            interface: "s0".to_owned(),
            generator_address: Ipv4Addr::new(10, 99 + number, 0, 1),
            address: Ipv4Addr::new(10, 99 + number, 0, 2),
            sensor,
        };
        let Link { generator_interface: far, interface: near, sensor, .. } = &link;
        self.generator
            .ip(&format!("link add {far} type veth peer name {near} netns {}", sensor.name));
        let sides =
            [(&self.generator, far, link.generator_address, 1), (sensor, near, link.address, 2)];
        for (namespace, interface, address, host) in sides {
            // Without this, the address cannot be used for the first second.
            namespace.set_kernel_parameter(&format!("net/ipv6/conf/{interface}/accept_dad"), "0");
            namespace.ip(&format!("link set {interface} up"));
            namespace.ip(&format!("addr add {address}/16 dev {interface}"));
            let prefix = 0x99 + u16::from(number);
            namespace.ip(&format!("-6 addr add fd{prefix:x}::{host}/64 dev {interface} nodad"));
        }
        sensor.set_kernel_parameter("net/ipv4/ip_forward", "0");
        self.links.push(link);
        &self.links[self.links.len() - 1]
    }

    /// Takes everything from the first link that sends by itself: addresses, IPv6, ARP. What arrives
    /// there from now on was put there on purpose.
    ///
    /// # Panics
    /// If a command fails.
    pub fn silence(&self) {
        let Link { generator_interface, interface, sensor, .. } = &self.links[0];
        for (namespace, name) in [(&self.generator, generator_interface), (sensor, interface)] {
            namespace.set_kernel_parameter(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1");
            namespace.ip(&format!("addr flush dev {name}"));
            namespace.ip(&format!("link set {name} arp off"));
        }
    }

    /// Where the traffic comes from.
    #[must_use]
    pub fn generator(&self) -> &Namespace {
        &self.generator
    }

    /// The namespace of the first sensor; its interface is `s0`, 10.99.0.2.
    #[must_use]
    pub fn sensor(&self) -> &Namespace {
        &self.links[0].sensor
    }

    /// The links to all sensors, in the order in which they were added.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }
}

/// A sensor's namespace and the veth pair that joins it to the generator.
#[derive(Debug)]
pub struct Link {
    /// The sensor's side.
    pub sensor: Namespace,
    /// Name of the interface in the sensor's namespace.
    pub interface: String,
    /// The sensor's address.
    pub address: Ipv4Addr,
    /// Name of the interface in the generator's namespace.
    pub generator_interface: String,
    /// The generator's address on this link.
    pub generator_address: Ipv4Addr,
}

/// A network namespace; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn create(name: String) -> Self {
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Name, as `ip netns` takes it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same command, to be run inside. Its process id is that of the program itself. Keeps program,
    /// arguments, variables and working folder; input and output are to be set afterwards.
    #[must_use]
    pub fn wrap(&self, command: &Command) -> Command {
        let mut inside = self.command(&command.get_program().to_string_lossy());
        inside.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        inside
    }

    /// A command for `program` to be run inside.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a program inside to its end.
    ///
    /// # Panics
    /// If it fails; shows its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        run(self.command(program).args(arguments))
    }

    /// Starts a command inside; the guard kills it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(&self, command: &Command) -> Process {
        Process::spawn(self.wrap(command))
    }

    /// Runs `ip` inside, with arguments separated by spaces.
    ///
    /// # Panics
    /// If it fails; shows its output.
    pub fn ip(&self, arguments: &str) -> Output {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Calls `work` on a thread that is inside. What it opens there stays there: sockets can be
    /// returned and used anywhere.
    ///
    /// # Panics
    /// If the namespace cannot be entered, or `work` panics.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let caller = thread::current().name().unwrap_or("test").to_owned();
        let enter = || {
            let path = Path::new("/run/netns").join(&self.name);
            let file =
                File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            if let Err(error) = setns(file, CloneFlags::CLONE_NEWNET) {
                panic!("cannot enter {}: {error}", self.name);
            }
            work()
        };
        let result = thread::scope(|scope| {
            let thread = thread::Builder::new().name(caller).spawn_scoped(scope, enter);
            thread.unwrap_or_else(|error| panic!("cannot start a thread: {error}")).join()
        });
        result.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Sets a parameter below `/proc/sys`.
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn set_kernel_parameter(&self, path: &str, value: &str) {
        let path = Path::new("/proc/sys").join(path);
        // /proc/sys/net shows the namespace of the thread that opens it.
        let written = self.within(|| fs::write(&path, value));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for Namespace {
    /// Deletes the namespace. Never panics: it may run while a test unwinds.
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "delete", &self.name]).status();
        if !deleted.as_ref().is_ok_and(|status| status.success()) {
            eprintln!("cannot delete namespace {}: {deleted:?}", self.name);
        }
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

/// Removes namespaces of test processes that were killed before they could.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut words = name.split('-');
        let owner = (words.next() == Some(PREFIX)).then(|| words.next()).flatten();
        let is_alive = |owner: &str| Path::new("/proc").join(owner).exists();
        if owner.is_some_and(|owner| owner.parse::<u32>().is_ok() && !is_alive(owner)) {
            // Another test may be doing the same.
            let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn sensors_answer_the_generator() {
        let Some(mut lab) = Lab::new() else { return };
        lab.add_sensor();
        for link in lab.links() {
            let listener =
                link.sensor.within(|| std::net::TcpListener::bind(("0.0.0.0", 7)).unwrap());
            let connected =
                lab.generator().within(|| std::net::TcpStream::connect((link.address, 7)));
            assert!(connected.is_ok(), "{connected:?}");
            drop(listener);
        }
        let refused = lab.generator().within(|| std::net::TcpStream::connect(("10.98.0.77", 9)));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        let refused = lab.generator().within(|| std::net::TcpStream::connect(("fd99::2", 9)));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_panic_leaves_no_namespace() {
        let mut names = Vec::new();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let Some(lab) = Lab::new() else { return };
            names.push(lab.generator().name().to_owned());
            names.push(lab.sensor().name().to_owned());
            lab.sensor().within(|| panic!("on purpose"));
        }));
        assert!(result.is_err() || names.is_empty());
        for name in names {
            assert!(!Path::new("/run/netns").join(&name).exists(), "{name}");
        }
    }

    #[test]
    fn commands_run_inside() {
        let Some(lab) = Lab::new() else { return };
        let output = lab.sensor().run("ip", &["-br", "addr"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("10.99.0.2/16") && text.contains("fd99::2/64"), "{text}");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $MARK; ip -br link"]).env("MARK", "carried");
        let mut child = lab.generator().spawn(&command);
        assert!(child.wait(std::time::Duration::from_secs(5)).success());
        assert!(child.stdout().contains("carried\n") && child.stdout().contains("g0"));
    }
}
