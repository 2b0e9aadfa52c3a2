//! What the asking pods printed, as a table. Pure.

use super::manifest::Run;
use crate::output;

/// Which pods reached which others.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    from: String,
    to: String,
    what: String,
    well: bool,
    said: String,
}

impl Outcome {
    /// Takes the log of the pod that asked from a node.
    pub(super) fn read(&mut self, from: &str, log: &str) {
        let begin = self.rows.len();
        for line in log.lines() {
            match line.strip_prefix("@ ") {
                Some("ok") => {
                    if let Some(row) = self.rows.last_mut() {
                        row.well = true;
                    }
                }
                Some(head) => {
                    let (to, what) = head.split_once('|').unwrap_or((head, ""));
                    let row = Row {
                        from: from.to_owned(),
                        to: to.to_owned(),
                        what: what.to_owned(),
                        well: false,
                        said: String::new(),
                    };
                    self.rows.push(row);
                }
                None => {
                    if let Some(row) = self.rows.get_mut(begin..).and_then(<[Row]>::last_mut) {
                        line.trim().clone_into(&mut row.said);
                    }
                }
            }
        }
    }

    /// Whether everybody reached everybody.
    pub(super) fn is_well(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.well)
    }

    /// As text.
    pub(super) fn text(&self, run: &Run) -> String {
        let head = ["", "FROM", "TO", "WHAT", "RESULT"].map(str::to_owned).to_vec();
        let row = |row: &Row| {
            let mark = if row.well { " ok " } else { "FAIL" };
            vec![mark.to_owned(), row.from.clone(), row.to.clone(), row.what.clone(), row.said.clone()]
        };
        let rows: Vec<_> = std::iter::once(head).chain(self.rows.iter().map(row)).collect();
        let failed = self.rows.iter().filter(|row| !row.well).count();
        let total = self.rows.len();
        let verdict = match failed {
            0 => format!("pool {}: all {total} tests passed through the taps, MTU {}", run.pool, run.mtu),
            _ => format!(
                "pool {}: {failed} of {total} tests failed. Between nodes: the switch must carry the links' VLAN and MTU, and a virtual \
                 switch or cloud must pass frames of foreign MAC addresses (docs/troubleshooting.md#pods)",
                run.pool
            ),
        };
        format!("{}\n{verdict}\n", output::table(&rows))
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::run;
    use super::*;

    #[test]
    fn a_test_without_its_last_line_has_failed() {
        let mut outcome = Outcome::default();
        outcome.read(
            "n1",
            "@ n1|IPv4\n198.18.0.1: 3 sent, 3 received\n@ ok\n@ n2|IPv4\ntapguest: 198.18.1.1: no answer\n",
        );
        assert!(!outcome.is_well());
        let text = outcome.text(&run());
        assert!(text.contains("FAIL  n1    n2  IPv4  tapguest: 198.18.1.1: no answer"), "{text}");
        assert!(text.contains(" ok   n1    n1  IPv4  198.18.0.1: 3 sent, 3 received"), "{text}");
        assert!(text.contains("1 of 2 tests failed"), "{text}");
        assert!(!Outcome::default().is_well());
    }
}
