//! Methods to answers: a path and a body in, a message or why there is none out.

use std::sync::Arc;

use crate::doors::{Batch, Intent, SharedDesk};
use crate::engine::permit::PermitId;
use crate::policy::Part;

use super::answer::{self, Place};
use super::grpc::{Code, Fault, decode, framed, unframed};
use super::proto::{Health, HealthCheckRequest, HealthCheckResponse, RateLimitRequest};
use super::request::{self, Act};

const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// A message, framed, and what it gives to who hears it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    pub(super) permit: Option<PermitId>,
}

/// Answers a call of `path` whose body is `body`, and counts it.
pub(super) async fn answer(
    desk: &Arc<SharedDesk>,
    path: &str,
    body: &[u8],
) -> Result<Reply, Fault> {
    let answered = match path {
        SHOULD_RATE_LIMIT => should_rate_limit(desk, body).await,
        HEALTH_CHECK => health(desk, body),
        _ => {
            let message = format!("there are the methods {SHOULD_RATE_LIMIT} and {HEALTH_CHECK}");
            Err(Fault::new(Code::Unimplemented, message))
        }
    };
    desk.count_requests(1, answered.is_err().into());
    answered
}

async fn should_rate_limit(desk: &Arc<SharedDesk>, body: &[u8]) -> Result<Reply, Fault> {
    let message: RateLimitRequest = decode(unframed(body)?)?;
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

fn health(desk: &Arc<SharedDesk>, body: &[u8]) -> Result<Reply, Fault> {
    let message: HealthCheckRequest = decode(unframed(body)?)?;
    if !["", SERVICE].contains(&&*message.service) {
        return Err(Fault::new(Code::NotFound, format!("there is the service {SERVICE}")));
    }
    let serves = desk.with(|desk| {
        let steering = desk.instance.steering.get();
        !desk.instance.is_draining() && steering.is_none_or(|it| it.readiness().is_ok())
    });
    let status = if serves { Health::Serving } else { Health::NotServing } as i32;
    Ok(Reply { body: framed(&HealthCheckResponse { status }), permit: None })
}
