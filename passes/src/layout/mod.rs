//! Chooses for each value between the model's layout `[N,C,spatial..]` and channels in blocks `[N,C/b,spatial..,b]`, and writes the
//! choice into the types, with conversions where the two meet.
//!
//! Convolutions gain by blocks, most operations between them do not mind ([`flexible`]), the rest needs the model's layout. The
//! choice minimises the estimated cycles of the operations and of the conversions, which a value pays once however many read it:
//! a first guess flows forward from the convolutions, then sweeps flip single nodes as long as that helps. Linear in the graph.

mod emit;
mod flexible;
mod planar;
pub(crate) mod winograd;

use crate::cost;
use crate::pass::{Context, Precision, Refusal};
use crate::{fold, hoist};
use flexible::{Role, role};
use nnc_ir::attrs::AttrValue;
use nnc_ir::ops::contract::{Conv, Layout};
use nnc_ir::{DType, Dim, Graph, NodeId, Op, Report, Target, Type};

/// Sweeps over the graph after the first guess.
const SWEEPS: usize = 8;

/// Chooses layouts and packs the constant weights of convolutions and matmuls.
pub fn run(graph: Graph, cx: &mut Context) -> Result<Graph, Report> {
    if cx.target.block == 1 {
        return Ok(graph);
    }
    let constant = fold::constants(&graph);
    let narrow = cx.options.precision == Precision::Bf16 && cx.target.bf16;
    let plan = Plan::new(&graph, &constant, cx);
    let blocked = plan.choose();
    // What stays the same in a loop is put into panels once, before it.
    let fixed = hoist::invariants(&graph, cx.captures, &constant);
    report(&graph, &plan, &blocked, &fixed, cx);
    emit::emit(&graph, &plan, &blocked, &fixed, cx.options.halo, narrow)
}

/// Tells of each convolution and matmul what was chosen, and why not something else.
fn report(graph: &Graph, plan: &Plan, blocked: &[bool], fixed: &[bool], cx: &mut Context) {
    for id in graph.order() {
        let node = graph.node(id);
        if let Some(i) = plan.index[id.0 as usize]
            && let Role::Conv(layout) = &plan.nodes[i].role
        {
            let [plain, fast] = plan.nodes[i].cycles;
            let refuse = |what: &str, why: String| vec![Refusal { what: what.into(), why }];
            let name = layout.map_or("blocked".into(), |l| l.to_attr().to_string());
            match (layout, blocked[i]) {
                (Err(why), _) => cx.decide("layout", graph, id, "plain".into(), plain, refuse(&name, why.to_string())),
                (Ok(_), true) => {
                    let refused = [&refuse("plain", format!("{plain:.0} cycles"))[..], &plan.nodes[i].refused].concat();
                    cx.decide("layout", graph, id, name, fast, refused)
                }
                (Ok(_), false) => cx.decide("layout", graph, id, "plain".into(), plain, refuse(&name, format!("{fast:.0} cycles and conversions"))),
            }
        }
        if let Op::MatMul(_) = node.op {
            let x: Vec<&Type> = node.operands.iter().map(|v| graph.ty(*v)).collect();
            let cycles = cost::cycles(&node.op, &x, &node.types, cx.target);
            match emit::panels(graph, id, fixed) {
                Ok(_) => cx.decide("layout", graph, id, "packed".into(), cycles, vec![]),
                Err(why) => {
                    let refused = vec![Refusal { what: "packed".into(), why: why.into() }];
                    cx.decide("layout", graph, id, "plain".into(), cycles, refused)
                }
            }
        }
    }
}

