//! The folder of one appliance: certificates, configuration, store, logs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use trust::Role;

use super::place::Ports;
use super::{Frames, UpError};
use crate::pki::{self, Existing, Issued, LEAF_DAYS, Name};

/// Name of the collector's certificate.
const COLLECTOR: &str = "collector";
/// Name of the sensor's certificate, under which the collector shows it.
pub const SENSOR: &str = "sensor";
/// Of the flows on this machine, one in so many is stored whole with `--frames sampled`. Denser
/// than the sensor's own default, so that a newcomer finds something in the store.
const SAMPLE_ONE_IN: u32 = 8;

/// The folder of one appliance, locked against a second `up`.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    // Held for its effect: the lock goes when the folder is dropped, also by a kill.
    _lock: Flock<File>,
}

/// What [`Folder::prepare_certificates`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// They were there and are good for another day.
    Kept,
    /// They are new.
    Made,
}

impl Folder {
    /// Opens the folder, which is created if missing.
    ///
    /// # Errors
    /// [`UpError::InUse`] if another `up` runs in it, [`UpError::File`] if it cannot be written.
    pub fn open(root: &Path) -> Result<Self, UpError> {
        let file = |source| UpError::File { path: root.to_owned(), source };
        let root = std::path::absolute(root).map_err(file)?;
        for folder in [root.clone(), root.join("log")] {
            fs::create_dir_all(&folder)
                .map_err(|source| UpError::File { path: folder.clone(), source })?;
        }
        let path = root.join("lock");
        let lock = File::create(&path).map_err(|source| UpError::File { path, source })?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| UpError::InUse(root.clone()))?;
        Ok(Self { root, _lock: lock })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the collector stores what it takes.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// The log of a program.
    #[must_use]
    pub fn log(&self, program: &str) -> PathBuf {
        self.root.join("log").join(format!("{program}.log"))
    }

    /// The configuration of a program.
    #[must_use]
    pub fn configuration(&self, program: &str) -> PathBuf {
        self.root.join(format!("{program}.toml"))
    }

    /// Makes the throw-away authority and both certificates, unless they are there and last.
    ///
    /// # Errors
    /// What the certificate code says.
    pub fn prepare_certificates(&self) -> Result<Certificates, UpError> {
        let folder = self.root.join("pki");
        let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
        let lasting = match pki::list(&folder) {
            Ok(pki::Inventory { entries, .. }) => {
                entries.iter().filter(|entry| entry.has_key && entry.not_after > tomorrow).count()
            }
            // Missing or damaged: it is a throw-away authority, a new one does.
            Err(_) => 0,
        };
        if lasting >= 3 {
            return Ok(Certificates::Kept);
        }
        let name = |text: &str| text.parse::<Name>().map_err(UpError::Name);
        pki::init(&folder, Existing::Replace)?;
        for (role, text) in [(Role::Collector, COLLECTOR), (Role::Sensor, SENSOR)] {
            pki::issue(&folder, role, &name(text)?, &[], LEAF_DAYS, Existing::Replace)?;
        }
        Ok(Certificates::Made)
    }

    /// Writes `sensor.toml` and `collector.toml`. They are written anew on each start, because
    /// ports and interfaces may differ.
    ///
    /// # Errors
    /// [`UpError::PathText`] for a folder whose name is not UTF-8, or what the system says.
    pub fn write_configuration(
        &self,
        interfaces: &[String],
        frames: Frames,
        ports: Ports,
    ) -> Result<(), UpError> {
        let pki = self.root.join("pki");
        let tls = |name: &str| -> Result<String, UpError> {
            let Issued { certificate, key } = pki::files_of(&pki, name);
            Ok(format!(
                "ca = {}\ncertificate = {}\nkey = {}",
                quoted_path(&pki.join("ca.pem"))?,
                quoted_path(&certificate)?,
                quoted_path(&key)?
            ))
        };
        let interfaces: Vec<String> = interfaces.iter().map(|name| quoted(name)).collect();
        let sensor = format!(
            "{HEAD}[capture]\ninterface = [{}]\n\n\
             [export]\nframes = {}\nsample_one_in = {SAMPLE_ONE_IN}\n\n\
             [uplink]\ncollectors = [\"127.0.0.1:{}\"]\n{}\n\n\
             [spool]\npath = {}\n\n\
             [api]\nlisten = \"127.0.0.1:{}\"\n",
            interfaces.join(", "),
            quoted(frames.word()),
            ports.sensors,
            tls(SENSOR)?,
            quoted_path(&self.root.join("spool"))?,
            ports.sensor_api,
        );
        let collector = format!(
            "{HEAD}[listen]\nsensors = \"127.0.0.1:{}\"\napi = \"127.0.0.1:{}\"\n\n\
             [tls]\n{}\n\n\
             [store]\npath = {}\n",
            ports.sensors,
            ports.collector_api,
            tls(COLLECTOR)?,
            quoted_path(&self.store())?,
        );
        for (program, text) in [("sensor", sensor), ("collector", collector)] {
            let path = self.configuration(program);
            fs::write(&path, text).map_err(|source| UpError::File { path, source })?;
        }
        Ok(())
    }
}

const HEAD: &str = "# Written by `ringwatch up` on each start; changes here are lost.\n\n";

/// A TOML basic string. JSON's escapes are a subset of TOML's; only DEL, which JSON leaves as it
/// is, has to be written out (Source: TOML 1.0, "String").
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn quoted_path(path: &Path) -> Result<String, UpError> {
    path.to_str().map(quoted).ok_or_else(|| UpError::PathText(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const PORTS: Ports = Ports { sensors: 4751, collector_api: 8481, sensor_api: 8476 };

    #[test]
    fn certificates_are_made_once_and_kept() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(&temporary.path().join("data")).unwrap();
        assert_eq!(folder.prepare_certificates().unwrap(), Certificates::Made);
        assert_eq!(folder.prepare_certificates().unwrap(), Certificates::Kept);
        fs::remove_file(folder.root().join("pki/sensor.key.pem")).unwrap();
        assert_eq!(folder.prepare_certificates().unwrap(), Certificates::Made);
        let key = fs::metadata(folder.root().join("pki/sensor.key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_second_up_in_the_same_folder_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let first = Folder::open(temporary.path()).unwrap();
        assert!(matches!(Folder::open(temporary.path()), Err(UpError::InUse(_))));
        drop(first);
        Folder::open(temporary.path()).unwrap();
    }

    #[test]
    fn configuration_carries_interfaces_ports_and_certificates() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(&temporary.path().join("a \"b\"")).unwrap();
        folder.write_configuration(&["eth0".into(), "lo".into()], Frames::All, PORTS).unwrap();
        let sensor = fs::read_to_string(folder.configuration("sensor")).unwrap();
        assert!(sensor.contains("interface = [\"eth0\", \"lo\"]"), "{sensor}");
        assert!(sensor.contains("frames = \"all\""), "{sensor}");
        assert!(sensor.contains("collectors = [\"127.0.0.1:4751\"]"), "{sensor}");
        assert!(sensor.contains("a \\\"b\\\"/pki/sensor.key.pem\""), "{sensor}");
        let collector = fs::read_to_string(folder.configuration("collector")).unwrap();
        assert!(collector.contains("sensors = \"127.0.0.1:4751\""), "{collector}");
        assert!(collector.contains("api = \"127.0.0.1:8481\""), "{collector}");
    }
}
