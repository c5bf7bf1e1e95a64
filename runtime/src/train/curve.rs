//! The curve of the loss as a picture.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 48.0;
/// Points of a line; each is the mean of the steps that it stands for.
const POINTS: usize = 600;

/// The losses of all steps as SVG.
pub fn svg(title: &str, losses: &[f32]) -> String {
    let each = losses.len().div_ceil(POINTS).max(1);
    let means: Vec<f64> = losses.chunks(each).map(|c| c.iter().map(|x| f64::from(*x)).sum::<f64>() / c.len() as f64).collect();
    let (lo, hi) = means.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), x| (lo.min(*x), hi.max(*x)));
    let span = if hi > lo { hi - lo } else { 1.0 };
    let x = |i: usize| MARGIN + (WIDTH - 2.0 * MARGIN) * i as f64 / (means.len().max(2) - 1) as f64;
    let y = |v: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * (v - lo) / span;
    let points: Vec<String> = means.iter().enumerate().map(|(i, v)| format!("{:.1},{:.1}", x(i), y(*v))).collect();
    let mut out = String::new();
    let text = |out: &mut String, x: f64, y: f64, anchor: &str, s: &str| {
        let s = s.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(out, "  <text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{s}</text>");
    };
    let _ = writeln!(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">");
    let _ = writeln!(out, "  <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>");
    let (left, right, top, bottom) = (MARGIN, WIDTH - MARGIN, MARGIN, HEIGHT - MARGIN);
    let _ = writeln!(out, "  <path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>");
    text(&mut out, WIDTH / 2.0, 24.0, "middle", title);
    if !means.is_empty() {
        text(&mut out, left - 6.0, y(hi) + 4.0, "end", &format!("{hi:.3}"));
        text(&mut out, left - 6.0, y(lo) + 4.0, "end", &format!("{lo:.3}"));
        text(&mut out, left, bottom + 18.0, "middle", "1");
        text(&mut out, right, bottom + 18.0, "middle", &losses.len().to_string());
        let _ = writeln!(out, "  <polyline points=\"{}\" fill=\"none\" stroke=\"#1f77b4\" stroke-width=\"1.5\"/>", points.join(" "));
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_from_high_to_low() {
        let losses: Vec<f32> = (0..5000).map(|i| 2.0 / (1.0 + i as f32)).collect();
        let svg = super::svg("a < b", &losses);
        assert!(svg.contains("a &lt; b") && svg.contains(">5000<") && svg.contains("polyline"));
        assert!(svg.matches(',').count() <= super::POINTS);
        assert!(super::svg("", &[]).ends_with("</svg>\n") && super::svg("", &[1.0]).contains("polyline"));
    }
}
