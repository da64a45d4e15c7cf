//! Figures as charts: acks per second as bars, with the least and the greatest
//! round; and what changes over months as lines.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// One bar.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

const WIDTH: u32 = 960;
const BAR_HEIGHT: u32 = 22;
const LABELS_WIDTH: u32 = 330;
const OURS: RGBColor = RGBColor(0x1b, 0x6c, 0xa8);
const OTHERS: RGBColor = RGBColor(0xb0, 0xb7, 0xbe);

/// Writes an SVG, the first bar on top.
pub(crate) fn write(path: &Path, bars: &[Bar]) -> Result<()> {
    let count = u32::try_from(bars.len())?;
    let root = SVGBackend::new(path, (WIDTH, 90 + BAR_HEIGHT * count)).into_drawing_area();
    draw(&root, bars).map_err(|error| anyhow!("drawing the chart: {error}"))
}

fn draw(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    bars: &[Bar],
) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let greatest = bars.iter().map(|bar| bar.greatest).fold(0.0, f64::max);
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(index) => {
            // The axis counts from below.
            let found = bars.len().checked_sub(index + 1).and_then(|index| bars.get(index));
            found.map(|bar| bar.name.clone()).unwrap_or_default()
        }
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    let mut chart = ChartBuilder::on(root)
        .caption(
            "acknowledged callbacks a second: median, least and greatest round",
            ("sans-serif", 17),
        )
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(LABELS_WIDTH)
        .build_cartesian_2d(0.0..greatest * 1.05, (0..bars.len()).into_segmented())?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(bars.len())
        .y_label_formatter(&name)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for (index, bar) in bars.iter().rev().enumerate() {
        let color = if bar.name.contains("Mooring") { OURS } else { OTHERS };
        let (from, to) = (SegmentValue::Exact(index), SegmentValue::Exact(index + 1));
        let mut rectangle = Rectangle::new([(0.0, from), (bar.median, to)], color.filled());
        rectangle.set_margin(3, 3, 0, 0);
        let middle = SegmentValue::CenterOf(index);
        let spread =
            PathElement::new(vec![(bar.least, middle.clone()), (bar.greatest, middle)], BLACK);
        chart.draw_series([rectangle])?;
        chart.draw_series([spread])?;
    }
    root.present()?;
    Ok(())
}

/// Writes an SVG with a line for each series, one value a month, each over its own greatest.
pub(crate) fn write_lines(path: &Path, series: &[(&str, Vec<f64>)]) -> Result<()> {
    let root = SVGBackend::new(path, (WIDTH, 420)).into_drawing_area();
    draw_lines(&root, series).map_err(|error| anyhow!("drawing the chart: {error}"))
}

fn draw_lines(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    series: &[(&str, Vec<f64>)],
) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let months = series.iter().map(|(_, values)| values.len()).max().unwrap_or_default();
    let caption = "month by month, each line over its own greatest value";
    let mut chart = ChartBuilder::on(root)
        .caption(caption, ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(40)
        .build_cartesian_2d(1..months.max(2), 0.0..1.1)?;
    chart.configure_mesh().light_line_style(TRANSPARENT).x_desc("month").draw()?;
    for (index, (name, values)) in series.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let greatest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let points = values.iter().enumerate().map(|(at, value)| (at + 1, value / greatest));
        let name = format!("{name}, at most {greatest:.0}");
        let line = chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
        line.label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    let mut labels = chart.configure_series_labels();
    labels.background_style(WHITE).border_style(BLACK);
    labels.position(SeriesLabelPosition::LowerRight).draw()?;
    root.present()?;
    Ok(())
}
