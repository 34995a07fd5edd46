//! Runs one task that ends by SIGKILL, see `gpuvm_e2e::killed`: `killed-launcher TASK.json`.

use std::io::Write;

use gpuvm_e2e::killed::Task;

fn main() {
    let task = std::env::args_os().nth(1).ok_or("no task is named".to_owned());
    let done = task.and_then(|path| {
        let text = std::fs::read(&path).map_err(|error| error.to_string())?;
        let task: Task = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        task.perform()
    });
    let code = done.unwrap_or_else(|error| {
        // There is nobody to tell where this fails.
        writeln!(std::io::stderr(), "killed-launcher: {error}").ok();
        1
    });
    std::process::exit(code);
}
