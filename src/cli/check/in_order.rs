//! Many checks in flight, told in their order.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Futures that are begun in the order in which they came, and whose outputs come in that order.
///
/// The client sends a request when its future is first polled. Every poll goes from the oldest to
/// the newest, so requests are sent, and decided, in their order.
pub(super) struct InOrder<F: Future> {
    places: VecDeque<Place<F>>,
}

enum Place<F: Future> {
    Waiting(Pin<Box<F>>),
    Done(F::Output),
}

impl<F: Future> Default for InOrder<F> {
    fn default() -> Self {
        Self { places: VecDeque::new() }
    }
}

impl<F: Future> InOrder<F> {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn push(&mut self, future: F) {
        self.places.push_back(Place::Waiting(Box::pin(future)));
    }

    /// The output of the oldest; `None` if there is none.
    pub(super) async fn next(&mut self) -> Option<F::Output> {
        poll_fn(|context| {
            for place in &mut self.places {
                if let Place::Waiting(future) = place
                    && let Poll::Ready(output) = future.as_mut().poll(context)
                {
                    *place = Place::Done(output);
                }
            }
            match self.places.pop_front() {
                Some(Place::Done(output)) => Poll::Ready(Some(output)),
                Some(waiting) => {
                    self.places.push_front(waiting);
                    Poll::Pending
                }
                None => Poll::Ready(None),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn futures_are_begun_and_told_in_their_order() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begun = RefCell::new(Vec::new());
        let begin = async |number: usize| {
            begun.borrow_mut().push(number);
            // The older, the longer.
            for _ in number..100 {
                tokio::task::yield_now().await;
            }
            number
        };
        let told = runtime.block_on(async {
            let mut waiting = InOrder::default();
            (0..100).for_each(|number| waiting.push(begin(number)));
            let mut told = Vec::new();
            while let Some(number) = waiting.next().await {
                told.push(number);
            }
            told
        });
        let all: Vec<usize> = (0..100).collect();
        assert_eq!((&told, &*begun.borrow()), (&all, &all));
    }
}
