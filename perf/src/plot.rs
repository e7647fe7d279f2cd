//! The data path's figures as an SVG: rates as bars, one panel a direction, ratios under them.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use crate::figure::Figure;

const PANEL_WIDTH: f64 = 300.0;
const PANEL_HEIGHT: f64 = 220.0;
const MARGIN: f64 = 60.0;
const LEGEND_HEIGHT: f64 = 40.0;
const LABEL_HEIGHT: f64 = 50.0;

/// Name in the figures, name for people, colour (distinct in grey and for the colour-blind).
const SERIES: [(&str, &str, &str); 4] = [
    ("testpmd", "testpmd vhost", "#999999"),
    ("passthrough", "passthrough", "#0072b2"),
    ("sequenced", "log of one node", "#e69f00"),
    ("sequenced-three", "log of three nodes", "#5b2a00"),
];
const DIRECTIONS: [(&str, &str); 3] = [
    ("guest-to-host", "guest to host"),
    ("host-to-guest", "host to guest"),
    ("forward", "forwarding"),
];
const FRAME_BYTES: [usize; 3] = [64, 512, 1500];

/// The picture.
pub fn datapath(rows: &[Figure]) -> Result<String> {
    let find = |name: String| rows.iter().find(|row| row.name == name);
    let bars = |direction: &str| -> Vec<Group<'_>> {
        let group = |frame_bytes: &usize| Group {
            frame_bytes: *frame_bytes,
            bars: SERIES
                .map(|(what, _, _)| find(format!("datapath/{what}/{direction}/{frame_bytes}"))),
            ratio: find(format!(
                "datapath/passthrough-of-testpmd/{direction}/{frame_bytes}"
            ))
            .and_then(|row| row.value),
        };
        FRAME_BYTES.iter().map(group).collect()
    };
    let panels = DIRECTIONS.map(|(direction, title)| (title, bars(direction)));
    let highest = panels
        .iter()
        .flat_map(|(_, groups)| groups)
        .flat_map(|group| group.bars.iter().flatten())
        .filter_map(|row| row.spread.map(|spread| spread.max))
        .fold(0.0, f64::max);
    ensure!(
        highest > 0.0,
        "no rates of the data path to draw; run `make perf ONLY=datapath`"
    );
    let mut svg = String::new();
    write_frame(&mut svg, rows)?;
    for (at, (title, groups)) in panels.iter().enumerate() {
        let left = MARGIN + at as f64 * (PANEL_WIDTH + MARGIN / 2.0);
        write_panel(&mut svg, left, title, groups, nice(highest))?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// The bars of a frame size.
struct Group<'a> {
    frame_bytes: usize,
    bars: [Option<&'a Figure>; SERIES.len()],
    /// Passthrough against testpmd.
    ratio: Option<f64>,
}

/// The next round number.
fn nice(value: f64) -> f64 {
    let step = 10f64.powf(value.log10().floor());
    let steps = (value / step).ceil();
    let rounded = [1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    rounded.into_iter().find(|n| *n >= steps).unwrap_or(10.0) * step
}

fn write_frame(svg: &mut String, rows: &[Figure]) -> Result<()> {
    let width = MARGIN * 1.5 + 3.0 * (PANEL_WIDTH + MARGIN / 2.0);
    let height = LEGEND_HEIGHT + PANEL_HEIGHT + LABEL_HEIGHT + MARGIN;
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>"
    )?;
    for (at, (_, label, colour)) in SERIES.iter().enumerate() {
        let x = MARGIN + at as f64 * 170.0;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"12\" width=\"14\" height=\"14\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"24\">{label}</text>",
            x + 20.0
        )?;
    }
    let machine = rows
        .iter()
        .find(|row| row.name.starts_with("datapath/"))
        .map(|row| {
            let machine = &row.machine;
            format!(
                "million packets a second, median and range; number: passthrough / testpmd; \
                 {}, {} cores, {}, {}",
                machine.cpu, machine.cores, machine.date, machine.git_revision
            )
        })
        .unwrap_or_default();
    writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"{}\" font-size=\"11\">{}</text>",
        height - 12.0,
        escape(&machine)
    )?;
    Ok(())
}

fn write_panel(
    svg: &mut String,
    left: f64,
    title: &str,
    groups: &[Group<'_>],
    top_value: f64,
) -> Result<()> {
    let top = LEGEND_HEIGHT + 20.0;
    let bottom = top + PANEL_HEIGHT;
    let y = |value: f64| bottom - value / top_value * PANEL_HEIGHT;
    writeln!(
        svg,
        "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>",
        top - 8.0
    )?;
    for step in 0..=4 {
        let value = top_value * f64::from(step) / 4.0;
        let line = y(value);
        writeln!(
            svg,
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{line}\" y2=\"{line}\" stroke=\"#ddd\"/>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"10\">{value}</text>",
            left + PANEL_WIDTH,
            left - 4.0,
            line + 4.0
        )?;
    }
    let group_width = PANEL_WIDTH / groups.len() as f64;
    let bar_width = group_width / (SERIES.len() as f64 + 1.5);
    for (at, group) in groups.iter().enumerate() {
        let start = left + at as f64 * group_width + bar_width * 0.75;
        for (bar, row) in group.bars.iter().enumerate() {
            let Some(row) = row else { continue };
            let x = start + bar as f64 * bar_width;
            write_bar(svg, row, SERIES[bar].2, (x, bar_width), &y)?;
        }
        let ratio = group
            .ratio
            .map_or_else(String::new, |ratio| format!(", {ratio:.2}"));
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{} B{ratio}</text>",
            start + bar_width * SERIES.len() as f64 / 2.0,
            bottom + 18.0,
            group.frame_bytes
        )?;
    }
    Ok(())
}

fn write_bar(
    svg: &mut String,
    row: &Figure,
    colour: &str,
    (x, width): (f64, f64),
    y: &impl Fn(f64) -> f64,
) -> Result<()> {
    let (Some(value), Some(spread)) = (row.value, row.spread) else {
        return Ok(());
    };
    let (top, zero) = (y(value), y(0.0));
    writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\">\
         <title>{}: {value:.2} {}</title></rect>\n\
         <line x1=\"{middle:.1}\" x2=\"{middle:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#222\"/>",
        width * 0.9,
        zero - top,
        escape(&row.name),
        escape(&row.unit),
        y(spread.min),
        y(spread.max),
        middle = x + width * 0.45,
    )?;
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::measured::Measured;

    fn figure(name: &str, samples: Vec<f64>) -> Figure {
        let machine = Machine {
            cpu: "A<B> & \"C\"".to_owned(),
            ..Machine::default()
        };
        Figure::judged(Measured::new(name, "Mpps", samples), None, &machine)
    }

    #[test]
    fn bars_are_drawn_for_what_is_there_and_text_is_escaped() {
        let rows = [
            figure("datapath/testpmd/forward/64", vec![10.0, 12.0, 11.0]),
            figure("datapath/passthrough/forward/64", Vec::new()),
        ];
        let svg = datapath(&rows).expect("a picture");
        assert_eq!(svg.matches("<title>").count(), 1);
        assert!(svg.contains("A&lt;B&gt; &amp; &quot;C&quot;"));
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        assert!(datapath(&[]).is_err());
        assert!(datapath(&[figure("hasher/x", vec![1.0])]).is_err());
    }

    #[test]
    fn the_scale_ends_at_a_round_number() {
        assert_eq!(nice(41.7), 50.0);
        assert_eq!(nice(9.9), 10.0);
        assert_eq!(nice(0.72), 0.8);
    }
}
