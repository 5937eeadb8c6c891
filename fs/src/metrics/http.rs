//! `GET /metrics`, and nothing else.
//!
//! Bounded in every way: connections at once, the head of a request, the time of a connection. One that says nothing takes a
//! place until its time is up; others wait for a place in the kernel's queue, first come, first served.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Identity;
use crate::fs::Fs;

/// Connections at once.
const MAX_CONNECTIONS: usize = 16;

/// How long the head of a request may take.
const HEAD_LIMIT: Duration = Duration::from_secs(2);

/// How long a connection may take in all.
const LIMIT: Duration = Duration::from_secs(10);

/// Longest head of a request, in bytes (hyper takes no less).
const MAX_HEAD: usize = 8 << 10;

/// After a connection could not be taken, since there are no descriptors, say.
const PAUSE: Duration = Duration::from_millis(100);

/// The text format, <https://prometheus.io/docs/instrumenting/exposition_formats/>.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers until it is told to end.
pub(super) async fn serve(listener: TcpListener, fs: Arc<Fs>, identity: Identity, mut ended: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let identity = Arc::new(identity);
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            _ = ended.wait_for(|ended| *ended) => break,
            accepted = accepted => accepted,
        };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        let (fs, identity) = (fs.clone(), identity.clone());
        connections.spawn(async move {
            let _place = place;
            connection(stream, fs, identity).await;
        });
    }
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, fs: Arc<Fs>, identity: Arc<Identity>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (fs, identity) = (fs.clone(), identity.clone());
        async move { Ok::<_, Infallible>(answer(&request, &fs, &identity).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(MAX_HEAD).keep_alive(false);
    match timeout(LIMIT, server.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a scrape of metrics: {error}"),
        Err(_) => tracing::debug!("a scrape of metrics took longer than {} s", LIMIT.as_secs()),
    }
}

async fn answer(request: &Request<Incoming>, fs: &Fs, identity: &Identity) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
    } else if request.method() == Method::GET {
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(FORMAT));
        *response.body_mut() = Full::from(super::now(fs, identity).await);
    } else {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
    }
    response
}
