//! Everything that can be wrong with what the configuration points at, checked before anything
//! starts, and by `check-config`. Makes and changes nothing.

use std::path::Path;

use nix::unistd::{AccessFlags, access};

use crate::config::{
    Config, ConfigError, DEFAULT_CA, DEFAULT_CERTIFICATE, DEFAULT_KEY, DEFAULT_STORE,
};
use crate::tls::{self, FileKind, Identity};

/// What the checks found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The TLS identity.
    pub identity: Identity,
    /// The name of this collector.
    pub name: String,
}

/// Checks certificates, key, name and store.
///
/// # Errors
/// The first fault, with its place in the configuration file.
pub fn check(config: &Config) -> Result<Checked, ConfigError> {
    let identity = tls::load(&config.tls).map_err(|error| {
        let (key, default) = match error.file() {
            FileKind::Ca => ("ca", DEFAULT_CA),
            FileKind::Certificate => ("certificate", DEFAULT_CERTIFICATE),
            FileKind::Key => ("key", DEFAULT_KEY),
        };
        config.origin.fault("tls", key, &format!("{default:?}"), error.to_string())
    })?;
    if let Some(name) = config.name.as_ref().filter(|name| **name != identity.name) {
        let problem = format!("the certificate says {:?}; {name:?} cannot be used", identity.name);
        return Err(config.origin.fault("collector", "name", "", problem));
    }
    check_store(config)?;
    Ok(Checked { name: identity.name.clone(), identity })
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
