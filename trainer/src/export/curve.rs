//! The loss by step as a picture: SVG, without a font or a script of its own.

use std::fmt::Write;

use crate::run::EvalPoint;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
/// Room for numbers on the left and below, and a little on the other sides.
const LEFT: f64 = 56.0;
const BELOW: f64 = 36.0;
const EDGE: f64 = 20.0;

/// Training loss as a line, held-out loss as points, the base's own as a dashed line; none without a step.
pub(super) fn svg(steps: &[(u64, f64)], evals: &[EvalPoint], base: Option<f64>) -> Option<String> {
    let held_out: Vec<(u64, f64)> = evals.iter().map(|point| (point.step, point.loss)).collect();
    let losses = || steps.iter().chain(&held_out).map(|(_, loss)| *loss).chain(base);
    let (least, most) = losses().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let last = steps.last()?.0.max(held_out.last().map_or(0, |(step, _)| *step));
    let (least, most) = (least.min(0.9 * most), if most > 0.0 { most } else { 1.0 });
    let x = |step: u64| LEFT + (WIDTH - LEFT - EDGE) * step as f64 / last as f64;
    let y = |loss: f64| EDGE + (HEIGHT - BELOW - EDGE) * (most - loss) / (most - least);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Loss by step</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for part in 0..=4 {
        let loss = least + (most - least) * f64::from(part) / 4.0;
        line(&mut svg, (LEFT, y(loss)), (WIDTH - EDGE, y(loss)), "stroke=\"#ddd\"");
        text(&mut svg, (LEFT - 6.0, y(loss) + 4.0), "end", &format!("{loss:.3}"));
    }
    for (step, anchor) in [(0, "start"), (last / 2, "middle"), (last, "end")] {
        text(&mut svg, (x(step), HEIGHT - BELOW + 18.0), anchor, &step.to_string());
    }
    if let Some(base) = base {
        line(&mut svg, (LEFT, y(base)), (WIDTH - EDGE, y(base)), "stroke=\"#999\" stroke-dasharray=\"4 4\"");
    }
    let points: String = steps.iter().map(|(step, loss)| format!("{:.1},{:.1} ", x(*step), y(*loss))).collect();
    push(&mut svg, format_args!("<polyline points=\"{}\" fill=\"none\" stroke=\"#2b6cb0\"/>\n", points.trim_end()));
    for (step, loss) in &held_out {
        push(
            &mut svg,
            format_args!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"#c05621\"/>\n", x(*step), y(*loss)),
        );
    }
    let legend = [("training", "#2b6cb0"), ("held out", "#c05621"), ("held out, base alone", "#777")];
    let shown = [true, !held_out.is_empty(), base.is_some()];
    for (row, ((words, colour), _)) in legend.iter().zip(shown).filter(|(_, shown)| *shown).enumerate() {
        let at = EDGE + 14.0 * (row as f64 + 1.0);
        let x = WIDTH - EDGE - 4.0;
        push(
            &mut svg,
            format_args!("<text x=\"{x}\" y=\"{at}\" text-anchor=\"end\" fill=\"{colour}\">{words}</text>\n"),
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), look: &str) {
    push(svg, format_args!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {look}/>\n"));
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    push(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#555\">{words}</text>\n"));
}

fn push(svg: &mut String, words: std::fmt::Arguments<'_>) {
    svg.write_fmt(words).expect("a string takes every character");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_lies_inside_and_what_there_is_is_named() {
        let steps: Vec<(u64, f64)> = (1..=9).map(|step| (step, 3.0 / step as f64)).collect();
        let evals = [0, 9].map(|step| EvalPoint { step, loss: 3.5 - step as f64 / 9.0 });
        let picture = svg(&steps, &evals, Some(3.5)).expect("there are steps");
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert_eq!(picture.matches("<circle").count(), 2);
        for words in ["training", "held out<", "base alone", ">9<", ">3.500<"] {
            assert!(picture.contains(words), "{words}: {picture}");
        }
        let polyline = picture.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a line");
        for point in polyline.split(' ') {
            let (x, y) = point.split_once(',').expect("a pair");
            let [x, y] = [x, y].map(|number| number.parse::<f64>().expect("a number"));
            assert!((LEFT..=WIDTH).contains(&x) && (0.0..=HEIGHT - BELOW).contains(&y), "{point}");
        }
        assert!(!svg(&steps, &[], None).expect("there are steps").contains("held out"));
        assert!(svg(&[(1, 0.0)], &[], None).is_some_and(|picture| !picture.contains("NaN")));
        assert_eq!(svg(&[], &[], None), None);
    }
}
