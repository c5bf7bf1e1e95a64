//! Strided convolutions of few channels become convolutions of more channels that move by 1.
//!
//! With stride `s`, pixels whose place leaves the same remainder by `s` along both axes are a channel of their own: `C` channels become
//! `C * s * s`, windows of `k` taps become windows of `k / s`, rounded up with zeros. That is little more work, and minimal filtering takes
//! such windows: where that saves more than moving the pixels costs, as in first layers of 7x7 and 11x11 windows, the rewriting is done.

use crate::layout::winograd;
use crate::pass::{Context, Precision};
use crate::rebuild::{self, Rebuild};
use crate::{cost, fold};
use nnc_ir::ops::contract::{Conv, Layout};
use nnc_ir::ops::movement::{Pad, PadMode, Reshape, Transpose};
use nnc_ir::{DType, Dim, Graph, NodeId, Op, Report, Result, Type, Value};

/// Channels of the result's operand: more would fill blocks without this.
const MOST: i64 = 64;

/// Rewrites the convolutions of images with constant weights and known sizes that gain by it.
pub fn run(graph: Graph, cx: &mut Context) -> Result<Graph, Report> {
    let strided = |id: NodeId| matches!(&graph.node(id).op, Op::Conv(c) if c.strides.iter().any(|s| *s > 1));
    if cx.target.block == 1 || cx.options.precision == Precision::Exact || !graph.ids().any(strided) {
        return Ok(graph);
    }
    let constant = fold::constants(&graph);
    let mut r = Rebuild::new(&graph);
    for id in r.order() {
        let node = graph.node(id);
        let plan = match &node.op {
            Op::Conv(c) if strided(id) && constant[node.operands[1].node.0 as usize] => Plan::new(&graph, id, c, cx),
            _ => None,
        };
        match plan {
            Some(plan) => {
                let y = plan.rewrite(&mut r, id).map_err(|e| e.at(&node.loc))?;
                r.set(id, vec![y]);
            }
            None => {
                r.keep(id);
            }
        }
    }
    Ok(r.finish())
}

/// What a convolution becomes.
struct Plan {
    op: Conv,
    stride: i64,
    /// Of x: elements put in front and behind, and the length that they give, for both axes; negative ones cut.
    pads: [(i64, i64); 2],
    size: [i64; 2],
    /// Zeros behind the taps along both axes, and windows in steps of the stride.
    more: [i64; 2],
    taps: i64,
}

impl Plan {
    /// `None` where there is no such convolution, or it would be no faster.
    fn new(graph: &Graph, id: NodeId, conv: &Conv, cx: &Context) -> Option<Plan> {
        let node = graph.node(id);
        let (x, w, y) = (graph.ty(node.operands[0]), graph.ty(node.operands[1]), &node.types[0]);
        let (xs, ws, ys) = (x.const_shape()?, w.const_shape()?, y.const_shape()?);
        let window = conv.window(w).ok()?;
        let stride = *window.strides.first()?;
        let images = xs.len() == 4 && conv.group == 1 && conv.layout == Layout::Plain && x.dtype == DType::F32;
        let plain = window.strides.iter().all(|s| *s == stride) && window.dilations.iter().all(|d| *d == 1) && window.pads.iter().all(|p| *p >= 0);
        let channels = stride.checked_mul(stride)?.checked_mul(xs[1])?;
        if !images || !plain || channels > MOST || ys.contains(&0) {
            return None;
        }
        let steps = [0, 1].map(|d: usize| (window.kernel[d] + stride - 1) / stride);
        let taps = steps[0];
        let more = [0, 1].map(|d: usize| taps * stride - window.kernel[d]);
        if steps[1] != taps {
            return None;
        }
        let size = [0, 1].map(|d: usize| ys[2 + d] + taps - 1);
        let pads = [0, 1].map(|d: usize| (window.pads[d], size[d] * stride - xs[2 + d] - window.pads[d]));
        let op = Conv { strides: vec![], dilations: vec![], pads: vec![], ..conv.clone() };
        let of = |shape: &[i64]| Type::new(DType::F32, shape.iter().map(|d| Dim::Const(*d)).collect::<Vec<_>>());
        let (moved, filters) = (of(&[xs[0], channels, size[0], size[1]]), of(&[ws[0], channels, taps, taps]));
        let direct = cost::work(&node.op, &[x, w], &node.types) / cx.target.fma_per_cycle;
        let choice = winograd::choose(&op, &filters, y, true, f64::INFINITY, cx.target, cx.options.precision);
        // Pixels are moved one by one, then into blocks.
        let moves = cost::elems(&moved) * cost::ALONE / cx.target.lanes as f64 + cost::copy(&moved, cx.target);
        let faster = matches!(choice.layout, Layout::Winograd { .. }) && choice.cycles + moves < direct;
        faster.then_some(Plan { op, stride, pads, size, more, taps })
    }

    fn rewrite(self, r: &mut Rebuild, id: NodeId) -> Result<Value> {
        let node = r.old.node(id);
        let mut operands: Vec<Value> = node.operands.iter().map(|v| r.get(*v)).collect();
        let (name, loc) = (node.name.clone(), node.loc.clone());
        let op = |r: &mut Rebuild, op: Op, x: Value| rebuild::infer(&mut r.new, op, vec![x], "".into(), loc.clone());
        // [A,B,H,W] -> [A,B,H/s,s,W/s,s] -> [A,B,s,s,H/s,W/s] -> [A,B*s*s,H/s,W/s], zeros around it first.
        let moved = |r: &mut Rebuild, x: Value, pads: [(i64, i64); 2], size: [i64; 2]| {
            let around = |side: fn((i64, i64)) -> i64| [0, 0, side(pads[0]), side(pads[1])].map(Dim::Const).to_vec();
            let x = op(r, Pad { mode: PadMode::Constant, lo: around(|p| p.0), hi: around(|p| p.1) }.into(), x)?;
            let (s, [h, w]) = (Dim::Const(self.stride), size.map(Dim::Const));
            let [outer, channels] = [0, 1].map(|d: usize| r.new.ty(x).shape[d].clone());
            let shape = vec![outer.clone(), channels.clone(), h.clone(), s.clone(), w.clone(), s.clone()];
            let x = op(r, Reshape { shape }.into(), x)?;
            let x = op(r, Transpose { perm: vec![0, 1, 3, 5, 2, 4] }.into(), x)?;
            op(r, Reshape { shape: vec![outer, channels * s.clone() * s, h, w] }.into(), x)
        };
        operands[0] = moved(r, operands[0], self.pads, self.size)?;
        operands[1] = moved(r, operands[1], self.more.map(|n| (0, n)), [self.taps; 2])?;
        rebuild::infer(&mut r.new, self.op.into(), operands, name, node.loc.clone())
    }
}
