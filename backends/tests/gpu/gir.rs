//! The kernel IR itself: control flow of the loop IR, what the verifier refuses, shared memory and subgroups.

use super::launch::{device, launch};
use nnc_backends::abi;
use nnc_backends::gpu::gir::build::Builder;
use nnc_backends::gpu::gir::interp::{Launch, run};
use nnc_backends::gpu::gir::verify::verify;
use nnc_backends::gpu::gir::{self, Compare, Elem, Fold, Op, Stmt, Val};
use nnc_ir::kernel::builder::KernelBuilder;
use nnc_ir::kernel::eval::eval_kernel;
use nnc_ir::kernel::{Access, Fault, Kernel};
use nnc_ir::target::{Gpu, GpuIsa};
use nnc_ir::{DType, Dim, ScalarFn};

fn words(v: &[i64]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Both interpreters on the same memory.
fn same(k: &Kernel, tasks: i64, sizes: &[i64], buffers: &[Vec<u8>]) {
    let (mut want, mut got) = (buffers.to_vec(), buffers.to_vec());
    let narrow: Vec<i32> = sizes.iter().map(|s| *s as i32).collect();
    eval_kernel(k, sizes, &mut want).expect("the loops run");
    assert_eq!(launch(k, tasks, &narrow, &mut got).expect("lowered"), 0);
    assert_eq!(got, want, "{k}");
}

/// For each row, the place of the first element that is `1`, searched by a loop that is left; -1 where there is none.
fn search() -> Kernel {
    let mut b = KernelBuilder::new("search", 2);
    let (rows, columns) = (Dim::sym("s0"), Dim::sym("s1"));
    let x = b.param(DType::I64, Access::Read, rows.clone() * columns.clone());
    let y = b.param(DType::I64, Access::Write, rows.clone());
    let row = b.tasks(rows);
    let n = b.dim(&columns);
    let (none, one) = (b.int(-1), b.int(1));
    let found = b.set_new(none);
    b.for_each(n, |b, i| {
        let base = b.mul(row, n);
        let at = b.add(base, i);
        let v = b.load(x, at);
        let hit = b.map(ScalarFn::Equal, &[v, one]);
        b.if_(
            hit,
            |b| {
                b.set(found, i);
                b.break_();
            },
            |_| {},
        );
        let two = b.int(2);
        let odd = b.map(ScalarFn::Equal, &[v, two]);
        // Seen only where the loop goes on.
        b.if_(odd, |b| b.set(found, none), |_| {});
    });
    let v = b.var(found);
    b.store(y, row, v);
    b.finish()
}

#[test]
fn loops_may_be_left() {
    let x = [0, 0, 1, 2, 2, 2, 0, 0, 0, 0, 0, 1];
    same(&search(), 3, &[3, 4], &[words(&x), words(&[9, 9, 9])]);
}

#[test]
fn locals_are_carried_and_joined() {
    // Collatz: a while loop that swaps roles by an if.
    let mut b = KernelBuilder::new("collatz", 0);
    let (x, y) = (b.param(DType::I64, Access::Read, 8i64.into()), b.param(DType::I64, Access::Write, 8i64.into()));
    let i = b.tasks(8i64.into());
    let start = b.load(x, i);
    let (zero, one, two, three) = (b.int(0), b.int(1), b.int(2), b.int(3));
    let (n, steps) = (b.set_new(start), b.set_new(zero));
    let here = b.var(n);
    let more = b.map(ScalarFn::Greater, &[here, one]);
    b.while_(more, |b| {
        let half = b.rem(here, two);
        let even = b.map(ScalarFn::Equal, &[half, zero]);
        b.if_(
            even,
            |b| {
                let v = b.div(here, two);
                b.set(n, v);
            },
            |b| {
                let v = b.mul(here, three);
                let v = b.add(v, one);
                b.set(n, v);
            },
        );
        let count = b.var(steps);
        let next = b.add(count, one);
        b.set(steps, next);
    });
    let count = b.var(steps);
    b.store(y, i, count);
    same(&b.finish(), 8, &[], &[words(&[1, 2, 3, 7, 27, 97, 871, 6171]), words(&[0; 8])]);
}

#[test]
fn a_fault_ends_its_task_and_is_told() {
    let mut b = KernelBuilder::new("gather", 0);
    let (x, y) = (b.param(DType::I64, Access::Read, 4i64.into()), b.param(DType::I64, Access::Write, 4i64.into()));
    let i = b.tasks(4i64.into());
    let v = b.load(x, i);
    let v = b.bind(v);
    let four = b.int(4);
    let outside = b.map(ScalarFn::GreaterEqual, &[v, four]);
    b.if_(outside, |b| b.fail(Fault::Index), |_| {});
    // Would be outside of the buffer.
    b.store(y, v, i);
    let k = b.finish();
    let mut buffers = vec![words(&[3, 99, 1, 0]), words(&[-1; 4])];
    assert_eq!(launch(&k, 4, &[], &mut buffers), Ok(abi::ERROR_INDEX));
    assert_eq!(buffers[1], words(&[3, 2, -1, 0]));
    buffers[0] = words(&[3, 2, 1, 0]);
    assert_eq!(launch(&k, 4, &[], &mut buffers), Ok(0));
}

/// The sum of 64 numbers a group: in subgroups, then over shared memory.
fn group_sum(divergent: bool) -> gir::Kernel {
    let mut b = Builder::new("group_sum", 64);
    let (x, y) = (b.buffer(Elem::F32, false), b.buffer(Elem::F32, true));
    let partial = b.shared(Elem::F32, 64);
    let (thread, group, lane, lanes) = (b.value(Op::Thread), b.value(Op::Group), b.value(Op::Lane), b.value(Op::Lanes));
    let width = b.i32(64);
    let base = b.mul(group, width);
    let at = b.add(base, thread);
    let v = b.load(x, at);
    let sum = b.value(Op::SubgroupFold(Fold::Add, v));
    let zero = b.i32(0);
    let first = b.compare(Compare::Eq, lane, zero);
    let place = b.binary(gir::Binary::DivS, thread, lanes);
    b.when(first, |b| {
        b.store(partial, place, sum);
        if divergent {
            b.emit(Stmt::Barrier);
        }
    });
    if !divergent {
        b.emit(Stmt::Barrier);
    }
    let one = b.compare(Compare::Eq, thread, zero);
    b.when(one, |b| {
        let (count, none) = (b.binary(gir::Binary::DivS, width, lanes), b.f32(0.0));
        let total = b.for_(zero, count, &[none], |b, i, sum| {
            let v = b.load(partial, i);
            vec![b.add(sum[0], v)]
        });
        b.store(y, group, total[0]);
    });
    b.finish()
}

#[test]
fn groups_share_memory_and_subgroups_fold() {
    let k = group_sum(false);
    verify(&k, &device()).expect("it holds");
    let x: Vec<u8> = (0..128).flat_map(|i| (i as f32).to_le_bytes()).collect();
    for lanes in [4, 8, 32, 64] {
        let mut buffers = vec![x.clone(), vec![0; 8]];
        run(&k, &mut Launch { groups: 2, scalars: &[], buffers: &mut buffers, lanes }).expect("it runs");
        let y: Vec<f32> = buffers[1].chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        assert_eq!(y, [2016.0, 6112.0], "subgroups of {lanes}");
    }
}

#[test]
fn the_verifier_refuses() {
    let divergent = verify(&group_sum(true), &device()).expect_err("a barrier that not all threads reach");
    assert!(divergent.message().contains("barrier"), "{divergent}");
    let wrong = |change: &dyn Fn(&mut gir::Kernel), says: &str| {
        let mut k = group_sum(false);
        change(&mut k);
        let e = verify(&k, &device()).expect_err(says);
        assert!(e.message().contains(says), "{e}");
    };
    wrong(&|k| k.threads = 100_000, "threads");
    wrong(&|k| k.shared[0].len = 1 << 20, "shared memory");
    wrong(&|k| k.buffers[1].written = false, "only read");
    wrong(&|k| drop(k.body.remove(0)), "not defined");
    wrong(&|k| k.body.push(k.body[0].clone()), "defined twice");
    wrong(&|k| k.shared[0].elem = Elem::I32, "is f32, not i32");
}

/// 16 words a group by copies of 16 bytes, the last of which brings zeros, stored backwards. `index` and `bytes` are the copies'.
fn backwards(index: impl Fn(Val, Val) -> Val, bytes: u32, zeros: bool, written: bool) -> gir::Kernel {
    let mut b = Builder::new("backwards", 4);
    let (x, y) = (b.buffer(Elem::F32, written), b.buffer(Elem::F32, true));
    let tile = b.shared(Elem::F32, 16);
    let thread = b.value(Op::Thread);
    let (own, inside) = (b.with(gir::Binary::Mul, thread, 4), b.compare_with(Compare::Lt, thread, 3));
    b.emit(Stmt::Copy { to: tile, at: own, from: x, index: index(thread, own), bytes, inside: zeros.then_some(inside) });
    b.emit(Stmt::CloseCopies);
    b.emit(Stmt::AwaitCopies { pending: 0 });
    b.emit(Stmt::Barrier);
    for i in 0..4 {
        let at = b.with(gir::Binary::Add, own, i);
        let last = b.i32(15);
        let from = b.sub(last, at);
        let v = b.load(tile, from);
        b.store(y, at, v);
    }
    b.finish()
}

#[test]
fn copies_go_beside_threads() {
    let device = Gpu::new(GpuIsa::Sm80);
    let run = |k: &gir::Kernel| {
        let x: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let mut buffers = vec![x, vec![0; 64]];
        run(k, &mut Launch { groups: 1, scalars: &[], buffers: &mut buffers, lanes: 32 }).map(|()| buffers.remove(1))
    };
    let own = |_, own| own;
    let k = backwards(own, 16, true, false);
    verify(&k, &device).expect("it holds");
    let want: Vec<u8> = (0..16).flat_map(|i: u8| f32::from(if i < 4 { 0 } else { 15 - i }).to_le_bytes()).collect();
    assert_eq!(run(&k).expect("it runs"), want);
    let says = |result: nnc_ir::Result<Vec<u8>>, what: &str| {
        let e = result.map(drop).expect_err(what);
        assert!(e.message().contains(what), "{e}");
    };
    let without = |left_out: &[Stmt]| {
        let mut k = k.clone();
        k.body.retain(|s| !left_out.contains(s));
        k
    };
    says(run(&without(&[Stmt::AwaitCopies { pending: 0 }])), "before the copy to it was waited for");
    // An open set is waited for by nobody.
    says(run(&without(&[Stmt::CloseCopies])), "before the copy to it was waited for");
    let mut early = k.clone();
    early.body.truncate(early.body.iter().position(|s| *s == Stmt::CloseCopies).expect("a set is closed"));
    says(run(&early), "before all its copies have arrived");
    says(run(&backwards(|thread, _| thread, 16, true, false)), "16 bytes at byte 4");
    says(run(&backwards(own, 16, false, false)), "element 12 of b0, which has 48 bytes");
    // What the verifier says.
    let refused = |k: &gir::Kernel, device: &Gpu, what: &str| says(verify(k, device).map(|()| vec![]), what);
    refused(&k, &Gpu::new(GpuIsa::SpirV), "no copies beside threads");
    refused(&backwards(own, 12, true, false), &device, "a copy of 12 bytes");
    refused(&backwards(own, 16, true, true), &device, "from b0");
    let mut divergent = without(&[Stmt::CloseCopies]);
    let cond = divergent.types.iter().position(|t| *t == gir::Ty::Bool).map(|i| Val(i as u32)).expect("a condition");
    divergent.body.push(Stmt::If { cond, then: vec![Stmt::CloseCopies], otherwise: vec![], joined: vec![] });
    refused(&divergent, &device, "a set of copies ends where not all threads");
}

#[test]
fn neighbours_are_had_at_once() {
    let twice = |from: i32, n: u32| {
        let mut b = Builder::new("twice", 2);
        let (x, y) = (b.buffer(Elem::F32, false), b.buffer(Elem::F32, true));
        let thread = b.value(Op::Thread);
        let at = b.with(gir::Binary::Mul, thread, n.into());
        let first = b.with(gir::Binary::Add, at, from.into());
        let v = b.load_vector(x, first, n);
        let v = v.into_iter().map(|v| b.add(v, v)).collect();
        b.store_vector(y, at, v);
        b.finish()
    };
    let device = Gpu::new(GpuIsa::Sm80);
    let run = |k: &gir::Kernel| {
        let x: Vec<u8> = (0..16).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let mut buffers = vec![x, vec![0; 32]];
        run(k, &mut Launch { groups: 1, scalars: &[], buffers: &mut buffers, lanes: 32 }).map(|()| buffers.remove(1))
    };
    let k = twice(4, 4);
    verify(&k, &device).expect("it holds");
    assert_eq!(run(&k).expect("it runs"), (0..8).flat_map(|i| (8.0 + 2.0 * i as f32).to_le_bytes()).collect::<Vec<u8>>());
    assert!(run(&twice(2, 4)).expect_err("no multiple of 4").message().contains("4 elements of b0 from 2 on"));
    assert!(verify(&k, &self::device()).expect_err("SPIR-V has none").message().contains("4 elements of b0 at once"));
    assert!(verify(&twice(0, 3), &device).expect_err("three").message().contains("3 elements of b0 at once"));
}

#[test]
fn a_line_of_groups_folds_into_the_grid() {
    for groups in [1, 7, 65535, 65536, 1_000_000] {
        let [x, y] = gir::grid(groups, 65535);
        assert!(x <= 65535 && y <= 65535 && x * y >= groups && x * y < groups + y, "{groups}: {x} x {y}");
    }
}

#[test]
fn text_of_a_kernel() {
    let mut b = Builder::new("relu", 128);
    let (x, y) = (b.buffer(Elem::F32, false), b.buffer(Elem::F32, true));
    let (n, i) = (b.scalar(), b.value(Op::Thread));
    let inside = b.compare(Compare::Lt, i, n);
    b.when(inside, |b| {
        let v = b.load(x, i);
        let zero = b.f32(0.0);
        let negative = b.compare(Compare::Lt, v, zero);
        let v = b.select(negative, zero, v);
        b.store(y, i, v);
    });
    let text = "kernel relu(b0: f32, b1: mut f32, s0) threads 128
  %4: f32 = 0.0
  %0: i32 = s0
  %1: i32 = thread
  %2: bool = lt %1, %0
  if %2 {
    %3: f32 = b0[%1]
    %5: bool = lt %3, %4
    %6: f32 = select %5, %4, %3
    b1[%1] = %6
  }
";
    assert_eq!(b.finish().to_string(), text);
}
