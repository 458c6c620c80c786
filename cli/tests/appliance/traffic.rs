//! Traffic of many kinds, real and made by hand.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use perf::frames::{self, DOT1AD, DOT1Q};
use perf::inject::Injector;
use perf::lab::{Lab, Namespace};
use perf::process::Process;

use crate::site::{PATIENCE, wait_until};

/// A socket address in words.
pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Every kind of frame that this laboratory can bring onto the captured link of its first sensor.
///
/// All of it is sent by one CPU, which is also the one that receives it: where two CPUs work on a
/// flow at once, two taps on one interface see its frames in different orders.
pub fn mixed(lab: &Lab) {
    let work = || {
        let mut one = CpuSet::new();
        one.set(0).unwrap();
        // Processes that this thread starts inherit it.
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        send_mixed(lab);
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic));
}

fn send_mixed(lab: &Lab) {
    bulk(lab, &["-c", "10.99.0.2", "-n", "8M"]);
    bulk(lab, &["-c", "fd99::2", "-n", "4M", "-R"]);
    bulk(lab, &["-c", "10.99.0.2", "-u", "-b", "40M", "-n", "1M"]);
    fragments(lab, "10.99.0.2:7000");
    fragments(lab, "[fd99::2]:7000");
    // Real echo requests and answers, and ARP for those who are not there.
    lab.generator().run("nmap", &["-n", "-sn", "--disable-arp-ping", "-PE", "10.99.0.2"]);
    lab.generator().run("nmap", &["-n", "-sn", "10.99.7.0/30"]);
    let mut injector = Injector::within(lab.generator(), "g0");
    injector.send_all(odd_frames(), Some(2000)).unwrap();
}

fn bulk(lab: &Lab, arguments: &[&str]) {
    let mut server = Command::new("iperf3");
    server.args(["-s", "-1", "--forceflush"]);
    let mut server = lab.sensor().spawn(&server);
    server.wait_for_line("listening", PATIENCE);
    lab.generator().run("iperf3", arguments);
    server.wait(PATIENCE);
}

/// Datagrams longer than the link allows.
fn fragments(lab: &Lab, target: &str) {
    let any = if at(target).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = lab.generator().within(|| UdpSocket::bind(any)).unwrap();
    for size in [9_100, 20_000, 60_000] {
        // An earlier one may have come back as unreachable, which is fine traffic as well.
        let _ = socket.send_to(&vec![7; size], target);
        thread::sleep(Duration::from_millis(5));
    }
}

/// Tags in every combination, short and long frames, fragments, and what is no IP at all.
fn odd_frames() -> Vec<Vec<u8>> {
    let (here, there) = (at("192.0.2.1:4000"), at("192.0.2.2:5000"));
    let datagram = frames::udp(here, there, b"tagged or not");
    let segment = frames::tcp(there, here, frames::ACK, b"x");
    let v6 = frames::udp(at("[fd00::1]:1"), at("[fd00::2]:2"), b"six");
    let (v4_here, v4_there) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    let mut odd = Vec::new();
    for frame in [&datagram, &segment, &v6] {
        for tags in [
            &[][..],
            &[(DOT1Q, 100)],
            &[(DOT1Q, 0x6000)], // priority only: VLAN 0
            &[(DOT1Q, 0)],
            &[(DOT1AD, 10), (DOT1Q, 20)],
            &[(DOT1Q, 1), (DOT1Q, 2)],
            &[(DOT1AD, 1), (DOT1AD, 2), (DOT1Q, 3)],
            &[(0x9100, 7)],
        ] {
            let tagged = frames::tagged(frame, tags);
            odd.push(frames::padded(tagged.clone(), 60));
            odd.push(tagged);
        }
    }
    odd.push(frames::padded(frames::arp_request(v4_here, v4_there), 60));
    odd.push(frames::arp_request(v4_here, v4_there));
    odd.push(frames::icmp(IpAddr::V4(v4_here), IpAddr::V4(v4_there), 8, 0, b"echo"));
    odd.push(frames::port_unreachable(IpAddr::V4(v4_there), &datagram));
    odd.extend(frames::ipv4_fragments(&frames::udp(here, there, &[5; 3000]), 800));
    odd.push(frames::ethernet(0x88cc, &[1; 46]));
    odd.push(frames::ethernet(0x0026, &[0x42; 38])); // IEEE 802.3, spanning tree
    odd.push(frames::ethernet(0x0800, &[0x45, 0])); // cut short
    odd.push(frames::udp(here, there, &[9; 9000 - 28])); // as long as the MTU allows
    odd.push(frames::tagged(&frames::udp(here, there, &[9; 9000 - 28]), &[(DOT1Q, 4095)]));
    odd
}

