//! `gpuvm screenshot`: a picture of a guest's display.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use gpuvm_core::control::{Do, Picture, Why};
use gpuvm_core::profile::VmName;
use gpuvm_run::client::ClientError;
use serde_json::{Value, json};

use crate::asked::{self, COMMAND};
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{hints, out};

/// What a PNG file begins with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// What `screenshot` takes.
#[derive(Debug, Args)]
pub(crate) struct ScreenshotArgs {
    /// The VM
    vm: VmName,

    /// Where the picture goes, in PNG; a file that is there is replaced
    file: PathBuf,
}

pub(super) fn run(cli: &Cli, args: &ScreenshotArgs) -> Result<Exit, Failure> {
    let bytes = asked::runtime()?.block_on(take(cli, &args.vm))?;
    let Some((width, height)) = size(&bytes) else {
        let message = format!("what QEMU has made of the display of VM {} is no picture", args.vm);
        return Err(Failure::one(Exit::Internal, message, None));
    };
    fs::write(&args.file, &bytes).map_err(|error| unwritable(&args.file, &error))?;
    if cli.json {
        out::json(&json!({ "name": args.vm, "file": args.file, "width": width, "height": height }))?;
    } else {
        out::text(&format!("{}: {width} x {height} pixels\n", args.file.display()))?;
    }
    Ok(Exit::Ok)
}

/// Has a picture taken, and returns it as PNG.
async fn take(cli: &Cli, vm: &VmName) -> Result<Vec<u8>, Failure> {
    let (known, mut client) = asked::connect(cli, vm).await?;
    match client.ask::<Picture>(Do::Screenshot, COMMAND).await {
        Ok(picture) => fetch(&picture.file),
        // One that was built without libpng writes PPM all the same.
        Err(ClientError::Refused(refusal)) if refusal.kind == Why::Qemu => {
            let file = cli.places().vm(vm).join(format!("screenshot-{}.ppm", std::process::id()));
            let execute = "screendump".to_owned();
            let what = Do::Qmp { execute, arguments: json!({ "filename": file, "format": "ppm" }) };
            let taken: Result<Value, _> = client.ask(what, COMMAND).await;
            taken.map_err(|_| asked::failure(&known, &ClientError::Refused(refusal)))?;
            let bytes = fetch(&file)?;
            Ok(png_of(&bytes).unwrap_or(bytes))
        }
        Err(error) => Err(asked::failure(&known, &error)),
    }
}

/// Takes a picture away from where it was put.
fn fetch(file: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = fs::read(file);
    // It is in the VM's own folder, and goes with that at the latest.
    fs::remove_file(file).unwrap_or_else(|error| tracing::debug!("{error}"));
    bytes.map_err(|error| Failure::one(Exit::Internal, format!("read {}: {error}", file.display()), None))
}

/// Makes a PNG of a PPM of 8 bits a colour, as QEMU writes it.
fn png_of(ppm: &[u8]) -> Option<Vec<u8>> {
    let mut rest = ppm;
    let mut word = || {
        let end = rest.iter().position(u8::is_ascii_whitespace)?;
        let (word, after) = rest.split_at_checked(end)?;
        rest = after.get(1..)?;
        std::str::from_utf8(word).ok()
    };
    let (magic, width, height, depth) = (word()?, word()?.parse().ok()?, word()?.parse().ok()?, word()?);
    if (magic, depth) != ("P6", "255") {
        return None;
    }
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // It refuses a picture of another length than it says.
    encoder.write_header().and_then(|mut writer| writer.write_image_data(rest)).ok()?;
    Some(png)
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => Exit::Permission,
        _ => Exit::Unfit,
    };
    Failure::one(code, format!("write {}: {error}", path.display()), hints::unwritable(path, error))
}

/// Reads the size of a picture from a PNG's first chunk, which is always its header.
fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = bytes.strip_prefix(PNG)?.get(4..16)?.strip_prefix(b"IHDR")?;
    let number = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    Some((number(0)?, number(4)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_from_a_png_and_from_nothing_else() {
        let png = [PNG, &[0, 0, 0, 13], b"IHDR", &[0, 0, 2, 128, 0, 0, 1, 224, 8, 2, 0, 0, 0]].concat();
        assert_eq!(size(&png), Some((640, 480)));
        assert_eq!(size(png.get(..20).unwrap_or_default()), None);
        assert_eq!(size(b"P6\n640 480\n255\n"), None);
    }

    #[test]
    fn a_ppm_becomes_a_png_of_the_same_pixels() {
        let pixels = [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 10, 32];
        let ppm = [b"P6\n2 2\n255\n".as_slice(), &pixels].concat();
        let png = png_of(&ppm).unwrap();
        assert_eq!(size(&png), Some((2, 2)));
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut decoded = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut decoded).unwrap();
        assert_eq!(decoded, pixels);
    }

    #[test]
    fn what_is_cut_short_or_of_another_kind_is_no_picture() {
        for ppm in ["", "P6", "P6\n2 2\n255\n", "P6\n2 2\n255\nabc", "P5\n1 1\n255\na", "P6\n-1 1\n255\nabc"]
        {
            assert_eq!(png_of(ppm.as_bytes()), None, "{ppm:?}");
        }
    }
}
