//! Curves as SVG.

use std::fmt::Write as _;

use crate::eval::{ClassReport, DifficultyReport};

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 50.0;

struct Curve<'a> {
    name: &'a str,
    colour: &'a str,
    points: Vec<(f64, f64)>,
}

fn svg(title: &str, (x_name, y_name): (&str, &str), (low, high): (f64, f64), curves: &[Curve<'_>]) -> String {
    let range = (high - low).max(1e-9);
    let x = |value: f64| MARGIN + value * (WIDTH - 2.0 * MARGIN);
    let y = |value: f64| HEIGHT - MARGIN - (value - low) / range * (HEIGHT - 2.0 * MARGIN);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"24\" text-anchor=\"middle\" font-size=\"14\">{title}</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{x_name}</text>\n\
         <text x=\"14\" y=\"{}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {})\">{y_name}</text>\n",
        WIDTH / 2.0,
        WIDTH / 2.0,
        HEIGHT - 12.0,
        HEIGHT / 2.0,
        HEIGHT / 2.0,
    );
    // Writing to a String cannot fail.
    for step in 0..=4 {
        let part = f64::from(step) / 4.0;
        let value = low + part * range;
        let _ = writeln!(
            text,
            "<line x1=\"{}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.3}</text>\
             <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{part:.2}</text>",
            x(0.0),
            x(1.0),
            x(0.0) - 5.0,
            y(value) + 4.0,
            x(part),
            HEIGHT - MARGIN + 16.0,
            y = y(value),
        );
    }
    for (at, curve) in curves.iter().enumerate() {
        let points: Vec<String> =
            curve.points.iter().map(|&(a, b)| format!("{:.1},{:.1}", x(a), y(b))).collect();
        let _ = writeln!(
            text,
            "<polyline fill=\"none\" stroke=\"{c}\" stroke-width=\"2\" points=\"{}\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{c}\">{}</text>",
            points.join(" "),
            MARGIN + 10.0,
            42.0 + 14.0 * at as f64,
            curve.name,
            c = curve.colour,
        );
    }
    text.push_str("</svg>\n");
    text
}

fn bounds(curves: &[Curve<'_>]) -> (f64, f64) {
    let values = curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1));
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

impl ClassReport {
    /// Risk against coverage as an SVG picture.
    #[must_use]
    pub fn risk_coverage_svg(&self) -> String {
        let points = self.risk_coverage.iter().map(|point| (point.coverage, point.risk)).collect();
        let curves = [Curve { name: "head", colour: "#1f5fbf", points }];
        let high = bounds(&curves).1;
        svg(
            "Risk and coverage",
            ("share of prompts answered", "share of wrong answers"),
            (0.0, high),
            &curves,
        )
    }
}

impl DifficultyReport {
    /// Accuracy against the share of strong calls as an SVG picture, beside a random choice.
    #[must_use]
    pub fn cost_quality_svg(&self) -> String {
        let of = |value: &dyn Fn(&crate::eval::CostPoint) -> f64| {
            self.curve.iter().map(|point| (point.strong_share, value(point))).collect()
        };
        let curves = [
            Curve { name: "head", colour: "#1f5fbf", points: of(&|point| point.accuracy) },
            Curve { name: "random", colour: "#888888", points: of(&|point| point.random) },
        ];
        svg("Cost and quality", ("share of strong calls", "accuracy"), bounds(&curves), &curves)
    }
}

#[cfg(test)]
mod tests {
    use crate::data::DifficultyRecord;
    use crate::eval::rank_difficulty;

    #[test]
    fn the_picture_holds_both_curves_end_to_end() {
        let record = |weak_right| DifficultyRecord { prompt: String::new(), weak_right, strong_right: true };
        let svg = rank_difficulty(&[0.9, 0.1], &[record(false), record(true)]).cost_quality_svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        // From the lower left (half right, no strong call) to the upper right (all right, all strong).
        assert!(svg.contains("50.0,270.0 ") && svg.contains(" 430.0,50.0\""), "{svg}");
    }

    #[test]
    fn a_picture_to_the_letter() {
        let of = |name, colour, points| super::Curve { name, colour, points };
        let curves = [of("a", "red", vec![(0.0, 0.0), (1.0, 2.0)]), of("b", "blue", vec![(0.5, 1.5)])];
        let picture = super::svg("T", ("x", "y"), super::bounds(&curves), &curves);
        let grid = |part: &str, x: &str, y: &str, text: &str, value: &str| {
            format!(
                "<line x1=\"50\" x2=\"430\" y1=\"{y}\" y2=\"{y}\" stroke=\"#ddd\"/>\
                 <text x=\"45\" y=\"{text}\" text-anchor=\"end\">{value}</text>\
                 <text x=\"{x}\" y=\"286\" text-anchor=\"middle\">{part}</text>\n"
            )
        };
        let expected = [
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 480 320\" font-family=\"sans-serif\" \
             font-size=\"11\">\n<rect width=\"480\" height=\"320\" fill=\"white\"/>\n\
             <text x=\"240\" y=\"24\" text-anchor=\"middle\" font-size=\"14\">T</text>\n\
             <text x=\"240\" y=\"308\" text-anchor=\"middle\">x</text>\n\
             <text x=\"14\" y=\"160\" text-anchor=\"middle\" transform=\"rotate(-90 14 160)\">y</text>\n"
                .to_owned(),
            grid("0.00", "50.0", "270.0", "274.0", "0.000"),
            grid("0.25", "145.0", "215.0", "219.0", "0.500"),
            grid("0.50", "240.0", "160.0", "164.0", "1.000"),
            grid("0.75", "335.0", "105.0", "109.0", "1.500"),
            grid("1.00", "430.0", "50.0", "54.0", "2.000"),
            "<polyline fill=\"none\" stroke=\"red\" stroke-width=\"2\" points=\"50.0,270.0 430.0,50.0\"/>\
             <text x=\"60\" y=\"42\" fill=\"red\">a</text>\n\
             <polyline fill=\"none\" stroke=\"blue\" stroke-width=\"2\" points=\"240.0,105.0\"/>\
             <text x=\"60\" y=\"56\" fill=\"blue\">b</text>\n</svg>\n"
                .to_owned(),
        ];
        assert_eq!(picture, expected.concat());
    }
}
