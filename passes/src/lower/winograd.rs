//! Convolution with filters in the form of minimal filtering ([`nnc_ir::winograd`]): the plain sums, with each tap found back from the
//! patch that it is part of. Kernels that multiply patches take the place of these loops; they need scratch memory.

use super::contract::{ONE, ZERO, epilogue, extras, work};
use super::loops::Loops;
use super::scalar::wide;
use super::view::{View, row_major};
use nnc_ir::error::{Error, Result};
use nnc_ir::kernel::{Access, ExprId};
use nnc_ir::ops::contract::Conv;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::winograd::{Form, LANES, Scratch};
use nnc_ir::{Dim, ScalarFn, Type};

/// The scratch memory of a kernel, beside its result.
pub fn scratch(form: Form, run: usize, x: &Type) -> Result<Type> {
    let blocks = x.shape[1].as_const().and_then(|c| usize::try_from(c).ok());
    let blocks = blocks.ok_or_else(|| Error::unsupported("conv: the number of input channels is not known"))?;
    Ok(Type::new(x.dtype, vec![Dim::from(LANES), Dim::from(Scratch::new(form, run, blocks).values())]))
}

pub fn conv(k: &mut Loops, op: &Conv, block: usize, form: Form, scratch: &Type) -> Result<()> {
    let (window, side, n, taps) = (op.window(&k.x[1])?, form.side() as i64, form.taps, form.taps_back());
    k.param(scratch.dtype, Access::Write, scratch.elems());
    let (xs, ys) = (k.x[0].shape.clone(), k.y[0].shape.clone());
    let (y, acc_type, dtype) = (k.result(0), wide(k.y[0].dtype), k.y[0].dtype);
    let (b, in_blocks) = (Dim::from(block), xs[1].clone());
    let dims = ys[..4].to_vec();
    let y_strides = row_major(&ys)[..4].to_vec();
    let x_strides = row_major(&xs);
    let plane = b.clone() * b.clone() * in_blocks.clone();
    let mut views = vec![
        View::new(vec![x_strides[0].clone(), ZERO, ZERO, ZERO]),
        View::new(vec![ZERO, plane.clone() * Dim::Const(side * side), ZERO, ZERO]),
        View::new(y_strides.clone()),
    ];
    views.extend(extras(&op.post, &[ZERO, b.clone(), ZERO, ZERO], &y_strides));
    let lane_views: Vec<View> = [ZERO, ONE, ONE].into_iter().chain(views[3..].iter().map(|_| ONE)).map(|s| View::new(vec![s])).collect();
    let mut outcome = Ok(());
    k.parallel(&dims, &views, work(&[&in_blocks, &b, &b, &Dim::from(n * n)]), |k, vars, at| {
        let at_pixel = [2, 3].map(|d| {
            let pad = k.int(window.pads[d - 2]);
            k.sub(vars[d], pad)
        });
        k.serial(std::slice::from_ref(&b), &lane_views, at, |k, _, at| {
            let acc = k.accumulator(ReduceKind::Sum, acc_type);
            for (r, s) in (0..n * n).map(|i| (i / n, i % n)) {
                let place = [(at_pixel[0], r), (at_pixel[1], s)].map(|(p, i)| {
                    let i = k.int(i as i64);
                    let p = k.add(p, i);
                    k.bind(p)
                });
                let inside = is_inside(k, &place, &xs[2..4]);
                k.when(inside, |k| {
                    let mut x = at[0];
                    for (p, stride) in place.iter().zip(&x_strides[2..4]) {
                        let stride = k.size(stride);
                        let by = k.mul(*p, stride);
                        x = k.add(x, by);
                    }
                    let x = k.bind(x);
                    let steps = [View::new(vec![x_strides[1].clone(), ONE]), View::new(vec![b.clone() * b.clone(), b.clone()])];
                    k.serial(&[in_blocks.clone(), b.clone()], &steps, &[x, at[1]], |k, _, at| {
                        let x = k.load(0, at[0]);
                        let mut w = None;
                        for ((i, f), (j, g)) in taps[r].iter().flat_map(|u| taps[s].iter().map(move |v| (u, v))) {
                            let skip = k.size(&(plane.clone() * Dim::from(i * side as usize + j)));
                            let index = k.add(at[1], skip);
                            let v = k.load(1, index);
                            let (v, factor) = (k.cast(acc_type, v), k.num(f * g, acc_type));
                            let v = k.map(ScalarFn::Mul, &[v, factor]);
                            w = Some(w.map_or(v, |w| k.map(ScalarFn::Add, &[w, v])));
                        }
                        if let Some(w) = w {
                            k.multiply_add(acc, x, w);
                        }
                    });
                });
            }
            let sum = k.var(acc);
            match epilogue(k, &op.post, sum, &at[3..]) {
                Ok(v) => {
                    let v = k.cast(dtype, v);
                    k.store(y, at[2], v);
                }
                Err(e) => outcome = Err(e),
            }
        });
    });
    outcome
}

/// Whether an element lies inside the image.
fn is_inside(k: &mut Loops, place: &[ExprId; 2], size: &[Dim]) -> ExprId {
    let zero = k.int(0);
    let mut tests = vec![];
    for (p, d) in place.iter().zip(size) {
        let end = k.size(d);
        tests.push(k.map(ScalarFn::GreaterEqual, &[*p, zero]));
        tests.push(k.map(ScalarFn::Less, &[*p, end]));
    }
    tests.into_iter().reduce(|a, b| k.map(ScalarFn::And, &[a, b])).unwrap_or(zero)
}
