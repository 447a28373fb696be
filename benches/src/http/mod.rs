//! Servers on loopback: a storefront, and bare axum handlers that read and write the same.

mod bare;
mod client;
mod teller;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::serve::ListenerExt;
use hybrid_cloud::storefront::Storefront;
use hybrid_core::{Cancellation, ServedModel};
use tokio::{net::TcpListener, runtime::Runtime};

pub use bare::router as bare_router;
pub use client::{Asked, Read};

use crate::{
    linear::{self, LinearClassifier},
    must,
};
use teller::Teller;

/// Text deltas of one streamed answer.
pub const TOKENS: usize = 256;

/// A server on a loopback port.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Cancellation,
}

impl Server {
    /// A storefront as it is built by default, on `runtime`: with ids, deadlines, limits, spans and the checks of its body.
    pub fn storefront(runtime: &Runtime) -> Self {
        let storefront = storefront();
        Self::start(runtime, |listener, stop| async move {
            let router = storefront.router();
            storefront.serve(listener, router, stop.cancelled_owned(), Duration::from_secs(1)).await;
        })
    }

    /// The same models behind one axum handler each and nothing else.
    pub fn bare(runtime: &Runtime) -> Self {
        Self::start(runtime, |listener, stop| async move {
            // As the storefront does: without it a stream waits for the client's delayed acknowledgements.
            let listener = listener.tap_io(|stream| must(stream.set_nodelay(true)));
            must(axum::serve(listener, bare_router()).with_graceful_shutdown(stop.cancelled_owned()).await);
        })
    }

    /// Asks for `requests` classifications in all from this many connections, on a thread of its own.
    pub fn ask(&self, connections: usize, requests: usize) -> Asked {
        client::ask(self.address, connections, requests)
    }

    /// Asks for `answers` streamed answers in all from this many connections, on a thread of its own.
    pub fn read(&self, connections: usize, answers: usize) -> Read {
        client::read(self.address, connections, answers)
    }

    fn start<F: Future<Output = ()> + Send + 'static>(
        runtime: &Runtime,
        serve: impl FnOnce(TcpListener, Cancellation) -> F,
    ) -> Self {
        let stop = Cancellation::new();
        let listener = must(runtime.block_on(TcpListener::bind("127.0.0.1:0")));
        let address = must(listener.local_addr());
        runtime.spawn(serve(listener, stop.clone()));
        Self { address, stop }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A storefront with both models.
pub fn storefront() -> Storefront {
    let classifier = Arc::new(LinearClassifier::new(linear::weights(1), ServedModel::named("linear")));
    let builder = Storefront::builder().classify("linear", classifier).chat("teller", Arc::new(Teller::default()));
    must(builder.build())
}
