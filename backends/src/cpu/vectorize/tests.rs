use super::*;
use crate::cpu::vir::interp::{self, Memory};
use nnc_ir::Dim;
use nnc_ir::kernel::builder::KernelBuilder;
use nnc_ir::kernel::{Access, size_symbol};

/// Runs every task on `inputs` (read) and one output of `len`, on every vector width; all must agree with `want`.
fn check(kernel: &Kernel, inputs: &[Vec<f32>], sizes: &[i64], tasks: i64, want: &[f32]) {
    for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
        let f = vectorize(kernel, isa).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        let mut mem = Memory::default();
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let mut words: Vec<u64> = inputs.iter().map(|v| mem.alloc(bytes(v))).collect();
        let out = mem.alloc(bytes(&vec![f32::NAN; want.len()]));
        words.push(out);
        words.extend(sizes.iter().map(|s| *s as u64));
        let args = mem.alloc(words.iter().flat_map(|w| w.to_le_bytes()).collect());
        (0..tasks).for_each(|t| interp::run(&f, &mut mem, args, t).unwrap_or_else(|e| panic!("{}: {e}", kernel.name)));
        for (i, w) in want.iter().enumerate() {
            let got = f32::from_bits(mem.u32(out + 4 * i as u64).expect("inside the output"));
            let close = (got - w).abs() <= 1e-5 * w.abs().max(1.0) || (got.is_nan() && w.is_nan());
            assert!(close, "{} on {isa:?}: element {i} is {got}, not {w}", kernel.name);
        }
    }
}

fn data(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| ((i.wrapping_mul(2654435761).wrapping_add(seed * 977) >> 8) % 1000) as f32 / 250.0 - 2.0).collect()
}

fn operand(b: &mut KernelBuilder, access: Access) -> u32 {
    b.param(DType::F32, access, Dim::Const(1 << 20))
}

#[test]
fn elementwise_chains_with_tails() {
    for n in [1i64, 7, 8, 16, 37] {
        let mut b = KernelBuilder::new("tanh(a * b + a)", 1);
        let (x, y, z) = (operand(&mut b, Access::Read), operand(&mut b, Access::Read), operand(&mut b, Access::Write));
        let end = b.dim(&size_symbol(0));
        b.for_each(end, |b, i| {
            let (p, q) = (b.load(x, i), b.load(y, i));
            let m = b.map(ScalarFn::Mul, &[p, q]);
            let s = b.map(ScalarFn::Add, &[m, p]);
            let t = b.map(ScalarFn::Tanh, &[s]);
            b.store(z, i, t);
        });
        let (p, q) = (data(n as usize, 1), data(n as usize, 2));
        let want: Vec<f32> = p.iter().zip(&q).map(|(a, b)| (a * b + a).tanh()).collect();
        check(&b.finish(), &[p, q], &[n], 1, &want);
    }
}

/// Softmax over rows, one task a row.
#[test]
fn rows_with_reductions() {
    for n in [1usize, 5, 8, 70, 131] {
        let mut b = KernelBuilder::new("softmax", 0);
        let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
        let task = b.tasks(Dim::Const(3));
        let len = b.int(n as i64);
        let base = b.mul(task, len);
        let least = b.num(f64::NEG_INFINITY, DType::F32);
        let top = b.set_new(least);
        b.for_each(len, |b, i| {
            let at = b.add(base, i);
            let (v, m) = (b.load(x, at), b.var(top));
            let m = b.map(ScalarFn::Max, &[m, v]);
            b.set(top, m);
        });
        let zero = b.num(0.0, DType::F32);
        let sum = b.set_new(zero);
        b.for_each(len, |b, i| {
            let at = b.add(base, i);
            let (v, m) = (b.load(x, at), b.var(top));
            let d = b.map(ScalarFn::Sub, &[v, m]);
            let e = b.map(ScalarFn::Exp, &[d]);
            let e = b.bind(e);
            b.store(y, at, e);
            let s = b.var(sum);
            let s = b.map(ScalarFn::Add, &[s, e]);
            b.set(sum, s);
        });
        b.for_each(len, |b, i| {
            let at = b.add(base, i);
            let (v, s) = (b.load(y, at), b.var(sum));
            let q = b.map(ScalarFn::Div, &[v, s]);
            b.store(y, at, q);
        });
        let v = data(3 * n, 5);
        let want: Vec<f32> = v
            .chunks(n)
            .flat_map(|r| {
                let m = r.iter().copied().fold(f32::MIN, f32::max);
                let sum: f32 = r.iter().map(|x| (x - m).exp()).sum();
                r.iter().map(move |x| (x - m).exp() / sum).collect::<Vec<_>>()
            })
            .collect();
        check(&b.finish(), &[v], &[], 3, &want);
    }
}

