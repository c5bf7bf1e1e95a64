//! The driver: control flow, sizes that depend on data, faults, threads, programs of many launches.

use super::machine::{Slot, Workspace, run, text};
use nnc_backends::abi::{self, Host, Tensor as Raw};
use nnc_backends::cpu::{Jit, Options, compile_jit, native_target};
use nnc_ir::kernel::builder::KernelBuilder;
use nnc_ir::kernel::{Access, Buffer, BufferId, BufferRef, Decode, Fault, Kernel, Launch, Place, Port, Program, Step};
use nnc_ir::ops::image::Channels;
use nnc_ir::scalar::ScalarFn;
use nnc_ir::{DType, Dim, Loc, Tensor, Type};
use std::ffi::c_void;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

fn buffer(p: &mut Program, dtype: DType, elems: Dim, place: Place) -> BufferId {
    p.buffers.push(Buffer { dtype, elems, place });
    BufferId(p.buffers.len() as u32 - 1)
}

fn at(buffer: BufferId) -> BufferRef {
    BufferRef { buffer, offset: Dim::Const(0) }
}

fn launch(p: &mut Program, k: Kernel, buffers: &[BufferId], sizes: Vec<Dim>) -> Step {
    let name = k.name.clone();
    p.kernels.push(k);
    let buffers = buffers.iter().map(|b| at(*b)).collect();
    Step::Launch(Launch { kernel: p.kernels.len() as u32 - 1, buffers, sizes, flops: Dim::Const(0), name, loc: Loc::Unknown })
}

fn input(p: &mut Program, name: &str, ty: Type) -> BufferId {
    let b = buffer(p, ty.dtype, ty.elems(), Place::Input(p.inputs.len() as u32));
    p.inputs.push(Port { name: name.into(), ty, buffer: b });
    b
}

fn output(p: &mut Program, name: &str, ty: Type) -> BufferId {
    let b = buffer(p, ty.dtype, ty.elems(), Place::Output(p.outputs.len() as u32));
    p.outputs.push(Port { name: name.into(), ty, buffer: b });
    b
}

fn jit(p: &Program) -> Jit {
    compile_jit(p, &native_target(), &Options::default()).expect("compiles")
}

/// y = f(x) on `n` floats; `f` builds the value.
fn elementwise(name: &str, n: &Dim, f: impl Fn(&mut KernelBuilder, nnc_ir::kernel::ExprId) -> nnc_ir::kernel::ExprId) -> Kernel {
    let sizes = u32::from(n.as_const().is_none());
    let mut b = KernelBuilder::new(name, sizes);
    let (x, y) = (b.param(DType::F32, Access::Read, n.clone()), b.param(DType::F32, Access::Write, n.clone()));
    let end = b.dim(n);
    b.for_each(end, |b, i| {
        let v = b.load(x, i);
        let v = f(b, v);
        b.store(y, i, v);
    });
    b.finish()
}

fn floats(n: usize) -> Tensor {
    let v: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::new(&[n], &v)
}

/// Copies the positive numbers of x[N] to y[M], where M is found by a first kernel.
fn positives() -> Program {
    let mut p = Program { name: "positives".into(), workspace: Dim::Const(64), ..Program::default() };
    let (n, s0, s1) = (Dim::sym("N"), Dim::sym("s0"), Dim::sym("s1"));
    let x = input(&mut p, "x", Type::new(DType::F32, vec![n.clone()]));
    let y = output(&mut p, "y", Type::new(DType::F32, vec![Dim::sym("M")]));
    let count = buffer(&mut p, DType::I64, Dim::Const(1), Place::Work { offset: Dim::Const(0) });

    let mut b = KernelBuilder::new("count", 1);
    let (px, pc) = (b.param(DType::F32, Access::Read, s0.clone()), b.param(DType::I64, Access::Write, Dim::Const(1)));
    let zero = b.int(0);
    let sum = b.set_new(zero);
    let end = b.dim(&s0);
    b.for_each(end, |b, i| {
        let (v, z) = (b.load(px, i), b.num(0.0, DType::F32));
        let c = b.map(ScalarFn::Greater, &[v, z]);
        let c = b.cast(DType::I64, c);
        let old = b.var(sum);
        let new = b.add(old, c);
        b.set(sum, new);
    });
    let total = b.var(sum);
    b.store(pc, zero, total);
    let step = launch(&mut p, b.finish(), &[x, count], vec![n.clone()]);
    p.steps.push(step);
    p.steps.push(Step::Bind { symbol: "M".into(), from: at(count) });

    let mut b = KernelBuilder::new("copy", 2);
    let (px, py) = (b.param(DType::F32, Access::Read, s0.clone()), b.param(DType::F32, Access::Write, s1));
    let zero = b.int(0);
    let to = b.set_new(zero);
    let end = b.dim(&s0);
    b.for_each(end, |b, i| {
        let (v, z) = (b.load(px, i), b.num(0.0, DType::F32));
        let c = b.map(ScalarFn::Greater, &[v, z]);
        b.if_(
            c,
            |b| {
                let k = b.var(to);
                b.store(py, k, v);
                let one = b.int(1);
                let next = b.add(k, one);
                b.set(to, next);
            },
            |_| {},
        );
    });
    let step = launch(&mut p, b.finish(), &[x, y], vec![n, Dim::sym("M")]);
    p.steps.push(step);
    p
}

