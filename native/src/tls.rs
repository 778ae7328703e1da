//! TLS by rustls, and mutual TLS: clients then need a certificate of a given authority.
#![forbid(unsafe_code)]

use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::time::Validity;

use crate::io::Io;
use crate::log;
use crate::watched::Watched;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// So many days before a certificate's end the log says so; the last time it has ended.
const WARN_DAYS: [u32; 4] = [30, 7, 1, 0];

#[derive(Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_authority: Option<PathBuf>,
}

/// What the files hold, and until when it is valid.
struct Identity {
    config: Arc<ServerConfig>,
    validity: Validity,
}

/// The files' certificate and key, always those of today.
pub struct Tls {
    identity: Watched<Identity>,
    num_warnings: AtomicUsize,
}

impl Tls {
    pub fn new(certificate: &str, key: &str, client_authority: Option<&str>) -> Result<Self> {
        let files = Files {
            certificate: certificate.into(),
            key: key.into(),
            client_authority: client_authority.map(Into::into),
        };
        let mut paths = vec![files.certificate.clone(), files.key.clone()];
        paths.extend(files.client_authority.clone());
        let identity = Watched::new(paths, move || identity(&files))?;
        Ok(Self { identity, num_warnings: AtomicUsize::new(0) })
    }

    pub fn look(&self) {
        self.identity.look();
        let validity = &self.identity.current().validity;
        let left = validity.not_after.to_unix_duration().saturating_sub(now());
        let num_warnings = WARN_DAYS.iter().filter(|days| left <= DAY * **days).count();
        if num_warnings > self.num_warnings.swap(num_warnings, Relaxed) {
            let cure = "put a new one in its place: it is read again";
            log::warning(&format!("the TLS certificate is valid until {} ({cure})", validity.not_after));
        }
    }

    /// When the certificate ends, in seconds since 1970.
    pub fn expires_s(&self) -> u64 {
        self.identity.current().validity.not_after.to_unix_duration().as_secs()
    }

    /// The connection behind its handshake; None for a client that does not manage it.
    pub async fn accept(&self, io: Box<dyn Io>) -> Option<Box<dyn Io>> {
        let acceptor = TlsAcceptor::from(self.identity.current().config.clone());
        match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(io)).await {
            Ok(Ok(io)) => Some(Box::new(io)),
            _ => None,
        }
    }
}

fn identity(files: &Files) -> Result<Identity> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(Error::other)?;
    let builder = match &files.client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| bad(path, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| bad(path, &error))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, &error))?;
    let chain = certificates(&files.certificate)?;
    let validity = validity(&files.certificate, chain.first())?;
    let mut config = builder.with_single_cert(chain, key).map_err(|error| bad(&files.certificate, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Identity { config: Arc::new(config), validity })
}

/// Err for a certificate that is not valid now.
fn validity(path: &Path, certificate: Option<&CertificateDer<'_>>) -> Result<Validity> {
    let certificate = Certificate::from_der(certificate.map_or(&[], |first| first.as_ref()));
    let validity = *certificate.map_err(|error| bad(path, &error))?.tbs_certificate().validity();
    let (first, last) = (validity.not_before, validity.not_after);
    if (first.to_unix_duration()..=last.to_unix_duration()).contains(&now()) {
        return Ok(validity);
    }
    Err(bad(path, &format!("it is valid from {first} until {last}, which is not now")))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    certificates.map_err(|error| bad(path, &error))
}

fn bad(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidData,
        format!("BAD_TLS: {}: {error} (give certificates and key in PEM)", path.display()),
    )
}
