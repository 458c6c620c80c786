//! What `up` shows: a block of lines that is redrawn in place on a terminal, plain lines elsewhere.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use crate::api::{Balance, Sensor, Status, metric_sum};
use crate::status::balance_in_words;
use crate::text::{clock, counted, grouped, harmless, scaled};

/// Bytes on the wire of all frames that the sensor analysed.
const BYTES_METRIC: &str = "ringwatch_analysed_bytes_total";
/// New connections seen, those beyond the event limit included.
const CONNECTIONS_METRIC: &str = "ringwatch_new_connections_total";

/// Rate of a counter over the last few samples.
#[derive(Debug, Default)]
struct Meter {
    /// Time since the start and value, oldest first; at most [`SAMPLES`].
    samples: VecDeque<(Duration, u64)>,
}

/// Samples in a meter, one a second.
const SAMPLES: usize = 5;

impl Meter {
    fn update(&mut self, at: Duration, value: u64) {
        // A counter that went back belongs to a new run.
        if self.total() > value {
            self.samples.clear();
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((at, value));
    }

    fn total(&self) -> u64 {
        self.samples.back().map_or(0, |(_, value)| *value)
    }

    /// The rate times `factor` in words; nothing without a sample.
    fn rate(&self, unit: &str, factor: f64) -> String {
        if self.samples.is_empty() {
            return String::new();
        }
        scaled(self.per_second() * factor, unit)
    }

    fn per_second(&self) -> f64 {
        match (self.samples.front(), self.samples.back()) {
            (Some((from, low)), Some((to, high))) if to > from => {
                (high - low) as f64 / (*to - *from).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

/// What the view knows, out of the collector's state and the sensor's metrics.
#[derive(Debug, Default)]
pub struct Figures {
    packets: Meter,
    bytes: Meter,
    connections: Meter,
    exported: Meter,
    sensor: Sensor,
}

impl Figures {
    /// Takes the collector's state and, if there are any, the sensor's metrics.
    pub fn update(&mut self, at: Duration, name: &str, status: &Status, metrics: Option<&str>) {
        if let Some(sensor) = status.sensors.iter().find(|sensor| sensor.name == name) {
            self.sensor = sensor.clone();
        }
        if let Some(ledger) = &self.sensor.ledger {
            self.packets.update(at, ledger.kernel_packets());
            self.exported.update(at, ledger.frames.produced);
        }
        let metrics = metrics.unwrap_or_default();
        if let Some(bytes) = metric_sum(metrics, BYTES_METRIC) {
            self.bytes.update(at, bytes);
        }
        if let Some(connections) = metric_sum(metrics, CONNECTIONS_METRIC) {
            self.connections.update(at, connections);
        }
    }

    /// Is the sensor connected to the collector?
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.sensor.connected
    }

    fn lost(&self) -> u64 {
        self.sensor.ledger.as_ref().map_or(0, |ledger| {
            let wanted: u64 = ledger.interfaces.iter().flat_map(|i| i.lost.values()).sum();
            wanted + ledger.frames.lost.values().sum::<u64>()
        })
    }

    fn drops(&self) -> u64 {
        self.sensor.ledger.as_ref().map_or(0, |ledger| ledger.kernel_drops())
    }

    /// The block of a terminal.
    #[must_use]
    pub fn block(&self, elapsed: Duration, alerts: (usize, u64), place: &Place<'_>) -> Vec<String> {
        let sensor = &self.sensor;
        let link = match sensor.connected {
            true => "connected",
            false => "NOT connected to its collector",
        };
        vec![
            format!(
                "ringwatch  {}   {}   sensor {link}   Ctrl-C ends",
                clock(elapsed),
                place.interfaces
            ),
            format!(
                "seen       {:>16} {:>14}   {} packets, {} dropped by the kernel",
                scaled(self.packets.per_second(), "packets/s"),
                // Empty while the sensor's metrics cannot be read.
                self.bytes.rate("bit/s", 8.0),
                grouped(self.packets.total()),
                grouped(self.drops()),
            ),
            format!(
                "forwarded  {:>16} {:>14}   {} frames, {} lost",
                scaled(self.exported.per_second(), "frames/s"),
                scaled(sensor.bytes_per_second * 8.0, "bit/s"),
                grouped(self.exported.total()),
                grouped(self.lost()),
            ),
            format!(
                "stored     {:>16} {:>14}   {} frames, {} events",
                "",
                scaled(sensor.frame_bytes as f64, "B"),
                grouped(sensor.frames),
                grouped(sensor.records),
            ),
            format!(
                "found      {:>16} {:>14}   {}, {} open, {} closed",
                self.connections.rate("conn/s", 1.0),
                "",
                counted(self.connections.total(), "new connection"),
                counted(alerts.0 as u64, "alert"),
                alerts.1,
            ),
            format!("where      {}   {}", place.root.display(), place.api),
        ]
    }

    /// One line for a log or a pipe.
    #[must_use]
    pub fn line(&self, elapsed: Duration, alerts: (usize, u64)) -> String {
        format!(
            "{} seen {} packets ({}), dropped {}, forwarded {} frames, lost {}, stored {} frames {} \
             events, new connections {}, alerts {} open {} closed{}",
            clock(elapsed),
            self.packets.total(),
            scaled(self.packets.per_second(), "packets/s"),
            self.drops(),
            self.exported.total(),
            self.lost(),
            self.sensor.frames,
            self.sensor.records,
            self.connections.total(),
            alerts.0,
            alerts.1,
            if self.sensor.connected { "" } else { " (sensor not connected)" },
        )
    }

    /// What is said at the end: totals, and whether everything is accounted for.
    #[must_use]
    pub fn summary(&self, elapsed: Duration, alerts: (usize, u64), place: &Place<'_>) -> String {
        let balance = self.sensor.balance();
        let mut text = format!("\nRan for {}.\n", clock(elapsed));
        if let Some(ledger) = &self.sensor.ledger {
            for interface in &ledger.interfaces {
                text += &format!(
                    "  {:10} {} packets: {} dropped by the kernel, {} analysed, {} exported, {} lost\n",
                    harmless(&interface.name, 20),
                    grouped(interface.kernel_packets),
                    grouped(interface.kernel_drops),
                    grouped(interface.analysed),
                    grouped(interface.exported),
                    grouped(interface.lost.values().sum()),
                );
            }
            for (name, delivery, stored) in [
                ("frames", &ledger.frames, self.sensor.frames),
                ("events", &ledger.records, self.sensor.records),
            ] {
                text += &format!(
                    "  {name:10} {} handed over: {} acknowledged, {} in flight, {} lost; {} stored\n",
                    grouped(delivery.produced),
                    grouped(delivery.acknowledged),
                    grouped(delivery.in_flight),
                    grouped(delivery.lost.values().sum()),
                    grouped(stored),
                );
            }
        }
        text += &format!("  {:10} {} open, {} closed\n", "alerts", alerts.0, alerts.1);
        text += &format!("  {:10} {}\n", "ledger", balance_in_words(&balance));
        if let Balance::Off(imbalance) = &balance {
            text += &format!("  {:10} {imbalance}\n", "");
        }
        text += &format!("  {:10} {}\n", "data", place.root.display());
        text
    }
}

/// Where things are, for the view.
#[derive(Debug)]
pub struct Place<'a> {
    /// Watched interfaces.
    pub interfaces: String,
    /// The data folder.
    pub root: &'a Path,
    /// The collector's HTTP interface.
    pub api: String,
}

/// The terminal, or what standard output is instead.
#[derive(Debug)]
pub struct Screen {
    is_terminal: bool,
    /// Lines of the block that stand above the cursor.
    drawn: usize,
}

impl Screen {
    /// Looks at standard output.
    #[must_use]
    pub fn of_stdout() -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { is_terminal: std::io::stdout().is_terminal() && !is_dumb, drawn: 0 }
    }

    /// Can lines be redrawn?
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Puts a line above the block, where it stays.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn say(&mut self, line: &str) -> std::io::Result<()> {
        let text = format!("{}{line}\n", self.wipe());
        self.drawn = 0;
        put(&text)
    }

    /// Draws the block over the last one.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn draw(&mut self, lines: &[String]) -> std::io::Result<()> {
        put(&self.redrawn(lines))
    }

    /// One write for the whole block, each line overwritten and then cleared to its end, so that
    /// nothing flickers; wrapping is off meanwhile, so that a narrow terminal cuts lines instead of
    /// moving the block.
    fn redrawn(&mut self, lines: &[String]) -> String {
        let mut text = String::from(NO_WRAP);
        if self.drawn > 0 {
            text += &format!("\x1b[{}A\r", self.drawn);
        }
        for line in lines {
            text += &format!("{line}\x1b[K\n");
        }
        text += "\x1b[J";
        text += WRAP;
        self.drawn = lines.len();
        text
    }

    fn wipe(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}A\r\x1b[J", self.drawn) }
    }
}

/// DECAWM off and on (Source: DEC VT510 manual, "DECAWM").
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

fn put(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ledger::{DeliveryLedger, InterfaceLedger, Ledger};

    fn place() -> Place<'static> {
        Place { interfaces: "lo".into(), root: Path::new("/data"), api: String::new() }
    }

