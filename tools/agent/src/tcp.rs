//! The REST API over TCP: with TLS, unless it is for this host alone; and for who has a token.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use lightv_api::exit;
use lightv_launch::serve::TcpArgs;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::agent::Agent;
use crate::limits;
use crate::server::{Access, ConnectionPlace, Connections, serve};
use crate::tokens::{Tokens, TokensError};

/// Why TCP is not served.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// Without TLS.
    #[error(
        "--listen {address}: needs --tls-cert and --tls-key, or --insecure-loopback and an address of this host alone, as 127.0.0.1:{}",
        address.port()
    )]
    NoTls {
        /// Where.
        address: SocketAddr,
    },
    /// Without TLS for others.
    #[error(
        "--insecure-loopback: {address} can be reached from other hosts; without TLS 127.0.0.0/8 and ::1 are allowed"
    )]
    NotLoopback {
        /// Where.
        address: SocketAddr,
    },
    /// The address is not to be had.
    #[error("--listen: cannot serve at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A file cannot be read.
    #[error("{option}: cannot read {}", path.display())]
    Read {
        /// Who names it.
        option: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A file is not what it should be.
    #[error("{option}: {} has no {what} in PEM form", path.display())]
    Pem {
        /// Who names it.
        option: &'static str,
        /// Which one.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
        /// What was found.
        #[source]
        cause: pem::Error,
    },
    /// Others can read the key.
    #[error("--tls-key: {} has the permissions {mode:03o}: others must have none; chmod 600 it", path.display())]
    OpenKey {
        /// Which one.
        path: PathBuf,
        /// What it has.
        mode: u32,
    },
    /// They do not fit.
    #[error("--tls-cert {}, --tls-key {}: cannot be used together", cert.display(), key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why not.
        #[source]
        cause: rustls::Error,
    },
    /// The tokens are not to be had.
    #[error(transparent)]
    Tokens(#[from] TokensError),
}

/// All that TCP needs, read and bound.
#[derive(Debug)]
pub struct TcpPlan {
    listener: StdListener,
    tls: Option<Arc<ServerConfig>>,
    tokens: Tokens,
}

impl TcpError {
    /// What the process ends with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoTls { .. } | Self::NotLoopback { .. } => exit::BAD_ARGUMENTS,
            Self::Listen { .. } => exit::HOST_FAILURE,
            _ => exit::BAD_CONFIG,
        }
    }
}

/// Reads the files that `args` name and takes the address; `None` when no TCP is asked for.
///
/// # Errors
/// [`TcpError`], which names the option and its file.
pub fn prove(args: &TcpArgs) -> Result<Option<TcpPlan>, TcpError> {
    // The parser has seen to it that both are there or neither is.
    let (Some(address), Some(token_file)) = (args.listen, &args.token_file) else {
        return Ok(None);
    };
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(Arc::new(tls_config(cert, key)?)),
        _ if !args.insecure_loopback => return Err(TcpError::NoTls { address }),
        _ if !address.ip().is_loopback() => return Err(TcpError::NotLoopback { address }),
        _ => None,
    };
    let tokens = Tokens::read(token_file)?;
    let failed = |cause| TcpError::Listen { address, cause };
    let listener = StdListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Some(TcpPlan {
        listener,
        tls,
        tokens,
    }))
}

fn tls_config(cert: &Path, key: &Path) -> Result<ServerConfig, TcpError> {
    let option = "--tls-cert";
    let text = read(option, cert, |_| Ok(()))?;
    let bad_cert = |cause| TcpError::Pem {
        option,
        path: cert.to_owned(),
        what: "certificate",
        cause,
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(bad_cert)?;
    if chain.is_empty() {
        return Err(bad_cert(pem::Error::NoItemsFound));
    }
    let option = "--tls-key";
    let text = read(option, key, |mode| match mode & 0o007 {
        0 => Ok(()),
        _ => Err(TcpError::OpenKey {
            path: key.to_owned(),
            mode,
        }),
    })?;
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|cause| TcpError::Pem {
        option,
        path: key.to_owned(),
        what: "private key",
        cause,
    })?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            let builder = builder.with_no_client_auth();
            builder.with_single_cert(chain, private)
        });
    let mut config = config.map_err(|cause| TcpError::Pair {
        cert: cert.to_owned(),
        key: key.to_owned(),
        cause,
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A file of a limited size, whose permissions `judge` allows.
fn read(
    option: &'static str,
    path: &Path,
    judge: impl FnOnce(u32) -> Result<(), TcpError>,
) -> Result<Vec<u8>, TcpError> {
    let failed = |cause| TcpError::Read {
        option,
        path: path.to_owned(),
        cause,
    };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    judge(found.mode() & 0o777)?;
    let mut bytes = Vec::new();
    let read = file.take(limits::PEM_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(failed)?;
    Ok(bytes)
}

impl TcpPlan {
    /// The same inside a runtime.
    ///
    /// # Errors
    /// The host refuses what that needs.
    pub fn into_server(self) -> io::Result<TcpServer> {
        Ok(TcpServer {
            listener: TcpListener::from_std(self.listener)?,
            tls: self.tls,
            tokens: self.tokens,
        })
    }
}

/// An address that is served.
#[derive(Debug)]
pub struct TcpServer {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    tokens: Tokens,
}

impl TcpServer {
    /// Where the page is: the kernel may have chosen the port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn page_url(&self) -> io::Result<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}/web/", self.listener.local_addr()?))
    }

    /// Serves all who come, for ever.
    pub async fn serve(self, agent: Rc<Agent>, connections: Connections) {
        let listener = self.listener;
        let access = Access::Token(Rc::new(self.tokens));
        let tls = self.tls.map(TlsAcceptor::from);
        // Who has no token yet must not keep away those who come by the Unix socket.
        let own = Connections::default();
        let max = agent.settings.connections_max;
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(limits::ACCEPT_PAUSE).await;
                continue;
            };
            // Without TLS's greeting there are no words for a refusal.
            let (Some(own), Some(shared)) = (own.take(max / 2), connections.take(max)) else {
                continue;
            };
            let (agent, access, tls) = (Rc::clone(&agent), access.clone(), tls.clone());
            spawn_local(async move {
                let _places: [ConnectionPlace; 2] = [own, shared];
                serve_one(stream, tls, (agent, access)).await;
            });
        }
    }
}

async fn serve_one(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    (agent, access): (Rc<Agent>, Access),
) {
    // Small answers must not wait for each other. It is only slower without.
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, agent, access).await,
        Some(tls) => {
            let greeted = timeout(limits::GREETING_TIME_MAX, tls.accept(stream)).await;
            // Who cannot greet has been told so by TLS.
            if let Ok(Ok(stream)) = greeted {
                serve(stream, agent, access).await;
            }
        }
    }
}
