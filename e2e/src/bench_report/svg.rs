//! Bar charts as text: the same figures give the same bytes.

use std::fmt::Write as _;

/// A bar: its label, and lowest, median and highest value.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
    pub(super) is_ours: bool,
}

const WIDTH: f64 = 760.0;
const LABELS: f64 = 260.0;
const VALUES: f64 = 70.0;
const TOP: f64 = 40.0;
const ROW: f64 = 26.0;

/// Horizontal bars of the medians with a line from the lowest to the highest value.
pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    let largest = bars.iter().map(|bar| bar.high).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - VALUES) / largest;
    let height = bars.iter().fold(TOP + 10.0, |height, _| height + ROW);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <title>{title}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n"
    );
    let mut top = TOP;
    for bar in bars {
        let colour = if bar.is_ours { "#2f6fb2" } else { "#a8a8a8" };
        let (middle, base) = (top + ROW / 2.0 - 2.0, top + ROW / 2.0 + 3.0);
        let [low, median, high] = [bar.low, bar.median, bar.high].map(|value| value * scale);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "<text x=\"{:.0}\" y=\"{base:.0}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABELS:.0}\" y=\"{:.0}\" width=\"{median:.1}\" height=\"16\" fill=\"{colour}\"/>\n\
             <line x1=\"{:.1}\" y1=\"{middle:.0}\" x2=\"{:.1}\" y2=\"{middle:.0}\" stroke=\"black\"/>\n\
             <text x=\"{:.1}\" y=\"{base:.0}\">{}</text>\n",
            LABELS - 8.0,
            bar.label,
            top + 3.0,
            LABELS + low,
            LABELS + high,
            LABELS + high.max(median) + 6.0,
            super::tables::short(bar.median),
        );
        top += ROW;
    }
    text + "</svg>\n"
}
