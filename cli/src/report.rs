//! What a command found out: facts, each with its level, reason and remedy.

use serde::Serialize;

/// How a fact is interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Not known, or of no importance for the verdict.
    Skipped,
    /// Works, but somebody should know.
    Warning,
    /// Broken.
    Failed,
}

/// One fact that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Diagnostic {
    /// How it is interpreted.
    pub(crate) level: Level,
    /// What is so, in one sentence.
    pub(crate) fact: String,
    /// One stable word, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
    /// Where the documentation explains it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) see: Option<String>,
}

/// A heading and the facts below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Section {
    /// The heading.
    pub(crate) title: String,
    /// What was found.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// Everything that a command found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// By subject.
    pub(crate) sections: Vec<Section>,
    /// What it comes to, in one sentence.
    pub(crate) conclusion: String,
}

impl Diagnostic {
    /// A fact of this level.
    pub(crate) fn new(level: Level, fact: impl Into<String>) -> Self {
        Self { level, fact: fact.into(), reason: None, remedy: None, see: None }
    }

    /// A fact that is as it should be.
    pub(crate) fn ok(fact: impl Into<String>) -> Self {
        Self::new(Level::Ok, fact)
    }

    /// A fact that could not be tried.
    pub(crate) fn skipped(fact: impl Into<String>) -> Self {
        Self::new(Level::Skipped, fact)
    }

    /// A fact that somebody should know.
    pub(crate) fn warning(fact: impl Into<String>) -> Self {
        Self::new(Level::Warning, fact)
    }

    /// A fact that is wrong.
    pub(crate) fn failed(fact: impl Into<String>) -> Self {
        Self::new(Level::Failed, fact)
    }

    /// Adds the word for it.
    #[must_use]
    pub(crate) fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Adds a heading of the troubleshooting guide.
    #[must_use]
    pub(crate) fn see(mut self, anchor: &str) -> Self {
        self.see = Some(format!("docs/troubleshooting.md#{anchor}"));
        self
    }
}

impl Section {
    /// A section with these facts.
    pub(crate) fn new(title: impl Into<String>, diagnostics: Vec<Diagnostic>) -> Self {
        Self { title: title.into(), diagnostics }
    }
}

impl Report {
    /// All facts of a level.
    pub(crate) fn of_level(&self, level: Level) -> impl Iterator<Item = &Diagnostic> {
        self.sections
            .iter()
            .flat_map(|section| &section.diagnostics)
            .filter(move |found| found.level == level)
    }

    /// Whether a fact is wrong.
    pub(crate) fn has_failed(&self) -> bool {
        self.of_level(Level::Failed).next().is_some()
    }
}
