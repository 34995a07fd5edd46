//! Tests of what doesn't need a VM.

use rstest::rstest;

use super::hub::Hub;
use super::server::may_ask;

#[rstest]
#[case::root(0, 1000, true)]
#[case::the_one_who_has_started_it(1000, 1000, true)]
#[case::somebody_else(1001, 1000, false)]
#[case::a_user_and_roots_vm(1000, 0, false)]
fn root_and_the_owner_may_ask(#[case] uid: u32, #[case] owner: u32, #[case] may: bool) {
    assert_eq!(may_ask(uid, owner), may);
}

#[tokio::test]
async fn who_comes_late_to_a_console_has_all_of_it_once_and_who_stands_still_for_a_while_too() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("console.log");
    let hub = Hub::default();
    let typed = hub.open(&log);
    let (nothing, slow) = hub.listen(100);
    assert_eq!(nothing, b"");
    let mut all = String::new();
    let mut say = |text: &str| {
        all.push_str(text);
        hub.said(text.as_bytes(), || std::fs::write(&log, &all).unwrap());
    };
    say("login: ");
    let (before, late) = hub.listen(5);
    assert_eq!(before, b"gin: ");
    // A port says one byte at a time.
    let digits = "0123456789".repeat(100);
    for byte in digits.chars() {
        say(&byte.to_string());
        assert_eq!(late.next().await.unwrap(), byte.to_string().into_bytes());
    }
    assert_eq!(slow.next().await.unwrap(), format!("login: {digits}").into_bytes());
    say("bye");
    hub.close();
    assert_eq!((late.next().await, late.next().await), (Some(b"bye".to_vec()), None));
    assert!(hub.input().is_none());
    drop(typed);
}

#[tokio::test]
async fn who_never_reads_a_console_is_dropped_and_others_go_on() {
    let hub = Hub::default();
    let ((_, slow), (_, fast)) = (hub.listen(0), hub.listen(0));
    let kept = vec![b'x'; 64 << 10];
    let mut count = 0;
    loop {
        hub.said(&kept, || ());
        assert_eq!(fast.next().await.unwrap().len(), kept.len());
        if tokio::time::timeout(std::time::Duration::from_millis(1), slow.lost()).await.is_ok() {
            break;
        }
        count += 1;
    }
    // It has what fitted, and then its end.
    assert_eq!((slow.next().await.unwrap().len(), count), (256 << 10, 4));
    assert!(slow.next().await.is_none());
    hub.said(b"more", || ());
    assert_eq!(fast.next().await.unwrap(), b"more");
}
