//! Lines over a linear or logarithmic axis, with their legend beside them. All SVG comes from here and from
//! [`super::ratios`], through `plotters`, which escapes what it is told to write.

use crate::failure::{Context, Failure};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 760;
const HEIGHT: u32 = 520;
const TEXT_PIXELS: u32 = 14;
/// On average, of the texts that names are; only the legend's room depends on it.
const LETTER_PIXELS: usize = 7;
const LETTERS_MAX: usize = 120;
const LEGEND_LINE: i32 = 22;
/// Latencies are told in tenths of a microsecond, so less than that is none at all, which has no logarithm.
const LEAST_US: f64 = 0.1;

/// Told apart by people who see fewer colours, too; more series than these begin anew.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(120, 94, 40),
    RGBColor(90, 90, 90),
];

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stroke {
    Solid,
    Dashed,
    Dotted,
}

impl Stroke {
    pub(super) const ALL: [Stroke; 3] = [Stroke::Solid, Stroke::Dashed, Stroke::Dotted];

    /// Pixels drawn, pixels left out.
    fn dashes(self) -> Option<(i32, i32)> {
        match self {
            Stroke::Solid => None,
            Stroke::Dashed => Some((8, 4)),
            Stroke::Dotted => Some((2, 3)),
        }
    }
}

/// Points that belong together.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) points: Vec<(f64, f64)>,
    pub(super) colour: usize,
    pub(super) stroke: Stroke,
    /// Which points are marked as hollow; none are marked at all without it.
    pub(super) hollow: Option<Vec<bool>>,
}

/// A line of the legend.
#[derive(Debug)]
pub(super) struct Entry {
    name: String,
    colour: RGBColor,
    /// A hollow point instead if absent.
    stroke: Option<Stroke>,
}

impl Entry {
    /// Black without a colour.
    pub(super) fn line(name: impl Into<String>, colour: Option<usize>, stroke: Stroke) -> Entry {
        Entry { name: name.into(), colour: colour.map_or(BLACK, self::colour), stroke: Some(stroke) }
    }

    pub(super) fn hollow(name: impl Into<String>) -> Entry {
        Entry { name: name.into(), colour: BLACK, stroke: None }
    }
}

pub(super) fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

pub(super) fn text(h_pos: HPos) -> TextStyle<'static> {
    ("sans-serif", TEXT_PIXELS).into_font().color(&BLACK).pos(Pos::new(h_pos, VPos::Center))
}

/// Pixels that a name takes, roughly.
pub(super) fn room(name: &str) -> u32 {
    (name.chars().count().min(LETTERS_MAX) * LETTER_PIXELS) as u32
}

/// A picture of so many pixels.
pub(super) fn picture(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Result<(), Failure>,
) -> Result<String, Failure> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).doing("drawing")?;
        draw(&area)?;
        area.present().doing("drawing")?;
    }
    Ok(svg)
}

/// Lines of latencies over commands a second.
pub(super) fn over_rate(lines: &[Line], legend: &[Entry]) -> Result<String, Failure> {
    let most = lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(1.0, f64::max);
    let axis = Axis { name: "achieved IOPS", labels: 8, format: &|rate| thousands(*rate) };
    chart(lines, legend, 0.0..most * 1.05, &axis)
}

/// Lines of latencies over how rare they are: 1 is every command, 1,000 one in a thousand.
pub(super) fn over_rarity(lines: &[Line], legend: &[Entry]) -> Result<String, Failure> {
    let points = lines.iter().flat_map(|line| &line.points).map(|point| point.0);
    let (range, decades) = decades(points, 1.0);
    let axis = Axis { name: "percentile", labels: decades, format: &|one_in| percentile(*one_in) };
    chart(lines, legend, range.log_scale(), &axis)
}

struct Axis<'a> {
    name: &'a str,
    labels: usize,
    format: &'a dyn Fn(&f64) -> String,
}

fn chart<X>(lines: &[Line], legend: &[Entry], x: X, axis: &Axis<'_>) -> Result<String, Failure>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let letters = legend.iter().map(|entry| room(&entry.name)).max().unwrap_or(0);
    picture((WIDTH + 60 + letters, HEIGHT), |area| {
        let (left, right) = area.split_horizontally(WIDTH);
        draw_legend(&right, legend).doing("drawing")?;
        draw_lines(&left, lines, x, axis).doing("drawing")
    })
}

