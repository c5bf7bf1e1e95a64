//! What the pipeline makes of small networks: which operations are left, and the same numbers.

mod graphs;
use graphs::*;
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::ops::contract::{Conv, Layout, MatMul, Post};
use nnc_ir::winograd::Form;
use nnc_ir::{Builder, DType, Dim, Graph, Op, ScalarFn, Type, V};
use nnc_passes::Options;

const RELU: Post = Post::Act(Act::Fn(ScalarFn::Relu));

#[test]
fn conv_batch_norm_relu_is_one_node() {
    let g = graph(|b| batch_norm(conv(image(b, 3, 8), 32, 3, 1, 1)).relu());
    let o = optimized(&g, &Options::default());
    assert_eq!(epilogues(&o), [[Post::Bias, RELU]]);
    assert_eq!(ops(&o), ["pad", "conv", "unpack"]);
    assert_equal(&g, &o, 1e-5);
}

#[test]
fn a_shared_convolution_is_computed_once() {
    let b = Builder::new("f");
    let y = conv(image(&b, 3, 8), 32, 3, 1, 1);
    b.output("y", y);
    b.output("z", y.relu());
    let g = b.finish().unwrap();
    let o = optimized(&g, &Options::default());
    assert_eq!((count(&o, "conv"), count(&o, "relu")), (1, 1));
    assert_equal(&g, &o, 1e-5);
}

/// ResNet's bottleneck, with a projection where the size changes.
fn bottleneck<'g>(x: V<'g>, width: usize, stride: i64) -> V<'g> {
    let y = batch_norm(conv(x, width, 1, 1, 1)).relu();
    let y = batch_norm(conv(y, width, 3, stride, 1)).relu();
    let y = batch_norm(conv(y, 4 * width, 1, 1, 1));
    let same = channels(x) == 4 * width && stride == 1;
    (y + if same { x } else { batch_norm(conv(x, 4 * width, 1, stride, 1)) }).relu()
}

fn resnet(b: &Builder) -> V<'_> {
    let mut x = max_pool(batch_norm(conv(image(b, 3, 32), 16, 7, 2, 1)).relu(), 3, 2);
    for (width, stride, blocks) in [(16, 1, 3), (32, 2, 4)] {
        for i in 0..blocks {
            x = bottleneck(x, width, if i == 0 { stride } else { 1 });
        }
    }
    head(x, 10)
}

#[test]
fn resnet_is_convolutions_only() {
    let g = graph(resnet);
    let o = optimized(&g, &Options::default());
    let posts = epilogues(&o);
    let with = |p: &[Post]| posts.iter().filter(|q| q.as_slice() == p).count();
    // 7 blocks of 3 convolutions, the first, 2 projections; each block's last adds and rectifies.
    assert_eq!(posts.len(), 24);
    assert_eq!((with(&[Post::Bias, RELU]), with(&[Post::Bias, Post::Add, RELU]), with(&[Post::Bias])), (15, 7, 2));
    for op in ["batch_norm", "add", "relu", "pack", "unpack"] {
        assert_eq!(count(&o, op), 0, "{op}");
    }
    assert_eq!(count(&o, "matmul"), 1);
    assert_equal(&g, &o, 1e-4);
}

/// A block of a MobileNet with squeeze and excitation.
fn mobile<'g>(x: V<'g>, expand: usize, out: usize) -> V<'g> {
    let b = x.builder();
    let hard_swish = |x: V<'g>| b.op(Activation { act: Act::HardSwish {} }, &[x]);
    let y = hard_swish(batch_norm(conv(x, expand, 1, 1, 1)));
    let y = hard_swish(batch_norm(conv(y, expand, 3, 1, expand)));
    let gate = conv(conv(y.mean_keep(&[2, 3]), 8, 1, 1, 1).relu(), expand, 1, 1, 1).sigmoid();
    let z = batch_norm(conv(y * gate, out, 1, 1, 1));
    if out == channels(x) { z + x } else { z }
}

#[test]
fn mobilenet_stays_in_blocks() {
    let g = graph(|b| head(mobile(mobile(conv(image(b, 3, 12), 16, 3, 2, 1), 40, 24), 48, 24), 10));
    let o = optimized(&g, &Options::default());
    let layouts: Vec<Layout> = o
        .order()
        .into_iter()
        .filter_map(|id| match &o.node(id).op {
            Op::Conv(c) => Some(c.layout),
            _ => None,
        })
        .collect();
    assert!(layouts.iter().all(|l| *l != Layout::Plain), "{layouts:?}");
    assert_eq!(layouts.iter().filter(|l| **l == Layout::Depthwise(16)).count(), 2);
    assert_eq!((count(&o, "pack"), count(&o, "unpack")), (0, 1), "{:?}", ops(&o));
    assert_equal(&g, &o, 1e-4);
}

