//! The tables: which figures stand in which cell.

use super::Recorded;

/// How a figure is shown.
#[derive(Clone, Copy)]
enum Form {
    /// Its median.
    Median,
    /// Its median, lowest and highest value.
    Range,
    /// Its median and 99th percentile, in microseconds.
    Percentiles,
    /// The median of its floor.
    Floor,
    /// Its ratio to the floor.
    Ratio,
    /// Its median of KiB, in MiB.
    Mebibytes,
}

/// A figure, and how it is shown.
type Cell = (String, Form);

struct Table {
    head: &'static [&'static str],
    rows: Vec<(String, Vec<Cell>)>,
}

/// The ways between two guests, and what they are called.
pub(super) const PATHS: [(&str, &str); 9] = [
    ("macvtap_same_node", "macvtap, same node"),
    ("macvtap_same_node_vhost", "... with vhost-net"),
    ("bridge_same_node", "tap and bridges, same node"),
    ("bridge_same_node_vhost", "... with vhost-net"),
    ("macvtap_other_node", "macvtap, other node"),
    ("macvtap_other_node_vhost", "... with vhost-net"),
    ("bridge_other_node", "tap and bridges, other node"),
    ("bridge_other_node_vhost", "... with vhost-net"),
    ("cable", "veth, sockets of two containers"),
];

/// How many calls begin at once.
pub(super) const AT_ONCE: [u32; 6] = [1, 2, 4, 8, 16, 32];

const NAMES: [&str; 8] =
    ["throughput", "processor", "queues", "classic", "at-once", "among", "agent", "pods"];

fn table(name: &str) -> Option<Table> {
    Some(match name {
        "throughput" => throughput(),
        "processor" => processor(),
        "queues" => queues(),
        "classic" => classic(),
        "at-once" => at_once(),
        "among" => among(),
        "agent" => agent(),
        "pods" => pods(),
        _ => return None,
    })
}

fn over_paths(cells: impl Fn(&str) -> Vec<Cell>) -> Vec<(String, Vec<Cell>)> {
    PATHS.iter().map(|(path, label)| ((*label).to_owned(), cells(path))).collect()
}

fn throughput() -> Table {
    let cells = |path: &str| {
        let rate = |what: &str| (format!("data_{path}_{what}_rate"), Form::Range);
        let mut cells: Vec<Cell> = ["1500", "9000", "1500_segments", "9000_segments", "64"].map(rate).into();
        cells.push((format!("data_{path}_round_trip"), Form::Percentiles));
        cells
    };
    Table {
        head: &[
            "",
            "frames of 1500, Gbit/s",
            "frames of 9000, Gbit/s",
            "segments, MTU 1500, Gbit/s",
            "segments, MTU 9000, Gbit/s",
            "frames of 64 bytes, thousands a second",
            "round trip p50 and p99, µs",
        ],
        rows: over_paths(cells),
    }
}

fn processor() -> Table {
    let cells = |path: &str| {
        let what = ["1500", "9000", "1500_segments", "9000_segments", "64"];
        what.map(|what| (format!("data_{path}_{what}_processor"), Form::Range)).into()
    };
    Table {
        head: &[
            "",
            "frames of 1500, ms/GB",
            "frames of 9000, ms/GB",
            "segments, MTU 1500, ms/GB",
            "segments, MTU 9000, ms/GB",
            "frame of 64 bytes, µs each",
        ],
        rows: over_paths(cells),
    }
}

fn queues() -> Table {
    let cells = |path: &str| {
        let what = ["64", "1500_segments"].into_iter();
        let figures =
            what.flat_map(|what| ["", "_2_queues", "_4_queues"].map(|queues| format!("{what}{queues}")));
        figures.map(|figure| (format!("data_{path}_{figure}_rate"), Form::Range)).collect()
    };
    Table {
        head: &[
            "",
            "64 bytes, 1 queue, thousands a second",
            "2 queues",
            "4 queues",
            "segments, MTU 1500, 1 queue, Gbit/s",
            "2 queues",
            "4 queues",
        ],
        // A cable has one.
        rows: over_paths(|path| if path == "cable" { Vec::new() } else { cells(path) }),
    }
}

fn classic() -> Table {
    let row = |label: &str, name: &str, ratio: Form| {
        (label.to_owned(), vec![(name.to_owned(), Form::Range), (name.to_owned(), ratio)])
    };
    let mut rows = vec![
        row("made in the node's namespace, moved, renamed, set up", "cni_add_classic_link_down", Form::Ratio),
        row("the same, up before it is moved", "cni_add_classic_link_up", Form::Ratio),
    ];
    rows.insert(0, ("ADD".to_owned(), vec![("cni_add".to_owned(), Form::Range)]));
    Table { head: &["", "ms", "times the ADD"], rows }
}

fn at_once() -> Table {
    let row = |count: u32| {
        let name = |verb: &str| format!("cni_at_once_{count}_{verb}");
        (
            count.to_string(),
            vec![(name("add"), Form::Floor), (name("add"), Form::Range), (name("del"), Form::Range)],
        )
    };
    Table {
        head: &["calls at once", "a program that does nothing, ms", "ADD, ms", "DEL, ms"],
        rows: AT_ONCE.map(row).into(),
    }
}

