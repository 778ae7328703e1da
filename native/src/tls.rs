//! TLS by rustls, and mutual TLS: clients then need a certificate of a given authority.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::io::Io;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server shows its clients. Python reads the files (serving/access.py), and again when they change.
pub struct Identity {
    config: Arc<ServerConfig>,
    /// When the certificate ends, in seconds since 1970.
    pub expires_s: u64,
}

impl Identity {
    /// All three in PEM. Err, in rustls' words, for what cannot be used.
    pub fn new(chain: &[u8], key: &[u8], authority: Option<&[u8]>, expires_s: u64) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(text)?;
        let builder = match authority {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                certificates(authority)?.into_iter().try_for_each(|one| roots.add(one)).map_err(text)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(text)?)
            }
        };
        let key = PrivateKeyDer::from_pem_slice(key).map_err(text)?;
        let mut config = builder.with_single_cert(certificates(chain)?, key).map_err(text)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), expires_s })
    }

    /// The connection behind its handshake; None for a client that does not manage it.
    pub async fn accept(&self, io: Box<dyn Io>) -> Option<Box<dyn Io>> {
        let acceptor = TlsAcceptor::from(self.config.clone());
        match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(io)).await {
            Ok(Ok(io)) => Some(Box::new(io)),
            _ => None,
        }
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(text)
}

fn text(error: impl Display) -> String {
    error.to_string()
}
