//! Tests of the protocol.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;

#[rstest]
#[case::status(r#"{"id":1,"do":"status"}"#, Do::Status)]
#[case::stop_with_nothing_said(r#"{"id":1,"do":"stop"}"#, Do::Stop { timeout_ms: None, force: false })]
#[case::stop(
    r#"{"do":"stop","timeout_ms":1500,"force":true,"id":1}"#,
    Do::Stop { timeout_ms: Some(1500), force: true }
)]
#[case::fields_of_a_newer_client(r#"{"id":1,"do":"pause","gently":true,"why":{"a":[1]}}"#, Do::Pause)]
#[case::events(r#"{"id":1,"do":"events","last":5}"#, Do::Events { last: 5, follow: false })]
#[case::console(r#"{"id":1,"do":"console"}"#, Do::Console { scrollback: 0 })]
#[case::qmp(
    r#"{"id":1,"do":"qmp","execute":"query-status"}"#,
    Do::Qmp { execute: "query-status".to_owned(), arguments: Value::Null }
)]
fn a_request_is_read(#[case] line: &str, #[case] what: Do) {
    assert_eq!(Request::parse(line.as_bytes()).unwrap(), Request { id: 1, what });
}

#[rstest]
#[case::nothing("", 0, "not a request: EOF")]
#[case::half(r#"{"id":1,"do":"sta"#, 0, "not a request: EOF")]
#[case::no_object("[1]", 0, "not a request")]
#[case::no_number(r#"{"do":"status"}"#, 0, "missing field `id`")]
#[case::no_do(r#"{"id":4}"#, 0, "missing field `do`")]
#[case::of_a_newer_client(r#"{"id":4,"do":"fly"}"#, 4, "does not know the request `fly`")]
#[case::odd_fields(r#"{"id":5,"do":"stop","force":"very"}"#, 5, "the request `stop` makes no sense: ")]
#[case::missing_fields(r#"{"id":6,"do":"qmp"}"#, 6, "missing field `execute`")]
fn what_is_no_request_says_why_with_its_number(#[case] line: &str, #[case] id: u64, #[case] words: &str) {
    let error = Request::parse(line.as_bytes()).unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(error.id(), id);
}

#[test]
fn every_request_is_one_that_is_known_by_name() {
    for what in requests() {
        let line = line(&Request { id: 7, what: what.clone() }).unwrap();
        assert_eq!(Request::parse(&line).unwrap(), Request { id: 7, what });
    }
}

fn requests() -> Vec<Do> {
    vec![
        Do::Status,
        Do::stop(Some(std::time::Duration::from_secs(3)), false),
        Do::stop(None, true),
        Do::Wait,
        Do::Pause,
        Do::Resume,
        Do::Reset,
        Do::Events { last: 3, follow: true },
        Do::Console { scrollback: 1 },
        Do::Qmp { execute: "query-pci".to_owned(), arguments: json!({ "a": 1 }) },
        Do::Screenshot,
    ]
}

#[test]
fn answers_have_the_shape_that_the_protocol_promises() {
    let shape = |answer: Answer| serde_json::to_value(answer).unwrap();
    assert_eq!(shape(Answer::done(3)), json!({ "id": 3, "ok": {} }));
    let refused = Answer::refused(4, Why::NotNow, "the guest does not run");
    assert_eq!(
        shape(refused.clone()),
        json!({ "id": 4, "error": { "kind": "not-now", "message": "the guest does not run" } })
    );
    assert_eq!(Answer::parse(&line(&refused).unwrap()).unwrap(), refused);
    assert_eq!(refused.take::<Picture>().unwrap_err().to_string(), "the guest does not run");
    assert_eq!(shape_of_hello(), json!({ "gpuvm-control": 1, "gpuvm": "1.2.3" }));
}

fn shape_of_hello() -> Value {
    serde_json::to_value(Hello::of("1.2.3")).unwrap()
}

