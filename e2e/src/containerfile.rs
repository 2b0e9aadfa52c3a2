//! The part of a Containerfile that this project's images use: what the last stage copies from the stage that built it,
//! and how the image is run. So one file says what an image is, to a container engine and to our own builder.

use anyhow::{Context as _, Result, bail, ensure};

/// The last stage of a Containerfile.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// What is copied from the building stage: from where, to where.
    pub copies: Vec<(String, String)>,
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `ENV`, as `NAME=value`.
    pub env: Vec<String>,
    /// `USER`.
    pub user: String,
}

/// Reads the last stage. Everything that is not understood is an error, so that the two readers cannot disagree.
pub fn last_stage(text: &str) -> Result<Stage> {
    let mut stage = None;
    for (number, line) in instructions(text) {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        let rest = rest.trim();
        if word == "FROM" {
            stage = (rest == "scratch").then(Stage::default);
        } else if let Some(stage) = &mut stage {
            instruction(stage, word, rest).with_context(|| format!("line {number}: {line}"))?;
        }
    }
    stage.context("the last stage must be FROM scratch")
}

fn instruction(stage: &mut Stage, word: &str, rest: &str) -> Result<()> {
    match word {
        "COPY" => {
            let words: Vec<&str> = rest.split_whitespace().collect();
            let ["--from=build", from, to] = words[..] else {
                bail!("expected COPY --from=build SOURCE TARGET")
            };
            ensure!(
                from.starts_with("/out/") && to.starts_with('/'),
                "expected a source below /out/ and a full target"
            );
            stage
                .copies
                .push((from.trim_start_matches("/out/").to_owned(), to.trim_start_matches('/').to_owned()));
        }
        "ENTRYPOINT" => stage.entrypoint = serde_json::from_str(rest).context("expected a JSON list")?,
        "ENV" => {
            ensure!(rest.contains('=') && !rest.contains(['"', ' ']), "expected NAME=value without blanks");
            stage.env.push(rest.to_owned());
        }
        "USER" => rest.clone_into(&mut stage.user),
        _ => bail!("only COPY, ENTRYPOINT, ENV and USER are understood in the last stage"),
    }
    Ok(())
}

/// Lines that say something, with continuations joined, numbered by their first line.
fn instructions(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (number, mut joined) = open.take().unwrap_or((index + 1, String::new()));
        match line.strip_suffix('\\') {
            Some(part) => {
                joined.push_str(part);
                open = Some((number, joined));
            }
            None => found.push((number, joined + line)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stage_says_what_the_image_is() {
        let text = "# comment\nFROM x AS build\nRUN a && \\\n    b\nFROM scratch\n\
                    COPY --from=build /out/agent /usr/bin/agent\nENV A=b\nUSER 107:107\nENTRYPOINT [\"/usr/bin/agent\"]\n";
        let expected = Stage {
            copies: vec![("agent".to_owned(), "usr/bin/agent".to_owned())],
            entrypoint: vec!["/usr/bin/agent".to_owned()],
            env: vec!["A=b".to_owned()],
            user: "107:107".to_owned(),
        };
        assert_eq!(last_stage(text).unwrap(), expected);
    }

    #[test]
    fn what_the_builder_would_ignore_is_refused() {
        for line in ["RUN x", "COPY a b", "COPY --from=build /etc/passwd /x", "ENTRYPOINT /x", "ENV A b"] {
            assert!(last_stage(&format!("FROM scratch\n{line}\n")).is_err(), "{line}");
        }
        assert!(last_stage("FROM debian\n").is_err());
    }
}