#[test]
fn groups_of_few_channels_share_blocks() {
    // (channels, groups, groups that are left): whole blocks of 4 groups, of 2, of 1; the last block half full; two groups of one and a
    // half blocks; all groups, of 3 channels each; two filters for each channel.
    let cases = [(32, 32, 8, 2), (64, 32, 2, 2), (40, 40, 5, 3), (48, 48, 2, 1), (15, 15, 5, 1), (16, 32, 16, 1)];
    for (inputs, outputs, groups, left) in cases {
        let g = graph(|b| {
            let x = conv(image(b, 3, 6), inputs, 1, 1, 1).relu();
            conv(conv(x, outputs, 3, 2, groups).relu(), 16, 1, 1, 1).mean_keep(&[2, 3])
        });
        let o = optimized(&g, &Options::default());
        let made: Vec<_> = o
            .order()
            .into_iter()
            .filter_map(|id| match &o.node(id).op {
                Op::Conv(c) if !c.strides.iter().all(|s| *s == 1) => Some((c.layout, c.group)),
                _ => None,
            })
            .collect();
        assert_eq!(made, [(Layout::Blocked(16), left)], "{groups} groups of {inputs} and {outputs} channels");
        assert_eq!(count(&o, "transpose"), 0, "the weights are made when the model is compiled");
        assert_equal(&g, &o, 1e-5);
    }
}

#[test]
fn channels_move_behind_the_pixels_in_blocks() {
    // A block of a ConvNeXt: a filter for each channel, then rows of channels.
    let g = graph(|b| {
        let x = conv(image(b, 3, 8), 32, 3, 1, 1);
        let y = conv(x, 32, 7, 1, 32).transpose(&[0, 2, 3, 1]);
        let y = b.op(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }, &[y, constant(b, &[32, 32], 0.01)]).relu();
        y.transpose(&[0, 3, 1, 2]) + x
    });
    let o = optimized(&g, &Options::default());
    assert_eq!((count(&o, "pack"), count(&o, "unpack"), count(&o, "transpose")), (0, 1, 2), "{:?}", ops(&o));
    assert_equal(&g, &o, 1e-5);
}

#[test]
fn planes_of_volumes_are_filtered_as_images() {
    let volume = |x: V<'_>, kernel: [usize; 3], pads: [i64; 6]| {
        let op =
            Conv { strides: vec![], dilations: vec![], pads: pads.to_vec(), group: 1, layout: Layout::Plain, inputs: 0, outputs: 0, post: vec![] };
        let c = channels(x);
        x.builder().op(op, &[x, constant(x.builder(), &[&[c, c], &kernel[..]].concat(), 0.01)]).value()
    };
    let g = graph(|b| {
        let x = b.input("x", Type::new(DType::F32, [2, 24, 4, 9, 10].map(Dim::Const).to_vec()));
        let y = b.v(volume(x, [3, 3, 3], [1; 6])).relu();
        let z = b.v(volume(y, [1, 3, 3], [0, 1, 1, 0, 1, 1])) + y;
        b.v(volume(z.relu(), [2, 3, 3], [1, 0, 1, 0, 1, 0]))
    });
    let o = optimized(&g, &Options::default());
    let filtered = |o: &Graph| o.ids().filter(|id| matches!(&o.node(*id).op, Op::Conv(c) if matches!(c.layout, Layout::Winograd { .. }))).count();
    assert_eq!(filtered(&o), 3, "{:?}", ops(&o));
    assert_equal(&g, &o, 1e-5);
    assert_eq!(filtered(&optimized(&g, &Options { precision: nnc_passes::Precision::Exact, ..Options::default() })), 0);
}

#[test]
fn concat_of_whole_blocks_stays_in_blocks() {
    let fire = |x: V<'_>, out: usize| {
        let s = conv(x, 16, 1, 1, 1).relu();
        V::concat(&[conv(s, out, 1, 1, 1).relu(), conv(s, out, 3, 1, 1).relu()], 1).value()
    };
    for (out, converted) in [(32, 0), (24, 2)] {
        let g = graph(|b| {
            let x = b.v(fire(conv(image(b, 3, 8), 16, 3, 1, 1).relu(), out));
            conv(x, 16, 3, 1, 1).mean_keep(&[2, 3])
        });
        let o = optimized(&g, &Options::default());
        // 24 channels are no whole blocks: the parts leave, the joined value enters again.
        assert_eq!(count(&o, "unpack"), converted, "{:?}", ops(&o));
        assert_equal(&g, &o, 1e-5);
    }
}

