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

#[test]
fn who_comes_late_to_a_console_has_all_of_it_once_and_who_does_not_read_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("console.log");
    let hub = Hub::default();
    let typed = hub.open(&log);
    let (nothing, mut slow) = hub.listen(100);
    assert_eq!(nothing, b"");
    let mut all = String::new();
    let mut say = |text: &str| {
        all.push_str(text);
        hub.said(text.as_bytes(), || std::fs::write(&log, &all).unwrap());
    };
    say("login: ");
    let (before, mut late) = hub.listen(5);
    assert_eq!(before, b"gin: ");
    for number in 0..100 {
        say(&format!("{number}\n"));
        assert_eq!(late.try_recv().unwrap(), format!("{number}\n").into_bytes());
    }
    // It has what fitted, in order, and then its end.
    let got: Vec<_> = std::iter::from_fn(|| slow.try_recv().ok()).collect();
    assert_eq!((got.len(), got[0].as_slice()), (64, b"login: ".as_slice()));
    assert!(slow.is_closed() && !late.is_closed());
    drop(typed);
    hub.close();
    assert!(late.is_closed() && hub.input().is_none());
}
