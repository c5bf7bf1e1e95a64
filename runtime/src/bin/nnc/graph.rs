//! `nnc graph`: a picture of a model. Constants are not drawn; their types stand beside the operation that reads them.

mod layered;

use crate::args::Draw;
use crate::edge::{self, Outcome, is_dash};
use crate::model;
use layered::{Drawing, Item};
use nnc::ir::{Error, Graph, Op, Value};
use std::fmt::Write as _;

pub fn draw(a: &Draw) -> Outcome {
    let suffix = a.output.extension().and_then(|e| e.to_str()).unwrap_or_default().to_string();
    if !is_dash(&a.output) && !matches!(suffix.as_str(), "svg" | "html" | "dot") {
        return Err(Error::input(format!("{}: a drawing is a .svg, .html or .dot file", a.output.display())).into());
    }
    let graph = model::load_graph(&a.model, &a.compilation)?;
    let (items, edges) = contents(&graph);
    let text = match suffix.as_str() {
        "svg" => svg(&layered::layout(items, edges)),
        "html" => html(&graph.name, &svg(&layered::layout(items, edges))),
        _ => dot(&graph.name, &items, &edges),
    };
    edge::write(&a.output, text.as_bytes())
}

/// Boxes in topological order, and arrows between them.
fn contents(graph: &Graph) -> (Vec<Item>, Vec<(usize, usize)>) {
    let live = graph.live();
    let mut at = vec![None; graph.id_bound()];
    let (mut items, mut edges) = (vec![], vec![]);
    for id in graph.order() {
        let node = graph.node(id);
        if !live[id.0 as usize] || matches!(node.op, Op::Const(_)) {
            continue;
        }
        let types: Vec<String> = node.types.iter().map(|t| t.to_string()).collect();
        let consts: Vec<String> = node.operands.iter().filter(|v| graph.constant(**v).is_some()).map(|v| graph.ty(*v).to_string()).collect();
        let title = if matches!(node.op, Op::Input) { node.name.to_string() } else { node.op.name().to_string() };
        let mut detail: Vec<String> = node.op.attrs().iter().map(|(k, v)| format!("{k}={v}")).collect();
        detail.extend(consts.iter().map(|c| format!("constant {c}")));
        detail.extend((!node.name.is_empty()).then(|| format!("name {}", node.name)));
        at[id.0 as usize] = Some(items.len());
        for from in sources(graph, &node.operands, &at) {
            edges.push((from, items.len()));
        }
        items.push(Item { title, subtitle: types.join(" "), detail: detail.join("\n"), end: matches!(node.op, Op::Input) });
    }
    for o in &graph.outputs {
        for from in sources(graph, &[o.value], &at) {
            edges.push((from, items.len()));
        }
        items.push(Item { title: o.name.to_string(), subtitle: graph.ty(o.value).to_string(), detail: String::new(), end: true });
    }
    (items, edges)
}

/// The boxes that operands come from, each once.
fn sources(graph: &Graph, operands: &[Value], at: &[Option<usize>]) -> Vec<usize> {
    let mut out: Vec<usize> = operands.iter().filter(|v| graph.constant(**v).is_none()).filter_map(|v| at[v.node.0 as usize]).collect();
    out.sort();
    out.dedup();
    out
}

fn dot(name: &str, items: &[Item], edges: &[(usize, usize)]) -> String {
    let mut out = format!("digraph {name:?} {{\n  node [shape=box, style=rounded, fontname=\"sans-serif\", fontsize=10];\n");
    for (i, item) in items.iter().enumerate() {
        let shape = if item.end { ", shape=ellipse" } else { "" };
        let _ = writeln!(out, "  n{i} [label={:?}{shape}];", format!("{}\n{}", item.title, item.subtitle));
    }
    for (from, to) in edges {
        let _ = writeln!(out, "  n{from} -> n{to};");
    }
    out + "}\n"
}

fn svg(d: &Drawing) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w:.0} {h:.0}\" width=\"{w:.0}\" height=\"{h:.0}\" font-family=\"sans-serif\">\n\
         <style>rect{{fill:#eef3fb;stroke:#4a6fa5}}.end{{fill:#fdf3e1;stroke:#b8862b}}text{{font-size:11px;text-anchor:middle;fill:#1c2733}}\
         .type{{font-size:9px;fill:#5b6875}}path{{fill:none;stroke:#8a97a5}}</style>\n",
        w = d.width,
        h = d.height
    );
    for path in &d.paths {
        let mut text = format!("M{:.1} {:.1}", path[0].0, path[0].1);
        for pair in path.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let middle = (y0 + y1) / 2.0;
            let _ = write!(text, " C{x0:.1} {middle:.1} {x1:.1} {middle:.1} {x1:.1} {y1:.1}");
        }
        let _ = writeln!(out, "<path d=\"{text}\"/>");
    }
    for b in &d.boxes {
        let (class, radius) = if b.item.end { (" class=\"end\"", layered::HEIGHT / 2.0) } else { ("", 4.0) };
        let (left, top) = (b.x - b.width / 2.0, b.y - layered::HEIGHT / 2.0);
        let _ = writeln!(
            out,
            "<g><title>{}</title><rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.0}\" rx=\"{radius}\"{class}/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text><text class=\"type\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            edge::xml(&b.item.detail),
            b.width,
            layered::HEIGHT,
            b.x,
            b.y - 2.0,
            edge::xml(&b.item.title),
            b.x,
            b.y + 11.0,
            edge::xml(&b.item.subtitle)
        );
    }
    out + "</svg>\n"
}

fn html(name: &str, svg: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{0}</title>\n\
         <style>body{{margin:1rem;font-family:sans-serif;background:#fff;color:#1c2733}}svg{{max-width:none}}</style></head>\n\
         <body><h1>{0}</h1>\n{svg}</body>\n</html>\n",
        edge::xml(name)
    )
}