/// How a convolution of these types may be blocked, or why not. `enters` says whether its input can only be in the model's layout.
/// Weights that the run computes are brought into their form by the run.
pub fn blocked_conv(conv: &Conv, x: &Type, w: &Type, enters: bool, block: usize) -> Result<Layout, &'static str> {
    let consts = (x.shape.get(1).and_then(Dim::as_const), w.const_shape());
    let (Some(channels), Some(ws)) = consts else { return Err("the number of channels or the size of the weights is not known") };
    let (b, outputs, group) = (block as i64, ws[0], conv.group as i64);
    match () {
        _ if conv.layout != Layout::Plain => Err("it has a layout already"),
        _ if x.dtype != DType::F32 => Err("kernels for blocks take f32"),
        _ if conv.pads.iter().any(|p| *p < 0) => Err("it has negative padding"),
        _ if mostly_padding(conv, x) => Err("almost all that its windows see is padding"),
        _ if channels == 0 || outputs == 0 || group == 0 => Err("it has no channels"),
        _ if group == 1 && channels < b && enters => Ok(Layout::Enter(block)),
        _ if group == 1 => Ok(Layout::Blocked(block)),
        _ if group == channels && outputs == channels && ws.len() <= 4 => Ok(Layout::Depthwise(block)),
        _ => match merged(conv, w, block) {
            n if n > MERGED_GROUPS => Err("a group's channels are no whole blocks, nor are those of a few groups"),
            n if cost::bytes(w) * n as f64 > MERGED_BYTES => Err("a group's channels are no whole blocks, and weights of several groups are large"),
            _ => Ok(Layout::Blocked(block)),
        },
    }
}

/// Whether loops that leave padding out have far less to do than kernels that read it: padding that no image of a sane size has.
fn mostly_padding(conv: &Conv, x: &Type) -> bool {
    let image = &x.shape[2.min(x.rank())..];
    let pads = |i: usize| [i, i + image.len()].iter().map(|k| conv.pads.get(*k).map_or(0.0, |p| *p as f64)).sum::<f64>();
    let (held, own) = image.iter().enumerate().fold((1.0, 1.0), |(held, own), (i, d)| (held * (cost::dim(d) + pads(i)), own * cost::dim(d)));
    held > 64.0 * own && held > 65536.0
}

/// Groups that may become one, and bytes that their weights may take with the zeros between them.
pub const MERGED_GROUPS: usize = 32;
const MERGED_BYTES: f64 = (32 << 20) as f64;

/// How many neighbouring groups become one, whose channels are whole blocks: all of them where fewer do not. 1 where nothing is to do.
/// The last may be filled up with groups of zeros, as far as the last block of channels goes.
pub fn merged(conv: &Conv, w: &Type, block: usize) -> usize {
    let Some([outputs, inputs]) = w.const_shape().map(|s| [s[0], s[1]]) else { return 1 };
    let (b, groups) = (block as i64, conv.group as i64);
    let up = |n: i64, to: i64| Some(n.checked_add(to - 1)? / to * to);
    let fits = |n: i64| {
        let whole = |channels: i64| {
            let all = channels.checked_mul(groups)?;
            Some(n.checked_mul(channels)? % b == 0 && up(groups, n)?.checked_mul(channels)? == up(all, b)?)
        };
        whole(inputs) == Some(true) && whole(outputs / groups.max(1)) == Some(true)
    };
    match conv.group {
        0 | 1 => 1,
        groups => (1..=b).find(|n| fits(*n)).map_or(groups, |n| n as usize),
    }
}

/// A node that may be blocked.
pub(crate) struct Candidate {
    pub id: NodeId,
    pub role: Role,
    /// Positions of operands that follow the node's layout.
    follows: Vec<usize>,
    /// Own cost in the model's layout and in blocks.
    cycles: [f64; 2],
    /// Other ways to work on blocks.
    refused: Vec<Refusal>,
}

pub(crate) struct Plan<'a> {
    graph: &'a Graph,
    pub block: usize,
    /// Candidates, operands first.
    pub nodes: Vec<Candidate>,
    /// Position in `nodes`, by id.
    pub index: Vec<Option<usize>>,
    /// Cost to convert each node's value; constants are free.
    convert: Vec<f64>,
}

