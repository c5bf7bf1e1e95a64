//! Rematerialisation: the same bits from less memory, whatever the network holds, and however deep it is.

mod graphs;
use graphs::*;
use nnc_ir::eval::{self, Env};
use nnc_ir::ops::control::Scan;
use nnc_ir::ops::gradient::Gradient;
use nnc_ir::ops::random::Random;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::target::Isa;
use nnc_ir::verify::verify;
use nnc_ir::{Builder, DType, Dim, Graph, Target, Type, V};
use nnc_passes::{Options, differentiate, lower};

/// Gradients of the sum of `net(x)` by x and by each parameter that it asks for by shape; activations are kept every `every` layers.
fn gradients(every: usize, x: &[i64], net: impl for<'g> Fn(V<'g>, &dyn Fn(&[i64]) -> V<'g>) -> V<'g>) -> Graph {
    let b = Builder::new("step");
    let x = b.input("x", Type::of(DType::F32, x));
    let parameters = std::cell::RefCell::new(vec![x]);
    let parameter = |shape: &[i64]| {
        let p = b.input(format!("w{}", parameters.borrow().len()), Type::of(DType::F32, shape));
        parameters.borrow_mut().push(p);
        p
    };
    let y = net(x, &parameter);
    let loss = y.reduce(ReduceKind::Sum, &(0..y.ty().rank()).collect::<Vec<_>>(), false);
    let operands: Vec<V> = std::iter::once(loss).chain(parameters.borrow().iter().copied()).collect();
    let d = b.op_all(Gradient { checkpoint: every }, &operands, vec![]);
    b.output("loss", loss);
    d.iter().enumerate().for_each(|(i, d)| b.output(format!("d{i}"), *d));
    b.finish().unwrap_or_else(|e| panic!("{e}"))
}

/// A convolution of 3x3 by a parameter.
fn layer<'g>(x: V<'g>, parameter: &dyn Fn(&[i64]) -> V<'g>) -> V<'g> {
    let c = channels(x) as i64;
    let op = nnc_ir::ops::contract::Conv {
        strides: vec![1; 2],
        dilations: vec![],
        pads: vec![1; 4],
        group: 1,
        layout: Default::default(),
        inputs: 0,
        outputs: 0,
        post: vec![],
    };
    x.builder().op(op, &[x, parameter(&[c, c, 3, 3])])
}

/// Half of the elements, as words that are drawn say.
fn dropped(x: V<'_>, seed: i64) -> V<'_> {
    let b = x.builder();
    let shape = x.ty().shape;
    let blocks = Dim::product(&shape).floor_div(&Dim::Const(4));
    let step = b.constant(nnc_ir::Tensor::scalar(3i64));
    let words = b.op(Random { seed, blocks }, &[step]).reshape(shape);
    words.greater(words.scalar_like(f64::from(u32::MAX / 2))).select(x, x.scalar_like(0.0))
}

/// What deep networks are made of: shortcuts, pooling, dropout, an activation that is read far behind.
fn varied<'g>(x: V<'g>, parameter: &dyn Fn(&[i64]) -> V<'g>) -> V<'g> {
    let mut h = layer(x, parameter).tanh();
    let early = h;
    for i in 0..3 {
        let inner = dropped(layer(h, parameter).relu(), i);
        h = (h + layer(inner, parameter)).relu();
    }
    let pooled = max_pool(h, 3, 1) * early;
    layer(pooled, parameter).sigmoid()
}

fn values(g: &Graph) -> Vec<Vec<f64>> {
    eval::run(g, &inputs(g), &Env::default()).unwrap_or_else(|e| panic!("{e}")).iter().map(nnc_ir::Tensor::to_f64s).collect()
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    let step = |every| differentiate(gradients(every, &[2, 4, 6, 6], varied)).expect("a gradient");
    let want = values(&step(0));
    for every in 1..10 {
        let g = step(every);
        verify(&g).unwrap_or_else(|e| panic!("every {every}: {e}\n{g}"));
        assert_eq!(values(&g), want, "every {every}");
    }
    // With at most so many layers there is one segment, and nothing to compute again.
    assert_eq!((count(&step(8), "barrier"), count(&step(0), "barrier")), (0, 0));
    assert!(count(&step(2), "barrier") > 0);
}

#[test]
fn no_pass_takes_the_second_computation_for_the_first() {
    let convolutions = |every| count(&optimized(&gradients(every, &[2, 16, 6, 6], varied), &Options::default()), "conv");
    let all = convolutions(0);
    assert!(convolutions(2) >= all + 4, "{} after {all}", convolutions(2));
}

#[test]
fn a_recurrence_is_run_again() {
    let step = |every| {
        let g = gradients(every, &[3, 2, 4], |x, parameter| {
            let b = x.builder();
            (0..3).fold(x, |x, _| {
                let w = parameter(&[2, 4]);
                let body = b.nested("body");
                {
                    let [h, x, w] = [(); 3].map(|()| body.input("", Type::of(DType::F32, &[2, 4])));
                    let next = (h * w + x).tanh();
                    body.output("", next);
                    body.output("", next);
                }
                let start = x.scalar_like(0.0).expand(w.ty().shape);
                b.op_all(Scan { states: 1, scanned: 1, reverse: false }, &[start, x, w], vec![body.finish().expect("a body")])[1]
            })
        });
        differentiate(g).expect("a gradient")
    };
    let want = values(&step(0));
    assert_eq!(values(&step(1)), want);
    assert_eq!(values(&step(2)), want);
}

/// Bytes of the workspace of a chain of `layers`. Activations take many times the memory of the filters, whose transforms stay.
fn workspace(layers: usize, every: usize) -> i64 {
    let g = gradients(every, &[4, 16, 48, 48], |x, parameter| (0..layers).fold(x, |h, _| layer(h, parameter).tanh()));
    let target = Target::new(Isa::Avx2);
    let program = lower(&optimized(&g, &Options::default()), &target).unwrap_or_else(|e| panic!("{e}"));
    program.workspace.as_const().expect("a size")
}

#[test]
fn memory_grows_with_the_root_of_the_depth() {
    let (all, some) = (workspace(64, 0), workspace(64, 8));
    assert!(some * 2 < all, "{some} bytes instead of {all}");
    let more = workspace(256, 16);
    assert!(more < 3 * some, "{more} bytes for four times as many layers as with {some}");
}

#[test]
fn a_deep_chain_is_cut_in_linear_time_on_a_small_stack() {
    let build = || {
        let g = gradients(64, &[1, 1, 3, 3], |x, parameter| (0..5_000).fold(x, |h, _| layer(h, parameter).tanh()));
        differentiate(g).expect("a gradient").len()
    };
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(build);
    assert!(thread.expect("a thread").join().expect("no overflow") > 50_000);
}