unsafe extern "C" fn leak(_: *mut c_void, bytes: usize, align: usize) -> *mut c_void {
    let layout = std::alloc::Layout::from_size_align(bytes, align).expect("a layout");
    // SAFETY: the ABI asks for at least one byte.
    unsafe { std::alloc::alloc(layout).cast() }
}

#[test]
fn outputs_whose_size_depends_on_data() {
    let (p, x) = (positives(), floats(1000));
    let j = jit(&p);
    let f = j.functions();
    let mut slot = Slot::of(&x);
    let inputs = [Raw { data: slot.data.as_mut_ptr().cast(), shape: slot.shape.as_mut_ptr(), rank: 1, dtype: 1 }];
    let mut shape = [7i64];
    let mut outputs = [Raw { data: std::ptr::null_mut(), shape: shape.as_mut_ptr(), rank: 1, dtype: 0 }];
    let mut bytes = 0;
    // SAFETY: one input, one output.
    assert_eq!(unsafe { (f.plan)(inputs.as_ptr(), outputs.as_mut_ptr(), &mut bytes) }, 0);
    assert_eq!((shape, outputs[0].dtype), ([-1], 1));
    let mut work = Workspace::new(bytes);
    // SAFETY: as above, and the workspace is as large as planned.
    let mut go = |outputs: &mut [Raw; 1], host: *const Host| unsafe { (f.run)(inputs.as_ptr(), outputs.as_mut_ptr(), work.ptr(), host) };
    assert_eq!(
        text(f, go(&mut outputs, std::ptr::null())),
        "nnc_host.alloc is not given or gave no memory, for an output without data or a result whose size only the run knows"
    );
    let host = Host { alloc: Some(leak), ..Host::default() };
    assert_eq!(go(&mut outputs, &host), 0);
    let want: Vec<f32> = x.to_vec::<f32>().expect("f32").into_iter().filter(|x| *x > 0.0).collect();
    assert_eq!(shape, [want.len() as i64]);
    // SAFETY: the run has allocated and filled as many floats as the shape says.
    let got = unsafe { std::slice::from_raw_parts(outputs[0].data.cast::<f32>(), want.len()) };
    assert_eq!(got, want);
    let small = Host { size: 8, ..host };
    assert_eq!(text(f, go(&mut outputs, &small)), "nnc_host.size is not sizeof(nnc_host) of ABI version 1 or later");
}

/// The picture in the file x[N].
fn pictures() -> Program {
    let mut p = Program { name: "pictures".into(), workspace: Dim::Const(64), ..Program::default() };
    let x = input(&mut p, "x", Type::new(DType::U8, vec![Dim::sym("N")]));
    let y = output(&mut p, "y", Type::new(DType::U8, vec![Dim::sym("H"), Dim::sym("W"), Dim::Const(1)]));
    let sizes = buffer(&mut p, DType::I64, Dim::Const(2), Place::Work { offset: Dim::Const(0) });
    let ask = Decode { file: at(x), bytes: Dim::sym("N"), channels: Channels::Grayscale, sizes: at(sizes), samples: None };
    let bind = |symbol: &str, i: i64| Step::Bind { symbol: symbol.into(), from: BufferRef { buffer: sizes, offset: Dim::Const(i) } };
    p.steps = vec![Step::Decode(ask.clone()), bind("H", 0), bind("W", 1), Step::Decode(Decode { samples: Some(at(y)), ..ask })];
    p
}