    fn status(packets: u64) -> Status {
        let lo = InterfaceLedger {
            name: "lo".into(),
            kernel_packets: packets,
            analysed: packets,
            not_selected: packets - 1,
            exported: 1,
            ..Default::default()
        };
        let frames = DeliveryLedger { produced: 1, acknowledged: 1, ..Default::default() };
        let ledger = Ledger { interfaces: vec![lo], frames, ..Default::default() };
        let sensor = Sensor {
            name: "sensor".into(),
            connected: true,
            ledger: Some(ledger),
            frames: 1,
            ..Default::default()
        };
        Status { sensors: vec![sensor], ..Default::default() }
    }

    fn figures() -> Figures {
        let mut figures = Figures::default();
        let metrics = format!("{CONNECTIONS_METRIC} 3\n");
        figures.update(Duration::from_secs(1), "sensor", &status(1000), Some(&metrics));
        figures.update(Duration::from_secs(3), "sensor", &status(5000), Some(&metrics));
        figures
    }

    #[test]
    fn rates_are_differences_over_time() {
        let line = figures().line(Duration::from_secs(3), (1, 0));
        assert!(line.contains("seen 5000 packets (2.0 kpackets/s)"), "{line}");
        assert!(line.contains("new connections 3, alerts 1 open 0 closed"), "{line}");
    }

