//! The text that keys and values are made of: escaping, and lines of `field=value`.
//!
//! Keys and values are ASCII, whatever they name. Every byte outside a small set is written as `%` and two
//! hex digits; what separates parts (`/`, space, `=`, `,`) is never in that set, so splitting needs no
//! care. Invariant: `unescape(escape(s)) == s`.

/// Bytes that stand for themselves.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':')
}

/// Writes `text` so that it has no separator and nothing outside ASCII.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.extend(hex_digit(byte >> 4));
            out.extend(hex_digit(byte & 0xf));
        }
    }
    out
}

/// Reads what [`escape`] wrote; `None` if it cannot have written this.
pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let read = match byte {
            b'%' => hex_value(bytes.next()?)? << 4 | hex_value(bytes.next()?)?,
            plain if is_plain(plain) => plain,
            _ => return None,
        };
        out.push(read);
    }
    String::from_utf8(out).ok()
}

fn hex_digit(nibble: u8) -> Option<char> {
    char::from_digit(nibble.into(), 16)
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// A value being read: `field=value` pairs with single spaces between.
///
/// Fields nobody asks for are skipped, so that a newer version may add some.
pub(crate) struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    pub(crate) fn new(value: &'a str) -> Self {
        Self(value)
    }

    /// The first field called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<&'a str> {
        self.0
            .split(' ')
            .filter_map(|pair| pair.split_once('='))
            .find_map(|(field, value)| (field == name).then_some(value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn escaped_text_is_read_back_and_holds_no_separator(text: String) {
            let escaped = escape(&text);
            prop_assert!(escaped.is_ascii());
            prop_assert!(!escaped.contains(['/', ' ', '=', ',']));
            prop_assert_eq!(unescape(&escaped), Some(text));
        }

        #[test]
        fn any_text_unescapes_without_panic(text: String) {
            let _ = unescape(&text);
        }
    }

    #[test]
    fn text_that_was_not_escaped_by_us_is_refused() {
        for text in ["a/b", "a b", "%", "%2", "%zz", "%2F", "é", "%ff"] {
            assert_eq!(unescape(text), None, "{text}");
        }
    }

    #[test]
    fn fields_are_found_by_name_and_others_are_skipped() {
        let fields = Fields::new("a=1 new=x b=2 c");
        assert_eq!(fields.find("a"), Some("1"));
        assert_eq!(fields.find("b"), Some("2"));
        assert_eq!(fields.find("c"), None);
    }
}
