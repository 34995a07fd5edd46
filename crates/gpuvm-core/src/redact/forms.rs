//! What is known by its form, or by the key that it stands behind.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Kind;

/// Parts of keys whose values are nobody's business.
const SECRET: &[&str] = &[
    "passw",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "luks",
    "crypt",
    "credential",
    "apikey",
    "api_key",
    "api-key",
    "private",
    "auth",
];
/// Keys whose values name a disk, a volume or a machine.
const NAMING: &[&str] = &["uuid", "label", "rd.lvm.lv", "rd.lvm.vg", "hostname", "machine_id", "machine-id"];
/// What profiles say behind `serial`, which is no number.
const PLAIN: &[&str] = &["console", "log", "pty", "none", "null", "true", "false"];

/// Says what stands behind a key, where that is to be taken out.
pub(super) fn kept_by_key(key: &str) -> Option<Kind> {
    let key = key.to_ascii_lowercase();
    let last = key.rsplit(['.', '-', '_']).next().unwrap_or_default();
    if SECRET.iter().any(|part| key.contains(part)) || last == "key" {
        return Some(Kind::Secret);
    }
    if last == "serial"
        || ["serialnumber", "serial_number", "serial_no", "serial-number"].contains(&key.as_str())
    {
        return Some(Kind::Serial);
    }
    let naming = NAMING.contains(&key.as_str()) || key.ends_with("uuid") || key.ends_with("hostname");
    naming.then_some(Kind::Secret)
}

/// Tells whether a value tells anything.
pub(super) fn is_telling(value: &str) -> bool {
    !value.is_empty() && !PLAIN.contains(&value)
}

/// Finds a value behind a key that begins at a place of a text, as in `password=x`, `password = "x y"`, `"serial": "x"`.
///
/// Returns how much comes before the value, the value's length, and what it is.
pub(super) fn keyed(text: &str, at: usize) -> Option<(usize, usize, Kind)> {
    let rest = &text[at..];
    let is_key = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let key = &rest[..rest.find(|c| !is_key(c)).unwrap_or(rest.len())];
    let after = rest[key.len()..].trim_start_matches(['"', '\'', '\\']).trim_start_matches([' ', '\t']);
    let value = after.strip_prefix(['=', ':'])?;
    let kind =
        kept_by_key(key).or_else(|| (key == "data" && is_of_secret(&text[..at])).then_some(Kind::Secret))?;
    // A word and a colon are prose more often than not: it must be a value that comes.
    let value = value.trim_start_matches([' ', '\t']);
    let (value, end): (_, &[char]) = match value.trim_start_matches('\\').chars().next() {
        Some(quote @ ('"' | '\'')) => {
            (&value[value.find(quote)? + 1..], if quote == '"' { &['"', '\\', '\n'] } else { &['\'', '\n'] })
        }
        _ => (value, &[' ', '\t', '\n', ',', ';', '"', '\'', ')', ']', '}']),
    };
    let length = value.find(end).unwrap_or(value.len());
    let before = rest.len() - value.len();
    is_telling(&value[..length]).then_some((before, length, kind))
}

/// Tells whether the word that a text ends in is QEMU's `secret,id=x,`.
fn is_of_secret(before: &str) -> bool {
    before.rsplit(char::is_whitespace).next().is_some_and(|word| word.contains("secret"))
}

/// Finds what begins a text and is known by its form, and returns its length.
pub(super) fn known(text: &str) -> Option<(usize, Kind)> {
    uuid(text)
        .or_else(|| pairs(text))
        .or_else(|| interface(text))
        .or_else(|| ip6(text))
        .or_else(|| ip4(text))
        .or_else(|| (hex(text) == 32).then_some((32, Kind::Hex32)))
}

/// Counts the hex digits that a text begins with.
fn hex(text: &str) -> usize {
    let digits = text.bytes().take_while(u8::is_ascii_hexdigit).count();
    if text[digits..].starts_with(char::is_alphanumeric) { 0 } else { digits }
}

fn uuid(text: &str) -> Option<(usize, Kind)> {
    let mut at = 0;
    for (part, digits) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if part > 0 {
            at += text[at..].strip_prefix('-').map(|_| 1)?;
        }
        if hex(&text[at..]) != digits {
            return None;
        }
        at += digits;
    }
    Some((at, Kind::Uuid))
}

/// Six pairs of hex digits or more, with colons or with hyphens.
fn pairs(text: &str) -> Option<(usize, Kind)> {
    let separator = *text.as_bytes().get(2)?;
    if separator != b':' && separator != b'-' {
        return None;
    }
    let mut at = 0;
    let mut count = 0;
    while hex(&text[at..]) == 2 {
        (at, count) = (at + 2, count + 1);
        if text.as_bytes().get(at) != Some(&separator) || hex(&text[at + 1..]) != 2 {
            break;
        }
        at += 1;
    }
    match count {
        6 => Some((at, Kind::Mac)),
        7.. => Some((at, Kind::Pairs)),
        _ => None,
    }
}

/// Reads eight pairs, as serial numbers of PCI Express are spelt, with what stands between them.
pub(super) fn eight_pairs(text: &str) -> Option<(u64, &'static str)> {
    let separator = [":", "-"].into_iter().find(|separator| text.contains(*separator))?;
    let digits: Vec<&str> = text.split(separator).collect();
    let number = (digits.len() == 8).then(|| u64::from_str_radix(&digits.concat(), 16).ok()).flatten()?;
    Some((number, separator))
}

/// An interface that is named after its hardware address.
fn interface(text: &str) -> Option<(usize, Kind)> {
    let address = text.strip_prefix("enx").or(text.strip_prefix("wlx"))?;
    (hex(address) == 12).then_some((15, Kind::Mac))
}

fn ip6(text: &str) -> Option<(usize, Kind)> {
    let run = text.bytes().take_while(|b| b.is_ascii_hexdigit() || *b == b':' || *b == b'.').count();
    let run = text[..run].trim_end_matches('.');
    // A colon behind it may be the sentence's, or a port's.
    let shorter = run.strip_suffix(':').filter(|run| !run.ends_with(':'));
    let address = [Some(run), shorter].into_iter().flatten().find(|run| run.parse::<Ipv6Addr>().is_ok())?;
    let telling = address.parse::<Ipv6Addr>().is_ok_and(|ip| !ip.is_unspecified() && !ip.is_loopback());
    (telling && !text[address.len()..].starts_with(char::is_alphanumeric))
        .then_some((address.len(), Kind::Ip6))
}

fn ip4(text: &str) -> Option<(usize, Kind)> {
    let run = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let address = text[..run].trim_end_matches('.');
    let ip: Ipv4Addr = address.parse().ok()?;
    let telling = !ip.is_unspecified() && !ip.is_loopback() && ip.octets()[0] != 255;
    (telling && !text[address.len()..].starts_with(char::is_alphanumeric))
        .then_some((address.len(), Kind::Ip4))
}
