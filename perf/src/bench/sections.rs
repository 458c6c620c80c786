//! The experiments. Each gives a table and what there is to say about it, in Markdown.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::alerts::alerts;
use super::fire::fire;
use super::fleet::fleet;
use super::place::{self, Place};
use super::program::{self, Contender};
use super::report::{Table, load_average, median};
use super::{Scale, Section};
use crate::process::Process;
use crate::programs;

/// A flood of SYN from any address and port to any port.
const SYN_FLOOD: &str = "--kind syn --sources 2**32 --source-ports 2**16 --target-ports 2**16";

/// The loads of [`Section::Capture`].
const LOADS: [(&str, &str); 3] = [
    ("64 B SYN, random source and ports", SYN_FLOOD),
    ("64 B UDP, 1 M flows", "--kind udp --sources 2**10 --source-ports 2**10"),
    ("1500 B UDP, 64 k flows", "--kind udp --size 1500 --sources 2**8 --source-ports 2**8"),
];

/// Live flows of [`Section::Flows`].
const FLOWS: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// Frames a second while flows are made: far from any loss.
const FILL_RATE: u64 = 500_000;
/// Least number of flows that a sensor's table is sized for: that of its own default.
const LEAST_TABLE: u64 = 1_000_000;

/// Workers of [`Section::Rings`], and frames a second that are offered to all of them together.
const WORKERS: [u16; 3] = [2, 4, 8];
const RINGS_RATE: u64 = 1_000_000;

/// How frames are dealt to rings in [`Section::Fanout`].
const FANOUTS: [&str; 2] = ["hash", "cpu"];

/// Sizes of frames in the files of [`Section::Read`].
const FILE_SIZES: [u16; 2] = [64, 512];

/// What two workers could be at best: each process has the tables that one of two workers has, and half of
/// the frames, and nothing is shared or dealt.
const CONTROL: &str = "two processes, 1 worker each, half of the file each";

/// What is offered to a program: generators on these CPUs, each with these options.
struct Load<'a> {
    cpus: &'a [usize],
    options: &'a str,
}

/// One program under one load, once.
#[derive(Clone, Copy, Debug)]
struct Run {
    offered: u64,
    mpps: f64,
    nanoseconds: f64,
    seen: u64,
    dropped: u64,
    foreign: u64,
}

/// Runs a section in a lab of its own and gives its text.
///
/// # Errors
/// The lab cannot be made.
pub fn run(section: Section, scale: &Scale) -> Result<String, String> {
    eprintln!("\n» {section:?}");
    let silent = Place::new;
    Ok(match section {
        Section::Capture => capture(&silent()?, scale),
        Section::Flows => flows(&silent()?, scale),
        Section::Rings => rings(&silent()?, scale),
        Section::Fanout => fanout(&silent()?, scale),
        Section::Read => read(&silent()?, scale),
        Section::Memory => memory(&silent()?, scale),
        Section::Fire => fire(scale)?,
        Section::Alerts => alerts(scale)?,
        Section::Fleet => fleet(scale)?,
    })
}

/// One load after the other; under each, the programs take turns.
fn capture(place: &Place, scale: &Scale) -> String {
    let mut text = String::from("\n## Capture\n");
    let _ = writeln!(
        text,
        "\n{} frames a load, generator at full speed on CPU {}, program on CPU {}, {} rounds, medians.\n",
        scale.frames,
        place.processors()[0],
        place.processors()[1],
        scale.rounds
    );
    let mut table = runs_table(&["load", "program"]);
    for (name, options) in LOADS {
        let contenders = [
            Contender::sensor(place, 1, None),
            Contender::tcpdump(),
            Contender::netsniff_ng(),
            Contender::bare_walk(),
        ]
        .map(|contender| (contender, vec![place.processors()[1]]));
        let options = format!("{options} --count {}", scale.frames);
        let load = Load { cpus: &place.processors()[..1], options: &options };
        let runs = in_turns(place, &contenders, &load, scale);
        let reference = nanoseconds(&runs[1]);
        for ((contender, _), runs) in contenders.iter().zip(&runs) {
            let key = [name.to_owned(), contender.name.clone()];
            table.add(key.into_iter().chain(cells(runs, &contender.command, reference)));
        }
        let cpu = place.processors()[0];
        let _ = writeln!(text, "- {name}: `ringwatch-load blast -i s0 --cpu {cpu} {options}`");
    }
    for contender in [Contender::sensor(place, 1, None), Contender::tcpdump()] {
        commands(&mut text, &contender);
    }
    for contender in [Contender::netsniff_ng(), Contender::bare_walk()] {
        commands(&mut text, &contender);
    }
    text + "\n" + &table.text()
}