fn among() -> Table {
    let row = |(count, label): (u32, &str)| {
        let name = |verb: &str| format!("cni_among_{count}_{verb}");
        let mut cells = vec![(name("add"), Form::Floor)];
        cells.extend(["add", "check", "del"].map(|verb| (name(verb), Form::Range)));
        (label.to_owned(), cells)
    };
    let rows = [(1, "1"), (100, "100"), (1_000, "1,000"), (4_000, "4,000")].map(row);
    Table {
        head: &["macvtaps on the link", "the kernel alone, ms", "ADD, ms", "CHECK, ms", "DEL, ms"],
        rows: rows.into(),
    }
}

fn agent() -> Table {
    let decision =
        |devices: u32, links: u32| (format!("agent_step_{devices}_devices_{links}_links"), Form::Median);
    let memory = |name: &str, devices: u32, links: u32| {
        (format!("agent_{name}_memory_{devices}_devices_{links}_links"), Form::Mebibytes)
    };
    let row = |(devices, links): (u32, u32)| {
        let cells = vec![
            decision(devices, links),
            memory("anonymous", devices, links),
            memory("resident", devices, links),
        ];
        (format!("{} on a node with {}", amount(devices, "device"), amount(links, "link")), cells)
    };
    let sizes = [
        (1_000, 20),
        (1_000, 100),
        (10_000, 100),
        (10_000, 500),
        (40_000, 2_000),
        (100, 1),
        (4_000, 1),
        (1_000, 64),
        (1_000, 512),
    ];
    Table {
        head: &["", "one decision, ms", "memory of its own, MiB", "resident, MiB"],
        rows: sizes.map(row).into(),
    }
}

fn pods() -> Table {
    let row = |count: u32| {
        let name = format!("cluster_{count}_pods_last_ready");
        let forms = [Form::Floor, Form::Range, Form::Ratio];
        (format!("{count} pods"), forms.map(|form| (name.clone(), form)).into())
    };
    Table {
        head: &["", "with a plugin that does nothing, s", "with a macvtap, s", "median ratio of the pairs"],
        rows: [64, 220].map(row).into(),
    }
}

fn amount(count: u32, what: &str) -> String {
    format!("{} {what}{}", grouped(count.into()), if count == 1 { "" } else { "s" })
}

/// The names of all figures that the page uses.
pub(super) fn names() -> Vec<String> {
    let tables = NAMES.into_iter().filter_map(table);
    let mut names: Vec<String> =
        tables.flat_map(|table| table.rows).flat_map(|(_, cells)| cells).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    names
}

/// The table of this name in Markdown, and the run that gave its figures. Rows without a figure are left out.
pub(super) fn render(name: &str, recorded: &Recorded) -> Option<String> {
    let table = table(name)?;
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = table.head.iter().map(|&cell| cell.to_owned()).collect();
    let mut text = line(&head) + &"|---".repeat(head.len()) + "|\n";
    let mut runs = Vec::new();
    for (label, cells) in table.rows {
        let shown: Vec<String> = cells.iter().map(|cell| show(cell, recorded).unwrap_or_default()).collect();
        if shown.iter().all(String::is_empty) {
            continue;
        }
        let mut row = vec![label];
        row.extend(shown);
        row.resize(head.len(), String::new());
        text += &line(&row);
        runs.extend(cells.iter().filter_map(|(name, _)| recorded.run(name)));
    }
    runs.sort();
    runs.dedup();
    Some(text + "\n" + &runs.join("\n") + "\n")
}

fn show((name, form): &Cell, recorded: &Recorded) -> Option<String> {
    let number = |key: &str| recorded.number(name, key);
    let p50 = number("p50")?;
    Some(match form {
        Form::Median => short(p50),
        Form::Range => format!("{} ({} to {})", short(p50), short(number("min")?), short(number("max")?)),
        Form::Percentiles => format!("{} and {}", short(p50 * 1e3), short(number("p99")? * 1e3)),
        Form::Floor => short(number("floor_p50")?),
        Form::Ratio => short(number("ratio")?),
        Form::Mebibytes => short(p50 / 1024.0),
    })
}

/// Three digits.
pub(super) fn short(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => grouped(value),
    }
}

/// Whole, with a comma for each thousand.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_shows_median_and_range_and_the_run() {
        let recorded = Recorded(json!({
            "runs": {"make bench": {"commit": "c0", "date": "2026-01-01", "machine": "m", "load_at_end": "0.1"}},
            "results": [{"name": "cni_among_1000_add", "p50": 1.234, "min": 1.0, "max": 1234.5, "command": "make bench"}],
        }));
        let text = render("among", &recorded).unwrap();
        assert!(text.contains("| 1,000 |  | 1.23 (1.00 to 1,234) |  |  |\n"), "{text}");
        assert!(
            text.ends_with("\n\n`make bench`, 2026-01-01, commit c0, m, load at the end 0.1.\n"),
            "{text}"
        );
    }
}
