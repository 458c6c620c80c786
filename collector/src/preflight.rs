//! Everything that can be wrong with what the configuration points at, checked before anything
//! starts, and by `check-config`. Makes and changes nothing.

use std::path::Path;

use nix::unistd::{AccessFlags, access};
use trust::{ApiTls, CollectorTls, FileKind, Files, Identity, Keeper};

use crate::api::access::Gate;
use crate::audit::Audit;
use crate::config::{
    ApiConfig, Config, ConfigError, DEFAULT_CA, DEFAULT_CERTIFICATE, DEFAULT_KEY, DEFAULT_STORE,
};
/// What the checks found.
pub struct Checked {
    /// The TLS identity.
    pub identity: Keeper<CollectorTls>,
    /// The name of this collector.
    pub name: String,
    /// The certificate of the API, if that has TLS.
    pub api_identity: Option<Keeper<ApiTls>>,
    /// Who may use the API, if there is one.
    pub gate: Option<Gate>,
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
    let (api_identity, gate) = check_api(config, &certified)?;
    Ok(Checked { name: certified, identity, api_identity, gate })
}

/// Certificate and tokens of the API.
fn check_api(
    config: &Config,
    name: &str,
) -> Result<(Option<Keeper<ApiTls>>, Option<Gate>), ConfigError> {
    let Some(ApiConfig { tokens, tls, .. }) = &config.api else { return Ok((None, None)) };
    let open = |files: &Files| {
        Keeper::<ApiTls>::open(files.clone(), config.expiry_warning)
            .map_err(|error| config.origin.fault("api", error.file().name(), "", error.to_string()))
    };
    let identity = tls.as_ref().map(open).transpose()?;
    let audit = Audit::new(config.store.path.join("audit.json"), name.to_owned());
    let gate = Gate::open(tokens.clone(), audit)
        .map_err(|error| config.origin.fault("api", "tokens", "", error.to_string()))?;
    Ok((identity, Some(gate)))
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
