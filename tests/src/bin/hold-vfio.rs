//! Holds a device through VFIO and doesn't heed the kernel's request to give it up: `hold-vfio GROUP BDF`.
//!
//! Prints `holding` once it has it, and ends when it is killed.

use std::ffi::CString;
use std::io::{Error, Write};
use std::path::Path;
use std::process::ExitCode;

use gpuvm_sys::vfio::{Container, Group, IommuType};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [group, bdf] = words.as_slice() else {
        writeln!(std::io::stderr(), "usage: hold-vfio GROUP BDF").ok();
        return ExitCode::FAILURE;
    };
    match hold(group, bdf) {
        Ok(never) => never,
        Err(error) => {
            writeln!(std::io::stderr(), "hold-vfio: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn hold(group: &str, bdf: &str) -> Result<ExitCode, Error> {
    let group = Group::open(&Path::new("/dev/vfio").join(group))?;
    let container = Container::open(Path::new("/dev/vfio/vfio"))?;
    group.set_container(&container)?;
    container.set_iommu(IommuType::Type1v2)?;
    let _device = group.open_device(&CString::new(bdf)?)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "holding")?;
    stdout.flush()?;
    loop {
        std::thread::park();
    }
}