    #[test]
    fn a_counter_that_starts_anew_gives_no_negative_rate() {
        let mut meter = Meter::default();
        meter.update(Duration::from_secs(1), 100);
        meter.update(Duration::from_secs(2), 10);
        assert_eq!(meter.per_second(), 0.0);
        assert_eq!(meter.total(), 10);
    }

    #[test]
    fn the_summary_says_whether_the_ledger_adds_up() {
        let text = figures().summary(Duration::from_secs(3), (0, 1), &place());
        assert!(text.contains("ledger     adds up"), "{text}");
        assert!(text.contains("lo         5 000 packets: 0 dropped"), "{text}");
        let mut broken = status(5000);
        if let Some(ledger) = &mut broken.sensors[0].ledger {
            ledger.frames.acknowledged = 0;
        }
        let mut figures = figures();
        figures.update(Duration::from_secs(4), "sensor", &broken, None);
        let text = figures.summary(Duration::from_secs(4), (0, 0), &place());
        assert!(text.contains("ledger     does not add up (frames)"), "{text}");
    }

    #[test]
    fn a_block_is_drawn_over_the_one_before() {
        let mut screen = Screen { is_terminal: true, drawn: 0 };
        let lines = ["a".to_owned(), "b".to_owned()];
        assert_eq!(screen.redrawn(&lines), "\x1b[?7la\x1b[K\nb\x1b[K\n\x1b[J\x1b[?7h");
        assert!(screen.redrawn(&lines).contains("\x1b[2A\r"));
    }

    #[test]
    fn the_block_tells_of_a_lost_collector() {
        let block = Figures::default().block(Duration::ZERO, (0, 0), &place());
        assert!(block[0].contains("NOT connected"), "{}", block[0]);
    }
}
