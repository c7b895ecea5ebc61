//! A bound on open connections: each costs memory and a file handle, whether or not it ever asks anything.

use axum_server::accept::Accept;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

/// Lets in as many as there are places; the others are closed at once.
#[derive(Debug, Clone)]
pub(super) struct Crowd<A> {
    inner: A,
    places: Arc<Semaphore>,
}

/// The service of one connection, and its place, which is free again when the connection is gone.
#[derive(Debug, Clone)]
pub(super) struct Held<S> {
    service: S,
    _place: Arc<OwnedSemaphorePermit>,
}

impl<A> Crowd<A> {
    pub(super) fn new(inner: A, places: usize) -> Self {
        Self { inner, places: Arc::new(Semaphore::new(places)) }
    }
}

impl<A, I, S> Accept<I, S> for Crowd<A>
where
    A: Accept<I, S>,
    A::Future: Send + 'static,
{
    type Stream = A::Stream;
    type Service = Held<A::Service>;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return Box::pin(async { Err(io::Error::other("too many connections are open")) });
        };
        let accepting = self.inner.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            Ok((stream, Held { service, _place: Arc::new(place) }))
        })
    }
}

impl<S: Service<R>, R> Service<R> for Held<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.service.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum_server::accept::DefaultAcceptor;

    #[tokio::test]
    async fn a_connection_too_many_is_closed_until_another_has_gone() {
        let crowd = Crowd::new(DefaultAcceptor::new(), 1);
        let first = crowd.accept("a stream", "a service").await.unwrap();
        assert!(crowd.accept("a stream", "a service").await.is_err());
        drop(first);
        assert!(crowd.accept("a stream", "a service").await.is_ok());
    }
}
