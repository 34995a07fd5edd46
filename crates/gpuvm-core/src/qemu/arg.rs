//! One argument of QEMU, and the only place that knows how to spell it.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::Serialize;

/// A switch of QEMU and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// The switch, with its dash.
    pub switch: &'static str,
    /// Its value.
    pub value: Value,
}

/// The value of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// None: the switch stands alone.
    Bare,
    /// Text that QEMU takes as it is, such as a kernel's path.
    Plain(OsString),
    /// `key=value,...`, in which commas are doubled (QemuOpts).
    Opts(Opts),
    /// A JSON object, where QEMU takes one: it has no escaping of its own.
    Json(String),
    /// Words that the profile gives as they are; the first stands in the switch's place.
    Words(Vec<OsString>),
}

/// A list of options in QEMU's own syntax.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opts(Vec<(Cow<'static, str>, OsString)>);

impl Opts {
    /// Starts an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an option. The key of a leading value may be empty, as in `-chardev socket,...`.
    pub fn with(mut self, key: &'static str, value: impl Into<OsString>) -> Self {
        self.0.push((Cow::Borrowed(key), value.into()));
        self
    }

    /// Adds an option whose key comes from a profile, which has seen to it that it holds no `=` and no comma.
    pub fn with_key(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.0.push((Cow::Owned(key.to_owned()), value.into()));
        self
    }

    /// Adds an option if there is a value.
    pub fn with_some(self, key: &'static str, value: Option<impl Into<OsString>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    fn render(&self) -> OsString {
        let mut bytes = Vec::new();
        for (key, value) in &self.0 {
            if !bytes.is_empty() {
                bytes.push(b',');
            }
            if !key.is_empty() {
                bytes.extend_from_slice(key.as_bytes());
                bytes.push(b'=');
            }
            for byte in value.as_bytes() {
                bytes.push(*byte);
                if *byte == b',' {
                    bytes.push(b',');
                }
            }
        }
        OsString::from_vec(bytes)
    }
}

impl Arg {
    /// A switch without a value.
    pub fn bare(switch: &'static str) -> Self {
        Self { switch, value: Value::Bare }
    }

    /// A switch whose value QEMU takes as it is.
    pub fn plain(switch: &'static str, value: impl AsRef<OsStr>) -> Self {
        Self { switch, value: Value::Plain(value.as_ref().to_owned()) }
    }

    /// A switch with a list of options.
    pub fn opts(switch: &'static str, opts: Opts) -> Self {
        Self { switch, value: Value::Opts(opts) }
    }

    /// A switch with a JSON object.
    pub fn json(switch: &'static str, object: &impl Serialize) -> Self {
        // Serialising fails only for maps with other keys than strings and for non-UTF-8 paths; the structs have neither
        // kind of map, and the plan has refused such paths.
        Self { switch, value: Value::Json(serde_json::to_string(object).unwrap_or_default()) }
    }

    /// Words that are passed on as they are.
    pub fn words(words: &[String]) -> Self {
        Self { switch: "", value: Value::Words(words.iter().map(OsString::from).collect()) }
    }

    /// Appends the argument to an argv.
    pub fn render_to(&self, argv: &mut Vec<OsString>) {
        if !self.switch.is_empty() {
            argv.push(self.switch.into());
        }
        match &self.value {
            Value::Bare => {}
            Value::Words(words) => argv.extend(words.iter().cloned()),
            Value::Plain(text) => argv.push(text.clone()),
            Value::Opts(opts) => argv.push(opts.render()),
            Value::Json(json) => argv.push(json.into()),
        }
    }
}

/// Spells a switch of two states as QemuOpts do.
pub(super) fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(arg: &Arg) -> Vec<OsString> {
        let mut argv = Vec::new();
        arg.render_to(&mut argv);
        argv
    }

    #[test]
    fn commas_in_values_are_doubled_and_nothing_else_is_touched() {
        let opts = Opts::new().with("", "socket").with("id", "m").with("path", "/a,b c\"d\n=e");
        assert_eq!(rendered(&Arg::opts("-chardev", opts)), ["-chardev", "socket,id=m,path=/a,,b c\"d\n=e"]);
    }

    #[test]
    fn plain_values_keep_their_commas() {
        assert_eq!(
            rendered(&Arg::plain("-append", "console=ttyS0,115200")),
            ["-append", "console=ttyS0,115200"]
        );
    }

    #[test]
    fn json_keeps_the_order_of_fields() {
        #[derive(Serialize)]
        struct Device {
            driver: &'static str,
            bus: String,
        }
        let arg = Arg::json("-device", &Device { driver: "x", bus: "a,b".into() });
        assert_eq!(rendered(&arg), ["-device", r#"{"driver":"x","bus":"a,b"}"#]);
    }
}
