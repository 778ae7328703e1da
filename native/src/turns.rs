//! Turns of strangers: connections without an answer are read one after the other, and between two of them all that is
//! ready has its turn. However many push in at once, an honest call waits for a piece of one of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::shared::locked;

#[derive(Debug, Default)]
pub struct Turns {
    queue: Mutex<Queue>,
    called: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    next_number: u64,
    is_taken: bool,
    waiting: BTreeMap<u64, Waker>,
}

impl Turns {
    /// Goes on with the next turn when all that was ready has had its own.
    pub async fn usher_forever(self: Arc<Self>) {
        loop {
            self.called.notified().await;
            loop {
                yield_now().await;
                let mut queue = locked(&self.queue);
                queue.is_taken = false;
                // Who is called and does not come holds up nobody: the next is called all the same.
                let Some((_, next)) = queue.waiting.pop_first() else { break };
                drop(queue);
                next.wake();
            }
        }
    }
}

/// A connection's place in the queue.
#[derive(Debug)]
pub struct Ticket {
    turns: Arc<Turns>,
    number: Option<u64>,
}

impl Ticket {
    pub fn new(turns: Arc<Turns>) -> Self {
        Self { turns, number: None }
    }

    /// Takes the turn, or waits for it in the order in which others came.
    pub fn poll_turn(&mut self, context: &Context<'_>) -> Poll<()> {
        let mut queue = locked(&self.turns.queue);
        let number = self.number.unwrap_or(queue.next_number);
        if queue.is_taken {
            queue.next_number = queue.next_number.max(number + 1);
            queue.waiting.insert(number, context.waker().clone());
            self.number = Some(number);
            return Poll::Pending;
        }
        queue.is_taken = true;
        queue.waiting.remove(&number);
        self.number = None;
        self.turns.called.notify_one();
        Poll::Ready(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            locked(&self.turns.queue).waiting.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// What happens, in its order, where each of four strangers takes three turns, and a friend is always ready.
    #[tokio::test]
    async fn between_two_turns_all_that_is_ready_has_its_own_and_nobody_is_passed_over() {
        let (turns, events) = (Arc::new(Turns::default()), Arc::new(Mutex::new(Vec::new())));
        let usher = tokio::spawn(turns.clone().usher_forever());
        let strangers: Vec<_> = (0..4)
            .map(|stranger| {
                let (mut ticket, events) = (Ticket::new(turns.clone()), events.clone());
                tokio::spawn(async move {
                    for _ in 0..3 {
                        poll_fn(|context| ticket.poll_turn(context)).await;
                        locked(&events).push(stranger);
                    }
                })
            })
            .collect();
        let (friends, is_done) = (events.clone(), Arc::new(Notify::new()));
        let told = is_done.clone();
        let friend = tokio::spawn(async move {
            tokio::select! {
                () = told.notified() => {}
                () = async { loop { locked(&friends).push(9); yield_now().await } } => {}
            }
        });
        for stranger in strangers {
            stranger.await.unwrap();
        }
        is_done.notify_one();
        friend.await.unwrap();
        usher.abort();
        let events = locked(&events);
        let order: Vec<_> = events.iter().filter(|&&event| event != 9).copied().collect();
        assert_eq!(order, [0, 0, 1, 2, 3, 0, 1, 2, 3, 1, 2, 3]); // the first asks again before the others ask
        assert!(events.windows(2).all(|two| two.contains(&9)), "{events:?}");
    }

    #[tokio::test]
    async fn who_is_called_and_does_not_come_or_has_gone_holds_up_nobody() {
        let turns = Arc::new(Turns::default());
        let [mut first, mut absent, gone, mut last] = [(); 4].map(|()| Ticket::new(turns.clone()));
        let usher = tokio::spawn(turns.clone().usher_forever());
        poll_fn(|context| first.poll_turn(context)).await;
        let mut gone = gone;
        poll_fn(|context| {
            assert!(absent.poll_turn(context).is_pending() && gone.poll_turn(context).is_pending());
            Poll::Ready(())
        })
        .await;
        drop(gone);
        poll_fn(|context| last.poll_turn(context)).await;
        assert!(locked(&turns.queue).waiting.is_empty());
        usher.abort();
    }
}
