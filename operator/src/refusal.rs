//! What the API server said, in its own words.
//!
//! The text of a [`kube::Error`] repeats the whole answer as a Rust value; people need the message in it.

use kube::Error;
use kube::config::InferConfigError;
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
    let (mut chained, mut next) = (String::new(), Some(error));
    while let Some(error) = next {
        let request =
            error.downcast_ref::<Error>().or_else(|| error.downcast_ref::<Box<Error>>().map(AsRef::as_ref));
        let said = request.map_or_else(|| error.to_string(), text);
        // Some libraries repeat their causes in their own text.
        if !chained.contains(&said) {
            chained.push_str(if chained.is_empty() { "" } else { ": " });
            chained.push_str(&said);
        }
        // The answer of the server, in its own words, is the whole cause.
        next = if matches!(request, Some(Error::Api(_))) { None } else { error.source() };
    }
    chained
}

/// Why no cluster was found. Of the two ways to find one, the way that was not meant has nothing to say: a kubeconfig where
/// a pod has its service account, and the service account elsewhere.
pub fn not_found(error: &InferConfigError) -> String {
    let file = std::env::var("KUBECONFIG").unwrap_or_default();
    let is_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    match error.source() {
        Some(kubeconfig) if !file.is_empty() => format!("KUBECONFIG={file}: {}", chain(kubeconfig)),
        Some(kubeconfig) if !is_pod => chain(kubeconfig),
        _ => chain(error),
    }
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

    #[test]
    fn why_the_server_cannot_be_reached_is_said() {
        let reason = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let connect = std::io::Error::other(Outer("client error (Connect)", reason));
        let error = WriteError(Box::new(Error::Service(Box::new(connect))));
        let text = chain(&error);
        assert!(
            text.starts_with("write the status of pool dp: ServiceError: client error (Connect)"),
            "{text}"
        );
        assert!(text.ends_with(": connection refused"), "{text}");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Outer(&'static str, #[source] std::io::Error);
}
