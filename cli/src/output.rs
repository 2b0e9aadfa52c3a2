//! How reports are printed: as text, with colour on a terminal, or as JSON or YAML.

use crate::report::{Diagnostic, Level, Report};
use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

/// The form of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// Whether text has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Colour(bool);

impl Colour {
    /// On a terminal whose user has not set `NO_COLOR` (no-color.org).
    pub(crate) fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(!refused && std::io::stdout().is_terminal())
    }

    /// None.
    pub(crate) fn none() -> Self {
        Self(false)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The word for a level, of four characters.
    pub(crate) fn mark(self, level: Level) -> String {
        match level {
            Level::Ok => self.paint("32", " ok "),
            Level::Skipped => self.paint("2", "  - "),
            Level::Warning => self.paint("33", "warn"),
            Level::Failed => self.paint("1;31", "FAIL"),
        }
    }

    /// A heading.
    pub(crate) fn heading(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// Prints a report.
pub(crate) fn print(report: &Report, format: Format) -> Result<()> {
    match format {
        Format::Text => write(&text(report, Colour::of_stdout())),
        Format::Json | Format::Yaml => print_value(report, format),
    }
}

/// Prints a value for programs; as YAML where the format is for people.
pub(crate) fn print_value(value: &impl Serialize, format: Format) -> Result<()> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(value).context("write JSON")? + "\n",
        Format::Text | Format::Yaml => serde_yaml::to_string(value).context("write YAML")?,
    };
    write(&text)
}

/// Writes text to the standard output. A closed pipe does not count as a failure.
pub(crate) fn write(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to the standard output"),
    }
}

/// A report as text.
pub(crate) fn text(report: &Report, colour: Colour) -> String {
    let mut text = String::new();
    for section in report.sections.iter().filter(|section| !section.diagnostics.is_empty()) {
        let _ = writeln!(text, "{}", colour.heading(&section.title));
        for diagnostic in &section.diagnostics {
            push(&mut text, diagnostic, colour);
        }
        text.push('\n');
    }
    let _ = writeln!(text, "{}", report.conclusion);
    text
}

fn push(text: &mut String, diagnostic: &Diagnostic, colour: Colour) {
    let reason = diagnostic.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}  {}{reason}", colour.mark(diagnostic.level), diagnostic.fact);
    for (label, more) in [("do: ", &diagnostic.remedy), ("see: ", &diagnostic.see)] {
        if let Some(more) = more {
            let _ = writeln!(text, "        {label}{more}");
        }
    }
}

/// Rows as columns of equal width; the first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Section;

    #[test]
    fn a_failure_is_followed_by_its_remedy_and_place_in_the_documentation() {
        let failed = Diagnostic::failed("Multus is not installed").because("NADKindMissing");
        let section = Section::new(
            "cluster",
            vec![Diagnostic::ok("the API server answers"), failed.remedy("install Multus").see("pods")],
        );
        let report = Report { sections: vec![section], conclusion: "1 of 2 failed".to_owned() };
        let wanted = "cluster\n ok   the API server answers\nFAIL  Multus is not installed (NADKindMissing)\n        \
                      do: install Multus\n        see: docs/troubleshooting.md#pods\n\n1 of 2 failed\n";
        assert_eq!(text(&report, Colour::none()), wanted);
        assert!(text(&report, Colour(true)).contains("\x1b[1;31mFAIL\x1b[0m"));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["NAME", "READY"], ["dataplane", "1/2"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "NAME       READY\ndataplane  1/2\n");
    }
}