#[test]
fn symbolic_sizes_are_blocked_too() {
    let g = graph(|b| {
        let x = b.input("x", Type::new(DType::F32, vec![Dim::sym("N"), Dim::Const(3), Dim::sym("H"), Dim::Const(8)]));
        batch_norm(conv(conv(x, 32, 3, 1, 1).relu(), 32, 3, 1, 1)).relu()
    });
    let o = optimized(&g, &Options::default());
    // The second convolution is minimal filtering, which fills its patches up as it reads them.
    assert_eq!(ops(&o), ["pad", "conv", "conv", "unpack"]);
    assert_equal(&g, &o, 1e-5);
}

#[test]
fn two_compilations_give_the_same_graph() {
    let text = |_| {
        let o = optimized(&graph(resnet), &Options::default());
        o.order().into_iter().map(|id| format!("{id:?} {:?}\n", o.node(id))).collect::<String>()
    };
    assert_eq!(text(0), text(1));
}

#[test]
fn every_level_gives_the_same_values() {
    let g = graph(|b| head(bottleneck(conv(image(b, 3, 8), 16, 3, 1, 1), 16, 1), 5));
    for level in 0..=3 {
        for halo in [false, true] {
            assert_equal(&g, &optimized(&g, &Options { level, halo, ..Options::default() }), 1e-5);
        }
    }
}

#[test]
fn ten_thousand_layers_are_saturated_once() {
    use nnc_ir::target::Isa;
    use nnc_passes::egraph::{rules, saturate};
    let chain = |layers: usize| {
        graph(|b| {
            let x = b.input("x", Type::of(DType::F32, &[1, 16, 4, 4]));
            (0..layers).fold(x, |x, _| conv(x, 16, 1, 1, 1).tanh())
        })
    };
    let stats = |layers| {
        let rules = rules::compiled(false, Default::default());
        saturate(chain(layers), &rules, &nnc_ir::Target::new(Isa::Avx512)).unwrap().1
    };
    let (short, long) = (stats(1000), stats(10_000));
    assert!(long.regions >= 9 * short.regions, "{short:?} {long:?}");
    assert!(long.saturated <= 4 && long.enodes <= 4 * 2000, "{long:?}");
    let o = optimized(&chain(10_000), &Options::default());
    assert_eq!((count(&o, "conv"), count(&o, "tanh")), (10_000, 0));
}

#[test]
fn steps_of_optimisers_interrupt_no_region() {
    use nnc_ir::ops::composite::update::Momentum;
    use nnc_ir::target::Isa;
    use nnc_passes::egraph::{rules, saturate};
    let steps = |updated: bool| {
        let g = graph(|b| {
            let ty = Type::of(DType::F32, &[16]);
            let (w, rate) = (b.input("w", ty.clone()), b.input("rate", Type::of(DType::F32, &[])));
            (0..1000).fold(w, |x, i| {
                let y = (x + w).tanh();
                if updated {
                    let momentum = Momentum { momentum: 0.9.into(), nesterov: false, weight_decay: 0.0.into() };
                    b.op_all(momentum, &[w, y, w, rate], vec![]).iter().enumerate().for_each(|(k, v)| b.output(format!("{i}.{k}"), *v));
                }
                y
            })
        });
        let rules = rules::compiled(false, Default::default());
        let (g, stats) = saturate(g, &rules, &nnc_ir::Target::new(Isa::Avx512)).unwrap();
        assert_eq!(count(&g, "momentum"), if updated { 1000 } else { 0 });
        // Each stands near what it reads, so that no gradient waits for the end.
        let near = |id: &nnc_ir::NodeId| g.node(*id).operands[1].node.0 + 600 > id.0;
        assert!(g.ids().filter(|id| g.node(*id).op.name() == "momentum").all(|id| near(&id)));
        stats.regions
    };
    assert_eq!(steps(true), steps(false));
}

/// Layouts of the convolutions of a network in which minimal filtering pays.
fn layouts(options: &Options) -> Vec<Layout> {
    let g = graph(|b| conv(conv(image(b, 3, 28), 32, 3, 1, 1).relu(), 32, 3, 1, 1));
    let o = optimized(&g, options);
    assert_equal(&g, &o, 1e-4);
    let convs = o.order().into_iter().filter_map(|id| if let Op::Conv(c) = &o.node(id).op { Some(c.layout) } else { None });
    convs.collect()
}

#[test]
fn exact_precision_forbids_minimal_filtering() {
    let exact = Options { precision: nnc_passes::Precision::Exact, ..Options::default() };
    assert_eq!(layouts(&Options::default()), [Layout::Enter(16), Layout::Winograd { block: 16, form: Form { tile: 4, taps: 3 }, run: 25 }]);
    assert_eq!(layouts(&exact), [Layout::Enter(16), Layout::Blocked(16)]);
}
