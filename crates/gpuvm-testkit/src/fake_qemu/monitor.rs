//! The monitor's side of QMP: greeting, negotiation, one client at a time.

use super::commands::{After, Response, answer};
use super::machine::{Machine, Monitor};
use super::script::{Greeting, OnPowerdown, OnQuit};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Serves clients until the monitor is closed.
pub(crate) fn serve(machine: &Arc<Machine>, monitor: Option<Monitor>) {
    let Some(monitor) = monitor else { return };
    if machine.script.greeting == Greeting::Never {
        return;
    }
    // QEMU's main loop, which accepts, begins once the machine is made.
    thread::sleep(Duration::from_millis(machine.script.greeting_after_ms));
    let listener = match monitor {
        Monitor::Connected(client) => return serve_client(machine, client),
        Monitor::Listening(listener) => listener,
    };
    for client in listener.incoming().map_while(Result::ok) {
        serve_client(machine, client);
        let mut state = machine.state();
        state.client = None;
        state.negotiated = false;
    }
}

fn serve_client(machine: &Arc<Machine>, client: UnixStream) {
    let Ok(reader) = client.try_clone() else { return };
    greet(machine, client);
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        match serde_json::from_slice::<Value>(&line) {
            Ok(request) => serve_request(machine, &request),
            Err(_) if line.trim_ascii().is_empty() => {}
            Err(_) => {
                let error = json!({"class": "GenericError", "desc": "JSON parse error, invalid keyword"});
                machine.state().say(&json!({"error": error}));
            }
        }
    }
}

fn greet(machine: &Machine, mut client: UnixStream) {
    let version = json!({"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "fake"});
    let usual = json!({"QMP": {"version": version, "capabilities": ["oob"]}}).to_string();
    let text = match &machine.script.greeting {
        Greeting::Usual => &usual,
        Greeting::Custom(text) => text,
        Greeting::Silent | Greeting::Never => "",
    };
    if !text.is_empty() {
        // A client that is gone is noticed on reading.
        let _ = client.write_all(format!("{text}\r\n").as_bytes());
    }
    machine.state().client = Some(client);
}

fn serve_request(machine: &Arc<Machine>, request: &Value) {
    let name = request["execute"].as_str().unwrap_or_default();
    machine.recorder.command(name, &request["arguments"]);
    if machine.script.greeting == Greeting::Silent {
        return;
    }
    let (response, after) = answer(machine, name, &request["arguments"]);
    let mut reply = match response {
        Response::Return(value) => json!({"return": value}),
        Response::Error { class, desc } => json!({"error": {"class": class, "desc": desc}}),
        Response::Silence => return,
    };
    if let Some(id) = request.get("id") {
        reply["id"] = id.clone();
    }
    machine.state().say(&reply);
    match after {
        After::Nothing => {}
        After::Powerdown => press_power_button(machine),
        After::Reset => machine.reset(),
        After::Quit => quit(machine),
    }
}

fn press_power_button(machine: &Arc<Machine>) {
    machine.event("POWERDOWN", Value::Null);
    if machine.script.on_powerdown == OnPowerdown::Ignore || !machine.state().running {
        return;
    }
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(machine.script.powerdown_takes_ms));
        machine.shutdown(true, "guest-shutdown");
    });
}

fn quit(machine: &Machine) {
    if machine.script.on_quit == OnQuit::Ignore {
        return;
    }
    machine.event("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"}));
    match machine.script.on_quit {
        OnQuit::Exit | OnQuit::Ignore => machine.exit(0),
        OnQuit::Linger => machine.close_monitor(),
    }
}
