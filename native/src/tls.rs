//! TLS by rustls, and mutual TLS: clients then need a certificate of a given authority.
#![forbid(unsafe_code)]

use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::connection::Io;
use crate::watched::Watched;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_authority: Option<PathBuf>,
}

/// The files' certificate and key, always those of today.
pub struct Tls(Watched<ServerConfig>);

impl Tls {
    pub fn new(certificate: &str, key: &str, client_authority: Option<&str>) -> Result<Self> {
        let files = Files {
            certificate: certificate.into(),
            key: key.into(),
            client_authority: client_authority.map(Into::into),
        };
        let mut paths = vec![files.certificate.clone(), files.key.clone()];
        paths.extend(files.client_authority.clone());
        Ok(Self(Watched::new(paths, move || config(&files))?))
    }

    pub fn look(&self) {
        self.0.look();
    }

    /// The connection behind its handshake; None for a client that does not manage it.
    pub async fn accept(&self, io: Box<dyn Io>) -> Option<Box<dyn Io>> {
        let acceptor = TlsAcceptor::from(self.0.current());
        match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(io)).await {
            Ok(Ok(io)) => Some(Box::new(io)),
            _ => None,
        }
    }
}

fn config(files: &Files) -> Result<ServerConfig> {
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
    let mut config = builder.with_single_cert(chain, key).map_err(|error| bad(&files.certificate, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
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
