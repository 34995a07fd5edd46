//! The answers to commands.

use super::machine::Machine;
use super::script::Reply;
use serde_json::{Value, json};
use std::sync::Arc;

/// The answer to a command.
#[derive(Debug)]
pub(crate) enum Response {
    Return(Value),
    Error { class: String, desc: String },
    Silence,
}

/// What follows once the answer is out.
#[derive(Debug)]
pub(crate) enum After {
    Nothing,
    Powerdown,
    Reset,
    Quit,
}

/// Carries a command out as the script or QEMU would.
pub(crate) fn answer(machine: &Arc<Machine>, name: &str, arguments: &Value) -> (Response, After) {
    if let Some(reply) = machine.script.replies.get(name) {
        let response = match reply.clone() {
            Reply::Value(value) => Response::Return(value),
            Reply::Error { class, desc } => Response::Error { class, desc },
            Reply::Silence => Response::Silence,
            Reply::Die { code } => machine.exit(code),
        };
        if name == "qmp_capabilities" && matches!(response, Response::Return(_)) {
            machine.state().negotiated = true;
        }
        return (response, After::Nothing);
    }
    if !machine.state().negotiated {
        if name != "qmp_capabilities" {
            return (not_found("Expecting capabilities negotiation with 'qmp_capabilities'"), After::Nothing);
        }
        machine.state().negotiated = true;
        return (Response::Return(json!({})), After::Nothing);
    }
    let after = match name {
        "system_powerdown" => After::Powerdown,
        "system_reset" => After::Reset,
        "quit" => After::Quit,
        _ => After::Nothing,
    };
    (usual(machine, name, arguments), after)
}

fn usual(machine: &Arc<Machine>, name: &str, arguments: &Value) -> Response {
    match name {
        "cont" => machine.resume(),
        "stop" => machine.stop("paused"),
        _ => {}
    }
    Response::Return(match name {
        "cont" | "stop" | "system_powerdown" | "system_reset" | "quit" | "device_add" | "object-add"
        | "set-action" => json!({}),
        "device_del" => {
            let id = &arguments["id"];
            let path = format!("/machine/peripheral/{}", id.as_str().unwrap_or_default());
            machine.event("DEVICE_DELETED", json!({"device": id, "path": path}));
            json!({})
        }
        "query-status" => {
            let state = machine.state();
            json!({"running": state.running, "singlestep": false, "status": state.status})
        }
        "query-version" => json!({"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "fake"}),
        "query-kvm" => json!({"enabled": true, "present": true}),
        "query-cpus-fast" => vcpus(machine),
        "query-pci"
        | "qom-list-types"
        | "query-commands"
        | "query-qmp-schema"
        | "query-command-line-options"
        | "query-block" => {
            json!([])
        }
        "device-list-properties" => json!([]),
        _ => return not_found(&format!("The command {name} has not been found")),
    })
}

fn vcpus(machine: &Machine) -> Value {
    let cpu = |(index, thread): (usize, &i32)| {
        let props = json!({"core-id": index, "thread-id": 0, "socket-id": 0});
        let path = format!("/machine/unattached/device[{index}]");
        json!({"thread-id": thread, "props": props, "qom-path": path, "cpu-index": index, "target": "x86_64"})
    };
    machine.vcpus.iter().enumerate().map(cpu).collect()
}

fn not_found(desc: &str) -> Response {
    Response::Error { class: "CommandNotFound".to_owned(), desc: desc.to_owned() }
}
