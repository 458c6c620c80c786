//! Is the collector doing its work, and will it tomorrow? What an operator has to do something about.

use std::sync::atomic::Ordering;

use trust::words::utc;

use crate::status::Shared;

/// What is wrong, in words; empty when all is well. `now` is in seconds since 1970.
#[must_use]
pub fn problems(shared: &Shared, now: i64) -> Vec<String> {
    let mut problems = Vec::new();
    if shared.is_store_failing.load(Ordering::Relaxed) {
        problems.push("the store fails".to_owned());
    }
    if shared.is_disk_short.load(Ordering::Relaxed) {
        problems.push("the disk of the store is nearly full".to_owned());
    }
    if shared.events.is_failing.load(Ordering::Relaxed) {
        problems.push("the event log cannot be written".to_owned());
    }
    if let Some(api) = shared.api_tls.get() {
        problems.extend(api.problems(now));
    }
    let Some(tls) = shared.tls.get() else { return problems };
    problems.extend(tls.problems(now));
    let warning = i64::try_from(tls.warning().as_secs()).unwrap_or(i64::MAX);
    for sensor in shared.sensors() {
        let state = sensor.state();
        // A sensor that is away may have its new certificate already.
        let until = state.certificate_until.filter(|_| state.connection.is_some());
        drop(state);
        if let Some(until) = until.filter(|until| until.saturating_sub(now) < warning) {
            let (name, when) = (sensor.name(), utc(until));
            problems.push(format!(
                "the certificate of sensor {name} expires at {when}: ringwatch pki renew DIR {name}"
            ));
        }
    }
    problems
}
