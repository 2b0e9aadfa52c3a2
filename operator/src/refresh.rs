//! Watches that start again on demand.
//!
//! Who was cut off from the API server may have the lease again before its watches have noticed anything: they wait up to
//! half a minute between tries, and a connection that nobody ended is silent for longer. What it then wrote would be a
//! former state of the cluster. So it lists everything again before it writes.

use futures::{StreamExt, stream};
use kube::runtime::watcher::{self, Event};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// What happens to objects of a kind.
pub type Events<K> = futures::stream::BoxStream<'static, watcher::Result<Event<K>>>;

/// Makes watches start again, and knows when each has caught up.
#[derive(Debug)]
pub struct Refresh {
    /// How long a watch is waited for that the operator can do without.
    patience: Duration,
    /// How often it was asked for.
    asked: watch::Sender<u64>,
    /// For each watch, the request that it has followed.
    followed: Mutex<Vec<(Need, watch::Receiver<u64>)>>,
}

/// What the operator does without a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Vital,
    /// Most of its work, so nobody waits for it long: the kind may be missing, or the right to see it.
    Useful,
}

struct Watch<K, M> {
    make: M,
    events: Events<K>,
    asked: watch::Receiver<u64>,
    round: u64,
    followed: watch::Sender<u64>,
    is_listed: bool,
}

impl Refresh {
    /// For watches still to be made; `patience` is how long those are waited for that the operator can do without.
    pub fn new(patience: Duration) -> Self {
        Self { patience, asked: watch::Sender::default(), followed: Mutex::default() }
    }

    /// A watch, made by `make` whenever it begins.
    pub fn watch<K: Send + 'static>(
        &self,
        need: Need,
        make: impl Fn() -> Events<K> + Send + 'static,
    ) -> Events<K> {
        let (followed, receiver) = watch::channel(0);
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).push((need, receiver));
        let asked = self.asked.subscribe();
        let watch = Watch { events: make(), make, asked, round: 0, followed, is_listed: false };
        stream::unfold(watch, |mut watch| async move {
            // Asked for the next event, its reader has done what the former one means.
            if std::mem::take(&mut watch.is_listed) {
                watch.followed.send_replace(watch.round);
            }
            loop {
                tokio::select! {
                    biased;
                    Ok(()) = watch.asked.changed() => {
                        watch.round = *watch.asked.borrow_and_update();
                        watch.events = (watch.make)();
                    }
                    event = watch.events.next() => {
                        let event = event?;
                        // Of a kind that does not exist there is nothing to list.
                        watch.is_listed = match &event {
                            Ok(event) => matches!(event, Event::InitDone),
                            Err(error) => kind_is_missing(error),
                        };
                        return Some((event, watch));
                    }
                }
            }
        })
        .boxed()
    }

    /// Lets every watch start again, and waits until all have listed what there is: for the vital ones as long as that
    /// takes.
    pub async fn all(&self) {
        self.asked.send_modify(|asked| *asked += 1);
        let round = *self.asked.borrow();
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (vital, useful): (Vec<_>, Vec<_>) =
            followed.into_iter().partition(|(need, _)| *need == Need::Vital);
        // A watch that has ended ends the operator.
        let caught_up = |watches: Vec<(Need, watch::Receiver<u64>)>| async move {
            for (_, mut watch) in watches {
                let _ = watch.wait_for(|followed| *followed >= round).await;
            }
        };
        caught_up(vital).await;
        if tokio::time::timeout(self.patience, caught_up(useful)).await.is_err() {
            tracing::warn!(
                "not everything could be listed again; agents or networks may be known as they were"
            );
        }
    }
}

/// Whether the API server does not know the kind that is watched.
pub(crate) fn kind_is_missing(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A watch that lists one object, the number of its beginning, and then hears nothing.
    fn numbered(refresh: &Refresh) -> Events<u32> {
        let count = AtomicU32::new(0);
        refresh.watch(Need::Vital, move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            let list = [Event::Init, Event::InitApply(number), Event::InitDone].map(Ok);
            stream::iter(list).chain(stream::pending()).boxed()
        })
    }

    fn list(events: &mut Events<u32>) -> Option<u32> {
        let mut found = None;
        while let Some(Some(Ok(event))) = events.next().now_or_never() {
            if let Event::InitApply(number) = event {
                found = Some(number);
            }
        }
        found
    }

    #[tokio::test]
    async fn a_silent_watch_begins_anew_and_all_is_fresh_when_each_was_read_to_the_end_of_its_list() {
        let refresh = Arc::new(Refresh::new(Duration::ZERO));
        let (mut one, mut two) = (numbered(&refresh), numbered(&refresh));
        assert_eq!((list(&mut one), list(&mut two)), (Some(0), Some(0)));
        let all = tokio::spawn({
            let refresh = Arc::clone(&refresh);
            async move { refresh.all().await }
        });
        tokio::task::yield_now().await;
        assert_eq!(list(&mut one), Some(1));
        tokio::task::yield_now().await;
        assert!(!all.is_finished(), "one of two watches has not listed anything yet");
        assert_eq!(list(&mut two), Some(1));
        all.await.unwrap();
        assert_eq!(list(&mut one), None, "nobody asked again");
    }

    #[tokio::test]
    async fn what_the_operator_can_do_without_is_not_waited_for_long() {
        let refresh = Refresh::new(Duration::ZERO);
        let mut vital = numbered(&refresh);
        let mut forbidden: Events<u32> = refresh.watch(Need::Useful, || stream::pending().boxed());
        let read = async {
            loop {
                tokio::select! {
                    event = vital.next() => assert!(event.is_some()),
                    _ = forbidden.next() => panic!("nobody may see these"),
                }
            }
        };
        tokio::select! {
            () = refresh.all() => {}
            () = read => {}
        }
    }
}
