//! Methods to answers: a path and a body in, a message or why there is none out.

use std::sync::Arc;

use bytes::Bytes;

use crate::doors::{Batch, Intent, SharedDesk};
use crate::engine::permit::PermitId;
use crate::engine::time::Timestamp;
use crate::policy::Part;

use super::answer::{self, Place};
use super::grpc::{Code, Fault, decode, framed, unframed};
use super::health;
use super::proto::RateLimitRequest;
use super::request::{self, Act};

const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// A message, framed, and what it gives to who hears it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    pub(super) permit: Option<PermitId>,
}

/// Answers a call of `path` whose body is `body`. From `late_at` on nobody waits for it.
pub(super) async fn answer(
    desk: &Arc<SharedDesk>,
    path: &str,
    body: &Bytes,
    late_at: Option<Timestamp>,
) -> Result<Reply, Fault> {
    match path {
        SHOULD_RATE_LIMIT => should_rate_limit(desk, body, late_at).await,
        health::CHECK => health::check(desk, body).map(|body| Reply { body, permit: None }),
        _ => {
            let (check, watch) = (health::CHECK, health::WATCH);
            let message = format!("there are the methods {SHOULD_RATE_LIMIT}, {check}, {watch}");
            Err(Fault::new(Code::Unimplemented, message))
        }
    }
}

async fn should_rate_limit(
    desk: &Arc<SharedDesk>,
    body: &Bytes,
    late_at: Option<Timestamp>,
) -> Result<Reply, Fault> {
    let message: RateLimitRequest = decode(body.slice_ref(unframed(body)?))?;
    let mut batch = Batch::new(desk);
    let loaded = Arc::clone(batch.loaded());
    let call = request::read(&message, &loaded.policy)?;
    let values: Vec<Vec<Option<&[u8]>>> =
        call.descriptors.iter().map(request::Descriptor::values).collect();
    let parts = call.descriptors.iter().zip(&values);
    let parts: Vec<Part<'_>> = parts.map(|(descriptor, values)| descriptor.part(values)).collect();
    let (mut checked, mut places) = (Vec::new(), Vec::with_capacity(parts.len()));
    // What was done before is settled first, so that what is asked with it finds it so.
    for (descriptor, part) in call.descriptors.iter().zip(&parts) {
        places.push(match descriptor.act {
            Act::Check => {
                checked.push(*part);
                Place::Part(checked.len() - 1)
            }
            Act::Amend(amend) => Place::Item(batch.amend_part(call.handle, part, amend)),
            Act::Release(permit) => Place::Item(batch.release(permit)),
        });
    }
    let check =
        (!checked.is_empty()).then(|| batch.check_together(call.handle, &checked, Intent::Charge));
    // What comes after the fact is done however late: nobody would ask for it again.
    if let (Some(late_at), Some(_)) = (late_at, check) {
        batch.due(late_at);
    }
    batch.decide().await;
    let answered = answer::answer(&batch, call.handle, check, &places)?;
    Ok(Reply { body: framed(&answered.response), permit: answered.permit })
}

/// Gives a permit back that nobody will hear of.
pub(super) async fn release(desk: &Arc<SharedDesk>, permit: PermitId) {
    let mut batch = Batch::new(desk);
    batch.release(permit);
    batch.decide().await;
}
