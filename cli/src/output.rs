//! Where everything is printed, and how: text or JSON, with colour or without.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};

use serde::Serialize;

/// Where results and remarks go, and in which form.
pub struct Output {
    json: bool,
    results: Box<dyn Write>,
    paint: Paint,
    remarks: Box<dyn Write>,
    error_label: String,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Output");
        out.field("json", &self.json).field("paint", &self.paint);
        out.finish_non_exhaustive()
    }
}

/// Marks text for people's eyes, on a terminal that wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// No marks: a file, a pipe, a test.
    Plain,
    /// Terminal colours.
    Colour,
}

impl Paint {
    /// As it should be.
    pub fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// On its way, or worth a look.
    pub fn fair(self, text: &str) -> String {
        self.with("33", text)
    }

    /// Not as it should be.
    pub fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    /// Colour if this stream is a terminal, and `NO_COLOR` is unset or empty (no-color.org).
    fn of(stream: &impl IsTerminal) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if stream.is_terminal() && !unwanted {
            Self::Colour
        } else {
            Self::Plain
        }
    }
}

impl Output {
    /// Results to standard output, as text or as JSON; remarks to standard error.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            paint: Paint::of(&io::stdout()),
            // Not locked: other threads may log to standard error meanwhile.
            results: Box::new(io::stdout()),
            error_label: Paint::of(&io::stderr()).bad("error:"),
            remarks: Box::new(io::stderr()),
        }
    }

    /// Prints a value: as one indented JSON value if that is wanted, else as the text made of it.
    ///
    /// # Errors
    /// The results cannot be written. A reader that went away is no error.
    pub fn show<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T, Paint) -> String,
    ) -> io::Result<()> {
        if self.json {
            return self.json(value);
        }
        self.text(&text(value, self.paint))
    }

    /// Prints a value as one indented JSON value.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn json(&mut self, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
        let json = serde_json::to_string_pretty(value)?;
        self.text(&format!("{json}\n"))
    }

    /// Prints text as it is, whatever form is wanted.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        let written = self.results.write_all(text.as_bytes());
        match written.and_then(|()| self.results.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            done => done,
        }
    }

    /// Says something beside the result.
    pub fn note(&mut self, text: &str) {
        // Nobody can be told that nobody can be told; so below.
        let _ = writeln!(self.remarks, "weft: {text}");
    }

    /// Says what went wrong and what to do.
    pub fn error(&mut self, error: &str, hint: Option<&str>) {
        let _ = writeln!(self.remarks, "weft: {} {error}", self.error_label);
        if let Some(hint) = hint {
            let _ = writeln!(self.remarks, "      {hint}");
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// What was written to one side of an output.
    #[derive(Clone, Default)]
    pub(crate) struct Written(Rc<RefCell<Vec<u8>>>);

    impl Written {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.borrow().clone()).unwrap()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output {
        /// An output without colours, and what is written to it: results, remarks.
        pub(crate) fn kept(json: bool) -> (Self, Written, Written) {
            let (results, remarks) = (Written::default(), Written::default());
            let output = Self {
                json,
                paint: Paint::Plain,
                results: Box::new(results.clone()),
                remarks: Box::new(remarks.clone()),
                error_label: "error:".to_owned(),
            };
            (output, results, remarks)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe whose other end is closed, or a full disk.
    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_error_but_a_full_disk_is() {
        let (mut output, _, _) = Output::kept(false);
        output.results = Box::new(Broken(ErrorKind::BrokenPipe));
        assert!(output.text("x").is_ok());
        output.results = Box::new(Broken(ErrorKind::StorageFull));
        assert!(output.text("x").is_err());
    }

    #[test]
    fn text_is_marked_only_where_that_is_wanted() {
        assert_eq!(Paint::Plain.bad("failed"), "failed");
        assert_eq!(Paint::Colour.bad("failed"), "\x1b[31mfailed\x1b[0m");
    }
}