/// A picture of a row with as many samples as the file has bytes, each the byte plus the number of the pixel format.
unsafe extern "C" fn one_row(_: *mut c_void, file: *const u8, bytes: usize, channels: i32, sizes: *mut i64, samples: *mut u8) {
    // SAFETY: the ABI gives two sizes; the samples have room for what they say, which is as many as the file has bytes.
    unsafe {
        if samples.is_null() {
            (*sizes, *sizes.add(1)) = (1, bytes as i64);
        } else {
            assert_eq!((*sizes, *sizes.add(1)), (1, bytes as i64));
            (0..bytes).for_each(|i| *samples.add(i) = *file.add(i) + channels as u8);
        }
    }
}

#[test]
fn the_host_reads_pictures() {
    let j = jit(&pictures());
    let f = j.functions();
    let mut slot = Slot::of(&Tensor::new(&[3], &[7u8, 8, 9]));
    let inputs = [Raw { data: slot.data.as_mut_ptr().cast(), shape: slot.shape.as_mut_ptr(), rank: 1, dtype: DType::U8.abi_code() }];
    let mut shape = [7i64; 3];
    let mut outputs = [Raw { data: std::ptr::null_mut(), shape: shape.as_mut_ptr(), rank: 3, dtype: 0 }];
    let mut bytes = 0;
    // SAFETY: one input, one output.
    assert_eq!(unsafe { (f.plan)(inputs.as_ptr(), outputs.as_mut_ptr(), &mut bytes) }, 0);
    assert_eq!(shape, [-1, -1, 1]);
    let mut work = Workspace::new(bytes);
    // SAFETY: as above, and the workspace is as large as planned.
    let mut go = |outputs: &mut [Raw; 1], host: &Host| unsafe { (f.run)(inputs.as_ptr(), outputs.as_mut_ptr(), work.ptr(), host) };
    let host = Host { alloc: Some(leak), decode: Some(one_row), ..Host::default() };
    // An early host ends before the field.
    for without in [Host { decode: None, ..host }, Host { size: abi::HOST_BYTES, ..host }] {
        assert_eq!(text(f, go(&mut outputs, &without)), "the model reads files of pictures: nnc_host.decode must be given");
    }
    assert_eq!(go(&mut outputs, &host), 0);
    assert_eq!(shape, [1, 3, 1]);
    // SAFETY: the run has allocated and filled as many bytes as the shape says.
    let got = unsafe { std::slice::from_raw_parts(outputs[0].data.cast::<u8>(), 3) };
    assert_eq!(got, [9, 10, 11]);
}

