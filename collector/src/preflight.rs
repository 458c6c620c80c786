//! Everything that can be wrong with what the configuration points at, checked before anything
//! starts, and by `check-config`. Makes and changes nothing.

use std::path::Path;

use nix::unistd::{AccessFlags, access};
use trust::{CollectorTls, FileKind, Identity, Keeper};

use crate::config::{
    Config, ConfigError, DEFAULT_CA, DEFAULT_CERTIFICATE, DEFAULT_KEY, DEFAULT_STORE,
};
/// What the checks found.
#[derive(Debug)]
pub struct Checked {
    /// The TLS identity.
    pub identity: Keeper<CollectorTls>,
    /// The name of this collector.
    pub name: String,
}

/// Checks certificates, key, name and store.
///
/// # Errors
/// The first fault, with its place in the configuration file.
pub fn check(config: &Config) -> Result<Checked, ConfigError> {
    let identity = Keeper::<CollectorTls>::open(config.tls.clone(), config.expiry_warning);
    let identity = identity.map_err(|error| {
        let default = match error.file() {
            FileKind::Ca => DEFAULT_CA,
            FileKind::Certificate => DEFAULT_CERTIFICATE,
            FileKind::Key => DEFAULT_KEY,
            FileKind::Crl => "",
        };
        let key = error.file().name();
        config.origin.fault("tls", key, &format!("{default:?}"), error.to_string())
    })?;
    let certified = identity.current().name().to_owned();
    if let Some(name) = config.name.as_ref().filter(|name| **name != certified) {
        let problem = format!("the certificate says {certified:?}; {name:?} cannot be used");
        return Err(config.origin.fault("collector", "name", "", problem));
    }
    check_store(config)?;
    Ok(Checked { name: certified, identity })
}

/// Whether the store's folder can be written, or made.
fn check_store(config: &Config) -> Result<(), ConfigError> {
    let fault = |problem: String| {
        config.origin.fault("store", "path", &format!("{DEFAULT_STORE:?}"), problem)
    };
    let path = &config.store.path;
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    if !existing.is_dir() {
        return Err(fault(format!("{} is no folder", existing.display())));
    }
    let rights = AccessFlags::W_OK | AccessFlags::X_OK;
    access(existing, rights)
        .map_err(|error| fault(format!("{} cannot be written: {error}", existing.display())))
}
