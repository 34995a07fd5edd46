//! A supervisor by script: it listens where a VM's would, and answers as it is told.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

/// What a request comes to.
pub(crate) enum Reply {
    Ok(Value),
    Error(&'static str, &'static str),
    /// An answer, bytes after it, and the end of the connection.
    Stream(String),
    Silent,
    Close,
}

/// What is said first.
pub(crate) enum Hello {
    Ours,
    Line(&'static str),
    /// Nobody takes the connection.
    Never,
}

/// Listens for a VM until the test ends.
pub(crate) fn listen(
    socket: &Path,
    hello: Hello,
    reply: impl Fn(&str, &Value) -> Reply + Send + Sync + 'static,
) {
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let (hello, reply) = (Arc::new(hello), Arc::new(reply));
    std::thread::spawn(move || {
        let mut waiting = Vec::new();
        for stream in listener.incoming() {
            let (hello, reply) = (Arc::clone(&hello), Arc::clone(&reply));
            match &*hello {
                Hello::Never => waiting.push(stream.unwrap()),
                _ => drop(std::thread::spawn(move || serve(&stream.unwrap(), &hello, &*reply))),
            }
        }
    });
}

/// Answers one client; one that goes away is none of a test's failures.
fn serve(mut stream: &UnixStream, hello: &Hello, reply: &dyn Fn(&str, &Value) -> Reply) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let said: Value = serde_json::from_str(&lines.next()?.ok()?).unwrap();
    assert_eq!(said["gpuvm-control"], 1);
    let ours = json!({ "gpuvm-control": 1, "gpuvm": "0.1.0" }).to_string();
    let hello = if let Hello::Line(line) = hello { line } else { ours.as_str() };
    writeln!(stream, "{hello}").ok()?;
    loop {
        let request: Value = serde_json::from_str(&lines.next()?.ok()?).unwrap();
        let id = &request["id"];
        match reply(request["do"].as_str().unwrap(), &request) {
            Reply::Ok(value) => writeln!(stream, "{}", json!({ "id": id, "ok": value })).ok()?,
            Reply::Error(kind, message) => {
                let error = json!({ "kind": kind, "message": message });
                writeln!(stream, "{}", json!({ "id": id, "error": error })).ok()?;
            }
            Reply::Stream(text) => {
                write!(stream, "{}\n{text}", json!({ "id": id, "ok": {} })).ok()?;
                stream.shutdown(std::net::Shutdown::Both).ok()?;
                return None;
            }
            Reply::Silent => {}
            Reply::Close => {
                stream.shutdown(std::net::Shutdown::Both).ok()?;
                return None;
            }
        }
    }
}