/// `count` UDP conversations of `frames` datagrams each, every second one an answer, all mixed up.
pub fn conversations(count: u16, frames: u16) -> Vec<Vec<u8>> {
    let conversation = |number: u16, step: u16| {
        let here = SocketAddr::from(([192, 0, 2, 1], 10_000 + number));
        let there = SocketAddr::from(([198, 51, 100, (number % 50) as u8], 53));
        let payload = [number.to_be_bytes(), step.to_be_bytes()].concat();
        if step.is_multiple_of(2) {
            frames::udp(here, there, &payload)
        } else {
            frames::udp(there, here, &payload)
        }
    };
    (0..frames)
        .flat_map(|step| (0..count).map(move |number| (number, step)))
        .map(|(number, step)| conversation(number, step))
        .collect()
}

/// Frames, over and over, onto the link of one sensor. Ends when dropped, also by a failing test.
pub struct Load {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Load {
    /// Sends `frames` in turn, `rate` in a second.
    pub fn start(lab: &Lab, sensor: usize, frames: Vec<Vec<u8>>, rate: u64) -> Self {
        let count = frames.len();
        Self::made(lab, sensor, 0, rate, move |number| frames[number as usize % count].clone())
    }

    /// Sends the frames that `make` makes of the numbers from `first` on, `rate` in a second.
    pub fn made(
        lab: &Lab,
        sensor: usize,
        first: u64,
        rate: u64,
        make: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let link = &lab.links()[sensor];
        let mut injector = Injector::within(lab.generator(), &link.generator_interface);
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let send = move || {
            let until_told = (first..).take_while(|_| !told.load(Ordering::Relaxed)).map(make);
            injector.send_all(until_told, Some(rate)).unwrap().frames
        };
        Self { is_over, thread: Some(thread::spawn(send)) }
    }

    /// Ends it, and says how many frames were sent.
    pub fn stop(mut self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // One that was stopped is gone; one that failed has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// tcpdump beside the sensor.
pub struct Tcpdump {
    process: Process,
    path: std::path::PathBuf,
}

impl Tcpdump {
    /// Starts it on an interface, and waits until it captures.
    pub fn start(namespace: &Namespace, interface: &str, path: &str) -> Self {
        let mut command = Command::new("tcpdump");
        command.args(["-i", interface, "--immediate-mode", "-U", "-n", "-Z", "root"]);
        command.args(["-s", "262144", "-B", "65536", "--time-stamp-precision=nano", "-w", path]);
        let mut process = namespace.spawn(&command);
        process.wait_for_line("listening on", PATIENCE);
        Self { process, path: path.into() }
    }

    /// Waits until a frame with this payload was written, and ends it.
    pub fn stop_behind(mut self, payload: &[u8]) -> Vec<crate::captures::Captured> {
        let is_written = || {
            let bytes = std::fs::read(&self.path).unwrap();
            bytes.windows(payload.len()).any(|window| window == payload)
        };
        wait_until("marker in tcpdump's file", PATIENCE, is_written, || self.process.describe());
        self.process.stop(nix::sys::signal::Signal::SIGINT, PATIENCE);
        let said = self.process.stderr();
        assert!(said.contains("\n0 packets dropped by kernel"), "{said}");
        crate::captures::read_pcap(&self.path)
    }
}

/// A frame that is found again by its payload: brackets what is compared.
pub fn marker(payload: &[u8]) -> Vec<u8> {
    frames::udp(at("192.0.2.250:9"), at("192.0.2.251:9"), payload)
}

/// A TCP connection from the generator to a sensor with a request and an answer.
pub fn connection(lab: &Lab, sensor: usize, port: u16) {
    let link = &lab.links()[sensor];
    let listener = link.sensor.within(|| TcpListener::bind((link.address, port))).unwrap();
    let mut client = lab.generator().within(|| TcpStream::connect((link.address, port))).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"question").unwrap();
    server.read_exact(&mut [0; 8]).unwrap();
    server.write_all(b"answer").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
}