/// Writes 1, 2, .. n to a block of the run's own that is one longer each time, then adds them up.
fn growing() -> Program {
    let mut p = Program { name: "growing".into(), workspace: Dim::Const(128), heap: 1, ..Program::default() };
    let (one, m, s0) = (Dim::Const(1), Dim::sym("M"), Dim::sym("s0"));
    let n = input(&mut p, "n", Type::of(DType::I64, &[1]));
    let y = output(&mut p, "y", Type::of(DType::I64, &[1]));
    let count = buffer(&mut p, DType::I64, one.clone(), Place::Work { offset: Dim::Const(0) });
    let go = buffer(&mut p, DType::Bool, one.clone(), Place::Work { offset: Dim::Const(64) });
    let block = buffer(&mut p, DType::I64, m.clone(), Place::Heap { slot: 0 });
    // count = by (0 at first), go = count < n.
    let step = |name: &str, access: Access, by: i64| {
        let mut b = KernelBuilder::new(name, 0);
        let (n, c) = (b.param(DType::I64, Access::Read, one.clone()), b.param(DType::I64, access, one.clone()));
        let zero = b.int(0);
        let old = if by > 0 { b.load(c, zero) } else { zero };
        let by = b.int(by);
        let new = b.add(old, by);
        let _ = n;
        b.store(c, zero, new);
        b.finish()
    };
    let more = || {
        let mut b = KernelBuilder::new("more", 0);
        let (n, c, go) = (
            b.param(DType::I64, Access::Read, one.clone()),
            b.param(DType::I64, Access::Read, one.clone()),
            b.param(DType::Bool, Access::Write, one.clone()),
        );
        let zero = b.int(0);
        let (c, n) = (b.load(c, zero), b.load(n, zero));
        let less = b.map(ScalarFn::Less, &[c, n]);
        b.store(go, zero, less);
        b.finish()
    };
    let mut b = KernelBuilder::new("put", 1);
    let (pc, pb) = (b.param(DType::I64, Access::Read, one.clone()), b.param(DType::I64, Access::ReadWrite, s0.clone()));
    let (zero, last) = (b.int(0), b.int(-1));
    let v = b.load(pc, zero);
    let to = b.add(v, last);
    b.store(pb, to, v);
    let put = b.finish();
    let mut b = KernelBuilder::new("sum", 1);
    let (pb, py) = (b.param(DType::I64, Access::Read, s0.clone()), b.param(DType::I64, Access::Write, one.clone()));
    let zero = b.int(0);
    let total = b.set_new(zero);
    let end = b.dim(&s0);
    b.for_each(end, |b, i| {
        let (v, old) = (b.load(pb, i), b.var(total));
        let new = b.add(old, v);
        b.set(total, new);
    });
    let total = b.var(total);
    b.store(py, zero, total);
    let sum = b.finish();

    let bind = || Step::Bind { symbol: "M".into(), from: at(count) };
    let first = launch(&mut p, step("start", Access::Write, 0), &[n, count], vec![]);
    let test = launch(&mut p, more(), &[n, count, go], vec![]);
    let next = launch(&mut p, step("next", Access::ReadWrite, 1), &[n, count], vec![]);
    let write = launch(&mut p, put, &[count, block], vec![m.clone()]);
    let again = launch(&mut p, more(), &[n, count, go], vec![]);
    let last = launch(&mut p, sum, &[block, y], vec![m]);
    p.steps = vec![first, test, Step::While { cond: at(go), body: vec![next, bind(), write, again] }, bind(), last];
    p
}

/// Blocks left to hand out, and how many were.
struct Budget {
    left: i64,
    blocks: Vec<(*mut u8, std::alloc::Layout)>,
}

unsafe extern "C" fn limited(ctx: *mut c_void, bytes: usize, align: usize) -> *mut c_void {
    // SAFETY: the context is the test's budget, and nothing else uses it during the run.
    let budget = unsafe { &mut *ctx.cast::<Budget>() };
    if budget.left == 0 {
        return std::ptr::null_mut();
    }
    budget.left -= 1;
    let layout = std::alloc::Layout::from_size_align(bytes, align).expect("a layout");
    // SAFETY: the ABI asks for at least one byte.
    let block = unsafe { std::alloc::alloc(layout) };
    budget.blocks.push((block, layout));
    block.cast()
}

#[test]
fn blocks_grow_with_what_is_in_them() {
    let j = jit(&growing());
    let go = |n: i64, left: i64| {
        let mut budget = Budget { left, blocks: vec![] };
        let host = Host { ctx: (&raw mut budget).cast(), alloc: Some(limited), ..Host::default() };
        let y = run(j.functions(), &[Tensor::new(&[1], &[n])], 1, Some(&host)).map(|y| y[0].to_vec::<i64>());
        let count = budget.blocks.len();
        for (block, layout) in budget.blocks {
            // SAFETY: allocated above with this layout; the run is over.
            unsafe { std::alloc::dealloc(block, layout) }
        }
        (y, count)
    };
    assert_eq!(go(0, 0), (Ok(Some(vec![0])), 0));
    assert_eq!(go(8, 9), (Ok(Some(vec![36])), 1), "a block is whole cache lines");
    assert_eq!(go(100, 9), (Ok(Some(vec![5050])), 5), "capacities double");
    let refused = abi::ERROR_TEXTS[abi::ERROR_ALLOC as usize].to_string();
    assert_eq!(go(100, 2), (Err(refused.clone()), 2));
    assert_eq!(run(j.functions(), &[Tensor::new(&[1], &[1i64])], 1, None).err(), Some(refused));
}