/// Column sums: the loop around the reduction is the one along memory.
#[test]
fn reductions_down_the_columns() {
    let (rows, cols) = (5usize, 19usize);
    let mut b = KernelBuilder::new("column sums", 0);
    let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
    let (r, c) = (b.int(rows as i64), b.int(cols as i64));
    b.for_each(c, |b, j| {
        let zero = b.num(0.0, DType::F32);
        let acc = b.set_new(zero);
        b.for_each(r, |b, i| {
            let at = b.mul(i, c);
            let at = b.add(at, j);
            let (v, a) = (b.load(x, at), b.var(acc));
            let a = b.map(ScalarFn::Add, &[a, v]);
            b.set(acc, a);
        });
        let a = b.var(acc);
        b.store(y, j, a);
    });
    let v = data(rows * cols, 9);
    let want: Vec<f32> = (0..cols).map(|j| (0..rows).map(|i| v[i * cols + j]).sum()).collect();
    check(&b.finish(), &[v], &[], 1, &want);
}

#[test]
fn extrema_keep_nan() {
    for at in [0usize, 3, 20, 34] {
        let mut b = KernelBuilder::new("max", 0);
        let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
        let least = b.num(f64::NEG_INFINITY, DType::F32);
        let top = b.set_new(least);
        let n = b.int(35);
        b.for_each(n, |b, i| {
            let (v, m) = (b.load(x, i), b.var(top));
            let m = b.map(ScalarFn::Max, &[m, v]);
            b.set(top, m);
        });
        let (m, zero) = (b.var(top), b.int(0));
        b.store(y, zero, m);
        let mut v = data(35, 3);
        v[at] = f32::NAN;
        check(&b.finish(), &[v], &[], 1, &[f32::NAN]);
    }
}

/// Rows of 20 taken by an index from memory; where lanes would want indices of their own, and where one is a number, it is refused.
#[test]
fn integers_from_memory_are_indices() {
    fn build(name: &str, f: impl Fn(&mut KernelBuilder, [u32; 3], [ExprId; 3])) -> Kernel {
        let mut b = KernelBuilder::new(name, 0);
        let (x, y) = (operand(&mut b, Access::Read), b.param(DType::I64, Access::Read, Dim::Const(1 << 20)));
        let z = operand(&mut b, Access::Write);
        let (rows, n) = (b.int(3), b.int(20));
        b.for_each(rows, |b, i| b.for_each(n, |b, j| f(b, [x, y, z], [i, j, n])));
        b.finish()
    }
    let place = |b: &mut KernelBuilder, row: ExprId, [_, j, n]: [ExprId; 3]| {
        let start = b.mul(row, n);
        b.add(start, j)
    };
    let rows = build("rows", |b, [x, y, z], at| {
        let row = b.load(y, at[0]);
        let (from, to) = (place(b, row, at), place(b, at[0], at));
        let v = b.load(x, from);
        b.store(z, to, v);
    });
    let x = data(100, 4);
    let index: Vec<f32> = [4i64, 0, 3].iter().flat_map(|i| [*i as u32, 0].map(f32::from_bits)).collect();
    let want: Vec<f32> = [4, 0, 3].iter().flat_map(|r| x[r * 20..][..20].to_vec()).collect();
    check(&rows, &[x, index], &[], 1, &want);
    let lanes = build("lanes", |b, [x, y, z], at| {
        let (from, to) = (b.load(y, at[1]), place(b, at[0], at));
        let v = b.load(x, from);
        b.store(z, to, v);
    });
    let number = build("number", |b, [_, y, z], at| {
        let i = b.load(y, at[0]);
        let (v, to) = (b.cast(DType::F32, i), place(b, at[0], at));
        b.store(z, to, v);
    });
    for kernel in [lanes, number] {
        assert!(vectorize(&kernel, Isa::Avx2).is_err(), "{}", kernel.name);
    }
}

