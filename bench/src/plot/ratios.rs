//! What `bench compare` found, as bars: a panel each figure, a bar each case and target, whiskers from quartile to quartile.

use super::chart::{Area, colour, picture, room, text};
use super::input::{Compared, FIGURES, Row};
use crate::cases::Quartiles;
use crate::failure::{Context, Failure};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

const WIDTH: u32 = 620;
const ROW_PIXELS: u32 = 22;
/// Of a panel, for its axis and its name.
const BESIDE_ROWS_PIXELS: u32 = 76;

/// All panels, one above the other.
pub(super) fn draw(compared: &Compared) -> Result<String, Failure> {
    let names: Vec<String> =
        compared.rows.iter().map(|row| format!("{}, {}", row.case, row.target)).collect();
    let left = names.iter().map(|name| room(name)).max().unwrap_or(0) + 16;
    let panel_height = BESIDE_ROWS_PIXELS + ROW_PIXELS * compared.rows.len() as u32;
    picture((left + WIDTH, panel_height * FIGURES.len() as u32), |area| {
        for (index, panel) in area.split_evenly((FIGURES.len(), 1)).iter().enumerate() {
            draw_panel(area, panel, compared, &names, index, left)?;
        }
        Ok(())
    })
}

fn draw_panel(
    area: &Area<'_>,
    panel: &Area<'_>,
    compared: &Compared,
    names: &[String],
    figure: usize,
    left: u32,
) -> Result<(), Failure> {
    let ratios = || compared.rows.iter().map(|row| row.ratios[figure]);
    // Some room for the figure behind the bar.
    let most = ratios().flatten().map(|ratio| ratio.third.max(ratio.median)).fold(1.0, f64::max) * 1.15;
    let rows = compared.rows.len() as f64;
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .set_label_area_size(LabelAreaPosition::Left, left)
        .set_label_area_size(LabelAreaPosition::Bottom, 44)
        .build_cartesian_2d(0.0..most, 0.0..rows)
        .doing("drawing")?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc(format!("{} ÷ {}", FIGURES[figure], compared.last))
        .x_labels(8)
        .x_label_formatter(&|ratio| format!("{}", (ratio * 100.0).round() / 100.0))
        .label_style(text(HPos::Left))
        .light_line_style(TRANSPARENT)
        .draw()
        .doing("drawing")?;
    let inside = chart.plotting_area();
    for (index, (name, ratio)) in names.iter().zip(ratios()).enumerate() {
        let y = rows - index as f64 - 0.5;
        let at = inside.map_coordinate(&(0.0, y));
        area.draw(&Text::new(name.as_str(), (at.0 - 6, at.1), text(HPos::Right))).doing("drawing")?;
        let Some(Quartiles { first, median, third }) = ratio else { continue };
        let fill = colour(place(&compared.rows, &compared.rows[index])).mix(0.7).filled();
        inside.draw(&Rectangle::new([(0.0, y - 0.35), (median, y + 0.35)], fill)).doing("drawing")?;
        for whisker in [
            [(first, y), (third, y)],
            [(first, y - 0.15), (first, y + 0.15)],
            [(third, y - 0.15), (third, y + 0.15)],
        ] {
            inside.draw(&PathElement::new(whisker, BLACK.stroke_width(1))).doing("drawing")?;
        }
        let behind = inside.map_coordinate(&(third.max(median), y));
        let figure = Text::new(format!("{median:.2}"), (behind.0 + 6, behind.1), text(HPos::Left));
        area.draw(&figure).doing("drawing")?;
    }
    inside.draw(&PathElement::new([(1.0, 0.0), (1.0, rows)], BLACK.stroke_width(1))).doing("drawing")
}

/// Which of the targets a row's is, so that it has one colour in all cases.
fn place(rows: &[Row], row: &Row) -> usize {
    let mut seen: Vec<&str> = Vec::new();
    for other in rows {
        if other.target == row.target {
            break;
        }
        if !seen.contains(&other.target.as_str()) {
            seen.push(&other.target);
        }
    }
    seen.len()
}