impl<'a> Plan<'a> {
    fn new(graph: &'a Graph, constant: &[bool], cx: &Context) -> Plan<'a> {
        let (target, precision) = (cx.target, cx.options.precision);
        let mut plan = Plan { graph, block: target.block, nodes: vec![], index: vec![None; graph.id_bound()], convert: vec![0.0; graph.id_bound()] };
        for id in graph.order() {
            let node = graph.node(id);
            let ty = &node.types[0];
            if !constant[id.0 as usize] {
                // With nothing but channels, the two layouts hold the same bytes.
                plan.convert[id.0 as usize] = if emit::same_bytes(ty, target.block) { 0.0 } else { cost::copy(ty, target) };
            }
            if constant[id.0 as usize] {
                continue;
            }
            if let Some((mut role, follows)) = role(graph, id, &plan.index, target.block) {
                plan.index[id.0 as usize] = Some(plan.nodes.len());
                let narrow = precision == Precision::Bf16 && target.bf16;
                let (mut cycles, mut refused) = (plan.cycles(id, &role, constant, target, narrow), vec![]);
                let fixed = node.operands.get(1).is_some_and(|w| constant[w.node.0 as usize]);
                // A loop of layers is as deep as it is long, and training a thousand of them suffers from rounding that differs from layer to
                // layer: what its iterations learn keeps the plain sums.
                let may = fixed || !cx.in_loop;
                if let (true, Role::Conv(Ok(layout @ (Layout::Blocked(_) | Layout::Enter(_)))), Op::Conv(conv)) = (may, &mut role, &node.op) {
                    let choice = winograd::choose(conv, graph.ty(node.operands[1]), ty, fixed, cycles[1], target, precision);
                    // The first layer's operand is put into blocks for it.
                    let enters = matches!(layout, Layout::Enter(_));
                    let packs = if enters { cost::copy(graph.ty(node.operands[0]), target) } else { 0.0 };
                    if !enters || matches!(choice.layout, Layout::Winograd { .. }) && choice.cycles + packs < cycles[1] {
                        (*layout, cycles[1], refused) = (choice.layout, choice.cycles, choice.refused);
                    }
                }
                plan.nodes.push(Candidate { id, role, follows, cycles, refused });
            }
        }
        plan
    }

    /// Cycles in the model's layout and in blocks; `narrow` weights are multiplied twice as fast.
    fn cycles(&self, id: NodeId, role: &Role, constant: &[bool], target: &Target, narrow: bool) -> [f64; 2] {
        let node = self.graph.node(id);
        let x: Vec<&Type> = node.operands.iter().map(|v| self.graph.ty(*v)).collect();
        let plain = match &node.op {
            Op::Conv(conv) if planar::takes(conv, x[0], x[1], &node.types[0]) => planar::cycles(conv, x[0], x[1], &node.types[0], target),
            op => cost::cycles(op, &x, &node.types, target),
        };
        match (role, &node.op) {
            (Role::Conv(Ok(layout)), Op::Conv(conv)) => {
                let fast = Op::Conv(Conv { layout: *layout, ..conv.clone() });
                // The cost model reads channels off the weights; those of a block are whole blocks.
                let filled = |n: f64, block: f64| (n / block).ceil() * block / n.max(1.0);
                let waste = |n: f64| filled(n, self.block as f64);
                // Half a block of outputs, if there is no more, is half the work.
                let outputs = cost::dim(&x[1].shape[0]);
                let half = self.block as f64 / 2.0;
                let outputs = if outputs <= half && conv.group == 1 { filled(outputs, half) } else { waste(outputs) };
                let fixed = constant[node.operands[1].node.0 as usize];
                let speed = if narrow && fixed && matches!(layout, Layout::Blocked(_)) { 2.0 } else { 1.0 };
                let zeros = if let Layout::Blocked(_) = layout { merged(conv, x[1], self.block) as f64 } else { 1.0 };
                // What fills the last block of a single group up is left out.
                let inputs = if zeros > 1.0 { waste(cost::dim(&x[0].shape[1])) } else { 1.0 };
                let work = cost::work(&node.op, &x, &node.types) * zeros * inputs * outputs / (target.fma_per_cycle * speed);
                let halo = if conv.pads.iter().any(|p| *p > 0) { cost::copy(x[0], target) } else { 0.0 };
                let bytes = cost::traffic(&fast, &x, &node.types) / target.l2_bytes_per_cycle;
                let weights = if fixed { 0.0 } else { 2.0 * cost::copy(x[1], target) };
                [plain, cost::LAUNCH + work + bytes + halo + weights]
            }
            (Role::Conv(_), _) => [plain, f64::INFINITY],
            (_, op) => {
                let channels = node.types[0].shape.get(1).map_or(1.0, cost::dim).max(1.0);
                let waste = (channels / self.block as f64).ceil() * self.block as f64 / channels;
                let own = match op {
                    // In blocks there is an axis behind every axis: neighbours are moved together.
                    Op::Gather(_) => cost::traffic(op, &x, &node.types) / target.l2_bytes_per_cycle,
                    _ => (plain - cost::LAUNCH).max(0.0),
                };
                [plain, cost::LAUNCH + own * waste]
            }
        }
    }

    /// Whether candidate `i`, when blocked, reads its first operand in the model's layout.
    fn enters(&self, i: usize) -> bool {
        matches!(self.nodes[i].role, Role::Conv(Ok(Layout::Enter(_))))
    }

    /// Which candidates to block.
    fn choose(&self) -> Vec<bool> {
        let mut guess: Vec<bool> = vec![];
        for node in &self.nodes {
            let x = &self.graph.node(node.id).operands;
            let from_blocked = |k: &usize| self.index[x[*k].node.0 as usize].is_some_and(|i| guess[i]);
            let blocked = match &node.role {
                Role::Conv(layout) => layout.is_ok(),
                Role::Flexible => node.follows.iter().any(from_blocked),
            };
            guess.push(blocked);
        }
        let (guess, guessed) = self.descend(guess);
        let (plain, unguessed) = self.descend(vec![false; self.nodes.len()]);
        if guessed <= unguessed { guess } else { plain }
    }

    /// Flips single nodes as long as that lowers the cost; also gives the cost.
    fn descend(&self, mut blocked: Vec<bool>) -> (Vec<bool>, f64) {
        // Of each node's value: readers in the model's layout, readers in blocks.
        let mut readers = vec![[0u32; 2]; self.graph.id_bound()];
        for id in self.graph.ids() {
            for (k, v) in self.graph.node(id).operands.iter().enumerate() {
                readers[v.node.0 as usize][usize::from(self.reads_blocked(id, k, &blocked))] += 1;
            }
        }
        for v in self.graph.ends() {
            readers[v.node.0 as usize][0] += 1;
        }
        let conversion = |id: NodeId, is_blocked: bool, readers: &[[u32; 2]]| {
            if readers[id.0 as usize][usize::from(!is_blocked)] > 0 { self.convert[id.0 as usize] } else { 0.0 }
        };
        let made_blocked = |id: NodeId, blocked: &[bool]| self.index[id.0 as usize].is_some_and(|i| blocked[i]);
        for sweep in 0..SWEEPS {
            let mut changed = false;
            for step in 0..self.nodes.len() {
                let i = if sweep % 2 == 0 { self.nodes.len() - 1 - step } else { step };
                let id = self.nodes[i].id;
                let operands = &self.graph.node(id).operands;
                let local = |blocked: &[bool], readers: &[[u32; 2]]| {
                    let mut seen: Vec<NodeId> = vec![];
                    let mut sum = self.nodes[i].cycles[usize::from(blocked[i])] + conversion(id, blocked[i], readers);
                    for k in &self.nodes[i].follows {
                        let x = operands[*k].node;
                        if !seen.contains(&x) {
                            seen.push(x);
                            sum += conversion(x, made_blocked(x, blocked), readers);
                        }
                    }
                    sum
                };
                let flip = |blocked: &mut Vec<bool>, readers: &mut Vec<[u32; 2]>| {
                    for (k, v) in operands.iter().enumerate() {
                        readers[v.node.0 as usize][usize::from(self.reads_blocked(id, k, blocked))] -= 1;
                    }
                    blocked[i] = !blocked[i];
                    for (k, v) in operands.iter().enumerate() {
                        readers[v.node.0 as usize][usize::from(self.reads_blocked(id, k, blocked))] += 1;
                    }
                };
                let before = local(&blocked, &readers);
                flip(&mut blocked, &mut readers);
                if local(&blocked, &readers) < before {
                    changed = true;
                } else {
                    flip(&mut blocked, &mut readers);
                }
            }
            if !changed && sweep > 0 {
                break;
            }
        }
        let own: f64 = self.nodes.iter().zip(&blocked).map(|(n, b)| n.cycles[usize::from(*b)]).sum();
        let conversions: f64 = self.graph.ids().map(|id| conversion(id, made_blocked(id, &blocked), &readers)).sum();
        (blocked, own + conversions)
    }

    /// Whether node `id` reads its operand `k` in blocks.
    fn reads_blocked(&self, id: NodeId, k: usize, blocked: &[bool]) -> bool {
        self.index[id.0 as usize].is_some_and(|i| blocked[i] && self.nodes[i].follows.contains(&k) && !(k == 0 && self.enters(i)))
    }
}
