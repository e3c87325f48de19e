//! What Raft runs on in test builds: tokio, with random numbers of the simulation's seed where one
//! runs on this thread. Elsewhere they are of chance.
#![allow(deprecated, reason = "tokio's runtime goes by a name that openraft wants to drop")]

use core::cell::Cell;
use core::fmt;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::impls::TokioRuntime;
use openraft::rt::AsyncRuntime;
use openraft::rt::deterministic_rng::DeterministicRng;

use super::random::Random;

std::thread_local! {
    static SEEDED: Cell<Option<Random>> = const { Cell::new(None) };
}

/// Whether a simulation runs on this thread.
pub(in crate::cluster) fn is_running() -> bool {
    SEEDED.get().is_some()
}

/// From here on a simulation of this seed runs on this thread.
pub(super) fn begin(seed: u64) {
    SEEDED.set(Some(Random::new(seed)));
}

/// Tokio with random numbers of a seed.
pub struct Runtime(TokioRuntime);

type Seeded = DeterministicRng<TokioRuntime>;

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runtime")
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = super::watch::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        let seed = match SEEDED.get() {
            Some(mut random) => {
                let seed = random.next();
                SEEDED.set(Some(random));
                seed
            }
            None => RandomState::new().hash_one(0),
        };
        let made = pin!(Seeded::scope(seed, async { Seeded::thread_rng() }));
        match made.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(rng) => rng,
            Poll::Pending => unreachable!("it waits for nothing"),
        }
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