#[rstest]
#[case::a_refusal(r#"{"id":1,"error":{"kind":"on-holiday","message":"m"}}"#)]
#[case::more_fields(r#"{"id":1,"error":{"kind":"other","message":"m","code":7},"took":1}"#)]
fn an_answer_of_a_newer_supervisor_is_read(#[case] line: &str) {
    let refusal = Answer::parse(line.as_bytes()).unwrap().take::<Value>().unwrap_err();
    assert_eq!((refusal.kind, refusal.message.as_str()), (Why::Other, "m"));
}

#[rstest]
#[case::of_qemu(r#"{"seq":1,"at_ms":2,"kind":"qmp","event":"STOP"}"#, Told::Qmp { event: "STOP".to_owned(), data: Value::Null })]
#[case::of_a_newer_supervisor(r#"{"seq":1,"at_ms":2,"kind":"weather","sky":"blue"}"#, Told::Other)]
#[case::a_newer_state(
    r#"{"seq":1,"at_ms":2,"kind":"state","state":"migrating"}"#,
    Told::State { state: State::Other }
)]
fn an_entry_is_read(#[case] line: &str, #[case] what: Told) {
    assert_eq!(serde_json::from_str::<Entry>(line).unwrap(), Entry { seq: 1, at_ms: 2, what });
}

#[test]
fn what_is_too_long_for_a_line_is_none() {
    assert!(line(&"x".repeat(MAX_LINE)).is_none());
    assert!(line(&"x".repeat(MAX_LINE - 2)).is_some());
}

#[test]
fn a_line_that_is_too_long_is_told_once_and_the_next_is_read() {
    let mut lines = Lines::with_limit(4);
    for piece in [b"123".as_slice(), b"45", b"6789", b"0"] {
        lines.push(piece);
        let told = lines.next();
        assert_eq!(told, (piece == b"45").then_some(Err(TooLong)), "{piece:?}");
        assert_eq!(lines.next(), None);
    }
    lines.push(b"\nnext\n12345\nlast\nrest");
    let all: Vec<_> = std::iter::from_fn(|| lines.next()).collect();
    assert_eq!(all, [Ok(b"next".to_vec()), Err(TooLong), Ok(b"last".to_vec())]);
    assert_eq!(lines.into_rest(), b"rest".to_vec());
}

proptest! {
    #[test]
    fn lines_are_the_same_however_the_bytes_come(
        bytes in proptest::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..300),
        cuts in proptest::collection::vec(0_usize..300, 0..8),
        limit in 0_usize..40,
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut lines = Lines::with_limit(limit);
        let mut got = Vec::new();
        for pair in cuts.windows(2) {
            lines.push(&bytes[pair[0]..pair[1]]);
            got.extend(std::iter::from_fn(|| lines.next()));
        }
        let mut wanted: Vec<_> = bytes
            .split(|byte| *byte == b'\n')
            .map(|line| if line.len() > limit { Err(TooLong) } else { Ok(line.to_vec()) })
            .collect();
        // What has no end yet is no line; but that it is too long is known.
        if wanted.last().is_some_and(Result::is_ok) {
            wanted.pop();
        }
        prop_assert_eq!(got, wanted);
    }

    #[test]
    fn garbage_is_a_request_or_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // Of random bytes none is one.
        prop_assert!(Request::parse(&bytes).is_err());
        prop_assert!(Answer::parse(&bytes).is_err());
    }

    #[test]
    fn a_request_with_one_byte_changed_never_panics_and_keeps_its_number_in_the_error(
        which in any::<proptest::sample::Index>(), at in any::<proptest::sample::Index>(), byte: u8,
    ) {
        let all = requests();
        let mut line = line(&Request { id: 77, what: all[which.index(all.len())].clone() }).unwrap();
        let at = at.index(line.len());
        line[at] = byte;
        if let Err(error) = Request::parse(&line)
            && !matches!(error, ParseRequestError::NotOne(_))
        {
            // The number's own bytes may be the ones that were changed.
            prop_assert!(error.id() == 77 || (6..8).contains(&at), "{error}: {}", error.id());
        }
    }
}