/// Runs the programs in turns, each on its processors, as often as there are rounds. Programs that are
/// missing have no runs.
fn in_turns(
    place: &Place,
    contenders: &[(Contender, Vec<usize>)],
    load: &Load<'_>,
    scale: &Scale,
) -> Vec<Vec<Run>> {
    let mut runs = vec![Vec::new(); contenders.len()];
    for round in 1..=scale.rounds {
        for ((contender, processors), runs) in contenders.iter().zip(&mut runs) {
            if let Ok(command) = &contender.command {
                let mut process = start(place, contender, command, processors);
                let run = measure(place, contender, &mut process, load, scale);
                eprintln!("round {round}, {}: {}", contender.name, in_words(&run));
                runs.push(run);
            }
        }
    }
    runs
}

/// Runs the programs in turns; a row for each, by its name under `key`.
fn table_in_turns(
    key: &str,
    place: &Place,
    contenders: &[(Contender, Vec<usize>)],
    load: &Load<'_>,
    scale: &Scale,
) -> String {
    let mut table = runs_table(&[key]);
    let runs = in_turns(place, contenders, load, scale);
    for ((contender, _), runs) in contenders.iter().zip(&runs) {
        let name = [contender.name.clone()];
        table.add(name.into_iter().chain(cells(runs, &contender.command, None)));
    }
    table.text()
}

/// Starts a program on these processors; it captures when this is over.
fn start(place: &Place, contender: &Contender, command: &Command, processors: &[usize]) -> Process {
    let mut process = place.start(command, processors);
    contender.wait_until_it_captures(&mut process);
    process
}

/// Offers the load to a program that runs already, and ends it.
///
/// # Panics
/// If what it says of its frames does not add up with what was offered.
fn measure(
    place: &Place,
    contender: &Contender,
    process: &mut Process,
    load: &Load<'_>,
    scale: &Scale,
) -> Run {
    let foreign = place.foreign_frames();
    let before = place::processor_time(process.id());
    let offered = place.blast(load.cpus, load.options);
    // What falls due after the last frame (time-outs, flushes) is part of the cost.
    thread::sleep(scale.settle);
    let spent = place::processor_time(process.id()).saturating_sub(before);
    place.stop(process);
    let counts = contender.counts(process);
    Run {
        offered: offered.frames,
        mpps: offered.mpps,
        nanoseconds: spent.as_nanos() as f64 / offered.frames.max(1) as f64,
        seen: counts.seen,
        dropped: counts.dropped,
        foreign: place.foreign_frames().saturating_sub(foreign),
    }
}

impl Run {
    /// Frames offered and others on the link, against those that the program accounts for. The frames
    /// of others may have come before or after it looked.
    const fn is_exact(&self) -> bool {
        self.offered <= self.seen && self.seen <= self.offered + self.foreign
    }
}

fn in_words(run: &Run) -> String {
    let Run { offered, mpps, nanoseconds, seen, dropped, foreign } = run;
    format!(
        "{offered} offered at {mpps:.2} Mpps, {nanoseconds:.1} ns each, {seen} seen, {dropped} dropped, \
         {foreign} foreign, load average {}",
        load_average()
    )
}

const RUN_COLUMNS: [&str; 6] =
    ["offered Mpps", "ns/frame", "to tcpdump", "dropped", "seen = offered", "runs, ns/frame"];

fn runs_table(keys: &[&str]) -> Table {
    Table::new(&[keys, &RUN_COLUMNS].concat())
}

