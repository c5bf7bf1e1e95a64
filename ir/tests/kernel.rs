//! The loop IR's verifier and interpreter.

use nnc_ir::error::Code;
use nnc_ir::kernel::builder::KernelBuilder;
use nnc_ir::kernel::eval::{eval_kernel, eval_program};
use nnc_ir::kernel::verify::{verify_kernel, verify_program};
use nnc_ir::kernel::{
    Access, Buffer, BufferId, BufferRef, Expr, ExprId, Fault, Kernel, Launch, Place, Port, Program, Step, Stmt, VarId, size_symbol,
};
use nnc_ir::{DType, Dim, Loc, ScalarFn, Tensor, Type};

fn bytes(values: &[f32]) -> Vec<u8> {
    Tensor::new(&[values.len()], values).bytes().to_vec()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// y[M,N] = x[M,K] w[K,N], a task a row, all sizes at run time: s0 = M, s1 = K, s2 = N.
fn matmul() -> Kernel {
    let [m, k, n] = [0, 1, 2].map(size_symbol);
    let mut b = KernelBuilder::new("matmul", 3);
    let x = b.param(DType::F32, Access::Read, m.clone() * k.clone());
    let w = b.param(DType::F32, Access::Read, k.clone() * n.clone());
    let y = b.param(DType::F32, Access::Write, m.clone() * n.clone());
    let row = b.tasks(m);
    let (k, n) = (b.dim(&k), b.dim(&n));
    b.for_each(n, |b, j| {
        let zero = b.num(0.0, DType::F32);
        let sum = b.set_new(zero);
        b.for_each(k, |b, l| {
            let at = b.mul(row, k);
            let at = b.add(at, l);
            let a = b.load(x, at);
            let at = b.mul(l, n);
            let at = b.add(at, j);
            let c = b.load(w, at);
            let product = b.mul(a, c);
            let old = b.var(sum);
            let next = b.add(old, product);
            b.set(sum, next);
        });
        let at = b.mul(row, n);
        let at = b.add(at, j);
        let sum = b.var(sum);
        b.store(y, at, sum);
    });
    b.finish()
}

#[test]
fn loops_compute_a_product() {
    let mut buffers = [bytes(&[1., 2., 3., 4., 5., 6.]), bytes(&[1., 0., 0., 1., 10., 100.]), vec![0; 16]];
    eval_kernel(&matmul(), &[2, 3, 2], &mut buffers).unwrap();
    assert_eq!(floats(&buffers[2]), [31., 302., 64., 605.]);
    let short = eval_kernel(&matmul(), &[2, 3, 2], &mut [vec![0; 24], vec![0; 20], vec![0; 16]]).unwrap_err();
    assert_eq!(short.message(), "kernel matmul: parameter 1 has fewer than 6 elements");
}

#[test]
fn f32_arithmetic_rounds_at_every_step() {
    // 2^24 + 1 + 1, added one by one in f32.
    let mut b = KernelBuilder::new("sum", 0);
    let y = b.param(DType::F32, Access::ReadWrite, Dim::Const(1));
    let (zero, two, one) = (b.int(0), b.int(2), b.num(1.0, DType::F32));
    b.for_each(two, |b, _| {
        // Another expression each time round: the load is not shared with one before the loop.
        let old = b.load(y, zero);
        let next = b.add(old, one);
        b.store(y, zero, next);
    });
    let mut buffers = [bytes(&[16777216.0])];
    eval_kernel(&b.finish(), &[], &mut buffers).unwrap();
    assert_eq!(floats(&buffers[0]), [16777216.0]);
}

#[test]
fn searches_break_and_failures_end_the_run() {
    // The first place of x that holds more than 10; without one, an index fault.
    let mut b = KernelBuilder::new("find", 1);
    let x = b.param(DType::I32, Access::Read, size_symbol(0));
    let y = b.param(DType::I64, Access::Write, Dim::Const(1));
    let (none, zero, one) = (b.int(-1), b.int(0), b.int(1));
    let (found, i) = (b.set_new(none), b.set_new(zero));
    let (n, at) = (b.dim(&size_symbol(0)), b.var(i));
    let more = b.map(ScalarFn::Less, &[at, n]);
    b.while_(more, |b| {
        let (v, ten) = (b.load(x, at), b.literal(nnc_ir::scalar::Num::I(10), DType::I32));
        let hit = b.map(ScalarFn::Greater, &[v, ten]);
        b.if_(
            hit,
            |b| {
                b.set(found, at);
                b.break_();
            },
            |_| {},
        );
        let next = b.add(at, one);
        b.set(i, next);
    });
    let found = b.var(found);
    let lost = b.map(ScalarFn::Less, &[found, zero]);
    b.if_(lost, |b| b.fail(Fault::Index), |_| {});
    b.store(y, zero, found);
    let kernel = b.finish();
    let find = |values: &[i32]| {
        let mut buffers = [Tensor::new(&[values.len()], values).bytes().to_vec(), vec![0; 8]];
        eval_kernel(&kernel, &[values.len() as i64], &mut buffers).map(|()| buffers[1][0])
    };
    assert_eq!(find(&[3, 10, 11, 12]).unwrap(), 2);
    let e = find(&[3]).unwrap_err();
    assert_eq!((e.code(), e.message()), (Code::Input, "kernel find: an index points outside"));
}

#[test]
fn accesses_outside_are_named() {
    let copy = |from: i64| {
        let mut b = KernelBuilder::new("copy", 1);
        let x = b.param(DType::F32, Access::Read, size_symbol(0));
        let y = b.param(DType::F32, Access::Write, size_symbol(0));
        let i = b.tasks(size_symbol(0));
        let shift = b.int(from);
        let at = b.add(i, shift);
        let v = b.load(x, at);
        b.store(y, i, v);
        b.finish()
    };
    let mut buffers = [bytes(&[1., 2., 3.]), vec![0; 12]];
    let e = eval_kernel(&copy(1), &[3], &mut buffers).unwrap_err();
    assert_eq!((e.code(), e.message()), (Code::Internal, "kernel copy: a load at index 3 of parameter 0, which has 3 elements"));
    assert!(eval_kernel(&copy(-1), &[3], &mut buffers).is_err());
    assert_eq!(floats(&buffers[1])[..2], [2., 3.]);
    eval_kernel(&copy(0), &[3], &mut buffers).unwrap();
    assert_eq!(floats(&buffers[1]), [1., 2., 3.]);
}

#[test]
fn the_verifier_reports_everything() {
    let good = matmul();
    assert_eq!(verify_kernel(&good), Ok(()));
    let messages = |k: &Kernel| verify_kernel(k).unwrap_err().0.iter().map(|e| e.message().to_string()).collect::<Vec<_>>();

    let mut k = good.clone();
    k.params[0].elems = Dim::sym("N") * Dim::sym("s3");
    assert_eq!(
        messages(&k),
        [
            "kernel matmul: the length of parameter 0, N*s3, reads N, which is none of the 3 sizes",
            "kernel matmul: the length of parameter 0, N*s3, reads s3, which is none of the 3 sizes"
        ]
    );

    let mut k = good.clone();
    k.vars.push(DType::F32);
    let fresh = VarId(k.vars.len() as u32 - 1);
    k.exprs.push(Expr::Var(fresh));
    k.exprs.push(Expr::Const(nnc_ir::scalar::Num::I(0), DType::I64));
    let (unset, zero) = (ExprId(k.exprs.len() as u32 - 2), ExprId(k.exprs.len() as u32 - 1));
    k.body.push(Stmt::Store { buf: 2, index: zero, value: unset });
    k.body.push(Stmt::Store { buf: 0, index: unset, value: zero });
    k.body.push(Stmt::Break);
    k.body.push(Stmt::Set { var: k.task, value: zero });
    let n = fresh.0;
    assert_eq!(
        messages(&k),
        [
            format!("kernel matmul: a stored value reads local {n} before it is assigned"),
            "kernel matmul: a store to parameter 0, which is only read".into(),
            "kernel matmul: a stored value is i64, not f32".into(),
            "kernel matmul: the index of a store is f32, not i64".into(),
            format!("kernel matmul: the index of a store reads local {n} before it is assigned"),
            "kernel matmul: a break outside of loops".into(),
            "kernel matmul: local 0 is a loop's variable or the task's number and is assigned".into(),
        ]
    );

    let mut k = good.clone();
    k.exprs[0] = Expr::Map { fun: ScalarFn::Neg, args: vec![ExprId(5)] };
    assert_eq!(messages(&k), ["kernel matmul: expression 0 reads 5, which does not come before it"]);
    assert_eq!(eval_kernel(&k, &[1, 1, 1], &mut []).unwrap_err().code(), Code::Internal);
}

#[test]
fn assignments_must_reach() {
    // Assigned in one branch only, read after; assigned in both is fine; a branch that breaks does not count.
    let kernel = |both: bool, leaves: bool| {
        let mut b = KernelBuilder::new("k", 0);
        let y = b.param(DType::I64, Access::Write, Dim::Const(1));
        let (zero, one) = (b.int(0), b.int(1));
        b.for_each(one, |b, i| {
            let v = b.local(DType::I64);
            let c = b.map(ScalarFn::Less, &[i, one]);
            b.if_(
                c,
                |b| b.set(v, one),
                |b| {
                    if both {
                        b.set(v, zero);
                    }
                    if leaves {
                        b.break_();
                    }
                },
            );
            let v = b.var(v);
            b.store(y, zero, v);
        });
        verify_kernel(&b.finish()).is_ok()
    };
    assert!(!kernel(false, false));
    assert!(kernel(true, false));
    assert!(kernel(false, true));
}

/// A kernel over one f32 tensor of s0 elements: y = f(x, x).
fn twice(name: &str, fun: ScalarFn) -> Kernel {
    let mut b = KernelBuilder::new(name, 1);
    let x = b.param(DType::F32, Access::Read, size_symbol(0));
    let y = b.param(DType::F32, Access::Write, size_symbol(0));
    let i = b.tasks(size_symbol(0));
    let v = b.load(x, i);
    let v = b.map(fun, &[v, v]);
    b.store(y, i, v);
    b.finish()
}

fn program(planned: bool) -> Program {
    let n = Dim::sym("N");
    let buffer = |place: Place| Buffer { dtype: DType::F32, elems: n.clone(), place };
    let work = |i: i64| if planned { Place::Work { offset: Dim::Const(64 * i) } } else { Place::Unplanned };
    let port = |name: &str, i: u32| Port { name: name.into(), ty: Type::new(DType::F32, vec![n.clone()]), buffer: BufferId(i) };
    let at = |i: u32| BufferRef { buffer: BufferId(i), offset: Dim::Const(0) };
    let launch = |kernel: u32, from: u32, to: u32| {
        Step::Launch(Launch {
            kernel,
            buffers: vec![at(from), at(to)],
            sizes: vec![n.clone()],
            flops: Dim::Const(0),
            name: "step".into(),
            loc: Loc::Unknown,
        })
    };
    // One kernel decides on the data: whether x[0] is below 100.
    let mut below = KernelBuilder::new("below", 0);
    let x = below.param(DType::F32, Access::Read, Dim::Const(1));
    let y = below.param(DType::Bool, Access::Write, Dim::Const(1));
    let (zero, limit) = (below.int(0), below.num(100.0, DType::F32));
    let v = below.load(x, zero);
    let c = below.map(ScalarFn::Less, &[v, limit]);
    below.store(y, zero, c);
    let test =
        Step::Launch(Launch { kernel: 2, buffers: vec![at(1), at(3)], sizes: vec![], flops: Dim::Const(0), name: "test".into(), loc: Loc::Unknown });
    let flag = Buffer { dtype: DType::Bool, elems: Dim::Const(1), place: work(0) };
    Program {
        name: "p".into(),
        inputs: vec![port("x", 0)],
        outputs: vec![port("y", 2)],
        buffers: vec![buffer(Place::Input(0)), buffer(work(1)), buffer(Place::Output(0)), flag],
        kernels: vec![twice("add", ScalarFn::Add), twice("mul", ScalarFn::Mul), below.finish()],
        // b = x + x; while b[0] < 100 { y = b * b; b = y + y }
        steps: vec![launch(0, 0, 1), test.clone(), Step::While { cond: at(3), body: vec![launch(1, 1, 2), launch(0, 2, 1), test] }],
        heap: 0,
        weights: vec![],
        workspace: if planned { Dim::Const(128) } else { Dim::Const(0) },
        flops: Dim::Const(0),
    }
}

#[test]
fn programs_run_with_and_without_planned_memory() {
    for planned in [false, true] {
        let p = program(planned);
        verify_program(&p).unwrap();
        let y = eval_program(&p, &[Tensor::new(&[2], &[1f32, 3.])]).unwrap();
        // b: 2, 6 -> y: 4, 36, b: 8, 72 -> y: 64, 5184, b: 128: stop.
        assert_eq!(y, [Tensor::new(&[2], &[64f32, 5184.])]);
    }
    let e = eval_program(&program(true), &[Tensor::new(&[17], &[1f32; 17])]).unwrap_err();
    assert_eq!((e.code(), e.message()), (Code::Internal, "buffer 1 reaches to byte 132 of a workspace of 128"));
    let e = eval_program(&program(true), &[Tensor::scalar(1f32)]).unwrap_err();
    assert_eq!((e.code(), e.message()), (Code::Input, "input `x`: expected f32[N], found f32[]: the rank is 0, not 1"));
}

#[test]
fn the_verifier_of_programs_reports_everything() {
    let mut p = program(false);
    let Step::Launch(first) = &mut p.steps[0] else { unreachable!() };
    first.sizes = vec![Dim::sym("M")];
    first.buffers.swap(0, 1);
    p.outputs[0].ty.dtype = DType::I8;
    let messages: Vec<String> = verify_program(&p).unwrap_err().0.iter().map(|e| e.message().to_string()).collect();
    assert_eq!(
        messages,
        [
            "port y is i8, its buffer holds f32",
            "launch of step (add): M is not bound yet",
            "launch of step (add): parameter 1 is written, buffer 0 is read-only"
        ]
    );
}

#[test]
fn sizes_bound_from_data_and_weights() {
    let n = Dim::sym("n");
    let mut p = program(false);
    let at = |i: u32| BufferRef { buffer: BufferId(i), offset: Dim::Const(0) };
    p.inputs = vec![Port { name: "n".into(), ty: Type::of(DType::I64, &[2]), buffer: BufferId(0) }];
    p.outputs[0].ty.shape = vec![n.clone()];
    p.buffers = vec![
        Buffer { dtype: DType::I64, elems: Dim::Const(2), place: Place::Input(0) },
        Buffer { dtype: DType::F32, elems: Dim::Const(3), place: Place::Weight { offset: 64 } },
        Buffer { dtype: DType::F32, elems: n.clone(), place: Place::Output(0) },
    ];
    p.weights = vec![(0, Tensor::new(&[2], &[7f32, 7.])), (64, Tensor::new(&[3], &[1f32, 2., 3.]))];
    let second = BufferRef { offset: Dim::Const(1), ..at(0) };
    let add = Launch { kernel: 0, buffers: vec![at(1), at(2)], sizes: vec![n], flops: Dim::Const(0), name: "".into(), loc: Loc::Unknown };
    p.steps = vec![Step::Bind { symbol: "n".into(), from: second }, Step::Launch(add)];
    assert_eq!(eval_program(&p, &[Tensor::new(&[2], &[9i64, 2])]).unwrap(), [Tensor::new(&[2], &[2f32, 4.])]);
    let e = eval_program(&p, &[Tensor::new(&[2], &[9i64, 4])]).unwrap_err();
    assert_eq!(e.message(), "kernel add: parameter 0 has fewer than 4 elements");
    p.steps.remove(0);
    assert!(verify_program(&p).is_err());
}
