//! What the API server said, in its own words.
//!
//! The text of a [`kube::Error`] repeats the whole answer as a Rust value; people need the message in it.

use kube::Error;
use std::error::Error as StdError;

/// What went wrong with a request, for a log or a condition.
pub fn text(error: &Error) -> String {
    match error {
        Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether the API server has refused a write. After any other error it may have stored it, or may yet.
pub fn is_refused(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code < 500)
}

/// An error with its causes, each once.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut chained = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let request =
            error.downcast_ref::<Error>().or_else(|| error.downcast_ref::<Box<Error>>().map(AsRef::as_ref));
        chained.push_str(": ");
        chained.push_str(&request.map_or_else(|| error.to_string(), text));
        // The text of a request's error holds those of its causes already.
        cause = if request.is_some() { None } else { error.source() };
    }
    chained
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[derive(Debug, thiserror::Error)]
    #[error("write the status of pool dp")]
    struct WriteError(#[source] Box<Error>);

    #[test]
    fn the_answer_of_the_server_is_told_once_and_as_text() {
        let status = Status { code: 404, message: "pool \"dp\" not found".into(), ..Default::default() };
        let error = WriteError(Box::new(Error::Api(Box::new(status))));
        assert_eq!(chain(&error), "write the status of pool dp: pool \"dp\" not found");
    }
}