#[test]
fn sizes_are_checked() {
    // y[N] = x[N] + w[M], which is only right where N is M.
    let (n, m, s0) = (Dim::sym("N"), Dim::sym("M"), Dim::sym("s0"));
    let program = |nested: bool| {
        let mut p = Program { name: "checked".into(), ..Program::default() };
        let x = input(&mut p, "x", Type::new(DType::F32, vec![n.clone()]));
        input(&mut p, "w", Type::new(DType::F32, vec![m.clone()]));
        let on = input(&mut p, "on", Type::of(DType::Bool, &[]));
        let y = output(&mut p, "y", Type::new(DType::F32, vec![n.clone()]));
        let copy = launch(&mut p, elementwise("copy", &s0, |_, v| v), &[x, y], vec![n.clone()]);
        let check = Step::Check { a: n.clone(), b: m.clone(), at_most: false, what: "`add` needs N to be equal to M".into() };
        let check = if nested { Step::If { cond: at(on), then: vec![check], otherwise: vec![] } } else { check };
        p.steps = vec![check, copy];
        jit(&p)
    };
    for (nested, on, m, fails) in
        [(false, false, 3, false), (false, false, 4, true), (true, false, 4, false), (true, true, 4, true), (true, true, 3, false)]
    {
        let y = run(program(nested).functions(), &[floats(3), floats(m), Tensor::scalar(on)], 1, None);
        assert_eq!(y.err(), fails.then(|| "`add` needs N to be equal to M".to_string()), "{nested} {on} {m}");
    }
}

#[test]
fn loops_and_branches_over_launches() {
    // while (c[0] > 0) { if (odd) y += 1 else y *= 2; c[0] -= 1; ... } as kernels on a workspace.
    let mut p = Program { name: "control".into(), workspace: Dim::Const(192), ..Program::default() };
    let n = input(&mut p, "n", Type::of(DType::I64, &[1]));
    let y = output(&mut p, "y", Type::of(DType::I64, &[1]));
    let counter = buffer(&mut p, DType::I64, Dim::Const(1), Place::Work { offset: Dim::Const(0) });
    let go = buffer(&mut p, DType::Bool, Dim::Const(1), Place::Work { offset: Dim::Const(64) });
    let odd = buffer(&mut p, DType::Bool, Dim::Const(1), Place::Work { offset: Dim::Const(128) });
    let kernel = |name: &str, f: &dyn Fn(&mut KernelBuilder)| {
        let mut b = KernelBuilder::new(name, 0);
        f(&mut b);
        b.finish()
    };
    // Writes go = c > 0 and odd = c & 1.
    let flags = |b: &mut KernelBuilder, c: nnc_ir::kernel::ExprId, go: u32, odd: u32| {
        let (zero, one) = (b.int(0), b.int(1));
        let more = b.map(ScalarFn::Greater, &[c, zero]);
        b.store(go, zero, more);
        let bit = b.map(ScalarFn::BitAnd, &[c, one]);
        let bit = b.cast(DType::Bool, bit);
        b.store(odd, zero, bit);
    };
    let start = kernel("start", &|b| {
        let n = b.param(DType::I64, Access::Read, Dim::Const(1));
        let (c, y) = (b.param(DType::I64, Access::Write, Dim::Const(1)), b.param(DType::I64, Access::Write, Dim::Const(1)));
        let (go, odd) = (b.param(DType::Bool, Access::Write, Dim::Const(1)), b.param(DType::Bool, Access::Write, Dim::Const(1)));
        let zero = b.int(0);
        let v = b.load(n, zero);
        b.store(c, zero, v);
        b.store(y, zero, zero);
        flags(b, v, go, odd);
    });
    let down = kernel("down", &|b| {
        let c = b.param(DType::I64, Access::ReadWrite, Dim::Const(1));
        let (go, odd) = (b.param(DType::Bool, Access::Write, Dim::Const(1)), b.param(DType::Bool, Access::Write, Dim::Const(1)));
        let (zero, one) = (b.int(0), b.int(1));
        let v = b.load(c, zero);
        let v = b.sub(v, one);
        let v = b.bind(v);
        b.store(c, zero, v);
        flags(b, v, go, odd);
    });
    let change = |name: &str, f: ScalarFn, by: i64| {
        kernel(name, &|b| {
            let y = b.param(DType::I64, Access::ReadWrite, Dim::Const(1));
            let (zero, by) = (b.int(0), b.int(by));
            let v = b.load(y, zero);
            let v = b.map(f, &[v, by]);
            b.store(y, zero, v);
        })
    };
    let first = launch(&mut p, start, &[n, counter, y, go, odd], vec![]);
    let add = launch(&mut p, change("add", ScalarFn::Add, 1), &[y], vec![]);
    let double = launch(&mut p, change("double", ScalarFn::Mul, 2), &[y], vec![]);
    let last = launch(&mut p, down, &[counter, go, odd], vec![]);
    let branch = Step::If { cond: at(odd), then: vec![add], otherwise: vec![double] };
    p.steps = vec![first, Step::While { cond: at(go), body: vec![branch, last] }];
    let j = jit(&p);
    for n in [0i64, 1, 2, 9] {
        let want = (1..=n).rev().fold(0, |y, c| if c % 2 == 1 { y + 1 } else { y * 2 });
        let y = run(j.functions(), &[Tensor::new(&[1], &[n])], 1, None).expect("runs");
        assert_eq!(y[0].to_vec::<i64>(), Some(vec![want]), "{n}");
    }
}

