//! Which key comes when.

use super::*;
use futures::FutureExt;

fn open() -> Queue {
    let queue = Queue::default();
    queue.open();
    queue
}

fn ready(queue: &Queue) -> Option<Key> {
    queue.next(Lane::Later).now_or_never().map(|(key, _)| key)
}

#[tokio::test]
async fn a_key_is_given_once_however_often_it_is_asked_for() {
    let queue = open();
    for key in ["a", "b", "a"] {
        queue.add(key);
    }
    assert_eq!(queue.depth(), 2);
    assert_eq!((ready(&queue).as_deref(), ready(&queue).as_deref()), (Some("a"), Some("b")));
    assert_eq!(ready(&queue), None);
}

#[tokio::test]
async fn a_key_in_work_is_given_again_only_when_that_work_is_done() {
    let queue = open();
    queue.add("a");
    let (key, lane) = queue.next(Lane::Later).await;
    queue.add("a");
    assert_eq!(ready(&queue), None);
    queue.done(&key, lane, Some(Duration::from_hours(1)));
    assert_eq!(ready(&queue).as_deref(), Some("a"), "what was asked for meanwhile comes before the pause");
}

#[tokio::test]
async fn a_key_that_shall_come_again_comes_after_its_pause_or_with_the_next_event() {
    let queue = open();
    queue.add("a");
    let (key, lane) = queue.next(Lane::Later).await;
    queue.done(&key, lane, Some(Duration::from_secs(30)));
    assert_eq!((ready(&queue), queue.depth()), (None, 0));
    let later = |seconds| Instant::now() + Duration::from_secs(seconds);
    assert_eq!(queue.state().take(later(29), Lane::Later), None);
    assert_eq!(queue.state().take(later(31), Lane::Later).map(|(key, _)| key).as_deref(), Some("a"));
    queue.done(&key, lane, Some(Duration::from_secs(30)));
    queue.add("a");
    assert_eq!(ready(&queue).as_deref(), Some("a"));
    queue.done(&key, lane, None);
    assert_eq!(queue.state().take(later(3600), Lane::Later), None);
}

#[tokio::test]
async fn what_is_asked_for_within_a_time_puts_off_nothing_that_is_asked_for_sooner() {
    let queue = open();
    queue.add_within("a", Duration::from_mins(1));
    queue.add_within("a", Duration::from_secs(90));
    assert_eq!((ready(&queue), queue.depth()), (None, 0));
    let later = |seconds| Instant::now() + Duration::from_secs(seconds);
    assert_eq!(queue.state().take(later(61), Lane::Later).map(|(key, _)| key).as_deref(), Some("a"));
    queue.done(&"a".into(), Lane::Urgent, None);
    queue.add("a");
    queue.add_within("a", Duration::from_mins(1));
    assert_eq!(ready(&queue).as_deref(), Some("a"));
}

#[tokio::test]
async fn a_pause_ends_by_itself() {
    let queue = open();
    queue.add("a");
    let (key, lane) = queue.next(Lane::Later).await;
    queue.done(&key, lane, Some(Duration::from_millis(5)));
    assert_eq!(queue.next(Lane::Later).await.0, key);
}

#[tokio::test]
async fn a_closed_queue_takes_nothing_and_forgets_what_it_had() {
    let queue = Queue::default();
    queue.add("a");
    assert_eq!(ready(&queue), None);
    queue.open();
    queue.add("a");
    queue.close();
    queue.open();
    assert_eq!(ready(&queue), None);
}

#[tokio::test]
async fn every_waiting_worker_gets_its_key() {
    let queue = Arc::new(open());
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { queue.next(Lane::Later).await.0 })
        })
        .collect();
    tokio::task::yield_now().await;
    for key in ["a", "b", "c"] {
        queue.add(key);
    }
    let mut keys: Vec<_> = futures::future::join_all(workers).await.into_iter().map(Result::unwrap).collect();
    keys.sort();
    assert_eq!(keys.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_key_that_an_idle_worker_cannot_take_wakes_one_that_can() {
    let queue = open();
    let mut urgent = std::pin::pin!(queue.next(Lane::Urgent));
    let mut later = std::pin::pin!(queue.next(Lane::Later));
    assert!(urgent.as_mut().now_or_never().is_none() && later.as_mut().now_or_never().is_none());
    queue.add_later("a");
    assert!(urgent.now_or_never().is_none());
    let given = later.now_or_never();
    assert_eq!(given.as_ref().map(|(key, lane)| (&**key, *lane)), Some(("a", Lane::Later)));
}

#[tokio::test]
async fn a_key_that_waits_for_room_is_taken_at_once_when_it_becomes_urgent() {
    let queue = open();
    queue.add_later("a");
    let mut full = std::pin::pin!(queue.next_when(std::future::pending()));
    assert!(full.as_mut().now_or_never().is_none());
    queue.add("a");
    assert_eq!(full.now_or_never().map(|(_, lane)| lane), Some(Lane::Urgent));
    queue.add_later("b");
    let given = queue.next_when(std::future::ready(())).now_or_never();
    assert_eq!(given.map(|(key, _)| key).as_deref(), Some("b"));
}

#[tokio::test]
async fn what_is_urgent_goes_first_and_keeps_workers_of_its_own() {
    let queue = open();
    for key in ["a", "b", "c"] {
        queue.add_later(key);
    }
    queue.add("new");
    queue.add("c");
    let urgent = queue.next(Lane::Urgent).now_or_never();
    assert_eq!(urgent.map(|(key, lane)| (key.to_string(), lane)), Some(("new".to_owned(), Lane::Urgent)));
    assert_eq!([ready(&queue), ready(&queue)].map(|key| key.unwrap().to_string()), ["c", "a"]);
    assert!(queue.next(Lane::Urgent).now_or_never().is_none());
    assert_eq!((ready(&queue).as_deref(), ready(&queue)), (Some("b"), None));
}

#[tokio::test]
async fn a_key_in_work_is_not_given_again_when_its_other_lane_is_due() {
    let queue = open();
    queue.add_within("a", Duration::from_secs(30));
    queue.add_later("a");
    let (key, lane) = queue.next(Lane::Later).await;
    let later = Instant::now() + Duration::from_secs(31);
    assert_eq!(queue.state().take(later, Lane::Later), None);
    queue.done(&key, lane, None);
    assert_eq!(queue.state().take(later, Lane::Later).map(|(_, lane)| lane), Some(Lane::Urgent));
}

#[tokio::test]
async fn what_fails_again_and_again_is_tried_ever_more_seldom() {
    let queue = open();
    let fail = |key: &Key| {
        queue.state().take(Instant::now() + Duration::from_hours(1), Lane::Later);
        queue.failed(key, Lane::Later)
    };
    queue.add_later("a");
    let key: Key = "a".into();
    let pauses: Vec<Duration> = (0..12).map(|_| fail(&key)).collect();
    assert!(pauses[0] >= RETRY_MIN / 2 && pauses[0] <= RETRY_MIN, "{pauses:?}");
    assert!(pauses[11] >= RETRY_MAX / 2 && pauses[11] <= RETRY_MAX, "{pauses:?}");
    queue.state().take(Instant::now() + Duration::from_hours(1), Lane::Later);
    queue.done(&key, Lane::Later, None);
    queue.add_later("a");
    assert!(fail(&key) <= RETRY_MIN, "a success ends the series");
}
