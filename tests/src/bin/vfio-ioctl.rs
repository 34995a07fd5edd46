//! What a device does under plain VFIO calls: `vfio-ioctl none|reset|hot BDF GROUP...`, the device's own group first.
//!
//! Opens container, groups and device as linux/vfio.h says, and prints what each call returned, one a line: its name and its errno, 0 for
//! success. It shares no code with gpuvm, and its numbers are written by hand, so that the two can be held against each other.

#![allow(unsafe_code, reason = "it is the point of this program to make the calls itself")]
#![allow(clippy::print_stdout, reason = "a program for tests")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

const VFIO_GROUP_SET_CONTAINER: u64 = 0x3b68;
const VFIO_SET_IOMMU: u64 = 0x3b66;
const VFIO_GROUP_GET_DEVICE_FD: u64 = 0x3b6a;
const VFIO_DEVICE_GET_INFO: u64 = 0x3b6b;
const VFIO_DEVICE_RESET: u64 = 0x3b6f;
const VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: u64 = 0x3b70;
const VFIO_DEVICE_PCI_HOT_RESET: u64 = 0x3b71;
const VFIO_TYPE1V2_IOMMU: usize = 3;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [call, bdf, groups @ ..] = words.as_slice() else {
        println!("usage: vfio-ioctl none|reset|hot BDF GROUP...");
        return ExitCode::from(64);
    };
    match calls(call, bdf, groups) {
        Ok(()) => ExitCode::SUCCESS,
        Err((name, error)) => {
            println!("{name} {}", error.raw_os_error().unwrap_or(-1));
            ExitCode::FAILURE
        }
    }
}

fn calls(call: &str, bdf: &str, groups: &[String]) -> Result<(), (&'static str, Error)> {
    let open = |path: String| OpenOptions::new().read(true).write(true).open(path);
    let container = open("/dev/vfio/vfio".to_owned()).map_err(|error| ("container", error))?;
    let mut files: Vec<File> = Vec::new();
    for group in groups {
        let file = open(format!("/dev/vfio/{group}")).map_err(|error| ("group", error))?;
        let number = container.as_raw_fd();
        ioctl(&file, VFIO_GROUP_SET_CONTAINER, (&raw const number) as usize)
            .map_err(|error| ("set-container", error))?;
        files.push(file);
    }
    ioctl(&container, VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU).map_err(|error| ("set-iommu", error))?;
    let group = files.first().ok_or(("group", Error::from(ErrorKind::InvalidInput)))?;
    let name = CString::new(bdf).map_err(|error| ("device", error.into()))?;
    let device =
        ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name.as_ptr() as usize).map_err(|error| ("device", error))?;

    // argsz, flags, num_regions, num_irqs, cap_offset, pad.
    let mut info = [24_u32, 0, 0, 0, 0, 0];
    print("get-info", number_call(device, VFIO_DEVICE_GET_INFO, info.as_mut_ptr() as usize));
    println!("flags {}", info[1]);
    // argsz, flags, count, then group, segment | bus << 16 | devfn << 24 of each function.
    let mut reach = [0_u32; 3 + 2 * 64];
    reach[0] = 4 * 131;
    print(
        "hot-reset-info",
        number_call(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, reach.as_mut_ptr() as usize),
    );
    for pair in reach[3..].chunks(2).take(reach[2] as usize) {
        let (segment, bus, devfn) = (pair[1] & 0xffff, pair[1] >> 16 & 0xff, pair[1] >> 24);
        println!("affected {segment:04x}:{bus:02x}:{:02x}.{} {}", devfn >> 3, devfn & 7, pair[0]);
    }
    match call {
        "reset" => print("reset", number_call(device, VFIO_DEVICE_RESET, 0)),
        "hot" => {
            let fds: Vec<u32> = files.iter().map(|file| file.as_raw_fd().cast_unsigned()).collect();
            let count = u32::try_from(fds.len()).unwrap_or(0);
            // argsz, flags, count, then the groups.
            let reset = [vec![12 + 4 * count, 0, count], fds].concat();
            print("hot-reset", number_call(device, VFIO_DEVICE_PCI_HOT_RESET, reset.as_ptr() as usize));
        }
        _ => {}
    }
    // SAFETY: the descriptor came from the kernel above, and is used no more.
    let closed = unsafe { libc::close(device) };
    print("close", if closed == 0 { Ok(0) } else { Err(Error::last_os_error()) });
    Ok(())
}

fn print(name: &str, result: Result<i32, Error>) {
    let errno = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
    println!("{name} {errno}");
}

fn ioctl(file: &File, request: u64, argument: usize) -> Result<i32, Error> {
    number_call(file.as_raw_fd(), request, argument)
}

fn number_call(fd: i32, request: u64, argument: usize) -> Result<i32, Error> {
    // SAFETY: each caller passes what this request takes: a number, or the address of a structure of its size that outlives the call.
    match unsafe { libc::ioctl(fd, request, argument) } {
        number if number >= 0 => Ok(number),
        _ => Err(Error::last_os_error()),
    }
}
