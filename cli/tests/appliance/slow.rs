//! A collector that reads far less than there is to export.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use perf::lab::Lab;
use perf::{frames, tools};
use socket2::{Domain, Socket, Type};

use crate::site::{PATIENCE, Settings, Site, wait_until};
use crate::traffic::Load;

/// Where the slow way to the collector begins, and where it leads.
const ENTRANCE: &str = "10.150.0.1:4751";
const EXIT: &str = "10.150.0.1:4750";
/// Bytes a second that it lets through to the collector.
const RATE: u64 = 1_000_000;
/// Frames a second, ten times and more as many bytes.
const FRAMES: u64 = 12_000;

/// A way to the collector that is slow until [`SlowWay::open`]. Ends when dropped.
struct SlowWay {
    is_slow: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SlowWay {
    fn new(lab: &Lab) -> Self {
        // Sockets stay in the namespace in which they were made.
        let make = || (TcpListener::bind(ENTRANCE), Socket::new(Domain::IPV4, Type::STREAM, None));
        let (listener, onward) = lab.generator().within(make);
        let (listener, onward) = (listener.unwrap(), onward.unwrap());
        listener.set_nonblocking(true).unwrap();
        let (is_slow, is_over) =
            (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (slow, over) = (Arc::clone(&is_slow), Arc::clone(&is_over));
        let thread = Some(thread::spawn(move || pass(&listener, onward, &slow, &over)));
        Self { is_slow, is_over, thread }
    }

    fn open(&self) {
        self.is_slow.store(false, Ordering::Relaxed);
    }
}

impl Drop for SlowWay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Passes on what the first caller sends, slowly, and at once what comes back.
fn pass(listener: &TcpListener, onward: Socket, is_slow: &AtomicBool, is_over: &AtomicBool) {
    let mut sensor = loop {
        match listener.accept() {
            Ok((sensor, _)) => break sensor,
            Err(_) if is_over.load(Ordering::Relaxed) => return,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        thread::sleep(Duration::from_millis(10));
    };
    sensor.set_nonblocking(false).unwrap();
    onward.connect(&EXIT.parse::<SocketAddr>().unwrap().into()).unwrap();
    let mut collector = TcpStream::from(onward);
    let (mut to_sensor, mut from_collector) =
        (sensor.try_clone().unwrap(), collector.try_clone().unwrap());
    let back = thread::spawn(move || io::copy(&mut from_collector, &mut to_sensor));
    sensor.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut buffer = [0; 16 << 10];
    while !is_over.load(Ordering::Relaxed) {
        match sensor.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                collector.write_all(&buffer[..count]).unwrap();
                if is_slow.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_micros(count as u64 * 1_000_000 / RATE));
                }
            }
            Err(error) => assert!(error.kind() == io::ErrorKind::WouldBlock, "{error}"),
        }
    }
    // What the collector has to say before it closes still comes.
    let _ = collector.shutdown(Shutdown::Write);
    let _ = back.join();
}

#[test]
fn an_alert_does_not_wait_behind_frames_that_a_slow_collector_has_not_read() {
    if !tools::require(&["nmap"]) {
        return;
    }
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let way = SlowWay::new(&site.lab);
    let settings = Settings { collector: ENTRANCE.to_owned(), ..Settings::frames("all") };
    let sensor = site.start_sensor(&settings);
    site.wait_connected(&sensor);
    let client = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
    let datagram = |port| frames::udp(client(port), client(53), &[7; 900]);
    let load = Load::start(&site.lab, 0, (4000..4200).map(datagram).collect(), FRAMES);
    let held_up = || site.metric(&sensor, "ringwatch_frames_lost_degraded_total", "");
    wait_until("pressure", PATIENCE, || held_up() > 0, || sensor.process.describe());
    site.lab.generator().run("nmap", &["-n", "-Pn", "-sS", "-p1-100", "10.99.0.2"]);
    let is_open = |events: &str| events.contains("\"kind\":\"vertical\"");
    let when = |events: &dyn Fn() -> String| {
        wait_until("alert", PATIENCE, || is_open(&events()), || sensor.process.describe());
        Instant::now()
    };
    let (raised, arrived) = thread::scope(|scope| {
        let raised = scope.spawn(|| when(&|| sensor.events()));
        (when(&|| collector.events()), raised.join().unwrap())
    });
    let waited = arrived.saturating_duration_since(raised);
    println!("the alert came to the collector's log after {waited:?}");
    load.stop();
    way.open();
    site.finish(vec![sensor], collector);
    assert!(waited < Duration::from_secs(1), "the alert took {waited:?}");
}