/// The cells of [`RUN_COLUMNS`].
fn cells(runs: &[Run], command: &Result<Command, String>, reference: Option<f64>) -> Vec<String> {
    if let Err(missing) = command {
        return vec![format!("missing ({missing})")];
    }
    let median = |value: fn(&Run) -> f64| median(runs.iter().map(value));
    let cost = median(|run| run.nanoseconds);
    let exact = runs.iter().filter(|run| run.is_exact()).count();
    let all: Vec<_> = runs.iter().map(|run| format!("{:.1}", run.nanoseconds)).collect();
    vec![
        format!("{:.2}", median(|run| run.mpps)),
        format!("{cost:.1}"),
        reference.map_or_else(String::new, |reference| format!("{:.2}", cost / reference)),
        lost(median(|run| run.dropped as f64), median(|run| run.offered as f64)),
        if exact == runs.len() { "yes".to_owned() } else { format!("{exact} of {}", runs.len()) },
        all.join(", "),
    ]
}

fn lost(dropped: f64, offered: f64) -> String {
    format!("{dropped:.0} ({:.2} %)", 100.0 * dropped / offered.max(1.0))
}

fn nanoseconds(runs: &[Run]) -> Option<f64> {
    (!runs.is_empty()).then(|| median(runs.iter().map(|run| run.nanoseconds)))
}

/// Writes down how a program was started, without the folders of this machine.
fn commands(text: &mut String, contender: &Contender) {
    let Ok(command) = &contender.command else { return };
    let short = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy().into_owned();
        match word.rsplit_once('/') {
            Some((folder, name)) if folder != "/dev" => name.to_owned(),
            _ => word,
        }
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(short);
    let words: Vec<_> = words.collect();
    let _ = writeln!(text, "- {}: `{}`", contender.name, words.join(" "));
}

/// Every flow has one frame before the clock is read, at a rate that loses none.
fn flows(place: &Place, scale: &Scale) -> String {
    let mut text = String::from("\n## Live flows\n\n");
    let _ = writeln!(
        text,
        "64 B UDP, every flow in its turn; {} frames at full speed after each flow had one, {} rounds. \
         Drops are those of both.\n",
        scale.frames, scale.rounds
    );
    let mut table = runs_table(&["live flows"]);
    for flows in FLOWS {
        let file = place.file("sensor.toml");
        let size = flows.saturating_mul(2).max(LEAST_TABLE);
        let configuration = format!("[flow]\nflows = {size}\n[api]\nlisten = ''\n");
        fs::write(&file, configuration).unwrap_or_else(|error| panic!("{error}"));
        let contender = Contender::sensor(place, 1, Some(&file));
        let load = format!(
            "--kind udp --sources 2**14 --source-ports 2**10 --order sequential --flows {flows}"
        );
        let mut runs = Vec::new();
        for round in 1..=scale.rounds {
            let Ok(command) = &contender.command else { continue };
            let mut process = start(place, &contender, command, &[place.processors()[1]]);
            let cpus = &place.processors()[..1];
            let fill = format!("{load} --count {flows} --rate {FILL_RATE}");
            let filled = place.blast(cpus, &fill);
            // What waits in the ring is no cost of the frames that follow.
            thread::sleep(scale.settle);
            let options = format!("{load} --count {}", scale.frames);
            let load = Load { cpus, options: &options };
            let mut run = measure(place, &contender, &mut process, &load, scale);
            // The sensor counts from its start.
            run.seen = run.seen.saturating_sub(filled.frames);
            eprintln!("round {round}, {flows} flows: {}", in_words(&run));
            runs.push(run);
        }
        table.add([flows.to_string()].into_iter().chain(cells(&runs, &contender.command, None)));
    }
    text + &table.text()
}

/// Workers share both processors with the generator; the load is paced, so that there is room.
fn rings(place: &Place, scale: &Scale) -> String {
    let mut text = String::from("\n## Rings\n\n");
    let load = format!(
        "--kind udp --sources 2**8 --source-ports 2**8 --rate {RINGS_RATE} --count {}",
        scale.frames
    );
    let [generator, program] = place.processors();
    let _ = writeln!(
        text,
        "Generator on CPU {generator}: `ringwatch-load blast -i s0 --cpu {generator} {load}`, {} rounds. A \
         worker on that CPU finds frames in its cache; one worker is measured on either.\n",
        scale.rounds
    );
    let on_one = [generator, program].map(|cpu| (1, vec![cpu]));
    let on_both = WORKERS.map(|workers| (workers, vec![generator, program]));
    let rows = on_one.into_iter().chain(on_both);
    let words =
        |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(" and ");
    let contenders = rows.map(|(workers, cpus)| {
        let mut contender = Contender::sensor(place, workers, None);
        contender.name = format!("{workers} on CPU {}", words(&cpus));
        (contender, cpus)
    });
    let contenders: Vec<_> = contenders.collect();
    let load = Load { cpus: &[generator], options: &load };
    text + &table_in_turns("workers", place, &contenders, &load, scale)
}

