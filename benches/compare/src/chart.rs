//! Goodput curves as SVG.

use std::fmt::Write;

/// One chart: goodput over time.
pub struct Chart<'a> {
    pub title: &'a str,
    pub subtitle: String,
    /// The second of each record that is 0 on the axis, and when what began then was over.
    pub trigger: (usize, usize),
    /// Calls that arrived, second by second.
    pub offered: Vec<f64>,
    /// The last is drawn on top.
    pub curves: Vec<Curve>,
}

pub struct Curve {
    pub name: String,
    pub color: &'static str,
    pub style: Style,
    pub goodput: Vec<f64>,
}

#[derive(Clone, Copy)]
pub enum Style {
    Bold,
    Plain,
    Dashed,
    /// What lies exactly below it shows through.
    Dotted,
}

const WIDTH: f64 = 1_080.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 836.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 456.0;
/// So many seconds before the trigger are shown.
const BEFORE: usize = 15;

impl Chart<'_> {
    pub fn svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#222\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
        );
        self.headings(&mut svg);
        self.trigger(&mut svg);
        self.axes(&mut svg);
        for curve in &self.curves {
            self.line(&mut svg, curve);
        }
        self.line(&mut svg, &self.offered_curve());
        self.legend(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    fn headings(&self, svg: &mut String) {
        text(
            svg,
            (LEFT, 30.0),
            "start\" font-size=\"18\" font-weight=\"600",
            self.title,
        );
        text(svg, (LEFT, 52.0), "start\" fill=\"#666", &self.subtitle);
    }

    fn trigger(&self, svg: &mut String) {
        let (from, until) = (self.x(self.trigger.0), self.x(self.trigger.1));
        put(
            svg,
            format_args!(
                "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#f3dede\"/>",
                until - from,
                BOTTOM - TOP
            ),
        );
    }

    fn axes(&self, svg: &mut String) {
        let step = round_step(self.most(), 5);
        for n in 0..=(self.most() / step) as usize {
            let calls = n as f64 * step;
            let y = self.y(calls);
            put(
                svg,
                format_args!("<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/>"),
            );
            text(svg, (LEFT - 8.0, y + 4.0), "end", &format!("{calls}"));
        }
        let seconds = self.offered.len() - self.trigger.0;
        let step = round_step(seconds as f64, 8) as usize;
        for second in (0..=seconds).step_by(step.max(1)) {
            let x = self.x(self.trigger.0 + second);
            put(
                svg,
                format_args!("<path d=\"M{x:.1} {BOTTOM}v5\" stroke=\"#222\"/>"),
            );
            text(svg, (x, BOTTOM + 20.0), "middle", &format!("{second}"));
        }
        put(
            svg,
            format_args!(
                "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"#222\"/>"
            ),
        );
        let middle = (LEFT + RIGHT) / 2.0;
        let below = BOTTOM + 44.0;
        text(
            svg,
            (middle, below),
            "middle",
            "seconds since the trigger began (shaded: what the table calls during)",
        );
        let y = (TOP + BOTTOM) / 2.0;
        let turned = format!("middle\" transform=\"rotate(-90 20 {y})");
        text(
            svg,
            (20.0, y),
            &turned,
            "calls answered within 3 s, per second",
        );
    }

    fn line(&self, svg: &mut String, curve: &Curve) {
        let mut path = String::new();
        for second in self.trigger.0 - BEFORE..curve.goodput.len() {
            let verb = if path.is_empty() { 'M' } else { 'L' };
            // A bucket stands at its middle.
            let (x, y) = (
                self.x(second) + self.x_of_second() / 2.0,
                self.y(curve.goodput[second]),
            );
            let _ = write!(path, "{verb}{x:.1} {y:.1}");
        }
        put(
            svg,
            format_args!(
                "<path d=\"{path}\" fill=\"none\" stroke-linejoin=\"round\" {}/>",
                stroke(curve)
            ),
        );
    }

    fn legend(&self, svg: &mut String) {
        let offered = self.offered_curve();
        // As in the tables: ours first.
        for (n, curve) in self.curves.iter().rev().chain([&offered]).enumerate() {
            let (x, y) = (RIGHT + 24.0, TOP + 12.0 + 24.0 * n as f64);
            put(
                svg,
                format_args!("<path d=\"M{x} {y}h32\" {}/>", stroke(curve)),
            );
            text(svg, (x + 40.0, y + 4.0), "start", &curve.name);
        }
    }

    fn offered_curve(&self) -> Curve {
        Curve {
            name: "offered".into(),
            color: "#222",
            style: Style::Dashed,
            goodput: self.offered.clone(),
        }
    }

    fn x(&self, second: usize) -> f64 {
        LEFT + (second as f64 - (self.trigger.0 - BEFORE) as f64) * self.x_of_second()
    }

    fn x_of_second(&self) -> f64 {
        (RIGHT - LEFT) / (self.offered.len() - self.trigger.0 + BEFORE) as f64
    }

    fn y(&self, calls: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * calls / self.most()
    }

    fn most(&self) -> f64 {
        let curves = self.curves.iter().flat_map(|curve| &curve.goodput);
        curves.chain(&self.offered).fold(1.0, |most, n| n.max(most)) * 1.05
    }
}

fn stroke(curve: &Curve) -> String {
    let (width, dashes) = match curve.style {
        Style::Bold => (3.5, ""),
        Style::Plain => (1.8, ""),
        Style::Dashed => (1.8, " stroke-dasharray=\"6 4\""),
        Style::Dotted => (2.2, " stroke-dasharray=\"3 5\""),
    };
    format!(
        "stroke=\"{}\" stroke-width=\"{width}\"{dashes}",
        curve.color
    )
}

/// A round number of which about `parts` make up `most`.
fn round_step(most: f64, parts: usize) -> f64 {
    let least = most / parts as f64;
    let power = 10_f64.powf(least.log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0].map(|n| n * power);
    round
        .into_iter()
        .find(|step| *step >= least)
        .unwrap_or(round[3])
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    put(
        svg,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"),
    );
}

fn put(svg: &mut String, element: std::fmt::Arguments<'_>) {
    let _ = writeln!(svg, "{element}");
}
