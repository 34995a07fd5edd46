//! A peer that floods, stalls or babbles: every wait ends within its time, and what can be survived is.

use super::*;
use std::future::Future;
use tokio::time::timeout;

/// For what must end by itself: far more than a busy machine needs.
async fn ends<T>(future: impl Future<Output = T>) -> T {
    timeout(3 * SOON, future).await.expect("it hangs")
}

/// Says something again and again until the other end is gone.
async fn flood(mut writer: OwnedWriteHalf, line: &[u8]) {
    while writer.write_all(line).await.is_ok() {}
}

const MANY: &[u8] = b"{\"event\":\"BRAND_NEW\",\"data\":{\"n\":1}}\n";

#[rstest]
#[case::garbage(b"{{{{ not JSON\n")]
#[case::empty_lines(b"\n\n\n\n\n\n\n\n")]
#[case::events(MANY)]
#[case::answers(b"{\"return\":{},\"id\":1}\n")]
#[tokio::test]
async fn a_flood_without_a_greeting_ends_at_the_deadline(#[case] line: &'static [u8]) {
    let (stream, peer) = Peer::pair();
    let flooding = tokio::spawn(flood(peer.writer, line));
    let error = ends(Qmp::handshake(stream, BRIEF)).await.unwrap_err();
    assert_eq!(error.to_string(), "QMP greeting: no answer within 80ms");
    ends(flooding).await.unwrap();
}

#[rstest]
#[case::garbage(b"{{{{ not JSON\n")]
#[case::no_utf8(b"\xff\xfe\x80\n")]
#[case::greetings(b"{\"QMP\":{}}\n")]
#[case::answers_to_others(b"{\"return\":{},\"id\":77}\n")]
#[case::events(MANY)]
#[tokio::test]
async fn a_flood_instead_of_an_answer_ends_at_the_commands_deadline(#[case] line: &'static [u8]) {
    let (qmp, mut events, peer) = connected().await;
    let flooding = tokio::spawn(flood(peer.writer, line));
    let error = ends(qmp.query_status(BRIEF)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    // The peer goes, and the events end with it.
    flooding.abort();
    drop((qmp, peer.reader));
    ends(async { while events.next().await.is_some() {} }).await;
}

#[tokio::test]
async fn an_answer_within_a_flood_of_events_is_found_and_no_event_is_lost() {
    const EACH: usize = 20_000;
    let (qmp, mut events, mut peer) = connected().await;
    let server = async {
        let command = peer.hear().await.unwrap();
        let event = |n: usize| format!("{{\"event\":\"E\",\"data\":{n}}}");
        let numbered = |from: usize| (from..from + EACH).map(event).collect::<Vec<_>>().join("\n");
        peer.say(numbered(0)).await;
        peer.say(json!({"return": {"running": true, "status": "x"}, "id": command["id"]}).to_string()).await;
        peer.say(numbered(EACH)).await;
    };
    let (status, ()) = ends(async { tokio::join!(qmp.query_status(SOON), server) }).await;
    assert!(status.unwrap().running);
    for n in 0..2 * EACH {
        assert_eq!(ends(events.next()).await.unwrap().data, json!(n));
    }
}

#[tokio::test]
async fn lines_that_come_byte_by_byte_are_whole() {
    let (qmp, mut events, mut peer) = connected().await;
    let server = async {
        let command = peer.hear().await.unwrap();
        let answer = json!({"return": {"running": true, "status": "ä"}, "id": command["id"]}).to_string();
        for byte in format!("{{\"event\":\"STOP\"}}\r\n{answer}\r\n").into_bytes() {
            peer.writer.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (status, ()) = ends(async { tokio::join!(qmp.query_status(SOON), server) }).await;
    assert_eq!(status.unwrap().status, "ä");
    assert_eq!(events.next().await.unwrap().known(), Some(Known::Stop));
}

#[tokio::test]
async fn a_peer_that_stops_within_an_answer_costs_that_command_alone() {
    let (qmp, _events, mut peer) = connected().await;
    let half = async {
        let command = peer.hear().await.unwrap();
        let answer = json!({"return": {"running": true, "status": "x"}, "id": command["id"]}).to_string();
        let (first, rest) = answer.split_at(answer.len() / 2);
        peer.writer.write_all(first.as_bytes()).await.unwrap();
        rest.to_owned()
    };
    let (status, rest) = ends(async { tokio::join!(qmp.query_status(BRIEF), half) }).await;
    assert!(matches!(status, Err(Error::Timeout { .. })));
    peer.say(rest).await;
    assert!(!ends(qmp_is_over(&qmp, &mut peer)).await);
}

/// Up to the limit, a line that ends is survived, whatever is in it.
#[rstest]
#[case::garbage("", "")]
#[case::event("{\"event\":\"LONG\",\"data\":\"", "\"}")]
#[tokio::test]
async fn a_line_of_ten_megabytes_is_survived(#[case] head: &str, #[case] tail: &str) {
    let (qmp, mut events, mut peer) = connected().await;
    let line = format!("{head}{}{tail}", "z".repeat(10 << 20));
    let server = peer.answer(&line, json!({"running": true, "status": "x"}));
    let (status, _) = ends(async { tokio::join!(qmp.query_status(SOON), server) }).await;
    assert!(status.unwrap().running);
    let event = events.try_next().unwrap();
    assert_eq!(event.is_some_and(|event| event.name == "LONG"), !head.is_empty());
}

#[tokio::test]
async fn a_line_of_ten_megabytes_before_the_greeting_is_survived() {
    let (stream, mut peer) = Peer::pair();
    let server = async {
        peer.say("y".repeat(10 << 20)).await;
        peer.say(GREETING).await;
        peer.answer("", json!({})).await;
    };
    let (client, ()) = ends(async { tokio::join!(Qmp::handshake(stream, SOON), server) }).await;
    client.unwrap();
}

#[tokio::test]
async fn a_peer_that_reads_nothing_is_a_timeout() {
    let (qmp, _events, peer) = connected().await;
    let large = json!({"text": "z".repeat(8 << 20)});
    for _ in 0..3 {
        let error = ends(qmp.execute_value("large", large.clone(), BRIEF)).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
    drop(peer);
    assert!(ends(qmp.cont(SOON)).await.is_err_and(|error| error.is_final()));
}