/// Both processors take frames, at full speed, and a worker reads on each. By its flow a frame often belongs to
/// the other processor's ring.
fn fanout(place: &Place, scale: &Scale) -> String {
    let mut text = String::from("\n## Fanout\n\n");
    let cpus = place.processors();
    let options =
        format!("--kind udp --sources 2**8 --source-ports 2**8 --count {}", scale.frames / 2);
    let _ = writeln!(
        text,
        "A generator on each of CPUs {} and {}, at once: `ringwatch-load blast -i s0 --cpu CPU {options}`; two \
         workers on the same CPUs, {} rounds.\n",
        cpus[0], cpus[1], scale.rounds
    );
    let contenders = FANOUTS.map(|fanout| {
        let file = place.file(&format!("{fanout}.toml"));
        fs::write(&file, format!("[capture]\nfanout = '{fanout}'\n"))
            .unwrap_or_else(|error| panic!("{error}"));
        let mut contender = Contender::sensor(place, 2, Some(&file));
        contender.name = format!("`{fanout}`");
        (contender, cpus.to_vec())
    });
    let load = Load { cpus: &cpus, options: &options };
    text + &table_in_turns("`capture.fanout`", place, &contenders, &load, scale)
}

/// The file is in the page cache: it was just written, and each round reads it again.
fn read(place: &Place, scale: &Scale) -> String {
    let mut text = String::from("\n## Read\n\n");
    let _ = writeln!(
        text,
        "Files of {} bytes, UDP, 64 k flows, in the page cache; all CPUs; wall time; {} rounds, medians.\n",
        scale.file_bytes, scale.rounds
    );
    let mut table = Table::new(&["frames", "program", "M frames/s", "runs, M frames/s"]);
    for size in FILE_SIZES {
        let file = place.file("load.pcap");
        let frames = write_file(&file, size, scale.file_bytes);
        write_file(&place.file("half.pcap"), size, scale.file_bytes / 2);
        let events = place.file("read.json");
        let readers = readers(place, &file, &events);
        let mut speeds = vec![Vec::new(); readers.len()];
        for round in 1..=scale.rounds {
            for ((name, command), speeds) in readers.iter().zip(&mut speeds) {
                let Ok(command) = command else { continue };
                let begin = Instant::now();
                match *name {
                    CONTROL => {
                        drop([again(command), again(command)].map(Process::spawn).map(ended))
                    }
                    _ => drop(to_the_end(again(command))),
                }
                let speed = frames as f64 / begin.elapsed().as_secs_f64() / 1e6;
                eprintln!("round {round}, {size} B, {name}: {speed:.2} M frames/s");
                speeds.push(speed);
                if name.starts_with("ringwatch-sensor, ") {
                    let counts = program::last_event(&events);
                    assert_eq!(counts.seen, frames, "frames that {name} saw");
                    // Events are added to a file that is there.
                    fs::remove_file(&events).unwrap_or_else(|error| panic!("{error}"));
                }
            }
        }
        for ((name, command), speeds) in readers.iter().zip(speeds) {
            let all: Vec<_> = speeds.iter().map(|speed| format!("{speed:.2}")).collect();
            let middle = match command {
                Ok(_) => format!("{:.2}", median(speeds)),
                Err(missing) => format!("missing ({missing})"),
            };
            table.add([format!("{size} B"), (*name).to_owned(), middle, all.join(", ")]);
        }
    }
    text + &table.text()
}