#[test]
fn faults_of_kernels_become_codes() {
    let mut p = Program { name: "pick".into(), ..Program::default() };
    let i = input(&mut p, "i", Type::of(DType::I64, &[1]));
    let y = output(&mut p, "y", Type::of(DType::I64, &[1]));
    let mut b = KernelBuilder::new("pick", 0);
    let (pi, py) = (b.param(DType::I64, Access::Read, Dim::Const(1)), b.param(DType::I64, Access::Write, Dim::Const(1)));
    let (zero, limit) = (b.int(0), b.int(10));
    let v = b.load(pi, zero);
    let out = b.map(ScalarFn::GreaterEqual, &[v, limit]);
    b.if_(out, |b| b.fail(Fault::Index), |_| {});
    b.store(py, zero, v);
    let step = launch(&mut p, b.finish(), &[i, y], vec![]);
    p.steps.push(step);
    let j = jit(&p);
    let pick = |i: i64| run(j.functions(), &[Tensor::new(&[1], &[i])], 1, None);
    assert_eq!(pick(12).expect_err("outside"), abi::ERROR_TEXTS[abi::ERROR_INDEX as usize]);
    assert_eq!(pick(3).expect("inside")[0].to_vec::<i64>(), Some(vec![3]));
}

/// Chains of launches, each of a kernel of its own, ping-pong between two buffers.
fn chain(launches: usize, distinct: usize) -> Program {
    let mut p = Program { name: "chain".into(), workspace: Dim::Const(256), ..Program::default() };
    let n = Dim::Const(16);
    let x = input(&mut p, "x", Type::of(DType::F32, &[16]));
    let y = output(&mut p, "y", Type::of(DType::F32, &[16]));
    let work = [0, 128].map(|o: i64| buffer(&mut p, DType::F32, Dim::Const(16), Place::Work { offset: Dim::Const(o) }));
    for i in 0..distinct {
        p.kernels.push(elementwise(&format!("k{i}"), &n, |b, v| {
            let c = b.num(i as f64, DType::F32);
            let s = b.add(v, c);
            let minus = b.num(i as f64 - 1.0, DType::F32);
            b.sub(s, minus)
        }));
    }
    for i in 0..launches {
        let from = if i == 0 { x } else { work[i % 2] };
        let to = if i + 1 == launches { y } else { work[(i + 1) % 2] };
        let buffers = vec![at(from), at(to)];
        p.steps.push(Step::Launch(Launch {
            kernel: (i % distinct) as u32,
            buffers,
            sizes: vec![],
            flops: Dim::Const(0),
            name: format!("step {i}").into(),
            loc: Loc::Unknown,
        }));
    }
    p
}