type Drawn = Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

fn draw_lines<X>(area: &Area<'_>, lines: &[Line], x: X, axis: &Axis<'_>) -> Drawn
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let (y, y_labels) = decades(lines.iter().flat_map(|line| &line.points).map(|point| point.1), LEAST_US);
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y.log_scale())?;
    chart
        .configure_mesh()
        .x_desc(axis.name)
        .x_labels(axis.labels)
        .x_label_formatter(axis.format)
        .y_desc("latency, µs")
        .y_labels(y_labels)
        .y_label_formatter(&|us| if *us < 1.0 { format!("{us:.1}") } else { format!("{us:.0}") })
        .label_style(text(HPos::Left))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for line in lines {
        let points: Vec<(f64, f64)> = line.points.iter().map(|&(x, us)| (x, us.max(LEAST_US))).collect();
        let style = colour(line.colour).stroke_width(2);
        match line.stroke.dashes() {
            None => chart.plotting_area().draw(&PathElement::new(points.clone(), style))?,
            Some((size, spacing)) => {
                let dashed = DashedPathElement::new(points.iter().copied(), size, spacing, style);
                chart.plotting_area().draw(&dashed)?;
            }
        }
        for (&point, &hollow) in points.iter().zip(line.hollow.iter().flatten()) {
            chart.plotting_area().draw(&Circle::new(point, 4, mark(colour(line.colour), hollow)))?;
        }
    }
    Ok(())
}

fn mark(colour: RGBColor, hollow: bool) -> ShapeStyle {
    if hollow { colour.stroke_width(1) } else { colour.filled() }
}

fn draw_legend(area: &Area<'_>, legend: &[Entry]) -> Drawn {
    for (row, entry) in legend.iter().enumerate() {
        let y = 30 + LEGEND_LINE * row as i32;
        let ends = [(4, y), (36, y)];
        let style = entry.colour.stroke_width(2);
        match entry.stroke.map(Stroke::dashes) {
            None => area.draw(&Circle::new((20, y), 4, mark(entry.colour, true)))?,
            Some(None) => area.draw(&PathElement::new(ends, style))?,
            Some(Some((size, spacing))) => {
                area.draw(&DashedPathElement::new(ends, size, spacing, style))?;
            }
        }
        area.draw(&Text::new(entry.name.as_str(), (44, y), text(HPos::Left)))?;
    }
    Ok(())
}

/// Whole powers of ten around all `values`, none below `least`, and how many there are.
fn decades(values: impl Iterator<Item = f64>, least: f64) -> (Range<f64>, usize) {
    let (low, high) =
        values.fold((f64::MAX, least), |(low, high), value| (low.min(value.max(least)), high.max(value)));
    let first = low.min(high).log10().floor();
    let last = high.log10().ceil().max(first + 1.0);
    (10f64.powf(first)..10f64.powf(last), (last - first) as usize)
}

fn thousands(rate: f64) -> String {
    if rate >= 1000.0 { format!("{} k", (rate / 100.0).round() / 10.0) } else { format!("{rate:.0}") }
}

/// Of what is rare: one in a thousand is above 99.9 %.
fn percentile(one_in: f64) -> String {
    let digits = (one_in.log10().ceil() as usize).saturating_sub(2);
    format!("{:.digits$} %", (1.0 - 1.0 / one_in) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: axes have whole powers of ten around what they show, at least one, and figures as people write them. Method:
    /// by hand.
    #[test]
    fn axes() {
        let of = |values: &[f64]| decades(values.iter().copied(), 0.1);
        assert_eq!(of(&[7.0, 950.0]), (1.0..1000.0, 3));
        assert_eq!(of(&[0.0]), (0.1..1.0, 1));
        assert_eq!(of(&[]), (0.1..1.0, 1));
        assert_eq!(
            [1.0, 10.0, 100.0, 1e3, 1e5].map(percentile),
            ["0 %", "90 %", "99 %", "99.9 %", "99.999 %"]
        );
        assert_eq!([0.0, 800.0, 1500.0, 2e5].map(thousands), ["0", "800", "1.5 k", "200 k"]);
    }
}