/// Writes a capture file and gives the number of its frames.
fn write_file(file: &Path, size: u16, bytes: u64) -> u64 {
    let mut writer = Command::new(programs::path("ringwatch-load"));
    writer.arg("pcap").arg(file).args(["--bytes", &bytes.to_string()]);
    writer.args(["--kind", "udp", "--size", &size.to_string()]);
    writer.args(["--sources", "2**8", "--source-ports", "2**8"]);
    let report = to_the_end(writer).stdout();
    let report: serde_json::Value =
        serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {report}"));
    report["frames"].as_u64().unwrap_or_else(|| panic!("no frames in {report}"))
}

/// The programs that read the file; the sensor's events go to `events`.
fn readers(
    place: &Place,
    file: &Path,
    events: &Path,
) -> [(&'static str, Result<Command, String>); 5] {
    let sensor = |workers: &str| {
        let mut command = programs::sensor();
        command.arg("--read").arg(file).args(["--workers", workers, "--events"]).arg(events);
        Ok(command)
    };
    let configuration = place.file("half.toml");
    fs::write(&configuration, "[flow]\nflows = 500000\n[detect]\nmemory_mib = 32\n")
        .unwrap_or_else(|error| panic!("{error}"));
    let mut half = programs::sensor();
    half.arg("--config").arg(configuration).arg("--read").arg(place.file("half.pcap"));
    half.args(["--workers", "1", "--events", "/dev/null"]);
    let (name, log) = (file.display(), place.file(""));
    let tcpdump = format!("-r {name} -Z root -w /dev/null");
    let suricata = format!("--runmode=single -k none -S /dev/null -l {} -r {name}", log.display());
    [
        ("ringwatch-sensor, 1 worker", sensor("1")),
        ("ringwatch-sensor, 2 workers", sensor("2")),
        (CONTROL, Ok(half)),
        ("tcpdump -w /dev/null", program::peer("tcpdump", "tcpdump", &tcpdump)),
        (
            "suricata, no rules",
            program::peer("suricata", "suricata, of bookworm-backports", &suricata),
        ),
    ]
}

/// The same command once more.
fn again(command: &Command) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    again
}

/// Runs a program to its end.
fn to_the_end(command: Command) -> Process {
    ended(Process::spawn(command))
}

/// Waits for a program's end.
fn ended(mut process: Process) -> Process {
    let status = process.wait(Duration::from_secs(3600));
    assert!(status.success(), "{status}{}", process.describe());
    process
}

/// Resident memory, looked at once a second.
fn memory(place: &Place, scale: &Scale) -> String {
    let contender = Contender::sensor(place, 1, None);
    let options = format!("{SYN_FLOOD} --count {}", scale.flood_frames);
    let mut text = String::from("\n## Memory\n\n");
    let cpu = place.processors()[0];
    let _ = writeln!(text, "`ringwatch-load blast -i s0 --cpu {cpu} {options}`\n");
    let mut table = Table::new(&["when", "looks", "least, MiB", "most, MiB"]);
    let Ok(command) = &contender.command else { return text };
    let mut process = start(place, &contender, command, &[place.processors()[1]]);
    let mut phases: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..5 {
        phases[0].push(place::resident_kib(process.id()));
        thread::sleep(Duration::from_secs(1));
    }
    let mut generator = place.generate(cpu, &options);
    while generator.is_running() {
        phases[1].push(place::resident_kib(process.id()));
        thread::sleep(Duration::from_secs(1));
    }
    assert!(generator.stdout().contains("frames"), "{}", generator.describe());
    thread::sleep(scale.settle);
    phases[1].push(place::resident_kib(process.id()));
    process.stop(Signal::SIGINT, Duration::from_secs(60));
    let counts = contender.counts(&process);
    for (name, looks) in ["before", "during the flood"].into_iter().zip(phases) {
        let mib = |kib: Option<&u64>| format!("{:.1}", *kib.unwrap_or(&0) as f64 / 1024.0);
        let row = [mib(looks.iter().min()), mib(looks.iter().max())];
        eprintln!("{name}: {} to {} MiB", row[0], row[1]);
        table.add([name.to_owned(), looks.len().to_string()].into_iter().chain(row));
    }
    let _ =
        writeln!(text, "{} frames seen, {} dropped by the kernel.\n", counts.seen, counts.dropped);
    text + &table.text()
}
