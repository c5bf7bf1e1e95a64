//! Layered drawing: operands above, users below (after Sugiyama, Tagawa and Toda, 1981). Everything is linear in the size of the
//! graph for each of a fixed number of sweeps.

/// A box: two lines of text, and more for a tooltip.
pub struct Item {
    pub title: String,
    pub subtitle: String,
    pub detail: String,
    /// An input or output of the model.
    pub end: bool,
}

/// A box in its place; coordinates are those of the centre, in pixels.
pub struct Placed {
    pub item: Item,
    pub x: f64,
    pub y: f64,
    pub width: f64,
}

pub struct Drawing {
    pub width: f64,
    pub height: f64,
    pub boxes: Vec<Placed>,
    /// Points of each arrow, from top to bottom.
    pub paths: Vec<Vec<(f64, f64)>>,
}

pub const HEIGHT: f64 = 34.0;
const ROW: f64 = 62.0;
const GAP: f64 = 18.0;
const MARGIN: f64 = 20.0;
/// Width kept free for an arrow that passes a row.
const LANE: f64 = 12.0;
/// Arrows over more rows than this pass under the boxes.
const MAX_LANES: usize = 24;
const SWEEPS: usize = 6;

/// A box or a bend of an arrow.
struct Point {
    row: usize,
    width: f64,
    x: f64,
    above: Vec<usize>,
    below: Vec<usize>,
}

/// Places `items`, which are in topological order.
pub fn layout(items: Vec<Item>, edges: Vec<(usize, usize)>) -> Drawing {
    let mut points: Vec<Point> = items.iter().map(|i| Point { row: 0, width: text_width(i), x: 0.0, above: vec![], below: vec![] }).collect();
    let mut sorted = edges.clone();
    sorted.sort_by_key(|(_, to)| *to);
    for (from, to) in &sorted {
        points[*to].row = points[*to].row.max(points[*from].row + 1);
    }
    let chains: Vec<Vec<usize>> = edges.iter().map(|(from, to)| chain(&mut points, *from, *to)).collect();

    let mut rows: Vec<Vec<usize>> = vec![vec![]; points.iter().map(|p| p.row + 1).max().unwrap_or(0)];
    for (i, p) in points.iter().enumerate() {
        rows[p.row].push(i);
    }
    for sweep in 0..SWEEPS {
        let down = sweep % 2 == 0;
        let mut settle = |row: &mut Vec<usize>| settle(&mut points, row, down);
        if down { rows.iter_mut().for_each(&mut settle) } else { rows.iter_mut().rev().for_each(&mut settle) }
    }
    let left = points.iter().map(|p| p.x - p.width / 2.0).fold(f64::INFINITY, f64::min).min(0.0);
    let right = points.iter().map(|p| p.x + p.width / 2.0).fold(0.0, f64::max);
    let x = |p: &Point| p.x - left + MARGIN;
    let y = |p: &Point| MARGIN + HEIGHT / 2.0 + p.row as f64 * ROW;
    let path = |chain: &Vec<usize>| {
        let mut path: Vec<(f64, f64)> = chain.iter().map(|i| (x(&points[*i]), y(&points[*i]))).collect();
        let last = path.len() - 1;
        path[0].1 += HEIGHT / 2.0;
        path[last].1 -= HEIGHT / 2.0;
        path
    };
    let paths = chains.iter().map(path).collect();
    let boxes = items.into_iter().zip(&points).map(|(item, p)| Placed { item, x: x(p), y: y(p), width: p.width }).collect();
    Drawing { width: right - left + 2.0 * MARGIN, height: rows.len() as f64 * ROW + MARGIN, boxes, paths }
}

/// The points of an arrow, with a bend in each row that it passes.
fn chain(points: &mut Vec<Point>, from: usize, to: usize) -> Vec<usize> {
    let (first, last) = (points[from].row, points[to].row);
    let mut out = vec![from];
    if last - first <= MAX_LANES {
        for row in first + 1..last {
            out.push(points.len());
            points.push(Point { row, width: LANE, x: 0.0, above: vec![], below: vec![] });
        }
    }
    out.push(to);
    for pair in out.windows(2) {
        points[pair[0]].below.push(pair[1]);
        points[pair[1]].above.push(pair[0]);
    }
    out
}

/// Orders a row by where its neighbours above (or below) stand, and moves each point as near to them as the others allow.
fn settle(points: &mut [Point], row: &mut Vec<usize>, above: bool) {
    let want = |i: usize| {
        let p = &points[i];
        let near = if above { &p.above } else { &p.below };
        if near.is_empty() { p.x } else { near.iter().map(|n| points[*n].x).sum::<f64>() / near.len() as f64 }
    };
    let mut wanted: Vec<(f64, usize)> = row.iter().map(|i| (want(*i), *i)).collect();
    wanted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut edge, mut drift) = (f64::NEG_INFINITY, 0.0);
    for (want, i) in &wanted {
        let p = &mut points[*i];
        p.x = want.max(edge + GAP + p.width / 2.0);
        edge = p.x + p.width / 2.0;
        drift += p.x - want;
    }
    let drift = drift / wanted.len().max(1) as f64;
    wanted.iter().for_each(|(_, i)| points[*i].x -= drift);
    *row = wanted.into_iter().map(|(_, i)| i).collect();
}

/// An estimate: the fonts of the reader are not known.
fn text_width(item: &Item) -> f64 {
    let title = item.title.chars().count() as f64 * 6.8;
    let subtitle = item.subtitle.chars().count() as f64 * 5.4;
    title.max(subtitle).max(40.0) + 16.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_do_not_overlap_and_arrows_point_down() {
        let item = |i: usize| Item { title: format!("op {i}"), subtitle: "f32[1,64,56,56]".into(), detail: String::new(), end: false };
        // A residual chain with a long skip, and a fan.
        let mut edges: Vec<(usize, usize)> = (0..9).map(|i| (i, i + 1)).collect();
        edges.extend([(0, 5), (2, 9), (1, 10), (1, 11), (1, 12), (12, 13), (11, 13), (10, 13)]);
        let d = layout((0..14).map(item).collect(), edges);
        for (i, a) in d.boxes.iter().enumerate() {
            assert!(a.x - a.width / 2.0 >= 0.0 && a.x + a.width / 2.0 <= d.width);
            for b in &d.boxes[..i] {
                assert!(a.y != b.y || (a.x - b.x).abs() >= (a.width + b.width) / 2.0, "{} {}", a.item.title, b.item.title);
            }
        }
        assert!(d.paths.iter().all(|p| p.windows(2).all(|w| w[0].1 < w[1].1)));
    }
}
