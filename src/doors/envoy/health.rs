//! gRPC's health service: whether this node serves, once, or from now on.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use h2::{Reason, SendStream};
use tokio::sync::watch::Receiver;
use tokio::time::sleep;

use crate::doors::SharedDesk;

use super::WATCH_EVERY;
use super::grpc::{Code, Fault, decode, framed, unframed};
use super::proto::{Health, HealthCheckRequest, HealthCheckResponse};

/// The service that there is, beside the node as a whole, which has no name.
const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";

pub(super) const CHECK: &str = "/grpc.health.v1.Health/Check";
pub(super) const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Which service a call is about.
pub(super) fn service(body: &[u8]) -> Result<String, Fault> {
    decode(unframed(body)?).map(|message: HealthCheckRequest| message.service)
}

/// Answers a call of [`CHECK`].
pub(super) fn check(desk: &Arc<SharedDesk>, body: &[u8]) -> Result<Vec<u8>, Fault> {
    match status(desk, &service(body)?) {
        Health::ServiceUnknown => {
            Err(Fault::new(Code::NotFound, format!("there is the service {SERVICE}")))
        }
        status => Ok(message(status)),
    }
}

/// Answers a call of [`WATCH`], until its client or its connection goes.
pub(super) async fn watch(
    desk: &Arc<SharedDesk>,
    service: &str,
    stream: &mut SendStream<Bytes>,
    mut closing: Receiver<bool>,
) -> Result<(), h2::Error> {
    let mut told = None;
    loop {
        // Before the last look, so that who watches a node that stops is told.
        let is_closing = *closing.borrow();
        let status = status(desk, service);
        if told != Some(status) {
            stream.send_data(Bytes::from(message(status)), false)?;
            told = Some(status);
        }
        if is_closing {
            return Ok(());
        }
        tokio::select! {
            () = sleep(WATCH_EVERY) => {}
            reset = poll_fn(|context| stream.poll_reset(context)) => {
                return Err(h2::Error::from(reset.unwrap_or(Reason::CANCEL)));
            }
            _ = closing.changed() => {}
        }
    }
}

fn message(status: Health) -> Vec<u8> {
    framed(&HealthCheckResponse { status: status as i32 })
}

fn status(desk: &Arc<SharedDesk>, service: &str) -> Health {
    if !["", SERVICE].contains(&service) {
        return Health::ServiceUnknown;
    }
    let serves = desk.with(|desk| {
        let steering = desk.instance.steering.get();
        !desk.instance.is_draining() && steering.is_none_or(|it| it.readiness().is_ok())
    });
    if serves { Health::Serving } else { Health::NotServing }
}