#[test]
fn thousands_of_launches_and_kernels() {
    let x = Tensor::new(&[16], &[0f32; 16]);
    let start = Instant::now();
    // More kernels than one lookup function holds.
    let j = jit(&chain(10_000, 1500));
    let took = start.elapsed();
    let y = run(j.functions(), &[x], 1, None).expect("runs");
    let got = y[0].to_vec::<f32>().expect("f32");
    assert!(got.iter().all(|v| (v - 10_000.0).abs() < 100.0), "{got:?}");
    println!("10,000 launches of 1,500 kernels compiled in {took:?}");
}

#[test]
fn eight_threads_call_one_library() {
    let mut p = Program { name: "scale".into(), workspace: Dim::sym("N") * Dim::Const(64), ..Program::default() };
    let n = Dim::sym("N");
    let x = input(&mut p, "x", Type::new(DType::F32, vec![n.clone()]));
    let y = output(&mut p, "y", Type::new(DType::F32, vec![n.clone()]));
    let t = buffer(&mut p, DType::F32, n.clone(), Place::Work { offset: Dim::Const(0) });
    let s0 = Dim::sym("s0");
    let one = elementwise("tan", &s0, |b, v| b.map(ScalarFn::Tanh, &[v]));
    let two = elementwise("square", &s0, |b, v| b.mul(v, v));
    let step = launch(&mut p, one, &[x, t], vec![n.clone()]);
    p.steps.push(step);
    let step = launch(&mut p, two, &[t, y], vec![n]);
    p.steps.push(step);
    let j = jit(&p);
    std::thread::scope(|s| {
        for k in 1..=8usize {
            let j = &j;
            s.spawn(move || {
                for n in [k, 100 * k, 7] {
                    let x = floats(n);
                    let y = run(j.functions(), std::slice::from_ref(&x), 1, None).expect("runs");
                    let (x, y) = (x.to_vec::<f32>().expect("f32"), y[0].to_vec::<f32>().expect("f32"));
                    x.iter().zip(&y).for_each(|(x, y)| assert!((x.tanh().powi(2) - y).abs() < 1e-6));
                }
            });
        }
    });
}

static ITERATIONS: AtomicI64 = AtomicI64::new(0);

/// From the last to the first: any order is allowed.
unsafe extern "C" fn backwards(_: *mut c_void, n: i64, body: abi::Body, arg: *mut c_void) {
    ITERATIONS.fetch_add(n, Ordering::Relaxed);
    // SAFETY: each iteration once, as the ABI asks.
    (0..n).rev().for_each(|i| unsafe { body(arg, i) });
}

#[test]
fn large_launches_go_to_the_host() {
    let rows = |rows: i64| {
        let mut p = Program { name: "rows".into(), ..Program::default() };
        let x = input(&mut p, "x", Type::of(DType::F32, &[rows, 64]));
        let y = output(&mut p, "y", Type::of(DType::F32, &[rows, 64]));
        let mut b = KernelBuilder::new("rows", 0);
        let len = Dim::Const(rows * 64);
        let (px, py) = (b.param(DType::F32, Access::Read, len.clone()), b.param(DType::F32, Access::Write, len));
        let task = b.tasks(Dim::Const(rows));
        let width = b.int(64);
        let first = b.mul(task, width);
        b.for_each(width, |b, j| {
            let i = b.add(first, j);
            let v = b.load(px, i);
            let v = b.add(v, v);
            b.store(py, i, v);
        });
        let step = launch(&mut p, b.finish(), &[x, y], vec![]);
        p.steps.push(step);
        p
    };
    let host = Host { threads: 4, parallel_for: Some(backwards), ..Host::default() };
    for (n, want) in [(4, 0), (1000, 1000)] {
        let v: Vec<f32> = (0..n * 64).map(|i| i as f32).collect();
        let y = run(jit(&rows(n)).functions(), &[Tensor::new(&[n as usize, 64], &v)], 1, Some(&host)).expect("runs");
        assert!(y[0].to_vec::<f32>().expect("f32").iter().zip(&v).all(|(y, x)| *y == 2.0 * x));
        assert_eq!(ITERATIONS.swap(0, Ordering::Relaxed), want);
    }
}
