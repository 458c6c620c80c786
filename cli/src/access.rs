//! Which collector a command asks, and what it shows there.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::api::{ApiError, Client, Credentials};

/// Where a collector is, and what it asks for.
#[derive(Args, Debug)]
pub struct Collector {
    /// The collector's HTTP interface
    #[arg(
        long,
        value_name = "URL",
        env = "RINGWATCH_COLLECTOR",
        default_value = "http://127.0.0.1:8480"
    )]
    collector: String,
    /// File with the token to show; the variable RINGWATCH_TOKEN may hold the token itself
    #[arg(long, value_name = "FILE", env = "RINGWATCH_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Authority of the collector's certificate, for https:// (PEM)
    #[arg(long, value_name = "FILE", env = "RINGWATCH_CA")]
    ca: Option<PathBuf>,
}

impl Collector {
    /// A client of that collector, which waits at most `patience` for an answer.
    ///
    /// # Errors
    /// [`ApiError::Token`], and those of [`Client::with`].
    pub fn client(&self, patience: Duration) -> Result<Client, ApiError> {
        let token = match &self.token_file {
            None => std::env::var("RINGWATCH_TOKEN").ok(),
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|source| ApiError::Token { path: path.clone(), source })?,
            ),
        };
        let credentials = Credentials { token, authority: self.ca.clone() };
        Client::with(&self.collector, patience, &credentials)
    }
}
