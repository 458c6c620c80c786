//! An authority, and what it issues for a collector and its sensors. Keys are made anew each time.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Name of a sensor.
pub fn name(sensor: u32) -> String {
    format!("fleet-{sensor:04}")
}

/// Files of a sensor's identity.
pub fn files(folder: &Path, sensor: u32) -> trust::Files {
    let of = |end: &str| folder.join(format!("{}.{end}", name(sensor)));
    trust::Files {
        ca: folder.join("ca.pem"),
        certificate: of("pem"),
        key: of("key.pem"),
        crl: None,
    }
}

/// Makes `ca.pem`, `collector.pem` and `collector.key.pem` for a collector called `fleet` at
/// 127.0.0.1, and certificate and key of each sensor.
pub fn prepare(folder: &Path, sensors: u32) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let issuer = CertifiedIssuer::self_signed(params, key).map_err(io::Error::other)?;
    fs::write(folder.join("ca.pem"), issuer.pem())?;
    let own = [folder.join("collector.pem"), folder.join("collector.key.pem")];
    issue(&issuer, "collector/fleet", ExtendedKeyUsagePurpose::ServerAuth, own)?;
    for sensor in 0..sensors {
        let trust::Files { certificate, key, .. } = files(folder, sensor);
        let role = format!("sensor/{}", name(sensor));
        issue(&issuer, &role, ExtendedKeyUsagePurpose::ClientAuth, [certificate, key])?;
    }
    Ok(())
}

fn issue(
    issuer: &CertifiedIssuer<'_, KeyPair>,
    role: &str,
    purpose: ExtendedKeyUsagePurpose,
    [certificate, key_file]: [PathBuf; 2],
) -> io::Result<()> {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    let uri = format!("ringwatch://{role}").as_str().try_into().map_err(io::Error::other)?;
    params.subject_alt_names.push(SanType::URI(uri));
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let signed = params.signed_by(&key, issuer).map_err(io::Error::other)?;
    fs::write(certificate, signed.pem())?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(key_file)?;
    file.write_all(key.serialize_pem().as_bytes())
}