/// Rows are read where columns are written.
#[test]
fn squares_are_transposed() {
    for (rows, cols) in [(8i64, 8i64), (1, 5), (16, 16), (19, 37), (40, 3)] {
        let mut b = KernelBuilder::new("2 x' + z, tanh x'", 0);
        let (x, z, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Read), operand(&mut b, Access::Write));
        let (m, n, two) = (b.int(rows), b.int(cols), b.num(2.0, DType::F32));
        b.for_each(m, |b, i| {
            let row = b.mul(i, n);
            let row = b.bind(row);
            b.for_each(n, |b, j| {
                let (from, to) = (b.mul(j, m), b.add(row, j));
                let from = b.add(from, i);
                let (p, q) = (b.load(x, from), b.load(z, to));
                let p = b.map(ScalarFn::Mul, &[p, two]);
                let s = b.map(ScalarFn::Add, &[p, q]);
                b.store(y, to, s);
            });
        });
        let (p, q) = (data((rows * cols) as usize, 3), data((rows * cols) as usize, 4));
        let want: Vec<f32> = (0..rows * cols).map(|at| 2.0 * p[(at % cols * rows + at / cols) as usize] + q[at as usize]).collect();
        check(&b.finish(), &[p, q], &[], 1, &want);
    }
}

/// Each element is read for two results.
#[test]
fn results_in_pairs() {
    for n in [1i64, 5, 16, 23] {
        let mut b = KernelBuilder::new("doubled", 0);
        let (x, z, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Read), operand(&mut b, Access::Write));
        let (len, two) = (b.int(n), b.int(2));
        b.for_each(len, |b, i| {
            let first = b.mul(i, two);
            let first = b.bind(first);
            b.for_each(two, |b, j| {
                let to = b.add(first, j);
                let (p, q) = (b.load(x, i), b.load(z, to));
                let m = b.map(ScalarFn::Mul, &[p, q]);
                b.store(y, to, m);
            });
        });
        let (p, q) = (data(n as usize, 6), data(2 * n as usize, 7));
        let want: Vec<f32> = q.iter().enumerate().map(|(i, q)| p[i / 2] * q).collect();
        check(&b.finish(), &[p, q], &[], 1, &want);
    }
    // The iteration as a value is no element that two results share.
    let mut b = KernelBuilder::new("number", 0);
    let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
    let two = b.int(2);
    b.for_each(two, |b, i| {
        let first = b.mul(i, two);
        b.for_each(two, |b, j| {
            let (v, number, to) = (b.load(x, i), b.cast(DType::F32, i), b.add(first, j));
            let v = b.map(ScalarFn::Add, &[v, number]);
            b.store(y, to, v);
        });
    });
    assert!(!matches!(vectorize(&b.finish(), Isa::Avx2), Ok(f) if f.to_string().contains("swap")));
}

/// A row that follows from the row before is no function of the outer loop's variable.
#[test]
fn what_goes_from_iteration_to_iteration_is_no_nest() {
    for inner in [2, 8] {
        let mut b = KernelBuilder::new("carried", 0);
        let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
        let (zero, n, m) = (b.int(0), b.int(8), b.int(inner));
        let row = b.set_new(zero);
        b.for_each(n, |b, i| {
            let next = b.var(row);
            let next = b.add(next, m);
            b.set(row, next);
            b.for_each(m, |b, j| {
                let (from, start) = (b.mul(j, n), b.var(row));
                let (from, to) = (b.add(from, i), b.add(start, j));
                let v = b.load(x, from);
                b.store(y, to, v);
            });
        });
        assert!(vectorize(&b.finish(), Isa::Avx2).is_err());
    }
}

/// Nothing is read behind the last element.
#[test]
fn every_other_element() {
    for n in [1i64, 4, 16, 21] {
        let mut b = KernelBuilder::new("sums of neighbours", 0);
        let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
        let (len, one, two) = (b.int(n), b.int(1), b.int(2));
        b.for_each(len, |b, i| {
            let even = b.mul(i, two);
            let odd = b.add(even, one);
            let (p, q) = (b.load(x, even), b.load(x, odd));
            let s = b.map(ScalarFn::Sub, &[p, q]);
            b.store(y, i, s);
        });
        let p = data(2 * n as usize, 8);
        let want: Vec<f32> = p.chunks(2).map(|c| c[0] - c[1]).collect();
        check(&b.finish(), &[p], &[], 1, &want);
    }
}

#[test]
fn what_does_not_run_along_memory_is_refused() {
    let mut b = KernelBuilder::new("transpose", 0);
    let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
    let n = b.int(8);
    b.for_each(n, |b, i| {
        b.for_each(n, |b, j| {
            let (p, q) = (b.mul(i, n), b.mul(j, n));
            let (from, to) = (b.add(p, j), b.add(q, i));
            let v = b.load(x, from);
            b.store(y, to, v);
        });
    });
    assert!(vectorize(&b.finish(), Isa::Avx2).is_err());
}
